"""The manipulator domain: a planar arm brings a ball or a peg to its target, or inserts it.

Source: dm_control/suite/manipulator.py. tasks/stacker.py has the same arm.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, joint_addresses, read_spec
from tasks.rewards import tolerance

CLOSE = 0.01  # m, below which two things are at the same place
# task -> (object, what the target is an opening in, if it is one)
TASKS = {
    "bring_ball": ("ball", None),
    "bring_peg": ("peg", None),
    "insert_ball": ("ball", "cup"),
    "insert_peg": ("peg", "slot"),
}
ARM_JOINTS = ("arm_root", "arm_shoulder", "arm_elbow", "arm_wrist")
ARM_JOINTS += ("finger", "fingertip", "thumb", "thumbtip")
TOUCH = ("palm_touch", "finger_touch", "thumb_touch", "fingertip_touch", "thumbtip_touch")
GRIPS = {"grasp": "peg_grasp", "pinch": "peg_pinch"}  # a place on the hand -> where it holds a peg


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS. An episode places the target."""
    thing, receptacle = TASKS[name]
    target, peg = f"target_{thing}", thing == "peg"
    spec = read_spec("manipulator", "make_model", use_peg=peg, insert=receptacle is not None)
    add_frame_sensors(spec, "body", ("hand", thing, target), "pos", "quat")
    sites = ("peg", "target_peg", "peg_tip", "target_peg_tip", *GRIPS, *GRIPS.values())
    add_site_sensors(spec, sites if peg else ("ball", "target_ball"))
    model = spec.compile()
    arm, joints = observe_arm(model), joint_addresses(model, [f"{thing}_{i}" for i in "xzy"])

    def observe(physics: Physics) -> jax.Array:
        placed = [physics.qvel[joints[1]], pose(physics, target)]
        return jnp.concatenate([arm(physics), pose(physics, thing), *placed])

    bodies = (target, receptacle) if receptacle else (target,)
    tie = "where the ball starts in the cup (1 reset in 20) mjx and warp may miss its touch, "
    tie += "1e-17 m deep, for the first physics step"
    return Task(
        domain="manipulator",
        name=name,
        model=model,
        observe=observe,
        reward=_peg_reward if peg else _ball_reward,
        episode={"body_pos": bodies, "body_quat": bodies},
        differences=tie if receptacle == "cup" else "",
    )


def add_site_sensors(spec: mujoco.MjSpec, sites: tuple[str, ...]) -> None:
    """Adds positions `{site}_site_pos`: here sites have the names of bodies."""
    for site in sites:
        spec.add_sensor(
            name=f"{site}_site_pos",
            type=mujoco.mjtSensor.mjSENS_FRAMEPOS,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname=site,
        )


def site_distance(physics: Physics, a: str, b: str) -> jax.Array:
    """Distance between two sites, m. ()"""
    return jnp.linalg.norm(physics.sensors[f"{a}_site_pos"] - physics.sensors[f"{b}_site_pos"])


def pose(physics: Physics, body: str) -> jax.Array:
    """Place of a body in the arm's plane: world x and z, m; w and y of its quaternion. (4,)"""
    position, quaternion = physics.sensors[f"{body}_pos"], physics.sensors[f"{body}_quat"]
    return jnp.stack([position[0], position[2], quaternion[0], quaternion[2]])


def observe_arm(model: mujoco.MjModel) -> Callable[[Physics], jax.Array]:
    """Returns Physics -> the arm's joints as (sin, cos), their speeds, touch, the hand's pose."""
    angles, speeds = joint_addresses(model, ARM_JOINTS)

    def observe(physics: Physics) -> jax.Array:
        angle = physics.qpos[angles]
        bounded = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=1).ravel()
        touch = jnp.concatenate([physics.sensors[name] for name in TOUCH])
        return jnp.concatenate(
            [bounded, physics.qvel[speeds], jnp.log1p(touch), pose(physics, "hand")]
        )

    return observe


def _close(physics: Physics, a: str, b: str) -> jax.Array:
    return tolerance(site_distance(physics, a, b), (0, CLOSE), margin=2 * CLOSE)


def _ball_reward(physics: Physics) -> jax.Array:
    return _close(physics, "ball", "target_ball")


def _peg_reward(physics: Physics) -> jax.Array:
    grasping = sum(_close(physics, held, hand) for hand, held in GRIPS.items()) / 2
    ends = (("peg", "target_peg"), ("peg_tip", "target_peg_tip"))
    bringing = sum(_close(physics, *pair) for pair in ends) / 2
    return jnp.maximum(bringing, grasping / 3)
