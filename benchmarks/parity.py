"""Our environments against dm_control's, control step by control step, from the same states.

    python benchmarks/parity.py                      # every task on native, STEPS steps
    python benchmarks/parity.py --engine mjx         # or warp
    python benchmarks/parity.py --engine mjx --states 1000 --play smooth --env-ids dog-run

Both step from the same state and control (rounded to float32, what an `EnvState` holds), with the
solver's warm start at zero and random actions, at each of `steps` states that dm_control visits.
The rows are written into parity.csv beside this file; other engines' rows there are kept.
`tests/test_tasks.py` asserts on the same numbers. With `--states` it is counted how often states
differ, under one of three ways to play (`PLAYS`); those rows are in parity_states.csv.
"""

import argparse
import copy
import csv
import dataclasses
import math
import os
import pathlib
import sys

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import mujoco
import numpy as np

import envs
from benchmarks import humanoid_bench, inputs
from engines.mjx import with_contacts
from tasks import resets
from tasks.resets import episode_rows, read_rows, write_rows

STEPS = {"native": 200, "mjx": 20, "warp": 20}  # states compared, spread over 200 control steps
CSV_PATH = pathlib.Path(__file__).with_name("parity.csv")
STATES_PATH = pathlib.Path(__file__).with_name("parity_states.csv")
# Ways to play -> control steps between two fresh starts of the environment compared with. Actions
# are drawn anew at each step, or wander (`smooth`); `in_touch`: with the first step from resets in
# which the manipulator's ball lies in the cup, which float32 may see as touching or not.
PLAYS = {"uniform": 10, "smooth": 50, "in_touch": 1}
WANDER = 0.2  # of the way to a new random target that a smooth action goes in a step
LIFT = 1e-3  # m, by which a ball in the cup is raised where a comparison is to have no tie
FAR = 1e-3  # of max(1, |observation|): a state in which it differs by more is counted
MOVED = 1e-6  # of themselves, by which qpos and qvel are moved to see what that does in C


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


def start(original, env_id: str, play: str, segment: int, changed: dict) -> None:
    """Starts segment 0, 1, 2 ...: from a reset, or from the model's own pose, which is upright.

    In the first half of 20 of uniform play a task without episode parameters runs on without a new
    start, so that bodies come to lie on the floor. What an episode changed in the model is rounded
    to float32.
    """
    model, data = original.physics.model.ptr, original.physics.data
    scattered = hasattr(original.task, "scatter")
    placed = {"uniform": segment >= 10, "smooth": segment % 2 == 1, "in_touch": False}[play]
    if changed or segment == 0 or (scattered and placed) or (play == "smooth" and not placed):
        original.reset()
    elif placed:
        mujoco.mj_resetData(model, data.ptr)
    if placed:
        if scattered:
            original.task.scatter(original.physics)
        reward_in_reach(env_id, model, data.ptr)
    if env_id == "manipulator-insert_ball":
        while play == "in_touch" and not lies_in_cup(model, data):
            original.reset()
        if play != "in_touch" and lies_in_cup(model, data):
            lift = LIFT * data.body("cup").xmat.reshape(3, 3)[:, 2]
            data.joint("ball_x").qpos += lift[0]
            data.joint("ball_z").qpos += lift[2]
    values = read_rows(model, changed)
    write_rows(model, changed, {k: value.astype(np.float32) for k, value in values.items()})


def lies_in_cup(model: mujoco.MjModel, data) -> bool:
    """Whether the ball is where its target is: then it touches the cup, at 1e-17 m or -1e-17."""
    place = np.ravel([data.joint("ball_x").qpos, data.joint("ball_z").qpos])
    return np.allclose(place, model.body("target_ball").pos[[0, 2]], rtol=0, atol=1e-6)


def reduce(model: mujoco.MjModel, task, engine: str) -> mujoco.MjModel:
    """Gives a model as few contacts as ours has on `mjx`, for that engine, and no noslip."""
    if engine == "mjx":
        reduced = with_contacts(model, task.mjx_floor, task.mjx_obstacles)
        model.geom_contype[:] = reduced.geom_contype
        model.geom_conaffinity[:] = reduced.geom_conaffinity
        model.opt.noslip_iterations = 0  # MJX has none; what that changes is in NOTES.md
    return model


