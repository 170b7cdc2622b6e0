"""What a precision of the networks' products costs in accuracy: gradients beside float64's.

    python benchmarks/precision.py        # writes benchmarks/precision.csv

One batch of random transitions, preset `paper`'s sizes on humanoid-run, untrained networks and the
same networks after 200 updates on such batches. Each loss's gradient is taken in float64 and at
each precision; the figure is the length of the difference over the length of float64's. On a CPU
every float32 product is one of float32, so what a GPU or a TPU does is emulated: the operands of
every product, forward and backward, are rounded to TF32's 10 or bfloat16's 7 bits, and summed in
float32. Not emulated is an accelerator's order of sums.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import os
import pathlib
import sys
import types
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flowrl_jax as flowrl

OBS, ACTIONS, UPDATES = 67, 21, 200
BITS = {"highest": None, "tensorfloat32": 10, "bfloat16": 7}  # of the mantissa


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x, w, bits: int):
    """x (..., I) times w (I, J), both rounded to `bits`."""
    return rounded(x, bits) @ rounded(w, bits)


def rounded(x, bits: int):
    """x to `bits` of mantissa, float32's exponent."""
    return jax.lax.reduce_precision(x, 8, bits)


def _backward(bits: int, operands, g):
    x, w = operands
    x, w, g = (rounded(array, bits) for array in (x, w, g))
    return g @ w.T, jnp.einsum("...i,...j->ij", x, g)


product.defvjp(lambda x, w, bits: (product(x, w, bits), (x, w)), _backward)


def dense(bits: int, size: int, dtype: str) -> nn.Dense:
    """flowrl's layer with a product that is rounded."""
    dot = lambda x, w, *_, **__: product(x, w, bits)  # noqa: E731
    return nn.Dense(size, dtype=dtype, dot_general=dot)


def cast(tree, old: str, new: str):
    """The leaves of one type in another."""
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)


def gradients(learner, batch, noise, args) -> dict:
    """Loss -> its gradient, one vector, on one batch."""
    theta, phi = learner.velocity_field.params, learner.critic.params
    a_next = flowrl.policy_action(theta, batch.next_obs, noise.x0_next, args)
    q_next = flowrl.twin_q(learner.target_critic, batch.next_obs, a_next, args).min(axis=0)
    y = flowrl.td_target(batch, q_next, args.gamma)
    beta = learner.target_behaviour_critic
    q_beta = flowrl.twin_q(beta, batch.obs, batch.action, args).min(axis=0)
    losses = {
        "critic (2)": (lambda p: flowrl.critic_loss(p, batch, y, args)[0], phi),
        "behaviour value (4)": (
            lambda p: flowrl.behaviour_value_loss(p, batch.obs, q_beta, args)[0],
            learner.behaviour_value.params,
        ),
        "policy (6)": (lambda p: flowrl.policy_loss(p, phi, batch, q_beta, noise, args)[0], theta),
    }
    return {
        name: jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0]
        for name, (loss, params) in losses.items()
    }


def random_batch(key, args) -> tuple[flowrl.Transition, flowrl.UpdateNoise]:
    """Transitions that mean nothing, and the noise of an update."""
    keys, size = jax.random.split(key, 5), args.batch_size
    batch = flowrl.Transition(
        obs=jax.random.normal(keys[0], (size, OBS)),
        action=jax.random.uniform(keys[1], (size, ACTIONS), minval=-1.0),
        reward=jax.random.uniform(keys[2], (size,)),
        next_obs=jax.random.normal(keys[3], (size, OBS)),
        terminated=jnp.zeros(size, bool),
    )
    return batch, flowrl.draw_update_noise(keys[4], size, ACTIONS)


def at(precision: str, learner, batch, noise, args) -> dict:
    """`gradients` at a precision: one of BITS, "float64", or "compute_dtype bfloat16"."""
    patch, dtype = contextlib.nullcontext(), "float32"
    if BITS.get(precision):
        patch = mock.patch.object(flowrl, "dense", functools.partial(dense, BITS[precision]))
    elif precision == "float64":
        dtype = "float64"
        learner, batch, noise = cast((learner, batch, noise), "float32", dtype)
        double = types.SimpleNamespace(**vars(jnp) | {"float32": jnp.float64})
        patch = mock.patch.object(flowrl, "jnp", double)  # the networks hand float32 back
    elif precision == "compute_dtype bfloat16":
        dtype = "bfloat16"
    args = dataclasses.replace(args, compute_dtype=dtype)
    with patch:
        found = jax.jit(functools.partial(gradients, args=args))(learner, batch, noise)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def main() -> None:
    """Writes precision.csv and prints it."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    jax.config.update("jax_enable_x64", True)
    args, rows = flowrl.Args(), []
    learner = flowrl.init_learner(jax.random.key(0), OBS, ACTIONS, args)
    single = functools.partial(cast, old="float64", new="float32")
    learner = single(learner)
    update = jax.jit(functools.partial(flowrl.update, args=args))
    batch, noise = single(random_batch(jax.random.key(1), args))
    for updates in (0, UPDATES):
        for k in range(updates):
            learner = single(update(learner, *single(random_batch(jax.random.key(2 + k), args)))[0])
        exact = at("float64", learner, batch, noise, args)
        for precision in (*BITS, "compute_dtype bfloat16"):
            found = at(precision, learner, batch, noise, args)
            for name, value in found.items():
                error = np.linalg.norm(value - exact[name]) / np.linalg.norm(exact[name])
                cells = {"after updates": updates, "precision": precision, "gradient of": name}
                rows.append(cells | {"relative error": f"{error:.1e}"})
                print(*rows[-1].values(), sep=", ", flush=True)
    with (HERE / "precision.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
