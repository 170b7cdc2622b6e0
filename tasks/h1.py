"""The h1 domain: HumanoidBench's locomotion with a Unitree H1 without hands.

Source: Sferrazza et al., arXiv 2403.10506, and github.com/carlosferrazza/humanoid-bench (robot
and most obstacles as of commit 44e2fc0, balance's board as of b917f7a, rewards 217b38f). Masses,
inertias, axes, ranges and offsets are Unitree's. The links collide as the capsules and spheres of
h1_body.py, where HumanoidBench has meshes: no files, and every engine agrees on contacts.
Rewards and terminations are in h1_rewards.py, obstacles in h1_obstacles.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from tasks import h1_body, h1_obstacles, h1_rewards
from tasks.base import Physics, Task
from tasks.models import add_frame_sensors

TIMESTEP, SUBSTEPS, EPISODE_LENGTH = 0.002, 10, 1000  # s, physics steps, control steps
CROWDED = (0.0, -2.0), (6.0, 2.0)  # m, x and y: where obstacles are dense
NOISE = 0.01  # uniform, on every element of qpos at a reset; quaternions are normalised after it
STAND = (0.0, 0.0, 0.98)  # m, the pelvis at a reset
LEG_POSE = (0.0, 0.0, -0.4, 0.8, -0.4)  # rad, hip yaw, roll and pitch, knee, ankle at a reset
DAMPING, ARMATURE = 1.0, 0.1  # of every joint, N m s/rad and kg m^2

# position actuators: stiffness kp (N m/rad), damping kv (N m s/rad), largest force (N m)
SERVOS = {
    "hip": (200, 5, 200),
    "knee": (300, 6, 300),
    "ankle": (40, 2, 40),
    "torso": (300, 6, 200),
    "shoulder": (100, 2, 40),
    "arm": (100, 2, 18),
}


@dataclasses.dataclass(frozen=True)
class Link:
    """A link of the robot and the hinge that it hangs on; lengths in m, in the link's own frame."""

    parent: str
    offset: tuple[float, ...]  # of the link's frame, in the parent's
    joint: tuple[str, str, float, float]  # servo, axis, lowest and highest angle (rad)
    mass: float  # kg
    com: tuple[float, ...]  # centre of mass
    axes: tuple[float, ...]  # principal axes of inertia, a quaternion
    inertia: tuple[float, ...]  # about them, kg m^2
    turn: tuple[float, float] = (1.0, 0.0)  # w and x of the frame's quaternion; about x only


