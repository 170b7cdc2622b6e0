"""Loops of jitted code: counts, sums, what is due every second time, and what is not finite."""

import functools
import math
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness import loops
from harness.contract import MAX_INT


def double(state):
    """A step that shows how often and in which order it was taken."""
    state = {"x": 2 * state["x"] + 1, "n": state["n"] + 1}
    return state, {"losses/x": state["x"].sum(), "n": state["n"]}


START = {"x": jnp.arange(3.0), "n": jnp.int32(0)}
AFTER = {  # number of steps: the state, and the metrics' sums
    0: ([0, 1, 2], 0, 0),
    1: ([1, 3, 5], 9, 1),
    3: ([7, 15, 23], 9 + 21 + 45, 1 + 2 + 3),
}


def assert_after(count, found):
    state, metrics = found
    x, sum_of_x, sum_of_n = AFTER[count]
    np.testing.assert_array_equal(state["x"], x)
    assert state["n"] == count
    assert metrics == {"losses/x": sum_of_x, "n": sum_of_n}
    assert {leaf.shape for leaf in metrics.values()} == {()}
    assert (state["n"].dtype, metrics["n"].dtype) == (jnp.int32, jnp.int32)


repeated = jax.jit(functools.partial(loops.repeat, double))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_count_that_only_the_program_knows(count):
    assert_after(count, repeated(START, jnp.int32(count)))


@pytest.mark.parametrize("due", [False, True])
def test_a_condition_is_a_count(due):
    assert_after(int(due), repeated(START, jnp.asarray(due)))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_count_that_is_known_before(count):
    program = jax.jit(lambda state: loops.repeat(double, state, count))
    assert_after(count, program(START))
    loop = "stablehlo.while" in program.lower(START).as_text()
    assert loop == (count > 1), "none and one are no loop"


def test_repeat_decides_nothing_and_copies_nothing():
    """A conditional would copy what it returns; a loop's state stays where it is."""
    state = START | {"x": jnp.zeros(100_000)}
    lowered = jax.jit(functools.partial(loops.repeat, double), donate_argnums=0).lower(
        state, jnp.int32(1)
    )
    assert "stablehlo.while" in lowered.as_text()
    for name in ("stablehlo.case", "stablehlo.if"):
        assert name not in lowered.as_text()
    compiled = lowered.compile()
    assert " while(" in compiled.as_text()
    assert " conditional(" not in compiled.as_text()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= state["x"].nbytes
    assert memory.temp_size_in_bytes < state["x"].nbytes


@pytest.mark.parametrize("condition", [False, True])
def test_when_is_what_is_drawn_or_zeros(condition):
    draw = lambda: {"a": jnp.arange(1, 4), "b": (jnp.ones((2, 1)), jnp.asarray(True))}  # noqa: E731
    found = jax.jit(lambda condition: loops.when(condition, draw))(condition)
    expected = draw() if condition else jax.tree.map(jnp.zeros_like, draw())
    for ours, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert ours.dtype == other.dtype
        np.testing.assert_array_equal(ours, other)


INPUTS = {"a": jnp.arange(1.0, 7.0), "b": jnp.arange(12.0).reshape(6, 2)}


def along(state, given, due=None):
    """A step whose state shows the order of its inputs, and its metrics what was due."""
    after = 10 * state + given["a"]
    of_due = {"due": -1 if due is None else due, "first_due": given["a"] * (due == 1)}
    sums = {"losses/b": given["b"].sum(), **of_due}
    return after, jax.tree.map(jnp.float32, sums)


def part(count):
    return jax.tree.map(lambda leaf: leaf[:count], INPUTS)


@pytest.mark.parametrize("count", [1, 5, 6])
def test_over_takes_each_input_in_its_order(count):
    state, metrics = jax.jit(functools.partial(loops.over, along))(jnp.zeros(()), part(count))
    assert state == int("123456"[:count])
    sums = {"losses/b": sum(range(2 * count)), "due": -count, "first_due": 0}
    assert metrics == sums


