"""The run folder: configuration and metrics.

runs/{env_id}__{algorithm}__{seed}__{time}/
    config.json            algorithm, arguments, versions, git commit, hardware, status
    params.msgpack         and policy.npz: what the algorithm exports
    metrics.csv            one row a log call; a cell is empty where a metric was not logged
    events.out.tfevents.*  the same for TensorBoard
    learning_curve.png     drawn by learning_curve.py
    checkpoints/           what `--resume` goes on from; see checkpoints.py
    evaluation.csv, .json  what `--evaluate` adds; videos/ is `--capture-video`'s; see watch.py
    wandb/                 what `--track` keeps on disk
"""

import csv
import dataclasses
import fcntl
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from harness import checkpoints, machine, tracking
from harness.contract import Algorithm
from harness.errors import RunError, one_line

CHOOSE = "choose another with --runs-dir"
# Arguments that a resume may change: none of them changes what a step does.
CHANGEABLE = {"total_timesteps", "num_threads", "warp_headroom", "on_nonfinite", "resume"}
CHANGEABLE |= {"checkpoint_interval", "checkpoint_replay", "keep_checkpoints"}
CHANGEABLE |= {"track", "capture_video"}


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
        self._rows = [] if step is None else rows_until(folder / "metrics.csv", step)
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row)) or ["step"]
        self._csv = None
        self._write_config()
        self._events = tracking.EventFile(folder, step)
        if step is None:
            rows = "\n".join(f"|{name}|{value}|" for name, value in config["args"].items())
            self._events.text("hyperparameters", f"|argument|value|\n|-|-|\n{rows}")
        else:
            self._rewrite_csv()
        self._tracker = None
        if config["args"].get("track"):
            try:
                self._tracker = tracking.start(folder, config)
                config["wandb"] = self._tracker.id
                self._write_config()
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
                "algorithm": algorithm,
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


def read_args(algorithm: Algorithm, folder: str | Path):
    """The arguments that a run was made with, from its config.json, as `algorithm.args`.

    Raises RunError if there are none, or if another algorithm or another version wrote them.
    """
    config, own = read_config(folder), dataclasses.asdict(algorithm.args())
    args, by = config["args"], config.get("algorithm", algorithm.name)
    if by != algorithm.name:
        raise RunError(f"'{folder}' is a run of {by}.py, not of {algorithm.name}.py; use that one")
    wrong = [name for name in args if name not in own or not _same_kind(args[name], own[name])]
    if wrong:
        which = ", ".join(wrong)
        raise RunError(f"'{folder}': config.json is another version's or damaged: {which}")
    return algorithm.args(**args)


def _same_kind(value, own) -> bool:
    return type(value) is type(own) or (type(own) is float and type(value) is int)


def rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of a metrics.csv up to `step`, as `Run.log` made them; after a kill, too.

    Raises RunError if it is damaged otherwise.
    """
    try:
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
        rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
        return [row for row in rows if int(row["step"]) <= step]
    except UnicodeDecodeError:
        why = "it is no text"
    except (KeyError, ValueError, csv.Error):
        why = "a row has no step"
    raise RunError(f"--resume: {path} is damaged: {why}; mend it first")


def check_writable(runs_dir: Path, fix: str = CHOOSE) -> None:
    """Raises RunError if nothing could be made in `runs_dir`. Leaves nothing behind."""
    try:
        parent = Path(runs_dir)
        while not parent.exists() and not parent.is_symlink():
            parent = parent.parent
        os.rmdir(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise _unwritable(runs_dir, error, fix) from None


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


def _unwritable(runs_dir: Path, error: OSError, fix: str = CHOOSE) -> RunError:
    return RunError(f"cannot write a run folder in '{runs_dir}' ({error.strerror}): {fix}")


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
