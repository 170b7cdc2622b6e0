"""What is the quadruped's alone where it escapes from a bowl: the height field, and looking at it.

dm_control draws the field of 201 x 201 heights at each reset, a bowl with bumps, and hands it to
whatever renders; here nothing does, and no display is asked for. The field is an episode's own
(`Task.episode`), 158 KiB as float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, read_spec
from tasks.rewards import tolerance

FLOOR = 40  # m, half of the floor's side; the field's is 30
RANGEFINDERS = tuple(f"rf_{row}{column}" for row in range(4) for column in range(5))
NOTHING_HIT = -1.0  # what MuJoCo's rangefinder says where there is nothing to see
# Pixels, of textures that nobody looks at closely: `native` has a copy of the model for each
# environment, and of dm_control's 12 MB the sky is 11.
TEXTURE = 64

# Why the field is not on other engines.
CANNOT = {
    "mjx": "MJX lacks contacts of the torso (an ellipsoid) with a height field, and its "
    "rangefinders look through one",
    "warp": "MuJoCo Warp has one array of heights for all environments",
}

Measure = Callable[[Physics], jax.Array]


def escape(model: mujoco.MjModel, sees: Measure, upright: Measure) -> Task:
    """The task of climbing out of the bowl.

    Args:
      model: of `read_terrain_spec`, with whatever sensors `sees` and `upright` read.
      sees: the observation but for the rangefinders, (81,).
      upright: the part of the reward for not lying down, ().
    """
    far = float(model.hfield("terrain").size[0])  # m, from the middle of the field to its side

    def reward(physics: Physics) -> jax.Array:
        return upright(physics) * tolerance(
            origin_distance(physics), (far, math.inf), far, "linear", value_at_margin=0
        )

    return Task(
        domain="quadruped",
        name="escape",
        model=model,
        observe=lambda physics: jnp.append(sees(physics), rangefinder(physics)),
        reward=reward,
        episode={"hfield_data": ()},
        cannot=CANNOT,
        prepare=without_display,
    )


def read_terrain_spec() -> mujoco.MjSpec:
    """The quadruped on a height field, which is flat until a reset draws it."""
    spec = read_spec("quadruped", "make_model", floor_size=FLOOR, terrain=True, rangefinders=True)
    for texture in spec.textures:
        texture.width, texture.height = TEXTURE, TEXTURE
    add_frame_sensors(spec, "site", ("workspace",), "pos")
    return spec


def without_display(environment: Any) -> None:
    """Makes resets of dm_control's environment upload the field to no renderer.

    dm_control asks `physics.contexts` whether there is one, and asking makes one.
    """
    physics = environment.physics
    physics.__class__ = type("Unseen", (type(physics),), {"contexts": None})


def rangefinder(physics: Physics) -> jax.Array:
    """Distances to the ground ahead in 20 directions, tanh of m; 1 where there is nothing. (20,)"""
    readings = jnp.concatenate([physics.sensors[name] for name in RANGEFINDERS])
    return jnp.where(readings == NOTHING_HIT, 1.0, jnp.tanh(readings))


def origin_distance(physics: Physics) -> jax.Array:
    """Distance from the middle of the bowl to the site above the torso, m. ()"""
    return jnp.linalg.norm(physics.sensors["workspace_pos"])
