"""Python functions called from compiled programs, through structures that XLA lays down."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines import host_call


def double(x):
    """Twice x, and shows that it gets plain numpy arrays."""
    assert type(x) is np.ndarray
    assert x.dtype == np.float32
    return 2 * x


def called(name):
    """A jitted program that calls the function and computes before and after."""
    return jax.jit(lambda x: host_call.call(name, (x.shape[0], 4), x + 1) - 1)


@pytest.fixture(autouse=True)
def functions():
    """Names are the process's for good."""
    host_call.register("test_double", double)
    host_call.register("test_repeat", lambda x: np.repeat(x[..., :1], 4, axis=-1))


def test_a_program_gets_what_the_function_returns():
    x = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(called("test_double")(x), 2 * (x + 1) - 1)


def test_the_result_may_have_another_shape():
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(called("test_repeat")(x), np.repeat(x[:, :1], 4, axis=1))


def test_in_a_loop_and_under_vmap():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    once = jax.vmap(called("test_double"))(x)
    np.testing.assert_array_equal(once, 2 * (x + 1) - 1)
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: called("test_double")(x), x))
    np.testing.assert_array_equal(many(x[0]), 32 * x[0] + 31)


def test_an_error_in_the_function_is_an_error_of_the_program():
    def fail(x):
        raise ValueError("no such state")

    host_call.register("test_fail", fail)
    with pytest.raises(Exception, match="ValueError: no such state"):
        jax.block_until_ready(called("test_fail")(jnp.zeros((2, 4))))
    np.testing.assert_array_equal(called("test_double")(jnp.zeros((2, 4))), jnp.ones((2, 4)))


PROGRAM = """
import sys
import jax
import envs
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.split("/")[-1]))
env = envs.make("cartpole-balance", 2, "native", seed=1, num_threads=1)

def roll(state):
    action = jax.numpy.full((2, 1), 0.5)
    return jax.lax.fori_loop(0, 10, lambda _, state: env.step(state, action), state)

state = env.reset(jax.random.key(0))
compiled = jax.jit(roll).lower(state)
hits.clear()
result = compiled.compile()(state)
print("cache_hits" in hits, jax.numpy.asarray(result.obs).tolist())
"""


def test_a_program_with_native_physics_comes_from_the_cache(tmp_path):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    setup = {"cwd": root, "env": os.environ | {"MUJOCO_GL": "disable"}, "text": True}
    runs = [subprocess.run(command, check=True, capture_output=True, **setup) for _ in range(2)]
    (first, *numbers), (second, *again) = [run.stdout.split(maxsplit=1) for run in runs]
    assert (first, second) == ("False", "True")
    assert numbers == again
