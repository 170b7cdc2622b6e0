"""Learning curves: a panel a task and a panel a suite, against steps or wall-clock."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Iterable

import numpy as np

from harness.learning_curve import no_notebooks_backend

with no_notebooks_backend():
    import matplotlib
    from matplotlib.figure import Figure

from reporting.measures import curve, full_score
from reporting.results import AXES, KINDS, Group, Run, by_suite, table_values

# Light theme; the page replaces each by a variable that the theme sets, so no two may be equal.
COLOURS = {"ink": "#1b2129", "muted": "#66707c", "grid": "#e3e6ea", "paper": "#fffffe"}
SERIES = ("#0063b1", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d")
POINTS = 100  # of a curve, at the most
REFERENCES_DRAWN = 6
DASHED = {"ls": (0, (3, 2)), "lw": 1.2}
LEGEND_WIDTH = 64  # characters, after which a legend's line is broken
LEGEND_LINE = 0.16  # inches that each of its lines after the first two adds to the figure


def _grid(runs: Iterable[Run], axis: str) -> np.ndarray:
    """Where a curve of `runs` is drawn: all their evaluations, thinned out to POINTS."""
    every = [getattr(run, axis) for run in runs]
    points = np.unique(np.concatenate([p[np.isfinite(p)] for p in every] or [np.zeros(0)]))
    if len(points) > POINTS:
        points = points[np.linspace(0, len(points) - 1, POINTS).round().astype(int)]
    return points


def _scaled(axis: str, positions: np.ndarray, longest: float) -> tuple[np.ndarray, str]:
    """Positions in the unit that reads best, and its name."""
    units = [(1e6, "million environment steps"), (1e3, "thousand environment steps")]
    units = units if axis == "step" else [(60.0, "hours"), (1.0, "minutes of wall-clock")]
    scale, name = next((unit for unit in units if longest >= 2 * unit[0]), units[-1])
    return positions / scale, name


def _explain_dashes(axes) -> None:
    """One line of the legend for all that are dashed, where colours tell settings apart."""
    axes.plot([], [], color=COLOURS["muted"], label=f"dashed: {KINDS['deterministic']}", **DASHED)


def _draw(axes, x, estimates, colour: str, label: str | None, dashed: bool = False) -> None:
    value, low, high = estimates
    style = DASHED if dashed else {"lw": 2.0}
    marker = "o" if np.isfinite(value).sum() <= 25 and not dashed else None
    axes.plot(x, value, color=colour, label=label, marker=marker, ms=3.2, **style)
    if not dashed and np.isfinite(low).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)


def _figure():
    figure = Figure(figsize=(4.1, 3.0), layout="constrained", facecolor=COLOURS["paper"])
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["grid"])
    axes.grid(axis="y", color=COLOURS["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOURS["muted"], labelsize=8.5, length=0, pad=4)
    return figure, axes


def _finish(figure, axes, unit: str, y_label: str) -> None:
    for text, setter in ((unit, axes.set_xlabel), (y_label, axes.set_ylabel)):
        setter(text, fontsize=9, color=COLOURS["muted"])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    handles, labels = axes.get_legend_handles_labels()
    short = sum(map(len, labels)) < 50
    labels = [textwrap.fill(text, LEGEND_WIDTH, break_on_hyphens=False) for text in labels]
    lines = 1 if short else sum(text.count("\n") + 1 for text in labels)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LEGEND_LINE * max(0, lines - 2))
    place = {"loc": "outside upper left", "ncols": 2 if short else 1}
    style = {"fontsize": 8, "frameon": False, "handlelength": 1.6, "labelcolor": COLOURS["ink"]}
    style["alignment"] = "left"
    figure.legend(handles, labels, borderpad=0.1, columnspacing=1.4, **place, **style)


def task_figure(groups: list[Group], axis: str, references: list[dict[str, str]]):
    """One task's curves, or None without a number: IQM over runs, its interval, each run faint.

    Dashed: the same without noise. A cross: the last evaluation of a run that did not finish.
    References are horizontal lines, named at the right.
    """
    shown = [group for group in groups if _grid(group.runs, axis).size]
    if not shown:
        return None
    figure, axes = _figure()
    longest = max(_grid(group.runs, axis)[-1] for group in shown)
    for colour, group in zip(itertools.cycle(SERIES), shown):
        points = _grid(group.runs, axis)
        x, unit = _scaled(axis, points, longest)
        values = {kind: table_values(group.runs, kind, axis, points) for kind in KINDS}
        for run in group.runs:
            positions, _ = _scaled(axis, getattr(run, axis), longest)
            if not np.isfinite(positions).all() or not positions.size:
                continue
            if len(group.runs) > 1:
                axes.plot(positions, run.returns["sampled"], color=colour, lw=0.7, alpha=0.35)
            if run.status not in ("finished", "running"):
                last = run.returns["sampled"][-1]
                axes.plot(positions[-1], last, "x", color=colour, ms=7, mew=2, zorder=4)
        count = sum(bool(run.step.size) for run in group.runs)
        name = group.settings if len(shown) > 1 else KINDS["sampled"]
        of = f"{count} run{'s' if count > 1 else ''}"
        of = of if count == len(group.runs) else f"{count} of {len(group.runs)} runs"
        estimates = curve("iqm", [values["sampled"]])
        _draw(axes, x, estimates, colour, f"{name}, {of}")
        estimates = curve("iqm", [values["deterministic"]])
        label = None if len(shown) > 1 else KINDS["deterministic"]
        _draw(axes, x, estimates, colour, label, dashed=True)
    if len(shown) > 1:
        _explain_dashes(axes)
    _finish(figure, axes, unit, "return")
    column = "at" if axis == "step" else "minutes"
    _draw_references(axes, [row for row in references if row[column]])
    return figure


def _draw_references(axes, references: list[dict[str, str]]) -> None:
    """Horizontal lines with names at the right, moved apart where they would overlap."""
    chosen = sorted(references, key=lambda row: float(row["value"]))[-REFERENCES_DRAWN:]
    if not chosen:
        return
    top = max(axes.get_ylim()[1], 1.06 * float(chosen[-1]["value"]))
    axes.set_ylim(top=top)
    spacing, lowest = 0.072 * top, -math.inf
    for row in chosen:
        value = float(row["value"])
        axes.axhline(value, color=COLOURS["muted"], lw=0.7, ls=(0, (1, 2)), zorder=1)
        lowest = max(value, lowest + spacing)
        text = f"{row['method']} {value:,.0f}"
        place = {"xy": (1, lowest), "xycoords": ("axes fraction", "data"), "xytext": (4, 0)}
        place |= {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(text, fontsize=7.5, color=COLOURS["muted"], **place)


def aggregate_figure(groups: list[Group], name: str, axis: str):
    """IQM of scores over all tasks of one suite, a line a setting; None without a common point."""
    figure, axes = _figure()
    chosen = {key: value for key, value in by_suite(groups).items() if key[1] == name}
    grids = {key: _grid([r for g in value for r in g.runs], axis) for key, value in chosen.items()}
    longest = max((grid[-1] for grid in grids.values() if grid.size), default=0.0)
    for colour, (key, members) in zip(itertools.cycle(SERIES), chosen.items()):
        x, unit = _scaled(axis, grids[key], longest)
        for kind in KINDS:
            strata = [
                table_values(group.runs, kind, axis, grids[key]) / full_score(group.task)
                for group in members
            ]
            if not x.size or not np.isfinite((estimates := curve("iqm", strata))[0]).any():
                continue
            dashed = kind != "sampled"
            label = KINDS[kind] if len(chosen) == 1 else None if dashed else key[0]
            _draw(axes, x, estimates, colour, label, dashed)
    if not axes.lines:
        return None
    if len(chosen) > 1:
        _explain_dashes(axes)
    _finish(figure, axes, unit, "IQM of scores")
    return figure


def svg(figure, salt: str) -> str:
    """The figure as SVG for a page: its colours are the page's variables, its text is text."""
    options = {"svg.hashsalt": salt, "svg.fonttype": "none"}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(options), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata=nothing)
        text = file.getvalue()
    text = text[text.index("<svg") :]
    for variable, colour in [*COLOURS.items(), *((f"s{i}", c) for i, c in enumerate(SERIES))]:
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[\d.]+pt"', r"\1", text, count=2)


def figures(groups: list[Group], references: list[dict[str, str]]) -> dict[tuple[str, str], object]:
    """(name, axis) -> figure, for every suite and every task that has numbers."""
    drawn = {}
    suites = dict.fromkeys(name for _, name in by_suite(groups))
    by_task: dict[str, list[Group]] = {}
    for group in groups:
        by_task.setdefault(group.task, []).append(group)
    for axis in AXES:
        for name in suites:
            drawn[f"all of {name}", axis] = aggregate_figure(groups, name, axis)
        for task, members in by_task.items():
            mine = [row for row in references if row["task"] == task]
            drawn[task, axis] = task_figure(members, axis, mine)
    return {key: figure for key, figure in drawn.items() if figure is not None}
