"""Programs that tests start."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Compiles in half the time what then runs slower: for programs that compile for a minute and run
# for a second, in tests that compare them with nothing that was compiled otherwise. JAX takes it in
# two forms, for one program and in XLA_FLAGS for all of a process.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
COMPILE_QUICKLY = " ".join(f"--{name}={value}" for name, value in COMPILER_OPTIONS.items())


def run_script(script: str, **kwargs) -> subprocess.Popen:
    """Starts Python on `script`, with this repository importable and stderr with stdout."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )
