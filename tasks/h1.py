"""The h1 domain: HumanoidBench's locomotion with a Unitree H1 without hands.

Source: Sferrazza et al., arXiv 2403.10506, and github.com/carlosferrazza/humanoid-bench (robot
and most obstacles as of commit 44e2fc0, balance's board as of b917f7a, rewards 217b38f). Here are
the tasks, what is observed and how an episode starts; h1_robot.py builds the robot by the tables of
h1_body.py and h1_shapes.py, h1_obstacles.py has what stands in its way, h1_rewards.py the rules.
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from tasks import h1_obstacles, h1_rewards, h1_robot, h1_shapes
from tasks.base import Physics, Task
from tasks.models import add_frame_sensors

TIMESTEP, SUBSTEPS, EPISODE_LENGTH = 0.002, 10, 1000  # s, physics steps, control steps
CROWDED = (0.0, -2.0), (6.0, 2.0)  # m, x and y: where obstacles are dense
NOISE = 0.01  # uniform, on every element of qpos at a reset; quaternions are normalised after it

# task -> the return that counts as success
TASKS = {
    "stand": 800.0,
    "walk": 700.0,
    "run": 700.0,
    "stair": 700.0,
    "crawl": 700.0,
    "pole": 700.0,
    "slide": 700.0,
    "hurdle": 700.0,
    "maze": 1200.0,
    "sit_simple": 750.0,
    "sit_hard": 750.0,
    "balance_simple": 800.0,
    "balance_hard": 800.0,
    "reach": 12000.0,
}


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    spec = h1_robot.world(TIMESTEP)
    h1_robot.add(spec)
    obstacles = h1_obstacles.add(spec, name)
    _add_sensors(spec, obstacles)
    model = spec.compile()
    rules = h1_rewards.rules(name, model)
    reach = name == "reach"
    observe = _observe_reach if reach else _observe
    loose = obstacles.loose  # they touch each other, the floor and the robot
    reduced = "links collide as capsules and spheres, not meshes; on mjx only feet, hands, "
    reduced += f"hips and pelvis touch, at most {h1_robot.MJX_CONTACTS} contacts"
    if obstacles.fixed or obstacles.loose:
        reduced += ", and edges of boxes at other points than in C"
    return Task(
        domain="h1",
        name=name,
        model=model,
        observe=observe,
        reward=rules.reward,
        terminated=rules.terminated,
        episode={"body_pos": ("target",)} if reach else {},
        differences=reduced,
        mjx_floor=(*h1_shapes.MJX_ROBOT, *loose),
        mjx_obstacles=("floor", *obstacles.fixed, *loose),
        memory=rules.memory,
        remember=rules.remember,
        success=TASKS[name],
        starts=lambda seed: Starts(name, model, seed),
    )


def _observe(physics: Physics) -> jax.Array:
    return jnp.concatenate([physics.qpos, physics.qvel])


def _observe_reach(physics: Physics) -> jax.Array:
    hand, target = physics.sensors["left_hand_pos"], physics.episode["body_pos"][0]
    return jnp.concatenate([physics.qpos, physics.qvel, hand, target])  # m


class Starts:
    """Initial states: the keyframe with noise, and what else a task draws. See `InitialStates`."""

    control_timestep = TIMESTEP * SUBSTEPS  # s
    num_substeps = SUBSTEPS
    episode_length = EPISODE_LENGTH

    def __init__(self, name: str, model: mujoco.MjModel, seed: int):
        self._name, self._model, self._seed = name, model, seed

    def draw(self, index: int, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """As `InitialStates.draw`: always the same states of one seed and `index`."""
        random = np.random.default_rng([self._seed, index])
        noise = random.uniform(-NOISE, NOISE, (count, self._model.nq))
        qpos = self._model.key("start").qpos + noise
        if self._name == "sit_hard":  # before the chair, turned by up to 103 degrees
            turn = random.uniform(-1.8, 1.8, count) / 2
            qpos[:, :2] = random.uniform((0.2, -0.15), (0.4, 0.15), (count, 2))
            qpos[:, 3:7] = np.stack([np.cos(turn), 0 * turn, 0 * turn, np.sin(turn)], axis=1)
        episode = {}
        if self._name == "reach":
            low, high = h1_rewards.REACH_LOW, h1_rewards.REACH_HIGH
            episode["body_pos"] = random.uniform(low, high, (count, 1, 3))
        for joint in np.flatnonzero(self._model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
            # HumanoidBench's MuJoCo does so in the forward pass that follows its reset.
            first = self._model.jnt_qposadr[joint] + 3
            quaternion = qpos[:, first : first + 4]
            quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
        speeds = np.zeros((count, self._model.nv))
        return {"qpos": qpos, "qvel": speeds, "act": np.zeros((count, 0))}, episode

    def crowded(self, count: int) -> dict[str, np.ndarray]:
        """As `InitialStates.crowded`: anywhere among obstacles that stand along the way."""
        states, _ = self.draw(0, count)
        if self._name in h1_obstacles.ALONG_THE_WAY:
            low, high = CROWDED
            states["qpos"][:, :2] = np.random.default_rng(0).uniform(low, high, (count, 2))
        return states


def _add_sensors(spec: mujoco.MjSpec, obstacles: h1_obstacles.Obstacles) -> None:
    """What observations, rewards and terminations read."""
    add_frame_sensors(spec, "site", ("head", "imu", "left_foot", "right_foot", "left_hand"), "pos")
    add_frame_sensors(spec, "body", ("pelvis",), "quat", "zaxis", "pos")
    add_frame_sensors(spec, "body", ("torso",), "zaxis")
    add_frame_sensors(spec, "body", obstacles.bodies, "pos")
    kinds = mujoco.mjtSensor
    spec.add_sensor(
        name="velocity",  # of the centre of mass, m/s
        type=kinds.mjSENS_SUBTREELINVEL,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname="pelvis",
    )
    for actuator in spec.actuators:
        spec.add_sensor(
            name=f"force_{actuator.name}",  # N m
            type=kinds.mjSENS_ACTUATORFRC,
            objtype=mujoco.mjtObj.mjOBJ_ACTUATOR,
            objname=actuator.name,
        )
    for name, (first, second) in obstacles.touches.items():
        # How many contacts a geom has, with all others or with one.
        sensor = spec.add_sensor(name=name, type=kinds.mjSENS_CONTACT, intprm=[1, 0, 1])
        sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_GEOM, first
        if second:
            sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_GEOM, second
