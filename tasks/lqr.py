"""The lqr domain: bring a chain of masses on springs to rest (dm_control/suite/lqr.py).

dm_control draws a system when an environment is made: the stiffness of its springs, each uniform
between 15 and 25 N/m; its range of damping is (0, 0), and all masses are alike. Here every episode
has a system of its own, drawn by the same code. No observation tells which, so a policy is one for
all of them, and a return is a mean over them.
"""

import functools
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Physics, Task
from tasks.models import import_dm_control, read_spec

TASKS = {"lqr_2_1": (2, 1), "lqr_6_2": (6, 2)}  # task -> number of bodies, of those with a motor
CONTROL_COST = 0.1
AT_REST = 1e-6  # norm of the state, below which an episode ends
# N, for an action of 1: dm_control's motors have no limit. The best linear controller (dm_control's
# lqr_solver) took at most 5.8 N in the first 150 steps from 300 starts of each task.
FORCE = 6.0
TIME_LIMIT = 30.0  # s, the 1,000 control steps that other tasks have


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS. An episode draws the springs."""
    bodies, motors = TASKS[name]
    sizes = {"n_bodies": bodies, "n_actuators": motors}
    spec = read_spec("lqr", random=np.random.RandomState(0), **sizes)
    for actuator in spec.actuators:
        actuator.ctrlrange, actuator.ctrllimited = (-FORCE, FORCE), 0  # to scale, not to clip
    return Task(
        domain="lqr",
        name=name,
        model=spec.compile(),
        observe=lambda physics: jnp.concatenate([physics.qpos, physics.qvel]),
        reward=_reward,
        terminated=lambda physics: state_norm(physics) < AT_REST,
        episode={"jnt_stiffness": ()},
        differences=f"springs, which no observation tells, drawn for each episode, not once for an "
        f"environment; at most 1000 steps, not without a limit; up to {FORCE:g} N, not any force",
        prepare=functools.partial(_draw_each_episode, sizes),
        time_limit=TIME_LIMIT,
    )


def state_norm(physics: Physics) -> jax.Array:
    """Length of the state: positions (m) and velocities (m/s) in one vector. ()"""
    return jnp.linalg.norm(jnp.concatenate([physics.qpos, physics.qvel]))


def draw_stiffness(sizes: dict[str, int], random: np.random.RandomState) -> list[float]:
    """The springs of a new system, N/m, drawn by dm_control's own code: (n_bodies,).

    Args:
      sizes: n_bodies and n_actuators.
      random: dm_control's generator; it goes on.
    """
    lqr = import_dm_control("suite.lqr")
    mjcf, _ = lqr.get_model_and_assets(random=random, **sizes)
    joints = ElementTree.fromstring(mjcf).iterfind("worldbody//joint")
    return [float(joint.attrib["stiffness"]) for joint in joints]


def _draw_each_episode(sizes: dict[str, int], environment: Any) -> None:
    """Makes each reset of dm_control's environment draw a system before the state."""
    task = environment.task
    own = task.initialize_episode

    def initialize_episode(physics):
        physics.model.jnt_stiffness[:] = draw_stiffness(sizes, task.random)
        own(physics)

    task.initialize_episode = initialize_episode


def _reward(physics: Physics) -> jax.Array:
    """1 at rest without control, and below 0 far from it: not bounded."""
    cost = jnp.sum(physics.qpos**2) + CONTROL_COST * jnp.sum(physics.ctrl**2)
    return 1 - cost / 2
