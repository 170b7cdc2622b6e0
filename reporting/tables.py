"""Rows of results, and what is shown of them: results.csv, results.md."""

import csv
import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from reporting.measures import BOOTSTRAP_SEED, MEASURES, RESAMPLES, estimate, full_score
from reporting.results import (
    KINDS,
    Group,
    ReportError,
    Run,
    by_suite,
    table_values,
    value_at,
)


def planned_end(group: Group) -> float:
    """Environment steps that the longest run of a group was asked for, or reached."""
    asked = [r.config.get("args", {}).get("total_timesteps", r.reached) for r in group.runs]
    reached = [run.reached for run in group.runs if run.status == "finished"]
    return float(max(reached, default=max([*asked, 0])))


def result_rows(groups: list[Group], steps: list[float], minutes: list[float]) -> list[dict]:
    """One row a task, settings, kind of evaluation and point; see COLUMNS.

    Without steps and minutes the point is the end of each group's runs.
    """
    rows = []
    for group in groups:
        at_end = [("step", planned_end(group))] if not steps and not minutes else []
        points = [("step", at) for at in steps] + [("minutes", at) for at in minutes] + at_end
        for (axis, at), kind in itertools.product(points, KINDS):
            found = {run.seed: value_at(run, kind, axis, at) for run in group.runs}
            values = np.array([value for value, reason in found.values() if not reason])
            missing = {seed: reason for seed, (_, reason) in found.items() if reason}
            row = _row(group.task, group.settings, kind, axis, at, [values])
            row |= {"runs": len(values), "of": len(group.runs)}
            row["seeds"] = " ".join(str(seed) for seed in found if seed not in missing)
            row["missing"] = [f"seed {seed}: {why}" for seed, why in missing.items()]
            rows.append(row | {"notes": "; ".join(group.notes)})
    return rows


def aggregate_rows(groups: list[Group], steps: list[float], minutes: list[float]) -> list[dict]:
    """Scores over all tasks of a suite under one setting: returns divided by `full_score`."""
    rows = []
    for (settings, name), members in by_suite(groups).items():
        at_end = [("step", math.inf)] if not steps and not minutes else []
        points = [("step", at) for at in steps] + [("minutes", at) for at in minutes] + at_end
        for (axis, at), kind in itertools.product(points, KINDS):
            strata, without = [], []
            for group in members:
                point = planned_end(group) if at == math.inf else at
                values = table_values(group.runs, kind, axis, [point])[:, 0] / full_score(
                    group.task
                )
                values = values[np.isfinite(values)]
                strata.append(values)
                without += [] if values.size else [group.task]
            whole = [np.zeros(0)] if without else strata
            row = _row(f"{name}, {len(members)} tasks", settings, kind, axis, at, whole)
            for measure in ("median", "optimality_gap"):
                if not without:
                    row |= _measured(measure, strata)
            row |= {"runs": sum(map(len, strata)), "of": sum(len(group.runs) for group in members)}
            row["seeds"] = ""
            row["missing"] = [f"no number for {', '.join(without)}"] if without else []
            if not without and len(set(map(len, strata))) > 1:
                shares = ", ".join(
                    f"{group.task} {len(values)}"
                    for group, values in zip(members, strata, strict=True)
                )
                row["missing"] = [f"every run counts alike in the IQM ({shares})"]
            rows.append(row | {"notes": ""})
    return rows


def _row(scope: str, settings: str, kind: str, axis: str, at: float, strata: list) -> dict:
    row = {"task": scope, "settings": settings, "evaluation": KINDS[kind], "axis": axis, "at": at}
    if strata[0].size:
        row |= _measured("iqm", strata) | _measured("mean", strata)
    return row


def _measured(measure: str, strata: list[np.ndarray]) -> dict[str, float]:
    names = (measure, f"{measure}_low", f"{measure}_high")
    return dict(zip(names, map(float, estimate(measure, strata)), strict=True))


