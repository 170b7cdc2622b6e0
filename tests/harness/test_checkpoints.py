"""Checkpoints and resuming: on disk, in the run's folder, on the command line, and after kill -9.

Most tests train a stand-in for an algorithm, `PROBE`, in which all that a run carries matters: a
state, a key, a replay, and a pool that is refreshed from outside. The last ones train the program.
"""

import contextlib
import csv
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import COMPILE_QUICKLY
from small import init_learner
from tensorboardX.proto import event_pb2

import flowrl_jax as flowrl
from harness import (
    checkpoints,
    command_line,
    contract,
    learning_curve,
    machine,
    parallel,
    replay,
    runs,
    sizes,
    training,
)
from harness.errors import RunError

ROOT = Path(runs.__file__).parents[1]
WALL_CLOCK = {"charts/SPS", "charts/UPS", "charts/seconds"}


# --- what a run leaves ----------------------------------------------------------------------------


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars as TensorBoard shows them: a START of a session drops what came at or after it."""
    scalars = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while len(data) >= 12:
            length = int.from_bytes(data[:8], "little")
            if len(data) < 16 + length:
                break  # a kill on the way: TensorBoard goes on with the next file
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                for name, points in scalars.items():
                    scalars[name] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value" and value.tag not in WALL_CLOCK:
                    number = repr(value.simple_value)  # so that nan is equal to nan
                    scalars.setdefault(value.tag, []).append((event.step, number))
            data = data[16 + length :]
    return {name: points for name, points in scalars.items() if points}


def read_arrays(folder: Path) -> dict[str, bytes]:
    arrays = checkpoints.newest(folder / "checkpoints").load()
    return {name: array.tobytes() for name, array in arrays.items()}


def all_that_is_left(folder: Path) -> list:
    """Everything of a run that is to be the same however often it was stopped."""
    found = [read_rows(folder), read_events(folder), read_arrays(folder)]
    with contextlib.suppress(FileNotFoundError):
        found.append((folder / "params.msgpack").read_bytes())
    return found


def on_disk(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# --- on disk --------------------------------------------------------------------------------------

ARRAYS = {
    "learner/a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "count": np.asarray(7, np.int32),
    "flags": np.array([True, False]),
    "half": np.asarray(jnp.array([1.5, -2.0, math.nan], jnp.bfloat16)),
    "key": np.array([1, 2**32 - 1], np.uint32),
}


def save(folder, step, keep=2, arrays=ARRAYS):
    return checkpoints.save(folder, step, arrays, {"step": step}, keep)


def assert_arrays(found, expected=ARRAYS):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    path = save(tmp_path / "checkpoints", 10)
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found.path == path
    assert found.host == {"step": 10}
    assert_arrays(found.load())


def test_the_newest_are_kept(tmp_path):
    for step in (100, 20, 300, 1000, 2000):
        save(tmp_path, step, keep=2)
        # Of 100, when it is at 20, a resume has gone back behind it.
        expected = {100: [100], 20: [20], 300: [20, 300], 1000: [300, 1000], 2000: [1000, 2000]}
        assert checkpoints.steps(tmp_path) == expected[step]
    assert sorted(os.listdir(tmp_path)) == ["000000001000", "000000002000"]


def test_a_tree_comes_back_as_it_was():
    devices = parallel.Devices(mock.Mock(num_devices=1, num_seeds=1, num_envs=1, batch_size=1))

    def make(seed):
        key = jax.random.key(seed)
        ring = replay.init(jnp.zeros(2, jnp.bfloat16), 4)
        ring = replay.insert(ring, jax.random.normal(key, (2, 2)))
        keys = jax.random.split(key, 3)
        return {"ring": ring, "keys": keys, "key": key, "none": jnp.zeros((2, 0)), "n": (seed,)}

    tree, other = (jax.tree.map(jnp.asarray, make(seed)) for seed in (1, 2))
    arrays = checkpoints.flatten(tree, devices.gather)
    assert set(arrays) == {"ring/data", "ring/position", "ring/size", "keys", "key", "n/0"}
    expected = {name: array.copy() for name, array in arrays.items()}
    back = checkpoints.unflatten(other, dict(arrays), devices.scatter)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert back["none"].shape == (2, 0)
    assert jax.random.normal(back["key"]) == jax.random.normal(tree["key"])
    assert_arrays(checkpoints.flatten(back, devices.gather), expected)
    # Donated memory is the array's own.
    jax.jit(lambda x: x * 2, donate_argnums=0)(back["ring"].data)
    np.testing.assert_array_equal(arrays["ring/data"], expected["ring/data"])


def test_another_programs_tree_is_refused():
    with pytest.raises(checkpoints.DamagedError, match=r"another version.*more"):
        checkpoints.unflatten({"a": np.zeros(1)}, {"a": 0, "more": 0}, lambda new, old: new)
    devices = parallel.Devices(mock.Mock(num_devices=1, num_seeds=1, num_envs=1, batch_size=1))
    with pytest.raises(ValueError, match=r"float32\[2\] is not float32\[3\]"):
        devices.scatter(np.zeros(2, np.float32), jnp.zeros(3))


def test_an_end_at_any_call_leaves_a_whole_one(tmp_path, monkeypatch):
    """KeyboardInterrupt at the n-th call that changes the disk, for every n, stands for a kill."""
    calls = [(os, "rename"), (os, "fsync"), (checkpoints.shutil, "rmtree"), (Path, "mkdir")]
    calls += [(Path, "write_text")]
    ends = 0
    for n in range(1000):
        folder = tmp_path / str(n)
        save(folder, 10)
        save(folder, 20)
        counter = iter(range(1000))
        with monkeypatch.context() as patch:
            for owner, name in calls:
                original = getattr(owner, name)

                def call(*args, _original=original, _counter=counter, _n=n, **kwargs):
                    if next(_counter) == _n:
                        raise KeyboardInterrupt
                    return _original(*args, **kwargs)

                patch.setattr(owner, name, call)
            try:
                save(folder, 30)
            except KeyboardInterrupt:
                ends += 1
            else:
                break
        found = checkpoints.newest(folder)
        assert found.host["step"] in (20, 30)
        assert_arrays(found.load())
        save(folder, 40)  # and what lies about is cleared away
        assert sorted(os.listdir(folder))[1:] == ["000000000040"]
        assert checkpoints.newest(folder).host["step"] == 40
    assert ends > 10


@pytest.mark.parametrize("how", ["cut", "changed", "gone", "empty"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, how, capsys):
    save(tmp_path / "whole", 10)
    newest = save(tmp_path / "whole", 20)
    names = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(names) > 3
    for i, name in enumerate(names):
        folder = tmp_path / f"{i}"
        checkpoints.shutil.copytree(tmp_path / "whole", folder)
        path = folder / newest.name / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes({"cut": data[:-1], "changed": data, "empty": b""}[how])
        found = checkpoints.newest(folder)
        assert found.host == {"step": 10}, name
        warning = capsys.readouterr().err
        assert warning.count("\n") == 1
        assert warning.startswith(f"warning: the checkpoint {folder / newest.name} is damaged")
        assert_arrays(found.load())


def test_none_is_none(tmp_path):
    assert checkpoints.newest(tmp_path / "not there") is None
    save(tmp_path, 5)
    (tmp_path / "000000000005" / "manifest.json").write_text("[]")
    assert checkpoints.newest(tmp_path) is None


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A disk of that size at `folder`, where this user may make one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("cannot mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_one_before(tmp_path):
    with small_disk(tmp_path / "disk", "1m"):
        folder = tmp_path / "disk" / "checkpoints"
        save(folder, 10)
        large = ARRAYS | {"large": np.random.default_rng(0).bytes(2**21)}
        large["large"] = np.frombuffer(large["large"], np.uint8)
        with pytest.raises(checkpoints.SaveError) as caught:
            save(folder, 20, arrays=large)
        message = str(caught.value)
        assert "step 20" in message
        assert "No space left on device; the last whole one is" in message
        assert message.endswith("000000000010")
        assert os.listdir(folder) == ["000000000010"]  # what was half written gave its space back
        assert_arrays(checkpoints.newest(folder).load())
        save(folder, 20)
        assert checkpoints.newest(folder).host == {"step": 20}


# --- a stand-in for an algorithm ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Probe:
    runs_dir: str = "runs"
    env_id: str = "probe"
    seed: int = 1
    num_devices: int = 1
    num_seeds: int = 1
    num_envs: int = 1
    batch_size: int = 1
    distributed: bool = False
    preset: str = "cpu"
    gamma: float = 0.5
    total_timesteps: int = 120
    log_interval: int = 10
    capture_video: bool = False
    eval_interval: int = 30
    eval_episodes: int = 1
    checkpoint_interval: int = 20
    keep_checkpoints: int = 2
    checkpoint_replay: bool = True
    on_nonfinite: str = "stop"
    resume: str = ""


@flax.struct.dataclass
class ProbeState:
    learner: dict[str, jax.Array]
    env: jax.Array  # (4,), the pool
    replay: jax.Array  # (8,)
    key: jax.Array
    num_steps: jax.Array


class ProbeEnv:
    engine, success = "none", None

    def reset(self, key):
        """Its state is what tells `evaluate` when it is called."""
        return self.index

    def check(self, returns):
        return returns

    def refresh(self, env, index):
        self.index = index
        return env.at[index % 4].set(math.sin(index))


def probe_state(args: Probe) -> ProbeState:
    key = jax.random.key(args.seed)
    learner = {"w": jnp.full(3, args.seed / 7), "updates": jnp.zeros((), jnp.int32)}
    return ProbeState(learner, jnp.zeros(4), jnp.zeros(8), key, jnp.zeros((), jnp.int32))


def probe_chunk(state: ProbeState, args: Probe):
    key, noise_key = jax.random.split(state.key)
    ring = jnp.roll(state.replay, 1).at[0].set(jax.random.normal(noise_key) + state.env.sum())
    w = state.learner["w"] * args.gamma + ring[:3] * ring[3:6].sum()
    updates = state.learner["updates"] + 1
    learner = {"w": w, "updates": updates}
    metrics = {"charts/updates": updates, "losses/w": w.sum(), "charts/episodic_return": ring[7]}
    metrics["losses/late"] = jnp.where(updates > 4, w[0], jnp.nan)  # a column from then on
    return ProbeState(learner, state.env, ring, key, state.num_steps + 10), metrics


def probe_algorithm(chunk, evaluation) -> contract.Algorithm:
    def evaluate(learner, start, key, env, args):
        if evaluation is not None:
            evaluation(start)
        return {"sampled": np.asarray(learner["w"])}

    return contract.Algorithm(
        name="test",
        args=Probe,
        presets={"cpu": {}},
        bounds={},
        init_state=lambda env, args: probe_state(args),
        train_chunk=lambda state, env, args: chunk(state, args),
        evaluate=evaluate,
        kinds={"sampled": "sampled"},
        export=lambda learner, args: {"params.msgpack": np.asarray(learner["w"]).tobytes()},
        load_policy=None,
    )


PROBE = probe_algorithm(None, None)


def train(args: Probe, chunk=probe_chunk, evaluation=None) -> int:
    """evaluation: called with the index of the chunk that it follows."""
    each = [dataclasses.replace(args, seed=args.seed + k) for k in range(args.num_seeds)]
    envs = [ProbeEnv() for _ in each]
    algorithm = probe_algorithm(chunk, evaluation)
    return training.train(algorithm, each, envs, envs, parallel.Devices(args))


def resumed(folder: Path, *flags: str) -> Probe:
    """The arguments of `--resume folder` and more flags."""
    return command_line.parse_args(PROBE, "cpu", ["--resume", str(folder), *flags])


class Ended(Exception):
    """Stands for a kill: nothing is saved after it."""


def end_at(chunk: int):
    def evaluation(index):
        if index == chunk:
            raise Ended

    return evaluation


def interrupted_run(runs_dir: Path, chunk: int = 6, **changed) -> Path:
    """A run of 12 chunks that ended in the evaluation of one."""
    with pytest.raises(Ended):
        train(Probe(str(runs_dir), **changed), evaluation=end_at(chunk))
    (folder,) = runs_dir.iterdir()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run leaves that nobody stopped."""
    runs_dir = tmp_path_factory.mktemp("whole")
    assert train(Probe(str(runs_dir))) == 0
    (folder,) = runs_dir.iterdir()
    return all_that_is_left(folder)


