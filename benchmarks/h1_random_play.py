"""What the H1 does without a policy: returns, the seat's height, the hip's stop, what touches.

    python benchmarks/h1_random_play.py      # native; some minutes; writes h1_random_play.csv

The same figures of HumanoidBench's own model and its meshes are in the column `original`, where
they are known (MuJoCo 3.17, or its own 3.1.6 where so marked): contacts are all that differs.
"""

import argparse
import collections
import csv
import os
import pathlib
import sys

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import envs

PATH = pathlib.Path(__file__).with_name("h1_random_play.csv")
EPISODES = 100  # of each mean return
STEPS, RUNS = 3000, 8  # control steps in which touching pairs are counted, so many times
SUBSTEPS = 10  # physics steps a control step
SEATED = (0, 0, -1.5, 1.5, 0)  # rad, a leg
ORIGINAL = {
    ("stand", "return of random actions"): "16.1 +- 0.6 (3.1.6: 17.7 +- 0.7)",
    ("walk", "return of random actions"): "3.1.6: 4.4 +- 0.26",
    ("sit_simple", "return of random actions"): "3.1.6: 8.5 +- 0.4",
    ("sit_simple", "return of the keyframe held"): "606 +- 9",
    ("sit_simple", "pelvis seated, m"): "0.714 +- 0.006",
    ("stand", "left hip's stop, rad"): "0.42 to 0.46",
    ("stand", "steps of 3000: left_hip_yaw/left_hip_pitch"): "240 to 383",
    ("stand", "steps of 3000: right_hip_yaw/right_hip_pitch"): "240 to 383",
    ("stand", "steps of 3000: left_hip_roll/right_hip_roll"): "at most 2",
}


def held(model: mujoco.MjModel) -> jax.Array:
    """The action whose servos hold the keyframe's angles. (19,)"""
    low, high = model.actuator_ctrlrange.T
    return jnp.asarray((2 * model.key("start").qpos[7:26] - low - high) / (high - low), jnp.float32)


def play(name: str, hold: bool, seed: int = 0) -> np.ndarray:
    """Returns of EPISODES episodes, by random actions or by holding the keyframe. (EPISODES,)"""
    env = envs.make(f"h1-{name}", EPISODES, "native", seed=seed)
    action = jnp.broadcast_to(held(env.task.model), (EPISODES, 19))
    step, key = jax.jit(env.step), jax.random.key(seed)
    state = env.reset(key)
    total, running = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while running.any():
        key, now = jax.random.split(key)
        if not hold:
            action = jax.random.uniform(now, (EPISODES, 19), minval=-1.0, maxval=1.0)
        state = step(state, action)
        total += running * np.asarray(state.reward)
        running &= ~np.asarray(state.terminated | state.truncated)
    return total


def touching(steps: int = STEPS, seed: int = 0) -> collections.Counter:
    """In how many control steps of random play on h1-stand two of the robot's links touch."""
    task, random = envs.load_task("h1-stand"), np.random.default_rng(seed)
    model, starts, counts = task.model, task.starts(seed), collections.Counter()
    data, episode = mujoco.MjData(model), 0
    low, high = model.actuator_ctrlrange.T
    for _ in range(steps):
        if data.time == 0 or data.qpos[2] < 0.2:
            mujoco.mj_resetData(model, data)
            data.qpos[:], episode = starts.draw(episode, 1)[0]["qpos"][0], episode + 1
        data.ctrl[:] = random.uniform(low, high)
        mujoco.mj_step(model, data, SUBSTEPS)
        counts.update(touching_links(model, data))
    return counts


def touching_links(model: mujoco.MjModel, data: mujoco.MjData) -> set[tuple[str, str]]:
    """Pairs of links that touch, in the model's order; the world is none."""
    bodies = np.sort(model.geom_bodyid[data.contact.geom], axis=1)
    return {tuple(model.body(b).name for b in pair) for pair in bodies if pair[0] > 0}


def seated_height(x: float = -0.2) -> float:
    """The pelvis's height (m) 2 s after it is let go just above the chair, legs held bent."""
    model = envs.load_task("h1-sit_simple").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[:3], data.qpos[7:17] = (x, 0, 0.76), SEATED * 2
    data.ctrl[:] = data.qpos[7:]
    mujoco.mj_step(model, data, 1000)
    return float(data.qpos[2])


def hip_stop(side: str = "left") -> float:
    """The hip's pitch (rad) after 3 s, without gravity, its servo sent to its limit of 2.53."""
    model = envs.load_task("h1-stand").model
    data = mujoco.MjData(model)
    gravity, model.opt.gravity[2] = model.opt.gravity[2], 0
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.ctrl[:] = data.qpos[7:]
    data.actuator(f"{side}_hip_pitch").ctrl = 2.53
    data.qpos[2] = 3  # m, off the floor
    mujoco.mj_step(model, data, 1500)
    model.opt.gravity[2] = gravity
    return float(data.joint(f"{side}_hip_pitch").qpos[0])


def mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    """Measures, prints and writes the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []

    def add(task: str, figure: str, value: float, error: float | str = "") -> None:
        error = error if error == "" else f"{error:.3g}"
        row = (task, figure, f"{value:.4g}", error, ORIGINAL.get((task, figure), ""))
        print(*row, sep="  ", flush=True)
        rows.append(row)

    for task in ("stand", "walk", "sit_simple"):
        add(task, "return of random actions", *mean(play(task, hold=False)))
    add("sit_simple", "return of the keyframe held", *mean(play("sit_simple", hold=True)))
    add("sit_simple", "pelvis seated, m", seated_height())
    for side in ("left", "right"):
        add("stand", f"{side} hip's stop, rad", hip_stop(side))
    runs = [touching(seed=seed) for seed in range(RUNS)]
    for pair, _ in sum(
        runs, collections.Counter({("left_hip_roll", "right_hip_roll"): 1})
    ).most_common():
        counts = np.array([run[pair] for run in runs])
        add("stand", f"steps of {STEPS}: {'/'.join(pair)}", *mean(counts))
    with PATH.open("w", newline="") as file:
        csv.writer(file).writerows([("task", "figure", "ours", "error", "original"), *rows])


if __name__ == "__main__":
    main()
