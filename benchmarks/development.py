"""The runs of PROTOCOL.md as they end: what is kept of them, their table and their curves.

    python benchmarks/development.py flowrl_cpu RESULTS    # RESULTS: benchmark.sh's --out
    python benchmarks/development.py                       # table and picture alone
    python report.py benchmarks/development/*/*.csv        # with intervals, over all tasks

Of each finished run of RESULTS it keeps metrics.csv and config.json, as development/VARIANT/
TASK__SEED.csv and .json, and writes the table of development/README.md and development.png.
"""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent / "development"
TASKS = ("cheetah-run", "walker-run", "humanoid-stand", "hopper-hop")  # to choose by
SAMPLED = "eval/episodic_return_sampled"
STEPS, OF = 200_000, "8x128"  # the protocol's budget, of variants with these sizes
MINUTES = (10, 20)  # of an idle core, at which all are compared
LAST = 5  # evaluations of which the protocol has the mean
Curve = tuple[np.ndarray, np.ndarray]  # steps, sampled returns


def collect(variant: str, results: Path) -> list[str]:
    """Copies what is kept of the finished runs; returns their names, TASK__SEED."""
    names, folder = [], FOLDER / variant
    for path in sorted(results.glob("runs/*/config.json")):
        config = json.loads(path.read_text())
        if config["status"] != "finished":
            continue
        folder.mkdir(exist_ok=True)
        names.append(f"{config['args']['env_id']}__{config['args']['seed']}")
        shutil.copyfile(path, folder / f"{names[-1]}.json")
        shutil.copyfile(path.parent / "metrics.csv", folder / f"{names[-1]}.csv")
    return names


def curve(path: Path) -> Curve:
    """The evaluations in a run's CSV."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(SAMPLED)]
    return np.array([int(row["step"]) for row in rows]), np.array(
        [float(row[SAMPLED]) for row in rows]
    )


def curves() -> dict[str, dict[str, dict[int, Curve]]]:
    """Variant -> task -> seed -> its curve."""
    found: dict[str, dict[str, dict[int, Curve]]] = {}
    for path in sorted(FOLDER.glob("*/*__*.csv")):
        task, seed = path.stem.split("__")
        of_task = found.setdefault(path.parent.name, {}).setdefault(task, {})
        of_task[int(seed)] = curve(path)
    return found


def speeds() -> dict[str, float]:
    """Variant, by algorithm, environments and batch -> its environment steps a minute.

    Of throughput_algorithms.csv, the mean of its tasks, where all were measured in turns on one
    idle core: the runs themselves share a machine with other work.
    """
    found: dict[str, list[float]] = {}
    with (FOLDER.parent / "throughput_algorithms.csv").open() as file:
        for row in csv.DictReader(file):
            algorithm = row["algorithm"].removesuffix("_jax")
            variant = f"{algorithm}_{row['num_envs']}x{row['batch_size']}"
            found.setdefault(variant, []).append(60 * float(row["steps/s"]))
    return {variant: float(np.mean(all_)) for variant, all_ in found.items()}


def cell(seeds: dict[int, Curve], budget: int = STEPS) -> str:
    """Mean over seeds at the last evaluation within the budget, over the five up to it, how many.

    Runs that ended an evaluation or more before the budget are left out; what others did after it
    does not count.
    """
    within = [
        returns[steps <= budget]
        for steps, returns in seeds.values()
        if steps[0] <= budget < steps[-1] + steps[0]  # steps[0]: the time between two evaluations
    ]
    if not within:
        return ""
    last = np.mean([returns[-1] for returns in within])
    late = np.mean([returns[-LAST:].mean() for returns in within])
    return f"{last:.0f}, {late:.0f} ({len(within)})"


def mean_curve(curves_of: list[Curve]) -> Curve:
    """Thousand steps, and the mean of returns there: where all have been, on the coarsest grid."""
    grid = min((steps for steps, _ in curves_of), key=len)
    grid = grid[grid <= min(steps[-1] for steps, _ in curves_of)]
    return grid / 1000, np.mean([np.interp(grid, *one) for one in curves_of], axis=0)


def table() -> str:
    """As Markdown: at equal steps what has the protocol's sizes, then all after equal time."""
    found, timed = curves(), speeds()
    rows = [(f"{STEPS:,} steps", v, STEPS) for v in found if v.endswith(OF)]
    rows += [(f"{m} minutes", v, int(m * timed[v])) for m in MINUTES for v in found if v in timed]
    lines = [f"| after | variant | steps | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 3) + "|"]
    for after, variant, steps in rows:
        cells = [cell(found[variant].get(task, {}), steps) for task in TASKS]
        if any(cells):
            shown = round(steps, -3)
            lines.append(f"| {after} | {variant} | {shown:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot() -> None:
    """A panel a task: each seed thin, a variant's mean thick where it has several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(3.4 * len(TASKS), 3), squeeze=False)
    for panel, task in zip(axes[0], TASKS, strict=True):
        for number, (variant, tasks) in enumerate(curves().items()):
            seeds, look = tasks.get(task, {}), {"color": f"C{number}"}
            for steps, returns in seeds.values():
                panel.plot(steps / 1000, returns, linewidth=1 if len(seeds) > 1 else 2, **look)
            if len(seeds) > 1:
                panel.plot(*mean_curve(list(seeds.values())), linewidth=2.5, **look)
            panel.plot([], [], label=variant, **look)
        panel.set(title=task, xlabel="thousand environment steps", ylim=(0, None))
    axes[0, 0].set_ylabel("return, sampled x0")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(FOLDER / "development.png", dpi=100)


def main(arguments: list[str]) -> None:
    """Collects, and writes table and picture anew."""
    if arguments:
        variant, results = arguments
        print("kept:", ", ".join(collect(variant, Path(results))) or "nothing has finished")
    page = FOLDER / "README.md"
    text, count = re.subn(
        r"(<!-- development -->\n+).+?(?=\n\n)",
        lambda m: m[1] + table(),
        page.read_text(),
        flags=re.S,
    )
    assert count == 1, f"{page}: no <!-- development -->"
    page.write_text(text)
    plot()
    print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