@pytest.mark.parametrize("chunk", [3, 6, 9, 12])
def test_a_run_goes_on_as_if_nothing_had_been(tmp_path, whole, chunk):
    folder = interrupted_run(tmp_path, chunk)
    seconds = checkpoints.newest(folder / "checkpoints").host["run"]["seconds"]
    assert train(resumed(folder)) == 0
    assert all_that_is_left(folder) == whole
    assert [int(row["step"]) for row in whole[0]] == list(range(10, 121, 10))
    with (folder / "metrics.csv").open(newline="") as file:
        clock = [float(row["charts/seconds"]) for row in csv.DictReader(file)]
    assert clock == sorted(clock)
    assert clock[(chunk - 1) // 2 * 2] > seconds
    config = json.loads((folder / "config.json").read_text())
    assert config["status"] == "finished"
    assert [one["step"] for one in config["resumed"]] == [(chunk - 1) // 2 * 20]
    assert "error" not in config


def test_each_of_several_seeds_goes_on_alone(tmp_path):
    runs_dir, alone = tmp_path / "runs", tmp_path / "alone"
    with pytest.raises(Ended):
        train(Probe(str(runs_dir), num_seeds=3), evaluation=end_at(6))
    folders = sorted(runs_dir.iterdir())
    assert [checkpoints.steps(one / "checkpoints") for one in folders] == [[20, 40]] * 3
    assert train(resumed(folders[1])) == 0
    assert train(Probe(str(alone), seed=2)) == 0
    (reference,) = alone.iterdir()
    found, expected = (
        checkpoints.newest(one / "checkpoints").load() for one in (folders[1], reference)
    )
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6)
    assert [r["step"] for r in read_rows(folders[1])] == [r["step"] for r in read_rows(reference)]
    with pytest.raises(RunError, match="--num-seeds: each seed is resumed alone"):
        resumed(folders[0], "--num-seeds", "3")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, capsys, whole, number, code):
    def evaluation(index):
        if index == 3:
            os.kill(os.getpid(), number)

    args = Probe(str(tmp_path), checkpoint_interval=0)
    assert train(args, evaluation=evaluation) == code
    (folder,) = tmp_path.iterdir()
    assert checkpoints.steps(folder / "checkpoints") == [30]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"stopped at step 30; to go on: python {sys.argv[0]} --resume {folder}"
    assert json.loads((folder / "config.json").read_text())["status"] == "interrupted"
    assert train(resumed(folder)) == 0
    assert all_that_is_left(folder) == whole