def record_steps(
    env_id: str, steps: int, engine: str, seed: int = 0, play: str = "uniform"
) -> dict[str, np.ndarray]:
    """Random control steps of dm_control's environment, each re-synchronised to float32.

    Returns:
      qpos, qvel, act and episode before the step, action in [-1, 1], obs, reward and terminated
      after it; (steps, ...).
    """
    original, task = load_original(env_id, seed), envs.load_task(env_id)
    random, spec = np.random.default_rng(seed), original.action_spec()
    model, data, rows = original.physics.model.ptr, original.physics.data, []
    changed = episode_rows(reduce(model, task, engine), task.episode)
    low, high = task.model.actuator_ctrlrange.T  # the original's own, where it has a range
    middle = ((high + low) / 2).astype(np.float32)
    half_range = ((high - low) / 2).astype(np.float32)
    action = np.zeros(spec.shape)
    for i in range(steps):
        if i % PLAYS[play] == 0:
            start(original, env_id, play, i // PLAYS[play], changed)
        row = {"episode": read_rows(model, changed) | getattr(original.task, "memory", {})}
        for field in ("qpos", "qvel", "act"):
            row[field] = np.array(getattr(data, field), np.float32)
            getattr(data, field)[:] = row[field]
        mujoco.mj_step1(model, data.ptr)  # dm_control's step begins at the second half
        data.qacc_warmstart[:] = 0
        fresh, share = random.uniform(-1, 1, spec.shape), WANDER if play == "smooth" else 1
        action = (1 - share) * action + share * fresh
        row["action"] = action.astype(np.float32)
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


def measure(env_id: str, engine: str, steps: int, episodes: int = 8) -> tuple[Parity, np.ndarray]:
    """Compares `steps` states spread over 200 control steps, and `episodes` resets.

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

    tiled = jax.tree.map(lambda value: np.resize(value, (steps, *value.shape[1:])), initial)
    state = env.reset_to(*(tiled[name] for name in ("qpos", "qvel", "act", "episode")))
    abs_initial, rel_initial = _largest(state.obs, tiled["obs"])
    highest, initials = float(recorded["reward"].max()), (abs_initial, rel_initial)
    largest = (abs_obs, rel_obs, abs_reward, highest, *initials, ends)
    return Parity(env_id, engine, steps, *largest), np.array(by_state)


@dataclasses.dataclass(frozen=True)
class Shares:
    """How the differences of `states` states are spread: the largest entry of each observation's.

    Of observations relative to max(1, |dm_control's|). moved: of MuJoCo in C against itself, with
    qpos and qvel moved by MOVED.
    """

    env_id: str
    engine: str
    play: str
    states: int
    obs_median: float
    obs_99: float  # 99th percentile
    max_rel_obs: float
    obs_far: int  # states above FAR, or not finite
    max_abs_reward: float
    ends_that_differ: int
    moved_99: float
    moved_max: float
    moved_far: int


def differences(env, recorded: dict) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each state: the largest relative difference of observation, that of reward; ends."""
    step, obs, reward, ends = jax.jit(env.step), [], [], 0
    for i in range(0, len(recorded["obs"]), env.num_envs):
        part = jax.tree.map(lambda value: value[i : i + env.num_envs], recorded)  # noqa: B023
        state = env.reset_to(*(part[name] for name in ("qpos", "qvel", "act", "episode")))
        state = step(state, part["action"])
        apart = np.abs(np.asarray(state.next_obs, np.float64) - part["obs"])
        obs += list((apart / np.maximum(1, np.abs(part["obs"]))).max(axis=1))
        reward += list(np.abs(np.asarray(state.reward, np.float64) - part["reward"]))
        ends += int((np.asarray(state.terminated) != part["terminated"]).sum())
    return np.array(obs), np.array(reward), ends


def count(env_id: str, engine: str, states: int, play: str) -> tuple[Shares, np.ndarray]:
    """Counts in how many states the next observation differs, and returns each one's too."""
    recorded = record_steps(env_id, states, engine, play=play)
    at_once = math.gcd(states, 100)
    obs, reward, ends = differences(envs.make(env_id, at_once, engine), recorded)
    task, random = envs.load_task(env_id), np.random.default_rng(0)
    same = reduce(copy.copy(task.model), task, engine)
    native = envs.VectorEnv(dataclasses.replace(task, model=same), at_once, "native", 0, 0)
    for name in ("qpos", "qvel"):
        sign = random.choice([-1.0, 1.0], recorded[name].shape)
        recorded[name] = (recorded[name] * (1 + MOVED * sign)).astype(np.float32)
    moved, _, _ = differences(native, recorded)
    far, moved_far = (int((~(found <= FAR)).sum()) for found in (obs, moved))
    spread = (np.median(obs), np.percentile(obs, 99), obs.max(), far, reward.max(), ends)
    moved = (np.percentile(moved, 99), moved.max(), moved_far)
    spread = (value if isinstance(value, int) else float(value) for value in (*spread, *moved))
    return Shares(env_id, engine, play, states, *spread), obs


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="parity with dm_control")
    parser.add_argument("--engine", choices=envs.ENGINES, default="native")
    parser.add_argument("--env-ids", nargs="+", type=inputs.task, help="else all")
    parser.add_argument(
        "--states", type=inputs.positive, help="count how many of so many states differ"
    )
    parser.add_argument("--play", choices=PLAYS, default="smooth", help="with --states: actions")
    args = parser.parse_args()
    chosen = args.env_ids or [
        env_id for env_id in envs.task_ids() if args.engine in envs.load_task(env_id).engines
    ]
    inputs.check_engines(parser, "--engine", [args.engine], chosen)
    if args.play == "in_touch" and set(chosen) != {"manipulator-insert_ball"}:
        parser.error("--play in_touch: is for --env-ids manipulator-insert_ball")
    path, key = CSV_PATH, ("engine", "env_id")
    if args.states:
        path, key = STATES_PATH, ("env_id", "play", "engine")
    for env_id in chosen:
        if args.states:
            result, _ = count(env_id, args.engine, args.states, args.play)
        else:
            result, _ = measure(env_id, args.engine, STEPS[args.engine])
        row = dataclasses.asdict(result)
        row = {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in row.items()}
        print(*row.values(), sep="  ", flush=True)
        write(path, row, key)


def write(path: pathlib.Path, row: dict, key: tuple[str, ...]) -> None:
    """Puts one row into a CSV file, in the place of an older one with the same values of `key`."""
    rows = []
    if path.exists():
        with path.open() as file:
            rows = list(csv.DictReader(file))
    row = {name: str(value) for name, value in row.items()}
    by_key = {tuple(old[name] for name in key): old for old in [*rows, row]}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row, restval="", extrasaction="ignore")
        writer.writeheader()
        order = sorted(by_key, key=lambda key: [int(v) if v.isdigit() else v for v in key])
        writer.writerows(by_key[key] for key in order)


if __name__ == "__main__":
    main()
