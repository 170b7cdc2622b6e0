"""dm_control's own environment, loaded by `suite.load` and stepped by its own `step`.

It shows that what was learned here works in the original: same actions, same initial states.
"""

import copy

import mujoco
import numpy as np

from tasks.models import import_dm_control
from tasks.resets import reseed


class Original:
    """One environment. Its resets draw what `VectorEnv.first_states` of the same seed has.

    `control_timestep`: s.
    """

    def __init__(self, domain: str, name: str, seed: int):
        self._seed = seed
        self._env = import_dm_control("suite").load(domain, name, task_kwargs={"random": seed})
        self.restart()
        spec = self._env.action_spec()
        self._middle = (spec.maximum + spec.minimum) / 2
        self._half_range = (spec.maximum - spec.minimum) / 2
        self.control_timestep: float = self._env.control_timestep()

    def restart(self) -> None:
        """The next reset is the first of its seed again."""
        reseed(self._env.task.random, self._seed, 0)

    def reset(self) -> np.ndarray:
        """Begins the next episode; returns its first observation, (O,) float32."""
        return flatten(self._env.reset().observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """One control step. action: (A,) in [-1, 1]. Returns observation, reward, and the end."""
        outcome = self._env.step(self._middle + self._half_range * action)
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