def test_a_damaged_newest_costs_a_warning_and_no_exactness(tmp_path, capsys, whole):
    folder = interrupted_run(tmp_path, 9)
    assert checkpoints.steps(folder / "checkpoints") == [60, 80]
    (folder / "checkpoints" / "000000000080" / "manifest.json").write_text("{")
    assert train(resumed(folder)) == 0
    assert "000000000080 is damaged" in capsys.readouterr().err
    assert all_that_is_left(folder) == whole


def test_nothing_whole_is_one_line(tmp_path):
    folder = interrupted_run(tmp_path, 3)
    (folder / "checkpoints" / "000000000020" / "manifest.json").unlink()
    before = on_disk(folder)
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole"):
        train(resumed(folder))
    assert on_disk(folder) == before


def test_more_steps_can_be_asked_for_of_a_finished_run(tmp_path, whole):
    assert train(Probe(str(tmp_path), total_timesteps=60)) == 0
    (folder,) = tmp_path.iterdir()
    assert train(resumed(folder, "--total-timesteps", "120")) == 0
    assert all_that_is_left(folder) == whole
    assert json.loads((folder / "config.json").read_text())["args"]["total_timesteps"] == 120


def test_a_run_that_was_killed_at_its_very_end_only_ends(tmp_path, whole):
    assert train(Probe(str(tmp_path))) == 0
    (folder,) = tmp_path.iterdir()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"status": "running"}))
    assert train(resumed(folder)) == 0
    assert all_that_is_left(folder) == whole


