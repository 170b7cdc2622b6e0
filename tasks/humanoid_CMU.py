"""The humanoid_CMU domain: stand, walk or run with 56 joints (dm_control/suite/humanoid_CMU.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.humanoid import RUN_SPEED, WALK_SPEED, locomotion_reward
from tasks.models import add_frame_sensors, read_spec

# task -> target speed in m/s
TASKS = {"stand": 0.0, "walk": WALK_SPEED, "run": RUN_SPEED}
EXTREMITIES = ("lhand", "lfoot", "rhand", "rfoot")
# What touches the floor on mjx, where all pairs would be 4,684 rows of constraints.
LIMBS = ("foot0", "foot1", "foot2", "toes0", "toes1", "toes2", "tibia", "femur")
LIMBS += ("hand", "wrist", "radius", "humerus")
MJX_FLOOR = tuple(side + limb for side in "lr" for limb in LIMBS)
MJX_FLOOR += ("root_geom", "lowerback", "thorax", "head")


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    speed = TASKS[name]
    spec = read_spec("humanoid_CMU")
    add_frame_sensors(spec, "body", ("thorax",), "pos", "xaxis", "yaxis", "zaxis")
    add_frame_sensors(spec, "body", ("head", *EXTREMITIES), "pos")
    return Task(
        domain="humanoid_CMU",
        name=name,
        model=spec.compile(),
        observe=_observe,
        reward=lambda physics: _reward(physics, speed),
        mjx_floor=MJX_FLOOR,
        differences=f"on mjx only {len(MJX_FLOOR)} geoms (limbs, trunk, head) touch the floor, and "
        "nothing else touches",
    )


def head_height(physics: Physics) -> jax.Array:
    """Height of the head above the floor, m. ()"""
    return physics.sensors["head_pos"][2]


def thorax_frame(physics: Physics) -> jax.Array:
    """Rotation from the thorax's frame to the world's: columns are the thorax's axes. (3, 3)"""
    return jnp.stack([physics.sensors[f"thorax_{axis}axis"] for axis in "xyz"], axis=1)


def com_velocity(physics: Physics) -> jax.Array:
    """Velocity of the thorax's subtree's centre of mass in the world's frame, m/s. (3,)"""
    return physics.sensors["thorax_subtreelinvel"]


def extremities(physics: Physics) -> jax.Array:
    """Hands and feet relative to the thorax, in the thorax's frame, m. (12,)"""
    ends = jnp.stack([physics.sensors[f"{name}_pos"] for name in EXTREMITIES])  # (4, 3)
    return ((ends - physics.sensors["thorax_pos"]) @ thorax_frame(physics)).ravel()


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate(
        [
            physics.qpos[7:],  # joint angles, rad
            head_height(physics)[None],
            extremities(physics),
            thorax_frame(physics)[2],  # vertical components of the thorax's axes
            com_velocity(physics),
            physics.qvel,
        ]
    )


def _reward(physics: Physics, speed: float) -> jax.Array:
    upright = thorax_frame(physics)[2, 1]  # this model's y-axis points to the head
    return locomotion_reward(
        head_height(physics), upright, com_velocity(physics), physics.ctrl, speed
    )
