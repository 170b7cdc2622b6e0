"""Vector environments: one task, several engines, one interface.

    env = envs.make("humanoid-run", num_envs=256)          # engine="auto"
    state = env.reset(jax.random.key(0))                    # EnvState, leading axis num_envs
    state = env.step(state, action)                         # pure and jittable
    state.obs, state.next_obs, state.reward, state.terminated, state.truncated

`obs` is what the policy sees next; `next_obs` is the true successor of the state that was acted
in. They differ where an episode ended. `python envs.py` prints the table of tasks.
"""

import concurrent.futures
import contextlib
import copy
import difflib
import functools
import importlib
import importlib.util
import math
import os
import threading
from typing import Any
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from tasks.base import InitialStates, Physics, Task

# Products in float32, not TF32 or bfloat16: on a GPU or TPU physics and observations would lose
# four of their seven digits. The networks have a precision of their own, --compute-dtype.
jax.config.update("jax_default_matmul_precision", "highest")

DOMAINS = (
    "acrobot",
    "cartpole",
    "cheetah",
    "dog",
    "hopper",
    "humanoid",
    "humanoid_CMU",
    "pendulum",
    "quadruped",
    "walker",
)
ENGINES = ("native", "mjx")
MIN_POOL = 64  # initial states held for resets; never fewer than there are environments
MAX_DISTINCT = 128  # of them drawn before the first step, at up to 15 ms each; the pool repeats
# these until `refresh` has replaced them. A number and not a time: any machine draws the same.
REFRESH = 32  # initial states renewed at each `refresh`
MAX_ENVS, MAX_THREADS = 2**20, 1024
MAX_MAGNITUDE = 1e10  # MuJoCo's own bound on a valid state


class UsageError(ValueError):
    """A request that cannot be served; its message is one line that says what to change."""


@flax.struct.dataclass
class PhysicsState:
    """What an engine steps: everything that the next physics step depends on."""

    qpos: jax.Array  # (N, nq)
    qvel: jax.Array  # (N, nv)
    act: jax.Array  # (N, na)
    warmstart: jax.Array  # (N, nv)  accelerations from which the constraint solver starts


@flax.struct.dataclass
class InitialState:
    """The start of an episode."""

    qpos: jax.Array  # (..., nq)
    qvel: jax.Array  # (..., nv)
    act: jax.Array  # (..., na)
    episode: dict[str, jax.Array]  # (..., dim) by name
    obs: jax.Array  # (..., O)


@flax.struct.dataclass
class EnvState:
    """A batch of N environments after a step; every leaf has leading axis N."""

    physics: PhysicsState
    episode: dict[str, jax.Array]  # (N, dim)  what each episode changed in the model
    obs: jax.Array  # (N, O)  what the policy sees next
    next_obs: jax.Array  # (N, O)  the true successor, before any reset
    reward: jax.Array  # (N,)
    terminated: jax.Array  # (N,)  bool: the task ended, the value of next_obs is zero
    truncated: jax.Array  # (N,)  bool: the time limit ended, next_obs still has a value
    step_count: jax.Array  # (N,)  int32, control steps of the present episode
    nonfinite_count: jax.Array  # (N,)  int32, non-finite states contained so far
    pool: InitialState  # (N, K, ...)  where resets draw from
    key: jax.Array  # (N,)  which initial state is drawn


class Sensors:
    """Where each named sensor stands in MuJoCo's flat sensor vector."""

    def __init__(self, model: mujoco.MjModel):
        self._slices = {
            model.sensor(i).name: slice(
                model.sensor_adr[i], model.sensor_adr[i] + model.sensor_dim[i]
            )
            for i in range(model.nsensor)
        }

    def by_name(self, sensordata: jax.Array) -> dict[str, jax.Array]:
        """Splits (..., nsensordata) into name -> (..., dim)."""
        return {name: sensordata[..., where] for name, where in self._slices.items()}


