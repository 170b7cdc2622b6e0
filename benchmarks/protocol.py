"""The runs of PROTOCOL.md as they end: what is kept of them, their tables and their curves.

    python benchmarks/protocol.py VARIANT RESULTS     # RESULTS: benchmark.sh's --out
    python benchmarks/protocol.py                     # tables and pictures alone
    python report.py benchmarks/development/*/*.csv   # curves with intervals, task by task

Of each finished run of RESULTS it keeps metrics.csv and config.json, as SET/VARIANT/TASK__SEED.csv
and .json, where SET is `development` for the tasks to choose by, `reported` for those that are run
once with what was chosen, `ablations` where VARIANT is a change of one flag, `w2_coef=0` say, and
`authors` where it is `released_...`, the authors' code or ours with its settings. It writes the
table of SET/README.md, and SET/curves.png.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import inputs
from benchmarks.inputs import SAMPLED
from harness import runs
from harness.errors import RunError
from reporting import measures

FOLDER = Path(__file__).resolve().parent
SETS = {
    "development": ("cheetah-run", "walker-run", "humanoid-stand", "hopper-hop", "h1-run"),
    "reported": ("humanoid-walk", "humanoid-run", "dog-walk", "quadruped-run", "h1-stand")
    + ("h1-walk", "finger-turn_hard", "fish-swim", "acrobot-swingup", "walker-walk"),
    "ablations": ("cheetah-run", "walker-run"),
    "authors": ("cheetah-run", "walker-run"),
}
CHANGED = "flowrl_64x512_lr1e-3"  # what an ablation changes one flag of
STEPS = 200_000  # at which all are compared
SHORTER = {"authors": 100_000}  # but those of a set
# and after these minutes of an idle core:
MINUTES = {"development": (6, 10, 15, 20, 45), "reported": (10, 15, 30, 60)}
LAST = 5  # evaluations of which the protocol has the mean
BESIDE = "cheetah-run"  # the task that task_speed.csv's ratios are to
# Endings of a variant that makes as many updates a second as the one without it.
AS_FAST = ("_lr1e-3", "_mean", "_anneal", "_ind", "_tau0.02", "_late", "_noise", "_noise0.2")
PUBLISHED = ("FlowRL A", "FlowRL B", "SAC")  # of reference.csv, after a million steps
Curve = tuple[np.ndarray, np.ndarray]  # steps, sampled returns
Curves = dict[str, dict[str, dict[int, Curve]]]  # variant -> task -> seed -> its curve


def set_of(variant: str, task: str) -> str:
    """Which of SETS a run belongs to. Raises RunError for a task that the set does not have."""
    chosen = ("ablations",) if "=" in variant else ("development", "reported")
    chosen = ("authors",) if variant.startswith("released_") else chosen
    for name in chosen:
        if task in SETS[name]:
            return name
    raise RunError(f"RESULTS: {task} is no task of PROTOCOL.md for {variant}; leave its runs out")


def collect(variant: str, results: Path) -> list[str]:
    """Copies what is kept of the finished runs; returns their names, TASK__SEED.

    Raises RunError, and has copied nothing: a run that cannot be kept, no run at all, or a variant
    that is no folder's name.
    """
    if not re.fullmatch(r"\w[\w.=+-]*", variant):
        raise RunError(f"VARIANT: {variant!r} is no name for a folder, such as flowrl_8x128")
    found = sorted(path.parent for path in results.glob("runs/*/config.json"))
    if not found:
        raise RunError(f"RESULTS: '{results}' has no runs/*/config.json; name benchmark.sh's --out")
    names, kept = [], {}
    for run in found:
        if runs.read_config(run)["status"] != "finished":
            continue
        name, files = inputs.measured(run)
        folder = FOLDER / set_of(variant, name.split("__")[0]) / variant
        kept |= {folder / f"{name}{suffix}": content for suffix, content in files.items()}
        names.append(name)
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.replace_file(path, content)
    return names


def curve(path: Path) -> Curve:
    """The evaluations in a run's CSV."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(SAMPLED)]
    return np.array([int(row["step"]) for row in rows]), np.array(
        [float(row[SAMPLED]) for row in rows]
    )


def curves(name: str) -> Curves:
    """Of all runs kept in a set, variants in the order of their names; of ablations CHANGED too."""
    found: Curves = {}
    for path in sorted((FOLDER / name).glob("*/*__*.csv")):
        task, seed = path.stem.split("__")
        of_task = found.setdefault(path.parent.name, {}).setdefault(task, {})
        of_task[int(seed)] = curve(path)
    if name == "ablations" and found:
        return {CHANGED: curves("development").get(CHANGED, {})} | found
    return found


def _by_variant(path: Path, column: str) -> dict[str, dict[str, float]]:
    """A column of a CSV of training loops: variant -> task -> number."""
    found: dict[str, dict[str, float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            algorithm = row["algorithm"].removesuffix("_jax")
            variant = f"{algorithm}_{row['num_envs']}x{row['batch_size']}"
            found.setdefault(variant, {})[row["env_id"]] = float(row[column])
    return found


class Speeds:
    """Environment steps a minute on an idle core of one machine.

    By throughput_algorithms.csv, where all were measured in turns: the runs themselves share a
    machine with other work. Tasks that were measured later, on another machine beside
    cheetah-run, by their ratio to it in task_speed.csv.
    """

    def __init__(self, folder: Path):
        self.steps = _by_variant(folder / "throughput_algorithms.csv", "steps/s")
        self.ratios = _by_variant(folder / "task_speed.csv", "ratio")

    def of(self, variant: str, task: str) -> float | None:
        """The task's, or its domain's; else the mean of those in throughput_algorithms.csv.

        None for a variant that was not measured.
        """
        for suffix in AS_FAST:
            variant = variant.removesuffix(suffix)
        if variant not in self.steps:
            return None
        measured, ratios = self.steps[variant], self.ratios.get(variant, {})
        by_task = {other: ratio * measured[BESIDE] for other, ratio in ratios.items()} | measured
        domain = task.split("-")[0]
        near = [speed for other, speed in by_task.items() if other.split("-")[0] == domain]
        return 60 * by_task.get(task, float(np.mean(near or list(measured.values()))))


def within(seeds: dict[int, Curve], budget: float) -> list[np.ndarray]:
    """Each seed's returns up to the budget, of the runs that have gone so far.

    Runs that ended an evaluation or more before it are left out; what others did after it does
    not count.
    """
    return [
        returns[steps <= budget]
        for steps, returns in seeds.values()
        if steps[0] <= budget < steps[-1] + steps[0]  # steps[0]: the time between two evaluations
    ]


def with_interval(measure: str, strata: list[np.ndarray], digits: int) -> str:
    """A measure and its 95 % interval, if each task has two seeds or more."""
    value, low, high = measures.estimate(measure, strata)
    interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) else ""
    return f"{value:.{digits}f}{interval}"


def last(runs: list[np.ndarray]) -> str:
    """The last evaluation: mean over seeds and its interval."""
    return with_interval("mean", [np.array([returns[-1] for returns in runs])], 0)


def cell(runs: list[np.ndarray]) -> str:
    """As `last`, then the mean of the last five evaluations, and how many seeds."""
    if not runs:
        return ""
    late = np.mean([returns[-LAST:].mean() for returns in runs])
    return f"{last(runs)}, {late:.0f} ({len(runs)})"


def alike(by_task: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The first seeds of each task, as many as the task with the fewest has.

    An IQM is of all runs together, so a task with more of them would count for more.
    """
    fewest = min(len(runs) for runs in by_task)
    return [runs[:fewest] for runs in by_task]


def iqm(by_task: list[list[np.ndarray]]) -> str:
    """Of returns / 1,000 at the last evaluation over all tasks, and of how many seeds of each.

    Nothing where a task has fewer than two: of one seed each it has no interval.
    """
    by_task = alike(by_task)
    if len(by_task[0]) < 2:
        return ""
    strata = [np.array([returns[-1] for returns in runs]) / 1_000 for runs in by_task]
    return f"{with_interval('iqm', strata, 3)} ({len(by_task[0])})"


def published(task: str) -> str:
    """What PUBLISHED returned after a million steps, as reference.csv has it."""
    with (Path(__file__).resolve().parent / "reference.csv").open() as file:
        found = {row["method"]: row["value"] for row in csv.DictReader(file) if row["task"] == task}
    return ", ".join(f"{name} {found[name]}" for name in PUBLISHED if name in found)


def steps(name: str) -> int:
    """Environment steps at which the runs of a set are compared."""
    return SHORTER.get(name, STEPS)


def after(name: str, minutes: float | None) -> dict[str, dict[str, list[np.ndarray]]]:
    """Of a set: variant -> task -> each seed's returns up to those minutes; None: up to `steps`."""
    found, speeds = curves(name), Speeds(FOLDER)
    table: dict[str, dict[str, list[np.ndarray]]] = {}
    for variant in found:
        for task in SETS[name]:
            speed = minutes and speeds.of(variant, task)
            budget = steps(name) if minutes is None else minutes * (speed or 0)
            of_task = table.setdefault(variant, {})
            of_task[task] = within(found[variant].get(task, {}), budget)
    return table


def rows(name: str) -> list[list[str]]:
    """A set's table: a row a task at equal steps, then after equal time, and over all tasks."""
    tasks, lines = SETS[name], []
    for minutes in (None, *MINUTES.get(name, ())):
        table = after(name, minutes)
        when = f"{steps(name):,} steps" if minutes is None else f"{minutes} minutes"
        for task in tasks:
            cells = [cell(of_task[task]) for of_task in table.values()]
            if any(cells):
                lines.append([when, task, *cells, published(task)])
        over_all = [iqm([of_task[task] for task in tasks]) for of_task in table.values()]
        if any(over_all):
            lines.append([when, "**IQM / 1,000**", *over_all, ""])
    return lines


def variants_down(lines: list[list[str]]) -> list[list[str]]:
    """The same cells with a row a variant, a column a task; what is published in one last row."""
    tasks = list(dict.fromkeys(line[1] for line in lines[1:]))
    shown, known = [["after", "variant", *tasks]], {}
    for after in dict.fromkeys(line[0] for line in lines[1:]):
        of_task = {line[1]: line for line in lines[1:] if line[0] == after}
        known |= {task: line[-1] for task, line in of_task.items()}
        for number, variant in enumerate(lines[0][2:-1], 2):
            cells = [of_task[task][number] if task in of_task else "" for task in tasks]
            shown += [[after, variant, *cells]] if any(cells) else []
    return [*shown, ["", lines[0][-1], *(known[task] for task in tasks)]]


def table(name: str) -> str:
    """As Markdown; of tasks and variants those that are more go down the page.

    A variant without a cell has no column: its runs end before `steps`, and it was not timed.
    """
    lines = [["after", "task", *curves(name), "published"], *rows(name)]
    columns = list(zip(*lines, strict=True))
    variants = [column for column in columns[2:-1] if any(column[1:])]
    lines = [list(line) for line in zip(*columns[:2], *variants, columns[-1], strict=True)]
    published = any(line[-1] for line in lines[1:])
    if len(variants) > len(SETS[name]):
        lines = variants_down(lines)
        lines = lines if published else lines[:-1]
    elif not published:  # none of these tasks has been
        lines = [line[:-1] for line in lines]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], "|---" * len(lines[0]) + "|", *shown[1:]])


