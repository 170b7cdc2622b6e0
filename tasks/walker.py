"""The walker domain: a planar biped stands, walks or runs (dm_control/suite/walker.py)."""

import math

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import tolerance

STAND_HEIGHT = 1.2  # m, torso height from which standing counts in full
TASKS = {"stand": 0.0, "walk": 1.0, "run": 8.0}  # task -> target speed, m/s
BODIES = (
    "torso",
    "right_thigh",
    "right_leg",
    "right_foot",
    "left_thigh",
    "left_leg",
    "left_foot",
)


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = read_spec("walker")
    add_frame_sensors(spec, "body", BODIES, "xaxis", "zaxis")
    add_frame_sensors(spec, "body", ("torso",), "pos")
    return Task(
        domain="walker",
        name=name,
        model=spec.compile(),
        observe=_observe,
        reward=lambda physics: _reward(physics, TASKS[name]),
    )


def torso_height(physics: Physics) -> jax.Array:
    """Height of the torso's origin above the floor, m. ()"""
    return physics.sensors["torso_pos"][2]


def orientations(physics: Physics) -> jax.Array:
    """World x components of every body's x and z axis, body by body. (14,)"""
    axes = [physics.sensors[f"{body}_{axis}axis"][0] for body in BODIES for axis in "xz"]
    return jnp.stack(axes)


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([orientations(physics), torso_height(physics)[None], physics.qvel])


def _reward(physics: Physics, speed: float) -> jax.Array:
    standing = tolerance(torso_height(physics), (STAND_HEIGHT, math.inf), STAND_HEIGHT / 2)
    upright = (1 + physics.sensors["torso_zaxis"][2]) / 2
    stand = (3 * standing + upright) / 4
    if speed == 0:
        return stand
    forward = physics.sensors["torso_subtreelinvel"][0]
    move = tolerance(forward, (speed, math.inf), speed / 2, "linear", value_at_margin=0.5)
    return stand * (5 * move + 1) / 6
