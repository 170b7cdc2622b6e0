"""The programs that wait for an accelerator, on a CPU at toy sizes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator_program

ROOT = Path(__file__).parents[1]
PROGRAM = """HloModule jit_f

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%f.1
  %copy.3 = f32[8]{0} copy(%fusion.1)
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %copy.3)
}

ENTRY %main.9 (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %copy-start.1 = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%a)
  %dot.1 = f32[8]{0} custom-call(%a), custom_call_target="__cublas$gemm"
  %while.1 = (s32[], f32[8]{0}) while(%t.1), condition=%c.1, body=%body.1, LABELS
  ROOT %b = f32[8]{0} get-tuple-element(%while.1), index=1
}
""".replace(
    "LABELS",
    'metadata={op_name="jit(f)/while"}, backend_config={"known_trip_count":{"n":"4"}}',
)


def test_launches_are_counted_by_nest():
    program, loop = accelerator_program.nests(PROGRAM)
    assert (program.path, program.kernels, program.copies) == ("0", 1, 1)
    assert (loop.path, loop.what, loop.times) == ("0.0", "jit(f)/while", "4")
    assert (loop.kernels, loop.copies) == (1, 1)


@pytest.mark.slow
def test_every_job_runs_or_says_why_not(tmp_path):
    """In a budget that is too short for all of them here, too."""
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--toy"]
    command += ["--minutes", "1.5", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "accelerator.csv").open() as file:
        rows = list(csv.DictReader(file))
    jobs = ("versions", "parity", "environments", "updates", "loop", "train")
    assert list(dict.fromkeys(row["job"] for row in rows)) == list(jobs)
    for row in rows:
        assert row["value"] or row["note"] or row["measure"].startswith("version of"), row
    (speed,) = (row for row in rows if row["measure"] == "env.step")
    assert float(speed["value"]) > 0
    assert float(max(rows, key=lambda row: float(row["at, s"]))["at, s"]) < 180


@pytest.mark.slow
def test_no_time_is_one_line():
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--minutes: needs more than 0" in done.stderr.splitlines()[-1]
