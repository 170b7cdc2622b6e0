"""How fast training is on other tasks, beside cheetah-run, on an idle core of this machine.

    taskset -c 0 python benchmarks/task_speed.py

The tasks of PROTOCOL.md that throughput_algorithms.csv does not have, at the sizes of their runs.
The loops of one algorithm take turns with that of cheetah-run, so that the ratio does not depend on
how fast the machine is: protocol.py multiplies it with the steps a second that were measured there.
Rows go to task_speed.csv beside this file.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax

from benchmarks import inputs, throughput
from harness import machine

BESIDE = "cheetah-run"
TASKS = ("acrobot-swingup", "dog-walk", "finger-turn_hard", "fish-swim", "h1-walk", "quadruped-run")
SIZES = {  # environments and batch
    "flowrl_hlgauss_jax": ((64, 512),),
    "sac_jax": ((8, 128), (64, 512)),
    "flowrl_jax": ((64, 512), (8, 128)),
}


def words(size: tuple[int, int]) -> str:
    """As PROTOCOL.md's variants have it, 8x128 say."""
    return "x".join(map(str, size))


WORDS = sorted({words(size) for sizes in SIZES.values() for size in sizes})


def measure(
    name: str, size: tuple[int, int], tasks: list[str], preset: str, blocks: int
) -> list[dict[str, str]]:
    """A row a task: environment steps a second, and their ratio to BESIDE's with its range."""
    loops = {
        task: throughput.training_loop(name, task, preset, size)[0]
        for task in dict.fromkeys([BESIDE, *tasks])
    }
    seconds = throughput.interleaved(loops, blocks)
    num_envs, batch_size = size
    return [
        {
            "env_id": task,
            "preset": preset,
            "algorithm": name,
            "num_envs": str(num_envs),
            "batch_size": str(batch_size),
            "steps/s": throughput.number(num_envs / throughput.median(seconds[task])),
            **throughput.ratio(seconds[BESIDE], seconds[task]),
        }
        for task in loops
    ]


def main() -> None:
    """Measures all algorithms, one after the other."""
    parser = argparse.ArgumentParser(description="training on other tasks beside cheetah-run")
    parser.add_argument("--tasks", nargs="+", type=inputs.task, default=TASKS)
    parser.add_argument("--algorithms", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--sizes", nargs="+", default=WORDS, choices=WORDS)
    parser.add_argument("--preset", default="cpu", choices=throughput.flowrl.PRESETS)
    parser.add_argument("--blocks", type=inputs.positive, default=9)
    args = parser.parse_args()
    machine.enable_compilation_cache()
    common = throughput.conditions("benchmarks/task_speed.py")
    keys = ("env_id", "preset", "algorithm", "num_envs", "batch_size")
    for name in args.algorithms:
        for size in (size for size in SIZES[name] if words(size) in args.sizes):
            for row in measure(name, size, args.tasks, args.preset, args.blocks):
                throughput.write("task_speed", keys, row | common)
            jax.clear_caches()


if __name__ == "__main__":
    main()
