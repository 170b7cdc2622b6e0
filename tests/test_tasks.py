"""Tasks against dm_control: the same states and actions must give the same numbers."""

import itertools
import math

import jax
import numpy as np
import pytest
from chosen import TASKS, fast_are
from dm_control import suite
from dm_control.utils import rewards as dm_rewards

import envs
from benchmarks import parity
from tasks import rewards

# native is the same code in C, with float32 at the border: what was seen is at most 1.6e-7 of
# max(1, |observation|) and 2.2e-7 of reward (benchmarks/parity.csv).
NATIVE_TOLERANCE = 1e-6


DM_CONTROL = tuple(env_id for env_id in envs.task_ids() if not env_id.startswith("h1-"))


def test_the_whole_suite_is_here():
    assert len(DM_CONTROL) == 51
    assert set(DM_CONTROL) == {f"{domain}-{name}" for domain, name in suite.ALL_TASKS}


@pytest.mark.parametrize("env_id", fast_are(TASKS, DM_CONTROL))
def test_native_equals_dm_control(env_id):
    result, _ = parity.measure(env_id, "native", steps=200)
    assert result.max_rel_obs < NATIVE_TOLERANCE
    assert result.max_abs_reward < NATIVE_TOLERANCE
    assert result.max_rel_initial_obs < NATIVE_TOLERANCE
    assert result.highest_reward > 0.01, "rewards of zero compare nothing"


# What dynamics and rewards depend on; the sensors are more than dm_control's.
MODEL_FIELDS = (
    "qpos0",
    "body_pos",
    "body_mass",
    "body_inertia",
    "body_ipos",
    "jnt_range",
    "jnt_stiffness",
    "dof_damping",
    "dof_armature",
    "geom_type",
    "geom_size",
    "geom_pos",
    "geom_friction",
    "geom_contype",
    "geom_conaffinity",
    "geom_solref",
    "site_pos",
    "site_size",
    "tendon_range",
    "wrap_objid",
    "actuator_gainprm",
    "actuator_biasprm",
    "actuator_ctrlrange",
    "actuator_gear",
    "eq_data",
)


@pytest.mark.parametrize("env_id", DM_CONTROL)
def test_model_is_dm_controls_own(env_id):
    task = envs.load_task(env_id)
    ours, original = task.model, suite.load(*env_id.split("-", 1))
    if env_id == "finger-spin":
        original.reset()  # sets the hinge's damping, always to the same
    theirs = original.physics.model.ptr
    if not theirs.actuator_ctrllimited.any():  # then ours has a range, by which actions are scaled
        assert not ours.actuator_ctrllimited.any()
        theirs.actuator_ctrlrange[:] = ours.actuator_ctrlrange
    for field in set(MODEL_FIELDS) - set(task.episode):  # an episode's are drawn
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)
    options = [(m.opt.timestep, m.opt.iterations, m.opt.integrator) for m in (ours, theirs)]
    assert options[0] == options[1]


# mjx computes in float32: about five times what was seen at 20 states (benchmarks/parity.csv),
# relative to max(1, |observation|). One task a domain: the others' rewards read the same sensors.
MJX_TOLERANCE = {
    "cartpole-balance": 1e-6,
    "pendulum-swingup": 1e-6,
    "lqr-lqr_6_2": 1e-6,  # an episode changes its springs
    "acrobot-swingup": 1e-6,
    "cheetah-run": 5e-5,
    "hopper-hop": 1e-4,
    "walker-run": 1e-4,
    "humanoid-run": 5e-4,
    "dog-run": 2e-3,
}
SLOW = ("cartpole-balance", "lqr-lqr_6_2", "acrobot-swingup", "cheetah-run")
ON_MJX = dict.fromkeys(SLOW, pytest.mark.slow)
ON_MJX |= dict.fromkeys(("humanoid-run", "hopper-hop", "walker-run", "dog-run"), pytest.mark.long)


@pytest.mark.parametrize(
    "env_id", [pytest.param(env_id, marks=ON_MJX.get(env_id, ())) for env_id in MJX_TOLERANCE]
)
def test_mjx_agrees_with_dm_control(env_id):
    result, _ = parity.measure(env_id, "mjx", steps=20)
    assert result.max_rel_obs < MJX_TOLERANCE[env_id]
    assert result.max_abs_reward < 1e-5
    assert result.max_rel_initial_obs < NATIVE_TOLERANCE  # resets are sensed by MuJoCo in C
    assert result.highest_reward > 0.01


# warp computes in float32 too, and its solver stops at a tolerance of 1e-6 where C has 1e-8.
# The dog's ellipsoids have contact normals that are good to 1e-3 there (benchmarks/NOTES.md).
WARP_TOLERANCE = MJX_TOLERANCE | {"cartpole-balance": 2e-6, "cheetah-run": 2e-4, "dog-run": 3e-2}
# Here an episode moves a body that is fixed to the world and that fingers touch.
WARP_TOLERANCE["manipulator-insert_peg"] = 2e-4


@pytest.mark.long
@pytest.mark.skipif(
    not envs._importable("warp"),
    reason="no warp-lang: `pip install -r requirements-warp.txt` (a download of 150 MB)",
)
@pytest.mark.parametrize("env_id", WARP_TOLERANCE)
def test_warp_agrees_with_dm_control(env_id):
    result, _ = parity.measure(env_id, "warp", steps=20)
    assert result.max_rel_obs < WARP_TOLERANCE[env_id]
    assert result.max_abs_reward < 1e-5
    assert result.max_rel_initial_obs < NATIVE_TOLERANCE
    assert result.highest_reward > 0.01


@pytest.mark.parametrize(
    ("sigmoid", "value_at_margin"),
    [("gaussian", 0.1), ("gaussian", 0.5), ("linear", 0.0), ("linear", 0.5), ("quadratic", 0.0)]
    + [("reciprocal", 0.1), ("reciprocal", 0.5), ("long_tail", 0.1), ("long_tail", 0.5)],
)
def test_tolerance_equals_dm_control(sigmoid, value_at_margin):
    x = np.linspace(-4, 4, 161)
    bounds = [(0.0, 0.0), (-1.0, 0.5), (1.0, math.inf), (-math.inf, -0.5)]
    for bound, margin in itertools.product(bounds, [0.0, 0.3, 2.0]):
        theirs = dm_rewards.tolerance(x, bound, margin, sigmoid, value_at_margin)
        ours = rewards.tolerance(x, bound, margin, sigmoid, value_at_margin)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"bounds": (1, 0)}, {"margin": -1}, {"margin": 1, "sigmoid": "cosine"}]
)
def test_tolerance_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match=r"needs lower|unknown sigmoid"):
        rewards.tolerance(np.float32(3.0), **arguments)


def test_tolerance_has_finite_gradients_far_outside():
    gradient = jax.grad(lambda x: rewards.tolerance(x, margin=1.0))(1e3)
    assert np.isfinite(gradient)