@pytest.mark.parametrize("count", [2, 6])
def test_of_an_even_number_every_first_of_two_is_due(count):
    program = jax.jit(functools.partial(loops.alternating, along))
    state, metrics = program(jnp.zeros(()), part(count))
    assert state == int("123456"[:count])
    sums = {"losses/b": sum(range(2 * count)), "due": count // 2}
    assert metrics == sums | {"first_due": sum(range(1, count, 2))}
    text = program.lower(jnp.zeros(()), part(count)).as_text()
    assert "stablehlo.case" not in text


@pytest.mark.parametrize("count", [1, 5])
def test_of_an_odd_number_the_step_decides(count):
    program = jax.jit(functools.partial(loops.alternating, along))
    state, metrics = program(jnp.zeros(()), part(count))
    assert state == int("123456"[:count])
    assert metrics == {"losses/b": sum(range(2 * count)), "due": -count, "first_due": 0}


def test_means_are_by_the_first_prefix_and_the_rest_stay_sums():
    sums = {"losses/policy_q": 6.0, "losses/q": 6.0, "charts/n": 6.0}
    counts = {"losses/policy": 2, "losses/": 3}
    expected = {"losses/policy_q": 3.0, "losses/q": 2.0, "charts/n": 6.0}
    assert loops.means(sums, counts) == expected
    assert loops.means(sums, dict(reversed(counts.items())))["losses/policy_q"] == 2.0


def test_a_mean_over_nothing_is_nan():
    found = loops.means({"a": jnp.zeros(()), "b": jnp.ones(())}, {"a": jnp.int32(0)})
    assert math.isnan(found["a"])
    assert found["b"] == 1


@pytest.mark.parametrize("skip", [False, True])
def test_guarded(skip):
    def step(state, given):
        return {"w": state["w"] + given, "n": state["n"] + 1}, {"losses/w": given * 2}

    given = jnp.array([1.0, jnp.nan, 2.0, jnp.inf, 3.0])
    state = {"w": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)}
    state, metrics = jax.lax.scan(loops.guarded(step, skip), state, given)
    np.testing.assert_array_equal(metrics["charts/nonfinite_losses"], [0, 1, 0, 1, 0])
    if skip:
        assert state == {"w": 6.0, "n": 3}
        np.testing.assert_array_equal(metrics["losses/w"], [2.0, 0.0, 4.0, 0.0, 6.0])
    else:
        assert math.isnan(state["w"])
        assert state["n"] == 5


def test_dropping_a_step_is_no_choice_at_each_leaf():
    """XLA makes a program of each choice, with all the checks in it: minutes of compiling."""

    def step(state, given):
        return jax.tree.map(lambda leaf: leaf * given, state), {"losses/x": given}

    state = {str(k): jnp.ones(3) for k in range(50)}
    text = jax.jit(loops.guarded(step, skip=True)).lower(state, 2.0).as_text()
    assert text.count("stablehlo.is_finite") == 51
    assert "stablehlo.select" not in text


@flax.struct.dataclass
class Counted:
    episode_return: jax.Array
    num_steps: jax.Array


def test_a_step_of_all_environments_is_counted():
    """Of three one ends, one is cut off by its time, one goes on; the last reward is not finite."""
    state = Counted(jnp.array([10.0, 20.0, 30.0]), jnp.int32(7))
    after = types.SimpleNamespace(
        reward=jnp.array([1.0, 2.0, jnp.nan]),
        terminated=jnp.array([True, False, False]),
        truncated=jnp.array([False, True, False]),
    )
    action = jnp.array([[1.0, 0.2], [-0.995, 0.98], [0.0, 0.0]])
    state, metrics = loops.count_step(state, after, action)
    np.testing.assert_array_equal(state.episode_return, [0.0, 0.0, np.nan])
    assert state.num_steps == 10
    assert metrics["episodes"] == 2
    assert metrics["charts/episodic_return"] == 11 + 22
    assert metrics["charts/nonfinite_rewards"] == 1
    assert metrics["charts/action_saturation"] == pytest.approx(2 / 6)
    full = loops.count_step(state.replace(num_steps=jnp.int32(MAX_INT - 1)), after, action)[0]
    assert full.num_steps == MAX_INT, "it would become negative, and explore again"
