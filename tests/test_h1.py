"""HumanoidBench's H1: the robot, the rewards at poses worked out by hand, ends, and parity."""

import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from chosen import H1_TASKS, fast_are

import envs
import flowrl_jax as flowrl
import vector_env
from benchmarks import h1_random_play, parity
from tasks import h1, h1_body, h1_obstacles
from tasks.base import Physics

NAMES = tuple(h1.TASKS)
STANDING = np.array([*h1_body.STAND, 1, 0, 0, 0, *h1_body.LEG_POSE, *h1_body.LEG_POSE, *[0] * 9])
N = 4
SIDES = ("left", "right")


def physics_at(name: str, qpos=STANDING, velocity=(0, 0, 0), force=0.0, **episode) -> Physics:
    """A pose as a task sees it, the centre of mass at `velocity` (m/s), all torques `force`."""
    model = envs.load_task(f"h1-{name}").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[: len(qpos)] = qpos
    mujoco.mj_forward(model, data)
    sensors = vector_env.Sensors(model).by_name(jnp.asarray(data.sensordata, jnp.float32))
    sensors |= {key: jnp.full(1, force) for key in sensors if key.startswith("force_")}
    sensors["velocity"] = jnp.array(velocity, jnp.float32)
    fields = [jnp.asarray(x, jnp.float32) for x in (data.qpos, data.qvel, data.act, data.ctrl)]
    return Physics(*fields, sensors=sensors, episode=episode)


def reward(name: str, *args, **kwargs) -> float:
    return float(envs.load_task(f"h1-{name}").reward(physics_at(name, *args, **kwargs)))


def terminated(name: str, *args, **kwargs) -> bool:
    return bool(envs.load_task(f"h1-{name}").terminated(physics_at(name, *args, **kwargs)))


def posed(height: float, quaternion=(1, 0, 0, 0), legs=h1_body.LEG_POSE, x=0.0) -> np.ndarray:
    return np.array([x, 0, height, *quaternion, *legs, *legs, *[0] * 9])


FACE_DOWN = (math.sqrt(0.5), 0, math.sqrt(0.5), 0)


def test_robot_is_unitrees_and_humanoid_benchs():
    model = envs.load_task("h1-stand").model
    assert (model.nq, model.nv, model.nu) == (26, 25, 19)
    assert model.body("pelvis").subtreemass[0] == pytest.approx(51.65, abs=1e-3)
    assert model.opt.timestep == 0.002
    np.testing.assert_array_equal(model.dof_damping[6:], 1)
    np.testing.assert_array_equal(model.dof_armature[6:], 0.1)
    expected = {  # kp, kv, largest torque, lowest and highest angle
        "left_hip_yaw": (200, 5, 200, -0.43, 0.43),
        "right_hip_pitch": (200, 5, 200, -3.14, 2.53),
        "left_knee": (300, 6, 300, -0.26, 2.05),
        "right_ankle": (40, 2, 40, -0.87, 0.52),
        "torso": (300, 6, 200, -2.35, 2.35),
        "left_shoulder_roll": (100, 2, 40, -0.34, 3.11),
        "right_shoulder_roll": (100, 2, 40, -3.11, 0.34),
        "left_shoulder_yaw": (100, 2, 18, -1.3, 4.45),
        "right_shoulder_yaw": (100, 2, 18, -4.45, 1.3),
        "right_elbow": (100, 2, 18, -1.25, 2.61),
    }
    for name, (kp, kv, force, low, high) in expected.items():
        servo = model.actuator(name)
        np.testing.assert_allclose(servo.gainprm[:3], (kp, 0, 0))
        np.testing.assert_allclose(servo.biasprm[:3], (0, -kp, -kv))
        np.testing.assert_allclose(servo.forcerange, (-force, force))
        np.testing.assert_allclose(servo.ctrlrange, (low, high))
        np.testing.assert_allclose(model.joint(name).range, (low, high))


