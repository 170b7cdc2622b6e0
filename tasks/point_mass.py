"""The point_mass domain: push a planar mass to the middle (dm_control/suite/point_mass.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import small_control, tolerance

TASKS = ("easy", "hard")  # on `hard` an episode draws along which directions the controls push
FIXED = "the tendons' coefficients, which an episode draws, cannot differ by environment there"


def load(name: str) -> Task:
    """Returns the task called `name`, one of TASKS."""
    spec = read_spec("point_mass")
    add_frame_sensors(spec, "geom", ("target", "pointmass"), "pos")
    model = spec.compile()
    radius = model.geom("target").size[0]
    hard = name == "hard"
    return Task(
        domain="point_mass",
        name=name,
        model=model,
        observe=_observe,
        reward=lambda physics: _reward(physics, radius),
        episode={"wrap_prm": ()} if hard else {},  # the two tendons' coefficients
        cannot=dict.fromkeys(("mjx", "warp"), FIXED) if hard else {},
    )


def mass_to_target(physics: Physics) -> jax.Array:
    """From the mass to the target in the world's frame, m. (3,)"""
    return physics.sensors["target_pos"] - physics.sensors["pointmass_pos"]


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos, physics.qvel])


def _reward(physics: Physics, radius: float) -> jax.Array:
    distance = jnp.linalg.norm(mass_to_target(physics))
    near = tolerance(distance, (0, radius), margin=radius)
    return near * (4 + small_control(physics.ctrl)) / 5