def test_without_the_replay_it_begins_with_an_empty_one(tmp_path, capsys):
    folder = interrupted_run(tmp_path, checkpoint_replay=False)
    names = set(checkpoints.newest(folder / "checkpoints").load())
    assert names == {"learner/w", "learner/updates", "env", "key", "num_steps"}
    rings = []

    def chunk(state, args):
        jax.debug.callback(rings.append, state.replay)
        return probe_chunk(state, args)

    assert train(resumed(folder), chunk) == 0
    assert "without the replay" in capsys.readouterr().out
    assert len(rings) == 12 - 4
    assert not rings[0].any()


# --- faults ---------------------------------------------------------------------------------------


def faulty(kind: str, at: int):
    """PROBE with something that is not finite in chunk `at`."""

    def chunk(state, args):
        state, metrics = probe_chunk(state, args)
        bad = jnp.where(state.learner["updates"] == at, jnp.nan, 0.0)
        counted = jnp.isnan(bad).astype(jnp.int32)
        if kind == "parameter":
            state = state.replace(learner=state.learner | {"w": state.learner["w"] + bad})
        elif kind == "loss":
            metrics["losses/w"] += bad
            metrics["charts/nonfinite_losses"] = counted
        else:
            metrics["charts/nonfinite_rewards"] = counted
        return state, metrics

    return chunk


