"""A replay ring on the device, for any algorithm's transitions."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array


@flax.struct.dataclass
class Replay:
    """A ring of transitions; its capacity is a multiple of the number inserted at a time."""

    data: Any  # a pytree of transitions, leading axis: capacity
    position: Array  # () int32, where the next insert begins
    size: Array  # () int32, how many are filled


def init(example: Any, capacity: int) -> Replay:
    """An empty ring for `capacity` transitions shaped as the pytree `example`, one transition."""
    data = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), example)
    return Replay(data, position=jnp.zeros((), jnp.int32), size=jnp.zeros((), jnp.int32))


def insert(replay: Replay, batch: Any) -> Replay:
    """Writes N transitions (N, ...) in place, over the oldest.

    Raises:
      ValueError: the capacity is not a multiple of N.
    """
    capacity, num = (jax.tree.leaves(tree)[0].shape[0] for tree in (replay.data, batch))
    if capacity % num:
        raise ValueError(f"the capacity {capacity} is not a multiple of the {num} inserted")

    def write(ring: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, new, replay.position, axis=0)

    return Replay(
        data=jax.tree.map(write, replay.data, batch),
        position=(replay.position + num) % capacity,
        size=jnp.minimum(replay.size + num, capacity),
    )


def sample(
    key: Array, replay: Replay, shape: tuple[int, int], recent_fraction: float, recent_window: int
) -> Any:
    """Draws U batches of B transitions with replacement, as a pytree (U, B, ...).

    Args:
      key: a scalar typed key.
      replay: not empty.
      shape: (U, B).
      recent_fraction: share of each batch that is drawn from the newest `recent_window`
        transitions; the rest is drawn uniformly.
    """
    recent_key, uniform_key = jax.random.split(key)
    num_updates, batch_size = shape
    num_recent = round(recent_fraction * batch_size)
    newest = jnp.minimum(recent_window, replay.size)
    age = jax.random.randint(recent_key, (num_updates, num_recent), 0, newest)
    recent = (replay.position - 1 - age) % jax.tree.leaves(replay.data)[0].shape[0]
    rest = (num_updates, batch_size - num_recent)
    uniform = jax.random.randint(uniform_key, rest, 0, replay.size)
    rows = jnp.concatenate([recent, uniform], axis=1)
    return jax.tree.map(lambda ring: ring[rows], replay.data)
