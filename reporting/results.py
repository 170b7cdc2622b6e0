"""Runs as their files tell of them: read, put together, and asked for numbers or for reasons.

A run is a folder that `runs.py` wrote, or a CSV file of metrics with a JSON file of its
configuration beside it. Neither `runs.py` nor the training code is imported.
"""

import csv
import dataclasses
import datetime
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from reporting.measures import suite

KINDS = {"sampled": "sampled", "deterministic": "no noise"}  # of evaluation, as columns and shown
AXES = {"step": "environment steps", "minutes": "minutes of wall-clock"}
# Flags that change neither what is learnt nor from what: runs that differ in them share a row.
NOT_SETTINGS = {"env_id", "seed", "num_seeds", "num_threads", "runs_dir", "resume"}
NOT_SETTINGS |= {"evaluate", "capture_video", "track", "checkpoint_interval", "keep_checkpoints"}
NOT_SETTINGS |= {"total_timesteps", "log_interval", "eval_interval", "eval_episodes"}
NOT_SETTINGS |= {"checkpoint_replay", "warp_headroom"}
SILENCE = 900.0  # seconds without a row after which a run that says "running" counts as killed


class ReportError(Exception):
    """Bad input from the user. Its text is one line."""


# ------------------------------------------------------------------------------------- reading runs
@dataclasses.dataclass(frozen=True)
class Run:
    """One run as its files tell it. E evaluations; a number that is not there is NaN."""

    folder: Path  # or the CSV
    task: str
    seed: int
    config: dict  # of config.json; {} without one
    reached: int  # environment steps of the last row; 0 without rows
    status: str  # finished, running, interrupted, failed, killed or missing
    why: str  # one line, "" if the run finished
    step: np.ndarray  # (E,) environment steps of the evaluations
    minutes: np.ndarray  # (E,) wall-clock since training began
    returns: dict[str, np.ndarray]  # kind of evaluation -> (E,) mean return of its episodes
    total_minutes: float  # from start to end, compiling and all

    def interval(self, axis: str) -> float:
        """How far apart evaluations are on `axis`, steps or minutes, at the most."""
        if axis == "minutes":
            return float(np.diff(self.minutes, prepend=0.0).max(initial=0.0))
        args = self.config.get("args", {})
        wanted = args.get("eval_interval") or args.get("log_interval") or 1
        return float(np.diff(self.step).max(initial=wanted))


def find_runs(paths: list[Path], now: float | None = None) -> list[Run]:
    """All runs below `paths`: run folders, folders of them, CSV files with a JSON beside them.

    now: seconds since the epoch, to tell a run that goes on from one that was killed.

    Raises ReportError if a path does not exist or holds no run.
    """
    now = time.time() if now is None else now
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.exists():
            raise ReportError(f"{path}: no such file or folder")
        rows = [row for file in _ledgers(path) for row in _ledger(file)]
        by_folder = {row["folder"]: row for row in rows if row["folder"]}
        have = set()  # in this path: another may be of another algorithm
        places = _places(path)
        for place in places:
            row = by_folder.get(str(place.resolve()), {})
            run = found.setdefault(place.resolve(), read_run(place, now, row))
            have.add((run.task, run.seed))
        for row in rows:  # of one job, the last counts
            place = Path(row["folder"] or path / f"{row['task']}__{row['seed']}").resolve()
            if (row["task"], int(row["seed"])) not in have:
                found[place] = _never_began(place, row)
        if not (places or rows):
            what = "a folder with config.json, or a CSV file with a JSON beside it"
            raise ReportError(f"{path}: no run in it (a run is {what})")
    return sorted(found.values(), key=lambda run: (run.task, run.seed, str(run.folder)))


def _places(path: Path) -> list[Path]:
    """Folders and CSV files that are runs."""
    if path.is_file():
        return [path] if path.suffix == ".csv" and path.with_suffix(".json").exists() else []
    below = _below(path)
    folders = {file.parent for file in below if file.name in ("config.json", "metrics.csv")}
    named = re.compile(r".+__.+__\d+__\d{8}-\d{6}(-\d+)?")
    folders |= {p for p in below if named.fullmatch(p.name) and p.is_dir()}
    beside = (p for p in below if "__" in p.name and p.suffix == ".json")
    files = {p.with_suffix(".csv") for p in beside if p.parent not in folders}
    return sorted(folders | {p for p in files if p.is_file()})


def _below(path: Path) -> list[Path]:
    """All files and folders below, through links too, each folder once."""
    found, seen = [], set()
    for place, folders, files in os.walk(path, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in (*folders, *files)]
    return found


