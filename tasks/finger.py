"""The finger domain: spin a hinged body, or turn it to a target (dm_control/suite/finger.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import read_spec

SPIN_VELOCITY = 15.0  # rad/s, hinge speed from which spinning is rewarded
SPIN_DAMPING = 0.03  # N m s/rad, of the hinge while spinning; the model's own is larger
TASKS = {"spin": None, "turn_easy": 0.07, "turn_hard": 0.03}  # task -> radius of the target, m
XZ = jnp.array([0, 2])


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS. An episode of turn_* places the target."""
    radius, model = TASKS[name], read_spec("finger").compile()
    if radius is None:
        model.dof_damping[model.joint("hinge").dofadr] = SPIN_DAMPING
        return Task("finger", name, model, _observe, _spin_reward)
    return Task(
        domain="finger",
        name=name,
        model=model,
        observe=lambda physics: _observe_target(physics, radius),
        reward=lambda physics: (target_distance(physics, radius) <= 0).astype(jnp.float32),
        episode={"site_pos": ("target",)},
    )


def from_hinge(physics: Physics, sensor: str) -> jax.Array:
    """Position of the `tip` or the `target` relative to the hinge, world x and z, m. (2,)"""
    return (physics.sensors[sensor] - physics.sensors["spinner"])[XZ]


def target_distance(physics: Physics, radius: float) -> jax.Array:
    """From the tip to the target's surface, m; negative inside. ()"""
    return jnp.linalg.norm(from_hinge(physics, "target") - from_hinge(physics, "tip")) - radius


def _read(physics: Physics, *names: str) -> jax.Array:
    return jnp.concatenate([physics.sensors[name] for name in names])


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate(
        [
            _read(physics, "proximal", "distal"),  # joint angles, rad
            from_hinge(physics, "tip"),
            _read(physics, "proximal_velocity", "distal_velocity", "hinge_velocity"),
            jnp.log1p(_read(physics, "touchtop", "touchbottom")),
        ]
    )


def _observe_target(physics: Physics, radius: float) -> jax.Array:
    target, distance = from_hinge(physics, "target"), target_distance(physics, radius)
    return jnp.concatenate([_observe(physics), target, distance[None]])


def _spin_reward(physics: Physics) -> jax.Array:
    return (physics.sensors["hinge_velocity"][0] <= -SPIN_VELOCITY).astype(jnp.float32)