def test_right_side_has_the_published_inertia():
    """The table has the left side; the published right-hand axes are other quaternions of it."""
    model = envs.load_task("h1-stand").model
    published = {
        "right_hip_yaw": (0.641667, 0.233287, 0.219193, 0.69699),
        "right_knee": (0.777852, -0.0416277, -0.034227, 0.626132),
        "right_shoulder_pitch": (0.579236, 0.814858, 0.00936488, 0.0201072),
        "right_elbow": (-0.0765232, 0.720327, -0.0853116, 0.684102),
    }

    def tensor(axes, moments):
        frame = np.empty(9)
        mujoco.mju_quat2Mat(frame, np.array(axes, float))
        return frame.reshape(3, 3) @ np.diag(moments) @ frame.reshape(3, 3).T

    for name, axes in published.items():
        body = model.body(name)
        np.testing.assert_allclose(
            tensor(body.iquat, body.inertia), tensor(axes, body.inertia), atol=1e-7
        )


def test_robot_touches_only_the_floor_where_it_starts():
    model = envs.load_task("h1-stand").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    touching = {frozenset(model.geom(g).name for g in pair) for pair in data.contact.geom}
    soles = [f"{side}_ankle_{edge}" for side in ("left", "right") for edge in ("inner", "outer")]
    assert touching == {frozenset(("floor", sole)) for sole in soles}
    assert data.ncon == 8, "both feet flat"


# Of HumanoidBench's own model: lowest and highest x, y and z (m) of each link's collision shape
# from the link's origin, at the keyframe, in the world's axes; None where it was not read off.
EXTENTS = {
    "pelvis": ((-0.069, 0.069), (-0.153, 0.153), (-0.085, 0.008)),
    "left_hip_yaw": ((-0.102, -0.032), (-0.06, 0.06), (-0.06, 0.06)),
    "left_hip_roll": ((-0.068, 0.061), (-0.06, 0.06), (-0.064, 0.064)),
    "left_hip_pitch": ((-0.061, 0.216), (-0.094, 0.03), (-0.406, 0.061)),
    "left_knee": ((-0.171, 0.047), (-0.048, 0.035), (-0.398, 0.037)),
    "left_ankle": ((-0.1, 0.2), (-0.015, 0.015), (-0.07, 0.011)),
    "torso": ((-0.073, 0.125), (-0.172, 0.172), (0, 0.754)),
    "left_shoulder_pitch": (None, (-0.015, 0.107), None),
    "left_shoulder_roll": (None, None, (-0.14, 0.034)),
    "left_shoulder_yaw": (None, None, (-0.246, 0)),
    "left_elbow": ((-0.04, 0.316), None, None),
}


def extents(model: mujoco.MjModel, data: mujoco.MjData, link: str) -> np.ndarray:
    """Lowest and highest coordinates of a link's capsules and spheres from its origin. (3, 2)"""
    body, ends = model.body(link), []
    for geom in range(body.geomadr[0], body.geomadr[0] + body.geomnum[0]):
        kind = mujoco.mjtGeom(model.geom_type[geom])
        assert kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE)
        radius, half_length, _ = model.geom_size[geom]
        reach = radius + half_length * np.abs(data.geom_xmat[geom].reshape(3, 3)[:, 2])
        centre = data.geom_xpos[geom] - data.xpos[body.id]
        ends.append((centre - reach, centre + reach))
    low, high = np.array(ends).transpose(1, 0, 2)
    return np.stack([low.min(axis=0), high.max(axis=0)], axis=1)


@pytest.mark.parametrize("link", EXTENTS)
def test_links_reach_as_far_as_the_benchmarks_meshes(link):
    """Within 1 cm; the right side is the left's mirror image."""
    model = envs.load_task("h1-stand").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    ours = extents(model, data, link)
    for axis, published in enumerate(EXTENTS[link]):
        if published is not None:
            np.testing.assert_allclose(ours[axis], published, atol=0.01, err_msg="xyz"[axis])
    mirrored = ours * [[1], [-1], [1]]
    mirrored[1] = mirrored[1, ::-1]
    right = extents(model, data, link.replace("left", "right"))
    np.testing.assert_allclose(right, mirrored, atol=1e-9)


