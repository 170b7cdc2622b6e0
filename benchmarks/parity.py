"""Our environments against dm_control's, control step by control step, from the same states.

    python benchmarks/parity.py                      # every task on native, STEPS steps
    python benchmarks/parity.py --engine mjx         # or warp

Both step from the same state (rounded to float32, what an `EnvState` holds), with the solver's
warm start at zero and the same random action, at each of `steps` states that dm_control visits.
The rows are written into parity.csv beside this file; other engines' rows there are kept.
`tests/test_tasks.py` asserts on the same numbers.
"""

import argparse
import csv
import dataclasses
import os
import pathlib
import sys

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import mujoco
import numpy as np
from dm_control import suite

import envs

STEPS = {"native": 200, "mjx": 20, "warp": 20}  # states compared, spread over 200 control steps
CSV_PATH = pathlib.Path(__file__).with_name("parity.csv")


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


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    """dm_control's entries in dm_control's order. (O,)"""
    return np.concatenate([np.ravel(entry) for entry in observation.values()])


def record_initial(env_id: str, episodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """States and observations of dm_control's environment right after its reset."""
    original = suite.load(*env_id.split("-", 1), task_kwargs={"random": seed})
    rows = []
    for _ in range(episodes):
        obs = flatten(original.reset().observation)
        data = original.physics.data
        rows.append({"qpos": data.qpos, "qvel": data.qvel, "act": data.act, "obs": obs})
        rows[-1] = {name: np.array(value) for name, value in rows[-1].items()}
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def record_steps(env_id: str, steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random control steps of dm_control's environment, each re-synchronised to float32.

    The first half starts from a reset, the second from the model's own pose, which is upright:
    random actions seldom reach a sparse reward.

    Returns:
      qpos, qvel, act before the step, action in [-1, 1], obs and reward after it; (steps, ...).
    """
    original = suite.load(*env_id.split("-", 1), task_kwargs={"random": seed})
    random, spec = np.random.default_rng(seed), original.action_spec()
    original.reset()
    model, data = original.physics.model.ptr, original.physics.data
    rows = []
    for i in range(steps):
        row = {}
        if i == steps // 2:
            mujoco.mj_resetData(model, data.ptr)
        for field in ("qpos", "qvel", "act"):
            row[field] = np.array(getattr(data, field), np.float32)
            getattr(data, field)[:] = row[field]
        mujoco.mj_step1(model, data.ptr)  # dm_control's step begins at the second half
        data.qacc_warmstart[:] = 0
        row["action"] = random.uniform(-1, 1, spec.shape).astype(np.float32)
        share = (row["action"].astype(np.float64) + 1) / 2
        outcome = original.step(spec.minimum + (spec.maximum - spec.minimum) * share)
        row["obs"], row["reward"] = flatten(outcome.observation), np.array(outcome.reward)
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _largest(ours: jax.Array, theirs: np.ndarray) -> tuple[float, float]:
    """The largest absolute difference, and the largest relative to max(1, |theirs|)."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = np.abs(np.asarray(ours, np.float64) - theirs)
    return float(difference.max()), float((difference / np.maximum(1, np.abs(theirs))).max())


def measure(env_id: str, engine: str, steps: int, episodes: int = 8) -> tuple[Parity, np.ndarray]:
    """Compares `steps` states spread over 200 control steps, and `episodes` resets.

    Returns the largest differences, and each state's largest relative one in observation, (steps,).
    """
    recorded = record_steps(env_id, max(steps, 200))
    chosen = np.linspace(0, len(recorded["obs"]) - 1, steps).astype(int)
    recorded = {name: value[chosen] for name, value in recorded.items()}
    initial = record_initial(env_id, episodes)
    env = envs.make(env_id, steps, engine)

    state = env.reset_to(recorded["qpos"], recorded["qvel"], recorded["act"])
    state = jax.jit(env.step)(state, recorded["action"])
    abs_obs, rel_obs = _largest(state.next_obs, recorded["obs"])
    abs_reward, _ = _largest(state.reward, recorded["reward"])
    by_state = [
        _largest(ours, its)[1] for ours, its in zip(state.next_obs, recorded["obs"], strict=True)
    ]

    tiled = {name: np.resize(value, (steps, *value.shape[1:])) for name, value in initial.items()}
    state = env.reset_to(tiled["qpos"], tiled["qvel"], tiled["act"])
    abs_initial, rel_initial = _largest(state.obs, tiled["obs"])
    highest = float(recorded["reward"].max())
    return Parity(
        env_id, engine, steps, abs_obs, rel_obs, abs_reward, highest, abs_initial, rel_initial
    ), np.array(by_state)


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="parity with dm_control")
    parser.add_argument("--engine", choices=envs.ENGINES, default="native")
    parser.add_argument("--env-ids", nargs="*", default=envs.task_ids())
    args = parser.parse_args()
    rows = {}
    if CSV_PATH.exists():
        with CSV_PATH.open() as file:
            rows = {(row["engine"], row["env_id"]): row for row in csv.DictReader(file)}
    for env_id in args.env_ids:
        result = dataclasses.asdict(measure(env_id, args.engine, STEPS[args.engine])[0])
        row = {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in result.items()}
        print(*row.values(), sep="  ", flush=True)
        rows[args.engine, env_id] = row
    with CSV_PATH.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Parity)])
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))


if __name__ == "__main__":
    main()
