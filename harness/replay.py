"""A replay ring on the device, for any algorithm's transitions.

Over several devices it is a ring on each: a device stores the transitions of its own environments
and draws its part of each batch from them, so no transition ever moves to another device.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@flax.struct.dataclass
class Replay:
    """A ring of transitions; its capacity is a multiple of the number inserted at a time."""

    data: Any  # a pytree of transitions, leading axis: capacity
    position: Array  # () int32, where the next insert begins, on each device
    size: Array  # () int32, how many are filled, on each device
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)  # of one axis


def init(example: Any, capacity: int, mesh: Mesh | None = None) -> Replay:
    """An empty ring for `capacity` transitions like the pytree `example`: its shapes and types.

    mesh: the devices over which the ring is split, or None for one; it has one axis.
    """
    split, copied = (NamedSharding(mesh, spec) if mesh else None for spec in _specs(mesh))

    def empty(leaf: Array) -> Array:
        return jnp.zeros((capacity, *leaf.shape), leaf.dtype, device=split)

    position, size = (jnp.zeros((), jnp.int32, device=copied) for _ in range(2))
    return Replay(jax.tree.map(empty, example), position, size, mesh)


def _specs(mesh: Mesh | None) -> tuple[P, P]:
    """How the data is laid out, and how the counters are."""
    return P(mesh.axis_names[0] if mesh else None), P()


def _on_each_device(function, replay: Replay, argument: Any, in_spec: P, out_specs: Any) -> Any:
    """`function(a device's own ring, its part of the argument)` on every device."""
    split, copied = _specs(replay.mesh)
    in_specs = (Replay(split, copied, copied), in_spec)
    run = jax.shard_map(
        function, mesh=replay.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return run(replay.replace(mesh=None), argument)


def insert(replay: Replay, batch: Any) -> Replay:
    """Writes N transitions (N, ...) in place, over the oldest, in the ring's own types.

    Raises:
      ValueError: the capacity is not a multiple of N.
    """
    if replay.mesh is not None:
        split, copied = _specs(replay.mesh)
        ring = Replay(split, copied, copied)
        return _on_each_device(insert, replay, batch, split, ring).replace(mesh=replay.mesh)
    capacity, num = (jax.tree.leaves(tree)[0].shape[0] for tree in (replay.data, batch))
    if capacity % num:
        raise ValueError(f"the capacity {capacity} is not a multiple of the {num} inserted")

    def write(ring: Array, new: Array) -> Array:
        new = new.astype(ring.dtype)
        return jax.lax.dynamic_update_slice_in_dim(ring, new, replay.position, axis=0)

    return Replay(
        data=jax.tree.map(write, replay.data, batch),
        position=(replay.position + num) % capacity,
        size=jnp.minimum(replay.size + num, capacity),
    )


def holds(replay: Replay, number: int) -> Array:
    """() bool: whether it has `number` transitions, or as many as it can; over all devices."""
    capacity = jax.tree.leaves(replay.data)[0].shape[0]
    devices = 1 if replay.mesh is None else replay.mesh.size
    return replay.size * devices >= min(number, capacity)


def sample(
    key: Array,
    replay: Replay,
    shape: tuple[int, int],
    recent_fraction: float,
    recent_window: int,
    following: tuple[int, int] | None = None,
) -> Any:
    """Draws U batches of B transitions with replacement, as a pytree (U, B, ...), in float32.

    Args:
      key: a scalar typed key.
      replay: not empty.
      shape: (U, B).
      recent_fraction: share of each batch that is drawn from the newest `recent_window`
        transitions; the rest is drawn uniformly. Over D devices each draws B / D, and its share
        of the newest from the `recent_window` / D that are its own.
      following: (n, N), to draw with each transition the n - 1 that follow it in the ring N apart,
        as a pytree (U, B, n, ...). Where N were inserted at a time they are of the same
        environment; whether one goes on where the one before it ended, their observations say:
        an episode may have ended between, or the ring.
    """
    if replay.mesh is not None:
        (axis,), num_devices = replay.mesh.axis_names, replay.mesh.size
        part = (shape[0], shape[1] // num_devices)
        window = max(1, recent_window // num_devices)
        own = following and (following[0], following[1] // num_devices)

        def draw(ring: Replay, key: Array) -> Any:
            own_key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            return sample(own_key, ring, part, recent_fraction, window, own)

        return _on_each_device(draw, replay, key, P(), P(None, axis))
    recent_key, uniform_key = jax.random.split(key)
    num_updates, batch_size = shape
    num_recent = round(recent_fraction * batch_size)
    newest = jnp.minimum(recent_window, replay.size)
    age = jax.random.randint(recent_key, (num_updates, num_recent), 0, newest)
    capacity = jax.tree.leaves(replay.data)[0].shape[0]
    recent = (replay.position - 1 - age) % capacity
    rest = (num_updates, batch_size - num_recent)
    uniform = jax.random.randint(uniform_key, rest, 0, replay.size)
    rows = jnp.concatenate([recent, uniform], axis=1)
    if following is not None:
        length, apart = following
        rows = (rows[..., None] + apart * jnp.arange(length)) % capacity

    def read(ring: Array) -> Array:
        is_float = jnp.issubdtype(ring.dtype, jnp.floating)
        return ring[rows].astype(jnp.float32 if is_float else ring.dtype)

    return jax.tree.map(read, replay.data)
