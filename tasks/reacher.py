"""The reacher domain: bring a two-link arm's finger to a target (dm_control/suite/reacher.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import tolerance

TASKS = {"easy": 0.05, "hard": 0.015}  # task -> radius of the target, m


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS. An episode places the target."""
    spec = read_spec("reacher")
    add_frame_sensors(spec, "geom", ("target", "finger"), "pos")
    model = spec.compile()
    radii = TASKS[name] + model.geom("finger").size[0]
    return Task(
        domain="reacher",
        name=name,
        model=model,
        observe=_observe,
        reward=lambda physics: tolerance(jnp.linalg.norm(finger_to_target(physics)), (0, radii)),
        episode={"geom_pos": ("target",)},
    )


def finger_to_target(physics: Physics) -> jax.Array:
    """From the finger to the target, world x and y, m. (2,)"""
    return (physics.sensors["target_pos"] - physics.sensors["finger_pos"])[:2]


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos, finger_to_target(physics), physics.qvel])
