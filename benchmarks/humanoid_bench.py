"""HumanoidBench's H1 tasks in numpy, as dm_control environments: what ours are compared with.

Written from the benchmark's definitions and independent of tasks/h1_rewards.py: it reads contacts,
torques and frames out of MuJoCo's own `mjData`, and uses dm_control's `tolerance`. The model is
ours, because the benchmark's own needs its mesh files.
"""

import argparse
import copy
import sys
from pathlib import Path

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.mujoco.wrapper import MjModel
from dm_control.rl import control
from dm_control.suite import base
from dm_control.utils.rewards import tolerance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import envs

INFINITY = float("inf")
MAZE_PLACES = np.array([[0, 0], [3, 0], [3, 6], [6, 6], [6, 6]])
MAZE_WAYS = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1]])
ALL_FOURS = (0.75, 0, 0.65, 0)
# Where the second half of a comparison starts, so that obstacles are touched: x, y and rise in m.
PLACES = {
    "stair": ((0.4, 0, 0), (1.5, 1, 0.36), (3.2, -1, 0.9)),
    "slide": ((2.8, 0, 0.9), (5.3, 1, 1.76), (7.8, 0, 0.9)),
    "hurdle": ((6.85, 0, 0), (0, 4.25, 0), (3, -4.25, 0)),
    "pole": ((0.9, 0.55, 0), (2, 0.22, 0), (0, 2.8, 0)),
    "maze": ((0, -0.55, 0), (2.95, 0.1, 0), (6, 6, 0)),
    "crawl": ((5, 0.9, -0.3), (8, 0, -0.2), (3, -1, -0.3)),
    "sit_simple": ((-0.2, 0, -0.28), (0.05, 0.02, 0), (-0.15, 0.05, -0.25)),
    "sit_hard": ((-0.2, 0, -0.28), (0.05, 0.02, 0), (-0.15, 0.05, -0.25)),
    "balance_simple": ((-0.1, 0, -0.02), (0, 0.2, 0), (-0.1, 0, -0.4)),
    "balance_hard": ((-0.1, 0, -0.02), (0, 0.2, 0), (-0.1, 0, -0.4)),
}
SEATED = (0, 0, -1.5, 1.5, 0)  # rad, a leg


def load(env_id: str, task_kwargs: dict | None = None) -> control.Environment:
    """Returns the reference for `h1-...`, as `dm_control.suite.load` would."""
    name = env_id.split("-", 1)[1]
    physics = Physics.from_model(MjModel(copy.copy(envs.load_task(env_id).model)))
    task = Reference(name, **(task_kwargs or {}))
    return control.Environment(physics, task, time_limit=20, control_timestep=0.02)


def _upright(physics: Physics) -> float:
    return physics.data.ptr.body("torso").xmat[8]


def _forward(speed: np.ndarray, wanted: float) -> float:
    return (5 * tolerance(speed[0], (wanted, INFINITY), wanted, "linear", 0) + 1) / 6


