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
STEPS = 200_000  # the protocol's budget
EVERY = 10_000  # steps between evaluations
LAST = 5  # evaluations of which the protocol has the mean
PLAIN = {  # algorithm -> its variant without other flags
    "flowrl_jax": "flowrl_cpu",
    "flowrl_hlgauss_jax": "flowrl_hlgauss_cpu",
    "sac_jax": "sac_cpu",
}
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


def same_time() -> dict[str, int]:
    """Variant -> the steps it makes while flowrl_jax.py makes STEPS, of those that were timed.

    By the updates a second of throughput_algorithms.csv, the mean ratio of its tasks, which are
    measured in turns on one idle core: runs themselves share a machine with other work. Down to
    the evaluation before.
    """
    with (FOLDER.parent / "throughput_algorithms.csv").open() as file:
        timed = [row for row in csv.DictReader(file) if row["preset"] == "cpu"]
    ratios: dict[str, list[float]] = {}
    for row in timed:
        ratios.setdefault(PLAIN[row["algorithm"]], []).append(float(row["ratio"]))
    return {name: int(STEPS * np.mean(all_)) // EVERY * EVERY for name, all_ in ratios.items()}


def cell(seeds: dict[int, Curve], steps: int = STEPS) -> str:
    """Mean over seeds at the evaluation after `steps`, over the five up to it, and how many seeds.

    Runs that ended before it are left out; what a run did after it does not count.
    """
    upto = [returns[at <= steps] for at, returns in seeds.values() if steps in at]
    if not upto:
        return ""
    last = np.mean([returns[-1] for returns in upto])
    late = np.mean([returns[-LAST:].mean() for returns in upto])
    return f"{last:.0f}, {late:.0f} ({len(upto)})"


def table() -> str:
    """As Markdown: at equal steps, then at equal time where that is another number of steps."""
    found, timed = curves(), same_time()
    rows = [(variant, STEPS) for variant in found]
    rows += [(variant, timed[variant]) for variant in found if timed.get(variant, STEPS) != STEPS]
    lines = [f"| variant | steps | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 2) + "|"]
    for variant, steps in rows:
        cells = (cell(found[variant].get(task, {}), steps) for task in TASKS)
        lines.append(f"| {variant} | {steps:,} | {' | '.join(cells)} |")
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
                shortest = min((steps for steps, _ in seeds.values()), key=len)
                mean = np.mean([r[: len(shortest)] for _, r in seeds.values()], axis=0)
                panel.plot(shortest / 1000, mean, linewidth=2.5, **look)
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
