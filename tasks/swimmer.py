"""The swimmer domain: bring a planar chain's nose to a target (dm_control/suite/swimmer.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import read_spec
from tasks.rewards import tolerance

TASKS = {"swimmer6": 6, "swimmer15": 15}  # task -> links


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS. An episode places the target."""
    links = TASKS[name]
    spec = read_spec("swimmer", n_joints=links)
    model = spec.compile()
    radius = model.geom("target").size[0]
    return Task(
        domain="swimmer",
        name=name,
        model=model,
        observe=lambda physics: _observe(physics, links),
        reward=lambda physics: _reward(physics, radius),
        episode={"geom_pos": ("target",)},
    )


def nose_to_target(physics: Physics) -> jax.Array:
    """From the nose to the target in the head's frame, x and y, m. (2,)"""
    axes = jnp.stack([physics.sensors["head_xaxis"], physics.sensors["head_yaxis"]])
    return axes @ (physics.sensors["target_pos"] - physics.sensors["nose_pos"])


def body_velocities(physics: Physics, links: int) -> jax.Array:
    """Of each link in its own frame: x and y speeds, m/s, and turning rate, rad/s. (3 links,)"""
    names = [("head_vel", "head_gyro")]
    names += [(f"velocimeter_{i}", f"gyro_{i}") for i in range(links - 1)]
    rows = [(physics.sensors[v][:2], physics.sensors[w][2:]) for v, w in names]
    return jnp.concatenate([part for row in rows for part in row])


def _observe(physics: Physics, links: int) -> jax.Array:
    bends = physics.qpos[3:]  # rad; the first three place the head
    return jnp.concatenate([bends, nose_to_target(physics), body_velocities(physics, links)])


def _reward(physics: Physics, radius: float) -> jax.Array:
    distance = jnp.linalg.norm(nose_to_target(physics))
    return tolerance(distance, (0, radius), 5 * radius, "long_tail")