# Of pairs the left one; the right is its mirror image. Depth first, which is qpos's order.
# fmt: off
LEG = {
    "hip_yaw": Link("pelvis", (0, 0.0875, -0.1742), ("hip", "z", -0.43, 0.43), 2.244,
        (-0.04923, 0.0001, 0.0072), (0.69699, 0.219193, 0.233287, 0.641667),
        (0.00304494, 0.00296885, 0.00189201)),
    "hip_roll": Link("hip_yaw", (0.039468, 0, 0), ("hip", "x", -0.43, 0.43), 2.232,
        (-0.0058, -0.00319, -9e-05), (0.0438242, 0.70721, -0.0729075, 0.701867),
        (0.00243264, 0.00225325, 0.00205492)),
    "hip_pitch": Link("hip_roll", (0, 0.11536, 0), ("hip", "y", -3.14, 2.53), 4.152,
        (0.00746, -0.02346, -0.08193), (0.979828, 0.0513522, -0.0169854, -0.192382),
        (0.0829503, 0.0821457, 0.00510909)),
    "knee": Link("hip_pitch", (0, 0, -0.4), ("knee", "y", -0.26, 2.05), 1.721,
        (-0.00136, -0.00512, -0.1384), (0.626132, -0.034227, -0.0416277, 0.777852),
        (0.0125237, 0.0123104, 0.0019428)),
    "ankle": Link("knee", (0, 0, -0.4), ("ankle", "y", -0.87, 0.52), 0.552448,
        (0.048568, 0, -0.045609), (0.489385, 0.510394, 0.510394, 0.489385),
        (0.00362, 0.00355701, 0.000149987)),
}
TORSO = {
    "torso": Link("pelvis", (0, 0, 0), ("torso", "z", -2.35, 2.35), 17.789,
        (0.000489, 0.002797, 0.20484), (0.999989, -0.00130808, -0.00282289, -0.00349105),
        (0.487315, 0.409628, 0.127837)),
}
ARM = {
    "shoulder_pitch": Link("torso", (0.0055, 0.15535, 0.42999), ("shoulder", "y", -2.87, 2.87),
        1.033, (0.005045, 0.053657, -0.015715), (0.814858, 0.579236, -0.0201072, -0.00936488),
        (0.00129936, 0.000987113, 0.000858198),
        turn=(0.976296, 0.216438)),
    "shoulder_roll": Link("shoulder_pitch", (-0.0055, 0.0565, -0.0165),
        ("shoulder", "x", -0.34, 3.11),
        0.793, (0.000679, 0.00115, -0.094076), (0.732491, 0.00917179, 0.0766656, 0.676384),
        (0.00170388, 0.00158256, 0.00100336),
        turn=(0.976296, -0.216438)),
    "shoulder_yaw": Link("shoulder_roll", (0, 0, -0.1343), ("arm", "z", -1.3, 4.45), 0.839,
        (0.01365, 0.002767, -0.16266), (0.703042, -0.0331229, -0.0473362, 0.708798),
        (0.00408038, 0.00370367, 0.000622687)),
    "elbow": Link("shoulder_yaw", (0.0185, 0, -0.198), ("arm", "y", -1.25, 2.61), 0.669,
        (0.15908, -0.000144, -0.015776), (0.0765232, 0.720327, 0.0853116, 0.684102),
        (0.00601829, 0.00600579, 0.000408305)),
}
# fmt: on
PELVIS_MASS, PELVIS_COM = 5.39, (-0.0002, 4e-05, -0.04522)
PELVIS_AXES = (0.498303, 0.499454, -0.500496, 0.501741)
PELVIS_INERTIA = (0.0490211, 0.0445821, 0.00824619)
# site -> its link and place: the head's height is the reward's, eyes and hands are no links
SITES = {
    "head": ("torso", (0, 0, 0.7)),
    "imu": ("torso", (-0.04452, -0.01891, 0.27756)),
    "left_foot": ("left_ankle", (0, 0, -0.05)),
    "right_foot": ("right_ankle", (0, 0, -0.05)),
    "left_hand": ("left_elbow", (0.31, 0, -0.01)),
}
MJX_CONTACTS = 32  # the deepest that are kept
CAMERA = (2.3, -2.9, 0.7)  # m, from the pelvis
DARK, LIGHT = (0.13, 0.13, 0.14, 1), (0.75, 0.76, 0.78, 1)

# task -> the return that counts as success
TASKS = {
    "stand": 800.0,
    "walk": 700.0,
    "run": 700.0,
    "stair": 700.0,
    "crawl": 700.0,
    "pole": 700.0,
    "slide": 700.0,
    "hurdle": 700.0,
    "maze": 1200.0,
    "sit_simple": 750.0,
    "sit_hard": 750.0,
    "balance_simple": 800.0,
    "balance_hard": 800.0,
    "reach": 12000.0,
}


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = _world()
    _add_robot(spec)
    obstacles = h1_obstacles.add(spec, name)
    _add_sensors(spec, obstacles)
    model = spec.compile()
    rules = h1_rewards.rules(name, model)
    reach = name == "reach"
    observe = _observe_reach if reach else _observe
    loose = obstacles.loose  # they touch each other, the floor and the robot
    reduced = "links collide as capsules and spheres, not meshes; on mjx only feet, hands, "
    reduced += f"hips and pelvis touch, at most {MJX_CONTACTS} contacts"
    return Task(
        domain="h1",
        name=name,
        model=model,
        observe=observe,
        reward=rules.reward,
        terminated=rules.terminated,
        episode={"body_pos": ("target",)} if reach else {},
        differences=reduced,
        mjx_floor=(*h1_body.MJX_ROBOT, *loose),
        mjx_obstacles=("floor", *obstacles.fixed, *loose),
        memory=rules.memory,
        remember=rules.remember,
        success=TASKS[name],
        starts=lambda seed: Starts(name, model, seed),
    )


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos, physics.qvel])


def _observe_reach(physics: Physics) -> jax.Array:
    hand, target = physics.sensors["left_hand_pos"], physics.episode["body_pos"][0]
    return jnp.concatenate([physics.qpos, physics.qvel, hand, target])  # m


