"""N copies of one task on one engine, with auto-reset: what `envs.make` returns.

`obs` is what the policy sees next; `next_obs` is the true successor of the state that was acted
in. They differ where an episode ended. Resets draw from a pool of initial states, so inside the
jitted step a reset is a gather and costs no physics; `refresh` renews the pool between chunks.
"""

import tasks  # noqa: F401, I001  # before mujoco, which MUJOCO_GL may keep from loading
import concurrent.futures
import copy
import difflib
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from engines import PhysicsState, buffers
from engines.mjx import MjxEngine
from engines.native import NativeEngine
from engines.warp import WarpEngine
from tasks.base import Physics, Task
from tasks.resets import InitialStates, episode_rows, read_rows, write_rows

# Products in float32, not TF32 or bfloat16: on a GPU or TPU physics and observations would lose
# four of their seven digits. The networks' products have a flag of their own, --matmul-precision.
jax.config.update("jax_default_matmul_precision", "highest")

HEADROOM = 2.0  # of warp's buffers, over what random play needed
MIN_POOL = 64  # initial states held for resets; never fewer than there are environments
MAX_DISTINCT = 256  # of them drawn before the first step, at up to 15 ms each; the pool repeats
# these until `refresh` has replaced them, which evaluation's are not: so it plays 128 episodes of
# each kind that begin apart, preset `gpu`'s. A number and not a time: any machine draws the same.
REFRESH = 32  # initial states renewed at each `refresh`
MAX_MAGNITUDE = 1e10  # MuJoCo's own bound on a valid state


class UsageError(ValueError):
    """A request that cannot be served; its message is one line that says what to change."""


def host() -> jax.Device:
    """JAX's CPU, which is there beside whatever else it computes on.

    Raises:
      UsageError: JAX_PLATFORMS leaves it out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        found = os.environ.get("JAX_PLATFORMS", "")
        fix = f"use JAX_PLATFORMS={found},cpu, or unset it"
        raise UsageError(
            f"JAX_PLATFORMS={found}: initial states are drawn on the CPU; {fix}"
        ) from None


def nearest(name: str, names: Sequence[str]) -> str:
    """A question that suggests up to three of `names`; empty if none is like `name`."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else ""


@flax.struct.dataclass
class InitialState:
    """The start of an episode."""

    qpos: jax.Array  # (..., nq)
    qvel: jax.Array  # (..., nv)
    act: jax.Array  # (..., na)
    episode: dict[str, jax.Array]  # (..., k, dim) by field of the model
    obs: jax.Array  # (..., O)


@flax.struct.dataclass
class EnvState:
    """A batch of N environments after a step; every leaf has leading axis N."""

    physics: PhysicsState
    episode: dict[str, jax.Array]  # (N, k, dim)  what each episode changed in the model
    obs: jax.Array  # (N, O)  what the policy sees next
    next_obs: jax.Array  # (N, O)  the true successor, before any reset
    reward: jax.Array  # (N,)
    terminated: jax.Array  # (N,)  bool: the task ended, the value of next_obs is zero
    truncated: jax.Array  # (N,)  bool: the time limit ended, next_obs still has a value
    step_count: jax.Array  # (N,)  int32, control steps of the present episode
    nonfinite_count: jax.Array  # (N,)  int32, non-finite states contained so far
    overflow: jax.Array  # (N,)  int32, the engine's buffers that were too small so far; 0: none
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


