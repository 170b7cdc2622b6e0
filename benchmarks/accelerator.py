"""All there is to know of an accelerator, in a budget of time.

    python benchmarks/accelerator.py [--minutes 25] [--out benchmarks/accelerator]

Compilers take minutes and timing needs a quiet device, so each job is a process of its own: some
compile at the same time (with CORES each: of 16 on 16 cores beside an H200 none had compiled in 215
s what alone takes 75); those that time nothing (versions, the engines against the originals, the
engines' tests) report then; the others wait, and measure one after the other: environment steps a
second, updates a second by batch and precision beside the device's matrix rate, the whole loop.
Then come the training runs, `--train` or TRAIN, for the time that is left, in turn or `--together`.
One that fails or never compiles costs only itself: accelerator.csv gets a row as soon as there is
one, and one that says why where there is none. A run's curve, settings, policy and the policy's
network are {task}__{algorithm}__{seed}.csv, .json, .npz and .msgpack, with __2 and so on behind
that where several have the name. Each command has a folder train_*, with its log and, for
protocol.py, runs/. On a CPU, or with --toy, all is small: then it shows only that everything works.
SIGTERM or Ctrl-C end all of it.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import gzip
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("MUJOCO_GL", "disable")

from harness.errors import RunError

COLUMNS = ("job", "env_id", "engine", "num_envs", "num_seeds", "batch_size", "width")
COLUMNS += ("dtype", "precision")
COLUMNS += ("measure", "value", "unit", "note", "at, s", "device")
COMPILING_SHARE, MEASURING_SHARE = 0.45, 0.15  # of the budget, at most; the rest is the training's
LONGEST = 60  # s that one job may measure
CORES = 3  # to a job that compiles
KERNELS = 20  # of a profile, the longest
MARGIN = 30  # s for a training run to stop and save
ROW, COMPILED = "ROW ", "COMPILED"  # lines of a job's standard output
TRAIN = ("flowrl_hlgauss_jax.py --env-id humanoid-run --preset gpu --engine native",)
TOY_TRAIN = (
    "flowrl_jax.py --env-id cartpole-balance --num-envs 4 --hidden-size 8 --batch-size 8"
    " --buffer-size 2000 --learning-starts 200 --log-interval 400 --eval-episodes 1"
    " --eval-interval 4000",
)
Ready = Callable[[], None]  # a job calls it when it has compiled; it returns when it is its turn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, at full size or as a toy."""

    tasks: tuple[str, ...] = (
        "humanoid-run",
        "dog-run",
        "h1-walk",
        "cheetah-run",
    )
    num_envs: tuple[int, ...] = (1024, 4096, 16384)
    batches: tuple[int, ...] = (8192, 2048, 256)
    width: int = 512
    blocks: int = 4
    states: int = 20  # of a comparison
    preset: str = "gpu"
    tests: tuple[str, ...] = ("tests/test_mjx.py", "tests/test_envs.py")
    # of `learning`: environments, seeds at once, batch, width
    learning: tuple[tuple[int, int, int, int], ...] = (
        (512, 1, 2048, 512),
        (64, 1, 512, 128),
        (64, 5, 512, 128),
        (512, 1, 8192, 512),
        (512, 1, 512, 512),
    )


TOY = Sizes(
    ("cartpole-balance",), (4,), (8,), 8, 1, 2, "cpu", ("tests/test_lqr.py",), ((4, 2, 8, 8),)
)
PRECISIONS = (("float32", "tensorfloat32"), ("bfloat16", "highest"), ("float32", "highest"))


# --------------------------------------------------------------------------------- jobs, each alone
def versions(sizes: Sizes, ready: Ready) -> Iterator[dict]:
    """Versions, the device, its memory and its driver."""
    import jax

    from harness import machine

    device = jax.devices()[0]
    yield {"measure": "device", "value": device.device_kind, "note": device.platform}
    for name, version in machine.versions().items():
        yield {"measure": f"version of {name}", "value": version}
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