@pytest.mark.parametrize(
    ("kind", "named"),
    [("loss", "losses/w"), ("reward", "charts/nonfinite_rewards"), ("parameter", "learner/w")],
)
def test_what_is_not_finite_ends_the_run_and_spoils_no_checkpoint(tmp_path, kind, named):
    with pytest.raises(FloatingPointError) as caught:
        train(Probe(str(tmp_path)), faulty(kind, 6))
    (folder,) = tmp_path.iterdir()
    message = str(caught.value)
    assert message.startswith(f"not finite at step 60, seed 1: {named}")
    assert "last good checkpoint: step 40" in message
    assert f"--resume {folder}" in message
    assert checkpoints.newest(folder / "checkpoints").host["run"]["step"] == 40
    config = json.loads((folder / "config.json").read_text())
    assert config["status"] == "failed"
    assert "not finite at step 60" in config["error"]
    rows = read_rows(folder)
    assert rows[-1]["step"] == ("50" if kind == "parameter" else "60")  # found before it is logged
    # From there it can go on with the other rule.
    if kind != "parameter":
        assert train(resumed(folder, "--on-nonfinite", "skip"), faulty(kind, 6)) == 0
        assert len(read_rows(folder)) == 12


def test_a_fault_before_any_checkpoint_says_so(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 10, .*; no good checkpoint yet$"):
        train(Probe(str(tmp_path)), faulty("loss", 1))
    (folder,) = tmp_path.iterdir()
    with pytest.raises(RunError, match="has no checkpoint"):
        resumed(folder)


def test_a_full_disk_ends_training_with_one_line(tmp_path, capsys, monkeypatch):
    with small_disk(tmp_path / "disk", "2m"):

        def state_of(args):
            noise = np.random.default_rng(0).standard_normal(2**17).astype(np.float32)
            return original(args).replace(replay=jnp.asarray(noise))  # 0.5 MiB

        original = probe_state
        monkeypatch.setattr(sys.modules[__name__], "probe_state", state_of)
        args = Probe(str(tmp_path / "disk"), keep_checkpoints=100)
        monkeypatch.setattr(sys, "argv", ["program"])
        monkeypatch.setattr(machine, "enable_compilation_cache", lambda: None)
        assert command_line.exit_code(lambda _: train(args), PROBE) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        (folder,) = (tmp_path / "disk").iterdir()
        last = checkpoints.newest(folder / "checkpoints")
        assert last.host["run"]["step"] >= 20
        assert f"No space left on device; the last whole one is {last.path}" in error
        assert last.load()["replay"].shape == (2**17,)


def test_rows_on_a_full_disk_are_one_line_too(tmp_path, capsys, monkeypatch):
    with small_disk(tmp_path / "disk", "1m"):
        (tmp_path / "disk" / "other").mkdir()

        def fill(index):
            with contextlib.suppress(OSError), (tmp_path / "disk/other/file").open("wb") as file:
                file.write(bytes(2**21))

        args = Probe(str(tmp_path / "disk/runs"), checkpoint_interval=0, total_timesteps=20_000)
        args = dataclasses.replace(args, eval_interval=1_000)
        monkeypatch.setattr(sys, "argv", ["program"])
        monkeypatch.setattr(machine, "enable_compilation_cache", lambda: None)
        assert command_line.exit_code(lambda _: train(args, evaluation=fill), PROBE) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: cannot write the run's files: No space left on device")


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return interrupted_run(tmp_path / "runs", 6)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gamma", "0.75"], "--gamma: 0.75 is in conflict with the run in .*, which has 0.5"),
        (["--seed", "2"], "--seed: 2 is in conflict"),
        (["--preset", "gpu"], "--preset: gpu is in conflict"),
        (["--eval-interval", "10"], "--eval-interval: 10 is in conflict"),
        (["--total-timesteps", "60"], "--total-timesteps: 60 is less than the 120"),
        (["--gama", "1"], "--gama"),
        (["--runs-dir", "elsewhere"], "--runs-dir: elsewhere is in conflict"),
        (["--num-seeds", "2"], "--num-seeds: each seed is resumed alone"),
    ],
)
def test_flags_in_conflict_are_named_and_nothing_is_touched(folder, flags, says):
    before = on_disk(folder)
    with pytest.raises(RunError, match=says) as caught:
        resumed(folder, *flags)
    assert "\n" not in str(caught.value)
    assert on_disk(folder) == before


