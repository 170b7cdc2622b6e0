"""One program for several seeds, devices and hosts. It knows no algorithm and no tasks.

Seeds: `stack_seeds`, `over_seeds`, `of_seed`. Devices: `Devices` is the row of devices that a run
computes on, on one host or on several that `connect` has joined.

The training state of several devices is global arrays. Environments and replay are split along
their leading axis, a part on each device; all else is a copy on each. The algorithm is written for
the whole batch and does not know of this: XLA splits it as its inputs are split, and so averages
the gradients. Only what must stay on its device is a `jax.shard_map`: the environments' steps,
here, and the replay's rows, in replay.py.
"""

import ctypes
import functools
import math
import os
import re
import signal
import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from harness.errors import RunError

AXIS = "devices"  # the mesh's one axis
HEARTBEAT = 30  # seconds of silence after which a process counts as dead
SHUTDOWN = 10  # seconds that a process which ends waits for the others to end too
SEED_STRIDE = 7_368_787  # between the seeds of two processes' initial states
LOST = "error: another process of this run has ended; what was saved before stands"
# What a collective says when the process at its other end is gone: Gloo, NCCL, JAX's coordinator.
_LOST_SIGNS = re.compile(r"gloo|nccl|by peer|broken pipe|unavailable|heartbeat", re.I)


# --- seeds ----------------------------------------------------------------------------------------


def stack_seeds(states: list):
    """The states of K seeds as one pytree: leaves (K, ...), but counters, (), of which one is kept.

    A single state stays as it is. Counters are what all seeds have in common, such as the number of
    steps: a condition on one stays one under `vmap`, and is not turned into computing both sides.
    """
    if len(states) == 1:
        return states[0]
    columns = zip(*map(jax.tree.leaves, states), strict=True)  # their optimisers are no leaves
    leaves = [x[0] if _counter(x[0]) else jnp.stack(x) for x in columns]
    return jax.tree.unflatten(jax.tree.structure(states[0]), leaves)


def over_seeds(chunk, num_seeds: int):
    """A program, still to be compiled, of `chunk`: state -> (state, metrics), for K seeds at once.

    It takes what `stack_seeds` returned, and donates it.
    """
    if num_seeds == 1:
        return jax.jit(chunk, donate_argnums=0)

    def together(stacked):
        axes = jax.tree.map(lambda leaf: None if _counter(leaf) else 0, stacked)
        return jax.vmap(chunk, in_axes=(axes,), out_axes=(axes, 0))(stacked)

    return jax.jit(together, donate_argnums=0)


def of_seed(stacked, k: int, num_seeds: int):
    """The k-th of the states that were stacked."""
    if num_seeds == 1:
        return stacked
    return jax.tree.map(lambda leaf: leaf if _counter(leaf) else leaf[k], stacked)


def _counter(leaf) -> bool:
    return leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)


# --- hosts ----------------------------------------------------------------------------------------