class Starts:
    """Initial states: the keyframe with noise, and what else a task draws. See `InitialStates`."""

    control_timestep = TIMESTEP * SUBSTEPS  # s
    num_substeps = SUBSTEPS
    episode_length = EPISODE_LENGTH

    def __init__(self, name: str, model: mujoco.MjModel, seed: int):
        self._name, self._model, self._seed = name, model, seed

    def draw(self, index: int, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """As `InitialStates.draw`: always the same states of one seed and `index`."""
        random = np.random.default_rng([self._seed, index])
        noise = random.uniform(-NOISE, NOISE, (count, self._model.nq))
        qpos = self._model.key("start").qpos + noise
        if self._name == "sit_hard":  # before the chair, turned by up to 103 degrees
            turn = random.uniform(-1.8, 1.8, count) / 2
            qpos[:, :2] = random.uniform((0.2, -0.15), (0.4, 0.15), (count, 2))
            qpos[:, 3:7] = np.stack([np.cos(turn), 0 * turn, 0 * turn, np.sin(turn)], axis=1)
        episode = {}
        if self._name == "reach":
            low, high = h1_rewards.REACH_LOW, h1_rewards.REACH_HIGH
            episode["body_pos"] = random.uniform(low, high, (count, 1, 3))
        for joint in np.flatnonzero(self._model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
            # HumanoidBench's MuJoCo does so in the forward pass that follows its reset.
            first = self._model.jnt_qposadr[joint] + 3
            quaternion = qpos[:, first : first + 4]
            quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
        speeds = np.zeros((count, self._model.nv))
        return {"qpos": qpos, "qvel": speeds, "act": np.zeros((count, 0))}, episode

    def crowded(self, count: int) -> dict[str, np.ndarray]:
        """As `InitialStates.crowded`: anywhere among obstacles that stand along the way."""
        states, _ = self.draw(0, count)
        if self._name in h1_obstacles.ALONG_THE_WAY:
            low, high = CROWDED
            states["qpos"][:, :2] = np.random.default_rng(0).uniform(low, high, (count, 2))
        return states


def _world() -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.55, 0.7, 0.85),
        rgb2=(0.95, 0.97, 1),
        width=64,
        height=384,
    )
    spec.add_texture(
        name="tiles",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.8, 0.82, 0.84),
        rgb2=(0.72, 0.74, 0.76),
        width=128,
        height=128,
    )
    textures = [""] * mujoco.mjtTextureRole.mjNTEXROLE
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "tiles"
    spec.add_material(name="floor", textures=textures, texrepeat=(1, 1), texuniform=True)
    spec.add_numeric(name="max_contact_points", data=[MJX_CONTACTS], size=1)  # mjx alone reads it
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.25,) * 3, (0.25,) * 3
    spec.visual.headlight.specular = (0.1,) * 3
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 960
    light = spec.worldbody.add_light(pos=(-1, -1.7, 3.5), dir=(0.3, 0.5, -1))
    light.type, light.diffuse = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, (0.5, 0.5, 0.5)
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    spec.worldbody.add_geom(name="floor", type=plane, size=(20, 20, 1), material="floor")
    return spec


def _add_robot(spec: mujoco.MjSpec) -> None:
    pelvis = spec.worldbody.add_body(name="pelvis", pos=STAND)
    pelvis.add_freejoint(name="root")
    _set_inertia(pelvis, PELVIS_MASS, PELVIS_COM, PELVIS_AXES, PELVIS_INERTIA)
    _add_shapes(pelvis, "pelvis", "", 1)
    camera = pelvis.add_camera(name="side", pos=CAMERA, quat=_look(CAMERA, (0.2, 0, -0.15)))
    camera.mode = mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    for table, sides in ((LEG, ("left", "right")), (TORSO, ("",)), (ARM, ("left", "right"))):
        for side in sides:
            for name, link in table.items():
                _add_link(spec, name, link, side)
    for name, (link, place) in SITES.items():
        spec.body(link).add_site(name=name, pos=place)
    for pair in h1_body.OVERLAPS:
        for side in ("left", "right"):
            names = [n if n in ("pelvis", "torso") else f"{side}_{n}" for n in pair]
            spec.add_exclude(bodyname1=names[0], bodyname2=names[1])
    pose = [*STAND, 1, 0, 0, 0, *LEG_POSE, *LEG_POSE, *[0] * (len(TORSO) + 2 * len(ARM))]
    spec.add_key(name="start", qpos=pose)