def parity(sizes: Sizes, ready: Ready, env_id: str, engine: str) -> Iterator[dict]:
    """The largest differences to the original, as benchmarks/parity.py."""
    from benchmarks import parity

    found, _ = parity.measure(env_id, engine, sizes.states)
    for measure in ("max_rel_obs", "max_abs_obs", "max_abs_reward", "ends_that_differ"):
        yield {"measure": measure, "value": f"{getattr(found, measure):.2g}"}


def tests(sizes: Sizes, ready: Ready) -> Iterator[dict]:
    """How many of the engines' tests pass here, and the names of those that do not."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "-rfE", *sizes.tests]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    lines = (done.stdout.strip() or done.stderr.strip() or "no word").splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"measure": "failed", "note": line[:300]}
    yield {"measure": " ".join(sizes.tests), "value": lines[-1].strip("= ")[:200]}


def environments(
    sizes: Sizes, ready: Ready, env_id: str, engine: str, num_envs: int
) -> Iterator[dict]:
    """Control steps a second of `env.step` in a compiled loop."""
    import jax

    import envs
    from benchmarks import throughput

    env = envs.make(env_id, num_envs, engine)
    shape = (16, num_envs, env.action_size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0)
    contender = {"ours": throughput.ours(env, env.reset(jax.random.key(0)), actions)}
    seconds = throughput.interleaved(contender, sizes.blocks, ready)["ours"]
    yield {"measure": "env.step", "value": f"{1e3 * throughput.median(seconds):.4g}", "unit": "ms"}
    rate = throughput.number(num_envs / throughput.median(seconds))
    yield {"measure": "env.step", "value": rate, "unit": "steps/s"}


def updates(
    sizes: Sizes, ready: Ready, dtype: str, precision: str, batch_size: int
) -> Iterator[dict]:
    """Updates a second, and the share of what a matrix product of the same precision reaches."""
    from benchmarks import throughput

    row = throughput.measure_update(batch_size, sizes.width, dtype, sizes.blocks, precision, ready)
    same = {"width": sizes.width}
    yield same | {"measure": "update", "value": row["updates"], "unit": "updates/s"}
    yield same | {"measure": "update", "value": row["GFLOP/s"], "unit": "GFLOP/s"}
    rate = row["GFLOP/s of a product"]
    yield same | {"measure": "matrix product", "value": rate, "unit": "GFLOP/s"}


def loop(sizes: Sizes, ready: Ready, env_id: str, engine: str) -> Iterator[dict]:
    """The training loop beside its parts, and the memory that it took."""
    import jax

    from benchmarks import throughput

    flags = {"engine": engine}
    if sizes is TOY:
        flags |= {"num_envs": 4, "hidden_size": 8, "batch_size": 8, "buffer_size": 2000}
    row = throughput.measure_loop("", env_id, sizes.preset, flags, sizes.blocks, ready)
    for measure in ("env ms", "updates ms", "loop ms", "steps/s", "updates/s", "ratio"):
        yield {"measure": measure, "value": row[measure]}
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        yield {"measure": "peak memory", "value": f"{peak / 2**30:.2f}", "unit": "GiB"}


def learning(
    sizes: Sizes, ready: Ready, num_envs: int, num_seeds: int, batch_size: int, width: int
) -> Iterator[dict]:
    """`flowrl_hlgauss_jax.py`: drawing and 8 updates, a step with them, and what its kernels take.

    On `native`. With several seeds the learners are one program, as --num-seeds makes them; the
    replay is one for all of them, and the step of environments and the kernels are left out.
    """
    import jax
    import jax.numpy as jnp

    import flowrl_hlgauss_jax as program
    from benchmarks import throughput

    flags = {"engine": "native", "recent_window": 16_384}
    flags |= {"num_envs": num_envs, "batch_size": batch_size, "hidden_size": width}
    env, args, state = throughput.with_full_replay(program, sizes.tasks[0], sizes.preset, flags)
    args = program.for_task(args, env)

    def learn(learner, ring, key):
        batches = program.draw_batches(key, ring, args)
        return program.flowrl.learn(learner, *batches, args, program.update)[0]

    def seeds(carry, i):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(2), i), num_seeds)
        learners, ring = carry
        if num_seeds == 1:
            return learn(learners, ring, keys[0]), ring
        return jax.vmap(learn, in_axes=(0, None, 0))(learners, ring, keys), ring

    learners = state.learner
    if num_seeds > 1:
        learners = jax.tree.map(lambda x: jnp.stack([x] * num_seeds), learners)
    contenders = {"updates": throughput.repeated(seeds, (learners, state.replay))}
    if num_seeds == 1:
        contenders["step"] = throughput.repeated(
            lambda s, _: program.train_step(s, env=env, args=args)[0], state
        )
    seconds = throughput.interleaved(contenders, sizes.blocks, ready)
    for name, found in seconds.items():
        each = throughput.median(found)
        note = f"{args.updates_per_step} updates; {1e3 * min(found):.4g} to {1e3 * max(found):.4g}"
        yield {"measure": name, "value": f"{1e3 * each:.4g}", "unit": "ms", "note": note}
        rate = throughput.number(args.updates_per_step * num_seeds / each)
        yield {"measure": name, "value": rate, "unit": "updates/s"}
    if num_seeds == 1:
        yield from kernels(contenders["updates"], 5)


def kernels(timed: Callable[[int], float], rounds: int) -> Iterator[dict]:
    """By JAX's profiler, of a round: what ran on the device in all, and the KERNELS longest."""
    import jax

    total, count = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            timed(rounds)
        (path,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    names = [event for event in events if event.get("ph") == "M"]  # of processes and their threads
    processes = {e["pid"]: e["args"]["name"] for e in names if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in names if e["name"] == "thread_name"}
    for event in events:
        thread = threads.get((event.get("pid"), event.get("tid")), "")
        on_device = "device" in processes.get(event.get("pid"), "") and "Stream" in thread
        if event.get("ph") == "X" and on_device:
            total[event["name"]] += event["dur"] / rounds
            count[event["name"]] += 1 / rounds
    note = f"{sum(count.values()):.0f} times"
    yield {"measure": "kernels", "value": f"{sum(total.values()):.4g}", "unit": "us", "note": note}
    for name, us in total.most_common(KERNELS):
        note = f"{count[name]:.4g} times"
        yield {"measure": f"kernel {name}"[:80], "value": f"{us:.4g}", "unit": "us", "note": note}


JOBS = {f.__name__: f for f in (versions, parity, tests, environments, updates, learning, loop)}


def planned(sizes: Sizes, engines: list[str]) -> Iterator[tuple[str, dict]]:
    """Names of jobs and their arguments, the most important and the longest to compile first."""
    first, *others = sizes.tasks
    most, *more = sizes.num_envs
    every = tuple(dict.fromkeys([*engines, "native"]))

    def env(env_id: str, num_envs: int, names: tuple[str, ...] | list[str] = engines):
        for name in names:
            yield "environments", {"env_id": env_id, "engine": name, "num_envs": num_envs}

    yield "versions", {}
    yield from env(first, most, every)
    yield from (("loop", {"env_id": first, "engine": engine}) for engine in engines)
    for dtype, precision in PRECISIONS:
        for batch_size in sizes.batches:
            yield "updates", {"dtype": dtype, "precision": precision, "batch_size": batch_size}
    for case in sizes.learning:
        names = ("num_envs", "num_seeds", "batch_size", "width")
        yield "learning", dict(zip(names, case, strict=True))
    for env_id in sizes.tasks:
        yield from (("parity", {"env_id": env_id, "engine": engine}) for engine in every)
    for num_envs in more:
        yield from env(first, num_envs)
    for env_id in others:
        yield from env(env_id, most)
    yield "tests", {}


# ------------------------------------------------------------------------------------- the parent
class Table:
    """accelerator.csv, written row by row."""

    def __init__(self, path: pathlib.Path):
        self.device, self._began, self._lock = "", time.monotonic(), threading.Lock()
        self.kept: set[str] = set()  # names of the training runs that were collected
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="")
        self._writer.writeheader()

    def add(self, job: str, arguments: dict, row: dict) -> None:
        """Writes and prints one result."""
        with self._lock:
            if row.get("measure") == "device":
                self.device = row["value"]
            named = {name: value for name, value in arguments.items() if name in COLUMNS}
            row = {"job": job} | named | row | {"device": self.device}
            row["at, s"] = f"{time.monotonic() - self._began:.0f}"
            self._writer.writerow(row)
            self._file.flush()
            print(
                *[f"{k} {v}" for k, v in row.items() if v not in ("", None)], sep="  ", flush=True
            )


