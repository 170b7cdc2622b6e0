"""The run folder, read back with other means than it was written with."""

import contextlib
import csv
import json
import math
import os
import re
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from scripts import run_script
from tensorboardX.proto import event_pb2

from harness import learning_curve, runs
from harness.errors import RunError

ROOT = Path(runs.__file__).parents[1]


def make_run(runs_dir: Path, **config) -> runs.Run:
    return runs.Run.create(runs_dir, "cartpole-balance", "flowrl_jax", 7, config)


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of a TensorBoard file, from its record format: length, crc, event, crc."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, scalars = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
        data = data[16 + length :]
    return scalars


# --- folder and configuration ---------------------------------------------------------------------


def test_folder_is_named_after_the_run(tmp_path):
    with make_run(tmp_path / "deep" / "runs") as run:
        assert run.folder.parent == tmp_path / "deep" / "runs"
        assert re.fullmatch(r"cartpole-balance__flowrl_jax__7__\d{8}-\d{6}", run.folder.name)


def test_names_that_are_no_file_names_stay_inside_the_runs_folder(tmp_path):
    with runs.Run.create(tmp_path, "../gym:Ant/v5 x", "flowrl_jax", 1, {}) as run:
        assert run.folder.parent == tmp_path
        assert re.match(r"[\w.=+-]+$", run.folder.name)
    assert os.listdir(tmp_path) == [run.folder.name]


def test_runs_of_one_second_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda _: "20260101-000000")
    folders = []
    for _ in range(3):
        with make_run(tmp_path) as run:
            run.log(1, {"a": len(folders)})
            folders.append(run.folder)
    assert [folder.name[-11:] for folder in folders] == [
        "0101-000000",
        "01-000000-2",
        "01-000000-3",
    ]
    assert [read_csv(folder)[0]["a"] for folder in folders] == ["0", "1", "2"]


def test_config_holds_what_is_needed_to_repeat_the_run(tmp_path):
    with make_run(tmp_path, total_timesteps=10, folder=tmp_path, rate=3e-4) as run:
        config = json.loads((run.folder / "config.json").read_text())
        assert config["status"] == "running"
        assert config["args"] == {
            "total_timesteps": 10,
            "folder": str(tmp_path),
            "rate": 3e-4,
        }
        assert config["versions"]["jax"] == jax.__version__
        assert config["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert config["command"] == sys.argv
        assert config["hardware"]["cores"] >= 1
        assert config["hardware"]["memory_gib"] > 0.1
        assert len(config["hardware"]["devices"]) == jax.device_count()


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "finished"), (KeyboardInterrupt, "interrupted"), (ValueError, "failed")],
)
def test_status_says_how_the_run_ended(tmp_path, error, status):
    expected = pytest.raises(error) if error else contextlib.nullcontext()
    with expected, make_run(tmp_path):
        if error:
            raise error
    (path,) = tmp_path.glob("*/config.json")
    config = json.loads(path.read_text())
    assert config["status"] == status
    assert config["started"] <= config["ended"]


def test_a_failed_run_keeps_the_first_line_of_its_error(tmp_path):
    with contextlib.suppress(ValueError), make_run(tmp_path) as run:
        raise ValueError("too large\nand more")
    assert json.loads((run.folder / "config.json").read_text())["error"] == "ValueError: too large"
    with contextlib.suppress(KeyboardInterrupt), make_run(tmp_path) as run:
        raise KeyboardInterrupt
    assert "error" not in json.loads((run.folder / "config.json").read_text())


