"""Batches and parameters that are random but the same each time, for any algorithm's tests."""

import jax
import numpy as np

import flowrl_jax as flowrl

OBS, A, B = 5, 3, 16  # sizes of observations, actions and batch


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def perturbed(params, seed):
    """Parameters away from their symmetric start, so that nothing is zero or equal by chance."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, noisy)


def make_batch(seed=0, size=B):
    rng = np.random.default_rng(seed)
    return flowrl.Transition(
        obs=rng.standard_normal((size, OBS)).astype(np.float32),
        action=rng.uniform(-1, 1, (size, A)).astype(np.float32),
        reward=rng.uniform(0, 1, size).astype(np.float32),
        next_obs=rng.standard_normal((size, OBS)).astype(np.float32),
        terminated=rng.random(size) < 0.3,
    )


def directional(function, params, direction, eps=1e-6):
    """Central difference of a float64 numpy function along one direction in parameter space."""
    plus = jax.tree.map(lambda p, d: p + eps * d, params, direction)
    minus = jax.tree.map(lambda p, d: p - eps * d, params, direction)
    return (function(plus) - function(minus)) / (2 * eps)
