"""Our environments against dm_control's, control step by control step, from the same states.

    python benchmarks/parity.py                      # every task on native, STEPS steps
    python benchmarks/parity.py --engine mjx         # or warp

Both step from the same state and control (rounded to float32, what an `EnvState` holds), with the
solver's warm start at zero and random actions, at each of `steps` states that dm_control visits.
The rows are written into parity.csv beside this file; other engines' rows there are kept.
`tests/test_tasks.py` asserts on the same numbers.
"""

import argparse
import csv
import dataclasses
import math
import os
import pathlib
import sys
import time

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import mujoco
import numpy as np

import envs
import vector_env
from benchmarks import humanoid_bench
from engines.mjx import with_contacts
from tasks import resets
from tasks.resets import episode_rows, read_rows, write_rows

STEPS = {"native": 200, "mjx": 20, "warp": 20}  # states compared, spread over 200 control steps
CSV_PATH = pathlib.Path(__file__).with_name("parity.csv")
SECONDS = 0.5  # for which steps are timed
SEGMENT = 10  # control steps between two fresh starts of the environment compared with


def reward_in_reach(env_id: str, model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Changes a start so that a sparse reward pays: resets and random actions seldom reach it."""
    if env_id == "finger-spin":
        data.joint("hinge").qvel = -20
    elif env_id == "ball_in_cup-catch":
        data.joint("ball_z").qpos = 0.35
    elif env_id == "point_mass-hard":
        data.joint("root_x").qpos, data.joint("root_y").qpos = 0, 0
    elif env_id == "finger-turn_hard":
        model.site("target").pos = data.site("tip").xpos
    elif env_id == "reacher-hard":
        model.geom("target").pos = data.geom("finger").xpos
    elif env_id == "stacker-stack_4":
        model.body("target").pos = data.body("box0").xpos


def load_original(env_id: str, seed: int):
    """The environment that ours is compared with: dm_control's, or HumanoidBench's in numpy."""
    if env_id.startswith("h1-"):
        return humanoid_bench.load(env_id, {"random": seed})
    return resets.load_original(envs.load_task(env_id), seed)


@dataclasses.dataclass(frozen=True)
class Parity:
    """The largest differences that were seen; relative ones are to max(1, |dm_control's|)."""

    env_id: str
    engine: str
    steps: int
    max_abs_obs: float
    max_rel_obs: float
    max_abs_reward: float
    highest_reward: float  # dm_control's, over the steps: a comparison of zeros says nothing
    max_abs_initial_obs: float
    max_rel_initial_obs: float
    ends_that_differ: int  # states after which one terminated and the other did not
    steps_per_second: float  # control steps, `steps` environments at once, after compilation


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    """dm_control's entries in dm_control's order. (O,)"""
    return np.concatenate([np.ravel(entry) for entry in observation.values()])


def record_initial(env_id: str, episodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """States, episode and observations of dm_control's environment right after its reset."""
    original = load_original(env_id, seed)
    model, rows = original.physics.model.ptr, []
    changed = episode_rows(model, envs.load_task(env_id).episode)
    for _ in range(episodes):
        obs = flatten(original.reset().observation)
        data = original.physics.data
        rows.append({"qpos": data.qpos, "qvel": data.qvel, "act": data.act, "obs": obs})
        rows[-1] = {name: np.array(value) for name, value in rows[-1].items()}
        rows[-1]["episode"] = read_rows(model, changed)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def start(original, env_id: str, segment: int, changed: dict[str, np.ndarray]) -> None:
    """Starts segment 0, 1, 2 ...: from a reset, or from the model's own pose, which is upright.

    In the first half of 20 a task without episode parameters runs on without a new start, so that
    bodies come to lie on the floor. What an episode changed in the model is rounded to float32.
    """
    model, data = original.physics.model.ptr, original.physics.data
    scattered = hasattr(original.task, "scatter")
    if changed or segment == 0 or (scattered and segment >= 10):
        original.reset()
    elif segment >= 10:
        mujoco.mj_resetData(model, data.ptr)
    if segment >= 10:
        if scattered:
            original.task.scatter(original.physics)
        reward_in_reach(env_id, model, data.ptr)
    values = read_rows(model, changed)
    write_rows(model, changed, {k: value.astype(np.float32) for k, value in values.items()})


def record_steps(env_id: str, steps: int, engine: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random control steps of dm_control's environment, each re-synchronised to float32.

    Where a task has fewer contacts on `mjx`, dm_control's model is given as few for that engine,
    and no noslip iterations.

    Returns:
      qpos, qvel, act and episode before the step, action in [-1, 1], obs, reward and terminated
      after it; (steps, ...).
    """
    original = load_original(env_id, seed)
    random, spec = np.random.default_rng(seed), original.action_spec()
    model, data, rows = original.physics.model.ptr, original.physics.data, []
    task = envs.load_task(env_id)
    changed = episode_rows(model, task.episode)
    if engine == "mjx":
        reduced = with_contacts(model, task.mjx_floor, task.mjx_obstacles)
        model.geom_contype[:] = reduced.geom_contype
        model.geom_conaffinity[:] = reduced.geom_conaffinity
        model.opt.noslip_iterations = 0  # MJX has none; what that changes is in NOTES.md
    low, high = task.model.actuator_ctrlrange.T  # the original's own, where it has a range
    middle = ((high + low) / 2).astype(np.float32)
    half_range = ((high - low) / 2).astype(np.float32)
    for i in range(steps):
        if i % SEGMENT == 0:
            start(original, env_id, i // SEGMENT, changed)
        row = {"episode": read_rows(model, changed) | getattr(original.task, "memory", {})}
        for field in ("qpos", "qvel", "act"):
            row[field] = np.array(getattr(data, field), np.float32)
            getattr(data, field)[:] = row[field]
        mujoco.mj_step1(model, data.ptr)  # dm_control's step begins at the second half
        data.qacc_warmstart[:] = 0
        row["action"] = random.uniform(-1, 1, spec.shape).astype(np.float32)
        # In float32 too, with one rounding, as a fused multiply-add has: where the quadruped's
        # feet touch, the last bit of its control is 1e-4 of an acceleration.
        ctrl = middle.astype(np.float64) + half_range.astype(np.float64) * row["action"]
        outcome = original.step(ctrl.astype(np.float32).astype(np.float64))
        row["obs"], row["reward"] = flatten(outcome.observation), np.array(outcome.reward)
        row["terminated"] = np.array(ended(original))
        rows.append(row)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def ended(original) -> bool:
    """Whether the original's task, not its time limit, ends the episode in its present state."""
    if hasattr(original.task, "terminated"):  # HumanoidBench's in numpy
        return bool(original.task.terminated(original.physics))
    return original.task.get_termination(original.physics) is not None


def _largest(ours: jax.Array, theirs: np.ndarray) -> tuple[float, float]:
    """The largest absolute difference, and the largest relative to max(1, |theirs|)."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = np.abs(np.asarray(ours, np.float64) - theirs)
    return float(difference.max()), float((difference / np.maximum(1, np.abs(theirs))).max())


def measure(
    env_id: str, engine: str, steps: int, episodes: int = 8, timed: bool = True
) -> tuple[Parity, np.ndarray]:
    """Compares `steps` states spread over 200 control steps, and `episodes` resets.

    timed: whether steps are timed too; else that number is nan.

    Returns the largest differences, and each state's largest relative one in observation, (steps,).
    """
    recorded = record_steps(env_id, max(steps, 200), engine)
    chosen = np.linspace(0, len(recorded["obs"]) - 1, steps).astype(int)
    recorded = jax.tree.map(lambda value: value[chosen], recorded)
    initial = record_initial(env_id, episodes)
    env = envs.make(env_id, steps, engine)

    state = env.reset_to(*(recorded[name] for name in ("qpos", "qvel", "act", "episode")))
    step = jax.jit(env.step)
    state = step(state, recorded["action"])
    abs_obs, rel_obs = _largest(state.next_obs, recorded["obs"])
    abs_reward, _ = _largest(state.reward, recorded["reward"])
    ends = int((np.asarray(state.terminated) != recorded["terminated"]).sum())
    next_obs = np.asarray(state.next_obs)
    by_state = [_largest(ours, its)[1] for ours, its in zip(next_obs, recorded["obs"], strict=True)]

    rate = steps_per_second(step, state, recorded["action"]) if timed else math.nan
    tiled = jax.tree.map(lambda value: np.resize(value, (steps, *value.shape[1:])), initial)
    state = env.reset_to(*(tiled[name] for name in ("qpos", "qvel", "act", "episode")))
    abs_initial, rel_initial = _largest(state.obs, tiled["obs"])
    highest, initials = float(recorded["reward"].max()), (abs_initial, rel_initial)
    largest = (abs_obs, rel_obs, abs_reward, highest, *initials, ends)
    return Parity(env_id, engine, steps, *largest, rate), np.array(by_state)


def steps_per_second(step, state: vector_env.EnvState, action: np.ndarray) -> float:
    """Control steps per second over at least SECONDS, all environments together."""
    state = jax.block_until_ready(step(state, action))  # a second state may compile once more
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        state = jax.block_until_ready(step(state, action))
        count += len(action)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="parity with dm_control")
    parser.add_argument("--engine", choices=envs.ENGINES, default="native")
    parser.add_argument("--env-ids", nargs="*", default=envs.task_ids())
    args = parser.parse_args()
    for env_id in args.env_ids:
        result = dataclasses.asdict(measure(env_id, args.engine, STEPS[args.engine])[0])
        row = {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in result.items()}
        print(*row.values(), sep="  ", flush=True)
        write(CSV_PATH, row, ("engine", "env_id"))


def write(path: pathlib.Path, row: dict, key: tuple[str, ...]) -> None:
    """Puts one row into a CSV file, in the place of an older one with the same values of `key`."""
    rows = []
    if path.exists():
        with path.open() as file:
            rows = list(csv.DictReader(file))
    row = {name: str(value) for name, value in row.items()}
    by_key = {tuple(old[name] for name in key): old for old in [*rows, row]}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row, restval="")
        writer.writeheader()
        order = sorted(by_key, key=lambda key: [int(v) if v.isdigit() else v for v in key])
        writer.writerows(by_key[key] for key in order)


if __name__ == "__main__":
    main()
