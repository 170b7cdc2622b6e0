"""The cartpole domain: balance a chain of poles, or swing it up (dm_control/suite/cartpole.py)."""

import jax
import jax.numpy as jnp

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import small_control, tolerance

CART_BOUNDS = (-0.25, 0.25)  # m, where the sparse reward wants the cart
COSINE_BOUNDS = (0.995, 1.0)  # cosine of the pole's angle that the sparse reward wants
# task -> (poles, whether the reward is sparse); balance and swingup differ in where they start
TASKS = {
    "balance": (1, False),
    "balance_sparse": (1, True),
    "swingup": (1, False),
    "swingup_sparse": (1, True),
    "two_poles": (2, False),
    "three_poles": (3, False),
}


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    count, sparse = TASKS[name]
    poles = tuple(f"pole_{i + 1}" for i in range(count))
    spec = read_spec("cartpole", num_poles=count)
    add_frame_sensors(spec, "body", poles, "zaxis")
    return Task(
        domain="cartpole",
        name=name,
        model=spec.compile(),
        observe=lambda physics: _observe(physics, poles),
        reward=lambda physics: (_sparse_reward if sparse else _reward)(physics, poles),
    )


def cart_position(physics: Physics) -> jax.Array:
    """Position of the cart on its rail, m. ()"""
    return physics.qpos[0]


def pole_axes(physics: Physics, poles: tuple[str, ...]) -> jax.Array:
    """Unit vectors along the poles in the world's frame. (poles, 3)"""
    return jnp.stack([physics.sensors[f"{pole}_zaxis"] for pole in poles])


def _observe(physics: Physics, poles: tuple[str, ...]) -> jax.Array:
    axes = pole_axes(physics, poles)[:, jnp.array([2, 0])]  # cosine and sine of each angle
    return jnp.concatenate([cart_position(physics)[None], axes.ravel(), physics.qvel])


def _sparse_reward(physics: Physics, poles: tuple[str, ...]) -> jax.Array:
    centred = tolerance(cart_position(physics), CART_BOUNDS)
    return centred * tolerance(pole_axes(physics, poles)[:, 2], COSINE_BOUNDS).prod()


def _reward(physics: Physics, poles: tuple[str, ...]) -> jax.Array:
    upright = ((pole_axes(physics, poles)[:, 2] + 1) / 2).mean()
    centred = (1 + tolerance(cart_position(physics), margin=2)) / 2
    control = (4 + small_control(physics.ctrl)) / 5
    slow = (1 + tolerance(physics.qvel[1:], margin=5).min()) / 2
    return upright * control * slow * centred