class Job:
    """A job's process and the thread that puts its rows into the table."""

    def __init__(self, table: Table, name: str, arguments: dict, toy: bool):
        self._table, self._name, self._arguments, self._why = table, name, arguments, ""
        self.compiled, self.over = threading.Event(), threading.Event()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        command = [sys.executable, str(HERE / "accelerator.py"), "--job", name]
        self._process = subprocess.Popen(
            [*command, json.dumps(arguments), *["--toy"] * toy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that what it has started ends with it
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # they share the device
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            if line.startswith(ROW):
                self._table.add(self._name, self._arguments, json.loads(line.removeprefix(ROW)))
            elif line.startswith(COMPILED):
                self.compiled.set()
        if self._process.wait():
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no word"])[-1]
            why = self._why or f"not measured: {last[:300]}"
            self._table.add(self._name, self._arguments, {"note": why})
        self.over.set()

    def measure(self, seconds: float) -> None:
        """Lets it measure, for so long at most."""
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        if not self.over.wait(seconds):
            self.stop(f"not measured: not over after {seconds:.0f} s")

    def stop(self, why: str) -> None:
        """Ends it; its row says why."""
        self._why = why
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(self._process.pid, signal.SIGKILL)  # a compiler hears nothing else
        self.over.wait()


def run_jobs(table: Table, jobs: list, compile_until: float, until: float, toy: bool) -> None:
    """Compiles some at a time, then measures one after the other."""
    started: list[Job] = []
    waiting, at_once = list(jobs), max(1, len(os.sched_getaffinity(0)) // CORES)
    try:
        while time.monotonic() < compile_until:
            busy = [job for job in started if not (job.compiled.is_set() or job.over.is_set())]
            if not waiting and not busy:
                break
            if waiting and len(busy) < at_once:
                started.append(Job(table, *waiting.pop(0), toy))
            else:
                time.sleep(0.2)
        for name, arguments in waiting:
            table.add(name, arguments, {"note": "not measured: the time was over"})
        for job in started:
            if not (job.compiled.is_set() or job.over.is_set()):
                job.stop("not measured: it had not compiled in time")
        for job in started:
            left = until - time.monotonic()
            if left > 1 and not job.over.is_set():
                job.measure(min(LONGEST, left))
    finally:  # those that have had no turn, and all of them after a signal
        for job in started:
            if not job.over.is_set():
                job.stop("not measured: the time was over")


def train(table: Table, commands: list[str], out: pathlib.Path, deadline: float) -> None:
    """Runs side by side until MARGIN before the deadline; what they leave goes to `out`.

    Several share the cores, but for what their own flags say, and the device's memory.
    """
    processes, folders, shared = [], [], []
    environment = dict(os.environ)
    if len(commands) > 1:
        shared = ["--num-threads", str(max(1, len(os.sched_getaffinity(0)) // len(commands)))]
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with contextlib.ExitStack() as stack:
        try:
            for command in commands:
                folder = pathlib.Path(tempfile.mkdtemp(dir=out, prefix="train_"))
                log = stack.enter_context((folder / "log").open("w"))
                program, *flags = shlex.split(command)
                whole = [sys.executable, str(HERE.parent / program), *shared, *flags]
                whole += ["--no-checkpoint-replay", "--runs-dir", str(folder / "runs")]
                processes.append(
                    subprocess.Popen(whole, stdout=log, stderr=subprocess.STDOUT, env=environment)
                )
                folders.append(folder)
            for wait, end in ((0, deadline - MARGIN), (1, deadline + MARGIN)):
                for process in processes:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(max(wait, end - time.monotonic()))
                for process in processes:
                    process.terminate()  # it stops and saves; one that is over hears nothing
        finally:  # also after a signal: nothing may run on
            for process in processes:
                process.kill()
                process.wait()
    for command, process, folder in zip(commands, processes, folders, strict=True):
        lost = [collect(table, run, out) for run in sorted(folder.glob("runs/*/"))]
        text = " ".join((folder / "log").read_text().replace("\r", "\n").splitlines()[-1:])
        failed = f"exit code {process.returncode}: {text[:150]}"
        notes = [failed if process.returncode else "finished", folder.name, *filter(None, lost)]
        table.add("train", {}, {"measure": command, "note": "; ".join(notes)})


def collect(table: Table, folder: pathlib.Path, out: pathlib.Path) -> str:
    """A run's curve, settings and policy, under a name of its own in `out`; or what was lost."""
    from benchmarks import policies

    first = kept = "__".join(folder.name.split("__")[:3])
    k = 1
    while kept in table.kept:
        k, kept = k + 1, f"{first}__{k + 1}"
    table.kept.add(kept)
    for name in ("metrics.csv", "config.json", "policy.npz"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / f"{kept}{pathlib.Path(name).suffix}")
    try:
        (out / f"{kept}.msgpack").write_bytes(policies.network_alone(folder))
    except (OSError, ValueError, KeyError, RunError) as error:  # stopped before it saved any
        return f"{kept}: no policy: {error}"[:150]
    return ""


def run_one(name: str, arguments: dict, sizes: Sizes) -> None:
    """A job, in its own process: rows go to standard output, its turn comes by standard input."""
    from harness import machine

    machine.enable_compilation_cache()

    def ready() -> None:
        print(COMPILED, flush=True)
        sys.stdin.readline()

    for row in JOBS[name](sizes, ready, **arguments):
        print(ROW + json.dumps(row), flush=True)


def main() -> None:
    """Runs everything, or with --job one job in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "accelerator")
    parser.add_argument("--toy", action="store_true", help="small sizes; on a CPU always")
    parser.add_argument("--train", nargs="+", help="programs with their flags, to train")
    parser.add_argument(
        "--shares", nargs="+", type=float, help="of --train, each one's; else equal"
    )
    parser.add_argument("--together", action="store_true", help="--train side by side, not in turn")
    parser.add_argument("--no-train", action="store_true", help="all of the time for the jobs")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=[*JOBS], help="else all")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if args.job:
        run_one(args.job[0], json.loads(args.job[1]), TOY if args.toy else Sizes())
        return
    if args.minutes <= 0:
        parser.error(f"--minutes: needs more than 0, got {args.minutes:g}")
    if args.shares and len(args.shares) != len(args.train or TRAIN):
        parser.error("--shares: needs a number for each of --train")
    if args.shares and min(args.shares) <= 0:
        parser.error(f"--shares: needs more than 0, got {min(args.shares):g}")
    if args.together and args.shares:
        parser.error("--shares: is for runs in turn; leave out --together or this")
    if args.no_train and (args.train or args.shares or args.together):
        parser.error("--no-train: is in conflict with --train, --shares and --together")
    code = "import jax, envs; print(jax.default_backend(), envs._importable('warp'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True
    )
    backend, has_warp = found.stdout.split()[-2:]
    toy = args.toy or backend == "cpu"
    sizes, engines = (TOY, ["native"]) if toy else (Sizes(), ["mjx"])
    engines += ["warp"] * (has_warp == "True" and backend == "gpu")
    runs = () if args.no_train else tuple(args.train or (TOY_TRAIN if toy else TRAIN))
    args.out.mkdir(parents=True, exist_ok=True)
    budget = 60 * args.minutes
    jobs_share = COMPILING_SHARE + MEASURING_SHARE if runs else 1.0  # of the budget, in their ratio
    until = began + jobs_share * budget
    compile_until = began + COMPILING_SHARE / (COMPILING_SHARE + MEASURING_SHARE) * (until - began)
    table = Table(args.out / "accelerator.csv")
    jobs = list(planned(sizes, engines))
    jobs = [(name, arguments) for name, arguments in jobs if name in args.jobs]
    run_jobs(table, jobs, compile_until, until, toy)
    now = time.monotonic()
    left = began + budget - now
    shares = args.shares or [1.0] * len(runs)
    if args.together and runs:
        train(table, list(runs), args.out, now + left)
        return
    for k, command in enumerate(runs):
        train(table, [command], args.out, now + left * sum(shares[: k + 1]) / sum(shares))


if __name__ == "__main__":
    main()
