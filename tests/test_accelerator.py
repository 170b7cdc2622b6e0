"""The programs that wait for an accelerator, on a CPU at toy sizes."""

import contextlib
import csv
import functools
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from scripts import COMPILE_QUICKLY

import envs
import flowrl_jax as flowrl
import numpy_policy
from benchmarks import accelerator, accelerator_program, compile_times

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
    # Of 8 numbers, 4 bytes each: the product reads and writes one array, what the copy starts has
    # two and a count, and reads one.
    assert program.moved == 2 * 32 + (2 * 32 + 4) + 32
    assert (loop.path, loop.what, loop.times) == ("0.0", "jit(f)/while", "4")
    assert (loop.kernels, loop.copies) == (1, 1)
    assert loop.moved == 4 * 32  # the fusion reads x and writes its like, and so does the copy


@pytest.mark.parametrize(
    ("program", "argument", "value"),
    [
        (accelerator_program, "programs", "foo"),
        (accelerator_program, "--env-id", "no-such_task"),
        (compile_times, "--tasks", "no-such_task"),
        (compile_times, "--engines", "foo"),
    ],
)
def test_what_is_not_known_is_one_line_that_names_it(program, argument, value, monkeypatch, capsys):
    monkeypatch.setattr(accelerator_program, "rows", lambda *_: pytest.fail("it compiles"))
    monkeypatch.setattr(compile_times, "start", lambda *_: pytest.fail("it starts"))
    given = [argument, value] if argument.startswith("-") else [value]
    monkeypatch.setattr(sys, "argv", ["program.py", *given])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert argument in said
    assert value in said


@pytest.fixture(scope="module")
def pole():
    """A small pole on `mjx`, its arguments and the shapes of its state."""
    sizes = dict(num_envs=4, hidden_size=8, batch_size=8, updates_per_step=2, buffer_size=64)
    args = flowrl.Args(env_id="cartpole-balance", log_interval=8, eval_episodes=2, **sizes)
    env = envs.make(args.env_id, args.num_envs, "mjx")
    return env, args, jax.eval_shape(functools.partial(flowrl.init_state, env, args))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_chunk_and_evaluation_can_be_lowered_for(platform, pole):
    """What needs a device that is not here would say so. `native` calls the host: it needs one."""
    env, args, state = pole
    chunk = jax.jit(functools.partial(flowrl.train_chunk, env=env, args=args), donate_argnums=0)
    evaluate = jax.jit(functools.partial(flowrl.POLICY.evaluate, env=env, args=args))
    for program, given in ((chunk, (state,)), (evaluate, (state.learner, state.env, state.key))):
        lowered = jax.export.export(program, platforms=[platform])(*given)
        assert lowered.platforms == (platform,)
        assert "callback" not in str(lowered.mlir_module())


@pytest.mark.long
def test_a_chunk_compiles_for_an_h200(pole):
    """Whole, without a device: the state stays in place, and no update copies anything."""
    for module in ("jax_plugins.xla_cuda12", "jax_cuda12_plugin"):
        pytest.importorskip(module, reason=f"see {accelerator_program.__file__}")
    if jax.config.jax_platforms != "cpu":
        pytest.skip("JAX_PLATFORMS=cpu: else JAX looks for the plugin's device, and drops it")
    env, args, state = pole
    chunk = jax.jit(functools.partial(flowrl.train_chunk, env=env, args=args), donate_argnums=0)
    compiled, _ = accelerator_program.compiled(chunk, (state,))
    memory = compiled.memory_analysis()
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.learner))
    assert memory.alias_size_in_bytes >= state_bytes
    found = accelerator_program.nests(compiled.as_text())
    updates = max((nest for nest in found if nest.times == "1"), key=lambda nest: nest.kernels)
    step = found[1]
    assert step.copies < 20
    assert updates.kernels + updates.copies < 2 * 400


def test_kernels_are_those_of_the_devices_streams(monkeypatch):
    """Of a made-up trace of two rounds: not what the host did, nor what only names its kernels."""

    def named(kind, pid, tid, name):
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

    def ran(pid, tid, name, dur):
        return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": 0, "dur": dur}

    events = [
        named("process_name", 1, 0, "/device:GPU:0"),
        named("process_name", 7, 0, "/host:CPU"),
        named("thread_name", 1, 2, "Stream #13(Compute)"),
        named("thread_name", 1, 3, "XLA Modules"),
        named("thread_name", 7, 2, "python"),
        *[ran(1, 2, "gemm", 10.0) for _ in range(6)],
        *[ran(1, 2, "add", 1.0) for _ in range(2)],
        ran(1, 3, "jit_learn", 99.0),
        ran(7, 2, "$loops.py", 99.0),
        {},
    ]

    @contextlib.contextmanager
    def trace(folder, create_perfetto_trace):
        assert create_perfetto_trace
        yield
        with gzip.open(Path(folder, "perfetto_trace.json.gz"), "wt") as file:
            json.dump({"traceEvents": events}, file)

    rounds = []
    monkeypatch.setattr(jax.profiler, "trace", trace)
    whole, *longest = accelerator.kernels(rounds.append, 2)
    assert rounds == [2]
    assert (whole["value"], whole["unit"], whole["note"]) == ("31", "us", "4 times")
    assert [(row["measure"], row["value"], row["note"]) for row in longest] == [
        ("kernel gemm", "30", "3 times"),
        ("kernel add", "1", "1 times"),
    ]


