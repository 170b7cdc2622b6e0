"""Rewards and ends of the H1 tasks, as HumanoidBench defines them.

Shared terms are functions of `Physics`; a task is a `Rules` made of them. Positions and velocities
are those after the control step; HumanoidBench reads them one physics step (2 ms) earlier.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco

from tasks.base import Physics
from tasks.h1_obstacles import CHECKPOINTS
from tasks.rewards import tolerance

STAND_HEIGHT = 1.65  # m, of the head
WALK_SPEED, RUN_SPEED, POLE_SPEED, MAZE_SPEED = 1.0, 5.0, 0.5, 2.0  # m/s
FALLEN = 0.2  # m, height of the pelvis below which most tasks end
CRAWL_HEIGHT = (0.6, 1.0)  # m
CRAWL_POSE = (0.75, 0, 0.65, 0)  # the pelvis's quaternion on all fours
BOARD_RISE = 0.37  # m, by which the board lifts the robot
TOUCH_FACTOR = 0.1  # of the reward while something is touched that should not be
CHECKPOINT_RADIUS, CHECKPOINT_BONUS = 0.4, 100.0  # m; times the number of the checkpoint
# From the stage's number: which way to go. At the last there is nowhere to go.
DIRECTIONS = ((1, 0), (1, 0), (0, 1), (1, 0), (0, 1))
REACH_LOW, REACH_HIGH = (-2.0, -2.0, 0.2), (2.0, 2.0, 2.0)  # m, where targets are

Scalar = Callable[[Physics], jax.Array]  # Physics -> ()


@dataclasses.dataclass(frozen=True)
class Rules:
    """A task's reward and end, and what it remembers within an episode (see `Task.memory`)."""

    reward: Scalar
    terminated: Scalar | None = None
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    remember: Callable[[Physics], dict[str, jax.Array]] | None = None


def rules(task: str, model: mujoco.MjModel) -> Rules:
    """Returns the rules of a task, a key of `tasks.h1.TASKS`."""
    names = [model.sensor(i).name for i in range(model.nsensor)]
    touches = tuple(name for name in names if name.startswith("touch_"))
    fallen = functools.partial(_below, height=FALLEN)
    if task in ("stand", "walk", "run"):
        speed = {"stand": 0.0, "walk": WALK_SPEED, "run": RUN_SPEED}[task]
        return Rules(functools.partial(_walk, speed=speed), fallen)
    if task in ("stair", "slide"):
        return Rules(_climb, lambda physics: upright(physics) < 0.1)
    if task == "crawl":
        return Rules(_crawl)
    if task == "pole":
        return Rules(_unless_touching(_pole, touches), functools.partial(_below, height=0.5))
    if task == "hurdle":
        run = functools.partial(_walk, speed=RUN_SPEED, lean=0.8)
        return Rules(_unless_touching(run, touches), fallen)
    if task == "maze":
        reward = functools.partial(_maze, touches=touches)
        return Rules(reward, fallen, {"stage": 0.0}, lambda physics: {"stage": _stage(physics)})
    if task in ("sit_simple", "sit_hard"):
        return Rules(_sit, functools.partial(_below, height=0.5))
    if task in ("balance_simple", "balance_hard"):
        return Rules(_balance, _off_balance)
    return Rules(_reach)


def head_height(physics: Physics) -> jax.Array:
    """Height of the head above the floor, m. ()"""
    return physics.sensors["head_pos"][2]


def upright(physics: Physics) -> jax.Array:
    """Vertical component of the torso's z-axis. ()"""
    return physics.sensors["torso_zaxis"][2]


def velocity(physics: Physics) -> jax.Array:
    """Velocity of the centre of mass in the world's frame, m/s. (3,)"""
    return physics.sensors["velocity"]


def actuator_forces(physics: Physics) -> jax.Array:
    """Torques of the servos, N m. (19,)"""
    forces = [value for name, value in physics.sensors.items() if name.startswith("force_")]
    return jnp.concatenate(forces)


def small_control(physics: Physics) -> jax.Array:
    """Between 0.8 and 1: little torque. ()"""
    small = tolerance(actuator_forces(physics), (0, 0), 10, "quadratic", 0).mean()
    return (4 + small) / 5


def standing(physics: Physics, height: float = STAND_HEIGHT, lean: float = 0.9) -> jax.Array:
    """Head above `height` (m) and torso upright to `lean`. ()"""
    high = tolerance(head_height(physics), (height, math.inf), STAND_HEIGHT / 4)
    return high * tolerance(upright(physics), (lean, math.inf), 1.9, "linear", 0)


def moving(physics: Physics, speed: float) -> jax.Array:
    """Between 1/6 and 1: forward speed of the centre of mass, up to `speed` m/s. ()"""
    reached = tolerance(velocity(physics)[0], (speed, math.inf), speed, "linear", 0)
    return (5 * reached + 1) / 6


def still(physics: Physics) -> jax.Array:
    """The centre of mass does not move sideways or forward. ()"""
    return tolerance(velocity(physics)[:2], (0, 0), 2).mean()


def touching(physics: Physics, touches: tuple[str, ...]) -> jax.Array:
    """Whether any of these contact sensors counts a contact. () bool"""
    return (jnp.concatenate([physics.sensors[name] for name in touches]) > 0).any()


def _below(physics: Physics, height: float) -> jax.Array:
    return physics.qpos[2] < height


def _unless_touching(reward: Scalar, touches: tuple[str, ...]) -> Scalar:
    return lambda physics: reward(physics) * _touch_factor(physics, touches)