def test_flags_that_change_nothing_are_taken(folder):
    flags = ["--gamma", "0.5", "--preset", "auto", "--seed", "1"]
    flags += ["--checkpoint-interval", "40", "--keep-checkpoints", "1"]
    args = resumed(folder, *flags)
    assert args.checkpoint_interval == 40
    assert (args.preset, args.resume, args.seed) == ("cpu", str(folder), 1)
    assert train(args) == 0
    assert checkpoints.steps(folder / "checkpoints") == [120]
    assert json.loads((folder / "config.json").read_text())["args"]["keep_checkpoints"] == 1


def test_what_depends_on_the_machine_has_to_be_the_same(folder, monkeypatch):
    before = on_disk(folder)
    monkeypatch.setattr(ProbeEnv, "engine", "mjx")
    with pytest.raises(RunError, match=r"--engine: .* had engine none, here .* engine mjx"):
        train(resumed(folder))
    assert on_disk(folder) == before


def test_no_folder_no_run_no_checkpoint(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(RunError, match=r"--resume: .* no run folder: config\.json"):
            resumed(folder)
    for status in ("failed", "finished"):
        (tmp_path / "config.json").write_text(
            json.dumps({"args": {"runs_dir": "x"}, "status": status})
        )
        with pytest.raises(RunError, match=r"--resume: .* has no checkpoint"):
            resumed(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"args": {"alpha": 1}, "status": "failed"}))
    with pytest.raises(RunError, match=r"--resume: .* another version.* alpha"):
        resumed(tmp_path)


def test_a_finished_run_is_refused(tmp_path):
    assert train(Probe(str(tmp_path))) == 0
    (folder,) = tmp_path.iterdir()
    with pytest.raises(RunError, match=r"has finished all of its steps; .*--total-time.* 120$"):
        resumed(folder)


def test_steps_that_round_to_those_it_has_are_refused_too(tmp_path):
    assert train(Probe(str(tmp_path), total_timesteps=115)) == 0  # 120: chunks of 10
    (folder,) = tmp_path.iterdir()
    with pytest.raises(RunError, match=r"raise --total-timesteps above 120$"):
        resumed(folder, "--total-timesteps", "118")
    assert resumed(folder, "--total-timesteps", "121").total_timesteps == 121


def test_a_run_at_work_is_refused(tmp_path):
    def evaluation(index):
        (folder,) = tmp_path.iterdir()
        if index == 3:
            with pytest.raises(RunError, match="another process is at work"):
                resumed(folder)

    assert train(Probe(str(tmp_path)), evaluation=evaluation) == 0


def test_who_resumes_holds_the_folder_while_it_compiles(folder, monkeypatch):
    """Else a second one cut the rows of the first, which had gone on in the meantime."""
    args, program, other = resumed(folder), parallel.Devices.program, []

    def compiling(self, *arguments):
        if not other:
            other.append(1)
            with pytest.raises(RunError, match="another process is at work"):
                train(args)
        return program(self, *arguments)

    monkeypatch.setattr(parallel.Devices, "program", compiling)
    assert train(args) == 0
    assert [int(row["step"]) for row in read_rows(folder)] == list(range(10, 121, 10))