def _look(place: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """The quaternion of a camera that looks from one place at another, upright. (4,)"""
    back = np.subtract(place, target) / np.linalg.norm(np.subtract(place, target))
    right = np.cross((0, 0, 1), back) / np.linalg.norm(np.cross((0, 0, 1), back))
    frame, quat = np.stack([right, np.cross(back, right), back], axis=1), np.empty(4)
    mujoco.mju_mat2Quat(quat, frame.ravel())
    return quat


def _add_link(spec: mujoco.MjSpec, name: str, link: Link, side: str) -> None:
    """Adds a link with its hinge and servo; side "" is the middle, "right" is mirrored."""
    sign = -1 if side == "right" else 1
    prefix = f"{side}_" if side else ""
    parent = link.parent if link.parent in ("pelvis", "torso") else prefix + link.parent
    turn = (link.turn[0], sign * link.turn[1], 0, 0)
    body = spec.body(parent).add_body(name=prefix + name, pos=_mirror(link.offset, sign), quat=turn)
    w, x, y, z = link.axes
    axes = (w, sign * x, y, sign * z)
    _set_inertia(body, link.mass, _mirror(link.com, sign), axes, link.inertia)
    servo, axis, *limits = link.joint
    if sign < 0 and axis != "y":
        limits = [-angle for angle in reversed(limits)]
    hinge = body.add_joint(name=prefix + name, axis=[float(axis == a) for a in "xyz"])
    hinge.range, hinge.damping, hinge.armature = limits, [DAMPING, 0, 0], ARMATURE
    stiffness, damping, force = SERVOS[servo]
    actuator = spec.add_actuator(name=prefix + name, target=prefix + name)
    actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
    actuator.set_to_position(kp=stiffness, kv=damping)
    actuator.ctrlrange, actuator.forcerange = limits, (-force, force)
    _add_shapes(body, name, prefix, sign)


def _add_shapes(body, link: str, prefix: str, sign: int) -> None:
    look = LIGHT if link in ("torso", "knee", "elbow") else DARK
    for suffix, (radius, place) in h1_body.SHAPES[link].items():
        if len(place) == 3:
            where, kind = {"pos": _mirror(place, sign)}, mujoco.mjtGeom.mjGEOM_SPHERE
        else:
            ends = (*_mirror(place[:3], sign), *_mirror(place[3:], sign))
            where, kind = {"fromto": ends}, mujoco.mjtGeom.mjGEOM_CAPSULE
        name = prefix + link + suffix
        body.add_geom(name=name, type=kind, size=(radius, 0, 0), rgba=look, **where)


def _mirror(place: tuple[float, ...], sign: int) -> tuple[float, float, float]:
    return place[0], sign * place[1], place[2]


def _set_inertia(body, mass: float, com: tuple, axes: tuple, inertia: tuple) -> None:
    body.mass, body.ipos, body.iquat, body.inertia = mass, com, axes, inertia
    body.explicitinertial = True


def _add_sensors(spec: mujoco.MjSpec, obstacles: h1_obstacles.Obstacles) -> None:
    """What observations, rewards and terminations read."""
    add_frame_sensors(spec, "site", ("head", "imu", "left_foot", "right_foot", "left_hand"), "pos")
    add_frame_sensors(spec, "body", ("pelvis",), "quat", "zaxis", "pos")
    add_frame_sensors(spec, "body", ("torso",), "zaxis")
    add_frame_sensors(spec, "body", obstacles.bodies, "pos")
    kinds = mujoco.mjtSensor
    spec.add_sensor(
        name="velocity",  # of the centre of mass, m/s
        type=kinds.mjSENS_SUBTREELINVEL,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname="pelvis",
    )
    for actuator in spec.actuators:
        spec.add_sensor(
            name=f"force_{actuator.name}",  # N m
            type=kinds.mjSENS_ACTUATORFRC,
            objtype=mujoco.mjtObj.mjOBJ_ACTUATOR,
            objname=actuator.name,
        )
    for name, (first, second) in obstacles.touches.items():
        # How many contacts a geom has, with all others or with one.
        sensor = spec.add_sensor(name=name, type=kinds.mjSENS_CONTACT, intprm=[1, 0, 1])
        sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_GEOM, first
        if second:
            sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_GEOM, second
