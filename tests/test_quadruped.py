"""quadruped-escape: a height field for each environment, drawn by dm_control, seen by nobody."""

import functools
import pickle

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import ndimage

import envs
from engines.mjx import import_mjx
from tasks.resets import InitialStates, load_original, reseed

N = 4
SIDE = 201  # heights along each side of the field


@functools.cache
def escape():
    return envs.make("quadruped-escape", N, "native", seed=2, num_threads=2)


@functools.cache
def stepper():
    return jax.jit(escape().step)


def actions(seed):
    return jax.random.uniform(jax.random.key(seed), (N, 12), minval=-1.0, maxval=1.0)


def heights(state):
    return np.asarray(state.episode["hfield_data"])[..., 0]


def test_fields_and_orientations_are_those_that_dm_control_draws():
    """Written again from dm_control's description: a bowl times smooth bumps 2 m apart."""
    states, episode = InitialStates(envs.load_task("quadruped-escape"), 5).draw(1, 3)
    random = np.random.RandomState()
    reseed(random, 5, 1)
    along = np.linspace(-1, 1, SIDE)
    radius = np.clip(np.hypot(*np.meshgrid(along, along)), 0.04, 1)
    for qpos, field in zip(states["qpos"], episode["hfield_data"], strict=True):
        bumps = ndimage.zoom(random.uniform(0.15, 1, (30, 30)), SIDE / 30)
        bowl = (1 - np.cos(2 * np.pi * radius)) / 2
        np.testing.assert_allclose(field.reshape(SIDE, SIDE), bowl * bumps, atol=1e-6)
        turn = random.randn(4)
        np.testing.assert_allclose(qpos[3:7], turn / np.linalg.norm(turn), atol=1e-12)
        assert qpos[2] > 0


def test_no_renderer_is_made(monkeypatch):
    """Even where there could be one."""
    original = load_original(envs.load_task("quadruped-escape"), 0)
    engine = type(original.physics).__mro__[2]

    def refused(self):
        raise AssertionError("a rendering context was asked for")

    monkeypatch.setattr(engine, "_make_rendering_contexts", refused)
    original.reset()
    original.reset()


def test_environments_have_fields_of_their_own_and_keep_them():
    state = escape().reset(jax.random.key(0))
    before = heights(state)
    assert len(np.unique(before, axis=0)) == N
    for i in range(3):
        state = stepper()(state, actions(i))
    np.testing.assert_array_equal(heights(state), before)


def test_a_new_episode_has_another_field():
    env = escape()
    state = env.reset(jax.random.key(0))
    before = heights(state)
    last = jnp.zeros(N, jnp.int32).at[1].set(env.episode_length - 1)
    after = heights(stepper()(state.replace(step_count=last), actions(0)))
    np.testing.assert_array_equal((after != before).any(axis=1), [False, True, False, False])


def test_each_steps_as_one_simulation_on_its_field_would():
    """State and sensors to the bit, though sensors are left out of all but the last substep."""
    env = escape()
    state = env.reset(jax.random.key(1))
    for i in range(25):
        state = stepper()(state, actions(i))  # until there are contacts
    ctrl, contacts = 0.5 * actions(99), 0
    after, sensordata, _ = env._engine.step(state.physics, ctrl, state.episode)
    for i in range(N):
        model, start = envs.load_task(env.env_id).model, state.physics
        model.hfield_data[:] = heights(state)[i]
        data = mujoco.MjData(model)
        data.qpos, data.qvel, data.act = start.qpos[i], start.qvel[i], start.act[i]
        data.qacc_warmstart, data.ctrl = start.warmstart[i], ctrl[i]
        mujoco.mj_step(model, data, 4)
        mujoco.mj_step1(model, data)
        contacts += data.ncon
        same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-37)
        same(sensordata[i], data.sensordata.astype(np.float32))
        same(after.qpos[i], data.qpos.astype(np.float32))
        same(after.warmstart[i], data.qacc_warmstart.astype(np.float32))
    assert contacts > 0


def test_a_field_moves_what_stands_on_it():
    """The same state on another environment's field goes another way."""
    env = escape()
    state = env.reset(jax.random.key(1))
    for i in range(25):
        state = stepper()(state, actions(i))
    raised = {"hfield_data": state.episode["hfield_data"].at[0].add(0.2)}
    one, two = (stepper()(state.replace(episode=e), actions(0)) for e in (state.episode, raised))
    assert not np.array_equal(one.next_obs[0], two.next_obs[0])
    np.testing.assert_array_equal(one.next_obs[1:], two.next_obs[1:])


def test_what_is_drawn_in_a_video_has_the_episodes_field():
    state = escape().reset(jax.random.key(0))
    model = escape().drawn_model(state)
    np.testing.assert_array_equal(model.hfield_data, heights(state)[0])
    assert len(pickle.dumps(model)) < 500_000, "a model for each environment is to be small"


def test_mjx_still_cannot():
    """The reasons that `python envs.py` gives; if this fails, MJX has learnt it."""
    mjx, task = import_mjx(), envs.load_task("quadruped-escape")
    assert set(task.cannot) == {"mjx", "warp"}
    with pytest.raises(NotImplementedError, match="HFIELD"):
        mjx.put_model(task.model, impl="jax")
    from mujoco.mjx._src import ray

    assert mjx.GeomType.HFIELD not in ray._RAY_FUNC


def test_the_table_says_why_an_engine_is_not_there(monkeypatch):
    ids = ("point_mass-hard", "quadruped-escape", "pendulum-swingup")
    monkeypatch.setattr(envs, "task_ids", lambda: ids)
    *_, first, row, other = envs.task_table().splitlines()
    assert "| native; not mjx or warp: the tendons' coefficients" in first
    assert "| native; not mjx: MJX lacks contacts" in row
    assert "; not warp: MuJoCo Warp has one array" in row
    assert "| native, mjx, warp | none |" in other
