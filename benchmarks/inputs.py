"""What the programs beside this are given: bad input is told in one line, before anything is done.

`task` and `positive` are for argparse's `type`, which tells with the flag's name what they raise.
"""

import argparse
import csv
import importlib
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disable")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import envs
from harness import runs
from harness.contract import Act
from harness.errors import RunError, one_line

SAMPLED = "eval/episodic_return_sampled"
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what reading may raise


# ------------------------------------------------------------------------------------------- flags
def task(text: str) -> str:
    """The id of a task of ours."""
    try:
        envs.load_task(text)
    except envs.UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--env-id: ")) from None
    return text


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number from 1 on, got {text}")
    return int(text)


def check_engines(
    parser: argparse.ArgumentParser, flag: str, engines: Iterable[str], env_ids: Iterable[str]
) -> None:
    """Ends the program, naming the flag, unless each engine is here and can step each task."""
    for env_id in env_ids:
        cannot = envs.load_task(env_id).cannot
        for engine in engines:
            try:
                envs.choose_engine(engine, cannot)
            except envs.UsageError as error:
                why = str(error).removeprefix("--engine: ").replace("--engine", flag)
                parser.error(f"{flag}: {env_id}: {why}")


# -------------------------------------------------------------------------------------------- runs
def algorithm_names() -> set[str]:
    """Of the algorithms of the root, each in a file of its own."""
    return {path.stem for path in ROOT.glob("*.py") if "\nALGORITHM = " in path.read_text()}


def algorithm_of(run: Path) -> types.ModuleType:
    """The file that made a run. Raises RunError if it is no run's folder, or none of ours."""
    name = runs.read_config(run).get("algorithm")
    if name not in algorithm_names():
        known = ", ".join(sorted(algorithm_names()))
        raise RunError(f"'{run}': config.json has algorithm {name}, which is not one of {known}")
    return importlib.import_module(name)


def load_policy(run: Path) -> Act:
    """A run's policy. Raises RunError, naming the folder, if it cannot be read."""
    algorithm = algorithm_of(run)
    try:
        return algorithm.load_policy(run)
    except DAMAGED as error:
        why = f"params.msgpack cannot be read ({one_line(error)})"
        raise RunError(f"'{run}': {why}; name a finished run") from None


def evaluations(path: Path, *columns: str) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv that hold an evaluation.

    Raises RunError: it cannot be read, has no such row, or one without a number in `columns`.
    """
    try:
        with path.open(newline="") as file:
            rows = [
                {name: float(number) for name, number in row.items() if number}
                for row in csv.DictReader(file)
                if row.get(SAMPLED)
            ]
    except (*DAMAGED, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        raise RunError(f"'{path}' cannot be read ({why}); name a run's metrics.csv") from None
    if not rows:
        raise RunError(f"'{path}' has no evaluation, {SAMPLED}; name a run's metrics.csv")
    for column in columns:
        if not all(column in row for row in rows):
            raise RunError(f"'{path}' has an evaluation without {column}; name another run's")
    return rows


def measured(run: Path, *columns: str) -> tuple[str, dict[str, bytes]]:
    """A run's name, TASK__SEED, and what is kept of it by suffix: config.json and metrics.csv.

    Raises RunError if one of them cannot be read, as `evaluations`.
    """
    args = runs.read_config(run)["args"]
    if not isinstance(args.get("env_id"), str) or not isinstance(args.get("seed"), int):
        raise RunError(f"'{run}': config.json is damaged (no env_id or no seed)")
    evaluations(run / "metrics.csv", "step", *columns)
    files = {".json": "config.json", ".csv": "metrics.csv"}
    kept = {suffix: (run / name).read_bytes() for suffix, name in files.items()}
    return f"{args['env_id']}__{args['seed']}", kept
