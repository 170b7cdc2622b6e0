"""Collects finished runs: their metrics, configurations, curves and the tables of the pages.

    python benchmarks/learning.py runs/*        # writes benchmarks/learning/, prints the table

Each run gives learning/{env_id}__{seed}.csv and .json. The table's return is the mean over the last
evaluation's episodes, with sampled x0 and with x0 = 0.
"""

import argparse
import csv
import json
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import inputs
from benchmarks.inputs import SAMPLED
from harness import runs
from harness.errors import RunError

FOLDER = Path(__file__).resolve().parent / "learning"
DETERMINISTIC = "eval/episodic_return_deterministic"
NEEDED = (SAMPLED + "_std", DETERMINISTIC, "charts/action_std", "charts/action_saturation")


def collect(folders: list[Path]) -> None:
    """Copies the runs' files. Raises RunError, and has copied nothing, if one cannot be shown."""
    kept = {}
    for run in folders:
        status = runs.read_config(run)["status"]
        if status != "finished":
            raise RunError(f"'{run}': {status}; only a finished run is collected")
        name, files = inputs.measured(run, *NEEDED)
        kept |= {FOLDER / f"{name}{suffix}": content for suffix, content in files.items()}
    FOLDER.mkdir(exist_ok=True)
    for path, content in kept.items():
        runs.replace_file(path, content)


def evaluations(name: str) -> list[dict[str, str]]:
    """Rows of a collected run that hold an evaluation."""
    with (FOLDER / f"{name}.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get(SAMPLED)]


def minutes(name: str) -> float:
    """Wall-clock from a collected run's start to its end."""
    config = json.loads((FOLDER / f"{name}.json").read_text())
    started, ended = (datetime.fromisoformat(config[key]) for key in ("started", "ended"))
    return (ended - started).total_seconds() / 60


def table_row(name: str) -> str:
    """One run as a row of the table."""
    rows = evaluations(name)
    last, best = rows[-1], max(float(row[SAMPLED]) for row in rows)
    env_id, seed = name.split("__")
    cells = (
        env_id,
        seed,
        f"{int(last['step']):,}",
        f"{minutes(name):.0f}",
        f"{float(last[SAMPLED]):.0f} +- {float(last[SAMPLED + '_std']):.0f}",
        f"{float(last[DETERMINISTIC]):.0f}",
        f"{best:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def plot(names: list[str]) -> None:
    """Draws all curves, a panel a task, with what shows exploration below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = sorted({name.split("__")[0] for name in names})
    shape = {"figsize": (3.2 * len(tasks), 5), "sharex": "col", "squeeze": False}
    figure, axes = plt.subplots(2, len(tasks), **shape)
    for column, task in enumerate(tasks):
        highest = 0.0
        for name in (name for name in names if name.startswith(f"{task}__")):
            rows = evaluations(name)
            steps = [int(row["step"]) / 1000 for row in rows]
            seed = name.split("__")[1]
            returns = [float(row[SAMPLED]) for row in rows]
            highest = max(highest, *returns)
            axes[0, column].plot(steps, returns, marker=".", label=f"seed {seed}")
            for style, key in (("-", "charts/action_std"), (":", "charts/action_saturation")):
                axes[1, column].plot(steps, [float(row[key]) for row in rows], style, label=key)
        axes[0, column].set(title=task, ylim=(0, 1000 if highest > 200 else None))
        axes[1, column].set(xlabel="thousand environment steps", ylim=(0, None))
    axes[0, 0].set_ylabel("return, sampled x0")
    axes[0, 0].legend(fontsize=7)
    axes[1, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(FOLDER / "learning.png", dpi=110)


def collected() -> list[str]:
    """The names of all collected runs."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def table() -> str:
    """Everything collected so far, as Markdown."""
    header = "| task | seed | steps | minutes | return, sampled x0 | x0 = 0 | best |"
    return "\n".join([header, "|---|---|---|---|---|---|---|", *map(table_row, collected())])


def main() -> None:
    """Collects runs, draws everything collected so far and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    try:
        collect(parser.parse_args().runs)
    except RunError as error:
        parser.error(str(error))
    plot(collected())
    print(table())


if __name__ == "__main__":
    main()