class Reference(base.Task):
    """One of the tasks. An end is not an end of dm_control's episode: ask `terminated`."""

    def __init__(self, name: str, random: int = 0):
        super().__init__(random=random)
        self.name, self.stage, self.goal, self._resets = name, 0, np.zeros(3), 0

    def initialize_episode(self, physics: Physics) -> None:
        """As the benchmark: the keyframe and noise on qpos; then the task's own draws."""
        model, data, self.stage = physics.model.ptr, physics.data.ptr, 0
        mujoco.mj_resetDataKeyframe(model, data, 0)
        data.qpos[:] += self.random.uniform(-0.01, 0.01, model.nq)
        if self.name == "sit_hard":
            data.qpos[0] = self.random.uniform(0.2, 0.4)
            data.qpos[1] = self.random.uniform(-0.15, 0.15)
            mujoco.mju_euler2Quat(data.qpos[3:7], [0, 0, self.random.uniform(-1.8, 1.8)], "xyz")
        mujoco.mj_normalizeQuat(model, data.qpos)  # as the forward pass of its version does
        if self.name == "reach":
            self.goal = self.random.uniform([-2, -2, 0.2], [2, 2, 2.0])
            model.body("target").pos = self.goal
        super().initialize_episode(physics)

    def scatter(self, physics: Physics) -> None:
        """Moves the robot to where it touches something; the maze to one of its stages."""
        data, self._resets = physics.data.ptr, self._resets + 1
        if self.name in PLACES:
            x, y, rise = PLACES[self.name][self._resets % len(PLACES[self.name])]
            data.qpos[:3] = x, y, data.qpos[2] + rise
            if self.name == "crawl":
                data.qpos[3:7] = ALL_FOURS
            if self.name.startswith("sit"):
                data.qpos[3:7] = 1, 0, 0, 0
                data.qpos[7:17] = SEATED * 2
            self.stage = self._resets % 5 if self.name == "maze" else 0
        if self.name == "reach":
            data.qpos[:2] += self.goal[:2] - (0.35, 0.2)

    def get_observation(self, physics: Physics) -> dict[str, np.ndarray]:
        """qpos and qvel; for reaching the left hand and the goal too."""
        obs = {"position": physics.data.qpos.copy(), "velocity": physics.data.qvel.copy()}
        if self.name == "reach":
            obs |= {"hand": self._site(physics, "left_hand"), "goal": self.goal}
        return obs

    def _site(self, physics: Physics, name: str) -> np.ndarray:
        return np.array(physics.data.ptr.site(name).xpos)

    def get_reward(self, physics: Physics) -> float:
        """The benchmark's reward after a step."""
        data, name = physics.data.ptr, self.name
        small = 4 + tolerance(data.actuator_force, (0, 0), 10, "quadratic", 0).mean()
        small /= 5
        speed = data.sensor("velocity").data
        still = tolerance(speed[:2], margin=2).mean()
        stand = small * self._stand(physics)
        if name in ("stand", "walk", "run"):
            wanted = {"walk": 1, "run": 5}
            return stand * (_forward(speed, wanted[name]) if name in wanted else still)
        if name in ("stair", "slide"):
            return self._climb(physics) * small * _forward(speed, 1)
        if name == "crawl":
            return self._crawl(physics, small, _forward(speed, 1))
        if name == "pole":
            pairs = [a + b for a, b in self._contacts(physics) if "floor" not in (a, b)]
            total = 0.5 * stand + 0.5 * _forward(speed, 0.5)
            return total * (0.1 if any("pole" in pair for pair in pairs) else 1)
        if name == "hurdle":
            touched = any("barrier" in a + b for a, b in self._contacts(physics))
            run = small * self._stand(physics, lean=0.8) * _forward(speed, 5)
            return run * (0.1 if touched else 1)
        if name == "maze":
            return self._maze(physics, 0.2 * stand, speed, self._site(physics, "imu"))
        if name.startswith("sit"):
            return self._sit(physics) * small * still
        if name.startswith("balance"):
            return small * self._stand(physics, 1.65 + 0.37) * still
        return self._reach(physics)

    def _stand(self, physics: Physics, height: float = 1.65, lean: float = 0.9) -> float:
        high = tolerance(self._site(physics, "head")[2], (height, INFINITY), margin=1.65 / 4)
        return high * tolerance(_upright(physics), (lean, INFINITY), 1.9, "linear", 0)

    def _climb(self, physics: Physics) -> float:
        head = self._site(physics, "head")[2]
        feet = [self._site(physics, f"{side}_foot")[2] for side in ("left", "right")]
        tall = np.prod([tolerance(head - foot, (1.2, INFINITY), margin=0.45) for foot in feet])
        return tall * tolerance(_upright(physics), (0.5, INFINITY), 1.9, "linear", 0)

    def _crawl(self, physics: Physics, small: float, forward: float) -> float:
        head, imu = self._site(physics, "head"), self._site(physics, "imu")
        low = min(tolerance(z, (0.6, 1.0), margin=1) for z in (head[2], imu[2]))
        turned = np.linalg.norm(physics.data.ptr.body("pelvis").xquat - ALL_FOURS)
        total = 0.1 * small + 0.25 * low + 0.4 * forward + 0.25 * tolerance(turned, margin=1)
        return total * (abs(imu[1]) <= 1)

    def _sit(self, physics: Physics) -> float:
        chair, pelvis = physics.data.ptr.body("chair").xpos, physics.data.qpos
        trunk = self._site(physics, "head")[2] - self._site(physics, "imu")[2]
        above = tolerance(pelvis[0] - chair[0], (-0.19, 0.19), margin=0.2)
        above *= tolerance(pelvis[1] - chair[1], margin=0.1)
        sit = 0.5 * tolerance(pelvis[2], (0.68, 0.72), margin=0.2) + 0.5 * above
        sit *= tolerance(_upright(physics), (0.95, INFINITY), 0.9, "linear", 0)
        return sit * tolerance(trunk, (0.35, 0.45), margin=0.3)

    def _reach(self, physics: Physics) -> float:
        distance = np.linalg.norm(self._site(physics, "left_hand") - self.goal)
        reward = 5 * physics.data.ptr.body("pelvis").xmat[8]
        reward -= 1e-4 * np.square(physics.data.qvel).sum()
        return reward + 5 * (distance < 1) + 10 * (distance < 0.05)

    def _maze(self, physics: Physics, standing: float, speed, imu) -> float:
        touched = any("block" in a + b for a, b in self._contacts(physics))
        before = self.stage
        pelvis = physics.data.ptr.body("pelvis").xpos[:2]
        if np.linalg.norm(pelvis - MAZE_PLACES[self.stage]) < 0.4:
            self.stage = min(self.stage + 1, 4)
        wanted = speed[:2] - 2.0 * MAZE_WAYS[self.stage]
        move = np.prod(tolerance(wanted, (0, 0), 1, "linear", 0)) if self.stage < 4 else 1
        near = tolerance(np.linalg.norm(imu[:2] - MAZE_PLACES[self.stage]), margin=1)
        total = (standing + 0.4 * (5 * move + 1) / 6 + 0.4 * near) * (0.1 if touched else 1)
        return total + (100 * self.stage if self.stage > before else 0)

    def terminated(self, physics: Physics) -> bool:
        """Whether the benchmark would end the episode here."""
        height, upright = physics.data.qpos[2], _upright(physics)
        if self.name in ("crawl", "reach"):
            return False
        if self.name in ("stair", "slide"):
            return upright < 0.1
        if self.name.startswith("balance"):
            contacts = self._contacts(physics)
            ball = any("ball" in pair and not {"floor", "board"} & set(pair) for pair in contacts)
            floor = any("floor" in pair and "ball" not in pair for pair in contacts)
            return height < 0.8 or ball or floor
        limit = 0.5 if self.name == "pole" or self.name.startswith("sit") else 0.2
        return height < limit

    def _contacts(self, physics: Physics) -> list[tuple[str, str]]:
        model = physics.model.ptr
        return [(model.geom(a).name, model.geom(b).name) for a, b in physics.data.contact.geom]

    @property
    def memory(self) -> dict[str, np.ndarray]:
        """What the episode has to remember, as `Physics.episode` has it."""
        return {"stage": np.full((1, 1), float(self.stage))} if self.name == "maze" else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    parser.error("there is nothing to run; `python benchmarks/parity.py` compares with these")
