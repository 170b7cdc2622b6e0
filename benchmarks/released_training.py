"""Trains with the authors' PyTorch code on a task of dm_control, on a CPU: agent and replay theirs.

    git clone https://github.com/bytedance/FlowRL released
    pip install torch
    taskset -c 0 python benchmarks/released_training.py --released released --env-id cheetah-run
    python benchmarks/protocol.py released_pytorch FOLDER     # FOLDER/runs: --runs-dir

The released agent, compiled as it asks for, and the released replay. The loop around them is
written here in the order of the released one: from step 5,000 on an action of the policy, an update
and the step of the environment; before that actions are uniform. The environment is dm_control's
own. Settings are the released ones but for width and batch, which a CPU can pay. What it writes has
the names of our CSVs and JSONs, so that the same tools read them.
"""

import argparse
import csv
import dataclasses
import importlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from dm_control import suite

import flowrl_jax as flowrl
from benchmarks import inputs, released
from harness import machine


def flat(observation) -> np.ndarray:
    """dm_control's observation in a row, as it orders it."""
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)


def mean_return(agent, env, episodes: int) -> float:
    """Of whole episodes, sampled x0."""
    total = 0.0
    for _ in range(episodes):
        now = env.reset()
        while not now.last():
            now = env.step(agent.select_action(flat(now.observation), evaluate=True))
            total += now.reward
    return total / episodes


def train(algo, memory, settings: flowrl.Args, path: Path) -> None:
    """The released training, whose evaluations it writes into the CSV `path`."""
    load = lambda seed: suite.load(*settings.env_id.split("-", 1), task_kwargs={"random": seed})  # noqa: E731
    env, eval_env = load(settings.seed), load(settings.seed + 1_000)
    spec, draw = env.action_spec(), np.random.default_rng(settings.seed)
    now = env.reset()
    agent = released.fresh_agent(algo, settings, flat(now.observation).size, spec.shape[0])
    begun, evaluating = time.perf_counter(), 0.0
    for step in range(1, settings.total_timesteps + 1):
        if now.last():
            now = env.reset()
        obs = flat(now.observation)
        if step <= settings.learning_starts:
            action = draw.uniform(spec.minimum, spec.maximum).astype(np.float32)
        else:
            action = agent.select_action(obs)
            updates = step - settings.learning_starts - 1
            agent.update_parameters(memory, settings.batch_size, updates)
        now = env.step(action)
        goes_on = float(not (now.last() and now.discount == 0))  # an end by time is none
        memory.push(obs, action, now.reward, flat(now.observation), goes_on)
        if step % settings.eval_interval == 0:
            before = time.perf_counter()
            value = mean_return(agent, eval_env, settings.eval_episodes)
            seconds = before - begun - evaluating
            with path.open("a") as file:
                csv.writer(file).writerow([step, f"{seconds:.0f}", value])
            print(f"step {step} seconds {seconds:.0f} return {value:.1f}", flush=True)
            evaluating += time.perf_counter() - before


def main() -> None:
    """Trains and writes RUNS_DIR/TASK__released__SEED__TIME."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--released", type=Path, required=True, help="a clone of the released code")
    parser.add_argument("--env-id", type=inputs.task, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=inputs.positive, default=100_000)
    parser.add_argument("--hidden-size", type=inputs.positive, default=128)
    parser.add_argument("--batch-size", type=inputs.positive, default=128)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    args = vars(parser.parse_args())
    clone, runs_dir = args.pop("released"), args.pop("runs_dir")
    if tuple(args["env_id"].split("-", 1)) not in suite.ALL_TASKS:
        parser.error(f"--env-id: dm_control has no task {args['env_id']!r}, such as cheetah-run")
    try:
        algo = released.load(clone, compiled=True)
        replay = importlib.import_module("utilis.Replaybuffer")
    except (OSError, ImportError) as error:
        parser.error(f"--released: {error}")
    settings = flowrl.Args(**args, eval_interval=10_000, eval_episodes=10)
    algo.torch.manual_seed(settings.seed)
    name = f"{settings.env_id}__released__{settings.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    folder = runs_dir / name
    folder.mkdir(parents=True)
    config = {
        "algorithm": "released",
        "args": dataclasses.asdict(settings),
        "versions": machine.versions() | {"torch": algo.torch.__version__},
        "git": machine.git_state(Path(machine.__file__).parent),
        "hardware": machine.hardware(),
        "command": sys.argv,
        "status": "running",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "metrics.csv").write_text(f"step,charts/seconds,{inputs.SAMPLED}\n")
    memory = replay.ReplayMemory(settings.buffer_size, settings.seed)
    train(algo, memory, settings, folder / "metrics.csv")
    (folder / "config.json").write_text(json.dumps(config | {"status": "finished"}, indent=2))


if __name__ == "__main__":
    main()
