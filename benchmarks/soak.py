"""Whether memory grows over a long run: `python benchmarks/soak.py [flags of flowrl_jax.py]`.

Trains 200,000 steps of cartpole-balance with a replay that is full and overwritten many times, with
evaluations and checkpoints all along, and reads the process's resident memory from /proc at every
row of metrics.csv. Rows go to soak.csv beside this file. Linux only.
"""

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import throughput

FLAGS = {"env-id": "cartpole-balance", "preset": "cpu", "total-timesteps": 200_000}
FLAGS |= {"hidden-size": 64, "updates-per-step": 4, "buffer-size": 20_000}
FLAGS |= {"eval-interval": 10_000, "checkpoint-interval": 10_000}


def resident_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process in MiB: all, and what no file is behind."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    anonymous = int(sizes["RssAnon"])
    return {"anonymous": anonymous / 1024, "resident": sum(map(int, sizes.values())) / 1024}


def last_step(folder: Path) -> int:
    """The step of the last row of a run's metrics.csv; 0 before the first."""
    rows = [list(csv.reader(path.open())) for path in folder.glob("*/metrics.csv")]
    return int(rows[0][-1][0]) if rows and len(rows[0]) > 1 else 0


def main() -> None:
    """Trains and writes the table."""
    command = [sys.executable, str(ROOT / "flowrl_jax.py"), *sys.argv[1:]]
    command += [f"--{name}={value}" for name, value in FLAGS.items() if f"--{name}" not in command]
    with tempfile.TemporaryDirectory() as runs_dir:
        process = subprocess.Popen([*command, "--runs-dir", runs_dir])
        seen: dict[int, dict[str, float]] = {}
        while process.poll() is None:
            step = last_step(Path(runs_dir))
            if step and step not in seen and step % 10_000 == 0:
                seen[step] = resident_mib(process.pid)
            time.sleep(0.2)
    if process.returncode:
        sys.exit(process.returncode)
    for step, sizes in seen.items():
        row = {"step": str(step)} | {f"{name}, MiB": f"{mib:.1f}" for name, mib in sizes.items()}
        throughput.write("soak", ("step",), row | throughput.conditions())


if __name__ == "__main__":
    main()
