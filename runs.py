"""The run folder: configuration, metrics, progress, signals. It knows no algorithm.

runs/{env_id}__{algorithm}__{seed}__{time}/
    config.json            arguments, versions, git commit, hardware, status
    metrics.csv            one row a log call; a cell is empty where a metric was not logged
    events.out.tfevents.*  the same for TensorBoard
    learning_curve.png     drawn by `plot_learning_curve`
    checkpoints/           what `--resume` goes on from; see checkpoints.py
    wandb/                 what `--track` keeps on disk
"""

import argparse
import contextlib
import csv
import dataclasses
import errno
import fcntl
import functools
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

import checkpoints
import parallel

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax-checkpoint")
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
# Arguments that a resume may change: none of them changes what a step does.
CHANGEABLE = {"total_timesteps", "num_threads", "warp_headroom", "runs_dir", "on_nonfinite"}
CHANGEABLE |= {"checkpoint_interval", "checkpoint_replay", "keep_checkpoints", "resume"}
CHANGEABLE |= {"track", "capture_video"}
# What depends on the machine too and has to be the same when a run goes on, by the flag for it.
ALIKE = {"engine": "engine {}", "num_devices": "{} devices", "distributed": "{} processes"}
ALIKE |= {"log_interval": "{} steps a chunk"}
# What the system says where a disk takes no more.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class RunError(Exception):
    """Bad input from the user. Its text is one line and names the flag to change."""