class NativeEngine:
    """MuJoCo in C on all cores, inside the jitted program by `jax.pure_callback`.

    Each call loads every environment's state, steps it, brings position and velocity sensors up
    to date as dm_control does, and hands state and sensors back. What it keeps is a cache: where
    a step is one substep, the final position and velocity stages are half the work, and they are
    also the first half of the next call if it comes with the same bits, as it does unless the
    environment was reset. So the state is rounded to float32 before these stages, not after.
    """

    def __init__(self, model: mujoco.MjModel, num_substeps: int, num_threads: int = 0):
        self._model = model
        # A diverged state must come back as it is, to be counted, and not be reset in silence.
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self._num_substeps = num_substeps
        self._persistent = num_substeps == 1  # else the cache costs more than it saves
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._batches: dict[int, mujoco.batch.Batch] = {}
        self._lock = threading.Lock()
        sizes = (model.nq, model.nv, model.na, model.nv, model.nsensordata)
        self._splits = np.cumsum(sizes)[:-1].tolist()  # of a result's row, see _host_step
        self._row_size = sum(sizes)

    def step(self, state: PhysicsState, ctrl: jax.Array) -> tuple[PhysicsState, jax.Array]:
        """Steps N environments. ctrl: (N, nu). Returns the state and sensors (N, nsensordata)."""
        # One array in, one out: each costs the callback some 20 microseconds.
        rows = [state.qpos, state.qvel, state.act, state.warmstart, ctrl]
        result = jax.pure_callback(
            self._host_step,
            jax.ShapeDtypeStruct((len(ctrl), self._row_size), np.float32),
            jnp.concatenate(rows, axis=1),
            vmap_method="broadcast_all",
        )
        *physics, sensordata = jnp.split(result, self._splits, axis=1)
        return PhysicsState(*physics), sensordata

    def _host_step(self, rows: jax.Array) -> np.ndarray:
        """(..., qpos, qvel, act, warmstart, ctrl) -> (..., qpos, qvel, act, warmstart, sensors)."""
        rows, leading = np.asarray(rows), rows.shape[:-1]  # (N,), and under vmap (..., N)
        count = math.prod(leading)
        velocity_stage = mujoco.mjtStage.mjSTAGE_VEL.value
        with self._lock:
            if count not in self._batches:
                self._batches[count] = mujoco.batch.Batch(
                    self._model, count, self._num_threads, persistent=self._persistent
                )
            batch = self._batches[count]
            state = (batch.qpos, batch.qvel, batch.act, batch.qacc_warmstart)
            inputs = np.split(rows.reshape(count, -1), self._splits, axis=1)
            for array, values in zip((*state, batch.ctrl), inputs, strict=True):
                array[:] = values
            sensordata = batch.bind("sensordata")
            if self._persistent:
                batch.step()
                for array in state:
                    array[:] = array.astype(np.float32)
                batch.forward(stage=velocity_stage)
            else:
                batch.step(nstep=self._num_substeps, stage=velocity_stage)
            result = np.concatenate((*state, sensordata), axis=1, dtype=np.float32)
        return result.reshape(*leading, self._row_size)


class MjxEngine:
    """MJX, impl `jax`: physics as part of the compiled program, on GPU, TPU or CPU."""

    def __init__(self, model: mujoco.MjModel, num_substeps: int):
        with contextlib.redirect_stdout(None):  # it says so where the optional warp is missing
            from mujoco import mjx
            from mujoco.mjx._src import collision_driver, collision_primitive

        pair = (mjx.GeomType.PLANE, mjx.GeomType.CAPSULE)
        collider = collision_primitive.collider(ncon=2)(_plane_capsule)
        self._contacts = functools.partial(
            mock.patch.dict, collision_driver._COLLISION_FUNC, {pair: collider}
        )
        # MJX refuses the energy flag, which computes energies and changes no dynamics.
        model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
        self._mjx = mjx
        self._model = mjx.put_model(model, impl="jax")
        self._data = mjx.make_data(model, impl="jax")
        self._num_substeps = num_substeps

    def step(self, state: PhysicsState, ctrl: jax.Array) -> tuple[PhysicsState, jax.Array]:
        """Steps N environments. ctrl: (N, nu). Returns the state and sensors (N, nsensordata)."""
        with self._contacts():  # while it is traced
            return jax.vmap(self._step_one)(state, ctrl)

    def _load(self, state: PhysicsState, ctrl: jax.Array, sensordata: jax.Array):
        return self._data.replace(
            qpos=state.qpos,
            qvel=state.qvel,
            act=state.act,
            qacc_warmstart=state.warmstart,
            ctrl=ctrl,
            sensordata=sensordata,
        )

    def _step_one(self, state: PhysicsState, ctrl: jax.Array):
        mjx, model = self._mjx, self._model

        def substep(carry, _):
            data = mjx.step(model, self._load(carry[0], ctrl, carry[1]))
            state = PhysicsState(data.qpos, data.qvel, data.act, data.qacc_warmstart)
            return (state, data.sensordata), None

        carry = (state, self._data.sensordata)
        (state, sensordata), _ = jax.lax.scan(substep, carry, length=self._num_substeps)
        # The position and velocity stages at the new state; XLA drops what no sensor reads.
        data = mjx.fwd_position(model, self._load(state, ctrl, sensordata))
        data = mjx.fwd_velocity(model, mjx.sensor_pos(model, data))
        return state, mjx.sensor_vel(model, data).sensordata


