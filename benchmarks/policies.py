"""Puts trained policies into `policies/`, where anyone can play them.

    python benchmarks/policies.py runs/FOLDER [runs/FOLDER ...] [--eval-episodes 100]
    python flowrl_jax.py --evaluate policies/cheetah-run

Of each finished run it keeps config.json, policy.npz and the policy's network of params.msgpack
(all networks are some twenty times as large), and evaluates that: evaluation.json and .csv. A
folder is named by its task, and by its algorithm where that is not FlowRL.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flax.serialization

from harness import command_line, runs
from harness.errors import RunError


def network_alone(run: Path) -> bytes:
    """Of a run's params.msgpack the policy's network only, in the same format."""
    network = importlib.import_module(runs.read_config(run)["algorithm"]).POLICY.network
    saved = flax.serialization.msgpack_restore((run / "params.msgpack").read_bytes())
    return flax.serialization.to_bytes({network: saved[network]})


def keep(run: Path, into: Path) -> Path:
    """Copies a finished run's policy into a folder of `into`, in place of what is there."""
    config = runs.read_config(run)
    if config.get("status") != "finished":
        raise RunError(f"{run}: {config.get('status')}; only a finished run is kept")
    algorithm = config["algorithm"]
    name = config["args"]["env_id"]
    folder = into / (name if algorithm == "flowrl_jax" else f"{name}__{algorithm}")
    if run.resolve() == folder.resolve():
        raise RunError(f"{run}: is where it would be kept")
    alone = network_alone(run)
    into.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=into))
    for file in ("config.json", "policy.npz"):
        shutil.copy(run / file, made)
    (made / "params.msgpack").write_bytes(alone)
    made.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
    return made.rename(folder)


def evaluate(folder: Path, episodes: int) -> None:
    """As --evaluate, on `native`."""
    module = importlib.import_module(json.loads((folder / "config.json").read_text())["algorithm"])
    flags = ["--evaluate", str(folder), "--eval-episodes", str(episodes), "--engine", "native"]
    assert module.main(command_line.parse_args(module.ALGORITHM, "cpu", flags)) == 0


def main() -> None:
    """One run after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "policies")
    parser.add_argument("--eval-episodes", type=int, default=100)
    chosen = parser.parse_args()
    try:
        for run in chosen.runs:
            evaluate(keep(run, chosen.out), chosen.eval_episodes)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
