"""The run folder: configuration, metrics, progress, signals. It knows no algorithm.

runs/{env_id}__{algorithm}__{seed}__{time}/
    config.json            arguments, versions, git commit, hardware, status
    metrics.csv            one row a log call; a cell is empty where a metric was not logged
    events.out.tfevents.*  the same for TensorBoard
    learning_curve.png     drawn by `plot_learning_curve`
    wandb/                 what `--track` keeps on disk
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import tensorboardX
import tyro
from tqdm import tqdm

import parallel

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy")
PACKAGES += ("mujoco", "mujoco-mjx", "dm-control", "tensorboardX", "tyro")
PACKAGES += ("brax", "playground")  # optional; null where absent
CURVES = {  # metrics.csv column -> label and colour in learning_curve.png
    "eval/episodic_return_sampled": ("evaluation, sampled x0", "#0072B2"),
    "eval/episodic_return_deterministic": ("evaluation, x0 = 0", "#D55E00"),
    "charts/episodic_return": ("training episodes", "#009E73"),
}
PLAIN_INTERVAL = 30.0  # seconds between progress lines where there is no terminal
EVALUATION_EPISODES = 100  # what --eval-episodes is with --evaluate, unless given
EVALUATION_FLAGS = ("evaluate", "eval_episodes", "engine", "seed", "num_threads", "warp_headroom")
EVALUATION_FLAGS += ("capture_video",)
STOP_GRACE = 3.0  # seconds that a second signal leaves Python to end before the process is ended


class RunError(Exception):
    """Bad input from the user. Its text is one line and names the flag to change."""


class Run:
    """One run's folder. As a context manager it notes how the run ended.

    `folder`: the run's Path. `config`: what config.json holds.
    """

    def __init__(self, folder: Path, config: dict):
        self.folder = folder
        self.config = config
        self._columns = ["step"]
        self._rows: list[dict[str, str]] = []
        self._csv = None
        self._write_config()
        # Its only warning is for NaN, which is the rule until the first episode has ended.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._tensorboard = tensorboardX.SummaryWriter(str(folder), flush_secs=10)
        rows = "\n".join(f"|{name}|{value}|" for name, value in config["args"].items())
        self._tensorboard.add_text("hyperparameters", f"|argument|value|\n|-|-|\n{rows}")
        self._tracker = None
        if config["args"].get("track"):
            try:
                self._tracker = _start_tracking(self)
            except RunError as error:
                self.finish("failed", _one_line(error))
                raise

    @classmethod
    def create(cls, runs_dir: Path, env_id: str, algorithm: str, seed: int, config: dict) -> "Run":
        """Makes a new folder in `runs_dir` and writes config.json, with `config` as its "args".

        Raises RunError if the folder cannot be made, or if Weights & Biases refuses "track".
        """
        name = f"{env_id}__{algorithm}__{seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        name = re.sub(r"[^\w.=+-]+", "-", name)
        folder = _make_folder(Path(runs_dir), name)
        return cls(
            folder,
            {
                "args": config,
                "versions": _versions(),
                "git": _git_state(Path(__file__).resolve().parent),
                "hardware": _hardware(),
                "command": sys.argv,
                "started": _now(),
                "status": "running",
            },
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one row of scalars at `step` environment steps, on disk when this returns.

        NaN and infinities are written as they are.
        """
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, float(value), step)
        if self._tracker is not None:
            self._tracker.log({k: float(v) for k, v in metrics.items()}, step=int(step))
        row = {"step": str(int(step))}
        row |= {name: format(float(value), ".9g") for name, value in metrics.items()}
        self._rows.append(row)
        new_columns = [name for name in row if name not in self._columns]
        if new_columns or self._csv is None:
            self._columns += new_columns
            self._rewrite_csv()
        else:
            csv.DictWriter(self._csv, self._columns, restval="").writerow(row)
            self._csv.flush()

    def save_bytes(self, name: str, data: bytes) -> Path:
        """Writes `folder/name` whole or not at all, and returns its path."""
        return _replace(self.folder / name, data)

    def finish(self, status: str, error: str | None = None) -> None:
        """Notes "finished", "interrupted" or "failed", and why, and closes the files.

        The first call wins. error: one line, or None; config.json has the key only with a line.
        """
        if self.config["status"] != "running":
            return
        self.config |= {"status": status, "ended": _now()} | ({"error": error} if error else {})
        self._write_config()
        self._tensorboard.close()
        if self._csv is not None:
            self._csv.close()
        if self._tracker is not None:
            self._tracker.finish(exit_code=0 if status == "finished" else 1)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "finished" if kind is None else "interrupted" if interrupted else "failed"
        self.finish(status, _one_line(error) if status == "failed" else None)

    def _write_config(self) -> None:
        text = json.dumps(self.config, indent=2, default=str) + "\n"
        _replace(self.folder / "config.json", text.encode())

    def _rewrite_csv(self) -> None:
        """A metric seen for the first time adds a column, so the file is written anew."""
        if self._csv is not None:
            self._csv.close()
        path, partial = self.folder / "metrics.csv", self.folder / "metrics.csv.partial"
        self._csv = partial.open("w", newline="")
        writer = csv.DictWriter(self._csv, self._columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        self._csv.flush()
        os.replace(partial, path)  # the open file goes with its name


def _one_line(error: BaseException) -> str:
    """`Type: first line of the message`, at most 300 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def check_tracking() -> None:
    """Raises RunError if Weights & Biases is not installed, or wants a login that it has not."""
    try:
        import wandb
    except ImportError:
        pip = "`pip install wandb==0.31.0`"
        raise RunError(f"--track: needs the package wandb; {pip}") from None
    offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
    if not offline and not wandb.login(prompt=False):
        fix = "`wandb login`, or WANDB_MODE=offline to keep it on disk"
        raise RunError(f"--track: Weights & Biases has no API key; {fix}")


def _start_tracking(run: Run):
    """A run of Weights & Biases, in the folder of ours and with its name."""
    import wandb

    try:
        tracker = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "flowrl_jax"),
            name=run.folder.name,
            dir=run.folder,
            config=run.config["args"],
            reinit="create_new",  # several seeds are several runs at once
            settings=wandb.Settings(console="off", silent=True),  # progress is not to be captured
        )
    except (wandb.Error, OSError) as error:
        raise RunError(f"--track: {_one_line(error)}; WANDB_MODE=offline needs no server") from None
    run.config["wandb"] = tracker.id
    run._write_config()
    return tracker


def check_writable(runs_dir: Path) -> None:
    """Raises RunError if no run folder could be made in `runs_dir`. Leaves nothing behind."""
    try:
        parent = Path(runs_dir)
        while not parent.exists() and not parent.is_symlink():
            parent = parent.parent
        os.rmdir(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise _unwritable(runs_dir, error) from None


def _make_folder(runs_dir: Path, name: str) -> Path:
    """Makes runs_dir/name, or name-2, name-3 ... for runs that began in the same second."""
    attempt = 1
    while True:
        folder = runs_dir / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except OSError as error:
            if not folder.is_dir():
                raise _unwritable(runs_dir, error) from None
            attempt += 1


def _unwritable(runs_dir: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write a run folder in '{runs_dir}' ({error.strerror}): "
        "choose another with --runs-dir"
    )


def _replace(path: Path, data: bytes) -> Path:
    """Writes `path` so that a reader, or a kill, sees the old file or the new and no other."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


# --- what config.json says of the machine ---------------------------------------------------------


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git_state(folder: Path) -> dict | None:
    """Commit of the code in `folder` and whether its tracked files were changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a repository, and this one
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware() -> dict:
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = found[1] if found else cpu
    except OSError:
        pass
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return {
        "cpu": cpu,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(_physical_memory() / 2**30, 1),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    }


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_memory_bytes() -> int | None:
    """Free bytes on JAX's default device: an accelerator's own, or the host's. None if unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        free = int(found[1]) * 1024
    except (OSError, TypeError):  # not Linux
        free = _physical_memory()
    return min(free, _cgroup_free())


def _cgroup_free() -> float:
    """Bytes that a container's limit leaves (cgroup v2); infinity without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        cache = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        return limit - int((group / "memory.current").read_text()) + int(cache[1])
    except (OSError, ValueError, TypeError):  # no such file, or the word "max"
        return math.inf


def enable_compilation_cache(path: Path | None = None) -> Path | None:
    """Turns on JAX's persistent compilation cache and returns its folder, or None without one.

    The folder is `path`, else $JAX_COMPILATION_CACHE_DIR, else ~/.cache/flowrl_jax/xla. One that
    cannot be written costs compile time only: it is said on stderr, and training goes on.
    """
    path = Path(path or os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/flowrl_jax/xla")
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(dir=path))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        print(f"no compilation cache: {error}", file=sys.stderr)
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # also the small
    return path


# --- what the user sees ---------------------------------------------------------------------------


def plot_learning_curve(folder: Path) -> Path:
    """Draws `folder`/metrics.csv: return against environment steps, in learning_curve.png.

    A column `<name>_std` beside one of CURVES becomes a band of one standard deviation.
    """
    from matplotlib.figure import Figure

    config = json.loads((folder / "config.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for column, (label, colour) in CURVES.items():
        points = [
            (int(row["step"]), float(row[column]), float(row.get(f"{column}_std") or 0.0))
            for row in rows
            if math.isfinite(float(row.get(column) or "nan"))
        ]
        if not points:
            continue
        steps, mean, std = zip(*points, strict=True)
        evaluation = column.startswith("eval/")
        marker = "o" if evaluation and len(points) < 60 else None
        width = 2.0 if evaluation else 1.4
        axes.plot(steps, mean, color=colour, label=label, lw=width, marker=marker, ms=3)
        low = [centre - spread for centre, spread in zip(mean, std, strict=True)]
        high = [centre + spread for centre, spread in zip(mean, std, strict=True)]
        if any(std):
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
    arguments = config["args"]
    axes.set_title(f"{arguments.get('env_id', folder.name)}, seed {arguments.get('seed', '?')}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="best")
    figure.savefig(folder / "learning_curve.png", dpi=120)
    return folder / "learning_curve.png"


class _Lines:
    """Turns tqdm's redrawing into lines, for a log file."""

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        if text.strip():
            self._file.write(text.strip() + "\n")

    def flush(self) -> None:
        self._file.flush()


class Progress:
    """A bar over environment steps on stderr; on no terminal, a line every PLAIN_INTERVAL."""

    def __init__(self, total: int, initial: int = 0, shown: bool = True):
        terminal = sys.stderr.isatty()
        bar = "{bar}| " if terminal else ""
        self._started = False
        self._bar = tqdm(
            total=total,
            initial=initial,
            file=sys.stderr if terminal else _Lines(sys.stderr),
            mininterval=0.1 if terminal else PLAIN_INTERVAL,
            miniters=1,
            smoothing=0.1,
            unit_scale=True,
            dynamic_ncols=terminal,
            disable=not shown,
            delay=math.inf,  # nothing is drawn before the first update
            bar_format="{percentage:3.0f}% " + bar + "{n_fmt}/{total_fmt} steps"
            " [{elapsed}<{remaining}{postfix}]",
        )

    def update(self, step: int, return_: float, sps: float, ups: float) -> None:
        """Moves to `step`; return_ may be NaN, sps and ups are steps and updates per second.

        The time left is estimated from the call after the first one with updates.
        """
        shown = "-" if math.isnan(return_) else f"{return_:.1f}"
        rates = f"return {shown}, {sps:,.0f} steps/s, {ups:,.0f} updates/s"
        self._bar.set_postfix_str(rates, refresh=False)
        if self._started:
            self._bar.update(step - self._bar.n)
            return
        self._started = ups > 0  # steps of random actions say nothing of the time left
        self._bar.delay = 0
        self._bar.initial = self._bar.n = self._bar.last_print_n = step
        self._bar.unpause()
        self._bar.refresh()

    def write(self, text: str) -> None:
        """Prints a line on stdout, above the bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()


class StopSignal:
    """Turns SIGINT and SIGTERM into a request to stop after the present chunk.

    `requested` is the signal's number, or None. A second signal raises KeyboardInterrupt, and ends
    the process if Python cannot raise it within STOP_GRACE seconds. Main thread only.

    Python runs signal handlers between bytecodes, so never while XLA compiles or a chunk runs.
    Hence a thread too: it hears of a signal at once, by `signal.set_wakeup_fd`.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested: int | None = None
        self._handled = 0

    @property
    def exit_code(self) -> int:
        """What the shell expects of a program stopped so: 130, 143, or 0 if it was not."""
        return 0 if self.requested is None else 128 + self.requested

    def __enter__(self) -> "StopSignal":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno())
        self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._over.set()
        self._writer.close()  # the watcher's recv returns b""
        self._watcher.join()
        self._reader.close()

    def _handle(self, number: int, frame) -> None:
        self.requested = self.requested or number
        self._handled += 1
        if self._handled > 1:
            raise KeyboardInterrupt(number)

    def _watch(self) -> None:
        heard = 0
        while byte := self._reader.recv(1):
            number = byte[0]
            if number not in self.SIGNALS:
                continue
            heard += 1
            self.requested = self.requested or number
            if heard == 1:
                name = signal.Signals(number).name
                text = f"\n{name}: stopping after the present chunk; once more to stop now\n"
                os.write(2, text.encode())
            elif not self._over.wait(STOP_GRACE):
                os._exit(128 + number)


