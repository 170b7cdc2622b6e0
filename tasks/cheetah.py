"""The cheetah domain: a planar two-legged body runs (dm_control/suite/cheetah.py)."""

import math

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import read_spec
from tasks.rewards import tolerance

TASKS = {"run": 10.0}  # task -> target speed, m/s


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    return Task(
        domain="cheetah",
        name=name,
        model=read_spec("cheetah").compile(),
        observe=_observe,
        reward=lambda physics: _reward(physics, TASKS[name]),
    )


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos[1:], physics.qvel])  # without the horizontal position


def _reward(physics: Physics, speed: float) -> jax.Array:
    forward = physics.sensors["torso_subtreelinvel"][0]
    return tolerance(forward, (speed, math.inf), speed, "linear", value_at_margin=0)
