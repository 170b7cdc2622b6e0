"""Control steps per second of `native`, beside plain MuJoCo rollouts and EnvPool.

    python benchmarks/throughput.py            # writes native_throughput.csv beside this file

requirements-bench: `pip install envpool==1.2.7` in a Python 3.12 (or newer) environment that has
the requirements; without it the EnvPool column is left empty, and that is said.

256 environments, all cores, each contender in turn for a short block, over and over; what is
compared is the median over blocks, and ratios within a round. The contenders:
  ours      `env.step` in a jitted `lax.scan`, as training runs it: actions scaled, MuJoCo,
            sensors brought up to date, observation, reward, auto-reset
  rollout   `mujoco.rollout` on the same compiled model, from our state at the block's start and
            its warm start, with the same actions held over the same substeps; no observation,
            reward or reset: the limit
  envpool   EnvPool's DeepMind Control task, stepped synchronously on as many threads
Ours and EnvPool run through the same episodes' ages: 1,000-step episodes, started together.
"""

import argparse
import csv
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import mujoco
import mujoco.rollout
import numpy as np

import envs

try:
    import envpool
except ImportError:
    envpool = None

TASKS = {  # ours -> EnvPool's, control steps a block (a third of a second or so on two cores)
    "cheetah-run": ("CheetahRun-v1", 100),
    "walker-run": ("WalkerRun-v1", 25),
    "humanoid-run": ("HumanoidRun-v1", 20),
}
CSV_PATH = pathlib.Path(__file__).with_name("native_throughput.csv")


class Rollout:
    """Plain `mujoco.rollout` from the states of an `EnvState`."""

    def __init__(self, env: envs.VectorEnv, threads: int):
        self._env, self._model = env, env.task.model
        self._substeps = round(env.control_timestep / self._model.opt.timestep)
        self._datas = [mujoco.MjData(self._model) for _ in range(threads)]
        self._rollout = mujoco.rollout.Rollout(nthread=threads)

    def seconds(self, state: envs.EnvState, actions: np.ndarray) -> float:
        """Time to apply actions (T, N, A) from `state`."""
        env, model, kind = self._env, self._model, mujoco.mjtState.mjSTATE_FULLPHYSICS
        initial = np.zeros((env.num_envs, mujoco.mj_stateSize(model, kind)))
        physics = [np.asarray(x) for x in (state.physics.qpos, state.physics.qvel)]
        initial[:, 1 : 1 + model.nq + model.nv] = np.concatenate(physics, axis=1)  # [0] is time
        assert model.na == 0, "the activations have a place of their own"
        ctrl = env._ctrl_middle + env._ctrl_half_range * actions
        ctrl = np.repeat(ctrl.swapaxes(0, 1), self._substeps, axis=1).astype(float)
        warmstart = np.asarray(state.physics.warmstart, float)
        sizes = initial.shape[1], model.nsensordata  # filled here, so that no page faults are timed
        results = [np.zeros((*ctrl.shape[:2], size)) for size in sizes]
        for result in results:
            result.fill(0)
        start = time.perf_counter()
        self._rollout.rollout(
            model,
            self._datas,
            initial,
            ctrl,
            initial_warmstart=warmstart,
            state=results[0],
            sensordata=results[1],
        )
        return time.perf_counter() - start


def ours_seconds(roll, state: envs.EnvState, actions: np.ndarray) -> tuple[float, envs.EnvState]:
    """Time to apply actions (T, N, A), and the state after them."""
    start = time.perf_counter()
    state = jax.block_until_ready(roll(state, actions))
    return time.perf_counter() - start, state


def envpool_seconds(pool, actions: np.ndarray) -> float:
    """Time to apply actions (T, N, A)."""
    start = time.perf_counter()
    for action in actions:
        pool.step(action)
    return time.perf_counter() - start


def measure(env_id: str, num_envs: int, threads: int, blocks: int) -> dict[str, list[float]]:
    """Control steps per second of each contender, block by block; the first is thrown away."""
    name, length = TASKS[env_id]
    env = envs.make(env_id, num_envs, "native", num_threads=threads)
    roll = jax.jit(
        lambda s, actions: jax.lax.scan(lambda s, a: (env.step(s, a), None), s, actions)[0]
    )
    state, rollout = env.reset(jax.random.key(0)), Rollout(env, threads)
    pool = None
    if envpool:
        pool = envpool.make(name, "gymnasium", num_envs=num_envs, num_threads=threads, seed=0)
        pool.reset()
    random = np.random.default_rng(0)
    rates: dict[str, list[float]] = {"rollout": [], "ours": [], "envpool": []}
    for block in range(blocks + 1):
        shape = (length, num_envs, env.action_size)
        actions = random.uniform(-1, 1, shape).astype(np.float32)
        seconds = {"rollout": rollout.seconds(state, actions)}
        seconds["ours"], state = ours_seconds(roll, state, actions)
        if pool:
            seconds["envpool"] = envpool_seconds(pool, actions.astype(float))
        for contender, duration in seconds.items() if block else ():
            rates[contender].append(length * num_envs / duration)
    return rates


def summarise(env_id: str, rates: dict[str, list[float]]) -> dict[str, str]:
    """Medians over blocks, and medians of the ratios within each round of blocks."""
    row = {"env_id": env_id}
    for contender, values in rates.items():
        row[contender] = f"{statistics.median(values):.0f}" if values else ""
    for other in ("rollout", "envpool"):
        ratios = sorted(a / b for a, b in zip(rates["ours"], rates[other], strict=False))
        row[f"ours/{other}"] = f"{statistics.median(ratios):.2f}" if ratios else ""
        row[f"range ours/{other}"] = f"{ratios[0]:.2f}-{ratios[-1]:.2f}" if ratios else ""
    return row


def hardware() -> str:
    """The processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="throughput of the native engine")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--blocks", type=int, default=15)
    args = parser.parse_args()
    if envpool is None:
        print("EnvPool is not installed here (Python >= 3.12: pip install envpool==1.2.7): skipped")
    common = {
        "num_envs": args.num_envs,
        "threads": args.num_threads,
        "blocks": args.blocks,
        "load at start": f"{os.getloadavg()[0]:.1f}",  # of other programs: 0 on a quiet machine
        "hardware": hardware(),
        "versions": f"python {platform.python_version()}, mujoco {mujoco.__version__}, "
        f"jax {jax.__version__}, envpool {envpool.__version__ if envpool else 'absent'}",
        "command": " ".join(["python benchmarks/throughput.py", *sys.argv[1:]]),
    }
    rows = []
    for env_id in TASKS:
        rates = measure(env_id, args.num_envs, args.num_threads, args.blocks)
        rows.append(summarise(env_id, rates) | common)
        print(*[f"{k} {v}" for k, v in rows[-1].items() if k not in common], sep="  ", flush=True)
    with CSV_PATH.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
