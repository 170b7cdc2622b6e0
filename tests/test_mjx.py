"""The engine `mjx`: what it replaces in MJX. Parity with dm_control is in test_tasks.py."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from chosen import fast_are

import envs
from engines.mjx import import_mjx, replacements
from engines.mjx_kinematics import kinematics

mjx = import_mjx()
with contextlib.redirect_stdout(None):  # it says so where the optional warp is missing
    from mujoco.mjx._src import collision_driver, smooth, solver

# Every kind of joint, off its body's centre; several on one body; none; bodies at rest on others.
MIXED = """
<mujoco>
  <worldbody>
    <geom name="ground" type="box" size="1 1 .1" pos=".3 0 -1" euler="10 20 30"/>
    <body name="held" mocap="true" pos="1 2 3" quat=".5 .5 .5 .5">
      <geom size=".1" pos=".2 .3 .4"/>
      <body name="on it" pos=".1 .2 .3" euler="40 50 60"><geom size=".1"/></body>
    </body>
    <body name="free" pos="0 0 1">
      <freejoint/>
      <geom type="box" size=".1 .2 .3" pos=".1 0 0"/>
      <body name="ball" pos=".1 .2 .3" euler="10 20 30">
        <joint type="ball" pos=".1 -.2 .3"/>
        <geom type="capsule" size=".1 .2" pos=".1 .2 0" euler="0 30 0"/>
        <site name="mark" pos=".3 .2 .1" euler="5 6 7"/>
        <body name="fixed" pos="0 .3 0" euler="0 0 70">
          <geom size=".1"/>
          <body name="three" pos=".2 0 0" euler="80 0 0">
            <joint axis="1 0 0" pos=".1 .2 .3" ref="20"/>
            <joint type="slide" axis="0 1 1" pos=".3 .2 .1" ref=".1"/>
            <joint axis="1 2 3"/>
            <geom size=".1" pos="0 0 .2"/>
          </body>
        </body>
      </body>
    </body>
    <body name="slider" pos="2 0 0" euler="0 45 0">
      <joint type="slide" axis="1 0 1"/>
      <joint type="ball"/>
      <geom size=".1"/>
    </body>
  </worldbody>
</mujoco>"""
FRAMES = ("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat")
FRAMES += ("site_xpos", "site_xmat", "xanchor", "xaxis")
MODELS = ("mixed", "dog-run", "humanoid_CMU-run", "humanoid-run", "quadruped-fetch")
MODELS += ("manipulator-bring_ball", "swimmer-swimmer15", "cartpole-balance", "fish-swim")


def load(name):
    """A model with a pose far from its own, unnormalised quaternions and all."""
    mixed = name == "mixed"
    model = mujoco.MjModel.from_xml_string(MIXED) if mixed else envs.load_task(name).model
    if not mixed:  # MJX takes neither all of their contacts nor the flag
        model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
        model.geom_contype[:] = model.geom_conaffinity[:] = 0
    data, random = mujoco.MjData(model), np.random.default_rng(0)
    data.qpos = model.qpos0 + random.normal(size=model.nq)
    data.mocap_pos += random.normal(size=data.mocap_pos.shape)
    data.mocap_quat += random.normal(size=data.mocap_quat.shape)
    return model, data


def frames(model, data, function):
    """The frames that `function` gives at the pose of an MjData."""
    start = mjx.make_data(model, impl="jax").replace(
        qpos=jnp.asarray(data.qpos, jnp.float32),
        mocap_pos=jnp.asarray(data.mocap_pos, jnp.float32),
        mocap_quat=jnp.asarray(data.mocap_quat, jnp.float32),
    )
    return jax.jit(function)(mjx.put_model(model, impl="jax"), start)


FAST = ("mixed", "cartpole-balance", "manipulator-bring_ball", "fish-swim")


@pytest.mark.parametrize("name", fast_are(FAST, MODELS))
def test_kinematics_is_that_of_c(name):
    model, data = load(name)
    ours = frames(model, data, kinematics)
    mujoco.mj_kinematics(model, data)
    for field in FRAMES:
        its = getattr(data, field)
        sign = 1.0
        mine = np.asarray(getattr(ours, field)).reshape(its.shape)
        if field == "xquat":  # a quaternion and its negative are one turn
            sign = np.sign((mine * its).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(sign * mine, its, atol=1e-5, err_msg=field)


BY_MJX = ("humanoid-run", "quadruped-fetch", "manipulator-bring_ball")


@pytest.mark.parametrize("name", fast_are(["quadruped-fetch"], BY_MJX))
def test_kinematics_is_that_of_mjx(name):
    model, data = load(name)
    ours, its = frames(model, data, kinematics), frames(model, data, mjx.kinematics)
    for field in ("qpos", *FRAMES):
        mine, theirs = getattr(ours, field), getattr(its, field)
        np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=field)


def test_a_quaternion_of_zeros_is_no_turn_as_in_c():
    model = mujoco.MjModel.from_xml_string(MIXED)
    data = mujoco.MjData(model)
    data.qpos[:] = 0
    ours = frames(model, data, kinematics)
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(ours.xmat.reshape(-1, 9), data.xmat, atol=1e-6)


def test_kinematics_of_the_dog_is_a_small_program():
    model, _ = load("dog-run")  # 62 bodies: MJX's own is 26,000 lines, which compile for a minute
    data, model = mjx.make_data(model, impl="jax"), mjx.put_model(model, impl="jax")
    assert len(jax.jit(kinematics).lower(model, data).as_text().splitlines()) < 2_500


FALLING = """
<mujoco>
  <option iterations="100" ls_iterations="50"/>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 .1">
      <freejoint/>
      <geom type="capsule" size=".1 .2" euler="80 0 0"/>
      <body pos="0 .2 0">
        <joint axis="1 0 0" limited="true" range="-10 10"/>
        <geom type="capsule" size=".08" fromto="0 0 0 0 .3 0"/>
      </body>
    </body>
  </worldbody>
