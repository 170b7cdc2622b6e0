"""benchmarks/gif.py without its drawing: which poses, at what speed, how they are put together."""

import io
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gif
from harness import film, watch

RUN = Path(__file__).parents[1] / "policies" / "cheetah-run"


def episode_of(steps: int, timestep: float) -> watch.Motion:
    """Its pose is the number of the step."""
    return watch.Motion(types.SimpleNamespace(), np.arange(steps)[:, None], timestep)


def drawn(monkeypatch, motion: watch.Motion, *part) -> list[int]:
    poses = []

    def frames(model, qpos):
        poses.extend(qpos[:, 0].tolist())
        return [np.zeros((48, 64, 3), np.uint8) for _ in qpos]

    monkeypatch.setattr(film, "frames", frames)
    assert len(gif.pictures(motion, *part)) == len(poses)
    return poses


def test_pictures_are_of_the_part_asked_for(monkeypatch):
    assert drawn(monkeypatch, episode_of(1000, 0.025), 2.0, 1.0, 100) == list(range(80, 120, 4))
    assert drawn(monkeypatch, episode_of(1000, 0.01), 0.0, 0.2, 50) == [0, 5, 10, 15]
    # An episode that ended before: what there is of its end.
    assert drawn(monkeypatch, episode_of(40, 0.025), 2.0, 0.5, 100) == [20, 24, 28, 32, 36]
    assert drawn(monkeypatch, episode_of(8, 0.025), 2.0, 4.0, 100) == [0, 4]


def test_it_is_endless_and_as_fast_as_the_task():
    shades = [Image.new("RGB", (64, 48), (k, 0, 0)) for k in (10, 100, 200)]
    shorter = [Image.new("RGB", (64, 48), (0, k, 0)) for k in (10, 200)]
    frames = gif.side_by_side([shades, shorter])
    assert len(frames) == 2
    assert frames[0].size == (64 + gif.GAP + 64, 48)
    found = Image.open(io.BytesIO(gif.encoded(frames, 70, 16)))
    assert (found.n_frames, found.info["loop"], found.info["duration"]) == (2, 0, 70)
    found.seek(1)
    picture = found.convert("RGB")
    assert picture.getpixel((5, 5))[0] > 90  # the second shade on the left
    assert picture.getpixel((120, 5))[1] > 150  # and on the right


def refused(monkeypatch, capsys, *arguments) -> str:
    """What gif.py says of a command line that it does not take; nothing is played."""
    monkeypatch.setattr(watch, "play", lambda *_: pytest.fail("it plays"))
    monkeypatch.setattr(sys, "argv", ["gif.py", *map(str, arguments)])
    assert gif.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--rate", "0"),
        ("--seconds", "0"),
        ("--seconds", "nan"),
        ("--start", "-9"),
        ("--width", "0"),
        ("--colors", "999"),
        ("--seed", "-1"),
    ],
)
def test_a_value_that_nothing_can_be_drawn_with_is_one_line(flag, value, monkeypatch, capsys):
    assert f"error: {flag}: needs at least" in refused(monkeypatch, capsys, RUN, flag, value)


def test_where_it_cannot_be_written_is_told_before_it_plays(tmp_path, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, RUN, "--out", tmp_path)
    assert said == f"error: --out: '{tmp_path}' is a folder; name a file in it"
    said = refused(monkeypatch, capsys, RUN, "--out", Path(__file__) / "x.gif")
    assert "error: --out: cannot write in" in said


def test_a_run_that_cannot_be_played_is_one_line(tmp_path, monkeypatch, capsys):
    out = tmp_path / "x.gif"
    assert "no run folder" in refused(monkeypatch, capsys, RUN, tmp_path, "--out", out)
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    (run / "params.msgpack").write_bytes((RUN / "params.msgpack").read_bytes()[:1000])
    assert "params.msgpack cannot be read" in refused(monkeypatch, capsys, run, "--out", out)
    (run / "params.msgpack").unlink()
    assert "params.msgpack cannot be read" in refused(monkeypatch, capsys, run, "--out", out)
    shutil.copy(RUN / "params.msgpack", run)
    config = json.loads((run / "config.json").read_text())
    other = config | {"args": config["args"] | {"env_id": "reacher-easy"}}
    (run / "config.json").write_text(json.dumps(other))
    assert "does not fit reacher-easy" in refused(monkeypatch, capsys, run, "--out", out)
    for changed in ({}, {"algorithm": "sbx_sac"}):
        config.pop("algorithm", None)
        (run / "config.json").write_text(json.dumps(config | changed))
        assert "is not one of" in refused(monkeypatch, capsys, run, "--out", out)
    assert list(tmp_path.iterdir()) == [run]
