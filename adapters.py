"""Other people's environments as a `vector_env.VectorEnv`: MuJoCo Playground and Brax.

    env = envs.make("playground:CheetahRun", num_envs=256)
    env = envs.make("brax:ant", num_envs=256, engine="spring")

Only their raw environments are used, one `reset` and one `step` under `vmap`. The time limit, the
reset, the containment of bad states and the counting are those of VectorEnv, as for our own tasks,
so `next_obs` is the true successor and `terminated` is never a time limit. Their wrappers do
otherwise: they hand back the first observation of the next episode, and merge both kinds of end.

The packages are optional and are imported only when an environment of theirs is made.
"""

import contextlib
import dataclasses
import functools
import importlib
import subprocess
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import vector_env

BRAX_EPISODE_LENGTH = 1000  # control steps; what its own training wrapper takes by default


@flax.struct.dataclass
class Start:
    """The start of an episode; see vector_env.InitialState."""

    physics: Any  # their State after `reset`, every leaf (..., *)
    episode: dict[str, jax.Array]  # empty: an episode's parameters are part of their State
    obs: jax.Array  # (..., O)


@dataclasses.dataclass(frozen=True)
class Library:
    """What differs between the libraries."""

    module: str  # to import
    install: str  # what pip installs
    engines: tuple[str, ...]  # values of --engine; "auto" is the first
    names: Callable[[ModuleType], Sequence[str]]
    endless: Callable[[ModuleType], Sequence[str]]  # of these no episode ends before its time limit
    load: Callable[[ModuleType, str, str], tuple[Any, int]]  # environment, control steps


def _load_playground(module: ModuleType, name: str, engine: str) -> tuple[Any, int]:
    config = module.registry.get_default_config(name)
    # Their default since 0.2 is impl "warp", whose state has arrays that all environments share:
    # it cannot be reset, or kept in a pool, one environment at a time.
    overrides = {"impl": "jax"} if "impl" in config else {}
    try:
        env = module.registry.load(name, config=config, config_overrides=overrides)
    except subprocess.CalledProcessError as error:
        raise vector_env.UsageError(
            f"--env-id: playground:{name} needs the robot models of mujoco_menagerie, which"
            f" Playground clones with git the first time; that failed ({error}), try it online"
        ) from error
    return env, int(config.episode_length)


def _load_brax(module: ModuleType, name: str, engine: str) -> tuple[Any, int]:
    return module.get_environment(name, backend=engine), BRAX_EPISODE_LENGTH


LIBRARIES = {
    "playground": Library(
        "mujoco_playground",
        "playground==0.2.0",
        ("mjx",),
        lambda module: module.registry.ALL_ENVS,
        lambda module: module.dm_control_suite.ALL_ENVS,  # of others some end early, some do not
        _load_playground,
    ),
    "brax": Library(
        "brax.envs",
        "brax==0.14.2",
        ("generalized", "spring", "positional", "mjx"),
        # It has no public list; and `fast` is a stub for its own tests, without a time step.
        lambda module: tuple(name for name in module._envs if name != "fast"),
        lambda module: ("halfcheetah", "humanoidstandup", "pusher", "reacher", "swimmer"),
        _load_brax,
    ),
}


class AdaptedEnv(vector_env.VectorEnv):
    """N copies of one raw environment of another library. Made by `make`.

    raw: has `reset(key) -> State`, `step(State, action (A,)) -> State`, `action_size` and `dt` (s);
      a State has obs (O,) or a mapping with an entry `state`, reward (), done () and info.
    episode_length: control steps until an episode is truncated.
    ends_early: whether it can end before.
    """

    def __init__(
        self,
        env_id: str,
        raw: Any,
        num_envs: int,
        engine: str,
        episode_length: int,
        ends_early: bool,
        seed: int,
    ):
        self.env_id, self.num_envs, self.engine, self.task = env_id, num_envs, engine, None
        self.ends_early = ends_early
        self.control_timestep = float(raw.dt)
        self.episode_length = episode_length
        self.action_size = int(raw.action_size)
        self._raw, self._key = raw, jax.random.key(seed)
        self._check_observation()
        self._make_pool()

    def reset_to(self, *states, **named_states):
        """Not for these: their State is more than positions and velocities."""
        raise NotImplementedError(f"{self.env_id}: reset_to is for this project's own tasks")

    def first_states(self) -> vector_env.EnvState:
        """Starts N episodes from initial states that depend on the seed only."""
        return self.reset(jax.random.fold_in(self._key, 2**30))  # a number that no refresh has

    def drawn_model(self, state: vector_env.EnvState) -> None:
        """None: their State is more than MuJoCo's."""

    def _advance(self, state: vector_env.EnvState, action: jax.Array) -> tuple[Any, ...]:
        before = _own_randomness(state)
        after = jax.vmap(self._raw.step)(before, action)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)
        obs, reward = _observation(after), after.reward
        finite = vector_env.all_valid((action, obs, _coordinates(after)))
        overflow = jnp.zeros(len(reward), jnp.int32)  # no buffers of ours here
        terminated = after.done.astype(bool) | ~finite
        return after, state.episode, obs, reward, terminated, finite, overflow

    def _at_start(self, start: Start) -> Any:
        return start.physics

    def _draw(self, index: int, count: int) -> Start:
        """`count` initial states, numpy; the same for the same seed, index and count."""
        blocks = -(-count // vector_env.REFRESH)  # of one size, so that one program draws them all
        keys = jax.random.split(jax.random.fold_in(self._key, index), (blocks, vector_env.REFRESH))
        drawn = [jax.device_get(self._reset(block)) for block in jax.random.key_data(keys)]
        states = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *drawn)
        return Start(states, {}, np.array(_observation(states), np.float32))

    @functools.cached_property
    def _reset(self):
        return jax.jit(jax.vmap(self._raw.reset))

    def _check_observation(self) -> None:
        obs = jax.eval_shape(self._raw.reset, jax.random.key_data(self._key)).obs
        if isinstance(obs, jax.ShapeDtypeStruct):
            obs = {"state": obs}
        shape = obs["state"].shape if "state" in obs else None
        if shape is None or len(shape) != 1:
            found = ", ".join(f"{name} {entry.shape}" for name, entry in obs.items())
            raise vector_env.UsageError(
                f"--env-id: {self.env_id} has no vector observation, it has {found}"
            )