</mujoco>"""


def test_a_line_search_that_ends_gives_what_mjxs_own_gives():
    own = solver._while_loop_scan
    model = mujoco.MjModel.from_xml_string(FALLING)
    data, model = mjx.make_data(model, impl="jax"), mjx.put_model(model, impl="jax")
    qvel = np.random.default_rng(0).normal(size=(8, model.nv)).astype(np.float32)

    def accelerations(qvel):
        return mjx.forward(model, data.replace(qvel=qvel)).qacc

    with replacements():
        ours = jax.jit(jax.vmap(accelerations)).lower(qvel)
        with mock.patch.object(solver, "_while_loop_scan", own):
            its = jax.jit(jax.vmap(lambda qvel: accelerations(qvel))).lower(qvel)
    assert ours.as_text() != its.as_text()
    ours, its = (np.asarray(lowered.compile()(qvel)) for lowered in (ours, its))
    assert np.abs(its).max() > 100, "it hits the floor"
    np.testing.assert_allclose(ours, its, rtol=1e-5, atol=1e-4)


TILTED = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1" pos="0 .1 -.2" euler="10 20 30"/>
    <body><freejoint/><geom type="box" size=".1 .2 .3"/></body>
  </worldbody>
</mujoco>"""


def test_a_box_touches_a_plane_where_it_does_in_c():
    """All corners below the plane; MJX's own only those within 1 mm of the deepest."""
    model = mujoco.MjModel.from_xml_string(TILTED)
    start, device = mjx.make_data(model, impl="jax"), mjx.put_model(model, impl="jax")
    random, numbers = np.random.default_rng(0), set()

    @jax.jit
    def touch(qpos):
        with replacements():
            return mjx.collision(device, mjx.kinematics(device, start.replace(qpos=qpos)))

    for _ in range(20):
        data = mujoco.MjData(model)
        data.qpos[:2], data.qpos[3:] = random.normal(size=2) / 10, random.normal(size=4)
        data.qpos[2] = random.uniform(-0.4, 0.1)
        mujoco.mj_forward(model, data)
        contact = touch(jnp.asarray(data.qpos, jnp.float32))._impl.contact
        below = np.flatnonzero(np.asarray(contact.dist) < 0)
        ours, its = np.asarray(contact.pos)[below], data.contact.pos
        assert len(ours) == len(its)
        ours, its = (points[np.argsort(points[:, 0])] for points in (ours, its))
        np.testing.assert_allclose(ours, its, atol=1e-5)
        deep = np.sort(np.asarray(contact.dist)[below])
        np.testing.assert_allclose(deep, np.sort(data.contact.dist), atol=1e-5)
        for frame in np.asarray(contact.frame)[below]:
            np.testing.assert_allclose(frame.ravel(), data.contact.frame[0], atol=1e-5)
        numbers.add(len(its))
    assert len(numbers) > 3, "from none to four"


def test_mjx_has_its_own_functions_again():
    before = smooth.kinematics, solver._while_loop_scan, dict(collision_driver._COLLISION_FUNC)
    with replacements():
        assert smooth.kinematics is kinematics
    after = smooth.kinematics, solver._while_loop_scan, dict(collision_driver._COLLISION_FUNC)
    assert before == after


@pytest.mark.parametrize("env_id", envs.task_ids())
def test_what_mjx_leaves_undone_is_said(env_id):
    task = envs.load_task(env_id)
    if "mjx" in task.engines:
        assert not task.model.opt.noslip_iterations or "noslip" in task.differences