class VectorEnv:
    """N copies of one task on one engine, with auto-reset. Made by `make`."""

    success: float | None = None  # the return of an episode that counts as success
    ends_early: bool  # whether an episode can end before its time limit
    mesh: None = None  # the devices it is spread over; see parallel.SpreadEnv

    def __init__(
        self,
        task: Task,
        num_envs: int,
        engine: str,
        seed: int,
        num_threads: int,
        headroom: float = HEADROOM,
    ):
        self.env_id = f"{task.domain}-{task.name}"
        self.num_envs, self.engine, self.task = num_envs, engine, task
        self.success, self.ends_early = task.success, task.terminated is not None
        self._initial = task.starts(seed) if task.starts else InitialStates(task, seed)
        self._rows = episode_rows(task.model, task.episode)
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
            self._engine = NativeEngine(task.model, substeps, num_threads, self._rows)
        elif engine == "mjx":
            contacts = (task.mjx_floor, task.mjx_obstacles)
            self._engine = MjxEngine(task.model, substeps, self._rows, *contacts)
        else:
            starts = self._initial.crowded(buffers.EPISODES)
            sizes = buffers.measure(task.model, substeps, starts).scaled(headroom)
            self._engine = WarpEngine(task.model, substeps, num_envs, sizes, self._rows)
        self._headroom = headroom
        self._make_pool()

    def _make_pool(self) -> None:
        """Draws the first pool, (N, K) initial states; their observations give the size."""
        num_envs = self.num_envs
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
        size = pool.obs.shape[0] * pool.obs.shape[1]
        rows = jax.random.permutation(draw_key, size)[: self.num_envs]  # none twice
        start = jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:])[rows], pool)
        return self._begin(start, pool, jax.random.split(env_key, self.num_envs))

    def reset_to(
        self, qpos: np.ndarray, qvel: np.ndarray, act: np.ndarray | None = None, episode=None
    ) -> EnvState:
        """Starts N episodes from chosen states, the solver's warm start at zero.

        Args:
          qpos: (N, nq).
          qvel: (N, nv).
          act: (N, na), zero if None.
          episode: field of the model -> (N, k, dim), see `Task.episode`, and `Task.memory` as
            (N, 1, 1); what is left out is the model's own, or as at a start.

        Raises:
          ValueError: not one state for each environment, or a parameter that the task lacks.
        """
        if len(qpos) != self.num_envs:
            raise ValueError(f"needs {self.num_envs} states, got {len(qpos)}")
        act = np.zeros((len(qpos), self.task.model.na)) if act is None else act
        unknown = set(episode or ()) - set(self._rows) - set(self.task.memory)
        if unknown:
            raise ValueError(f"{self.env_id} has no episode parameters {sorted(unknown)}")
        own = read_rows(self.task.model, self._rows)
        own = {k: np.stack([value] * self.num_envs) for k, value in own.items()}
        episode = own | (episode or {})
        start = self._sense({"qpos": qpos, "qvel": qvel, "act": act}, episode)
        pool = jax.tree.map(jnp.asarray, self._first_pool)
        start = jax.tree.map(jnp.asarray, start)
        return self._begin(start, pool, jax.random.split(jax.random.key(0), self.num_envs))

    def first_states(self) -> EnvState:
        """Starts N episodes from the first N initial states of the seed, on any engine the same.

        No two are one draw.
        """
        states, episode = self._initial.draw(0, self.num_envs)
        return self.reset_to(states["qpos"], states["qvel"], states["act"], episode)

    def drawn_model(self, state: EnvState) -> mujoco.MjModel | None:
        """The model of environment 0 as its episode has it; None if it cannot be drawn."""
        model = copy.copy(self.task.model)
        values = {field: np.asarray(state.episode[field][0]) for field in self._rows}
        write_rows(model, self._rows, values)
        return model

    def pose(self, state: EnvState) -> np.ndarray:
        """The pose of environment 0, (nq,), for its `drawn_model`."""
        return np.asarray(state.physics.qpos[0])

    def _advance(self, state: EnvState, action: jax.Array) -> tuple[Any, ...]:
        """One control step without reset.

        Returns physics, episode, obs, reward, terminated, whether the state is valid, overflow.
        """
        ctrl = self._ctrl_middle + self._ctrl_half_range * action
        physics, sensordata, overflow = self._engine.step(state.physics, ctrl, state.episode)
        view = Physics(
            physics.qpos,
            physics.qvel,
            physics.act,
            ctrl,
            self._sensors.by_name(sensordata),
            state.episode,
        )
        obs, reward = jax.vmap(self.task.observe)(view), jax.vmap(self.task.reward)(view)
        reward = reward.astype(jnp.float32)  # a weakly typed one would be compiled for again
        # MuJoCo takes a NaN action for 0. A valid state's reward is the task's: it stays as it is.
        finite = all_valid((action, physics, obs))
        finite &= overflow == 0  # contacts were lost: not a state of this task
        if self.task.terminated is None:
            terminated = ~finite
        else:
            terminated = jax.vmap(self.task.terminated)(view) | ~finite
        episode = state.episode
        if self.task.remember is not None:
            episode = episode | jax.vmap(self.task.remember)(view)
        return physics, episode, obs, reward, terminated, finite, overflow

    def step(self, state: EnvState, action: jax.Array) -> EnvState:
        """Advances every environment by one control step. action: (N, A), clipped to [-1, 1].

        An environment whose episode ended is returned already reset: `obs` then belongs to the
        new episode and `next_obs` to the old one.
        """
        action = jnp.clip(action, -1.0, 1.0)
        advanced = self._advance(state, action)
        physics, episode, obs, reward, terminated, finite, overflow = advanced
        step_count = state.step_count + 1
        truncated = (step_count >= self.episode_length) & ~terminated
        done = terminated | truncated

        keys = jax.vmap(jax.random.split)(state.key)  # (N, 2)
        start = _draw_from_pool(state.pool, keys[:, 0])
        next_obs = select(finite, obs, state.obs)  # the last valid one stands in
        return EnvState(
            physics=select(done, self._at_start(start), physics),
            episode=select(done, start.episode, episode),
            obs=select(done, start.obs, next_obs),
            next_obs=next_obs,
            # After an overflow there is none, and a return that includes it says so: see `check`.
            reward=jnp.where(overflow == 0, jnp.where(finite, reward, 0.0), jnp.nan),
            terminated=terminated,
            truncated=truncated,
            step_count=jnp.where(done, 0, step_count),
            nonfinite_count=state.nonfinite_count + ~finite,
            overflow=state.overflow | overflow,
            pool=state.pool,
            key=keys[:, 1],
        )

    def refresh(self, state: EnvState, index: int) -> EnvState:
        """Replaces REFRESH initial states of the pool by new ones; not jittable.

        Args:
          state: the environments; only their pool changes, and the old pool is donated.
          index: 1, 2, 3 ...: which new states. The same index always gives the same states. The
            next index is drawn in the background meanwhile.

        Raises:
          UsageError: as `check`.
        """
        self.check(jnp.where(state.overflow == 0, 0.0, jnp.nan))
        return state.replace(pool=_write_pool(state.pool, *self.fresh(index)))

    def fresh(self, index: int) -> tuple[np.ndarray, InitialState]:
        """The next initial states for the pool, and the rows that they go to; see `refresh`.

        Returns rows (count,) of the pool's N * K, and states (count, ...).
        """
        pool_size = math.prod(self._first_pool.obs.shape[:2])
        count = min(REFRESH, pool_size)
        if self._next_refresh is None or self._next_refresh[0] != index:
            self._next_refresh = (index, self._background.submit(self._draw, index, count))
        fresh = self._next_refresh[1].result()
        following = self._background.submit(self._draw, index + 1, count)
        self._next_refresh = (index + 1, following)
        return (np.arange(count) + (index - 1) * count) % pool_size, fresh

    @staticmethod
    def write_pool(pool: InitialState, rows: jax.Array, fresh: InitialState) -> InitialState:
        """A pool (N, K, ...) with other states (count, ...) at `rows` of its N * K.

        A row past the end is left out.
        """
        columns = pool.obs.shape[1]
        where = (rows // columns, rows % columns)
        return jax.tree.map(lambda leaf, new: leaf.at[where].set(new, mode="drop"), pool, fresh)

    def check(self, numbers: Any) -> Any:
        """Returns `numbers`, a pytree such as rewards or returns; not jittable.

        Raises:
          UsageError: one is NaN, because a buffer of `warp` overflowed; it names the flag.
        """
        if self.engine == "warp" and any(np.isnan(x).any() for x in jax.tree.leaves(numbers)):
            sizes = self._engine.sizes
            raise UsageError(
                f"--warp-headroom: {self._headroom:g} is too little: {self.env_id} needed more than"
                f" {sizes.contacts} contacts or {sizes.rows} constraint rows an environment; try"
                f" --warp-headroom {2 * self._headroom:g}"
            )
        return numbers

    def _begin(self, start: InitialState, pool: InitialState, keys: jax.Array) -> EnvState:
        zeros, no = jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, bool)
        count = jnp.zeros(self.num_envs, jnp.int32)
        return EnvState(
            physics=self._at_start(start),
            episode=start.episode,
            obs=start.obs,
            next_obs=jnp.array(start.obs),  # a buffer of its own: states are donated
            reward=zeros,
            terminated=no,
            truncated=jnp.array(no),
            step_count=count,
            nonfinite_count=jnp.array(count),
            overflow=jnp.array(count),
            pool=pool,
            key=keys,
        )

    def _at_start(self, start: InitialState) -> PhysicsState:
        return PhysicsState(start.qpos, start.qvel, start.act, jnp.zeros_like(start.qvel))

    def _draw(self, index: int, count: int) -> InitialState:
        return self._sense(*self._initial.draw(index, count))

    def _sense(self, states: dict[str, Any], episode: dict[str, Any]) -> InitialState:
        """Adds the observation of states that nothing has acted in yet, by MuJoCo in C."""
        count = len(states["qpos"])
        memory = {k: np.full((count, 1, 1), value) for k, value in self.task.memory.items()}
        episode = memory | episode
        model = copy.copy(self._sensing)  # changed here, and another thread may be drawing too
        data = mujoco.MjData(model)
        sensordata = np.empty((count, self._sensing.nsensordata))
        for i in range(count):
            data.qpos, data.qvel, data.act = (states[k][i] for k in ("qpos", "qvel", "act"))
            data.qacc_warmstart = 0
            write_rows(model, self._rows, {k: episode[k][i] for k in self._rows})
            mujoco.mj_forward(model, data)
            sensordata[i] = data.sensordata
        states, episode = jax.tree.map(lambda x: np.asarray(x, np.float32), (states, episode))
        sensors = self._sensors.by_name(sensordata.astype(np.float32))
        ctrl = np.zeros((count, self.action_size), np.float32)
        view = Physics(**states, ctrl=ctrl, sensors=sensors, episode=episode)
        with jax.default_device(host()):  # not behind a chunk that runs on an accelerator
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


def _draw_from_pool(pool: InitialState, keys: jax.Array) -> InitialState:
    """Draws one initial state a key from all of the pool's N * K. keys: (N,)."""
    size = pool.obs.shape[0] * pool.obs.shape[1]
    rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:])[rows], pool)


_write_pool = jax.jit(VectorEnv.write_pool, donate_argnums=0)


def select(condition: jax.Array, if_true: Any, if_false: Any) -> Any:
    """`jnp.where` over pytrees, by environment. condition: (N,)."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, if_true, if_false)


def all_valid(tree: Any) -> jax.Array:
    """(N,) bool: whether all of an environment's numbers are finite and within MuJoCo's bound."""

    def valid(leaf: jax.Array) -> jax.Array:
        return (jnp.abs(leaf) < MAX_MAGNITUDE).all(axis=tuple(range(1, leaf.ndim)))

    return jnp.stack([valid(leaf) for leaf in jax.tree.leaves(tree)]).all(axis=0)
