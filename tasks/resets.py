"""Initial states: dm_control's own resets, and what an episode changes in the model."""

import copy
import functools
from typing import Any
from unittest import mock

import jax
import mujoco
import numpy as np

from tasks.base import Task
from tasks.models import import_dm_control


def episode_rows(model: mujoco.MjModel, episode: dict[str, tuple[str, ...]]) -> dict:
    """Row numbers of a `Task.episode` in the fields of a model: field -> (k,)."""
    rows = {}
    for field, names in episode.items():
        element = getattr(model, field.split("_")[0], None)  # model.body, model.geom, model.site
        ids = [element(name).id for name in names] or range(len(getattr(model, field)))
        rows[field] = np.array(ids)
    return rows


def read_rows(model: mujoco.MjModel, rows: dict) -> dict[str, np.ndarray]:
    """The values of a model at `episode_rows`: field -> (k, dim)."""
    return {k: np.array(getattr(model, k)[ids]).reshape(len(ids), -1) for k, ids in rows.items()}


def write_rows(model: mujoco.MjModel, rows: dict, values: dict[str, np.ndarray]) -> None:
    """Changes a model at `episode_rows`. values: field -> (k, dim)."""
    for field, ids in rows.items():
        array = getattr(model, field)
        array[ids] = np.reshape(values[field], array[ids].shape)


def reseed(random: np.random.RandomState, seed: int, index: int) -> None:
    """Gives dm_control's generator what batch number `index` of seed `seed` begins with."""
    random.seed(np.random.SeedSequence([seed, index]).generate_state(8))


def load_original(task: Task, seed: int) -> Any:
    """dm_control's own environment of a task, as `Task.prepare` and `Task.time_limit` want it."""
    options: dict[str, float] = {"random": seed}
    if task.time_limit is not None:
        options["time_limit"] = task.time_limit
    suite = import_dm_control("suite")
    environment = suite.load(task.domain, task.name, task_kwargs=options)
    if task.prepare is not None:
        task.prepare(environment)
    return environment


class InitialStates:
    """Initial states drawn by dm_control's own `initialize_episode`.

    Batch number `index` of seed `seed` is always the same: a run that resumes draws what the
    uninterrupted run would have drawn.
    """

    def __init__(self, task: Task, seed: int):
        wrapper = import_dm_control("mujoco.wrapper")
        self._seed = seed
        # Not compiled a second time: the task's model is the domain's own, with more sensors.
        model = wrapper.MjModel(copy.copy(task.model))
        with mock.patch.object(wrapper.MjModel, "from_xml_string", return_value=model):
            self._env = load_original(task, seed)
        # No reset looks at a sensor; the quadruped's rangefinders were two thirds of its time.
        self._env.physics.model.ptr.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR
        self._rows = episode_rows(self._env.physics.model.ptr, task.episode)
        physics_timestep = self._env.physics.timestep()
        self.control_timestep: float = self._env.control_timestep()
        self.num_substeps = round(self.control_timestep / physics_timestep)
        self.episode_length = round(self._env._step_limit)

    def draw(self, index: int, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Draws `count` states.

        Returns:
          qpos (count, nq), qvel (count, nv) and act (count, na); and what the episodes changed in
          the model, by field (count, k, dim).
        """
        reseed(self._env.task.random, self._seed, index)
        physics = self._env.physics
        states: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "act": []}
        episodes: dict[str, list[np.ndarray]] = {field: [] for field in self._rows}
        for _ in range(count):
            with physics.reset_context():
                self._env.task.initialize_episode(physics)
            for field, values in states.items():
                values.append(np.array(getattr(physics.data, field)))
            for field, value in read_rows(physics.model.ptr, self._rows).items():
                episodes[field].append(value)
        stack = functools.partial(jax.tree.map, np.stack, is_leaf=lambda x: isinstance(x, list))
        return stack(states), stack(episodes)

    def crowded(self, count: int) -> dict[str, np.ndarray]:
        """`count` states in which buffers for contacts are measured: here, any start."""
        return self.draw(0, count)[0]
