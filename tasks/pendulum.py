"""The pendulum domain: swing up with a weak motor (dm_control/suite/pendulum.py)."""

import math

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import tolerance

UPRIGHT = (math.cos(math.radians(8)), 1.0)  # cosine of the pole's angle that counts as upright
TASKS = {"swingup": None}


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = read_spec("pendulum")
    add_frame_sensors(spec, "body", ("pole",), "zaxis")
    return Task(
        domain="pendulum", name=name, model=spec.compile(), observe=_observe, reward=_reward
    )


def _observe(physics: Physics) -> jax.Array:
    pole = physics.sensors["pole_zaxis"]
    return jnp.concatenate([jnp.stack([pole[2], pole[0]]), physics.qvel])


def _reward(physics: Physics) -> jax.Array:
    return tolerance(physics.sensors["pole_zaxis"][2], UPRIGHT)
