"""All there is to know of an accelerator, in a budget of time, the most important first.

    python benchmarks/accelerator.py [--minutes 25] [--out benchmarks/accelerator]

Jobs in order: versions and device; engines against the originals on the same states; environment
steps a second; updates a second by batch and precision, beside the device's matrix rate; the whole
loop; then humanoid-run with preset `gpu` for the time that is left. Each is a process of its own:
one that fails or never compiles costs only its share. accelerator.csv gets a row as soon as there
is one, and a row that says why where there is none; humanoid-run.csv is the curve. On a CPU, or
with --toy, all is small: then it shows only that everything works.
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("MUJOCO_GL", "disable")

COLUMNS = ("job", "env_id", "engine", "num_envs", "batch_size", "width", "dtype", "precision")
COLUMNS += ("measure", "value", "unit", "note", "at, s", "device")
TRAINING_SHARE = 0.35  # of the budget, kept for the last job
LONGEST = 240  # s that a job of several sizes may take
MARGIN = 45  # s for the training run to stop and save
ROW = "ROW "  # before a row on a job's standard output


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, at full size or as a toy."""

    tasks: tuple[str, ...] = (
        "cartpole-balance",
        "humanoid-run",
        "cheetah-run",
        "h1-walk",
        "dog-run",
    )
    num_envs: tuple[int, ...] = (1024, 256, 4096, 16384)
    batches: tuple[int, ...] = (8192, 256, 32768)
    width: int = 512
    blocks: int = 5
    states: int = 20  # of a comparison
    preset: str = "gpu"
    train: tuple[str, ...] = ("--env-id", "humanoid-run", "--preset", "gpu")


TOY = Sizes(
    tasks=("cartpole-balance",),
    num_envs=(4,),
    batches=(8,),
    width=8,
    blocks=1,
    states=2,
    preset="cpu",
    train=("--env-id", "cartpole-balance", "--num-envs", "4", "--hidden-size", "8")
    + ("--batch-size", "8", "--buffer-size", "2000", "--learning-starts", "200")
    + ("--log-interval", "400", "--eval-episodes", "1", "--eval-interval", "4000"),
)
PRECISIONS = (("float32", "tensorfloat32"), ("float32", "highest"), ("bfloat16", "highest"))


# --------------------------------------------------------------------------------- jobs, each alone
def versions(sizes: Sizes) -> Iterator[dict]:
    """Versions, the device, its memory and its driver."""
    import jax

    from harness import machine

    for name, version in machine.versions().items():
        yield {"measure": f"version of {name}", "value": version}
    device = jax.devices()[0]
    yield {"measure": "device", "value": device.device_kind, "note": device.platform}
    yield {"measure": "number of devices", "value": jax.device_count()}
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        yield {"measure": "memory for JAX", "value": f"{limit / 2**30:.1f}", "unit": "GiB"}
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,power.limit",
            "--format=csv,noheader",
        ]
        text = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        yield {"measure": "nvidia-smi", "value": " / ".join(text.split("\n")).strip(" /")}


def parity(sizes: Sizes, env_id: str, engine: str) -> Iterator[dict]:
    """The largest differences to the original, as benchmarks/parity.py."""
    from benchmarks import parity

    found, _ = parity.measure(env_id, engine, sizes.states)
    for measure in ("max_rel_obs", "max_abs_obs", "max_abs_reward", "ends_that_differ"):
        yield {"measure": measure, "value": f"{getattr(found, measure):.2g}"}


def environments(sizes: Sizes, env_id: str, engine: str) -> Iterator[dict]:
    """Control steps a second of `env.step` in a compiled loop."""
    import jax

    import envs
    from benchmarks import throughput

    for num_envs in sizes.num_envs:
        env = envs.make(env_id, num_envs, engine)
        shape = (16, num_envs, env.action_size)
        actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0)
        contender = {"ours": throughput.ours(env, env.reset(jax.random.key(0)), actions)}
        seconds = throughput.interleaved(contender, sizes.blocks)["ours"]
        rate = throughput.number(num_envs / throughput.median(seconds))
        yield {"num_envs": num_envs, "measure": "env.step", "value": rate, "unit": "steps/s"}


def updates(sizes: Sizes, dtype: str, precision: str) -> Iterator[dict]:
    """Updates a second, and the share of what a matrix product of the same precision reaches."""
    from benchmarks import throughput

    for batch_size in sizes.batches:
        row = throughput.measure_update(batch_size, sizes.width, dtype, sizes.blocks, precision)
        same = {"batch_size": batch_size, "width": sizes.width}
        yield same | {"measure": "update", "value": row["updates"], "unit": "updates/s"}
        yield same | {"measure": "update", "value": row["GFLOP/s"], "unit": "GFLOP/s"}
        rate = row["GFLOP/s of a product"]
        yield same | {"measure": "matrix product", "value": rate, "unit": "GFLOP/s"}


def loop(sizes: Sizes, env_id: str, engine: str) -> Iterator[dict]:
    """The training loop beside its parts, and the memory that it took."""
    import jax

    from benchmarks import throughput

    flags = {"engine": engine}
    if sizes is TOY:
        flags |= {"num_envs": 4, "hidden_size": 8, "batch_size": 8, "buffer_size": 2000}
    row = throughput.measure_loop("", env_id, sizes.preset, flags, sizes.blocks)
    for measure in ("env ms", "updates ms", "loop ms", "steps/s", "updates/s", "ratio"):
        yield {"measure": measure, "value": row[measure]}
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        yield {"measure": "peak memory", "value": f"{peak / 2**30:.2f}", "unit": "GiB"}


