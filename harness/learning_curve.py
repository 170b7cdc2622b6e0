"""A run's learning curve as a picture."""

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

CURVES = {  # metrics.csv column -> label and colour in learning_curve.png
    "eval/episodic_return_sampled": ("evaluation, sampled", "#0072B2"),
    "eval/episodic_return_deterministic": ("evaluation, no noise", "#D55E00"),
    "charts/episodic_return": ("training episodes", "#009E73"),
}


@contextlib.contextmanager
def no_notebooks_backend() -> Iterator[None]:
    """To import matplotlib in: MPLBACKEND is left out of the environment, and back afterwards.

    A notebook that started this process names its own there, which need not be installed here.
    Pictures are drawn without pyplot, so none is needed.
    """
    named = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


def plot(folder: Path) -> Path:
    """Draws `folder`/metrics.csv: return against environment steps, in learning_curve.png.

    A column `<name>_std` beside one of CURVES becomes a band of one standard deviation.
    """
    with no_notebooks_backend():
        from matplotlib.figure import Figure

    config = json.loads((folder / "config.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for column, (label, colour) in CURVES.items():
        points = [
            (int(row["step"]), float(row[column]), float(row.get(f"{column}_std") or 0.0))
            for row in rows
            if math.isfinite(float(row.get(column) or "nan"))
        ]
        if not points:
            continue
        steps, mean, std = zip(*points, strict=True)
        evaluation = column.startswith("eval/")
        marker = "o" if evaluation and len(points) < 60 else None
        width = 2.0 if evaluation else 1.4
        axes.plot(steps, mean, color=colour, label=label, lw=width, marker=marker, ms=3)
        low = [centre - spread for centre, spread in zip(mean, std, strict=True)]
        high = [centre + spread for centre, spread in zip(mean, std, strict=True)]
        if any(std):
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
    arguments = config["args"]
    axes.set_title(f"{arguments.get('env_id', folder.name)}, seed {arguments.get('seed', '?')}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="best")
    path, partial = folder / "learning_curve.png", folder / "learning_curve.png.partial"
    figure.savefig(partial, dpi=120, format="png")
    os.replace(partial, path)  # a stop on the way leaves the picture of before
    return path
