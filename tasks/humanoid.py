"""The humanoid domain: stand, walk or run with 21 joints (dm_control/suite/humanoid.py)."""

import math

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import small_control, tolerance

STAND_HEIGHT = 1.4  # m, head height from which standing counts in full
WALK_SPEED = 1.0  # m/s, horizontal speed of the centre of mass for full reward
RUN_SPEED = 10.0  # m/s

# task -> (target speed in m/s, whether the observation is the bare state)
TASKS = {
    "stand": (0.0, False),
    "walk": (WALK_SPEED, False),
    "run": (RUN_SPEED, False),
    "run_pure_state": (RUN_SPEED, True),
}
EXTREMITIES = ("left_hand", "left_foot", "right_hand", "right_foot")


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    speed, pure_state = TASKS[name]
    spec = read_spec("humanoid")
    add_frame_sensors(spec, "body", ("torso",), "pos", "xaxis", "yaxis", "zaxis")
    add_frame_sensors(spec, "body", ("head", *EXTREMITIES), "pos")
    return Task(
        domain="humanoid",
        name=name,
        model=spec.compile(),
        observe=_observe_state if pure_state else _observe,
        reward=lambda physics: _reward(physics, speed),
    )


def head_height(physics: Physics) -> jax.Array:
    """Height of the head above the floor, m. ()"""
    return physics.sensors["head_pos"][2]


def torso_frame(physics: Physics) -> jax.Array:
    """Rotation from the torso's frame to the world's: columns are the torso's axes. (3, 3)"""
    return jnp.stack([physics.sensors[f"torso_{axis}axis"] for axis in "xyz"], axis=1)


def com_velocity(physics: Physics) -> jax.Array:
    """Velocity of the centre of mass in the world's frame, m/s. (3,)"""
    return physics.sensors["torso_subtreelinvel"]


def extremities(physics: Physics) -> jax.Array:
    """Hands and feet relative to the torso, in the torso's frame, m. (12,)"""
    ends = jnp.stack([physics.sensors[f"{name}_pos"] for name in EXTREMITIES])  # (4, 3)
    return ((ends - physics.sensors["torso_pos"]) @ torso_frame(physics)).ravel()


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate(
        [
            physics.qpos[7:],  # joint angles, rad
            head_height(physics)[None],
            extremities(physics),
            torso_frame(physics)[2],  # vertical components of the torso's axes
            com_velocity(physics),
            physics.qvel,
        ]
    )


def _observe_state(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos, physics.qvel])


def _reward(physics: Physics, speed: float) -> jax.Array:
    upright = torso_frame(physics)[2, 2]
    return locomotion_reward(
        head_height(physics), upright, com_velocity(physics), physics.ctrl, speed
    )


def locomotion_reward(
    height: jax.Array, upright: jax.Array, velocity: jax.Array, ctrl: jax.Array, speed: float
) -> jax.Array:
    """Returns the reward of both humanoids: for standing, times moving, times little control. ()

    Args:
      height: of the head, m. ()
      upright: vertical component of the axis that points from the trunk to the head. ()
      velocity: of the centre of mass in the world's frame, m/s. (3,)
      ctrl: (A,), in [-1, 1].
      speed: the target, m/s; 0 rewards standing still.
    """
    standing = tolerance(height, (STAND_HEIGHT, math.inf), STAND_HEIGHT / 4)
    straight = tolerance(upright, (0.9, math.inf), margin=1.9, value_at_margin=0, sigmoid="linear")
    control = (4 + small_control(ctrl)) / 5
    horizontal = velocity[:2]
    if speed == 0:
        move = tolerance(horizontal, margin=2).mean()
    else:
        reached = tolerance(
            jnp.linalg.norm(horizontal), (speed, math.inf), speed, "linear", value_at_margin=0
        )
        move = (5 * reached + 1) / 6
    return control * standing * straight * move
