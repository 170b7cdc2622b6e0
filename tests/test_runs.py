"""The run folder, read back with other means than it was written with."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import parallel
import runs

ROOT = Path(runs.__file__).parent


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


def test_git_state_names_commit_and_changes(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert runs._git_state(tmp_path) is None
    git("init", "-q")
    assert runs._git_state(tmp_path) is None  # another project's repository, not this code's
    (tmp_path / "runs.py").write_text("1")
    git("add", "runs.py")
    git("commit", "-qm", "first")
    assert runs._git_state(tmp_path) == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "runs.py").write_text("2")
    assert runs._git_state(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert runs._git_state(tmp_path) is None


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
        with pytest.raises(runs.RunError) as caught:
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
        import os, signal, runs
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
    """Colours of runs.CURVES that at least 30 pixels of the picture have, within rounding."""
    pixels = matplotlib.image.imread(path)[..., :3]
    drawn = set()
    for _, colour in runs.CURVES.values():
        target = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        if (np.abs(pixels - target).max(-1) < 0.02).sum() >= 30:
            drawn.add(colour)
    return drawn


def test_the_learning_curve_draws_each_curve_that_was_logged(tmp_path):
    sampled, deterministic, training = runs.CURVES
    colours = [colour for _, colour in runs.CURVES.values()]
    with make_run(tmp_path, env_id="cartpole-balance", seed=7) as run:
        for step in range(0, 10_000, 1000):
            run.log(step, {training: 50.0 if step else math.nan})
        assert colours_drawn(runs.plot_learning_curve(run.folder)) == {colours[2]}
        for step in range(0, 10_000, 1000):
            run.log(step, {sampled: step / 20, f"{sampled}_std": 80.0, deterministic: 300.0})
        path = runs.plot_learning_curve(run.folder)
    assert path == run.folder / "learning_curve.png"
    assert colours_drawn(path) == set(colours)


def test_a_run_without_returns_still_has_a_picture(tmp_path):
    with make_run(tmp_path) as run:
        run.log(0, {"losses/critic": 1.0})
    assert colours_drawn(runs.plot_learning_curve(run.folder)) == set()


# --- progress -------------------------------------------------------------------------------------


def test_progress_without_a_terminal_is_a_few_plain_lines():
    script = """
        import runs
        with runs.Progress(2_000_000) as progress:
            for step in range(1000, 2_000_001, 1000):
                if step == 500_000:
                    progress.write("a line")
                progress.update(step, return_=float("nan"), sps=1234.5, ups=67.0)
    """
    output, _ = run_script(script).communicate(timeout=60)
    assert "\r" not in output
    lines = output.splitlines()
    assert "a line" in lines
    assert len(lines) == 3  # first update, the written line, the end
    assert "2.00M/2.00M steps" in lines[-1]
    assert "return -, 1,234 steps/s, 67 updates/s" in lines[-1]


def test_time_left_does_not_count_compiling(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runs, "PLAIN_INTERVAL", 0.5)
    progress = runs.Progress(1000)
    progress._bar._time = lambda: clock[0]
    progress._bar.start_t = progress._bar.last_print_t = 0.0
    clock[0] = 600.0  # ten minutes of compiling
    progress.update(100, 1.0, 1.0, 1.0)
    for step in range(200, 501, 100):
        clock[0] += 10.0
        progress.update(step, 1.0, 10.0, 1.0)
    assert progress._bar.format_dict["rate"] == pytest.approx(10.0)  # steps a second
    progress.close()


# --- signals --------------------------------------------------------------------------------------

CHUNKS = """
    import sys, time, runs
    with runs.StopSignal() as stop:
        print("ready")
        while stop.requested is None:
            time.sleep(0.01)
        print("saved after", stop.requested)
    sys.exit(stop.exit_code)
"""
# One XLA call that takes years: Python runs no signal handler in it.
ONE_LONG_CHUNK = """
    import sys, time, jax, runs
    def loop(body):
        return lambda x: jax.lax.fori_loop(0, 2**30, lambda _, x: body(x), x)
    work = jax.jit(loop(loop(lambda x: x * 0.999 + 1)))
    with runs.StopSignal() as stop:
        print("ready")
        work(1.0).block_until_ready()
