"""The programs of benchmarks/: none of them begins before it has read its command line."""

import os
import runpy
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MAIN = 'if __name__ == "__main__":'
OF_A_RUN = ("soak.py",)  # hands its flags to flowrl_jax.py: tests/harness/test_command_line.py
PROGRAMS = [path for path in sorted(BENCHMARKS.glob("*.py")) if MAIN in path.read_text()]
PROGRAMS = [path for path in PROGRAMS if path.name not in OF_A_RUN]
SECONDS = 120  # in which a program has answered, or has begun to measure


@pytest.fixture
def alarm():
    """TimeoutError in this process after SECONDS."""

    def late(number, frame):
        raise TimeoutError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_programs():
    assert len(PROGRAMS) > 20


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_an_unknown_flag_is_refused_before_anything_is_done(
    path, alarm, tmp_path, monkeypatch, capsys
):
    copy = tmp_path / "benchmarks" / path.name  # what it would write over lies beside it
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(sys, "argv", [str(copy), "--no-such-flag"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    # What a program sets in the environment must not reach the tests after this one.
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(copy), run_name="__main__")
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err  # sbx_sac.py's may be of a package
    assert list(tmp_path.rglob("*")) == [copy.parent, copy]
