"""The algorithms of this repository side by side: who is ahead, where and when, for the pages.

docs.py puts these tables and the picture into the pages; PROTOCOL.md has the rule, protocol.py the
runs that both are made of.
"""

import itertools
import sys
from math import nan
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import protocol
from reporting import measures
from reporting.tables import markdown_table

MINUTES = 15  # of one idle core, after which README and docs/ compare
FACTORS = (0.9, 0.99, 1.0, 1.01)  # of MINUTES: by how much the speeds behind them are unknown
SIDE_BY_SIDE = {  # variants of the protocol, and how README calls them
    "flowrl_hlgauss_64x512_mean_lr1e-3": "`flowrl_hlgauss_jax.py`",
    "sac_8x128": "`sac_jax.py`",
    "sac_64x512_lr1e-3": "`sac_jax.py`, larger",
    "flowrl_64x512_lr1e-3": "`flowrl_jax.py`, larger",
}
# What was run as `--target-heads by_task` where an episode can end early: on the H1's tasks here.
WHERE_IT_ENDS = {"flowrl_hlgauss_64x512_mean_lr1e-3": "flowrl_hlgauss_64x512_lr1e-3"}


def variant_on(variant: str, task: str) -> str:
    """The variant whose runs on this task are those of one of SIDE_BY_SIDE."""
    return WHERE_IT_ENDS.get(variant, variant) if task.startswith("h1-") else variant


def compared(minutes: float = MINUTES) -> dict[str, list[list[np.ndarray]]]:
    """Task -> of each variant of SIDE_BY_SIDE, its seeds' returns up to those minutes.

    Tasks that none was run on so long are left out.
    """
    tasks = {}
    for name in ("development", "reported"):
        found = protocol.after(name, minutes) if protocol.curves(name) else {}
        for task in protocol.SETS[name]:
            variants = (variant_on(variant, task) for variant in SIDE_BY_SIDE)
            tasks[task] = [found.get(variant, {}).get(task, []) for variant in variants]
    return {task: of_variants for task, of_variants in tasks.items() if any(of_variants)}


def side_by_side() -> str:
    """README's: this repository's algorithms after MINUTES, task by task, and what is published."""
    lines = []
    for task, of_variants in compared().items():
        cells = [f"{protocol.last(runs)} ({len(runs)})" if runs else "" for runs in of_variants]
        lines.append((task, *cells, protocol.published(task)))
    names = ["task", *SIDE_BY_SIDE.values(), "published, after 1,000,000 steps"]
    return markdown_table(names, lines)


def edges() -> str:
    """Cells of `side_by_side` that other minutes would change: by how much speeds are unknown."""
    found, lines = [compared(factor * MINUTES) for factor in FACTORS], []
    for task, (number, words) in itertools.product(compared(), enumerate(SIDE_BY_SIDE.values())):
        runs = [tasks[task][number] if task in tasks else [] for tasks in found]
        cells = [f"{protocol.last(one)} ({len(one)})" if one else "" for one in runs]
        if len(set(cells)) > 1:
            lines.append((task, words, *cells))
    columns = (f"{factor * MINUTES:g} minutes" for factor in FACTORS)
    return markdown_table(["task", "file", *columns], lines)


def order(
    one: list[np.ndarray], other: list[np.ndarray], evaluations: int = 1, measure: str = "mean"
) -> str:
    """Whether one is ahead of the other, by a measure of the seeds: PROTOCOL.md's rule.

    evaluations: how many of a seed's last make its figure, by their mean. Nothing where one of the
    two has fewer than two seeds.
    """
    if min(len(one), len(other)) < 2:
        return ""
    ends = ([np.array([seed[-evaluations:].mean() for seed in s])] for s in (one, other))
    (_, low, high), (_, lowest, highest) = (measures.estimate(measure, end) for end in ends)
    return "**ahead**" if low > highest else "**behind**" if high < lowest else "neither"


def verdicts() -> str:
    """The tasks to report: `order` of the first two of SIDE_BY_SIDE, at the times of `edges`.

    The last columns are after MINUTES too: by the mean of the last evaluations, by the IQM of the
    seeds instead of their mean, and of the first beside the third, with how many seeds that has.
    """
    found, lines = [compared(factor * MINUTES) for factor in FACTORS], []
    for task in protocol.SETS["reported"]:
        by_time = [tasks.get(task, [[], [], []])[:3] for tasks in found]
        pairs, (one, _, larger) = [three[:2] for three in by_time], by_time[FACTORS.index(1)]
        at_minutes = pairs[FACTORS.index(1)]
        counts = " and ".join(str(len(runs)) for runs in at_minutes)
        late, iqm = order(*at_minutes, protocol.LAST), order(*at_minutes, measure="iqm")
        third = f"{order(one, larger)} ({len(larger)})".strip() if larger else ""
        lines.append((task, counts, *(order(*pair) for pair in pairs), late, iqm, third))
    columns = [f"{factor * MINUTES:g} minutes" for factor in FACTORS]
    columns += [f"{MINUTES:g}, mean of the last {protocol.LAST}", f"{MINUTES:g}, IQM"]
    columns.append(f"{MINUTES:g}, beside {list(SIDE_BY_SIDE.values())[2]}")
    return markdown_table(["task", "seeds", *columns], lines)


def over_all() -> str:
    """Over the tasks to report: IQM / 1,000 of the first two of SIDE_BY_SIDE, minute by minute.

    Of as many seeds of each task as all have. `above` is how often a seed of one is above a seed
    of the other on the same task, in percent.
    """
    variants, tasks = list(SIDE_BY_SIDE)[:2], protocol.SETS["reported"]

    def row(when: str, minutes: float, evaluations: int) -> tuple[str, ...]:
        found = protocol.after("reported", minutes)
        runs = protocol.alike(
            [found[variant_on(v, task)][task] for v in variants for task in tasks]
        )
        runs = [[seed[-evaluations:].mean(keepdims=True) for seed in seeds] for seeds in runs]
        one, other = runs[: len(tasks)], runs[len(tasks) :]
        above = [np.array(a) > np.array(b).T for a, b in zip(one, other, strict=True)]
        return when, protocol.iqm(one), protocol.iqm(other), f"{100 * np.mean(above):.0f}"

    times = (5, 6, 7, 8, 9, 10, 11, 12, 13, 13.5, 14, 14.85, MINUTES)
    lines = [row(f"{minutes:g}", minutes, 1) for minutes in times]
    lines.append(row(f"{MINUTES:g}, mean of the last {protocol.LAST}", MINUTES, protocol.LAST))
    names = ["minutes", *(SIDE_BY_SIDE[variant] for variant in variants), "above, %"]
    return markdown_table(names, lines)


def picture(path: Path) -> None:
    """README's: the curves behind `side_by_side`, over minutes."""
    speeds, found = protocol.Speeds(HERE), {}
    for name in ("development", "reported"):
        kept = protocol.over(protocol.curves(name), lambda *what: speeds.of(*what) or nan, MINUTES)
        for variant, task in itertools.product(SIDE_BY_SIDE, protocol.SETS[name]):
            of_tasks = found.setdefault(SIDE_BY_SIDE[variant].replace("`", ""), {})
            of_tasks[task] = kept.get(variant_on(variant, task), {}).get(task, {})
    protocol.draw(found, compared(), "minutes of one core", path)
