"""The cartpole domain: balance a pole, or swing it up first (dm_control/suite/cartpole.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task, add_frame_sensors, read_spec
from tasks.rewards import small_control, tolerance

CART_BOUNDS = (-0.25, 0.25)  # m, where the sparse reward wants the cart
COSINE_BOUNDS = (0.995, 1.0)  # cosine of the pole's angle that the sparse reward wants
# task -> whether the reward is sparse; balance and swingup differ in their initial states only
TASKS = {"balance": False, "balance_sparse": True, "swingup": False, "swingup_sparse": True}


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = read_spec("cartpole")
    add_frame_sensors(spec, "body", ("pole_1",), "zaxis")
    return Task(
        domain="cartpole",
        name=name,
        model=spec.compile(),
        observe=_observe,
        reward=_sparse_reward if TASKS[name] else _reward,
    )


def cart_position(physics: Physics) -> jax.Array:
    """Position of the cart on its rail, m. ()"""
    return physics.qpos[0]


def pole_cosine(physics: Physics) -> jax.Array:
    """Cosine of the pole's angle to the vertical. ()"""
    return physics.sensors["pole_1_zaxis"][2]


def _observe(physics: Physics) -> jax.Array:
    pole = physics.sensors["pole_1_zaxis"]
    position = jnp.stack([cart_position(physics), pole[2], pole[0]])
    return jnp.concatenate([position, physics.qvel])


def _sparse_reward(physics: Physics) -> jax.Array:
    centred = tolerance(cart_position(physics), CART_BOUNDS)
    return centred * tolerance(pole_cosine(physics), COSINE_BOUNDS)


def _reward(physics: Physics) -> jax.Array:
    upright = (pole_cosine(physics) + 1) / 2
    centred = (1 + tolerance(cart_position(physics), margin=2)) / 2
    control = (4 + small_control(physics.ctrl)) / 5
    slow = (1 + tolerance(physics.qvel[1:], margin=5).min()) / 2
    return upright * control * slow * centred
