"""Whatever is typed: it trains, or one line says which flag to change. Never a traceback."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import typing
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import pytest

import envs
import flowrl_jax as flowrl
from harness import command_line, machine, parallel, tracking, training
from harness.errors import RunError

# Small, or beyond every bound: what fits is really made, and the machine is shared.
SIZES = [-1, 0, 1, 2, 3, 7, 8]
BEYOND = [-(2**63), 2**30, 2**31, 2**32, 2**64, 10**30]
INTEGERS = st.sampled_from([*SIZES, *SIZES, *BEYOND]).map(str)
FLOATS = st.one_of(
    st.sampled_from(["nan", "inf", "-inf", "0", "-0.0", "1", "0.5", "1e-300", "1e400", "-1", ".5"]),
    st.floats().map(str),
)
ENV_IDS = ["cartpole-balance"] * 8 + ["cartpole-balanc", "brax:ant", "gym:x", ":", "-", "h1-", ""]
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
ODD = st.one_of(TEXTS, st.sampled_from(["", "--", "-", "None", "True", "[]", "{}", "1_0", "0x1"]))
OWN = {
    "env_id": st.sampled_from(ENV_IDS),
    "engine": st.sampled_from(["auto", "native", "native", "warp", "dm_control", "physx", ""]),
    "preset": st.sampled_from(["auto", "paper", "gpu", "cpu", "big", ""]),
    "runs_dir": st.sampled_from(["runs", "a/b/c", "/proc/none", "/dev/null/x", "", "\n"]),
    "evaluate": st.sampled_from(["", "runs", "/", "no/such", "runs/\n", "a" * 300]),
    # Two of 64 environments, of 256 threads: enough to see them, and no more.
    "num_threads": st.sampled_from(["-1", "0", "1", "2", "1025", "2147483648", "x"]),
    "num_seeds": st.sampled_from(["-1", "0", "1", "1", "2", "1025", "2147483648"]),
}
KINDS = typing.get_type_hints(flowrl.Args)
# A preset's own sizes are those of a real run: these are in every command line, before the rest.
SMALL = ("--env-id", "cartpole-balance", "--num-envs", "2", "--buffer-size", "64", "--num-threads")
SMALL += ("1", "--hidden-size", "4", "--batch-size", "4", "--eval-episodes", "1")
SMALL += ("--updates-per-step", "1")


SOUND = dataclasses.replace(flowrl.Args(), env_id="cartpole-balance", num_envs=1, buffer_size=99)
SOUND = dataclasses.replace(SOUND, batch_size=5, hidden_size=3, eval_episodes=2, num_threads=1)


def values(name: str):
    kind = KINDS[name]
    if name in OWN:
        return OWN[name]
    if kind in (int, float):
        return st.one_of(INTEGERS if kind is int else FLOATS, FLOATS if kind is int else INTEGERS)
    choices = typing.get_args(kind)
    return st.sampled_from([*choices, *choices, "other"]) if choices else ODD


@st.composite
def flag(draw) -> list[str]:
    """One flag in one of the ways to type it, with a value that may be missing, odd or its own."""
    name = draw(st.sampled_from([field.name for field in dataclasses.fields(flowrl.Args)]))
    typed = "--" + name.replace("_", draw(st.sampled_from("---_")))
    if KINDS[name] is bool:
        return [draw(st.sampled_from([typed, typed.replace("--", "--no-", 1)]))]
    # A list of strategies, not `one_of`, which counts alike ones once.
    kinds = [st.just(str(getattr(SOUND, name)))] * 6 + [values(name)] * 3 + [ODD]
    value = draw(draw(st.sampled_from(kinds)))
    shapes = [[typed, value]] * 20 + [[f"{typed}={value}"]] * 4 + [[typed], [value]]
    return draw(st.sampled_from(shapes))


COMMANDS = st.lists(flag(), max_size=3)


def run(arguments: list[str]) -> tuple[int, str, int]:
    """Exit code, stderr and how often training began, of the program with training left out."""
    trained, errors = mock.Mock(return_value=0), io.StringIO()
    patches = [
        mock.patch.object(flowrl, "init_state", only_shapes()),
        mock.patch.object(training, "train", trained),
        mock.patch.object(machine, "enable_compilation_cache"),
        mock.patch.object(machine, "device_memory_bytes", return_value=2**26),
        mock.patch.object(parallel, "connect", refuse),  # it waits for others
        mock.patch.object(tracking, "check"),  # it may ask Weights & Biases
        mock.patch.object(sys, "argv", ["flowrl_jax.py", *arguments]),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        # Warp measures for a minute. Not patch.dict, which forgets what is imported meanwhile.
        stack.enter_context(pytest.MonkeyPatch.context()).setitem(sys.modules, "warp", None)
        try:
            code = command_line.exit_code(flowrl.main, flowrl.ALGORITHM, envs.UsageError)
        except SystemExit as stop:  # --help
            code = "an exit of its own" if stop.code else 0
    return code, errors.getvalue(), trained.call_count


def only_shapes():
    """`init_state` for its first call, which is for shapes; the others would fill memory."""
    calls, init_state = [], flowrl.init_state

    def init(env, args):
        calls.append(args)
        return init_state(env, args) if len(calls) == 1 else None

    return init


def refuse():
    raise RunError("--distributed: there is nothing to join")


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def check(folder: Path, flags: list[list[str]]) -> int:
    """Runs one command line and returns its exit code."""
    arguments = [*SMALL, *(word for words in flags for word in words)]
    code, error, trained = run(arguments)
    assert "Traceback" not in error
    if code == 2:
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert trained == 0
    else:
        assert (code, error) == (0, ""), error
        assert trained == 1 or {"--help", "-h"} & set(arguments)
    assert not files(folder), "nothing is made before training"
    return code


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_many(folder: Path, count: int, **settings) -> list[int]:
    """The exit codes of `count` command lines."""
    seen = []
    quiet = dict(deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))

    @hypothesis.settings(max_examples=count, **quiet, **settings)
    @hypothesis.given(COMMANDS)
    def each(flags):
        seen.append(check(folder, flags))

    each()
    return seen


def test_any_command_line_trains_or_is_refused_in_one_line(here):
    seen = check_many(here, 60, derandomize=True)  # the same for everyone
    assert 0.1 < seen.count(0) / len(seen) < 0.9, "both are tried"


@pytest.mark.long
def test_other_command_lines(here):
    """COMMAND_LINES=5000 tries as many others; without it they are always the same ones."""
    wanted = os.environ.get("COMMAND_LINES")
    check_many(here, int(wanted or 500), derandomize=not wanted)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["-1", "nan", "", "1e400", "100000000000000000000000000000000"])
def test_each_flag_with_each_odd_value(value, here):
    for field in dataclasses.fields(flowrl.Args):
        code, error, _ = run([*SMALL, f"--{field.name.replace('_', '-')}={value}"])
        assert code in (0, 2)
        assert error.count("\n") == (code == 2), (field.name, error)
        assert not files(here)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunError("--x: too small"), 2, "--x"),
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
    algorithm = SimpleNamespace(name="test", args=Args, presets={"cpu": {}})
    assert command_line.exit_code(program, algorithm, ValueError) == code
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_a_complaint_is_one_sentence_on_a_terminal_without_line_drawing():
    drawn = "╭─ Parsing error ─────╮\n│ No such flag: --sed │\n│ ─────────────────── │\n│ more │"
    dashes = " Parsing error \n ------------ \n  No such flag: --sed \n  -----------\n  more \n"
    for boxed in (drawn, dashes):
        said = command_line._first_sentence(boxed, flowrl.Args, [])
        assert said == "No such flag: --sed; see --help"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--env-idd", "x"], "--env-idd: there is no such flag, but --env-id"),
        (["--total_timestep=9"], "--total.timestep: there is no such flag, but --total-timesteps"),
        (["cartpole-balance"], "'cartpole-balance': a flag's name has to stand before it"),
        (["--seed", "1e6"], "error: --seed: '1e6' is no whole number; see"),
        (["--gamma", "x"], "error: --gamma: 'x' is no number; see"),
        (["--ode-solver", "heun"], r": --ode-solver: 'heun' is not one of \('euler', .*\); see"),
        (["--hidden-size"], "error: --hidden-size: needs a value; see"),
        (["--preset"], "error: --preset: needs a value, one of auto, paper, cpu, gpu"),
        (["--num-devices", "99"], r"--num-devices: 99, but JAX finds (\d+); use 1( to \1)?, or 0"),
        (["--w2-indicator", "true"], "--w2-indicator: takes no value, got 'true'; use --w2-ind"),
        (["--no-w2_indicator=1"], "--w2-indicator: takes no value, .* or --no-w2-indicator; see"),
        (["--w2-indicator", "--seed", "1", "true"], "'true': a flag's name has to stand before it"),
        (["--resume", ""], "--resume: needs a run folder"),
        (["--num-seeds=2", "--on-nonfinite=skip"], "--on-nonfinite: .* use --num-seeds 1"),
        (["--resume"], "--resume: needs a run folder"),
        (["--seed=1073741824", "--num-seeds=2"], "--seed: needs .* at most 1,073,741,824"),
        (["--engine", "nativ"], "--engine: 'nativ' is not one of auto, .*dm_control"),
    ],
)
def test_the_line_says_what_to_change(typed, says, here):
    code, error, _ = run([*SMALL, *typed])
    assert code == 2
    assert re.search(says, error), error