def mean_curve(curves_of: list[Curve]) -> Curve:
    """The mean of returns, where all have been, on the coarsest grid."""
    grid = min((steps for steps, _ in curves_of), key=len)
    grid = grid[grid <= min(steps[-1] for steps, _ in curves_of)]
    return grid, np.mean([np.interp(grid, *one) for one in curves_of], axis=0)


def over(found: Curves, unit: Callable[[str, str], float], end: float = np.inf) -> Curves:
    """The curves by steps / unit(variant, task), up to `end`: thousands of steps, or minutes."""

    def one(variant: str, task: str, steps: np.ndarray, returns: np.ndarray) -> Curve:
        x = steps / unit(variant, task)
        return x[x <= end], returns[x <= end]

    return {
        variant: {
            task: {seed: one(variant, task, *curve) for seed, curve in seeds.items()}
            for task, seeds in of_tasks.items()
        }
        for variant, of_tasks in found.items()
    }


def draw(found: Curves, tasks: Iterable[str], xlabel: str, path: Path) -> None:
    """A panel a task: each seed thin, a variant's mean thick where it has several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = [task for task in tasks if any(task in of for of in found.values())]
    columns = min(5, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, 3 * lines), squeeze=False)
    for panel in axes.flat[len(tasks) :]:
        panel.axis("off")
    for panel, task in zip(axes.flat, tasks, strict=False):
        for number, (variant, of_tasks) in enumerate(found.items()):
            seeds, look = of_tasks.get(task, {}), {"color": f"C{number}"}
            for one in seeds.values():
                panel.plot(*one, linewidth=1, **look)
            if len(seeds) > 1:
                panel.plot(*mean_curve(list(seeds.values())), linewidth=2.5, **look)
            panel.plot([], [], label=variant, **look)
        panel.set(title=task, xlabel=xlabel, ylim=(0, None))
    axes[0, 0].set_ylabel("return, sampled x0")
    figure.tight_layout()
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0.0))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def plot(name: str) -> None:
    """A set's picture."""
    found = over(curves(name), lambda variant, task: 1_000)
    draw(found, SETS[name], "thousand environment steps", FOLDER / name / "curves.png")


def main(arguments: list[str] | None = None) -> None:
    """Collects, and writes tables and pictures anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", nargs="?", metavar="VARIANT", help="a name, SIZES or FLAG=VALUE")
    parser.add_argument("results", nargs="?", metavar="RESULTS", help="benchmark.sh's --out")
    chosen = parser.parse_args(arguments)
    if chosen.variant is not None:
        if chosen.results is None:
            parser.error("RESULTS: is missing; name VARIANT and RESULTS, or neither")
        try:
            names = collect(chosen.variant, Path(chosen.results))
        except RunError as error:
            parser.error(str(error))
        print("kept:", ", ".join(names) or "nothing has finished")
    for name in SETS:
        if not curves(name):
            continue
        page = FOLDER / name / "README.md"
        marked = rf"(<!-- {name} -->\n+).+?(?=\n\n|\n?\Z)"
        text = page.read_text()
        assert re.search(marked, text, flags=re.S), f"{page}: no <!-- {name} -->"
        text = re.sub(marked, rf"\g<1>{table(name)}", text, flags=re.S)
        page.write_text(text)
        plot(name)
        print(table(name))


if __name__ == "__main__":
    main()
