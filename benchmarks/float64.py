"""What of a difference between `mjx` and C is float32, and what is another algorithm.

    python benchmarks/float64.py --env-ids dog-run --states 1000

`mjx` steps in float64 from the states that `benchmarks/parity.py --states` compares in float32, and
MuJoCo in C steps the same model (as few contacts as on `mjx`, no noslip). Where both compute the
same, speeds after a control step agree to 1e-9 and better. Tasks whose episodes change the model
are left out. Rows are written into float64.csv beside this file.
"""

import argparse
import copy
import dataclasses
import math
import os
import pathlib
import sys

os.environ["JAX_ENABLE_X64"] = "1"
os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import envs
from benchmarks import inputs, parity
from engines import PhysicsState
from engines.mjx import MjxEngine

CSV_PATH = pathlib.Path(__file__).with_name("float64.csv")
AT_ONCE = 50
SAME = 1e-9  # of max(1, |speed|): a state in which speeds differ by more is counted
FIELDS = ("qpos", "qvel", "act")


@dataclasses.dataclass(frozen=True)
class Row:
    """Speeds after a control step, relative to max(1, |C's|): the largest of each state."""

    env_id: str
    states: int
    median: float
    largest: float
    above_same: int  # states above SAME
    above_far: int  # and above parity.FAR


def in_c(model: mujoco.MjModel, states: dict, ctrl: np.ndarray, substeps: int) -> np.ndarray:
    """Speeds after a control step of each state. (N, nv)"""
    data, speeds = mujoco.MjData(model), []
    for i in range(len(ctrl)):
        mujoco.mj_resetData(model, data)
        data.ctrl = ctrl[i]
        for field in FIELDS:
            getattr(data, field)[:] = states[field][i]
        mujoco.mj_step(model, data, substeps)
        speeds.append(np.array(data.qvel))
    return np.stack(speeds)


def differences(env_id: str, states: int) -> np.ndarray:
    """The largest relative difference of speeds, of each state. (N,)"""
    task, env = envs.load_task(env_id), envs.make(env_id, 1, "native")
    assert not task.episode, f"{env_id}: its episodes change the model"
    recorded = parity.record_steps(env_id, states, "mjx", play="smooth")
    ctrl = np.asarray(env._ctrl_middle + env._ctrl_half_range * recorded["action"], np.float64)
    model = parity.reduce(copy.copy(task.model), task, "mjx")
    substeps = env._initial.num_substeps
    theirs = in_c(model, recorded, ctrl, substeps)
    engine = MjxEngine(task.model, substeps, {}, task.mjx_floor, task.mjx_obstacles)
    step, ours, size = jax.jit(engine.step), [], math.gcd(states, AT_ONCE)
    for i in range(0, states, size):
        fields = [jnp.asarray(recorded[f][i : i + size], jnp.float64) for f in FIELDS]
        start = PhysicsState(*fields, jnp.zeros((size, model.nv)))
        ours.append(np.asarray(step(start, jnp.asarray(ctrl[i : i + size]), {})[0].qvel))
    ours = np.concatenate(ours)
    assert ours.dtype == np.float64
    return (np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max(axis=1)


def main() -> None:
    """Measures and writes the rows."""
    parser = argparse.ArgumentParser(description="mjx in float64 against C")
    parser.add_argument(
        "--env-ids", nargs="+", type=inputs.task, default=("dog-run", "humanoid-run", "h1-stair")
    )
    parser.add_argument("--states", type=inputs.positive, default=1000)
    args = parser.parse_args()
    for env_id in args.env_ids:
        found = differences(env_id, args.states)
        counts = (int((~(found <= limit)).sum()) for limit in (SAME, parity.FAR))
        row = Row(env_id, args.states, float(np.median(found)), float(found.max()), *counts)
        print(env_id, "states above:", np.flatnonzero(~(found <= SAME))[:20], flush=True)
        cells = {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in vars(row).items()}
        print(*cells.values(), sep="  ", flush=True)
        parity.write(CSV_PATH, cells, ("env_id",))


if __name__ == "__main__":
    main()