class Run:
    """One run's folder. As a context manager it notes how the run ended.

    `folder`: the run's Path. `config`: what config.json holds.
    """

    def __init__(self, folder: Path, config: dict, step: int | None = None):
        """step: of a run that goes on from there; what was logged after it is cut off."""
        self.folder = folder
        self.config = config
        self._lock = lock(folder)
        self._columns, self._rows = ["step"], []
        self._csv = None
        self._write_config()
        self._events = _Events(folder, step)
        if step is None:
            rows = "\n".join(f"|{name}|{value}|" for name, value in config["args"].items())
            self._events.text("hyperparameters", f"|argument|value|\n|-|-|\n{rows}")
        else:
            self._rows = _rows_until(folder / "metrics.csv", step)
            self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
            self._columns = self._columns or ["step"]
            self._rewrite_csv()
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

    @classmethod
    def reopen(cls, folder: Path, step: int, changed: dict) -> "Run":
        """Goes on with a folder after `step`. `changed`: arguments that have other values now.

        config.json keeps what it says of the beginning, and lists under "resumed" step, time,
        command, versions and commit of each resume.

        Raises RunError if another process is at work in the folder.
        """
        config = read_config(folder)
        git = _git_state(Path(__file__).resolve().parent)
        now = {"step": step, "time": _now(), "command": sys.argv}
        config["args"] |= changed
        config["resumed"] = [
            *config.get("resumed", []),
            now | {"versions": _versions(), "git": git},
        ]
        config["status"] = "running"
        for name in ("ended", "error"):
            config.pop(name, None)
        return cls(folder, config, step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one row of scalars at `step` environment steps, on disk when this returns.

        NaN and infinities are written as they are.
        """
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
        self._events.scalars(step, metrics)

    def sync(self) -> None:
        """Has the system write the rows to disk: a checkpoint that comes after relies on them."""
        if self._csv is not None:
            os.fsync(self._csv.fileno())
        self._events.sync()

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
        try:
            self._write_config()
        finally:
            self._events.close()
            if self._csv is not None:
                self._csv.close()
            os.close(self._lock)
            if self._tracker is not None:
                self._tracker.finish(exit_code=0 if status == "finished" else 1)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "finished" if kind is None else "interrupted" if interrupted else "failed"
        try:
            self.finish(status, _one_line(error) if status == "failed" else None)
        except OSError:
            if kind is None:  # else what ended the run is to be told, not that it is not in here
                raise

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


class _Events:
    """A TensorBoard file. Written at once: its own SummaryWriter's thread dies of a full disk."""

    def __init__(self, folder: Path, resumed_from: int | None = None):
        # Its only warning is for NaN, which is the rule until the first episode has ended.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        number = len(list(folder.glob("events.out.tfevents.*")))  # two may begin in one second
        self._writer = EventsWriter(str(folder / "events"), f".{number}")
        if resumed_from is not None:  # readers drop all from this step on in the files before
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=resumed_from + 1, session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(Event(step=int(step), summary=summary.scalar(name, float(value))))
        self._writer.flush()

    def text(self, name: str, markdown: str) -> None:
        self._write(Event(step=0, summary=summary.text(name, markdown)))

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def lock(folder: Path, shared: bool = False) -> int:
    """Holds a run's folder until the process ends or closes the descriptor returned.

    shared: beside others that do so, as the processes of one run do to look whether it is held.

    Raises RunError if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        text = f"--resume: another process is at work on the run in '{folder}'; stop it first"
        raise RunError(text) from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def read_config(folder: str | Path) -> dict:
    """What config.json of a run holds. Raises RunError if there is none that can be read."""
    try:
        config = json.loads(Path(folder, "config.json").read_text())
        return {"args": dict(config["args"]), "status": config["status"]} | config
    except OSError as error:
        raise RunError(f"'{folder}' is no run folder: config.json: {error.strerror}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"'{folder}': config.json is damaged ({_one_line(error)})") from None


def read_args(kind: type, folder: str | Path):
    """The arguments that a run was made with, from its config.json, as the dataclass `kind`.

    Raises RunError if there are none, or if another version of this program wrote them.
    """
    args, own = read_config(folder)["args"], dataclasses.asdict(kind())
    wrong = [name for name in args if name not in own or not _same_kind(args[name], own[name])]
    if wrong:
        which = ", ".join(wrong)
        raise RunError(f"'{folder}': config.json is another version's or damaged: {which}")
    return kind(**args)


def _same_kind(value, own) -> bool:
    return type(value) is type(own) or (type(own) is float and type(value) is int)


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of a metrics.csv up to `step`, as `Run.log` made them; after a kill, too."""
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
    rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(lines)]
    return [row for row in rows if int(row["step"]) <= step]


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
            id=run.config.get("wandb"),  # a resume goes on with the same
            resume="allow",
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

    With --resume FOLDER the arguments are those of the run there, and flags may change few of them.

    Args:
      kind: a frozen dataclass with a field `preset`; tyro reads its fields, types and comments.
      presets: preset name -> the fields that it changes.
      automatic: the preset that "auto" stands for on this machine.
      arguments: the command line without the program's name; None takes this process's. With
        --evaluate FOLDER the run in that folder takes the preset's place.

    Raises:
      RunError: an unknown preset or flag, a value that does not parse, a folder without a run, or a
        flag that the run to resume or to evaluate has settled.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="auto", nargs="?")
    chooser.add_argument("--resume", nargs="?")
    chooser.add_argument("--evaluate", nargs="?", const="")
    chosen = chooser.parse_known_args(arguments)[0]
    if chosen.resume and chosen.evaluate is not None:
        raise RunError("--resume: trains, --evaluate does not; leave one of them out")
    if chosen.resume:
        return _parse_resume(kind, Path(chosen.resume), arguments)
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


