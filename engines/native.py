"""MuJoCo in C, as a part of a jitted program."""

import copy
import hashlib
import math
import os
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from engines import PhysicsState, host_call
from tasks.resets import read_rows, write_rows

MAX_PERSISTENT = 512  # environments whose MjData stay; more of them leave the processor's cache


class NativeEngine:
    """MuJoCo in C on all cores, inside the jitted program by a call to the host.

    Each call loads every environment's state, steps it, brings position and velocity sensors up
    to date as dm_control does, and hands state and sensors back. What it keeps is a cache: where
    a step is one substep, the final position and velocity stages are half the work, and they are
    also the first half of the next call if it comes with the same bits, as it does unless the
    environment was reset. So the state is rounded to float32 before these stages, not after.
    """

    def __init__(self, model: mujoco.MjModel, num_substeps: int, num_threads: int, rows: dict):
        self._model, self._rows = model, rows
        # A diverged state must come back as it is, to be counted, and not be reset in silence.
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self._num_substeps = num_substeps
        # With more substeps the cache costs more than it saves; it holds for one model; and of two
        # calls the second would find another simulation's forces and accelerations (touch sensors).
        late = (model.sensor_needstage == mujoco.mjtStage.mjSTAGE_ACC).any()
        self._persistent = num_substeps == 1 and not self._rows and not late
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        # Some values MuJoCo's batches cannot vary, such as a height field.
        self._own_models = any(field not in mujoco.batch.MODEL_FIELDS for field in rows)
        self._batches: dict[int, mujoco.batch.Batch] = {}
        self._models: dict[int, OwnModels] = {}
        self._lock = threading.Lock()
        sizes = [model.nq, model.nv, model.na, model.nv]
        self._output_size = sum(sizes) + model.nsensordata
        episode = [value.size for value in read_rows(model, self._rows).values()]
        self._name = f"mujoco_{_digest(model, num_substeps, num_threads, rows)}"
        self._splits = np.cumsum([*sizes, model.nu, *episode])[:-1].tolist()  # see _host_step

    def step(
        self, state: PhysicsState, ctrl: jax.Array, episode: dict[str, jax.Array]
    ) -> tuple[PhysicsState, jax.Array, jax.Array]:
        """Steps N environments.

        Args:
          state: of N environments.
          ctrl: (N, nu).
          episode: values of the model that differ by environment, field -> (N, k, dim).

        Returns the state, sensors (N, nsensordata), overflowed buffers (N,): none.
        """
        inputs = [state.qpos, state.qvel, state.act, state.warmstart, ctrl]
        inputs += [episode[field].reshape(len(ctrl), -1) for field in self._rows]
        inputs = jnp.concatenate(inputs, axis=1)
        host_call.register(self._name, self._host_step)
        result = jax.lax.platform_dependent(inputs, cpu=self._call, default=self._call_back)
        *physics, sensordata = jnp.split(result, self._splits[:4], axis=1)
        return PhysicsState(*physics), sensordata, jnp.zeros(len(ctrl), jnp.int32)

    def _call(self, inputs: jax.Array) -> jax.Array:
        """`_host_step` as a part of a program on this CPU."""
        return host_call.call(self._name, (len(inputs), self._output_size), inputs)

    def _call_back(self, inputs: jax.Array) -> jax.Array:
        """The same from a device with memory of its own: JAX copies, and needs its CPU beside."""
        result = jax.ShapeDtypeStruct((len(inputs), self._output_size), np.float32)
        return jax.pure_callback(self._host_step, result, inputs, vmap_method="broadcast_all")

    def _host_step(self, inputs: np.ndarray | jax.Array) -> np.ndarray:
        """State, controls and episode, side by side (..., n) -> state and sensors (..., m)."""
        inputs, leading = np.asarray(inputs), inputs.shape[:-1]  # (N,), and under vmap (..., N)
        count = math.prod(leading)
        velocity_stage = mujoco.mjtStage.mjSTAGE_VEL.value
        with self._lock:
            if count not in self._batches:
                keep = self._persistent and count <= MAX_PERSISTENT
                self._batches[count] = mujoco.batch.Batch(
                    self._model, count, self._num_threads, persistent=keep
                )
            batch = self._batches[count]
            state = (batch.qpos, batch.qvel, batch.act, batch.qacc_warmstart)
            values = np.split(inputs.reshape(count, -1), self._splits, axis=1)
            for array, value in zip((*state, batch.ctrl), values, strict=False):
                array[:] = value
            episode = dict(zip(self._rows, values[5:], strict=True))
            sensordata = batch.bind("sensordata")
            if self._own_models:
                if count not in self._models:
                    self._models[count] = OwnModels(self._model, self._rows, count)
                step = self._models[count].step
                failed, sensordata = step(batch, episode, self._num_substeps)
            elif self._persistent:  # in two calls also where nothing is kept: the same bits
                failed = _failures(batch.step)
                for array in state:
                    array[:] = array.astype(np.float32)
                failed += _failures(batch.forward, stage=velocity_stage)
            else:
                for field, ids in self._rows.items():
                    array = batch.expand(field)
                    array[:, ids] = episode[field].reshape(array[:, ids].shape)
                failed = _failures(batch.step, nstep=self._num_substeps, stage=velocity_stage)
            result = np.concatenate((*state, sensordata), axis=1, dtype=np.float32)
            result[failed] = np.nan  # to be contained and counted as any state that is not finite
        return result.reshape(*leading, self._output_size)