@pytest.mark.slow
def test_every_job_runs_or_says_why_not(tmp_path):
    """In a budget that is too short for all of them here, too."""
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--toy"]
    command += ["--minutes", "1.5", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "accelerator.csv").open() as file:
        rows = list(csv.DictReader(file))
    jobs = {"versions", "parity", "tests", "environments", "updates", "learning"}
    jobs |= {"loop", "train"}
    assert {row["job"] for row in rows} == jobs
    for row in rows:
        assert row["value"] or row["note"] or row["measure"].startswith("version of"), row
    speeds = [row for row in rows if row["measure"] == "env.step"]
    assert [row["unit"] for row in speeds] == ["ms", "steps/s"]
    ms, rate = (float(row["value"]) for row in speeds)
    assert rate == pytest.approx(4 / (ms / 1e3), rel=1e-2)  # of the toy's 4 environments
    assert float(max(rows, key=lambda row: float(row["at, s"]))["at, s"]) < 180


PROGRAM_THAT_SLEEPS = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--runs-dir") + 1]).parent
began = time.monotonic()
time.sleep(3)
found = {"flags": sys.argv[1:], "shares": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")}
(folder / "found").write_text(json.dumps(found | {"began": began, "ended": time.monotonic()}))
"""


@pytest.mark.parametrize("together", [True, False])
def test_several_commands_run_at_once_and_share_the_machine(together, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setattr(accelerator.os, "sched_getaffinity", lambda _: set(range(6)))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM_THAT_SLEEPS)
    commands = [f"{program} --seed {seed}" for seed in (1, 2)]
    table = accelerator.Table(tmp_path / "accelerator.csv")
    for some in [commands] if together else [[command] for command in commands]:
        accelerator.train(table, some, tmp_path, time.monotonic() + accelerator.MARGIN + 60)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("train_*/found"))]
    assert len(found) == 2
    overlap = min(run["ended"] for run in found) - max(run["began"] for run in found)
    assert (overlap > 0) is together
    for run in found:
        assert ("--num-threads 3" in " ".join(run["flags"])) is together
        assert run["shares"] == ("false" if together else None)


@pytest.mark.slow
def test_runs_side_by_side_leave_what_a_policy_needs(tmp_path):
    """Two of one name, as settings that are compared have, and one of two seeds."""
    train = accelerator.TOY_TRAIN[0] + " --total-timesteps 800 --engine native"
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--toy", "--together"]
    command += ["--jobs", "versions", "--minutes", "6", "--out", str(tmp_path)]
    command += ["--train", train, f"{train} --learning-rate 0.001 --num-seeds 2"]
    environment = os.environ | {"XLA_FLAGS": COMPILE_QUICKLY}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "accelerator.csv").open() as file:
        notes = [row["note"] for row in csv.DictReader(file) if row["job"] == "train"]
    assert [note.split(";")[0] for note in notes] == ["finished", "finished"]
    steps = []
    for kept in ("1", "1__2", "2"):
        name = f"cartpole-balance__flowrl_jax__{kept}"
        config = json.loads((tmp_path / f"{name}.json").read_text())
        steps.append(config["args"]["learning_rate"])
        played = tmp_path / f"play_{name}"
        played.mkdir()
        for suffix, file in ((".json", "config.json"), (".msgpack", "params.msgpack")):
            shutil.copy(tmp_path / f"{name}{suffix}", played / file)
        act = flowrl.load_policy(played)
        shutil.copy(tmp_path / f"{name}.npz", played / "policy.npz")
        obs = np.ones((3, 5), np.float32)
        np.testing.assert_allclose(act(obs), numpy_policy.load(played)(obs), atol=1e-5)
        assert (tmp_path / f"{name}.csv").exists()
    assert steps == [3e-4, 1e-3, 1e-3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--minutes 0", "--minutes: needs more than 0"),
        ("--shares 1 2", "--shares: needs a number for each of --train"),
        ("--shares 0", "--shares: needs more than 0"),
        ("--together --shares 1", "--shares: is for runs in turn"),
        ("--no-train --together", "--no-train: is in conflict"),
    ],
)
def test_bad_input_is_one_line(flags, said, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), *flags.split()]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nothing_outlives_it(tmp_path):
    """SIGTERM while a job compiles: the job's process ends too."""
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--toy"]
    command += ["--jobs", "loop", "--out", str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def children() -> list[int]:
        found = f"/proc/{parent.pid}/task/{parent.pid}/children"
        return [int(pid) for pid in Path(found).read_text().split()]

    def is_job(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return "--job" in Path(f"/proc/{pid}/cmdline").read_text()
        return False

    end = time.monotonic() + 60
    jobs: list[int] = []
    while not jobs and time.monotonic() < end:
        jobs = [pid for pid in children() if is_job(pid)]
        time.sleep(0.1)
    assert jobs
    parent.terminate()
    parent.communicate(timeout=30)
    assert parent.returncode == 128 + signal.SIGTERM
    assert not any(is_job(pid) for pid in jobs)