def _parse(kind: type, arguments: list[str], default):
    """The command line over `default`. Raises RunError where it does not parse."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise RunError(_first_sentence(complaint.getvalue())) from None


def _parse_resume(kind: type, folder: Path, arguments: list[str]):
    """The arguments of the run in `folder`, with those flags over them that a resume may change.

    Raises RunError: it is no run's folder, it has no checkpoint, is finished or at work, or a flag
    is in conflict with what the run was begun with. Nothing is written.
    """
    try:
        status, was = read_config(folder)["status"], read_args(kind, folder)
    except RunError as error:
        raise RunError(f"--resume: {error}") from None
    # Of several seeds each has its folder, and goes on alone.
    own = dict(num_seeds=1, resume=str(folder), runs_dir=str(folder))
    was = dataclasses.replace(was, **own)
    args = _parse(kind, arguments, was)
    args = dataclasses.replace(args, resume=was.resume, runs_dir=was.runs_dir)
    for name, before in dataclasses.asdict(was).items():
        value, flag = getattr(args, name), "--" + name.replace("_", "-")
        chosen_then = before == "auto"  # what it stood for stands in the checkpoint
        if name == "total_timesteps" and value < before:
            text = f"{_number(value)} is less than the {_number(before)} of the run"
            raise RunError(f"{flag}: {text} in '{folder}'; a resume may only add to them")
        if value != before and value != "auto" and not chosen_then and name not in CHANGEABLE:
            text = f"{value} is in conflict with the run in '{folder}', which has {before}"
            raise RunError(f"{flag}: {text}; leave it out, or begin a new run without --resume")
        args = args if value != "auto" else dataclasses.replace(args, **{name: before})
    if status == "finished" and args.total_timesteps == was.total_timesteps:
        steps = f"all of its {_number(was.total_timesteps)} steps"
        fix = "for more of them raise --total-timesteps"
        raise RunError(f"--resume: the run in '{folder}' has finished {steps}; {fix}")
    if not checkpoints.steps(folder / "checkpoints"):
        raise RunError(f"--resume: '{folder}' has no checkpoint; begin a new run without --resume")
    os.close(lock(folder, shared=True))
    return args


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

    Raises RunError if learner or replay cannot fit, if the replay is smaller than a batch, or if
    the main process cannot write where the run folder will be.

    Args:
      args: has env_id, preset, hidden_size, batch_size, buffer_size, num_seeds, runs_dir. env: a
        vector environment.
      networks: name -> parameters, as arrays or shapes. state: likewise, with fields replay, whose
        `data` are the transitions, learner and env.
    """
    if devices.is_main:
        check_writable(Path(args.runs_dir))
        if args.track:
            check_tracking()
    copies, replay_data = args.num_seeds, state.replay.data
    check_memory(state.learner, "--hidden-size", copies)
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
        eval_interval and checkpoint_interval (in steps), keep_checkpoints, checkpoint_replay,
        on_nonfinite, runs_dir, and resume: "" or, K being 1, the folder of the run to go on with.
      algorithm: part of the folder's name.
      steps_per_chunk: environment steps of one run that one chunk takes.
      train_envs: K vector environments, of which `refresh` is called after each chunk, with its
        index from 1, and `success` is the return of an episode that counts as such, or None.
      states: K pytrees that the chunk starts from and donates; their field `learner` is what is
        evaluated and saved, `env` what is refreshed, `replay` what a checkpoint may leave out, and
        all of it what a checkpoint has. On several devices K is 1, and what is split
        is split already.
      chunk: state -> (state, metrics, scalars by name), jittable, of which "charts/updates" counts
        updates so far, "charts/episodic_return" is shown, and "charts/nonfinite_losses" and
        "charts/nonfinite_rewards" end the program unless they are 0 or on_nonfinite is "skip".
      evaluation: (learner, k, index) -> name -> returns of some episodes, an array.
      save: (run, learner) -> None.
      devices: what to train on.
      watch: (arguments, run folder) -> None, called of each finished run that has capture_video.

    Raises:
      RunError: a folder cannot be made, or a run not be resumed.
      FloatingPointError: a loss, reward or parameter is not finite; it names step, metrics, seed
        and the last good checkpoint.
      checkpoints.SaveError: a checkpoint cannot be written.
    """
    began = time.perf_counter()
    args, engine = each[0], train_envs[0].engine
    num_chunks = -(-args.total_timesteps // steps_per_chunk)
    per_eval = _every(args.eval_interval, steps_per_chunk) or num_chunks
    per_checkpoint = _every(args.checkpoint_interval, steps_per_chunk) or num_chunks
    num_runs, state = len(each), devices.place(parallel.stack_seeds(states))
    del states  # the chunk donates a single one
    keeper = Keeper(each, devices, steps_per_chunk, engine)
    at = keeper.find() if args.resume else Progressed()
    print("compiling the training loop ...", flush=True)
    start = time.perf_counter()
    chunk = devices.program(chunk, state, num_runs).lower(state).compile()
    seconds, gib = time.perf_counter() - start, chunk.memory_analysis().temp_size_in_bytes / 2**30
    print(f"compiled in {seconds:.0f} s; running it takes {gib:.2f} GiB more", flush=True)
    if args.resume:
        state = keeper.restore(state)
    began -= at.seconds

    def learner(k: int):
        return devices.local(parallel.of_seed(state.learner, k, num_runs))

    evaluated = False
    with contextlib.ExitStack() as stack:
        folders = [_open(one, algorithm, at.step) for one in each] if devices.is_main else []
        keeper.folders = [run.folder for run in folders]
        for run in folders:
            stack.enter_context(run)
            print(f"run folder {run.folder}", flush=True)
        stop = stack.enter_context(StopSignal())
        total = num_chunks * steps_per_chunk
        progress = stack.enter_context(Progress(total, at.step, shown=devices.is_main))
        for index in range(at.chunk + 1, num_chunks + 1):
            start, step = time.perf_counter(), index * steps_per_chunk
            state, metrics = chunk(state)
            metrics = _by_run(metrics, num_runs)
            seconds = time.perf_counter() - start
            updates = metrics[0]["charts/updates"]
            rates = {"charts/SPS": steps_per_chunk / seconds}
            rates["charts/UPS"] = (updates - at.updates) / seconds
            envs = [parallel.of_seed(state.env, k, num_runs) for k in range(num_runs)]
            envs = [e.refresh(part, index) for e, part in zip(train_envs, envs, strict=True)]
            state = state.replace(env=parallel.stack_seeds(envs))
            failed = any(_faults(row, one) for row, one in zip(metrics, each, strict=True))
            if (index % per_eval == 0 or index == num_chunks) and not failed:
                if not evaluated:
                    progress.write("evaluating; the first time compiles ...")
                evaluated = True
                for k, run in enumerate(folders):
                    returns = evaluation(learner(k), k, index)
                    metrics[k] |= _evaluation_metrics(returns, train_envs[0].success)
                    save(run, learner(k))
            rates["charts/seconds"] = time.perf_counter() - began
            for run, row in zip(folders, metrics, strict=devices.is_main):
                if not failed:  # then nan is a mean over nothing (no episode ended): left out
                    row = {name: value for name, value in row.items() if not math.isnan(value)}
                run.log(step, row | rates)
            if failed:
                keeper.give_up(step, metrics)
            returns = [row["charts/episodic_return"] for row in metrics if _episodes_ended(row)]
            last_return = sum(returns) / len(returns) if returns else at.last_return
            at = Progressed(step, index, rates["charts/seconds"], updates, last_return)
            progress.update(step, last_return, rates["charts/SPS"], rates["charts/UPS"])
            stop.requested = devices.agree(stop.requested or 0) or None
            if index % per_checkpoint == 0 or index == num_chunks or stop.requested:
                for run in folders:
                    run.sync()
                keeper.save(state, at)
            if stop.requested:
                break
        for k, run in enumerate(folders):
            save(run, learner(k))
            plot_learning_curve(run.folder)
            run.finish("interrupted" if stop.requested else "finished")
    if stop.requested:
        keeper.tell_how_to_resume(at.step)
    for one, run in zip(each, folders, strict=devices.is_main):
        if watch and one.capture_video and not stop.requested:  # who stops a run does not wait
            watch(one, run.folder)
    devices.agree(0)  # the processes leave together
    return stop.exit_code


@dataclasses.dataclass(frozen=True)
class Progressed:
    """How far a run has come."""

    step: int = 0  # environment steps
    chunk: int = 0  # chunks, and so refreshes of the pool of initial states
    seconds: float = 0.0  # charts/seconds
    updates: float = 0.0
    last_return: float = math.nan  # of training episodes, as shown in the progress line


class Keeper:
    """Writes and finds the checkpoints of K runs that train at once.

    `folders`: the runs' folders, in the process that writes.
    """

    def __init__(self, each, devices: parallel.Devices, steps_per_chunk: int, engine: str):
        self.each, self.devices = each, devices
        self.folders: list[Path] = []
        self._found: checkpoints.Checkpoint | None = None
        self._alike = dict(engine=engine, num_devices=devices.count)
        self._alike |= dict(distributed=devices.num_processes, log_interval=steps_per_chunk)

    def save(self, state, at: Progressed) -> None:
        """Writes a checkpoint of each run. All processes call; the state is read, not kept.

        Raises:
          FloatingPointError: something that was learned is not finite: what is on disk stays.
          checkpoints.SaveError: the disk is full.
        """
        for k, args in enumerate(self.each):
            kept = state if args.checkpoint_replay else state.replace(replay=None)
            arrays = checkpoints.flatten(kept, functools.partial(self._own, k=k))
            names = [name for name in arrays if name.startswith("learner/")]
            bad = [name for name in names if not np.isfinite(arrays[name]).all()]
            if bad:
                self._stop(at.step, k, bad[0])
            host = {"run": dataclasses.asdict(at), "replay": args.checkpoint_replay}
            if self.folders:
                folder = self.folders[k] / "checkpoints"
                host |= {"alike": self._alike}
                checkpoints.save(folder, at.step, arrays, host, args.keep_checkpoints)

    def _own(self, leaf, k: int) -> np.ndarray:
        return self.devices.gather(parallel.of_seed(leaf, k, len(self.each)))

    def find(self) -> Progressed:
        """Finds the newest whole checkpoint of the run to resume, and returns how far it is.

        Raises RunError if there is none, or one from other circumstances than these.
        """
        folder, is_main = Path(self.each[0].resume) / "checkpoints", self.devices.is_main
        found = checkpoints.newest(folder) if is_main else None
        step = self.devices.agree(found.host["run"]["chunk"] if found else 0)
        if not step:
            raise RunError(f"--resume: no checkpoint in '{folder}' is whole; begin a new run")
        if not is_main:
            found = checkpoints.at(folder, step * self._alike["log_interval"])
        for name, here in self._alike.items():
            then = found.host["alike"][name]
            if here != then:
                flag, words = "--" + name.replace("_", "-"), ALIKE[name]
                was, now = words.format(then), words.format(here)
                raise RunError(f"{flag}: the run to resume had {was}, here it would have {now}")
        self._found = found
        return Progressed(**found.host["run"])

    def restore(self, state):
        """The state of the checkpoint found, in place of `state`, whose memory is given back.

        Raises RunError if it is of another version of the program.
        """
        folder = self.each[0].resume
        like = state if self._found.host["replay"] else state.replace(replay=None)
        try:
            restored = checkpoints.unflatten(like, self._found.load(), self.devices.scatter)
        except (checkpoints.DamagedError, ValueError) as error:
            raise RunError(f"--resume: cannot go on with '{folder}': {error}") from None
        print(f"going on from {self._found.path}", flush=True)
        if self._found.host["replay"]:
            return restored
        print("the checkpoint is without the replay: updates wait until it has refilled")
        return restored.replace(replay=state.replay)

    def give_up(self, step: int, metrics: list[dict[str, float]]) -> NoReturn:
        """Raises FloatingPointError, naming step, metrics and the last good checkpoint."""
        k = next(k for k, args in enumerate(self.each) if _faults(metrics[k], args))
        self._stop(step, k, ", ".join(_faults(metrics[k], self.each[k])))

    def _stop(self, step: int, k: int, names: str) -> NoReturn:
        text = f"not finite at step {step}, seed {self.each[k].seed}: {names}"
        if not self.folders:  # of several processes one has them, and says the rest
            raise FloatingPointError(text)
        folder = self.folders[k]
        good = checkpoints.steps(folder / "checkpoints")
        last = f"last good checkpoint: step {good[-1]}" if good else "no good checkpoint yet"
        hint = f", {_resume_command(folder)} --on-nonfinite skip" if good else ""
        raise FloatingPointError(f"{text}; {last}{hint}")

    def tell_how_to_resume(self, step: int) -> None:
        """One line a run."""
        for folder in self.folders:
            print(f"stopped at step {step:,}; to go on: {_resume_command(folder)}", flush=True)


def _every(interval: int, steps_per_chunk: int) -> int:
    """An interval in steps as one in chunks, at least 1; 0 stays 0."""
    return max(1, round(interval / steps_per_chunk)) if interval else 0


def _resume_command(folder: Path) -> str:
    return f"python {sys.argv[0]} --resume {shlex.quote(str(folder))}"


def _open(args, algorithm: str, step: int) -> Run:
    config = dataclasses.asdict(args)
    if not args.resume:
        return Run.create(Path(args.runs_dir), args.env_id, algorithm, args.seed, config)
    changed = set(config) & CHANGEABLE - {"resume", "runs_dir"}
    return Run.reopen(Path(args.resume), step, {name: config[name] for name in changed})


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


def _faults(row: dict[str, float], args) -> list[str]:
    """The metrics of a chunk that are to end the run, because what they are of is not finite."""
    if args.on_nonfinite == "skip":
        return []
    faults = ["charts/nonfinite_rewards"] if row.get("charts/nonfinite_rewards") else []
    if row.get("charts/nonfinite_losses"):
        losses = (name for name in row if name.startswith("losses/"))
        faults += [name for name in losses if not math.isfinite(row[name])] or ["a loss"]
    return faults


def guarded(step, skip: bool):
    """A step of learning that counts what is not finite, for `jax.lax.scan` or alone.

    Args:
      step: (state, input) -> (state, metrics), metrics being scalars by name.
      skip: whether a step of which anything is not finite, state or metrics, is dropped: then the
        state is that of before, and the metrics are zeros.

    Returns the same with one more metric, "charts/nonfinite_losses": 1 if the metrics, with `skip`
    also if the state, are not finite, else 0.
    """

    def guarded_step(before, given):
        after, metrics = step(before, given)
        leaves = jax.tree.leaves((after, metrics) if skip else metrics)
        bad = ~jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
        if skip:
            kept = (before, jax.tree.map(jnp.zeros_like, metrics))
            keep = functools.partial(jnp.where, bad)
            after, metrics = jax.tree.map(keep, kept, (after, metrics))
        return after, metrics | {"charts/nonfinite_losses": bad.astype(jnp.int32)}

    return guarded_step


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
    for a loss that is not finite, a full disk or another process that ended, 128 + signal for a
    stop that could not wait. One of several processes does not return from an error: it ends here.
    """
    try:
        if _asks_for_hosts():
            parallel.connect()
        args = parse_args(kind, presets, preset_for_this_machine())
        enable_compilation_cache()
        return main(args)
    except (RunError, parallel.UsageError, *bad_input) as error:
        code, text = 2, " ".join(f"error: {error}".splitlines())  # a file's name may have several
    except (FloatingPointError, checkpoints.SaveError) as error:
        code, text = 1, f"error: {error}"
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        code, text = 128 + number, "stopped at once; what was saved before stands"
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not (full or parallel.connected()):
            raise
        code, text = 1, parallel.LOST if parallel.is_loss(error) else traceback.format_exc()
        if full:
            text = f"error: cannot write the run's files: {error.strerror}; its checkpoints stand"
    print(text, file=sys.stderr)
    return parallel.leave(code, wait=code == 2) if parallel.connected() else code


def _asks_for_hosts() -> bool:
    """Whether the command line, or the run that it resumes, has --distributed.

    JAX wants to know before it starts a device.
    """
    asked = [word for word in sys.argv[1:] if word in ("--distributed", "--no-distributed")]
    if asked:  # by hand: argparse would exit over --distributed=-1
        return asked[-1] == "--distributed"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?")
    folder = parser.parse_known_args()[0].resume
    try:
        return bool(folder) and bool(read_config(folder)["args"].get("distributed"))
    except RunError:  # parse_args tells
        return False
