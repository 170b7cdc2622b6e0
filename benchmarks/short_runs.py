"""A short training run on every task, on `native` with preset `cpu`: does it hold together?

    python benchmarks/short_runs.py [--env-ids ...]      # writes short_runs.csv beside this file

20,000 environment steps each, one evaluation episode at the end. A run that fails, or whose losses
are not finite, is a row with its exit code. Rows of other tasks in the file are kept.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CSV_PATH = pathlib.Path(__file__).with_name("short_runs.csv")
FLAGS = "--preset cpu --engine native --seed 1 --eval-interval 0 --eval-episodes 1"
STEPS = 20_000


def run(env_id: str, folder: str) -> dict[str, str]:
    """Trains on one task and returns its row."""
    program = [sys.executable, "flowrl_jax.py", "--env-id", env_id, *FLAGS.split()]
    command = [*program, "--total-timesteps", str(STEPS), "--runs-dir", folder]
    start = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    row = {"env_id": env_id, "exit code": str(process.returncode)}
    row["seconds"] = f"{time.perf_counter() - start:.0f}"
    runs = sorted(pathlib.Path(folder).glob(f"{env_id}__*"), key=lambda path: path.stat().st_mtime)
    if not runs:
        return row | {"error": process.stderr.strip().splitlines()[-1]}
    with (runs[-1] / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    row |= {"steps": last["step"], "updates": last["charts/updates"]}
    for name in ("nonfinite_losses", "nonfinite_states", "episodic_return", "SPS"):
        row[name] = last.get(f"charts/{name}", "")
    row["critic loss"] = last["losses/critic"]
    row["commit"] = json.loads((runs[-1] / "config.json").read_text())["git"]["commit"][:9]
    return row


def main() -> None:
    """Runs and writes the table, row by row."""
    sys.path.insert(0, str(ROOT))
    import envs
    from benchmarks import inputs

    parser = argparse.ArgumentParser(description="short training runs")
    parser.add_argument("--env-ids", nargs="+", type=inputs.task, default=envs.task_ids())
    args = parser.parse_args()
    rows = {}
    if CSV_PATH.exists():
        with CSV_PATH.open() as file:
            rows = {row["env_id"]: row for row in csv.DictReader(file)}
    for env_id in args.env_ids:
        with tempfile.TemporaryDirectory() as folder:
            rows[env_id] = run(env_id, folder)
        print(*rows[env_id].values(), sep="  ", flush=True)
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        with CSV_PATH.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(row for _, row in sorted(rows.items()))


if __name__ == "__main__":
    main()