def test_a_signal_in_the_last_checkpoint_finds_a_finished_run(tmp_path, monkeypatch):
    save = checkpoints.save

    def then_a_signal(folder, step, *arguments):
        path = save(folder, step, *arguments)
        if step == 120:
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    monkeypatch.setattr(checkpoints, "save", then_a_signal)
    assert train(Probe(str(tmp_path))) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["status"] == "finished"


def test_parameters_that_are_not_finite_overwrite_no_policy(tmp_path):
    def chunk(state, args):
        after, metrics = probe_chunk(state, args)
        w = jnp.where(after.num_steps >= 60, jnp.nan, after.learner["w"])
        metrics |= {"losses/w": jnp.zeros(()), "losses/late": jnp.zeros(())}  # too late to tell
        return after.replace(learner=after.learner | {"w": w}), metrics

    with pytest.raises(FloatingPointError, match=r"step 60, .*learner/w; last good .*step 50"):
        train(Probe(str(tmp_path), checkpoint_interval=50), chunk=chunk)
    (folder,) = tmp_path.iterdir()
    assert np.isfinite(np.frombuffer((folder / "params.msgpack").read_bytes()[-12:], "f4")).all()


def test_a_curve_that_cannot_be_drawn_fails_no_run(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learning_curve, "plot", full)
    assert train(Probe(str(tmp_path))) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["status"] == "finished"


def test_rows_without_a_step_are_one_line_and_nothing_is_touched(folder):
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("step", "stop", 1))
    before = on_disk(folder)
    with pytest.raises(RunError, match=r"--resume: .*metrics.csv is damaged: a row has no step"):
        resumed(folder)  # before anything is compiled
    assert on_disk(folder) == before


def test_rows_that_are_no_text_are_one_line(folder):
    with (folder / "metrics.csv").open("ab") as file:
        file.write(b"\xff\xfe,1\n")
    with pytest.raises(RunError, match=r"--resume: .*metrics.csv is damaged: it is no text"):
        resumed(folder)


def test_a_stored_value_that_no_flag_could_have_is_damage(folder):
    config = json.loads((folder / "config.json").read_text())
    config["args"]["num_envs"] = -1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"--resume: .*config.json is damaged: --num-envs: needs"):
        resumed(folder)