def test_the_first_status_stays(tmp_path):
    with make_run(tmp_path) as run:
        run.finish("interrupted")
    assert json.loads((run.folder / "config.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("below", ["", "runs", "a/b/c"])
def test_a_runs_folder_that_cannot_be_written_is_one_line(tmp_path, below):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file, which even root cannot make a folder in")
    runs_dir = blocker / below if below else blocker
    for attempt in (lambda: runs.check_writable(runs_dir), lambda: make_run(runs_dir)):
        with pytest.raises(RunError) as caught:
            attempt()
        message = str(caught.value)
        assert "--runs-dir" in message
        assert str(runs_dir) in message
        assert "\n" not in message
    assert os.listdir(tmp_path) == ["blocker"]


def test_check_writable_leaves_nothing(tmp_path):
    runs.check_writable(tmp_path)
    runs.check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


# --- metrics --------------------------------------------------------------------------------------


def test_csv_takes_new_columns_at_any_time(tmp_path):
    with make_run(tmp_path) as run:
        run.log(10, {"charts/SPS": 1.0})
        run.log(20, {"charts/SPS": 2.0, "eval/return": 0.5})
        run.log(30, {"losses/critic": 3.25})
        run.log(40, {"losses/critic": 4.0, "charts/SPS": 5.0, "eval/return": 6.0})
    rows = read_csv(run.folder)
    assert list(rows[0]) == ["step", "charts/SPS", "eval/return", "losses/critic"]
    assert [list(row.values()) for row in rows] == [
        ["10", "1", "", ""],
        ["20", "2", "0.5", ""],
        ["30", "", "", "3.25"],
        ["40", "5", "6", "4"],
    ]


def test_values_come_back_as_they_were(tmp_path):
    value = np.float32(1) / np.float32(3)
    with make_run(tmp_path) as run:
        run.log(2**40, {"f32": jnp.float32(value), "nan": math.nan, "inf": -math.inf, "big": 1e30})
    (row,) = read_csv(run.folder)
    assert int(row["step"]) == 2**40
    assert np.float32(row["f32"]) == value
    assert math.isnan(float(row["nan"]))
    assert float(row["inf"]) == -math.inf
    assert float(row["big"]) == 1e30


def test_tensorboard_holds_the_same_numbers(tmp_path):
    with make_run(tmp_path) as run:
        run.log(10, {"charts/SPS": 1.5})
        run.log(20, {"charts/SPS": 2.5, "eval/return": math.nan})
    scalars = read_events(run.folder)
    assert scalars["charts/SPS"] == [(10, 1.5), (20, 2.5)]
    ((step, value),) = scalars["eval/return"]
    assert step == 20
    assert math.isnan(value)


def test_rows_survive_a_kill(tmp_path):
    script = f"""
        import os, signal
        from harness import runs
        from pathlib import Path
        run = runs.Run.create(Path({str(tmp_path)!r}), "task", "flowrl_jax", 1, {{}})
        for step in range(50):
            run.log(step, {{"a": step}} | ({{"b": 1}} if step == 30 else {{}}))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = run_script(script)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    rows = read_csv(folder)
    assert [int(row["step"]) for row in rows] == list(range(50))
    assert [row["b"] for row in rows].count("1") == 1
    assert not list(folder.glob("*.partial"))


def test_save_bytes_is_whole_or_the_old_file(tmp_path, monkeypatch):
    with make_run(tmp_path) as run:
        assert run.save_bytes("parameters.msgpack", b"old").read_bytes() == b"old"
        path = run.save_bytes("parameters.msgpack", b"new" * 1000)
        assert path == run.folder / "parameters.msgpack"
        assert path.read_bytes() == b"new" * 1000

        def crash(*_):
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(runs.os, "fsync", crash)
            with pytest.raises(OSError, match="no space left"):
                run.save_bytes("parameters.msgpack", b"half")
        assert path.read_bytes() == b"new" * 1000


# --- learning curve -------------------------------------------------------------------------------


def colours_drawn(path: Path) -> set[str]:
    """Colours of CURVES that at least 30 pixels of the picture have, within rounding."""
    pixels = matplotlib.image.imread(path)[..., :3]
    drawn = set()
    for _, colour in learning_curve.CURVES.values():
        target = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        if (np.abs(pixels - target).max(-1) < 0.02).sum() >= 30:
            drawn.add(colour)
    return drawn


def test_the_learning_curve_draws_each_curve_that_was_logged(tmp_path):
    sampled, deterministic, training = learning_curve.CURVES
    colours = [colour for _, colour in learning_curve.CURVES.values()]
    with make_run(tmp_path, env_id="cartpole-balance", seed=7) as run:
        for step in range(0, 10_000, 1000):
            run.log(step, {training: 50.0 if step else math.nan})
        assert colours_drawn(learning_curve.plot(run.folder)) == {colours[2]}
        for step in range(0, 10_000, 1000):
            run.log(step, {sampled: step / 20, f"{sampled}_std": 80.0, deterministic: 300.0})
        path = learning_curve.plot(run.folder)
    assert path == run.folder / "learning_curve.png"
    assert colours_drawn(path) == set(colours)


def test_a_run_without_returns_still_has_a_picture(tmp_path):
    with make_run(tmp_path) as run:
        run.log(0, {"losses/critic": 1.0})
    assert colours_drawn(learning_curve.plot(run.folder)) == set()
