"""Seeds an hour: K seeds in one program beside K processes. `python benchmarks/seeds.py`

Whole runs, start to end, of the same K seeds: one program (`--num-seeds K`), K processes at once,
K processes two at a time with a core each, and one after the other. Each starts with a filled
compilation cache. Rows go to seeds.csv beside this file; seeds an hour are for runs of this length.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import inputs, throughput


def command(env_id: str, steps: int, folder: str, *flags: str) -> list[str]:
    """A short run of preset `cpu`."""
    run = [sys.executable, str(ROOT / "flowrl_jax.py"), "--env-id", env_id, "--preset", "cpu"]
    run += ["--total-timesteps", str(steps), "--eval-interval", "0", "--eval-episodes", "1"]
    return [*run, "--runs-dir", folder, *flags]


def together(commands: list[list[str]], at_once: int, pinned: bool = False) -> float:
    """Seconds until all have ended, `at_once` at a time; pinned: to a core each."""
    start, running, waiting = time.perf_counter(), {}, list(commands)
    cores = sorted(os.sched_getaffinity(0))
    flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if pinned else {}
    while waiting or running:
        free = [slot for slot in range(at_once) if slot not in running]
        for slot in free[: len(waiting)]:
            where = ["taskset", "-c", str(cores[slot % len(cores)])] if pinned else []
            process = subprocess.Popen(
                where + waiting.pop(0), env=os.environ | flags, stdout=subprocess.DEVNULL
            )
            running[slot] = process
        for slot, process in list(running.items()):
            if process.poll() is not None:
                assert process.returncode == 0, process.args
                del running[slot]
        time.sleep(0.05)
    return time.perf_counter() - start


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="seeds an hour")
    parser.add_argument("--env-id", type=inputs.task, default="cartpole-balance")
    parser.add_argument("--num-seeds", type=inputs.positive, default=4)
    parser.add_argument("--steps", type=inputs.positive, default=8_000)
    args = parser.parse_args()
    num = args.num_seeds
    with tempfile.TemporaryDirectory() as folder:
        one = [command(args.env_id, args.steps, folder, "--num-seeds", str(num))]
        each = [command(args.env_id, args.steps, folder, "--seed", str(1 + k)) for k in range(num)]
        warm = [command(args.env_id, 100, folder, *flags) for flags in ((), ("--num-seeds", "4"))]
        together(warm, 1)
        together(warm[:1], 1, pinned=True)
        ways = {
            "one program": (one, 1, False),
            "all processes at once": (each, num, False),
            "two processes at a time, a core each": (each, 2, True),
            "one process after the other": (each, 1, False),
        }
        for way, (commands, at_once, pinned) in ways.items():
            seconds = together(commands, at_once, pinned)
            row = {"way": way, "env_id": args.env_id, "seeds": str(num), "steps": str(args.steps)}
            row |= {"seconds": f"{seconds:.0f}", "seeds an hour": f"{3600 * num / seconds:.0f}"}
            row |= throughput.conditions()
            row["command"] = " ".join(["python benchmarks/seeds.py", *sys.argv[1:]])
            throughput.write("seeds", ("way", "env_id", "seeds", "steps"), row)


if __name__ == "__main__":
    main()