def parse_args(
    kind: type, presets: dict[str, dict], automatic: str, arguments: list[str] | None = None
):
    """Parses the command line into the dataclass `kind`: preset first, then the flags over it.

    Args:
      kind: a frozen dataclass with a field `preset`; tyro reads its fields, types and comments.
      presets: preset name -> the fields that it changes.
      automatic: the preset that "auto" stands for on this machine.
      arguments: the command line without the program's name; None takes this process's. With
        --evaluate FOLDER the run in that folder takes the preset's place.

    Raises:
      RunError: an unknown preset or flag, or a value that does not parse; with --evaluate also a
        folder without a run, or a flag that its run has settled.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="auto", nargs="?")
    chooser.add_argument("--evaluate", nargs="?", const="")
    chosen = chooser.parse_known_args(arguments)[0]
    name = chosen.preset
    if name not in ("auto", *presets):
        name = "nothing" if name is None else repr(name)
        raise RunError(f"--preset: {name} is not one of auto, {', '.join(presets)}")
    if chosen.evaluate is not None:
        return _evaluation_args(kind, arguments, chosen.evaluate)
    name = automatic if name == "auto" else name
    default = dataclasses.replace(kind(), **presets[name])
    return dataclasses.replace(_parse(kind, arguments, default), preset=name)


def _evaluation_args(kind: type, arguments: list[str], folder: str):
    """The arguments of the run in `folder`, with EVALUATION_FLAGS from the command line."""
    if not folder:
        raise RunError("--evaluate: needs a run folder")
    try:
        default = read_args(kind, folder)
    except RunError as error:
        raise RunError(f"--evaluate: {error}") from None
    fresh = dict(evaluate=folder, eval_episodes=EVALUATION_EPISODES, capture_video=False)
    default = dataclasses.replace(default, **fresh)
    args = _parse(kind, arguments, default)
    for name in (field.name for field in dataclasses.fields(kind)):
        value = getattr(args, name)
        if name not in EVALUATION_FLAGS and value != getattr(default, name):
            flag = "--" + name.replace("_", "-")
            raise RunError(f"{flag}: --evaluate takes it from the run folder; leave it out")
    return args


def read_args(kind: type, folder: str | Path):
    """The arguments that a run was made with, from its config.json, as the dataclass `kind`.

    Raises RunError if there are none, or if another version of this program wrote them.
    """
    try:
        args = json.loads(Path(folder, "config.json").read_text())["args"]
        own = dataclasses.asdict(kind())
        unknown = [name for name in args if name not in own]
        wrong = [k for k in args if k in own and not _same_kind(args[k], own[k])]
        if unknown or wrong:
            which = ", ".join(unknown or wrong)
            raise RunError(f"{folder}: config.json is another version's or damaged: {which}")
        return kind(**args)
    except OSError as error:
        raise RunError(f"{folder} is no run folder: config.json: {error.strerror}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{folder}: config.json is damaged ({_one_line(error)})") from None


def _same_kind(value, own) -> bool:
    return type(value) is type(own) or (type(own) is float and type(value) is int)


def _parse(kind: type, arguments: list[str], default):
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise RunError(_first_sentence(complaint.getvalue())) from None


def _first_sentence(boxed: str) -> str:
    """The message inside tyro's box, as one line."""
    lines = boxed.splitlines()
    # Dashes instead of lines where the terminal cannot draw them. The first rule is the box's top.
    rules = [i for i, line in enumerate(lines) if re.search("─{3}|-{3}", line)] or [-1]
    inside = lines[rules[0] + 1 : rules[1] if len(rules) > 1 else len(lines)]
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", " ".join(inside)).split())
    return f"{text or 'the command line does not parse'}; see --help"