def _observation(state: Any) -> jax.Array:
    """(N, O): the entry `state` where there are several; others are a critic's, or pixels."""
    return state.obs if isinstance(state.obs, jax.Array | np.ndarray) else state.obs["state"]


def _coordinates(state: Any) -> list[jax.Array]:
    """Positions and velocities, (N, *) each: other entries may be infinite by intention."""
    physics = getattr(state, "data", None)  # Playground's name for it, else Brax's
    physics = getattr(state, "pipeline_state", None) if physics is None else physics
    found = (getattr(physics, name, None) for name in ("qpos", "qvel", "q", "qd"))
    return [array for array in found if array is not None]


def _own_randomness(state: vector_env.EnvState) -> Any:
    """Their State, where an episode begins with a `rng` of its own.

    Their steps draw commands and noise from `info["rng"]`, which two episodes from one state of
    the pool would share.
    """
    rng = state.physics.info.get("rng")
    if rng is None:
        return state.physics
    own = vector_env.select(state.step_count == 0, rng ^ jax.random.key_data(state.key), rng)
    return state.physics.replace(info={**state.physics.info, "rng": own})


def _import(env_id: str, library: Library) -> ModuleType:
    pip = f"`pip install {library.install}`"
    try:
        with contextlib.redirect_stdout(None):  # mjx tells where an optional package is missing
            return importlib.import_module(library.module)
    except ImportError as error:
        if error.name and error.name in (library.module, library.module.split(".")[0]):
            message = f"needs the package {library.install.split('=')[0]}; {pip}"
        else:
            message = f"cannot be imported: {error}; the tested version is {pip}"
        raise vector_env.UsageError(f"--env-id: {env_id} {message}") from error


def make(env_id: str, num_envs: int, engine: str, seed: int) -> AdaptedEnv:
    """Makes `num_envs` copies of another library's environment; see `envs.make`.

    Args:
      env_id: "playground:NAME" or "brax:NAME", NAME as in that library's registry.
      num_envs: N.
      engine: "auto"; "mjx" for Playground; for Brax its backend: "generalized" (auto), "spring",
        "positional" or "mjx".
      seed: of the initial states.

    Raises:
      UsageError: an unknown library, name or engine, or a package that is not installed.
    """
    prefix, name = env_id.split(":", 1)
    if prefix not in LIBRARIES:
        known = " and ".join(f"{known}:NAME" for known in LIBRARIES)
        raise vector_env.UsageError(f"--env-id: unknown library in {env_id!r}; there are {known}")
    library = LIBRARIES[prefix]
    if engine not in ("auto", *library.engines):
        choices = ", ".join(("auto", *library.engines))
        raise vector_env.UsageError(f"--engine: {engine!r} is not one of {choices}, for {prefix}")
    engine = library.engines[0] if engine == "auto" else engine
    module = _import(env_id, library)
    names = library.names(module)
    if name not in names:
        hint = vector_env.nearest(name, names) or f"there are {', '.join(sorted(names))}"
        raise vector_env.UsageError(f"--env-id: {prefix} has no environment {name!r}; {hint}")
    raw, episode_length = library.load(module, name, engine)
    label, ends_early = f"{prefix} ({engine})", name not in library.endless(module)
    return AdaptedEnv(env_id, raw, num_envs, label, episode_length, ends_early, seed)
