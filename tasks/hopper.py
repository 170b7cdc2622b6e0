"""The hopper domain: a planar one-legged body stands or hops (dm_control/suite/hopper.py)."""

import math

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import small_control, tolerance

STAND_HEIGHT = (0.6, 2.0)  # m, height of the torso over the foot that counts as standing
HOP_SPEED = 2.0  # m/s
TASKS = {"stand": False, "hop": True}  # task -> whether it must hop


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = read_spec("hopper")
    add_frame_sensors(spec, "inertial", ("torso", "foot"), "pos")
    return Task(
        domain="hopper",
        name=name,
        model=spec.compile(),
        observe=_observe,
        reward=lambda physics: _reward(physics, TASKS[name]),
    )


def height(physics: Physics) -> jax.Array:
    """Height of the torso's centre of mass over the foot's, m. ()"""
    return physics.sensors["torso_pos"][2] - physics.sensors["foot_pos"][2]


def touch(physics: Physics) -> jax.Array:
    """Logarithm of one plus the contact forces (N) at toe and heel. (2,)"""
    forces = [physics.sensors["touch_toe"], physics.sensors["touch_heel"]]
    return jnp.log1p(jnp.concatenate(forces))


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos[1:], physics.qvel, touch(physics)])


def _reward(physics: Physics, hop: bool) -> jax.Array:
    standing = tolerance(height(physics), STAND_HEIGHT)
    if not hop:
        return standing * (small_control(physics.ctrl) + 4) / 5
    forward = physics.sensors["torso_subtreelinvel"][0]
    bounds = (HOP_SPEED, math.inf)
    return standing * tolerance(forward, bounds, HOP_SPEED / 2, "linear", value_at_margin=0.5)