"""


def signalled(script: str, *numbers: int) -> tuple[int, str, float]:
    """Runs `script` to its line "ready", sends signals 0.5 s apart: exit code, output, seconds."""
    process = run_script(script)
    try:
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None
        start = time.monotonic()
        for number in numbers:
            time.sleep(0.5)
            process.send_signal(number)
        output, _ = process.communicate(timeout=20)
        return process.returncode, output, time.monotonic() - start
    finally:
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_stops_after_the_chunk(number, code):
    returncode, output, _ = signalled(CHUNKS, number)
    assert returncode == code
    assert f"saved after {int(number)}" in output
    assert output.count("stopping after the present chunk") == 1
    assert number.name in output


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_interrupts(second):
    script = CHUNKS.replace("while stop.requested is None", "while True")
    returncode, output, seconds = signalled(script, signal.SIGTERM, second)
    assert returncode != 0
    assert "KeyboardInterrupt" in output
    assert "saved" not in output
    assert seconds < 1 + runs.STOP_GRACE


def test_a_second_signal_ends_a_chunk_that_does_not_return():
    returncode, output, seconds = signalled(ONE_LONG_CHUNK, signal.SIGINT, signal.SIGINT)
    assert returncode == 130
    assert "stopping after the present chunk" in output
    assert seconds < 1 + runs.STOP_GRACE + 5


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in runs.StopSignal.SIGNALS]
    with runs.StopSignal() as stop:
        during = [signal.getsignal(number) for number in runs.StopSignal.SIGNALS]
        assert stop.requested is None
        assert stop.exit_code == 0
    assert during != before
    assert [signal.getsignal(number) for number in runs.StopSignal.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


# --- cache and memory -----------------------------------------------------------------------------


def test_a_second_process_finds_the_compiled_program(tmp_path):
    script = f"""
        import jax, runs
        from pathlib import Path
        events = []
        jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
        assert runs.enable_compilation_cache(Path({str(tmp_path)!r})) == Path({str(tmp_path)!r})
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((3, 3))).block_until_ready()
        print("hits", sum(event.endswith("compilation_cache/cache_hits") for event in events))
    """
    hits = [int(run_script(script).communicate(timeout=60)[0].split()[-1]) for _ in range(2)]
    assert hits[0] == 0
    assert hits[1] > 0


def test_training_goes_on_without_a_cache(tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    script = f"""
        import jax, runs
        from pathlib import Path
        print(runs.enable_compilation_cache(Path({str(blocker / "cache")!r})))
        print(jax.jit(lambda x: x + 1)(1))
    """
    output, _ = run_script(script).communicate(timeout=60)
    lines = output.splitlines()
    assert lines[0].startswith("no compilation cache: ")
    assert lines[1:] == ["None", "2"]


def test_free_memory_is_between_nothing_and_all():
    free = runs.device_memory_bytes()
    assert free is not None
    assert free > 2**20
    if jax.default_backend() == "cpu":
        assert free <= runs._physical_memory()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (runs.RunError("--x: too small"), 2, "--x"),
        (ValueError("--y: unknown"), 2, "--y"),
        (FloatingPointError("losses/critic at step 5"), 1, "step 5"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "stopped"),
    ],
)
def test_exit_code_and_one_line(error, code, says, capsys, monkeypatch):
    def program(args):
        raise error

    @dataclasses.dataclass(frozen=True)
    class Args:
        preset: str = "auto"
        resume: str = ""

    monkeypatch.setattr(sys, "argv", ["program"])
    assert runs.exit_code(program, Args, {"cpu": {}}, ValueError) == code
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


@flax.struct.dataclass
class State:
    learner: jax.Array
    env: jax.Array


@dataclasses.dataclass
class Args:
    runs_dir: str
    env_id: str = "probe"
    seed: int = 1
    num_devices: int = 1
    num_seeds: int = 1
    num_envs: int = 1
    batch_size: int = 1
    total_timesteps: int = 30
    eval_interval: int = 0
    checkpoint_interval: int = 0
    keep_checkpoints: int = 2
    checkpoint_replay: bool = True
    on_nonfinite: str = "stop"
    resume: str = ""


def train(args, chunk, evaluation):
    return runs.train(
        [args],
        "test",
        steps_per_chunk=10,
        states=[State(jnp.zeros(()), jnp.zeros(3))],
        chunk=chunk,
        train_envs=[mock.Mock(refresh=lambda env, index: env, success=None, engine="none")],
        evaluation=evaluation,
        save=lambda run, learner: None,
        devices=parallel.Devices(args),
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def chunk(state):
        # A policy loss that is nan because no policy step fell into the chunk is no fault.
        bad = state.learner == 1
        metrics = {"charts/updates": 10.0 * (state.learner + 1), "losses/policy": jnp.nan}
        metrics["losses/critic"] = jnp.where(bad, jnp.nan, 0.5)
        return State(state.learner + 1, state.env), metrics | {"charts/nonfinite_losses": 1.0 * bad}

    with pytest.raises(FloatingPointError, match=r"step 20, seed 1: losses/critic"):
        train(Args(str(tmp_path)), chunk, lambda learner, k, index: {})
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["status"] == "failed"


def test_seconds_count_evaluation_too(tmp_path):
    def chunk(state):
        metrics = {"charts/updates": state.learner, "charts/episodic_return": 0.0}
        return State(state.learner + 1, state.env), metrics

    def evaluation(learner, k, index):
        time.sleep(0.1)
        return {"sampled": np.zeros(1)}

    began = time.perf_counter()
    code = train(Args(str(tmp_path), eval_interval=10), chunk, evaluation)
    took = time.perf_counter() - began
    (folder,) = tmp_path.iterdir()
    seconds = [float(row["charts/seconds"]) for row in read_csv(folder)]
    assert code == 0
    assert all(0.1 * k <= value <= took for k, value in enumerate(seconds, start=1))
    assert seconds == sorted(seconds)


def test_a_complaint_is_one_sentence_on_a_terminal_without_line_drawing():
    drawn = "╭─ Parsing error ─────╮\n│ No such flag: --sed │\n│ ─────────────────── │\n│ more │"
    dashes = " Parsing error \n ------------ \n  No such flag: --sed \n  -----------\n  more \n"
    for boxed in (drawn, dashes):
        assert runs._first_sentence(boxed) == "No such flag: --sed; see --help"


def test_success_is_the_share_of_returns_that_reach_the_threshold():
    returns = {"sampled": np.array([1.0, 5.0, 9.0, 5.0])}
    metrics = runs._evaluation_metrics(returns, success=5.0)
    assert metrics["eval/success_sampled"] == 0.75
    assert metrics["eval/episodic_return_sampled"] == 5.0
    assert "eval/success_sampled" not in runs._evaluation_metrics(returns, success=None)
