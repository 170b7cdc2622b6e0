"""Results of runs: tables and learning curves, and a page of them.

    python report.py runs/                           writes report/results.md, results.csv, curves/
    python report.py runs/ --html report.html        and one self-contained page
    python report.py runs/ --steps 100000 500000 --minutes 10 30

Runs are put together only if task and settings are the same; every run that gives no number is
listed with its reason. reporting/ has the parts: `results` reads runs, `measures` has the
statistics, `tables`, `curves` and `page` show them.
"""

import argparse
import contextlib
import errno
import math
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from reporting import tables
from reporting.curves import figures
from reporting.page import page
from reporting.results import ReportError, find_runs, group_runs

HERE = Path(__file__).resolve().parent


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ReportError(message)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Raises ReportError for a command line that does not parse."""
    parser = _Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    text = "run folders, folders of them, or CSV files with a JSON of the same name beside them"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=text)
    text = "folder for results.md, results.csv and curves/ (default: report)"
    parser.add_argument("--out", type=Path, default=Path("report"), help=text)
    text = "also write one self-contained page"
    parser.add_argument("--html", type=Path, metavar="FILE", help=text)
    text = "environment steps to report at (default: the end of each task's runs)"
    parser.add_argument("--steps", type=_positive, nargs="+", default=[], metavar="N", help=text)
    text = "minutes of wall-clock to report at"
    parser.add_argument("--minutes", type=_positive, nargs="+", default=[], metavar="M", help=text)
    text = "published figures (default: benchmarks/reference.csv)"
    default = HERE / "benchmarks" / "reference.csv"
    parser.add_argument("--reference", type=Path, default=default, metavar="CSV", help=text)
    text = "heading of the page"
    parser.add_argument("--title", default="FlowRL in JAX: results", help=text)
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    value = math.nan
    with contextlib.suppress(ValueError):
        value = float(text.replace("_", ""))
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"needs a number above 0, got {text!r}")
    return value


def _check_writable(flag: str, file: Path) -> None:
    """Raises ReportError if `file` could not be written. Leaves nothing behind."""
    parent = file.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.rmdir(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise ReportError(f"{flag}: cannot write {file}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and prints where it is. Raises ReportError for bad input."""
    args = parse_args(arguments)
    _check_writable("--out", args.out / "results.md")
    if args.html:
        if args.html.suffix not in (".html", ".htm"):
            raise ReportError(f"--html: {args.html} does not end in .html; name it so")
        _check_writable("--html", args.html)
    references = tables.read_references(args.reference)
    runs = find_runs(args.paths)
    groups, replaced = group_runs(runs)
    listing = tables.run_table(groups, replaced)
    rows = tables.result_rows(groups, args.steps, args.minutes)
    aggregates = tables.aggregate_rows(groups, args.steps, args.minutes)
    drawn = figures(groups, references)
    try:
        (args.out / "curves").mkdir(parents=True, exist_ok=True)
        pictures = []
        for (name, axis), figure in drawn.items():
            file = "curves/" + re.sub(r"[^\w.=+-]+", "_", f"{name}__{axis}") + ".png"
            legend = figure.legends[0]
            legend.set_title(name, {"size": 10, "weight": "bold"})
            figure.savefig(args.out / file, dpi=150)
            legend.set_title(None)  # on the page the card has it
            pictures.append(file)
        tables.write_csv(args.out / "results.csv", rows + aggregates)
        text = tables.results_markdown(rows, aggregates, listing, references, pictures)
        (args.out / "results.md").write_text(text)
        written = [args.out / "results.md"]
        if args.html:
            text = page(args.title, groups, rows, aggregates, listing, references, drawn)
            args.html.parent.mkdir(parents=True, exist_ok=True)
            args.html.write_text(text)
            written.append(args.html)
    except OSError as error:
        raise ReportError(f"cannot write {error.filename}: {error.strerror}") from None
    counts = Counter(line["run"].status for line in listing)
    states = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{len(listing)} runs ({states}): {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