class OwnModels:
    """A model for each simulation of a batch: for an episode's values that a batch cannot vary.

    Substeps compute no sensor of the position and velocity stages, as nobody would read it: the
    quadruped's rangefinders are 95% of a substep on a height field.
    """

    def __init__(self, model: mujoco.MjModel, rows: dict[str, np.ndarray], count: int):
        self._rows, self._models = rows, [copy.copy(model) for _ in range(count)]
        stages, last = model.sensor_needstage, mujoco.mjtStage.mjSTAGE_ACC.value
        self._own_stages = np.array(stages)
        self._late_stages = np.where(stages == last, last, mujoco.mjtStage.mjSTAGE_NONE.value)
        self._late = np.repeat(stages == last, model.sensor_dim)  # (nsensordata,)

    def step(
        self, batch: mujoco.batch.Batch, episode: dict[str, np.ndarray], num_substeps: int
    ) -> tuple[list[int], np.ndarray]:
        """Steps a batch that has its states and controls.

        Args:
          batch: of N simulations.
          episode: field of the model -> (N, k * dim).
          num_substeps: of the control step.

        Returns the simulations that failed, and the sensors (N, nsensordata).
        """
        self._write(episode)
        self._compute(batch, self._late_stages)
        failed = _failures(batch.step, nstep=num_substeps)
        late = np.array(batch.bind("sensordata"))
        self._compute(batch, self._own_stages)
        failed += _failures(batch.forward, stage=mujoco.mjtStage.mjSTAGE_VEL.value)
        return failed, np.where(self._late, late, batch.bind("sensordata"))

    def _write(self, episode: dict[str, np.ndarray]) -> None:
        for i, model in enumerate(self._models):
            own = {field: value[i] for field, value in episode.items()}
            its = read_rows(model, self._rows)
            if any((its[field].ravel() != value).any() for field, value in own.items()):
                write_rows(model, self._rows, own)

    def _compute(self, batch: mujoco.batch.Batch, stages: np.ndarray) -> None:
        """Says at which stage each sensor is computed, and tells the batch of all changes."""
        for model in self._models:
            model.sensor_needstage[:] = stages
        batch.set_models(self._models)


def _digest(model: mujoco.MjModel, num_substeps: int, num_threads: int, rows: dict) -> str:
    """What tells this engine's steps from those of any other."""
    binary = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    parts = (num_substeps, num_threads, [(name, list(ids)) for name, ids in rows.items()])
    return hashlib.sha256(binary.tobytes() + repr(parts).encode()).hexdigest()[:16]


def _failures(call: Callable[..., None], **arguments: int) -> list[int]:
    """Calls a method of a batch; returns the simulations in which MuJoCo raised an error.

    Such as a heap of contacts that needs more memory than the model has. The others went on.
    """
    try:
        call(**arguments)
    except mujoco.batch.SimulationError as error:
        return error.ids.tolist()
    return []
