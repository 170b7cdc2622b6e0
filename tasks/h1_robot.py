"""The H1 in an empty world: a MuJoCo specification, from h1_body.py's and h1_shapes.py's tables."""

import mujoco
import numpy as np

from tasks import h1_body, h1_shapes
from tasks.h1_body import ARM, LEG, LEG_POSE, STAND, TORSO, Link

MJX_CONTACTS = 32  # the deepest that are kept
CAMERA = (2.3, -2.9, 0.7)  # m, from the pelvis
DARK, LIGHT = (0.13, 0.13, 0.14, 1), (0.75, 0.76, 0.78, 1)


def world(timestep: float) -> mujoco.MjSpec:
    """A floor under a sky. timestep: of the physics, s."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = timestep
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


def add(spec: mujoco.MjSpec) -> None:
    """Adds the robot with its servos, its side camera and the keyframe that episodes start from."""
    pelvis = spec.worldbody.add_body(name="pelvis", pos=STAND)
    pelvis.add_freejoint(name="root")
    _set_inertia(
        pelvis, h1_body.PELVIS_MASS, h1_body.PELVIS_COM, h1_body.PELVIS_AXES, h1_body.PELVIS_INERTIA
    )
    _add_shapes(pelvis, "pelvis", "", 1)
    camera = pelvis.add_camera(name="side", pos=CAMERA, quat=_look(CAMERA, (0.2, 0, -0.15)))
    camera.mode = mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    for table, sides in ((LEG, ("left", "right")), (TORSO, ("",)), (ARM, ("left", "right"))):
        for side in sides:
            for name, link in table.items():
                _add_link(spec, name, link, side)
    for name, (link, place) in h1_body.SITES.items():
        spec.body(link).add_site(name=name, pos=place)
    for pair in h1_shapes.OVERLAPS:
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
    hinge.range, hinge.damping, hinge.armature = limits, [h1_body.DAMPING, 0, 0], h1_body.ARMATURE
    stiffness, damping, force = h1_body.SERVOS[servo]
    actuator = spec.add_actuator(name=prefix + name, target=prefix + name)
    actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
    actuator.set_to_position(kp=stiffness, kv=damping)
    actuator.ctrlrange, actuator.forcerange = limits, (-force, force)
    _add_shapes(body, name, prefix, sign)


def _add_shapes(body, link: str, prefix: str, sign: int) -> None:
    look = LIGHT if link in ("torso", "knee", "elbow") else DARK
    for suffix, (radius, place) in h1_shapes.SHAPES[link].items():
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