def _ledgers(path: Path) -> list[Path]:
    return sorted(file for file in _below(path) if file.name == "runs.csv")


def _ledger(path: Path) -> list[dict[str, str]]:
    """Rows of benchmark.sh's runs.csv, whose folders are whole paths here, or empty."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["folder"] = row["folder"] and str((path.parent / row["folder"]).resolve())
            int(row["seed"]), row["task"], row["exit_code"], row["error"]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        text = f"{type(error).__name__} {error}"
        raise ReportError(f"{path}: is not a runs.csv of benchmark.sh: {text}") from None
    return rows


def _never_began(place: Path, row: dict[str, str]) -> Run:
    code = f"exit code {row['exit_code']}: " if row.get("exit_code") else ""
    why = "no run folder: " + code + (row.get("error") or "not started")
    return without_folder(place, row["task"], int(row["seed"]), why)


def without_folder(place: Path, task: str, seed: int, why: str) -> Run:
    """A run of which there is nothing but that it should be there."""
    nothing, zero = {kind: np.zeros(0) for kind in KINDS}, np.zeros(0)
    return Run(place, task, seed, {}, 0, "missing", why, zero, zero, nothing, math.nan)


def read_run(place: Path, now: float, ledger: dict[str, str] | None = None) -> Run:
    """A run from its folder, or from NAME.csv beside NAME.json. Files that lack become reasons.

    ledger: its row in benchmark.sh's runs.csv, if any.
    """
    single = place.is_file()
    config_file = place.with_suffix(".json") if single else place / "config.json"
    metrics_file = place if single else place / "metrics.csv"
    problems = []
    try:
        config = _config(config_file)
    except (OSError, ValueError) as error:
        config = {}
        problems.append(f"{config_file.name}: {'missing' if isinstance(error, OSError) else error}")
    try:
        rows = _rows(metrics_file)
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        rows = []
        missing = isinstance(error, OSError)
        problems.append(f"no {metrics_file.name}" if missing else f"{metrics_file.name}: {error}")
    task, seed = _identity(place, config)
    reached = int(rows[-1]["step"]) if rows else 0
    silent = now - max(f.stat().st_mtime for f in (config_file, metrics_file, place) if f.exists())
    seconds = _increasing(np.array([row.get("charts/seconds", math.nan) for row in rows]))
    pause = 3 * float(np.diff(seconds).max(initial=0.0)) if np.isfinite(seconds).all() else 0.0
    if ledger and now - silent > _end_of(ledger) + 5.0:
        ledger = None  # it goes on since: resumed
    status, why = _status(config, reached, silent, max(SILENCE, pause), ledger or {})
    columns = {kind: f"eval/episodic_return_{kind}" for kind in KINDS}
    pairs = zip(rows, seconds, strict=True)
    pairs = [(row, s) for row, s in pairs if any(name in row for name in columns.values())]
    returns = {
        kind: np.array([row.get(name, math.nan) for row, _ in pairs])
        for kind, name in columns.items()
    }
    return Run(
        folder=place,
        task=task,
        seed=seed,
        config=config,
        reached=reached,
        status=status,
        why="; ".join(problems + ([why] if why else [])),
        step=np.array([int(row["step"]) for row, _ in pairs], dtype=int),
        minutes=np.array([s / 60 for _, s in pairs]),
        returns=returns,
        # Of a resumed run the time between counts the pause too; charts/seconds does not.
        total_minutes=(seconds[-1] / 60 if len(seconds) else math.nan)
        if config.get("resumed")
        else _minutes_between(config.get("started"), config.get("ended")),
    )


def _config(path: Path) -> dict:
    """A config.json. Raises OSError; ValueError if it is damaged."""
    config = json.loads(path.read_text())
    try:
        int(config.get("args", {}).get("seed", 0))
        sorted(map(str.lower, config.get("hardware", {}).get("devices", [])))
        dict(config.get("git") or {})
    except (AttributeError, TypeError, ValueError):
        raise ValueError("damaged: no arguments of a run in it") from None
    return config


def _rows(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv by step, without empty cells and without a last row that was cut off.

    Raises OSError; ValueError or OverflowError if a cell is not a number, or a step is endless.
    """
    by_step: dict[int, dict[str, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if None in row.values() or not row.get("step"):
                continue
            numbers = {name: float(cell) for name, cell in row.items() if cell}
            by_step[int(numbers["step"])] = numbers  # a step that was done again counts once
    return [by_step[step] for step in sorted(by_step)]


def _increasing(seconds: np.ndarray) -> np.ndarray:
    """A clock that began anew, when a run was resumed, goes on from where it stood."""
    restarts = np.diff(seconds, prepend=0.0) < 0
    return seconds + np.cumsum(np.where(restarts, np.roll(seconds, 1), 0.0))


def _identity(place: Path, config: dict) -> tuple[str, int]:
    args = config.get("args", {})
    parts = place.stem.split("__")
    task = args.get("env_id") or parts[0]
    seeds = [int(part) for part in parts[1:] if part.isdigit()]
    return task, int(args.get("seed", seeds[0] if seeds else -1))


def _status(
    config: dict, reached: int, silent: float, patience: float, ledger: dict[str, str]
) -> tuple[str, str]:
    """How a run ended, and in one line why it is not finished."""
    status, at = config.get("status"), f"at step {reached:,}"
    code = ledger.get("exit_code", "")
    if status == "finished":
        return "finished", ""
    if status == "failed":
        error = config.get("error") or ledger.get("error") or "no error recorded"
        return "failed", f"failed {at}: {error}"
    if status == "interrupted":
        return "interrupted", f"interrupted {at} by a signal"
    if code not in ("", "0"):
        return "killed", f"killed {at}, exit code {code}"
    if status is None:
        return "missing", ""
    if silent > patience:
        ago = datetime.timedelta(seconds=round(silent))
        return "killed", f"killed {at}: it never said that it ended, and its last row is {ago} old"
    return "running", f"still running, {at}"


def _end_of(ledger: dict[str, str]) -> float:
    """Seconds since the epoch at which an attempt ended; infinity if its row does not say."""
    try:
        began = datetime.datetime.fromisoformat(ledger["started"])
        return began.timestamp() + float(ledger["seconds"])
    except (KeyError, ValueError, TypeError):
        return math.inf


def _minutes_between(start: str | None, end: str | None) -> float:
    try:
        times = [datetime.datetime.fromisoformat(text) for text in (start, end)]
    except (TypeError, ValueError):
        return math.nan
    return (times[1] - times[0]).total_seconds() / 60


# ---------------------------------------------------------------------------- what belongs together
@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one task under the same settings, a seed each; K runs, some without numbers."""

    task: str
    settings: str  # preset and flags
    runs: tuple[Run, ...]  # status "missing" for a seed that other tasks have and this has not
    notes: tuple[str, ...]  # what differs between these runs, though settings do not


def algorithm_of(run: Run) -> str:
    """By its configuration; an older one has it in its folder's name only. "" for neither."""
    parts = run.folder.name.split("__")
    return run.config.get("algorithm") or (parts[1] if len(parts) == 4 else "")


def settings_of(run: Run) -> dict[str, object]:
    """The arguments that runs must share to be averaged, their algorithm and the device's kind."""
    args = run.config.get("args", {})
    chosen = {name: value for name, value in args.items() if name not in NOT_SETTINGS}
    devices = run.config.get("hardware", {}).get("devices", [])
    device = ", ".join(sorted(set(devices)))
    return chosen | {"algorithm": algorithm_of(run), "device": device}


def group_runs(runs: list[Run]) -> tuple[list[Group], list[tuple[Run, str, str]]]:
    """Groups, and (run, its settings, a note) of those that another of the same seed replaces."""
    labels = labels_of(runs)
    members: dict[tuple[str, str], list[Run]] = {}
    replaced = []
    for run in runs:
        members.setdefault((run.task, labels[settings_key(run)]), []).append(run)
    seeds: dict[str, set[int]] = {}
    for key, several in members.items():
        best = {}
        for run in sorted(several, key=_preference):
            if run.seed in best:
                replaced.append((best[run.seed], key[1], f"replaced by {run.folder.name}"))
            best[run.seed] = run
        members[key] = [best[seed] for seed in sorted(best)]
        seeds.setdefault(key[1], set()).update(best)
    groups = []
    for (task, label), several in sorted(members.items()):
        absent = seeds[label] - {run.seed for run in several}
        notes, why = tuple(_differences(several)), "no run folder, while other tasks have this seed"
        several += [without_folder(Path(f"{task}__{k}"), task, k, why) for k in absent]
        groups.append(Group(task, label, tuple(sorted(several, key=lambda r: r.seed)), notes))
    return groups, replaced


def _preference(run: Run) -> tuple:
    """Of runs alike but for when they ran, the last one that got furthest counts."""
    return run.status == "finished", run.reached, run.config.get("started", "")


def settings_key(run: Run) -> str:
    """`settings_of` as text; "" for a run that left no configuration."""
    return json.dumps(settings_of(run), sort_keys=True) if run.config else ""


def labels_of(runs: list[Run]) -> dict[str, str]:
    """Settings as text: algorithm, preset, flags given, and whatever tells two such apart."""
    known = {settings_key(run): run for run in runs if run.config}
    labels, all_settings = {}, {key: settings_of(run) for key, run in known.items()}
    for key, settings in all_settings.items():
        name = _name_of(settings)
        rivals = [other for other in all_settings.values() if _name_of(other) == name]
        names = {name for other in rivals for name in other}
        varied = {n for n in names if len({json.dumps(other.get(n)) for other in rivals}) > 1}
        command = [str(word) for word in known[key].config.get("command", [])]
        flags = {word[2:].split("=")[0].replace("-", "_") for word in command if word[:2] == "--"}
        shown = sorted((varied | flags & set(settings)) - {"algorithm", "preset"})
        parts = [f"--{n.replace('_', '-')} {settings.get(n, 'unknown')}" for n in shown]
        labels[key] = ", ".join([name, *parts])
    # A run that left no configuration belongs to the others if those are all alike.
    labels[""] = next(iter(labels.values())) if len(labels) == 1 else "settings unknown"
    return labels


def _name_of(settings: dict[str, object]) -> str:
    return f"{settings['algorithm']} {settings.get('preset', 'no preset')}".strip()


def _differences(runs: Iterable[Run]) -> list[str]:
    """What differs between runs that are averaged, a line each."""
    looks: dict[str, Callable[[dict], object]] = {
        "git commits": lambda c: (c.get("git") or {}).get("commit", "none")[:10],
        "versions of packages": lambda c: c.get("versions"),
        "processors": lambda c: c.get("hardware", {}).get("cpu"),
        "numbers of cores": lambda c: c.get("hardware", {}).get("cores"),
        "--num-seeds": lambda c: c.get("args", {}).get("num_seeds", 1),
    }
    configs = [run.config for run in runs if run.config]
    configs += [config | again for config in configs for again in config.get("resumed", [])]
    notes = []
    for name, look in looks.items():
        values = {json.dumps(look(config), sort_keys=True) for config in configs}
        if len(values) > 1:
            short = ": " + ", ".join(sorted(values)) if max(map(len, values)) < 40 else ""
            notes.append(f"{len(values)} different {name}{short}".replace('"', ""))
    if any((config.get("git") or {}).get("dirty") for config in configs):
        notes.append("code changed since its commit")
    return notes


def by_suite(groups: list[Group]) -> dict[tuple[str, str], list[Group]]:
    """(settings, suite) -> its groups, where there are two tasks or more."""
    members: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        name = suite(group.task)
        if name and any(run.step.size for run in group.runs):
            members.setdefault((group.settings, name), []).append(group)
    return {key: several for key, several in members.items() if len(several) > 1}


# ------------------------------------------------------------------------------ numbers and reasons
def value_at(run: Run, kind: str, axis: str, at: float) -> tuple[float, str]:
    """The return at `at` on an axis, and "", or NaN and the reason.

    It is the nearest evaluation's at or before `at`, not older than one interval of evaluations.
    """
    positions = getattr(run, axis)
    if not positions.size:
        return math.nan, run.why or f"no evaluation yet, at step {run.reached:,}"
    if not np.isfinite(positions).all():
        return math.nan, "no charts/seconds in its metrics.csv: an older run"
    index = int(np.searchsorted(positions, at, side="right")) - 1
    if index < 0:
        unit = AXES[axis] if axis == "step" else axis
        return math.nan, f"first evaluation at {positions[0]:,.6g} {unit}"
    if at - positions[index] >= run.interval(axis) > 0 and at > positions[-1]:
        ended = f"ended at step {run.reached:,}" + (
            f" after {positions[-1]:.3g} minutes" if axis == "minutes" else ""
        )
        return math.nan, run.why or ended
    value = float(run.returns[kind][index])
    return value, "" if math.isfinite(value) else f"no {KINDS[kind]} evaluation in its metrics.csv"


def table_values(runs: Iterable[Run], kind: str, axis: str, points: Iterable[float]) -> np.ndarray:
    """Returns at all points, (runs, points), NaN where there is none."""
    points = list(points)
    values = [[value_at(run, kind, axis, point)[0] for point in points] for run in runs]
    return np.array(values, dtype=float).reshape(len(values), len(points))