def _touch_factor(physics: Physics, touches: tuple[str, ...]) -> jax.Array:
    return jnp.where(touching(physics, touches), TOUCH_FACTOR, 1.0)


def _walk(physics: Physics, speed: float, lean: float = 0.9) -> jax.Array:
    move = moving(physics, speed) if speed else still(physics)
    return small_control(physics) * standing(physics, lean=lean) * move


def _climb(physics: Physics) -> jax.Array:
    """Stairs and slopes: tall above both feet, which may stand at different heights."""
    straight = tolerance(upright(physics), (0.5, math.inf), 1.9, "linear", 0)
    for foot in ("left_foot", "right_foot"):
        rise = head_height(physics) - physics.sensors[f"{foot}_pos"][2]
        straight *= tolerance(rise, (1.2, math.inf), 0.45)
    return straight * small_control(physics) * moving(physics, WALK_SPEED)


def _crawl(physics: Physics) -> jax.Array:
    """On all fours and forward, inside the tunnel's width."""
    imu = physics.sensors["imu_pos"]
    low = jnp.minimum(
        tolerance(head_height(physics), CRAWL_HEIGHT, 1), tolerance(imu[2], CRAWL_HEIGHT, 1)
    )
    # Not the rotation's distance: a quaternion and its negative are the same pose and differ here,
    # as they do in the original.
    turned = jnp.linalg.norm(physics.sensors["pelvis_quat"] - jnp.array(CRAWL_POSE))
    pose = tolerance(turned, margin=1)
    parts = 0.1 * small_control(physics) + 0.25 * low
    parts += 0.4 * moving(physics, WALK_SPEED) + 0.25 * pose
    return parts * tolerance(imu[1], (-1, 1))


def _pole(physics: Physics) -> jax.Array:
    stand = small_control(physics) * standing(physics)
    return 0.5 * stand + 0.5 * moving(physics, POLE_SPEED)


def _stage(physics: Physics) -> jax.Array:
    """Checkpoints of the maze that were reached, with the one just reached. (1, 1)"""
    stage, places = physics.episode["stage"], jnp.array(CHECKPOINTS, jnp.float32)
    next_place = places[stage[0, 0].astype(int)]
    distance = jnp.linalg.norm(physics.sensors["pelvis_pos"][:2] - next_place)
    return jnp.minimum(stage + (distance < CHECKPOINT_RADIUS), len(CHECKPOINTS) - 1)


def _maze(physics: Physics, touches: tuple[str, ...]) -> jax.Array:
    """Along the maze's checkpoints, each paying once; slower and touching nothing."""
    before, after = physics.episode["stage"][0, 0], _stage(physics)[0, 0]
    stage = after.astype(int)
    wanted = MAZE_SPEED * jnp.array(DIRECTIONS, jnp.float32)[stage]
    move = tolerance(velocity(physics)[:2] - wanted, (0, 0), 1, "linear", 0).prod()
    move = (5 * jnp.where(stage == len(CHECKPOINTS) - 1, 1.0, move) + 1) / 6
    place = jnp.array(CHECKPOINTS, jnp.float32)[stage]
    distance = jnp.linalg.norm(physics.sensors["imu_pos"][:2] - place)
    parts = 0.2 * standing(physics) * small_control(physics)
    parts += 0.4 * move + 0.4 * tolerance(distance, margin=1)
    bonus = jnp.where(after > before, CHECKPOINT_BONUS * after, 0.0)
    return parts * _touch_factor(physics, touches) + bonus


def _sit(physics: Physics) -> jax.Array:
    """Seated: the pelvis at the seat's height and above the chair, the trunk upright, at rest."""
    pelvis, chair = physics.qpos[:3], physics.sensors["chair_pos"]
    seated = tolerance(pelvis[2], (0.68, 0.72), 0.2)
    above = tolerance(pelvis[0] - chair[0], (-0.19, 0.19), 0.2)
    above *= tolerance(pelvis[1] - chair[1], margin=0.1)
    trunk = tolerance(head_height(physics) - physics.sensors["imu_pos"][2], (0.35, 0.45), 0.3)
    straight = tolerance(upright(physics), (0.95, math.inf), 0.9, "linear", 0)
    sit = (0.5 * seated + 0.5 * above) * straight * trunk
    return small_control(physics) * sit * still(physics)


def _balance(physics: Physics) -> jax.Array:
    stand = standing(physics, STAND_HEIGHT + BOARD_RISE)
    return small_control(physics) * stand * still(physics)


def _off_balance(physics: Physics) -> jax.Array:
    """Down, or the robot or the board on the floor, or the robot on the ball."""
    count = {name: value[0] for name, value in physics.sensors.items() if value.shape == (1,)}
    ball = count["touch_ball"] - count["ball_floor"] - count["ball_board"]
    floor = count["touch_floor"] - count["ball_floor"]
    return _below(physics, 0.8) | (ball > 0) | (floor > 0)


def _reach(physics: Physics) -> jax.Array:
    """Upright, and the left hand near its target; not bounded by 1. ()"""
    target = physics.episode["body_pos"][0]
    distance = jnp.linalg.norm(physics.sensors["left_hand_pos"] - target)
    healthy = 5 * physics.sensors["pelvis_zaxis"][2] - 1e-4 * (physics.qvel**2).sum()
    return healthy + 5.0 * (distance < 1) + 10.0 * (distance < 0.05)