def _plane_capsule(plane: Any, capsule: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The contacts of a capsule's two ends with a plane: distances (2,), points, frames (2, 3, 3).

    As in C, the first tangent follows the capsule. MJX's own turns it to the world's y for a steep
    capsule, and a pyramidal friction cone with it: on humanoid-run the next observation was then
    off by a quarter (benchmarks/NOTES.md).
    """
    normal, axis = plane.mat[:, 2], capsule.mat[:, 2]
    along = axis - normal * jnp.dot(normal, axis)
    length = jnp.sqrt(jnp.maximum(jnp.dot(along, along), 1e-30))
    tangent = jnp.where(length < 1e-12, jnp.roll(normal, 1), along / length)
    frame = jnp.stack([normal, tangent, jnp.cross(normal, tangent)])
    ends = capsule.pos + jnp.array([[1.0], [-1.0]]) * axis * capsule.size[1]
    radius = capsule.size[0]
    distances = (ends - plane.pos) @ normal - radius
    points = ends - (radius + distances / 2)[:, None] * normal
    return distances, points, jnp.stack([frame, frame])


class VectorEnv:
    """N copies of one task on one engine, with auto-reset. Made by `make`."""

    def __init__(self, task: Task, num_envs: int, engine: str, seed: int, num_threads: int):
        self.env_id = f"{task.domain}-{task.name}"
        self.num_envs, self.engine, self.task = num_envs, engine, task
        self._initial = InitialStates(task, seed)
        self.control_timestep = self._initial.control_timestep  # s
        self.episode_length = self._initial.episode_length  # control steps
        self.action_size = task.model.nu
        self._sensors = Sensors(task.model)
        self._sensing = _sensing_model(task.model)
        low, high = task.model.actuator_ctrlrange.T
        self._ctrl_middle = np.asarray((high + low) / 2, np.float32)
        self._ctrl_half_range = np.asarray((high - low) / 2, np.float32)
        substeps = self._initial.num_substeps
        if engine == "native":
            self._engine = NativeEngine(task.model, substeps, num_threads)
        else:
            self._engine = MjxEngine(task.model, substeps)
        self._background = concurrent.futures.ThreadPoolExecutor(1, "initial-states")
        self._next_refresh: tuple[int, concurrent.futures.Future] | None = None
        columns = -(-MIN_POOL // num_envs)  # K: the pool is (N, K)
        distinct = min(num_envs * columns, MAX_DISTINCT)
        rows = np.arange(num_envs * columns).reshape(num_envs, columns) % distinct
        states = self._draw(0, distinct)
        self._first_pool = jax.tree.map(lambda leaf: leaf[rows], states)
        self.observation_size: int = states.obs.shape[-1]

    def reset(self, key: jax.Array) -> EnvState:
        """Starts N episodes from initial states drawn with `key` (a scalar typed key)."""
        draw_key, env_key = jax.random.split(key)
        pool = jax.tree.map(jnp.asarray, self._first_pool)
        start = _draw_from_pool(pool, jax.random.split(draw_key, self.num_envs))
        return self._begin(start, pool, jax.random.split(env_key, self.num_envs))

    def reset_to(
        self, qpos: np.ndarray, qvel: np.ndarray, act: np.ndarray | None = None, episode=None
    ) -> EnvState:
        """Starts N episodes from chosen states, the solver's warm start at zero.

        Args:
          qpos: (N, nq).
          qvel: (N, nv).
          act: (N, na), zero if None.
          episode: name -> (N, dim), as the task draws it.

        Raises:
          ValueError: not one state for each environment.
        """
        if len(qpos) != self.num_envs:
            raise ValueError(f"needs {self.num_envs} states, got {len(qpos)}")
        act = np.zeros((len(qpos), self.task.model.na)) if act is None else act
        start = self._sense({"qpos": qpos, "qvel": qvel, "act": act}, episode or {})
        pool = jax.tree.map(jnp.asarray, self._first_pool)
        start = jax.tree.map(jnp.asarray, start)
        return self._begin(start, pool, jax.random.split(jax.random.key(0), self.num_envs))

    def step(self, state: EnvState, action: jax.Array) -> EnvState:
        """Advances every environment by one control step. action: (N, A), clipped to [-1, 1].

        An environment whose episode ended is returned already reset: `obs` then belongs to the
        new episode and `next_obs` to the old one.
        """
        action = jnp.clip(action, -1.0, 1.0)
        ctrl = self._ctrl_middle + self._ctrl_half_range * action
        physics, sensordata = self._engine.step(state.physics, ctrl)
        view = Physics(
            physics.qpos,
            physics.qvel,
            physics.act,
            ctrl,
            self._sensors.by_name(sensordata),
            state.episode,
        )
        obs, reward = jax.vmap(self.task.observe)(view), jax.vmap(self.task.reward)(view)
        finite = _all_valid((action, physics, obs, reward))  # MuJoCo takes a NaN action for 0
        if self.task.terminated is None:
            terminated = ~finite
        else:
            terminated = jax.vmap(self.task.terminated)(view) | ~finite
        step_count = state.step_count + 1
        truncated = (step_count >= self.episode_length) & ~terminated
        done = terminated | truncated

        keys = jax.vmap(jax.random.split)(state.key)  # (N, 2)
        start = _draw_from_pool(state.pool, keys[:, 0])
        next_obs = _select(finite, obs, state.obs)  # the last valid one stands in
        return EnvState(
            physics=_select(done, _at_start(start), physics),
            episode=_select(done, start.episode, state.episode),
            obs=_select(done, start.obs, next_obs),
            next_obs=next_obs,
            reward=jnp.where(finite, reward, 0.0),
            terminated=terminated,
            truncated=truncated,
            step_count=jnp.where(done, 0, step_count),
            nonfinite_count=state.nonfinite_count + ~finite,
            pool=state.pool,
            key=keys[:, 1],
        )

    def refresh(self, state: EnvState, index: int) -> EnvState:
        """Replaces REFRESH initial states of the pool by new ones; not jittable.

        Args:
          state: the environments; only their pool changes, and the old pool is donated.
          index: 1, 2, 3 ...: which new states. The same index always gives the same states. The
            next index is drawn in the background meanwhile.
        """
        pool_size = state.pool.obs.shape[0] * state.pool.obs.shape[1]
        count = min(REFRESH, pool_size)
        if self._next_refresh is None or self._next_refresh[0] != index:
            self._next_refresh = (index, self._background.submit(self._draw, index, count))
        fresh = self._next_refresh[1].result()
        following = self._background.submit(self._draw, index + 1, count)
        self._next_refresh = (index + 1, following)
        rows = (np.arange(count) + (index - 1) * count) % pool_size
        return state.replace(pool=_write_pool(state.pool, rows, fresh))

    def _begin(self, start: InitialState, pool: InitialState, keys: jax.Array) -> EnvState:
        zeros, no = jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, bool)
        count = jnp.zeros(self.num_envs, jnp.int32)
        return EnvState(
            physics=_at_start(start),
            episode=start.episode,
            obs=start.obs,
            next_obs=jnp.array(start.obs),  # a buffer of its own: states are donated
            reward=zeros,
            terminated=no,
            truncated=jnp.array(no),
            step_count=count,
            nonfinite_count=jnp.array(count),
            pool=pool,
            key=keys,
        )

    def _draw(self, index: int, count: int) -> InitialState:
        return self._sense(self._initial.draw(index, count), {})

    def _sense(self, states: dict[str, np.ndarray], episode: dict[str, Any]) -> InitialState:
        """Adds the observation of states that nothing has acted in yet, by MuJoCo in C."""
        count = len(states["qpos"])
        data = mujoco.MjData(self._sensing)
        sensordata = np.empty((count, self._sensing.nsensordata))
        for i in range(count):
            data.qpos, data.qvel, data.act = (states[k][i] for k in ("qpos", "qvel", "act"))
            data.qacc_warmstart = 0
            mujoco.mj_forward(self._sensing, data)
            sensordata[i] = data.sensordata
        states = {name: np.asarray(value, np.float32) for name, value in states.items()}
        sensors = self._sensors.by_name(sensordata.astype(np.float32))
        ctrl = np.zeros((count, self.action_size), np.float32)
        view = Physics(**states, ctrl=ctrl, sensors=sensors, episode=episode)
        obs = np.asarray(self._observe(view))
        return InitialState(**states, episode=episode, obs=obs)

    @functools.cached_property
    def _observe(self):
        return jax.jit(jax.vmap(self.task.observe))


def _sensing_model(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy without actuation, as dm_control evaluates a state after a reset."""
    result = copy.copy(model)
    result.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    return result


def _at_start(start: InitialState) -> PhysicsState:
    return PhysicsState(start.qpos, start.qvel, start.act, jnp.zeros_like(start.qvel))


def _draw_from_pool(pool: InitialState, keys: jax.Array) -> InitialState:
    """Draws one initial state a key from all of the pool's N * K. keys: (N,)."""
    size = pool.obs.shape[0] * pool.obs.shape[1]
    rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:])[rows], pool)


