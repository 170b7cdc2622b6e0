"""The host's loop: progress, signals, faults, seconds."""

import csv
import dataclasses
import json
import signal
import time
from pathlib import Path
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import run_script

import flowrl_jax as flowrl
from harness import contract, machine, parallel, progress, sizes, stopping, training
from harness.errors import RunError


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- progress -------------------------------------------------------------------------------------


def test_progress_without_a_terminal_is_a_few_plain_lines():
    script = """
        from harness.progress import Progress
        with Progress(2_000_000) as progress:
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
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.5)
    shown = progress.Progress(1000)
    shown._bar._time = lambda: clock[0]
    shown._bar.start_t = shown._bar.last_print_t = 0.0
    clock[0] = 600.0  # ten minutes of compiling
    shown.update(100, 1.0, 1.0, 1.0)
    for step in range(200, 501, 100):
        clock[0] += 10.0
        shown.update(step, 1.0, 10.0, 1.0)
    assert shown._bar.format_dict["rate"] == pytest.approx(10.0)  # steps a second
    shown.close()


# --- signals --------------------------------------------------------------------------------------

CHUNKS = """
    import sys, time
    from harness import stopping
    with stopping.StopSignal() as stop:
        print("ready")
        while stop.requested is None:
            time.sleep(0.01)
        print("saved after", stop.requested)
    sys.exit(stop.exit_code)
"""
# One XLA call that takes years: Python runs no signal handler in it.
ONE_LONG_CHUNK = """
    import sys, time, jax
    from harness import stopping
    def loop(body):
        return lambda x: jax.lax.fori_loop(0, 2**30, lambda _, x: body(x), x)
    work = jax.jit(loop(loop(lambda x: x * 0.999 + 1)))
    with stopping.StopSignal() as stop:
        print("ready")
        work(1.0).block_until_ready()
"""


def signalled(script: str, *numbers: int, apart: float = 0.5) -> tuple[int, str, float]:
    """Runs `script` to its line "ready", sends signals `apart` s: exit code, output, seconds."""
    process = run_script(script)
    try:
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None
        start = time.monotonic()
        for number in numbers:
            time.sleep(apart)
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
    assert seconds < 1 + stopping.STOP_GRACE


def test_a_signal_that_comes_twice_at_once_is_one():
    """As `timeout` sends it: to the process, and to its group."""
    script = CHUNKS.replace("time.sleep(0.01)", "time.sleep(2)")
    returncode, output, _ = signalled(script, signal.SIGTERM, signal.SIGTERM, apart=0.05)
    assert returncode == 143
    assert "saved after 15" in output
    assert output.count("stopping after the present chunk") == 1


def test_a_second_signal_ends_a_chunk_that_does_not_return():
    returncode, output, seconds = signalled(ONE_LONG_CHUNK, signal.SIGINT, signal.SIGINT)
    assert returncode == 130
    assert "stopping after the present chunk" in output
    assert seconds < 1 + stopping.STOP_GRACE + 5


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in stopping.StopSignal.SIGNALS]
    with stopping.StopSignal() as stop:
        during = [signal.getsignal(number) for number in stopping.StopSignal.SIGNALS]
        assert stop.requested is None
        assert stop.exit_code == 0
    assert during != before
    assert [signal.getsignal(number) for number in stopping.StopSignal.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


# --- the loop -------------------------------------------------------------------------------------


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
    log_interval: int = 10
    capture_video: bool = False
    eval_interval: int = 0
    checkpoint_interval: int = 0
    keep_checkpoints: int = 2
    checkpoint_replay: bool = True
    on_nonfinite: str = "stop"
    resume: str = ""


def train(args, chunk, evaluate):
    algorithm = contract.Algorithm(
        name="test",
        args=Args,
        presets={},
        bounds={},
        init_state=lambda env, args: State(jnp.zeros(()), jnp.zeros(3)),
        train_chunk=lambda state, env, args: chunk(state),
        evaluate=lambda learner, start, key, env, args: evaluate(),
        kinds={"sampled": "sampled"},
        export=lambda learner, args: {},
        load_policy=None,
    )
    env = mock.Mock(refresh=lambda env, index: env, success=None, engine="none", check=lambda x: x)
    return training.train(algorithm, [args], [env], [env], parallel.Devices(args))


def test_a_program_that_cannot_fit_is_refused_before_there_is_a_folder(tmp_path, monkeypatch):
    def chunk(state):  # 4 MB between input and output
        numbers = jnp.sort(jnp.broadcast_to(state.learner, 1_000_000) + jnp.arange(1e6) % 7)
        return state.replace(learner=jnp.sum(numbers * numbers[::-1])), {}

    monkeypatch.setattr(machine, "device_memory_bytes", lambda: 1_000_000)
    with pytest.raises(RunError, match=r"^--batch-size, .* cannot fit: .*; lower it$"):
        train(Args(str(tmp_path)), chunk, lambda: {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("learning_starts", "told"), [(1_999, False), (2_000, True)])
def test_updates_that_never_come_are_told(learning_starts, told):
    small = dict(num_envs=4, total_timesteps=1_001, log_interval=2_000)  # 2,000 steps: one chunk
    args = dataclasses.replace(flowrl.Args(), **small, learning_starts=learning_starts)
    env = mock.Mock(num_envs=4, observation_size=5, action_size=1, engine="native")
    state = mock.Mock(learner=State(0, 0), env=jnp.zeros(4))  # no networks
    state.replay.data = jnp.zeros((8, 3))
    said = sizes.describe(args, env, state, mock.Mock(count=1))
    assert ("no update will be made" in said) == told


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def chunk(state):
        # A policy loss that is nan because no policy step fell into the chunk is no fault.
        bad = state.learner == 1
        metrics = {"charts/updates": 10.0 * (state.learner + 1), "losses/policy": jnp.nan}
        metrics["losses/critic"] = jnp.where(bad, jnp.nan, 0.5)
        return State(state.learner + 1, state.env), metrics | {"charts/nonfinite_losses": 1.0 * bad}

    with pytest.raises(FloatingPointError, match=r"step 20, seed 1: losses/critic"):
        train(Args(str(tmp_path)), chunk, dict)
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["status"] == "failed"


def test_seconds_count_evaluation_too(tmp_path):
    def chunk(state):
        metrics = {"charts/updates": state.learner, "charts/episodic_return": 0.0}
        return State(state.learner + 1, state.env), metrics

    def evaluate():
        time.sleep(0.1)
        return {"sampled": np.zeros(1)}

    began = time.perf_counter()
    code = train(Args(str(tmp_path), eval_interval=10), chunk, evaluate)
    took = time.perf_counter() - began
    (folder,) = tmp_path.iterdir()
    seconds = [float(row["charts/seconds"]) for row in read_csv(folder)]
    assert code == 0
    assert all(0.1 * k <= value <= took for k, value in enumerate(seconds, start=1))
    assert seconds == sorted(seconds)


def test_success_is_the_share_of_returns_that_reach_the_threshold():
    returns = {"sampled": np.array([1.0, 5.0, 9.0, 5.0])}
    metrics = training.evaluation_metrics(returns, success=5.0)
    assert metrics["eval/success_sampled"] == 0.75
    assert metrics["eval/episodic_return_sampled"] == 5.0
    assert "eval/success_sampled" not in training.evaluation_metrics(returns, success=None)
