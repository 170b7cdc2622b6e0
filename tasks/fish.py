"""The fish domain: keep upright, or swim to a target (dm_control/suite/fish.py)."""

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, joint_addresses, read_spec
from tasks.rewards import tolerance

TASKS = ("upright", "swim")
JOINTS = ("tail1", "tail_twist", "tail2", "finright_roll", "finright_pitch")
JOINTS += ("finleft_roll", "finleft_pitch")


def load(name: str) -> Task:
    """Returns the task called `name`, one of TASKS. An episode of swim places the target."""
    spec = read_spec("fish")
    add_frame_sensors(spec, "body", ("torso",), "zaxis")
    add_frame_sensors(spec, "geom", ("mouth",), "pos", "xaxis", "yaxis", "zaxis")
    add_frame_sensors(spec, "geom", ("target",), "pos")
    model = spec.compile()
    angles, _ = joint_addresses(model, JOINTS)
    radii = model.geom("mouth").size[0] + model.geom("target").size[0]
    swim = name == "swim"
    return Task(
        domain="fish",
        name=name,
        model=model,
        observe=lambda physics: _observe(physics, angles, swim),
        reward=(lambda physics: _swim_reward(physics, radii)) if swim else _upright_reward,
        episode={"geom_pos": ("target",)} if swim else {},
    )


def upright(physics: Physics) -> jax.Array:
    """Cosine of the angle between the torso's z-axis and the world's. ()"""
    return physics.sensors["torso_zaxis"][2]


def mouth_to_target(physics: Physics) -> jax.Array:
    """From the mouth to the target in the mouth's frame, m. (3,)"""
    axes = jnp.stack([physics.sensors[f"mouth_{axis}axis"] for axis in "xyz"])
    return axes @ (physics.sensors["target_pos"] - physics.sensors["mouth_pos"])


def _observe(physics: Physics, angles: np.ndarray, swim: bool) -> jax.Array:
    target = [mouth_to_target(physics)] if swim else []
    entries = [physics.qpos[angles], upright(physics)[None], *target, physics.qvel]
    return jnp.concatenate(entries)


def _upright_reward(physics: Physics) -> jax.Array:
    return tolerance(upright(physics), (1, 1), margin=1)


def _swim_reward(physics: Physics, radii: float) -> jax.Array:
    distance = jnp.linalg.norm(mouth_to_target(physics))
    near = tolerance(distance, (0, radii), margin=2 * radii)
    return (7 * near + (upright(physics) + 1) / 2) / 8