def test_a_folder_to_resume_that_cannot_be_written_is_named(folder, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    args = resumed(folder)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(RunError, match=r"--resume goes on in it; make it writable"):
        sizes.check(args, None, None, mock.Mock(is_main=True))


def test_rows_are_cut_behind_the_checkpoint_and_half_ones_too(tmp_path):
    with runs.Run.create(tmp_path, "probe", "test", 1, {"a": 1}) as run:
        for step in range(10, 60, 10):
            run.log(step, {"x": step / 3} | ({"late": 1.0} if step > 30 else {}))
    with (run.folder / "metrics.csv").open("a") as file:
        file.write("3")  # of 60: a kill on the way
    with runs.Run.reopen(run.folder, 30, {"a": 2}) as again:
        assert read_rows(run.folder)[-1] == {"step": "30", "x": "10"}
        again.log(40, {"x": 1.0})
    assert [row["step"] for row in read_rows(run.folder)] == ["10", "20", "30", "40"]
    assert [step for step, _ in read_events(run.folder)["x"]] == [10, 20, 30, 40]
    assert "late" not in read_rows(run.folder)[0]
    config = json.loads((run.folder / "config.json").read_text())
    assert config["args"] == {"a": 2}
    assert config["resumed"][0]["step"] == 30


# --- the program ----------------------------------------------------------------------------------

SMALL = dict(env_id="cartpole-balance", preset="cpu", num_envs=4, num_threads=1, hidden_size=8)
SMALL |= dict(batch_size=8, updates_per_step=2, buffer_size=400, learning_starts=80)
SMALL |= dict(log_interval=80, eval_interval=0, eval_episodes=1, recent_window=40)


def test_a_poisoned_batch_is_dropped_whole_or_counted():
    args = dataclasses.replace(flowrl.Args(), **SMALL, on_nonfinite="skip")
    obs, action, no = jnp.ones(3), jnp.zeros(2), jnp.zeros((), bool)
    ring = replay.init(flowrl.Transition(obs, action, jnp.zeros(()), obs, no), 4)
    rewards = jnp.array([1.0, jnp.nan, jnp.nan, jnp.nan])
    fill = lambda x: jnp.broadcast_to(x, (4, *x.shape))  # noqa: E731
    batch = flowrl.Transition(fill(obs), fill(action), rewards, fill(obs), fill(no))
    learner = init_learner(jax.random.key(0), 3, 2, args)

    @jax.jit
    def learn(key, learner, ring):
        return flowrl.learn(learner, *flowrl.draw_batches(key, ring, args), args)

    for rows, dropped in ((batch, 2), (batch.replace(reward=jnp.ones(4)), 0)):
        after, metrics = learn(jax.random.key(4), learner, replay.insert(ring, rows))
        assert metrics["charts/nonfinite_losses"] == dropped
        assert np.isfinite(metrics["losses/critic"])
        assert after.critic.step == 2 - dropped
        pairs = zip(*map(jax.tree.leaves, (learner, after)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == (dropped == 2)


def test_an_empty_replay_is_refilled_before_learning_goes_on():
    ring = replay.init(jnp.zeros(()), 8)
    held = []
    for _ in range(4):
        held.append([bool(replay.holds(ring, number)) for number in (0, 4, 8, 100)])
        ring = replay.insert(ring, jnp.ones(4))
    assert held == [[True, False, False, False], [True, True, False, False]] + 2 * [[True] * 4]


def start(*flags: str) -> subprocess.Popen:
    """The program, up to the line that says where its folder is, which stays on `folder`."""
    command = [sys.executable, "-u", str(ROOT / "flowrl_jax.py"), *flags]
    cache = str(ROOT / ".jax_cache")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("run folder "):
            process.folder = Path(line.removeprefix("run folder ").strip())
            return process
    raise AssertionError(said)


def flags_of(values: dict) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def killed_and_resumed(tmp_path: Path, kills: int, seed: int, **values) -> None:
    """Kills runs at random moments of training until `kills` were, and compares what they leave."""
    draw, done, inside, runs_compared = random.Random(seed), 0, 0, 0
    flags = flags_of(SMALL | values)
    process = start(*flags, "--runs-dir", str(tmp_path / "whole"))
    began = time.monotonic()
    process.communicate(timeout=600)
    took = time.monotonic() - began
    expected = all_that_is_left(process.folder)
    while done < kills:
        folder, process = None, start(*flags, "--runs-dir", str(tmp_path / "killed"))
        while True:
            folder = process.folder
            if done == kills - 1:  # so that one at least has a checkpoint to go on from
                while process.poll() is None and not checkpoints.steps(folder / "checkpoints"):
                    time.sleep(0.05)
            try:
                process.communicate(timeout=draw.uniform(0, took / 4) if done < kills else 600)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            assert process.returncode == -signal.SIGKILL
            done += 1
            if json.loads((folder / "config.json").read_text())["status"] == "finished":
                break  # killed when all was written
            inside += (folder / "checkpoints" / "partial-new").exists()
            if not checkpoints.steps(folder / "checkpoints"):  # before the first: nothing to resume
                process = start(*flags, "--runs-dir", str(tmp_path / "killed"))
            else:
                process = start("--resume", str(folder))
        assert process.returncode in (0, -signal.SIGKILL)
        assert all_that_is_left(folder) == expected
        runs_compared += 1
    print(f"{done} of {kills} kills, {inside} within a checkpoint, {runs_compared} runs compared")


@pytest.mark.slow
def test_a_kill_and_a_resume_are_bit_for_bit_no_kill(tmp_path, monkeypatch):
    """Compiled as by users, the other algorithms' runs are resumed in tests/test_algorithms.py."""
    monkeypatch.setenv("XLA_FLAGS", COMPILE_QUICKLY)
    killed_and_resumed(tmp_path, 3, 0, total_timesteps=1600, checkpoint_interval=160)


@pytest.mark.long
def test_twenty_kills_at_random_moments(tmp_path):
    """About a third of them while a checkpoint is written."""
    work = dict(updates_per_step=8, checkpoint_interval=400)
    killed_and_resumed(tmp_path, 20, 1, total_timesteps=8_000, **work)
