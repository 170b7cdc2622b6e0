"""The door to environments: `make`, the registry, and the table of tasks (`python envs.py`).

    env = envs.make("humanoid-run", num_envs=256)          # engine="auto"
    state = env.reset(jax.random.key(0))                    # EnvState, leading axis num_envs
    state = env.step(state, action)                         # pure and jittable
    state.obs, state.next_obs, state.reward, state.terminated, state.truncated

What `make` returns is a `VectorEnv`, see vector_env.py; adapters.py has other libraries'.
"""

import argparse
import functools
import importlib
import importlib.util
import signal
from collections.abc import Mapping
from types import MappingProxyType

import jax

import adapters
from tasks.base import ENGINES, Task
from tasks.original import Original
from vector_env import HEADROOM, UsageError, VectorEnv, nearest

DOMAINS = ("acrobot", "ball_in_cup", "cartpole", "cheetah", "dog", "finger", "fish", "hopper")
DOMAINS += ("humanoid", "humanoid_CMU", "lqr", "manipulator", "pendulum", "point_mass")
DOMAINS += ("quadruped", "reacher", "stacker", "swimmer", "walker", "h1")
MAX_ENVS, MAX_THREADS, MAX_HEADROOM = 2**20, 1024, 1000


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
        hint = nearest(env_id, task_ids()) or "see `python envs.py` for the list"
        raise UsageError(f"--env-id: unknown task {env_id!r}; {hint}")
    domain, name = env_id.split("-", 1)
    return importlib.import_module(f"tasks.{domain}").load(name)


def choose_engine(engine: str, cannot: Mapping[str, str] = MappingProxyType({})) -> str:
    """Turns "auto" into the engine that suits the device JAX computes on.

    Args:
      engine: one of ENGINES or "auto".
      cannot: the engines that cannot step the task, and why; see `Task.cannot`.

    Raises:
      UsageError: no such engine, not on this machine, or not for this task.
    """
    nvidia = jax.default_backend() == "gpu" and _on_cuda()
    packages = {"native": (), "mjx": ("mujoco.mjx",), "warp": ("mujoco.mjx", "warp")}
    if engine == "auto":
        if jax.default_backend() == "cpu":
            return "native"
        wanted = ("warp", "mjx") if nvidia else ("mjx",)
        usable = [e for e in wanted if e not in cannot and all(map(_importable, packages[e]))]
        return usable[0] if usable else "native"
    if engine not in ENGINES:
        raise _unknown(engine)
    if engine in cannot:
        known = " or ".join(e for e in ENGINES if e not in cannot)
        why = f"{engine} cannot step this task: {cannot[engine]}"
        raise UsageError(f"--engine: {why}; use --engine {known}")
    if engine != "native" and not _importable("mujoco.mjx"):
        fix = "`pip install mujoco-mjx`"
        raise UsageError(f"--engine: {engine} needs the package mujoco-mjx; {fix}")
    if engine == "warp" and not _importable("warp"):
        fix = "`pip install -r requirements-warp.txt`"
        raise UsageError(f"--engine: warp needs the package warp-lang; {fix}")
    if engine == "warp" and not nvidia and jax.default_backend() != "cpu":
        raise UsageError("--engine: warp needs an NVIDIA GPU or a CPU; `mjx` runs on any device")
    return engine


def _on_cuda() -> bool:
    """Whether JAX has NVIDIA's platform: a device's kind need not name the maker ("Tesla V100")."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # marked in sys.modules as absent
        return False


def make(
    env_id: str,
    num_envs: int,
    engine: str = "auto",
    seed: int = 0,
    num_threads: int = 0,
    headroom: float = HEADROOM,
) -> VectorEnv:
    """Makes `num_envs` copies of a task.

    Args:
      env_id: one of `task_ids()`, or "playground:..." or "brax:..." (see adapters.py).
      num_envs: N.
      engine: "native" (MuJoCo in C, on the CPU), "mjx", "warp" or "auto"; another library has its
        own.
      seed: of the initial states.
      num_threads: threads of `native`; 0 takes all cores.
      headroom: size of the buffers of `warp`, over what random play needed.

    Raises:
      UsageError: an unknown task or engine, or a size that is not positive.
    """
    _check_numbers(num_envs, seed, num_threads, headroom)
    if ":" in env_id:
        return adapters.make(env_id, num_envs, engine, seed)
    task = load_task(env_id)
    chosen = choose_engine(engine, task.cannot)
    return VectorEnv(task, num_envs, chosen, seed, num_threads, headroom)


def check(num_envs: int, engine: str, seed: int, num_threads: int, headroom: float) -> None:
    """Raises UsageError for what `make` would take for no task; it starts no device."""
    _check_numbers(num_envs, seed, num_threads, headroom)
    others = {name for library in adapters.LIBRARIES.values() for name in library.engines}
    if engine not in {"auto", *ENGINES, *others}:
        raise _unknown(engine)


def _check_numbers(num_envs: int, seed: int, num_threads: int, headroom: float) -> None:
    if not 1 <= num_envs <= MAX_ENVS:
        raise UsageError(f"--num-envs: needs at least 1, at most {MAX_ENVS}, got {num_envs}")
    if not 0 <= num_threads <= MAX_THREADS:
        bounds = f"0 (all cores) or more, at most {MAX_THREADS}"
        raise UsageError(f"--num-threads: needs {bounds}, got {num_threads}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed: needs 0 to {2**32 - 1}, got {seed}")
    if not 0 < headroom <= MAX_HEADROOM:
        raise UsageError(f"--warp-headroom: needs more than 0, at most {MAX_HEADROOM}")


def _unknown(engine: str) -> UsageError:
    known = f"{', '.join(ENGINES)} (with --evaluate also dm_control)"
    return UsageError(f"--engine: {engine!r} is not one of auto, {known}")


def make_original(env_id: str, seed: int) -> Original:
    """Makes dm_control's own environment of a task, one, stepped outside JAX.

    Raises:
      UsageError: the task is not dm_control's.
    """
    task = None if ":" in env_id else load_task(env_id)
    if task is None or task.starts is not None:
        text = f"{env_id} is not dm_control's, which has no such task; leave the flag out"
        raise UsageError(f"--engine: {text}")
    return Original(task, seed)


def task_table() -> str:
    """The tasks as a Markdown table: sizes, engines, what differs from the original."""
    rows = [
        "| env_id | observations | actions | steps | engines | differences from the original |",
        "|---|---|---|---|---|---|",
    ]
    for env_id in task_ids():
        env = make(env_id, 1, "native", num_threads=1)
        sizes = f"{env.observation_size} | {env.action_size} | {env.episode_length}"
        difference = env.task.differences or "none"
        rows.append(f"| {env_id} | {sizes} | {_engines(env.task)} | {difference} |")
    return "\n".join(rows)


def _engines(task: Task) -> str:
    """The engines that step a task, and why the others cannot."""
    by_reason: dict[str, list[str]] = {}
    for engine, why in task.cannot.items():
        by_reason.setdefault(why, []).append(engine)
    reasons = [f"not {' or '.join(names)}: {why}" for why, names in by_reason.items()]
    return "; ".join([", ".join(task.engines), *reasons])


if __name__ == "__main__":
    argparse.ArgumentParser(description="Prints the table of tasks.").parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    print(task_table())
