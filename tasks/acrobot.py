"""The acrobot domain: swing two links up, driven at the elbow (dm_control/suite/acrobot.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import tolerance

LINKS = ("upper_arm", "lower_arm")
TASKS = {"swingup": 1.0, "swingup_sparse": 0.0}  # task -> margin around the target, m


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = read_spec("acrobot")
    add_frame_sensors(spec, "body", LINKS, "zaxis")
    add_frame_sensors(spec, "site", ("tip", "target"), "pos")
    model = spec.compile()
    radius = float(model.site("target").size[0])
    return Task(
        domain="acrobot",
        name=name,
        model=model,
        observe=_observe,
        reward=lambda physics: tolerance(to_target(physics), (0, radius), TASKS[name]),
    )


def to_target(physics: Physics) -> jax.Array:
    """Distance from the tip to the target, m. ()"""
    return jnp.linalg.norm(physics.sensors["target_pos"] - physics.sensors["tip_pos"])


def _observe(physics: Physics) -> jax.Array:
    axes = jnp.stack([physics.sensors[f"{link}_zaxis"] for link in LINKS])  # (2, 3)
    return jnp.concatenate([axes[:, 0], axes[:, 2], physics.qvel])