JOBS = {f.__name__: f for f in (versions, parity, environments, updates, loop)}


def planned(sizes: Sizes, engines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Names of jobs and their arguments, in order."""
    yield "versions", {}
    pairs = [{"env_id": env_id, "engine": engine} for env_id in sizes.tasks for engine in engines]
    yield from (("parity", pair) for pair in pairs)
    first, second = pairs[: 2 * len(engines)], pairs[2 * len(engines) :]
    yield from (("environments", pair) for pair in first)
    for dtype, precision in PRECISIONS:
        yield "updates", {"dtype": dtype, "precision": precision}
    env_id = "humanoid-run" if "humanoid-run" in sizes.tasks else sizes.tasks[0]
    yield from (("loop", {"env_id": env_id, "engine": engine}) for engine in engines)
    yield from (("environments", pair) for pair in second)


# ------------------------------------------------------------------------------------- the parent
class Table:
    """accelerator.csv, written row by row."""

    def __init__(self, path: pathlib.Path):
        self.device, self._began = "", time.monotonic()
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="")
        self._writer.writeheader()

    def add(self, job: str, arguments: dict, row: dict) -> None:
        """Writes and prints one result."""
        if row.get("measure") == "device":
            self.device = row["value"]
        row = {"job": job} | arguments | row | {"device": self.device}
        row["at, s"] = f"{time.monotonic() - self._began:.0f}"
        self._writer.writerow(row)
        self._file.flush()
        print(*[f"{k} {v}" for k, v in row.items() if v not in ("", None)], sep="  ", flush=True)


def run_job(table: Table, job: str, arguments: dict, seconds: float, toy: bool) -> None:
    """Runs one job for so long at most; its rows go to the table."""
    command = [sys.executable, str(HERE / "accelerator.py"), "--job", job, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        options = dict(stdout=subprocess.PIPE, stderr=errors, text=True)
        process = subprocess.Popen(command + ["--toy"] * toy, **options)
        timer = threading.Timer(seconds, process.kill)  # a compiler hears nothing else
        timer.start()
        for line in process.stdout:
            if line.startswith(ROW):
                table.add(job, arguments, json.loads(line.removeprefix(ROW)))
        process.wait()
        timer.cancel()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no word"])[-1]
    if process.returncode:
        late = process.returncode == -signal.SIGKILL
        why = f"ended after {seconds:.0f} s" if late else last[:200]
        table.add(job, arguments, {"note": f"not measured: {why}"})


def train(table: Table, sizes: Sizes, out: pathlib.Path, deadline: float) -> None:
    """The training run until MARGIN before the deadline; its curve and settings go to `out`."""
    runs = out / "runs"
    command = [sys.executable, str(HERE.parent / "flowrl_jax.py"), *sizes.train]
    command += ["--runs-dir", str(runs), "--no-checkpoint-replay"]
    with (out / "train.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(max(1.0, deadline - MARGIN - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(max(1.0, deadline + MARGIN - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for folder in sorted(runs.glob("*/")):
        task = folder.name.split("__")[0]
        for name, kept in (("metrics.csv", f"{task}.csv"), ("config.json", f"{task}.json")):
            if (folder / name).exists():
                shutil.copyfile(folder / name, out / kept)
    text = " ".join((out / "train.log").read_text().replace("\r", "\n").splitlines()[-1:])
    note = "finished" if not process.returncode else f"exit code {process.returncode}: {text[:150]}"
    table.add("train", {}, {"measure": " ".join(sizes.train), "note": note})


def main() -> None:
    """Runs everything, or with --job one job in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "accelerator")
    parser.add_argument("--toy", action="store_true", help="small sizes; on a CPU always")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    began = time.monotonic()
    if args.job:
        from harness import machine

        machine.enable_compilation_cache()
        sizes = TOY if args.toy else Sizes()
        for row in JOBS[args.job[0]](sizes, **json.loads(args.job[1])):
            print(ROW + json.dumps(row), flush=True)
        return
    if args.minutes <= 0:
        parser.error(f"--minutes: needs more than 0, got {args.minutes:g}")
    code = "import jax, envs; print(jax.default_backend(), envs._importable('warp'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True
    )
    backend, has_warp = found.stdout.split()[-2:]
    toy = args.toy or backend == "cpu"
    sizes, engines = (TOY, ["native"]) if toy else (Sizes(), ["mjx"])
    engines += ["warp"] * (has_warp == "True" and backend == "gpu")
    args.out.mkdir(parents=True, exist_ok=True)
    table, deadline = Table(args.out / "accelerator.csv"), began + 60 * args.minutes
    measured = deadline - TRAINING_SHARE * 60 * args.minutes
    for job, arguments in planned(sizes, engines):
        left = measured - time.monotonic()
        if left < 10:
            table.add(job, arguments, {"note": "not measured: the time is over"})
        else:
            run_job(table, job, arguments, min(left, LONGEST), toy)
    train(table, sizes, args.out, deadline)


if __name__ == "__main__":
    main()
