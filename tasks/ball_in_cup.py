"""The ball_in_cup domain: catch a ball that hangs on a string (dm_control/suite/ball_in_cup.py)."""

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec

TASKS = ("catch",)


def load(name: str) -> Task:
    """Returns the task called `name`, one of TASKS."""
    spec = read_spec("ball_in_cup")
    add_frame_sensors(spec, "site", ("target",), "pos")
    add_frame_sensors(spec, "body", ("ball",), "pos")
    model = spec.compile()
    # Half sizes of the target box in x and z, less the ball's radius, m.
    room = model.site("target").size[[0, 2]] - model.geom("ball").size[0]
    return Task(
        domain="ball_in_cup",
        name=name,
        model=model,
        observe=_observe,
        reward=lambda physics: _reward(physics, room),
    )


def ball_to_target(physics: Physics) -> jax.Array:
    """From the ball to the middle of the cup, world x and z, m. (2,)"""
    return (physics.sensors["target_pos"] - physics.sensors["ball_pos"])[jnp.array([0, 2])]


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos, physics.qvel])


def _reward(physics: Physics, room: np.ndarray) -> jax.Array:
    return jnp.all(jnp.abs(ball_to_target(physics)) < room).astype(jnp.float32)