@functools.partial(jax.jit, donate_argnums=0)
def _write_pool(pool: InitialState, rows: np.ndarray, fresh: InitialState) -> InitialState:
    columns = pool.obs.shape[1]
    return jax.tree.map(
        lambda leaf, new: leaf.at[rows // columns, rows % columns].set(new), pool, fresh
    )


def _select(condition: jax.Array, if_true: Any, if_false: Any) -> Any:
    """`jnp.where` over pytrees, by environment. condition: (N,)."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, if_true, if_false)


def _all_valid(tree: Any) -> jax.Array:
    """(N,) bool: whether all of an environment's numbers are finite and within MuJoCo's bound."""

    def valid(leaf: jax.Array) -> jax.Array:
        return (jnp.abs(leaf) < MAX_MAGNITUDE).all(axis=tuple(range(1, leaf.ndim)))

    return jnp.stack([valid(leaf) for leaf in jax.tree.leaves(tree)]).all(axis=0)


@functools.cache
def task_ids() -> tuple[str, ...]:
    """Every `env_id` that `make` takes."""
    modules = {domain: importlib.import_module(f"tasks.{domain}") for domain in DOMAINS}
    return tuple(f"{domain}-{name}" for domain, module in modules.items() for name in module.TASKS)


def load_task(env_id: str) -> Task:
    """Returns the task of an id.

    Raises:
      UsageError: no such id; the message suggests the nearest.
    """
    if env_id not in task_ids():
        near = difflib.get_close_matches(env_id, task_ids(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `python envs.py` for the list"
        raise UsageError(f"--env-id: unknown task {env_id!r}; {hint}")
    domain, name = env_id.split("-", 1)
    return importlib.import_module(f"tasks.{domain}").load(name)


def choose_engine(engine: str) -> str:
    """Turns "auto" into the engine that suits the device JAX computes on.

    Raises:
      UsageError: no such engine.
    """
    if engine == "auto":
        return "native" if jax.default_backend() == "cpu" else "mjx"
    if engine not in ENGINES:
        raise UsageError(f"--engine: {engine!r} is not one of auto, {', '.join(ENGINES)}")
    if engine == "mjx" and not _importable("mujoco.mjx"):
        raise UsageError("--engine: mjx needs the package mujoco-mjx; `pip install mujoco-mjx`")
    return engine


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # marked in sys.modules as absent
        return False


def make(
    env_id: str, num_envs: int, engine: str = "auto", seed: int = 0, num_threads: int = 0
) -> VectorEnv:
    """Makes `num_envs` copies of a task.

    Args:
      env_id: one of `task_ids()`.
      num_envs: N.
      engine: "native" (MuJoCo in C, on the CPU), "mjx" or "auto".
      seed: of the initial states.
      num_threads: threads of `native`; 0 takes all cores.

    Raises:
      UsageError: an unknown task or engine, or a size that is not positive.
    """
    if not 1 <= num_envs <= MAX_ENVS:
        raise UsageError(f"--num-envs: needs at least 1, at most {MAX_ENVS}, got {num_envs}")
    if not 0 <= num_threads <= MAX_THREADS:
        bounds = f"0 (all cores) or more, at most {MAX_THREADS}"
        raise UsageError(f"--num-threads: needs {bounds}, got {num_threads}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed: needs 0 to {2**32 - 1}, got {seed}")
    task, engine = load_task(env_id), choose_engine(engine)
    if engine not in task.engines:
        known = " or ".join(task.engines)
        raise UsageError(f"--engine: {engine} lacks contacts of {env_id}; use --engine {known}")
    return VectorEnv(task, num_envs, engine, seed, num_threads)


def task_table() -> str:
    """The tasks as a Markdown table: sizes, engines, what differs from the original."""
    rows = [
        "| env_id | observations | actions | steps | engines | differences from dm_control |",
        "|---|---|---|---|---|---|",
    ]
    for env_id in task_ids():
        env = make(env_id, 1, "native", num_threads=1)
        sizes = f"{env.observation_size} | {env.action_size} | {env.episode_length}"
        difference = env.task.differences or "none"
        rows.append(f"| {env_id} | {sizes} | {', '.join(env.task.engines)} | {difference} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(task_table())