def test_pelvis_sits_as_high_as_the_benchmarks():
    model = envs.load_task("h1-sit_simple").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    assert extents(model, data, "pelvis")[2, 0] == pytest.approx(-0.085, abs=1e-3)
    for x in (-0.25, -0.2, -0.15):
        assert h1_random_play.seated_height(x) == pytest.approx(0.714, abs=0.006)


def test_soles_touch_on_what_the_benchmarks_touch():
    """0.289 x 0.024 m there."""
    model = envs.load_task("h1-stand").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    links = model.geom_bodyid[data.contact.geom].max(axis=1)
    for side in ("left", "right"):
        length, width, _ = np.ptp(data.contact.pos[links == model.body(f"{side}_ankle").id], axis=0)
        assert 0.27 < length < 0.31
        assert 0.018 < width < 0.030
    assert np.ptp(data.contact.dist) < 1e-4, "flat"


@pytest.mark.parametrize("side", ["left", "right"])
def test_thigh_stops_at_the_hips_housing(side):
    """There it touches from 0.37 rad on, and is stopped at 0.42 to 0.46 of the 2.53 asked for."""
    assert 0.36 < h1_random_play.hip_stop(side) < 0.52
    model = envs.load_task("h1-stand").model
    data = mujoco.MjData(model)
    pair, touches = (f"{side}_hip_yaw", f"{side}_hip_pitch"), {}
    for angle in (-3.0, -1.5, 0.0, 0.34, 0.40, 0.45):
        mujoco.mj_resetDataKeyframe(model, data, 0)
        data.joint(f"{side}_hip_pitch").qpos = angle
        mujoco.mj_forward(model, data)
        touches[angle] = pair in h1_random_play.touching_links(model, data)
    assert touches == {angle: angle > 0.36 for angle in touches}


def test_of_the_robot_only_pelvis_and_hip_roll_are_kept_from_touching():
    """They overlap as the robot is built, also in the benchmark's model; neighbours never touch."""
    model = envs.load_task("h1-stand").model
    excluded = {
        frozenset(model.body(body).name for body in (pair >> 16, pair & 0xFFFF))
        for pair in model.exclude_signature
    }
    assert excluded == {frozenset(("pelvis", f"{side}_hip_roll")) for side in ("left", "right")}


def test_links_touch_each_other_in_random_play_as_often_as_the_benchmarks():
    """There thigh and hip-yaw housing in 240 to 383 of 3,000 steps, the hip rolls in at most 2."""
    runs = [h1_random_play.touching(seed=seed) for seed in range(2)]
    counts = [run[f"{side}_hip_yaw", f"{side}_hip_pitch"] for run in runs for side in SIDES]
    assert 240 <= np.mean(counts) <= 383
    assert 150 <= min(counts) <= max(counts) <= 480
    for run in runs:
        assert run["left_hip_roll", "right_hip_roll"] <= 2
        assert sum(run.values()) < 1500, run  # no pair that touches nearly always


def test_shoulders_are_turned_as_in_the_benchmark():
    """By its quaternion, which is not 0.4363 rad exactly."""
    model = envs.load_task("h1-stand").model
    for side, sign in (("left", 1), ("right", -1)):
        for link, way in (("shoulder_pitch", 1), ("shoulder_roll", -1)):
            turn = np.array((0.976296, sign * way * 0.216438, 0, 0))
            turn /= np.linalg.norm(turn)
            np.testing.assert_allclose(model.body(f"{side}_{link}").quat, turn, atol=1e-9)


@pytest.mark.parametrize(("name", "first"), [("stand", (3,)), ("balance_hard", (3, 29, 36))])
def test_quaternions_of_a_reset_are_normalised(name, first):
    """HumanoidBench observes them so; with noise on each element they are not of length 1."""
    states, _ = envs.load_task(f"h1-{name}").starts(3).draw(0, 200)
    obs = envs.make(f"h1-{name}", N, "native").reset(jax.random.key(0)).obs
    for qpos in (states["qpos"], np.asarray(obs)):
        for start in first:
            norms = np.linalg.norm(qpos[:, start : start + 4], axis=1)
            np.testing.assert_allclose(norms, 1, atol=1e-6)
            assert np.ptp(qpos[:, start + 1]) > 0.005


