"""What all tests share: no display, compiled programs, all cores, and what is said at the start."""

import contextlib
import ctypes
import importlib.util
import os
import pathlib

os.environ.setdefault("MUJOCO_GL", "disable")
# By the environment, so that programs which tests start share them. Also the small ones: op by op,
# and again in each module and process, they were a third of all that was compiled.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

MAX_PROCESSES = 8  # each takes up to 3 GB
FAST = "not slow and not long"
# How long each set takes on an idle machine of 2 cores, without compiled programs from before.
ABOUT = {FAST: "10 to 20 minutes", "slow": "8 to 20 minutes", "long": "25 minutes"}
OPTIONAL = {
    "warp": "warp",
    "mujoco_playground": "optional",
    "brax": "optional",
    "wandb": "optional",
    "nbclient": "optional",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """All cores that this process may use: `-n auto` counts those of the machine."""
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def pytest_report_header(config):
    """How long it takes, and what is left out."""
    expression = config.option.markexpr
    lines = []
    if config.args_source != config.ArgsSource.ARGS and expression in ABOUT:
        lines.append(f"about {ABOUT[expression]} on 2 idle cores; `-n 0` is one process, to debug")
    left_out = {
        FAST: "those marked slow (`python -m pytest -m slow`) and long (`-m long`)",
        "slow": "the fast ones (`python -m pytest`) and those marked long (`-m long`)",
        "long": "all that is not marked long",
    }
    if expression in left_out:
        lines.append(f"left out: {left_out[expression]}")
    absent = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if absent:
        files = dict.fromkeys(f"-r requirements-{OPTIONAL[name]}.txt" for name in absent)
        lines.append(f"skipped without {', '.join(absent)}: `pip install {' '.join(files)}`")
    return lines


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back():
    """A module's compiled programs are of no use to the next; glibc keeps what compilers freed.

    Without this the tests grew to 8 GB.
    """
    yield
    jax.clear_caches()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
