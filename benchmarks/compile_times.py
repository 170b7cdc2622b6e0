"""How long a start takes on each engine, with an empty compilation cache and with a filled one.

    python benchmarks/compile_times.py                 # writes compile_times.csv beside this file
    python benchmarks/compile_times.py --engines native warp --tasks cheetah-run

Each start is a process of its own, with preset `cpu`: import, `envs.make` (initial states, and on
`warp` the size of buffers), `init_state`, tracing and compiling `train_chunk`, and one call of it
(on `warp` that builds kernels, which it keeps). Caches, warp's too, are in a temporary folder.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

START = time.perf_counter()
os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

PHASES = ("import", "make", "init", "trace", "compile", "first chunk")
CSV_PATH = pathlib.Path(__file__).with_name("compile_times.csv")


def measure(env_id: str, engine: str) -> dict[str, float]:
    """Seconds of each phase of a start, in this process."""
    import jax

    import envs
    import flowrl_jax as flowrl
    from harness import machine

    moments = [START, time.perf_counter()]

    def passed(result):
        jax.block_until_ready(jax.tree.leaves(result))
        moments.append(time.perf_counter())
        return result

    machine.enable_compilation_cache()
    settings = flowrl.PRESETS["cpu"] | {"env_id": env_id, "preset": "cpu"}
    args = flowrl.Args(**settings | {"log_interval": 8, "learning_starts": 0})
    env = envs.make(env_id, args.num_envs, engine)
    passed(())
    state = passed(flowrl.init_state(env, args))
    lowered = jax.jit(lambda s: flowrl.train_chunk(s, env, args), donate_argnums=0).lower(state)
    passed(())
    compiled = lowered.compile()
    passed(())
    passed(compiled(state))
    pairs = itertools.pairwise(moments)
    return dict(zip(PHASES, (after - before for before, after in pairs), strict=True))


def start(env_id: str, engine: str, caches: str) -> dict[str, float]:
    """Seconds of each phase of a start, in a process of its own."""
    folders = {"JAX_COMPILATION_CACHE_DIR": f"{caches}/jax", "WARP_CACHE_PATH": f"{caches}/warp"}
    command = [sys.executable, __file__, "--child", env_id, engine]
    done = subprocess.run(
        command, env=os.environ | folders, check=True, text=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures and writes the table."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(*sys.argv[2:])))
        return
    from benchmarks import inputs
    from benchmarks.throughput import conditions

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["native", "mjx"])
    tasks = ["cheetah-run", "humanoid-run"]
    parser.add_argument("--tasks", nargs="+", type=inputs.task, default=tasks)
    args = parser.parse_args()
    inputs.check_engines(parser, "--engines", args.engines, args.tasks)
    rows = list(csv.DictReader(CSV_PATH.open())) if CSV_PATH.exists() else []
    for engine in args.engines:
        for env_id in args.tasks:
            with tempfile.TemporaryDirectory() as caches:
                for cache in ("empty", "filled"):
                    row = {"env_id": env_id, "engine": engine, "cache": cache}
                    seconds = start(env_id, engine, caches)
                    row |= {phase: f"{seconds[phase]:.1f}" for phase in PHASES}
                    row |= {"total": f"{sum(seconds.values()):.1f}"} | conditions()
                    row["command"] = row["command"].replace("throughput", "compile_times")
                    keys = ("env_id", "engine", "cache", "hardware")
                    rows = [r for r in rows if any(r[k] != row[k] for k in keys)] + [row]
                    print(*row.values(), sep="  ", flush=True)
            with CSV_PATH.open("w", newline="") as file:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
