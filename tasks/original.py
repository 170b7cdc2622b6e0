"""dm_control's own environment, loaded by `suite.load` and stepped by its own `step`.

It shows that what was learned here works in the original: same actions, same initial states.
"""

import copy

import mujoco
import numpy as np

from tasks.base import Task
from tasks.models import import_dm_control
from tasks.resets import load_original, reseed


class Original:
    """One environment. Its resets draw what `VectorEnv.first_states` of the same seed has.

    `control_timestep`: s.
    """

    def __init__(self, task: Task, seed: int):
        self._seed = seed
        self._env = load_original(task, seed)
        self._invalid = import_dm_control("rl.control").PhysicsError
        self.restart()
        low, high = task.model.actuator_ctrlrange.T  # dm_control's, where it has one
        self._middle, self._half_range = (high + low) / 2, (high - low) / 2
        self.control_timestep: float = self._env.control_timestep()

    def restart(self) -> None:
        """The next reset is the first of its seed again."""
        reseed(self._env.task.random, self._seed, 0)

    def reset(self) -> np.ndarray:
        """Begins the next episode; returns its first observation, (O,) float32."""
        return flatten(self._env.reset().observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """One control step. action: (A,), clipped to [-1, 1] as `VectorEnv.step` does.

        Returns observation, reward, and the end, which a state that MuJoCo finds invalid is, too,
        as for `VectorEnv.step`; dm_control raises there.
        """
        action = np.clip(action, -1.0, 1.0)  # not every actuator has a range of its own
        try:
            outcome = self._env.step(self._middle + self._half_range * action)
        except self._invalid:
            return flatten(self._env.task.get_observation(self._env.physics)), 0.0, True
        return flatten(outcome.observation), outcome.reward, outcome.last()

    @property
    def pose(self) -> np.ndarray:
        """qpos, (nq,)."""
        return np.array(self._env.physics.data.qpos)

    @property
    def model(self) -> mujoco.MjModel:
        """A copy of its model as this episode has it."""
        return copy.copy(self._env.physics.model.ptr)


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    """dm_control's entries in dm_control's order. (O,) float32"""
    entries = [np.ravel(entry) for entry in observation.values()]
    return np.concatenate(entries).astype(np.float32)