# What the benchmark's files say: name, centre, half sizes (a capsule: radius, half length), in m.
PUBLISHED = {
    "stair": (
        ("step0", (3.2, 0, 0.09), (2.7, 5, 0.09)),
        ("step4", (3.2, 0, 0.81), (0.3, 5, 0.09)),
        ("step19", (21.2, 0, 0.81), (0.3, 5, 0.09)),
        ("wall2", (-2.1, 0, 2), (0.1, 7.25, 2)),
    ),
    "crawl": (
        ("tunnel0", (10.2, -1.35, 0.775), (8, 0.2, 0.775)),
        ("tunnel2", (10.2, 0, 1.35), (8, 1.15, 0.2)),
    ),
    "pole": (
        ("pole0", (1, 2.25, 1), (0.05, 1, 0)),
        ("pole5", (2, 0, 1), (0.05, 1, 0)),
        ("pole143", (41, -2.25, 1), (0.05, 1, 0)),
        ("wall0", (20, -3.15, 1), (20.75, 0.15, 1)),
    ),
    "hurdle": (
        ("hurdle0", (7, 0, 0.1875), (0.03, 5, 0.1875)),
        ("hurdle9", (70, 0, 0.1875), (0.03, 5, 0.1875)),
        ("barrier1", (35, 4.725, 1), (35.5, 0.275, 1)),
    ),
    "maze": (
        ("block0", (-1.5, -1.5, 0.6), (0.75, 0.75, 0.6)),
        ("block29", (7.5, 7.5, 0.6), (0.75, 0.75, 0.6)),
    ),
    "sit_simple": (
        ("seat", (-0.25, 0, 0.2375), (0.21, 0.21, 0.2375)),
        ("back", (-0.48, 0, 0.65), (0.02, 0.21, 0.2)),
    ),
    "balance_hard": (
        ("board", (0, 0, 0.37), (0.15, 0.55, 0.03)),
        ("ball", (0, 0, 0.17), (0.17, 0, 0)),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_obstacles_stand_where_the_benchmark_has_them(name):
    model = envs.load_task(f"h1-{name}").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_kinematics(model, data)
    for geom, place, size in PUBLISHED[name]:
        np.testing.assert_allclose(data.geom(geom).xpos, place, atol=1e-9, err_msg=geom)
        np.testing.assert_allclose(model.geom(geom).size, size, atol=1e-9, err_msg=geom)


def test_slopes_are_the_benchmarks_prisms():
    """Corners at 0.3, 5.3 and 10.3 m, 0, 1.75 and 0 m high, and so on every 10 m: seen by rays."""
    model = envs.load_task("h1-slide").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[0] = -2  # the robot out of the way
    mujoco.mj_kinematics(model, data)
    down, geom = np.array([0.0, 0, -1]), np.zeros(1, np.int32)
    for x, height in ((2.8, 0.875), (5.29, 1.7465), (7.8, 0.875), (10.31, 0.0035), (85.3, 1.75)):
        above = np.array([x, 0.3, 10])
        distance = mujoco.mj_ray(model, data, above, down, None, 1, -1, geom, None)
        assert 10 - distance == pytest.approx(height, abs=1e-3), x


def test_feet_board_and_ball_touch_at_the_start_of_balance():
    model = envs.load_task("h1-balance_hard").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    touching = {frozenset(model.geom(g).name for g in pair) for pair in data.contact.geom}
    assert len([pair for pair in touching if "board" in pair]) >= 4  # soles; the ball is at 0.0
    assert np.abs(data.contact.dist).max() < 2e-3


def test_robot_stands_for_two_seconds():
    """In the keyframe's pose, held by servos whose targets carry the robot's weight.

    With the bare angles as targets it sags and falls in 1.5 s, here as there: the ankles' 2 x 40
    N m/rad are less than the 450 that the weight asks for. So what is tested is the balance of
    the pose: the servos' loads at rest are added to their targets.
    """
    env = envs.make("h1-stand", 1, "native")
    model = env.task.model
    data = mujoco.MjData(model)

    def at_rest(offset) -> np.ndarray:
        """The forces that are missing at the root, heave, roll and pitch, at a small offset."""
        mujoco.mj_resetDataKeyframe(model, data, 0)
        data.qpos[2] += offset[0]
        mujoco.mju_euler2Quat(data.qpos[3:7], [offset[1], offset[2], 0], "xyz")
        data.qacc[:] = 0
        mujoco.mj_inverse(model, data)
        return data.qfrc_inverse[2:5].copy()

    offset = scipy.optimize.fsolve(at_rest, [0, 0, 0], epsfcn=1e-10)
    assert np.abs(at_rest(offset)).max() < 1e-6
    assert np.abs(offset).max() < 0.005  # m and rad: it is the keyframe
    targets = data.qpos[7:] + data.qfrc_inverse[6:] / model.actuator_gainprm[:, 0]
    low, high = model.actuator_ctrlrange.T
    action = jnp.asarray((2 * targets - low - high) / (high - low), jnp.float32)[None]
    state = env.reset_to(data.qpos[None], np.zeros((1, model.nv)))
    step, heights = jax.jit(env.step), []
    for _ in range(100):
        state = step(state, action)
        heights.append(float(state.next_obs[0, 2]))
        assert not state.terminated[0]
    assert min(heights) > 0.97


def test_reward_of_standing_walking_and_running():
    assert reward("stand") == pytest.approx(1, abs=1e-6)  # the head is at 1.68 m
    assert reward("stand", force=10.0) == pytest.approx(0.8)
    assert reward("stand", force=-5.0) == pytest.approx((4 + 0.75) / 5)
    # Two metres a second forwards are a margin, worth 0.1 of one of the two directions.
    assert reward("stand", velocity=(2, 0, 0)) == pytest.approx((0.1 + 1) / 2)
    assert reward("walk") == pytest.approx(1 / 6, abs=1e-6)
    assert reward("walk", velocity=(1, 0, 0)) == pytest.approx(1, abs=1e-6)
    assert reward("walk", velocity=(-1, 0, 0)) == pytest.approx(1 / 6, abs=1e-6)
    assert reward("run", velocity=(2.5, 0, 0)) == pytest.approx((5 * 0.5 + 1) / 6, abs=1e-6)
    assert reward("run", velocity=(9, 0, 0)) == pytest.approx(1, abs=1e-6)
    # Squatting by 0.4125 m less 0.03 m of spare height: not quite one margin.
    spare = 1.68 - 1.65
    low = posed(0.98 - 0.4)
    assert reward("stand", low) == pytest.approx(0.1 ** (((0.4 - spare) / 0.4125) ** 2), abs=1e-5)


def test_reward_of_lying_is_next_to_nothing():
    lying = posed(0.2, FACE_DOWN)
    for name in ("stand", "walk", "run", "stair", "slide", "hurdle"):
        assert 0 <= reward(name, lying) < 1e-5, name
    # The torso lies: (0 + 1) / 1.9 of the way from upside down to upright, and the head is low.
    upright = 1 - 0.9 / 1.9
    assert reward("stand", posed(1.8, FACE_DOWN)) == pytest.approx(upright, abs=1e-5)


def test_reward_of_sitting():
    seated = posed(0.70, legs=(0, 0, -1.5, 1.5, 0), x=-0.2)
    trunk = 0.7 - 0.27756  # m from the imu to the head: within 0.35 to 0.45
    assert 0.35 < trunk < 0.45
    assert reward("sit_simple", seated) == pytest.approx(1, abs=1e-6)
    # Standing before it: 0.28 - 0.02 m too high is 1.3 margins; 0.06 m in front of the seat.
    high, front = 0.1 ** (((0.98 - 0.72) / 0.2) ** 2), 0.1 ** (((0.25 - 0.19) / 0.2) ** 2)
    assert reward("sit_simple") == pytest.approx(0.5 * high + 0.5 * front, abs=1e-5)
    assert terminated("sit_simple", posed(0.49))
    assert not terminated("sit_simple", seated)


def test_reward_of_crawling():
    crawling = posed(0.75, (0.75, 0, 0.65, 0))
    physics = physics_at("crawl", crawling, velocity=(1, 0, 0))
    imu, head = (float(physics.sensors[f"{name}_pos"][2]) for name in ("imu", "head"))
    assert 0.6 < imu < 1
    assert 0.6 < head < 1
    norm = math.hypot(0.75, 0.65)  # the wanted quaternion is not of length 1, the pelvis's is
    pose = 0.1 ** ((1 - norm) ** 2)
    expected = 0.1 + 0.25 + 0.4 + 0.25 * pose
    assert reward("crawl", crawling, velocity=(1, 0, 0)) == pytest.approx(expected, abs=1e-5)
    outside = crawling.copy()
    outside[1] = 1.2  # m beside the tunnel's middle
    assert reward("crawl", outside) == 0
    assert envs.load_task("h1-crawl").terminated is None


def test_reward_of_reaching():
    physics = physics_at("reach", body_pos=jnp.zeros((1, 3)))
    hand = np.array(physics.sensors["left_hand_pos"])
    for offset, bonus in ((0.0, 15), (0.04, 15), (0.06, 5), (0.9, 5), (1.1, 0)):
        goal = jnp.asarray(hand + (offset, 0, 0), jnp.float32)[None]
        assert reward("reach", body_pos=goal) == pytest.approx(5 + bonus), offset
    task = envs.load_task("h1-reach")
    obs = task.observe(physics_at("reach", body_pos=jnp.ones((1, 3))))
    np.testing.assert_allclose(obs[-6:-3], hand, rtol=1e-6)
    np.testing.assert_array_equal(obs[-3:], 1)


def test_touching_what_should_not_be_touched_costs_nine_tenths():
    for name, aside in (("hurdle", (0, 4.25)), ("pole", (0, 2.8))):
        near = STANDING.copy()
        near[:2] = aside
        full, touching = reward(name, velocity=(9, 0, 0)), reward(name, near, velocity=(9, 0, 0))
        factor = {"hurdle": 0.1, "pole": 1.0}[name]  # the poles' barriers may be touched
        assert touching == pytest.approx(factor * full, rel=1e-5), name
    near[:2] = (0.95, 0.55)  # a pole at (1, 0.75)
    assert reward("pole", near, velocity=(9, 0, 0)) == pytest.approx(0.1, abs=1e-5)


def test_maze_pays_each_checkpoint_once_and_forgets_with_the_episode():
    env = envs.make("h1-maze", 1, "native")
    step = jax.jit(env.step)
    state = env.reset_to(STANDING[None], np.zeros((1, 25)))
    assert float(state.episode["stage"][0, 0, 0]) == 0
    stages, bonuses = [], []
    for place in h1_obstacles.CHECKPOINTS[:-1]:
        for _ in range(2):  # the second time at one place pays nothing more
            there = state.physics.qpos.at[0, :2].set(jnp.array(place, jnp.float32))
            there = there.at[0, 2].set(0.98)
            state = state.replace(physics=state.physics.replace(qpos=there))
            state = step(state, jnp.zeros((1, 19)))
            stages.append(int(state.episode["stage"][0, 0, 0]))
            bonuses.append(float(state.reward[0]) // 100)
    assert stages == [1, 1, 2, 2, 3, 3, 4, 4]
    assert bonuses == [1, 0, 2, 0, 3, 0, 4, 0]
    lying = posed(0.15, FACE_DOWN, legs=[0] * 5)
    fallen = state.physics.qpos.at[0].set(jnp.asarray(lying, jnp.float32))
    state = step(state.replace(physics=state.physics.replace(qpos=fallen)), jnp.zeros((1, 19)))
    assert state.terminated[0]
    assert float(state.episode["stage"][0, 0, 0]) == 0


def test_balance_ends_on_the_floor_and_on_the_ball():
    assert not terminated("balance_simple", posed(1.38, x=-0.1))  # above the board
    assert terminated("balance_simple", posed(0.79, x=-0.1))
    beside = posed(0.98, x=0.8)  # the feet on the floor, 0.98 m high
    assert terminated("balance_simple", beside)
    model = envs.load_task("h1-balance_hard").model
    assert model.body("board").mass[0] == pytest.approx(19.8)
    assert model.body("ball").mass[0] == pytest.approx(1000 * 4 / 3 * math.pi * 0.17**3)
    assert envs.load_task("h1-sit_hard").model.body("chair").mass[0] == pytest.approx(15.748)


def test_a_fall_is_an_end_without_a_value():
    """Not as in the suite, whose episodes end by their time limit only."""
    env = envs.make("h1-stand", N, "native")
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    for _ in range(150):
        state = step(state, jnp.zeros((N, 19)))
        if state.terminated.any():
            break
    fallen = int(jnp.argmax(state.terminated))
    assert state.terminated[fallen]
    assert not state.truncated[fallen]
    assert state.next_obs[fallen, 2] < 0.2  # the true successor
    assert state.obs[fallen, 2] > 0.9  # and a new episode
    batch = flowrl.Transition(
        state.obs, jnp.zeros((N, 19)), state.reward, state.next_obs, state.terminated
    )
    target = flowrl.td_target(batch, jnp.full(N, 100.0), flowrl.Args().gamma)
    assert float(target[fallen]) == pytest.approx(float(state.reward[fallen]))
    np.testing.assert_allclose(
        target[~state.terminated], (state.reward + 99.0)[~state.terminated], rtol=1e-6
    )


@pytest.mark.parametrize("name", fast_are(H1_TASKS, NAMES))
def test_native_equals_the_reference(name):
    result, _ = parity.measure(f"h1-{name}", "native", steps=200)
    assert result.max_rel_obs < 1e-6
    # The maze's bonus of up to 400 and the reach's 15 are float32 too.
    assert result.max_abs_reward < {"maze": 3e-5, "reach": 5e-6}.get(name, 1e-6)
    assert result.max_rel_initial_obs < 1e-6
    assert result.ends_that_differ == 0
    assert result.highest_reward > 0.01


def agrees(name: str, engine: str, tolerance: float, worst: float | None = None) -> None:
    """To `tolerance` in 20 states; given `worst`, to that in one of them."""
    result, by_state = parity.measure(f"h1-{name}", engine, steps=20)
    assert result.max_rel_obs < (worst or tolerance)
    assert np.sort(by_state)[-2] < tolerance
    assert result.max_abs_reward < 1e-5
    assert result.ends_that_differ == 0


@pytest.mark.long
@pytest.mark.skipif(
    not envs._importable("warp"), reason="no warp-lang: `pip install -r requirements-warp.txt`"
)
@pytest.mark.parametrize("name", ["walk", "hurdle", "balance_hard"])
def test_warp_agrees_with_the_reference(name):
    agrees(name, "warp", 2e-4)


@pytest.mark.long
def test_mjx_agrees_with_the_reference():
    # Of 20 states one has a whole sole 2 cm deep in the floor: its two edges, 24 mm apart, are
    # nearly one constraint twice, which float32 solves to 1.2e-4. The next is at 1.1e-5.
    agrees("walk", "mjx", 5e-5, worst=3e-4)


def test_the_comparison_sees_touches_and_ends():
    """Of 200 states some touch what costs reward, and some end the episode."""
    for name, sensor in (("hurdle", "touch_barrier"), ("pole", "touch_pole"), ("maze", "touch_b")):
        recorded = parity.record_steps(f"h1-{name}", 200, "native")
        env = envs.make(f"h1-{name}", 200, "native")
        fields = [recorded[field] for field in ("qpos", "qvel", "act", "episode")]
        state = env.reset_to(*fields)
        ctrl = env._ctrl_middle + env._ctrl_half_range * recorded["action"]
        _, sensordata, _ = env._engine.step(state.physics, ctrl, state.episode)
        sensors = env._sensors.by_name(sensordata)
        touches = jnp.concatenate([v for k, v in sensors.items() if k.startswith(sensor)], axis=1)
        assert 5 < int((touches > 0).any(axis=1).sum()) < 195, name
        assert 5 < recorded["terminated"].sum() < 195, name


@pytest.mark.parametrize("name", fast_are(H1_TASKS, NAMES))
def test_random_play(name):
    env = envs.make(f"h1-{name}", N, "native")
    assert (env.episode_length, env.control_timestep) == (1000, 0.02)

    @jax.jit
    def run(key):
        def step(state, key):
            action = jax.random.uniform(key, (N, 19), minval=-1.0, maxval=1.0)
            state = env.step(state, action)
            return state, (state.next_obs, state.reward, state.terminated, state.nonfinite_count)

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, 200))[1]

    first, again = run(jax.random.key(0)), run(jax.random.key(0))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    obs, rewards, ended, nonfinite = map(np.asarray, first)
    assert np.isfinite(obs).all()
    assert nonfinite[-1].sum() == 0
    high = {"maze": 401, "reach": 20}.get(name, 1)
    low = {"reach": -100}.get(name, 0)
    assert ((rewards >= low) & (rewards <= high)).all()
    assert ended.any() == env.ends_early == (name not in ("crawl", "reach"))
    assert (obs.reshape(-1, obs.shape[-1]).std(axis=0) > 0).all(), "elements that never change"


def test_an_unknown_episode_parameter_is_refused():
    env = envs.make("h1-maze", 1, "native")
    with pytest.raises(ValueError, match="no episode parameters"):
        env.reset_to(STANDING[None], np.zeros((1, 25)), episode={"stages": np.zeros((1, 1, 1))})
    state = env.reset_to(STANDING[None], np.zeros((1, 25)), episode={"stage": np.ones((1, 1, 1))})
    assert float(state.episode["stage"][0, 0, 0]) == 1


def test_buffers_are_measured_among_the_obstacles():
    poles = envs.load_task("h1-pole").starts(0)
    places = poles.crowded(8)["qpos"]
    assert np.ptp(places[:, 0]) > 2
    assert np.ptp(envs.load_task("h1-walk").starts(0).crowded(8)["qpos"][:, 0]) < 0.03


def test_resets_are_humanoid_benchs():
    """Uniform noise on every element of qpos, quaternions normalised; sit_hard and reach draw more.

    A quaternion's first element is near 1 after that, and the others still as drawn to 1%.
    """

    def drawn(name: str):
        return envs.load_task(f"h1-{name}").starts(3).draw(0, 2000)

    def uniform(values, low: float, high: float) -> float:
        return scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue

    states, _ = drawn("balance_hard")
    start = envs.load_task("h1-balance_hard").model.key("start").qpos
    np.testing.assert_allclose(start[:3], (-0.1, 0, 1.38))
    np.testing.assert_allclose(start[26:29], (0, 0, 0.37))
    lengths = np.flatnonzero(start == 1)  # of the quaternions, which are upright
    np.testing.assert_array_equal(lengths, (3, 29, 36))
    noises = states["qpos"] - start
    for i in set(range(len(start))) - set(lengths):
        assert uniform(noises[:, i], -0.01, 0.01) > 1e-5
    for i in lengths:
        whole = np.linalg.norm(states["qpos"][:, i : i + 4], axis=1)
        np.testing.assert_allclose(whole, 1, atol=1e-12)
    assert not states["qvel"].any()
    states, _ = drawn("sit_hard")
    qpos = states["qpos"]
    assert uniform(qpos[:, 0], 0.2, 0.4) > 1e-5
    assert uniform(qpos[:, 1], -0.15, 0.15) > 1e-5
    assert uniform(2 * np.arctan2(qpos[:, 6], qpos[:, 3]), -1.8, 1.8) > 1e-5
    assert uniform(qpos[:, 26] + 0.25, -0.01, 0.01) > 1e-5
    _, episode = drawn("reach")
    for i, (low, high) in enumerate(((-2, 2), (-2, 2), (0.2, 2))):
        assert uniform(episode["body_pos"][:, 0, i], low, high) > 1e-5
    again = envs.load_task("h1-reach").starts(3).draw(0, 2000)[1]
    np.testing.assert_array_equal(again["body_pos"], episode["body_pos"])
