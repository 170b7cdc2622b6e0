"""Steps that may not be taken: learning that is not finite, or not due yet. For jitted code."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from harness.contract import Metrics


def guarded(step, skip: bool):
    """A step of learning that counts what is not finite, for `jax.lax.scan` or alone.

    Args:
      step: (state, input) -> (state, metrics), metrics being scalars by name.
      skip: whether a step of which anything is not finite, state or metrics, is dropped: then the
        state is that of before, and the metrics are zeros.

    Returns the same with one more metric, "charts/nonfinite_losses": 1 if the metrics, with `skip`
    also if the state, are not finite, else 0.
    """

    def guarded_step(before, given):
        after, metrics = step(before, given)
        leaves = jax.tree.leaves((after, metrics) if skip else metrics)
        bad = ~jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
        if skip:
            kept = (before, jax.tree.map(jnp.zeros_like, metrics))
            keep = functools.partial(jnp.where, bad)
            after, metrics = jax.tree.map(keep, kept, (after, metrics))
        return after, metrics | {"charts/nonfinite_losses": bad.astype(jnp.int32)}

    return guarded_step


def only_if(condition: jax.Array, step: Callable[[Any], tuple[Any, Metrics]], state: Any):
    """`step(state)`, a new state and metrics; the state as it is and zeros if not `condition`."""
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(step, state)[1])
    return jax.lax.cond(condition, step, lambda state: (state, zeros), state)
