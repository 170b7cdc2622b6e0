"""The stacker domain: a planar arm brings a box to a target (dm_control/suite/stacker.py)."""

import math

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.manipulator import CLOSE, add_site_sensors, observe_arm, pose, site_distance
from tasks.models import add_frame_sensors, joint_addresses, read_spec
from tasks.rewards import tolerance

TASKS = {"stack_2": 2, "stack_4": 4}  # task -> boxes
HAND_AWAY = 0.1  # m, distance of the hand from the target for full reward


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS. An episode places the target."""
    boxes = tuple(f"box{i}" for i in range(TASKS[name]))
    spec = read_spec("stacker", "make_model", n_boxes=len(boxes))
    add_frame_sensors(spec, "body", ("hand", *boxes), "pos", "quat")
    add_frame_sensors(spec, "body", ("target",), "pos")
    add_site_sensors(spec, ("grasp", "target", *boxes))
    model = spec.compile()
    arm = observe_arm(model)
    _, speeds = joint_addresses(model, [f"{box}_{i}" for box in boxes for i in "xyz"])
    size = model.geom("target").size[0]

    def observe(physics: Physics) -> jax.Array:
        poses = [pose(physics, box) for box in boxes]
        target = physics.sensors["target_pos"][jnp.array([0, 2])]
        return jnp.concatenate([arm(physics), *poses, physics.qvel[speeds], target])

    return Task(
        domain="stacker",
        name=name,
        model=model,
        observe=observe,
        reward=lambda physics: _reward(physics, boxes, size),
        episode={"body_pos": ("target",)},
    )


def _reward(physics: Physics, boxes: tuple[str, ...], size: float) -> jax.Array:
    nearest = jnp.stack([site_distance(physics, box, "target") for box in boxes]).min()
    hand = site_distance(physics, "grasp", "target")
    away = tolerance(hand, (HAND_AWAY, math.inf), margin=CLOSE)
    return tolerance(nearest, margin=2 * size) * away
