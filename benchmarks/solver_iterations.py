"""How many iterations the constraint solvers of `mjx` and `warp` need, against `native`.

    python benchmarks/solver_iterations.py                           # four tasks, mjx, 20 minutes
    python benchmarks/solver_iterations.py --engine warp --env-ids humanoid-run

`native`, with dm_control's own settings, plays random actions, each held for 5 control steps. From
each state that it visits, warm start included, the engine takes one step (`warm`); from every
fifth also without the warm start (`cold`); and from the first state it plays the same actions
without correction (`open_loop`). The engine `native` here is `native` itself, moved by 1e-6 of
qpos at the start: what open-loop play does to a difference that nobody can avoid.
Rows are written into solver_iterations.csv beside this file, in the place of older ones.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable
from unittest import mock

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

import envs
import vector_env
from benchmarks import inputs
from benchmarks.parity import write
from engines.mjx import with_contacts

TASKS = ("cheetah-run", "humanoid-run", "quadruped-run", "dog-run")
SETTINGS = ((1, 4), (2, 6), (4, 8), (8, 16), (100, 16), (100, 50))  # the last are dm_control's own
NUM_ENVS, STEPS, HOLD, COLD = 16, 50, 5, 5
SECONDS = 0.5  # for which steps are timed
CSV_PATH = pathlib.Path(__file__).with_name("solver_iterations.csv")


@dataclasses.dataclass(frozen=True)
class Row:
    """Differences from `native`; of observations relative to max(1, |native's|)."""

    env_id: str
    engine: str
    iterations: int
    ls_iterations: int
    warm_median: float  # over NUM_ENVS * STEPS states, of the largest entry's difference
    warm_99: float  # 99th percentile
    warm_max: float
    warm_reward: float  # largest absolute difference
    cold_99: float
    open_loop: float  # median over environments, after STEPS control steps
    open_loop_return: float  # mean over environments of the sum of rewards
    native_return: float
    steps_per_second: float  # NUM_ENVS at once, from the last state of open-loop play


class Limit:
    """A bound on solver iterations that is an argument of a compiled program.

    MJX takes it for a constant: it asks whether it is 1, a case of its own that we need not have.
    """

    def __init__(self, value: jax.Array):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return False

    def __le__(self, count: jax.Array) -> jax.Array:
        return self.value <= count


def make(env_id: str, engine: str, reduced: bool) -> envs.VectorEnv:
    """An environment; reduced: with the contacts that the task has on `mjx`, and no noslip."""
    task = envs.load_task(env_id)
    if reduced:
        task = dataclasses.replace(task, model=with_contacts(task.model, task.mjx_floor))
        task.model.opt.noslip_iterations = 0
    return envs.VectorEnv(task, NUM_ENVS, engine, seed=0, num_threads=0)


def stepper(env: envs.VectorEnv) -> Callable:
    """(iterations, ls_iterations) -> jitted step of `env` with these; on `mjx` one program."""
    if env.engine == "native":
        return lambda settings: jax.jit(env.step)
    own = env._engine._model

    def step(state, action, iterations, ls_iterations):
        bound = Limit(iterations) if env.engine == "mjx" else iterations
        options = {"opt.iterations": bound, "opt.ls_iterations": ls_iterations}
        with mock.patch.object(env._engine, "_model", own.tree_replace(options)):
            return env.step(state, action)

    if env.engine == "mjx":
        step = jax.jit(step)
        return lambda settings: lambda state, action: step(state, action, *settings)
    return lambda settings: jax.jit(lambda state, action: step(state, action, *settings))


def play(step, state: vector_env.EnvState, actions: np.ndarray) -> list[vector_env.EnvState]:
    """The states after each of the actions (STEPS, N, A), the first one included."""
    states = [state]
    for action in actions:
        states.append(step(states[-1], action))
    return states


def difference(ours: vector_env.EnvState, its: vector_env.EnvState) -> np.ndarray:
    """Largest relative difference of each environment's observation. (N,)"""
    mine, theirs = (np.asarray(state.next_obs, np.float64) for state in (ours, its))
    return (np.abs(mine - theirs) / np.maximum(1, np.abs(theirs))).max(axis=1)


def steps_per_second(step, state: vector_env.EnvState, action: np.ndarray) -> float:
    """Control steps per second over at least SECONDS, all environments together."""
    state = jax.block_until_ready(step(state, action))  # a second state may compile once more
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        state = jax.block_until_ready(step(state, action))
        count += len(action)
    return count / (time.perf_counter() - start)


def measure(env_id: str, engine: str, settings, step, states, actions, start) -> Row:
    """Compares an engine's jitted `step` with the states (STEPS + 1) that `native` visited.

    start: of open-loop play, states[0] or near it.
    """
    after = [step(state, action) for state, action in zip(states[:-1], actions, strict=True)]
    pairs = list(zip(after, states[1:], strict=True))
    warm = np.stack([difference(*pair) for pair in pairs])
    reward = max(float(np.abs(ours.reward - its.reward).max()) for ours, its in pairs)
    cold = []
    for i in range(0, len(actions), COLD):
        physics = states[i].physics
        without = physics.replace(warmstart=np.zeros_like(physics.warmstart))
        without = step(states[i].replace(physics=without), actions[i])
        cold.append(difference(without, states[i + 1]))
    looped = play(step, start, actions)
    returns = [sum(np.asarray(s.reward) for s in run[1:]).mean() for run in (looped, states)]
    percentiles = (np.median(warm), np.percentile(warm, 99), warm.max(), reward)
    last = float(np.median(difference(looped[-1], states[-1])))
    rate = steps_per_second(step, looped[-1], actions[-1])
    cold = np.percentile(cold, 99)
    return Row(env_id, engine, *settings, *percentiles, cold, last, *returns, rate)


def measure_task(env_id: str, engine: str) -> None:
    """All settings of one task; prints and writes a row each."""
    native = make(env_id, "native", reduced=engine == "mjx")
    random = np.random.default_rng(0)
    shape = (STEPS // HOLD, NUM_ENVS, native.action_size)
    actions = random.uniform(-1, 1, shape).astype(np.float32).repeat(HOLD, axis=0)
    start = native.reset(jax.random.key(0))
    states = play(jax.jit(native.step), start, actions)
    env = make(env_id, engine, reduced=engine == "mjx")
    if engine == "native":
        qpos = np.asarray(start.physics.qpos)
        qpos = (qpos * (1 + 1e-6 * random.choice([-1.0, 1.0], qpos.shape))).astype(np.float32)
        start = start.replace(physics=start.physics.replace(qpos=qpos))
    with_settings = stepper(env)
    for settings in SETTINGS if engine != "native" else SETTINGS[-1:]:
        step = with_settings(settings)
        row = measure(env_id, engine, settings, step, states, actions, start)
        cells = {k: v if isinstance(v, (str, int)) else f"{v:.2e}" for k, v in vars(row).items()}
        print(*cells.values(), sep="  ", flush=True)
        write(CSV_PATH, cells, ("env_id", "engine", "iterations", "ls_iterations"))


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="solver iterations against native")
    parser.add_argument("--engine", choices=envs.ENGINES, default="mjx")
    parser.add_argument("--env-ids", nargs="+", type=inputs.task, default=TASKS)
    args = parser.parse_args()
    inputs.check_engines(parser, "--engine", [args.engine], args.env_ids)
    for env_id in args.env_ids:
        measure_task(env_id, args.engine)


if __name__ == "__main__":
    main()
