"""What all tests share: no display, compiled programs kept between runs."""

import contextlib
import ctypes
import os
import pathlib

os.environ.setdefault("MUJOCO_GL", "disable")

import jax
import pytest

CACHE = pathlib.Path(__file__).parents[1] / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(autouse=True)
def memory_is_given_back():
    """glibc keeps what compilers and simulations freed: without this the tests grew to 8 GB."""
    yield
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
    """A module's compiled programs are of no use to the next."""
    yield
    jax.clear_caches()