COLUMNS = ["task", "settings", "evaluation", "axis", "at", "runs", "of"]
COLUMNS += [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
COLUMNS += ["seeds", "missing", "notes"]


def read_references(path: Path) -> list[dict[str, str]]:
    """Published figures; a row has task, method, at (steps), value, statistic, evaluation, source.

    Raises ReportError if the file cannot be read as such.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ReportError(f"--reference: {path}: there is no row in it")
        for row in rows:
            float(row["value"])
            [
                row[name]
                for name in ("task", "method", "at", "minutes", "statistic", "evaluation", "source")
            ]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        text = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise ReportError(f"--reference: {path}: {text}") from None
    return rows


# ------------------------------------------------------------------------------------ what is shown
def number(value: float | str | None) -> str:
    """Whole from 10 on, below with three digits: returns and scores."""
    if value is None or value == "" or math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:#.3g}"


def minutes_text(value: float) -> str:
    """Minutes with one decimal, or nothing."""
    return f"{value:,.1f}" if math.isfinite(value) else ""


def with_interval(row: dict, measure: str) -> str:
    """`612 [580, 640]`, without the interval where there is none, "-" without a number."""
    if measure not in row:
        return "-"
    low, high = number(row[f"{measure}_low"]), number(row[f"{measure}_high"])
    return number(row[measure]) + (f" [{low}, {high}]" if low else "")


def point_name(row: dict) -> str:
    """`100,000 steps`, `30 min` or `end`."""
    if row["at"] == math.inf:
        return "end"
    return f"{row['at']:,.0f} steps" if row["axis"] == "step" else f"{row['at']:g} min"


def paired(rows: list[dict]) -> list[dict]:
    """Rows with both kinds of evaluation side by side: a task, settings and point each."""
    together: dict[tuple, dict] = {}
    for row in rows:
        key = (row["task"], row["settings"], row["axis"], row["at"])
        entry = together.setdefault(key, {"task": row["task"], "settings": row["settings"]})
        entry[next(kind for kind, name in KINDS.items() if name == row["evaluation"])] = row
    for entry in together.values():
        entry |= {"point": point_name(entry["sampled"])}
        entry |= {name: entry["sampled"][name] for name in ("runs", "of", "missing", "notes")}
    return list(together.values())


def references_of(task: str, references: list[dict[str, str]]) -> list[dict[str, str]]:
    """The published figures of a task, highest first."""
    mine = [row for row in references if row["task"] == task]
    return sorted(mine, key=lambda row: -float(row["value"]))


def run_table(groups: list[Group], replaced: list[tuple[Run, str, str]]) -> list[dict[str, object]]:
    """Every run, also those that should be there, with how it ended; first what did not finish."""
    everything = [(run, group.settings, "") for group in groups for run in group.runs]
    lines = []
    for run, settings, note in [*everything, *replaced]:
        last = {k: float(v[-1]) if v.size else math.nan for k, v in run.returns.items()}
        minutes = run.total_minutes
        if not math.isfinite(minutes) and run.minutes.size:
            minutes = float(run.minutes[-1])
        git = run.config.get("git") or {}
        commit = git.get("commit", "")[:10] + ("+" if git.get("dirty") else "")
        line = {"run": run, "settings": settings, "why": "; ".join(filter(None, (run.why, note)))}
        lines.append(line | {"last": last, "minutes": minutes, "commit": commit})
    order = ["failed", "killed", "missing", "interrupted", "running", "finished"]
    return sorted(lines, key=lambda line: order.index(line["run"].status))


def markdown_table(header: list[str], lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table; cells are escaped."""
    rows = [header, ["---"] * len(header), *lines]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


READING = f"""\
Returns are means over the episodes of one evaluation; a row puts the runs (seeds) of one task and
one setting together. IQM is the interquartile mean: the mean without the lowest and highest quarter
of runs, which for fewer than four runs is the mean. In brackets: 95 % percentile interval of a
bootstrap stratified by task, {RESAMPLES:,} resamples, seed {BOOTSTRAP_SEED}; there is none for one
run, and for few runs it is too narrow. A point is the nearest evaluation at or before it, not older
than one interval of evaluations. Both evaluations are given: sampled, with the policy's noise as in
training, and without noise (FlowRL: x0 = 0; SAC: tanh(mu)). Minutes count from the start of
training, with compiling and evaluation. Scores over tasks are returns divided by 1,000 (dm_control)
or by the bar of success (HumanoidBench); the median is over tasks, the optimality gap is how far
scores fall short of 1."""


def results_markdown(
    rows: list[dict],
    aggregates: list[dict],
    listing: list[dict],
    references: list[dict[str, str]],
    pictures: list[str],
) -> str:
    """Everything as results.md. Where all settings are the same, they are said once."""
    settings = {line["settings"] for line in listing}
    one = f"All runs: {settings.pop()}." if len(settings) == 1 else ""

    def table(header: list[str], lines: Iterable[Iterable[object]]) -> str:
        kept = [i for i, name in enumerate(header) if not (one and name == "settings")]
        cut = [[list(line)[i] for i in kept] for line in lines]
        return markdown_table([header[i] for i in kept], cut)

    kinds = [f"{measure}, {name}" for name in KINDS.values() for measure in ("IQM", "mean")]
    lines = [
        [entry["task"], entry["settings"], entry["point"], f"{entry['runs']}/{entry['of']}"]
        + [with_interval(entry[kind], m) for kind in KINDS for m in ("iqm", "mean")]
        for entry in paired(rows)
    ]
    header = ["task", "settings", "at", "runs"]
    parts = ["# Results", one, table([*header, *kinds], lines)]
    if aggregates:
        lines = [
            [row["task"], row["settings"], row["evaluation"], point_name(row)]
            + [f"{row['runs']}/{row['of']}"]
            + [with_interval(row, measure) for measure in MEASURES]
            + ["; ".join(row["missing"])]
            for row in aggregates
        ]
        header = ["tasks", "settings", "evaluation", "at", "runs", "mean", "IQM", "median"]
        header += ["optimality gap", "but"]
        parts += ["## Scores over tasks", table(header, lines)]
    missing = [
        (entry["task"], entry["settings"], entry["point"], "; ".join(entry["missing"]))
        for entry in paired(rows)
        if entry["missing"]
    ]
    if missing:
        parts += ["## Missing", table(["task", "settings", "at", "reason"], missing)]
    notes = dict.fromkeys(
        (e["task"], e["settings"], e["notes"]) for e in paired(rows) if e["notes"]
    )
    if notes:
        parts += ["## Not all alike", table(["task", "settings", "runs differ in"], notes)]
    lines = [
        [line["run"].task, line["run"].seed, line["settings"], line["run"].status]
        + [f"{line['run'].reached:,}", *map(number, line["last"].values())]
        + [minutes_text(line["minutes"]), line["commit"], line["run"].folder.name, line["why"]]
        for line in listing
    ]
    header = ["task", "seed", "settings", "status", "steps"]
    header += [f"last, {name}" for name in KINDS.values()]
    header += ["minutes", "commit", "folder", "why"]
    parts += ["## Runs", table(header, lines)]
    tasks = dict.fromkeys(row["task"] for row in rows)
    lines = [
        [row[name] for name in ("task", "method", "at", "value", "statistic", "evaluation")]
        + [row.get("note", ""), row["source"]]
        for task in tasks
        for row in references_of(task, references)
    ]
    if lines:
        header = ["task", "method", "steps", "return", "statistic", "evaluation", "note", "source"]
        parts += ["## Published figures", table(header, lines)]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(filter(None, [*parts, READING])) + "\n"


def write_csv(path: Path, rows: list[dict]) -> None:
    """Numbers with six digits; an empty cell is none."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            cells = {name: row.get(name, "") for name in COLUMNS}
            writer.writerow({name: _cell(value) for name, value in cells.items()})


def _cell(value: object) -> object:
    if isinstance(value, list):
        return "; ".join(value)
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else "end" if math.isinf(value) else format(value, ".10g")
