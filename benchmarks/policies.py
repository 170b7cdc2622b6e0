"""Puts trained policies into `policies/`, where anyone can play them.

    python benchmarks/policies.py runs/FOLDER [runs/FOLDER ...] [--eval-episodes 100]
    python flowrl_jax.py --evaluate policies/cheetah-run

Of each finished run it keeps config.json, policy.npz and the policy's network of params.msgpack
(all networks are some twenty times as large), and evaluates that: evaluation.json and .csv. A
folder is named by its task, and by its algorithm where that is not FlowRL.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flax.serialization

import envs
import numpy_policy
from benchmarks import inputs
from harness import command_line, runs, watch
from harness.errors import RunError, one_line


def network_alone(run: Path) -> bytes:
    """Of a run's params.msgpack the policy's network only, in the same format."""
    network = inputs.algorithm_of(run).POLICY.network
    saved = flax.serialization.msgpack_restore((run / "params.msgpack").read_bytes())
    return flax.serialization.to_bytes({network: saved[network]})


def place(run: Path, into: Path) -> Path:
    """The folder of `into` for a run's policy.

    Raises RunError unless the run is finished and its policy can be read.
    """
    status = runs.read_config(run)["status"]
    if status != "finished":
        raise RunError(f"{run}: {status}; only a finished run is kept")
    algorithm = inputs.algorithm_of(run).ALGORITHM
    name = runs.read_args(algorithm, run).env_id
    folder = into / (name if algorithm.name == "flowrl_jax" else f"{name}__{algorithm.name}")
    if run.resolve() == folder.resolve():
        raise RunError(f"{run}: is where it would be kept")
    inputs.load_policy(run)
    try:
        numpy_policy.load(run)
    except (*inputs.DAMAGED, EOFError, zipfile.BadZipFile) as error:
        why = f"policy.npz cannot be read ({one_line(error)})"
        raise RunError(f"{run}: {why}; name another run") from None
    return folder


def keep(run: Path, folder: Path, episodes: int) -> None:
    """Copies a run's policy and evaluates it, then puts that in the place of `folder`.

    What fails before leaves `folder` as it was, and nothing beside it.
    """
    beside = next(parent for parent in folder.absolute().parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        made, before = Path(scratch, folder.name), Path(scratch, "before")
        made.mkdir()
        for file in ("config.json", "policy.npz"):
            shutil.copy(run / file, made)
        (made / "params.msgpack").write_bytes(network_alone(run))
        evaluate(made, episodes)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the first of its name
            folder.rename(before)
        try:
            made.rename(folder)
        except BaseException:
            if before.exists():
                before.rename(folder)
            raise
    print(f"kept: {folder}")


def evaluate(folder: Path, episodes: int) -> None:
    """As --evaluate, on `native`."""
    module = inputs.algorithm_of(folder)
    flags = ["--evaluate", str(folder), "--eval-episodes", str(episodes), "--engine", "native"]
    assert module.main(command_line.parse_args(module.ALGORITHM, "cpu", flags)) == 0


def main() -> None:
    """Looks at all runs, then keeps one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "policies")
    parser.add_argument("--eval-episodes", type=int, default=100)
    chosen = parser.parse_args()
    try:
        command_line.check_bounds(chosen, {"eval_episodes": (2, watch.MAX_EPISODES)})
        runs.check_writable(chosen.out, "choose another with --out")
        places = {run: place(run, chosen.out) for run in chosen.runs}
        if len(set(places.values())) < len(chosen.runs):
            raise RunError("runs: two of them would be kept in one folder; name one of a task")
        for run, folder in places.items():
            keep(run, folder, chosen.eval_episodes)
    except (RunError, envs.UsageError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
