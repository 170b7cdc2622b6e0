"""Loops of jitted code, and what they do with learning that is not due or not finite.

A step is (state) -> (state, metrics), over inputs (state, input) -> (state, metrics). Metrics are
scalars by name and add up: as one vector, so that a loop carries one buffer for all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from harness.contract import MAX_INT, Metrics


def repeat(step: Callable[[Any], tuple[Any, Metrics]], state: Any, count: int | jax.Array):
    """`step`, `count` times. Returns the last state and the summed metrics.

    count: an array, (), where only the running program knows it, bool for 0 or 1. After none the
    state is what it was, in place: `jax.lax.cond` would copy each leaf, whichever branch is taken.
    """
    if isinstance(count, int):
        if count == 1:
            return step(state)
        return _scan(lambda state, _: step(state), state, None, count)
    step = jax.jit(step, inline=True)  # traced once, here and in the loop
    sums, as_metrics = ravel_pytree(_zeros(step, state))

    def add(_, carry: tuple[Any, jax.Array]):
        state, metrics = step(carry[0])
        return state, carry[1] + ravel_pytree(metrics)[0]

    state, sums = jax.lax.fori_loop(0, count.astype(jnp.int32), add, (state, sums))
    return state, as_metrics(sums)


def when(condition: jax.Array, draw: Callable[[], Any]) -> Any:
    """`draw()`, or zeros in its place. For what reads a large array that was just written to.

    XLA merges such a read with the write if it can, and then copies the array to keep both.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(draw))
    return jax.lax.cond(condition, draw, lambda: zeros)


def over(step: Callable[[Any, Any], tuple[Any, Metrics]], state: Any, inputs: Any):
    """`step` with each of the inputs, (L, ...). Returns the last state and the summed metrics."""
    return _scan(step, state, inputs, None)


def _scan(step: Callable, state: Any, inputs: Any, length: int | None):
    as_metrics: Callable = dict

    def packed(state: Any, given: Any):
        nonlocal as_metrics
        state, metrics = step(state, given)
        vector, as_metrics = ravel_pytree(metrics)
        return state, vector

    state, each = jax.lax.scan(packed, state, inputs, length)
    return state, as_metrics(jnp.sum(each, axis=0))


def count_step(state: Any, after: Any, action: jax.Array) -> tuple[Any, Metrics]:
    """The state with its counters after a step of all environments, and sums for the log.

    state: with episode_return (N,) and num_steps (), environment steps so far. after: its
    environments then, with reward, terminated and truncated (N,). action: (N, A), what was taken.
    """
    done, returns = after.terminated | after.truncated, state.episode_return + after.reward
    metrics = {
        "episodes": jnp.sum(done),
        "charts/episodic_return": jnp.sum(jnp.where(done, returns, 0.0)),
        "charts/nonfinite_rewards": jnp.sum(~jnp.isfinite(after.reward)),
        "charts/action_saturation": jnp.mean(jnp.abs(action) > 0.99),
    }
    steps = jnp.minimum(state.num_steps + len(action), MAX_INT)
    return state.replace(episode_return=jnp.where(done, 0.0, returns), num_steps=steps), metrics


def means(sums: Metrics, counts: dict[str, Any]) -> Metrics:
    """Sums over the count of the first prefix of their name; those without one stay sums.

    A mean over nothing is nan.
    """
    count_of = {
        name: next((n for prefix, n in counts.items() if name.startswith(prefix)), 1)
        for name in sums
    }
    return {name: total / count_of[name] for name, total in sums.items()}


def alternating(step: Callable, state: Any, inputs: Any):
    """As `over`, with a step (state, input, due) of which a part is due on every second one.

    Of an even number of inputs `due` is 1, 0, 1, 0 ...: two go into one round of the loop, so that
    the program has nothing to decide. Of an odd number it is left out, for the step to decide.
    """

    def two(state: Any, pair: Any):
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], pair), due=1)
        state, more = step(state, jax.tree.map(lambda leaf: leaf[1], pair), due=0)
        return state, jax.tree.map(jnp.add, metrics, more)

    if jax.tree.leaves(inputs)[0].shape[0] % 2:
        return over(step, state, inputs)
    pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), inputs)
    return over(two, state, pairs)


def _zeros(step: Callable, *arguments: Any) -> Metrics:
    return jax.tree.map(jnp.zeros_like, jax.eval_shape(step, *arguments)[1])


def guarded(step: Callable[..., tuple[Any, Metrics]], skip: bool):
    """A step of learning that counts what is not finite.

    Args:
      step: (state, input, ...) -> (state, metrics).
      skip: whether a step of which anything is not finite, state or metrics, is dropped: then the
        state is that of before, and the metrics are zeros.

    Returns the same with one more metric, "charts/nonfinite_losses": 1 if the metrics, with `skip`
    also if the state, are not finite, else 0.
    """

    def guarded_step(before, *given, **options):
        after, metrics = step(before, *given, **options)
        leaves = jax.tree.leaves((after, metrics) if skip else metrics)
        bad = ~jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
        if skip:
            kept = (before, jax.tree.map(jnp.zeros_like, metrics))
            # By a loop of no round or one, which touches nothing where all is well. Of a `where` a
            # leaf XLA makes as many programs as there are leaves, each with all of these checks.
            number = bad.astype(jnp.int32)
            after, metrics = jax.lax.fori_loop(0, number, lambda *_: kept, (after, metrics))
        return after, metrics | {"charts/nonfinite_losses": bad.astype(jnp.int32)}

    return guarded_step
