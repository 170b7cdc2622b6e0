"""The lqr tasks: each episode is a new dm_control environment, and it ends near zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_control import suite
from dm_control.suite import lqr_solver

import envs
from tasks import lqr
from tasks.resets import InitialStates, reseed

N = 4


def new_environments(name: str, count: int, seed: int = 0):
    """What dm_control draws where each episode is in an environment that was made for it."""
    random = np.random.RandomState()
    reseed(random, seed, 0)
    for _ in range(count):
        original = suite.load("lqr", name, task_kwargs={"random": random})
        original.reset()
        yield original


@pytest.mark.parametrize("name", lqr.TASKS)
def test_an_episode_is_that_of_a_new_environment_of_dm_controls(name):
    states, episodes = InitialStates(envs.load_task(f"lqr-{name}"), 0).draw(0, 5)
    for i, original in enumerate(new_environments(name, 5)):
        np.testing.assert_array_equal(states["qpos"][i], original.physics.data.qpos)
        springs = episodes["jnt_stiffness"][i, :, 0]
        np.testing.assert_array_equal(springs, original.physics.model.jnt_stiffness)
    assert np.ptp(episodes["jnt_stiffness"]) > 1


@pytest.mark.parametrize("name", lqr.TASKS)
def test_dm_control_draws_springs_and_nothing_else_of_the_model(name):
    one, other = (original.physics.model.ptr for original in new_environments(name, 2))
    fields = [field for field in dir(one) if isinstance(getattr(one, field), np.ndarray)]
    assert {"body_mass", "dof_damping", "body_inertia", "jnt_stiffness"} <= set(fields)
    differ = [f for f in fields if not np.array_equal(getattr(one, f), getattr(other, f))]
    assert differ == ["jnt_stiffness"]
    assert not one.dof_damping.any()


def test_an_episode_ends_where_the_original_ends_it():
    """States around the threshold, without control: both end, or neither does."""
    env = envs.make("lqr-lqr_2_1", N, "native", num_threads=1)
    original = next(new_environments("lqr_2_1", 1))
    springs = np.array(original.physics.model.jnt_stiffness, np.float32).reshape(1, 2, 1)
    qpos = np.array([[0.9e-6, 0], [0, 0.7e-6], [1.2e-6, 0], [0, 0.1]], np.float32)
    episode = {"jnt_stiffness": np.repeat(springs, N, axis=0)}
    state = env.reset_to(qpos, np.zeros((N, 2), np.float32), episode=episode)
    after = jax.jit(env.step)(state, jnp.zeros((N, 1)))
    for i in range(N):
        original.reset()
        original.physics.model.jnt_stiffness[:] = springs[0, :, 0]
        with original.physics.reset_context():
            original.physics.data.qpos[:] = qpos[i]
        outcome = original.step(np.zeros(1))
        assert bool(after.terminated[i]) == outcome.last() == (outcome.discount == 0)
    assert after.terminated.tolist() == [True, True, False, False]
    assert not after.truncated.any()
    np.testing.assert_array_equal(after.step_count, [0, 0, 1, 1])


def test_the_best_linear_controller_needs_no_more_force_than_there_is():
    """dm_control's own solution of each episode's system, through actions in [-1, 1]."""
    env = envs.make("lqr-lqr_2_1", N, "native", num_threads=1)
    gains = np.stack([lqr_solver.solve(new)[1] for new in new_environments("lqr_2_1", N)])
    step, state = jax.jit(env.step), env.first_states()
    returns, highest = np.zeros(N), 0.0
    for _ in range(env.episode_length):
        action = jnp.einsum("nau,nu->na", gains, state.obs) / lqr.FORCE
        highest = max(highest, float(jnp.abs(action).max()))
        state = step(state, action.astype(jnp.float32))
        returns += np.asarray(state.reward)
        assert not state.terminated.any(), "near zero it comes much later"
    assert 0.5 < highest < 1
    assert state.truncated.all()
    assert ((returns > 750) & (returns < 950)).all(), returns
