"""The page: one HTML file that holds all it shows."""

import base64
import datetime
import math
from collections import Counter
from pathlib import Path

import jinja2

from reporting.curves import svg
from reporting.measures import full_score
from reporting.results import KINDS, Group, Run
from reporting.tables import READING, minutes_text, number, paired, point_name, references_of

VIDEO_LIMIT = 64 * 2**20  # bytes of videos that the page takes; the others are named


def find_videos(runs: list[Run]) -> tuple[list[dict], list[str]]:
    """Videos as data URIs with their captions, and the names of those over VIDEO_LIMIT."""
    videos, left_out, total = [], [], 0
    for run in runs:
        for path in sorted((run.folder / "videos").glob("*.mp4")) if run.folder.is_dir() else []:
            total += path.stat().st_size
            if total > VIDEO_LIMIT:
                left_out.append(f"{run.folder.name}/videos/{path.name}")
                continue
            data = base64.b64encode(path.read_bytes()).decode()
            caption = f"{run.task}, seed {run.seed}: {path.stem}"
            videos.append({"caption": caption, "uri": f"data:video/mp4;base64,{data}"})
    return videos, left_out


def configurations(groups: list[Group]) -> list[dict]:
    """What was run, once for each setting: arguments, versions, machine, command."""
    by_label: dict[str, list[Run]] = {}
    for group in groups:
        by_label.setdefault(group.settings, []).extend(r for r in group.runs if r.config)
    shown = []
    for label, runs in by_label.items():
        if not runs:
            continue
        configs = [run.config for run in runs]
        entry = {"settings": label, "runs": len(runs)}
        for part in ("args", "versions", "hardware", "git"):
            names = dict.fromkeys(name for config in configs for name in config.get(part) or {})
            entry[part] = {
                name: _values([(config.get(part) or {}).get(name) for config in configs])
                for name in names
            }
        commands = [" ".join(map(str, config.get("command", []))) for config in configs]
        shown.append(entry | {"command": commands[0]})
    return shown


def _values(values: list[object]) -> str:
    """A value, or the different values that runs have."""
    counts = Counter(
        "-" if v is None else ", ".join(v) if isinstance(v, list) else str(v) for v in values
    )
    several = sorted(counts, key=lambda text: (len(text), text))
    return ", ".join(several[:6]) + (f" and {len(several) - 6} more" if len(several) > 6 else "")


def blocks(entries: list[dict]) -> list[dict]:
    """Entries by task and settings, each with why runs are missing, and at which of its points."""
    grouped: dict[tuple[str, str], list[dict]] = {}
    for entry in entries:
        grouped.setdefault((entry["task"], entry["settings"]), []).append(entry)
    shown = []
    for (task, settings), members in grouped.items():
        reasons: dict[str, list[str]] = {}
        for entry in members:
            for reason in filter(None, entry["missing"]):
                reasons.setdefault(reason, []).append(short_point(entry["sampled"]))
        lines = [
            reason if len(points) == len(members) else f"{', '.join(points)}: {reason}"
            for reason, points in reasons.items()
        ]
        block = {"task": task, "settings": settings, "entries": members, "reasons": lines}
        shown.append(block | {"notes": members[0]["notes"]})
    return shown


def short_point(row: dict) -> str:
    """`250k steps`, `1M steps`, `30 min` or `end`."""
    if row["axis"] == "minutes" or row["at"] == math.inf:
        return point_name(row)
    scale, letter = next((s for s in ((1e6, "M"), (1e3, "k")) if row["at"] >= s[0]), (1, ""))
    return f"{row['at'] / scale:.3g}{letter} steps"


def whisker(row: dict, references: list[dict[str, str]], full: float) -> dict | None:
    """Value, interval and FlowRL's published figures in percent of a scale, for a small bar."""
    if "iqm" not in row:
        return None
    ends = [row[f"iqm_{end}"] for end in ("low", "high")]
    low, high = ends if math.isfinite(ends[0]) else [row["iqm"]] * 2
    marks = [float(ref["value"]) for ref in references if ref["method"].startswith("FlowRL")]
    top = max(full, high, *marks)
    value, low, high, *marks = (100 * max(0.0, x) / top for x in (row["iqm"], low, high, *marks))
    return {"value": value, "low": low, "width": high - low, "marks": marks, "top": top}


def page(
    title: str,
    groups: list[Group],
    rows: list[dict],
    aggregates: list[dict],
    listing: list[dict],
    references: list[dict[str, str]],
    drawn: dict[tuple[str, str], object],
) -> str:
    """The page, with all that it shows inside it."""
    runs = [line["run"] for line in listing]
    videos, left_out = find_videos(runs)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.filters |= {
        "number": number,
        "point": point_name,
        "short": short_point,
        "minutes": minutes_text,
    }
    environment.undefined = jinja2.StrictUndefined
    charts: dict[str, dict[str, str]] = {}
    for (name, axis), figure in drawn.items():
        charts.setdefault(name, {})[axis] = svg(figure, f"{name} {axis}")
    shown = list(dict.fromkeys(row["task"] for row in rows))
    return environment.get_template("report.html.jinja").render(
        title=title,
        now=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        kinds=KINDS,
        blocks=blocks(paired(rows)),
        aggregates=blocks(paired(aggregates)),
        hours=sum(line["minutes"] for line in listing if math.isfinite(line["minutes"])) / 60,
        listing=listing,
        counts=Counter(run.status for run in runs),
        tasks=shown,
        several_settings=len({group.settings for group in groups}) > 1,
        settings=list(dict.fromkeys(group.settings for group in groups)),
        references={task: references_of(task, references) for task in shown},
        charts=charts,
        videos=videos,
        left_out=left_out,
        configurations=configurations(groups),
        reading=READING,
        whisker=whisker,
        full_score=full_score,
    )
