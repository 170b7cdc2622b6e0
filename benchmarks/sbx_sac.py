"""SBX's SAC at its defaults on a task of dm_control: PROTOCOL.md's peer, by others' code alone.

In an environment of its own, since it brings PyTorch (benchmarks/requirements-sbx.txt):

    python -m venv SBX && SBX/bin/pip install -r benchmarks/requirements-sbx.txt
    taskset -c 0 SBX/bin/python benchmarks/sbx_sac.py --env-id cheetah-run --runs-dir SBX/runs
    python benchmarks/protocol.py sbx_sac_1x256 SBX

No algorithm or environment of this project is imported: the task is dm_control's own, its
observations in a row as it orders them. What it writes has the names of our CSVs and JSONs, so that
the same tools read them, and says by harness/machine.py on what it ran.
"""

import argparse
import csv
import importlib.metadata
import json
import sys
import time
from pathlib import Path

try:
    import gymnasium
    import numpy as np
    from dm_control import suite
    from sbx import SAC
    from stable_baselines3.common.callbacks import BaseCallback
except ModuleNotFoundError as error:
    fix = "`pip install -r benchmarks/requirements-sbx.txt` in an environment of its own"
    print(f"error: the package {error.name} is missing; {fix}", file=sys.stderr)
    sys.exit(2)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import machine

PACKAGES = ("sbx-rl", "stable-baselines3", "jax", "mujoco", "dm-control")


class DMControl(gymnasium.Env):
    """A task of dm_control as Gymnasium has it. Its end by time is a truncation."""

    def __init__(self, env_id: str, seed: int):
        domain, task = env_id.split("-", 1)
        self.env = suite.load(domain, task, task_kwargs={"random": seed})
        spec = self.env.action_spec()
        self.action_space = gymnasium.spaces.Box(
            spec.minimum.astype(np.float32), spec.maximum.astype(np.float32)
        )
        size = self._flat(self.env.reset().observation).shape
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, size, np.float32)

    @staticmethod
    def _flat(observation) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        """Gymnasium's; the seed is the one given at the start."""
        return self._flat(self.env.reset().observation), {}

    def step(self, action):
        """Gymnasium's."""
        now = self.env.step(action)
        ended, terminated = now.last(), now.last() and now.discount == 0
        return self._flat(now.observation), now.reward, terminated, ended and not terminated, {}


def mean_return(model: SAC, env: DMControl, episodes: int, deterministic: bool) -> float:
    """Of whole episodes."""
    total = 0.0
    for _ in range(episodes):
        observation, _ = env.reset()
        ended = False
        while not ended:
            action, _ = model.predict(observation, deterministic=deterministic)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += reward
            ended = terminated or truncated
    return total / episodes


class Evaluations(BaseCallback):
    """Evaluates every so many steps, and keeps the time that this takes out of the seconds."""

    def __init__(self, args: argparse.Namespace, path: Path):
        super().__init__()
        self.args, self.path = args, path
        self.env = DMControl(args.env_id, args.seed + 1_000)
        self.started, self.evaluating = time.perf_counter(), 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps % self.args.eval_interval == 0:
            before = time.perf_counter()
            returns = [
                mean_return(self.model, self.env, self.args.eval_episodes, kind)
                for kind in (False, True)
            ]
            seconds = before - self.started - self.evaluating
            with self.path.open("a") as file:
                csv.writer(file).writerow([self.num_timesteps, seconds, *returns])
            print(f"step {self.num_timesteps} seconds {seconds:.0f} returns {returns}", flush=True)
            self.evaluating += time.perf_counter() - before
        return True


def main() -> None:
    """Trains and writes RUNS_DIR/TASK__sbx_sac__SEED__TIME."""
    parser = argparse.ArgumentParser(description="SBX's SAC at its defaults on a dm_control task")
    parser.add_argument("--env-id", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=200_000)
    parser.add_argument("--eval-interval", type=int, default=10_000)
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    args = parser.parse_args()
    if tuple(args.env_id.split("-", 1)) not in suite.ALL_TASKS:
        parser.error(f"--env-id: dm_control has no task {args.env_id!r}, such as cheetah-run")
    name = f"{args.env_id}__sbx_sac__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    folder = args.runs_dir / name
    env = DMControl(args.env_id, args.seed)
    folder.mkdir(parents=True)
    config = {
        "algorithm": "sbx_sac",
        "args": {**vars(args), "runs_dir": str(args.runs_dir)},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": machine.git_state(Path(machine.__file__).parent),
        "hardware": machine.hardware(),
        "command": sys.argv,
        "status": "running",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    header = "step,charts/seconds,eval/episodic_return_sampled,eval/episodic_return_deterministic"
    (folder / "metrics.csv").write_text(header + "\n")
    model = SAC("MlpPolicy", env, seed=args.seed)
    model.learn(args.total_timesteps, Evaluations(args, folder / "metrics.csv"))
    (folder / "config.json").write_text(json.dumps({**config, "status": "finished"}, indent=2))


if __name__ == "__main__":
    main()
