"""The run folder: configuration and metrics.

runs/{env_id}__{algorithm}__{seed}__{time}/
    config.json            arguments, versions, git commit, hardware, status
    params.msgpack         and policy.npz, what `save` of `training.train` writes
    metrics.csv            one row a log call; a cell is empty where a metric was not logged
    events.out.tfevents.*  the same for TensorBoard
    learning_curve.png     drawn by `plot_learning_curve`
    checkpoints/           what `--resume` goes on from; see checkpoints.py
    evaluation.csv, .json  what `--evaluate` adds; videos/ is `--capture-video`'s; see watch.py
    wandb/                 what `--track` keeps on disk
"""

import csv
import dataclasses
import fcntl
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from harness import checkpoints, machine

CURVES = {  # metrics.csv column -> label and colour in learning_curve.png
    "eval/episodic_return_sampled": ("evaluation, sampled x0", "#0072B2"),
    "eval/episodic_return_deterministic": ("evaluation, x0 = 0", "#D55E00"),
    "charts/episodic_return": ("training episodes", "#009E73"),
}
# Arguments that a resume may change: none of them changes what a step does.
CHANGEABLE = {"total_timesteps", "num_threads", "warp_headroom", "on_nonfinite", "resume"}
CHANGEABLE |= {"checkpoint_interval", "checkpoint_replay", "keep_checkpoints"}
CHANGEABLE |= {"track", "capture_video"}


class RunError(Exception):
    """Bad input from the user. Its text is one line and names the flag to change."""


class Run:
    """One run's folder. As a context manager it notes how the run ended.

    `folder`: the run's Path. `config`: what config.json holds.
    """

    def __init__(
        self, folder: Path, config: dict, step: int | None = None, held: int | None = None
    ):
        """step: of a run that goes on from there; what was logged after it is cut off.

        held: what `lock` returned, if the folder is locked already.
        """
        self.folder = folder
        self.config = config
        self._lock = lock(folder) if held is None else held
        self._rows = [] if step is None else _rows_until(folder / "metrics.csv", step)
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row)) or ["step"]
        self._csv = None
        self._write_config()
        self._events = _Events(folder, step)
        if step is None:
            rows = "\n".join(f"|{name}|{value}|" for name, value in config["args"].items())
            self._events.text("hyperparameters", f"|argument|value|\n|-|-|\n{rows}")
        else:
            self._rewrite_csv()
        self._tracker = None
        if config["args"].get("track"):
            try:
                self._tracker = _start_tracking(self)
                for row in self._rows:  # of a resume: what a kill left there is not known
                    values = {k: float(v) for k, v in row.items() if k != "step"}
                    self._track("log", values, step=int(row["step"]))
            except BaseException as error:
                self.__exit__(type(error), error, None)
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
                "versions": machine.versions(),
                "git": machine.git_state(Path(__file__).resolve().parent),
                "hardware": machine.hardware(),
                "command": sys.argv,
                "started": now(),
                "status": "running",
            },
        )

    @classmethod
    def reopen(cls, folder: Path, step: int, changed: dict, held: int | None = None) -> "Run":
        """Goes on with a folder after `step`. `changed`: arguments that have other values now.

        config.json keeps what it says of the beginning, and lists under "resumed" step, time,
        command, versions and commit of each resume.

        Raises RunError if another process is at work in the folder.
        """
        config = read_config(folder)
        git = machine.git_state(Path(__file__).resolve().parent)
        this = {"step": step, "time": now(), "command": sys.argv}
        config["args"] |= changed
        config["resumed"] = [
            *config.get("resumed", []),
            this | {"versions": machine.versions(), "git": git, "hardware": machine.hardware()},
        ]
        config["status"] = "running"
        for name in ("ended", "error"):
            config.pop(name, None)
        return cls(folder, config, step, held)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one row of scalars at `step` environment steps; a kill after this leaves it there.

        NaN and infinities are written as they are. `sync` is what outlasts a loss of power.
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
        self._track("log", {k: float(v) for k, v in metrics.items()}, step=int(step))

    def sync(self) -> None:
        """Has the system write the rows to disk: a checkpoint that comes after relies on them."""
        if self._csv is not None:
            os.fsync(self._csv.fileno())
        self._events.sync()
        checkpoints.sync_entry(self.folder)  # a new name for metrics.csv

    def save_bytes(self, name: str, data: bytes) -> Path:
        """Writes `folder/name` whole or not at all, and returns its path."""
        return replace_file(self.folder / name, data)

    def finish(self, status: str, error: str | None = None) -> None:
        """Notes "finished", "interrupted" or "failed", and why, and closes the files.

        The first call wins. error: one line, or None; config.json has the key only with a line.
        """
        if self.config["status"] != "running":
            return
        self.config |= {"status": status, "ended": now()} | ({"error": error} if error else {})
        try:
            self._write_config()
        finally:
            self._events.close()
            if self._csv is not None:
                self._csv.close()
            os.close(self._lock)
            self._track("finish", exit_code=0 if status == "finished" else 1)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "finished" if kind is None else "interrupted" if interrupted else "failed"
        try:
            self.finish(status, one_line(error) if status == "failed" else None)
        except OSError:
            if kind is None:  # else what ended the run is to be told, not that it is not in here
                raise

    def _track(self, method: str, *arguments, **named) -> None:
        """Calls the tracker. Where it fails the run goes on without it, and says so."""
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments, **named)
        except Exception as error:
            self._tracker = None
            text = f"--track: Weights & Biases failed, going on without: {one_line(error)}"
            print(text, file=sys.stderr, flush=True)

    def _write_config(self) -> None:
        text = json.dumps(self.config, indent=2, default=str) + "\n"
        replace_file(self.folder / "config.json", text.encode())

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
        before = set(folder.glob("events.out.tfevents.*"))  # two may begin in one second
        self._writer = EventsWriter(str(folder / "events"), f".{len(before)}")
        (self._path,) = set(folder.glob("events.out.tfevents.*")) - before
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
        checkpoints.sync_entry(self._path)

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
        raise RunError(f"'{folder}': config.json is damaged ({one_line(error)})") from None


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
    rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
    try:
        return [row for row in rows if int(row["step"]) <= step]
    except (KeyError, ValueError):
        raise RunError(f"--resume: {path} is damaged: a row has no step; mend it first") from None


def one_line(error: BaseException) -> str:
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
        raise RunError(f"--track: {one_line(error)}; WANDB_MODE=offline needs no server") from None
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


def replace_file(path: Path, data: bytes) -> Path:
    """Writes `path` so that a reader, or a kill, sees the old file or the new and no other."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


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