def connect() -> None:
    """Joins the processes of this run, by `jax.distributed`; before JAX has started a device.

    JAX finds Slurm, Open MPI, Kubernetes and TPU slices by itself. Elsewhere each process needs
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      RunError: there is nothing to join, or not all joined in time.
    """
    # Its handler would swallow SIGTERM until training has begun.
    jax.config.update("jax_enable_preemption_service", False)
    _tell_of_aborts()
    sizes = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        jax.distributed.initialize(
            **{name: _number(variable) for name, variable in sizes.items()},
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RunError(
            f"--distributed: cannot join the other processes ({reason}): start under Slurm, MPI or "
            "on a TPU slice, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    if jax.process_index() > 0:  # what there is to say one process says, but for errors
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{variable}={text} is not a number")
    return None if text is None else int(text)


def connected() -> bool:
    """Whether this process is one of a run of several."""
    return jax.distributed.is_initialized()


def is_loss(error: BaseException) -> bool:
    """Whether an exception is what is seen here of another process's end."""
    return connected() and bool(_LOST_SIGNS.search(str(error)))


def leave(code: int, wait: bool = True) -> NoReturn:
    """Ends this process of several with `code`. `wait`: for the others, SHUTDOWN seconds at most.

    Python's own exit would wait in JAX for processes that may be gone.
    """
    global _leaving
    _leaving = code
    sys.stdout.flush()
    sys.stderr.flush()
    if wait:
        try:
            jax.distributed.shutdown()
        except Exception as error:  # the code says already how this process ended
            print(f"the other processes did not end: {error}", file=sys.stderr, flush=True)
    os._exit(code)


_leaving: int | None = None


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    if _leaving is None:
        os.write(2, f"\n{LOST}\n".encode())
    os._exit(1 if _leaving is None else _leaving)


def _tell_of_aborts() -> None:
    """JAX's client ends a process by abort() where the coordinator tells it of a loss.

    That comes from a thread of its own, and Python's signal handlers run in the main thread only.
    """
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, type(_aborted)), ctypes.c_void_p
    set_handler(signal.SIGABRT, _aborted)


# --- devices --------------------------------------------------------------------------------------


class Devices:
    """The D devices of a run, all those of its P processes in one row.

    `count`: D. `num_processes`: P. `is_main`: whether this process is the one that writes. `mesh`:
    None for one device, and then every method hands back what it was given.
    """

    def __init__(self, args):
        """args: has num_devices, D, or 0 for all; num_seeds, num_envs, batch_size.

        Raises:
          RunError: there are not as many, or one of the other numbers does not suit them.
        """
        found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.count = args.num_devices or len(found)
        self.num_processes, self.process = jax.process_count(), jax.process_index()
        self.is_main = self.process == 0
        self._check(len(found), args)
        devices, axis_types = np.array(found[: self.count]), (AxisType.Auto,)
        self.mesh = Mesh(devices, (AXIS,), axis_types=axis_types) if self.count > 1 else None

    def _check(self, available: int, args) -> None:
        count, num = self.count, self.num_processes
        if not 1 <= count <= available:
            fix = f"use {'1' if available == 1 else f'1 to {available}'}, or 0 for all"
            raise RunError(f"--num-devices: {count}, but JAX finds {available}; {fix}")
        if num > 1 and (count != available or count != num * jax.local_device_count()):
            fix = "use --num-devices 0, and equally many devices for each process"
            raise RunError(f"--num-devices: {num} processes use all their devices; {fix}")
        if args.num_seeds > 1 and count > 1:
            fix = "use --num-devices 1, or a run for each seed"
            raise RunError(f"--num-seeds: several seeds train on one device only; {fix}")
        for flag, total in (("--num-envs", args.num_envs), ("--batch-size", args.batch_size)):
            if total % count:
                fix = f"use a multiple, such as {-(-total // count) * count}"
                raise RunError(f"{flag}: {total} cannot be split over {count} devices; {fix}")

    def share(self) -> float:
        """How much of what is split lies in one memory: a device's, or on a CPU this process's."""
        shared = self.mesh is not None and self.mesh.devices.flat[0].platform == "cpu"
        return 1 / (self.num_processes if shared else self.count)

    def describe(self) -> str:
        """The devices in words."""
        kind = jax.devices()[0].device_kind
        if self.mesh is None:
            return f"device {kind}"
        processes = f" of {self.num_processes} processes" if self.num_processes > 1 else ""
        return f"{self.count} devices{processes}, {kind}"

    def spread(self, make, num_envs: int, seed: int):
        """Makes a vector environment of N = `num_envs`, of which each process makes its part.

        make: (num_envs, seed) -> vector environment.

        Raises:
          RunError: its engine cannot be spread.
        """
        if self.mesh is None:
            return make(num_envs, seed=seed)
        own_seed = (seed + SEED_STRIDE * self.process) % 2**32  # of its initial states
        env = make(num_envs // self.num_processes, seed=own_seed)
        if env.engine == "warp":
            raise RunError("--engine: warp runs on one device only; use --engine mjx or native")
        return SpreadEnv(env, self)

    def place(self, tree):
        """Gives every device a copy of the leaves that are not on the mesh yet."""
        if self.mesh is None:
            return tree
        everywhere = set(self.mesh.devices.flat)

        def copy(leaf: jax.Array) -> jax.Array:
            return leaf if leaf.sharding.device_set == everywhere else self.join(leaf, P())

        return jax.tree.map(copy, tree)

    def join(self, leaf: jax.Array, spec: P) -> jax.Array:
        """A global array of this process's rows, or where `spec` is P() of all of it."""
        if isinstance(leaf, jax.core.Tracer):  # of `jax.eval_shape`, which asks for sizes
            return jnp.repeat(leaf, self.num_processes, axis=0) if spec else leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self.join(jax.random.key_data(leaf), spec))
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    def program(self, chunk, state, num_seeds: int = 1):
        """As `over_seeds`; `state` stays split as it is, and each device has the metrics."""
        if self.mesh is None:
            return over_seeds(chunk, num_seeds)
        as_before = jax.tree.map(lambda leaf: leaf.sharding, state)
        metrics = NamedSharding(self.mesh, P())
        return jax.jit(chunk, donate_argnums=0, out_shardings=(as_before, metrics))

    def local(self, tree):
        """The copy on this process's first device, of leaves that every device has."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def gather(self, leaf: jax.Array) -> np.ndarray:
        """All of an array in this process's memory, of typed keys their data. All processes call.

        On a CPU it may be the array's own memory: to be read before the array is donated.
        """
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if self.num_processes > 1 and not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    def scatter(self, values: np.ndarray, like: jax.Array) -> jax.Array:
        """The inverse: an array split as `like` is. `like` is deleted before, for its memory.

        Raises:
          ValueError: the shapes or types differ.
        """
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        data = jax.random.key_data(like) if is_key else like
        if (data.shape, data.dtype) != (values.shape, values.dtype):
            found = f"{values.dtype}{list(values.shape)}"
            raise ValueError(f"{found} is not {data.dtype}{list(data.shape)}")
        sharding, impl = data.sharding, jax.random.key_impl(like) if is_key else None
        data.delete()
        if self.mesh is None:
            array = jnp.array(values)  # a copy: a chunk can donate no memory of numpy's
        else:
            array = jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
        return jax.random.wrap_key_data(array, impl=impl) if is_key else array

    def agree(self, number: int) -> int:
        """The largest `number` of all processes. Every process waits here for the others."""
        if self.num_processes == 1:
            return number
        each = np.full(self.count // self.num_processes, number, np.int32)
        return int(_largest(self.join(each, P(AXIS))))


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return jnp.max(numbers)


class SpreadEnv:
    """N environments over all devices, N/D on each; made by `Devices.spread`.

    What it has is what the vector environment has, which holds this process's N/P of them.
    """

    def __init__(self, env: Any, devices: Devices):
        self._env, self._devices, self.mesh = env, devices, devices.mesh
        self.num_envs = env.num_envs * devices.num_processes
        on_each = functools.partial(jax.shard_map, mesh=self.mesh, check_vma=False)
        self.step = on_each(env.step, in_specs=P(AXIS), out_specs=P(AXIS))
        write = on_each(self._write_own, in_specs=P(AXIS), out_specs=P(AXIS))
        split = NamedSharding(self.mesh, P(AXIS))  # XLA would not split an array of no elements
        self._write = jax.jit(write, donate_argnums=0, out_shardings=split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, key: jax.Array):
        """As the vector environment's, from initial states that each process draws for itself."""
        process = self._devices.process
        if self._devices.num_processes > 1:
            key = jax.random.fold_in(key, process)
        return jax.tree.map(lambda x: self._devices.join(x, P(AXIS)), self._env.reset(key))

    def refresh(self, state: Any, index: int):
        """As the vector environment's: REFRESH new initial states in each process."""
        num_local = self._devices.count // self._devices.num_processes

        def to_each(leaf: np.ndarray) -> jax.Array:  # (...) -> (D, ...), a row on each device
            rows = np.broadcast_to(leaf, (num_local, *np.shape(leaf)))
            return self._devices.join(rows, P(AXIS))

        fresh = jax.tree.map(to_each, self._env.fresh(index))
        return state.replace(pool=self._write(state.pool, *fresh))

    def _write_own(self, pool: Any, rows: jax.Array, fresh: Any) -> Any:
        """On one device. pool: (N/D, K, ...). rows: (1, count), of the process's pool."""
        size = math.prod(jax.tree.leaves(pool)[0].shape[:2])
        num_local = self._devices.count // self._devices.num_processes
        own = rows[0] - jax.lax.axis_index(AXIS) % num_local * size
        own = jnp.where(own < 0, size, own)  # another device's rows: past the end, so left out
        return self._env.write_pool(pool, own, jax.tree.map(lambda leaf: leaf[0], fresh))
