"""The picture of a run, drawn by a process that a notebook started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRAW = "from harness import learning_curve; learning_curve.plot(pathlib.Path(sys.argv[1]))"


@pytest.mark.parametrize("program", [DRAW, "import reporting.curves"])
def test_a_notebooks_backend_is_not_asked_for(program, tmp_path):
    """Jupyter names one in MPLBACKEND, and an environment of its own need not have it."""
    (tmp_path / "config.json").write_text('{"args": {"env_id": "a-b", "seed": 1}}')
    (tmp_path / "metrics.csv").write_text("step,charts/episodic_return\n10,3.0\n20,4.0\n")
    stays = "import os; assert os.environ['MPLBACKEND'] == 'a-notebooks'"  # for its own children
    code = f"import pathlib, sys; {program}; {stays}"
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"MPLBACKEND": "a-notebooks"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (program == DRAW) == (tmp_path / "learning_curve.png").exists()