def check_bounds(args, low: float, high: float, *names: str) -> None:
    """Raises RunError, naming the flag, unless every named field lies in [low, high]."""
    for name in names:
        value = getattr(args, name)
        if not low <= value <= high:  # also false for nan
            flag = "--" + name.replace("_", "-")
            upper = "" if high == math.inf else f" and at most {_number(high)}"
            raise RunError(f"{flag}: needs at least {low:g}{upper}, got {_number(value)}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def count(tree) -> int:
    """Number of numbers in a pytree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree) -> int:
    """Size of a pytree of arrays or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def check_memory(tree, flag: str, copies: float = 1) -> float:
    """Returns the size of `copies` pytrees of arrays, or of their shapes, in GiB.

    Raises RunError, naming `flag`, if the device has not that much free. A part of a pytree is
    less than one copy.
    """
    needed = copies * num_bytes(tree)
    free = device_memory_bytes()
    if free is not None and needed > 0.9 * free:
        sizes = f"it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        raise RunError(f"{flag}: cannot fit: {sizes}; lower it")
    return needed / 2**30


def describe(args, env, networks: dict, state, devices: parallel.Devices) -> str:
    """What is about to run, four lines, and on several devices one on what each has.

    Raises RunError if the replay cannot fit or is smaller than a batch, or if the main process
    cannot write where the run folder will be.

    Args:
      args: has env_id, preset, hidden_size, batch_size, buffer_size, num_seeds, runs_dir. env: a
        vector environment.
      networks: name -> parameters, as arrays or shapes. state: likewise, with fields replay, whose
        `data` are the transitions, and env.
    """
    if devices.is_main:
        check_writable(Path(args.runs_dir))
        if args.track:
            check_tracking()
    copies, replay_data = args.num_seeds, state.replay.data
    gib = check_memory(replay_data, "--buffer-size", copies * devices.share()) / devices.share()
    capacity = jax.tree.leaves(replay_data)[0].shape[0]
    if capacity < args.batch_size:
        needed = f"a batch of {args.batch_size} and {env.num_envs} environments"
        raise RunError(f"--buffer-size: {args.buffer_size} is too small for {needed}; raise it")
    sizes = ", ".join(f"{name} {count(params):,}" for name, params in networks.items())
    several = args.num_seeds > 1
    seeds = f"; each of {args.num_seeds} seeds" if several else ""
    total = f", {gib:.2f} GiB" + (" of all seeds" if several else "")
    env_gib = copies * num_bytes(state.env) / 2**30
    split = [env.num_envs, args.batch_size, capacity]
    each = "{:,} environments, {:,} transitions of a batch, {:,} of the replay"
    each = "\neach device: " + each.format(*(number // devices.count for number in split))
    return (
        f"{devices.describe()}, engine {env.engine}, preset {args.preset}\n"
        f"{args.env_id}: {env.num_envs} environments, {env.observation_size} observations, "
        f"{env.action_size} actions{seeds}\n"
        f"networks: width {args.hidden_size}, parameters: {sizes}\n"
        f"replay: {capacity:,} transitions{total}; environments {env_gib:.3f} GiB"
        + (each if devices.count > 1 else "")
    )


def train(
    each,
    algorithm: str,
    steps_per_chunk: int,
    train_envs: list,
    states: list,
    chunk,
    evaluation,
    save,
    devices: parallel.Devices,
    watch=None,
) -> int:
    """Trains K runs, a seed each, chunk after chunk. Returns the exit code.

    Every run has a folder, with its metrics and what `save` writes. Of several processes the main
    one writes, evaluates and tells; the others wait for it in the next chunk.

    Args:
      each: K dataclasses of arguments, alike but for `seed`, with env_id, total_timesteps,
        eval_interval (in steps), runs_dir.
      algorithm: part of the folder's name.
      steps_per_chunk: environment steps of one run that one chunk takes.
      train_envs: K vector environments, of which `refresh` is called after each chunk, with its
        index from 1, and `success` is the return of an episode that counts as such, or None.
      states: K pytrees that the chunk starts from and donates; their field `learner` is what is
        evaluated and saved, `env` what is refreshed. On several devices K is 1, and what is split
        is split already.
      chunk: state -> (state, metrics, scalars by name), jittable, of which "charts/updates" counts
        updates so far, "charts/episodic_return" is shown, and "charts/nonfinite_losses" ends the
        program unless it is 0.
      evaluation: (learner, k, index) -> name -> returns of some episodes, an array.
      save: (run, learner) -> None.
      devices: what to train on.
      watch: (arguments, run folder) -> None, called of each finished run that has capture_video.

    Raises:
      RunError: a folder cannot be made.
      FloatingPointError: a loss is not finite; it names step, metrics and seed.
    """
    began = time.perf_counter()
    args = each[0]
    num_chunks = -(-args.total_timesteps // steps_per_chunk)
    per_eval = max(1, round(args.eval_interval / steps_per_chunk))
    per_eval = per_eval if args.eval_interval else num_chunks
    print("compiling the training loop ...", flush=True)
    start = time.perf_counter()
    num_runs, state = len(each), devices.place(parallel.stack_seeds(states))
    del states  # the chunk donates a single one
    chunk = devices.program(chunk, state, num_runs).lower(state).compile()
    seconds, gib = time.perf_counter() - start, chunk.memory_analysis().temp_size_in_bytes / 2**30
    print(f"compiled in {seconds:.0f} s; running it takes {gib:.2f} GiB more", flush=True)

    def part(tree, k: int):
        return parallel.of_seed(tree, k, num_runs)

    def learner(k: int):
        return devices.local(part(state.learner, k))

    last_return = math.nan
    with contextlib.ExitStack() as stack:
        folders = [_create(one, algorithm) for one in each] if devices.is_main else []
        for run in folders:
            stack.enter_context(run)
            print(f"run folder {run.folder}", flush=True)
        stop = stack.enter_context(StopSignal())
        total = num_chunks * steps_per_chunk
        progress = stack.enter_context(Progress(total, shown=devices.is_main))
        updates = 0.0
        for index in range(1, num_chunks + 1):
            start, step = time.perf_counter(), index * steps_per_chunk
            state, metrics = chunk(state)
            metrics = _by_run(metrics, num_runs)
            seconds, before = time.perf_counter() - start, updates
            updates = metrics[0]["charts/updates"]
            rates = {"charts/SPS": steps_per_chunk / seconds}
            rates["charts/UPS"] = (updates - before) / seconds
            parts = [e.refresh(part(state.env, k), index) for k, e in enumerate(train_envs)]
            state = state.replace(env=parallel.stack_seeds(parts))
            failed = any(row.get("charts/nonfinite_losses") for row in metrics)
            if (index % per_eval == 0 or index == num_chunks) and not failed:
                if index == min(per_eval, num_chunks):
                    progress.write("evaluating; the first time compiles ...")
                for k, run in enumerate(folders):
                    returns = evaluation(learner(k), k, index)
                    metrics[k] |= _evaluation_metrics(returns, train_envs[0].success)
                    save(run, learner(k))
            rates["charts/seconds"] = time.perf_counter() - began
            for run, row in zip(folders, metrics, strict=devices.is_main):
                if not failed:  # then nan is a mean over nothing (no episode ended): left out
                    row = {name: value for name, value in row.items() if not math.isnan(value)}
                run.log(step, row | rates)
            _require_finite_losses(step, metrics, each)
            returns = [row["charts/episodic_return"] for row in metrics if _episodes_ended(row)]
            last_return = sum(returns) / len(returns) if returns else last_return
            progress.update(step, last_return, rates["charts/SPS"], rates["charts/UPS"])
            stop.requested = devices.agree(stop.requested or 0) or None
            if stop.requested:
                break
        for k, run in enumerate(folders):
            save(run, learner(k))
            plot_learning_curve(run.folder)
            run.finish("interrupted" if stop.requested else "finished")
    for one, run in zip(each, folders, strict=devices.is_main):
        if watch and one.capture_video and not stop.requested:  # who stops a run does not wait
            watch(one, run.folder)
    devices.agree(0)  # the processes leave together
    return stop.exit_code


def _create(args, algorithm: str) -> Run:
    config = dataclasses.asdict(args)
    return Run.create(Path(args.runs_dir), args.env_id, algorithm, args.seed, config)


def _by_run(metrics: dict, num_runs: int) -> list[dict[str, float]]:
    values = {name: np.broadcast_to(value, num_runs) for name, value in metrics.items()}
    return [{name: float(value[k]) for name, value in values.items()} for k in range(num_runs)]


def _episodes_ended(row: dict[str, float]) -> bool:
    return not math.isnan(row.get("charts/episodic_return", math.nan))


def _evaluation_metrics(evaluation: dict, success: float | None) -> dict[str, float]:
    metrics = {}
    for kind, returns in evaluation.items():
        name = f"eval/episodic_return_{kind}"
        metrics |= {name: float(returns.mean()), f"{name}_std": float(returns.std())}
        if success is not None:
            metrics[f"eval/success_{kind}"] = float((returns >= success).mean())
    return metrics


def _require_finite_losses(step: int, metrics: list[dict[str, float]], each: list) -> None:
    for row, args in zip(metrics, each, strict=True):
        if row.get("charts/nonfinite_losses"):
            losses = (name for name in row if name.startswith("losses/"))
            bad = [name for name in losses if not math.isfinite(row[name])]
            text = f"not finite at step {step}, seed {args.seed}: {', '.join(bad)}"
            raise FloatingPointError(text)


def preset_for_this_machine() -> str:
    """Returns "cpu" or "gpu", by the device that JAX computes on.

    Raises RunError if JAX cannot start the device that JAX_PLATFORMS asks for.
    """
    try:
        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0]
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise RunError(f"JAX_PLATFORMS={wanted}: JAX cannot start: {reason}; unset it") from None


def exit_code(main, kind: type, presets: dict, *bad_input: type[Exception]) -> int:
    """Returns main(parsed command line)'s exit code, or that of an error told in one line.

    2 for bad input (RunError, and the exceptions `bad_input` that tell the user what to change), 1
    for a loss that is not finite or another process that ended, 128 + signal for a stop that could
    not wait. One of several processes does not return from an error: it ends here.
    """
    try:
        if _asks_for_hosts():
            parallel.connect()
        args = parse_args(kind, presets, preset_for_this_machine())
        enable_compilation_cache()
        return main(args)
    except (RunError, parallel.UsageError, *bad_input) as error:
        code, text = 2, " ".join(f"error: {error}".splitlines())  # a file's name may have several
    except FloatingPointError as error:
        code, text = 1, f"error: {error}; what was saved before stands in the run folder"
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        code, text = 128 + number, "stopped at once; what was saved before stands"
    except Exception as error:
        if not parallel.connected():
            raise
        lost = parallel.is_loss(error)
        code, text = 1, parallel.LOST if lost else traceback.format_exc()
    print(text, file=sys.stderr)
    return parallel.leave(code, wait=code == 2) if parallel.connected() else code


def _asks_for_hosts() -> bool:
    """Whether the command line has --distributed: JAX wants to know before it starts a device."""
    asked = [word for word in sys.argv[1:] if word in ("--distributed", "--no-distributed")]
    return asked[-1:] == ["--distributed"]  # argparse would exit over --distributed=-1
