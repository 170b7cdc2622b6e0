"""docs/quickstart.ipynb, run from top to bottom as a user would, at sizes for a test."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

import flowrl_jax
from harness import command_line

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
SMALLER = {"--total-timesteps": 2_400, "--learning-starts": 400, "--updates-per-step": 1}
SMALLER |= {"--hidden-size": 16, "--batch-size": 16, "--eval-interval": 800, "--log-interval": 400}
SMALLER |= {"--eval-episodes": 2, "--preset": "cpu", "--buffer-size": 2_400, "--num-threads": 1}


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_short_and_has_no_outputs():
    assert len(cells()) <= 25
    for cell in cells():
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def sizes(device):
    """Of every task, as the notebook's cell has them: what `flowrl_jax.py` makes of its flags."""
    (cell,) = [source for c in cells() if "SIZES = {" in (source := "".join(c["source"]))]
    exec(cell, names := {"os": os, "device": device})
    preset = "cpu" if device == "cpu" else "gpu"
    tasks = {"cartpole": "cartpole-balance", "harder": names["HARDER"]}
    for task, env_id in tasks.items():
        flags = [str(part) for flag in names["sizes"][task].items() for part in flag]
        flags += ["--env-id", env_id, "--seed", "1"]
        args = command_line.parse_args(flowrl_jax.ALGORITHM, preset, flags)
        command_line.check(args, flowrl_jax.ALGORITHM)
        yield dataclasses.asdict(args)


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_sizes_of_every_device_are_flags_that_are_taken(device):
    assert [args["env_id"] for args in sizes(device)] == ["cartpole-balance", "walker-walk"]


def test_sizes_for_a_gpu_are_those_that_learned():
    """But for the physics, which a CPU takes too long for through MJX."""
    for args in sizes("gpu"):
        name = f"{args['env_id']}__1.json"
        learned = json.loads((NOTEBOOK.parents[1] / "benchmarks" / "quickstart" / name).read_text())
        other = {name for name, value in learned["args"].items() if args[name] != value}
        assert other == {"engine", "num_threads", "runs_dir"}, args["env_id"]


def outputs(notebook, kind):
    """All that was shown of a media type, in order."""
    data = [o.get("data", {}) for c in notebook.cells for o in c.get("outputs", ())]
    return [shown[kind] for shown in data if kind in shown]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="`pip install -r requirements-optional.txt`")
    nbformat = pytest.importorskip("nbformat", reason="`pip install -r requirements-optional.txt`")
    pytest.importorskip("ipykernel", reason="`pip install -r requirements-optional.txt`")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel names its own, as Jupyter does
    monkeypatch.setenv("QUICKSTART_FLAGS", json.dumps(SMALLER))
    monkeypatch.setenv("QUICKSTART_RUNS", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    text = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert text.count("engine native, seed 1, 10 episodes a row") == 2
    assert text.count("engine dm_control, seed 1, 10 episodes a row") == 1
    assert len(outputs(notebook, "image/png")) == 2  # the last picture of each training
    assert {folder.name.split("__")[0] for folder in tmp_path.glob("*/*__*")} == {
        "cartpole-balance",
        "walker-walk",
    }
