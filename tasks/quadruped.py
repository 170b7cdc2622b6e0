"""The quadruped domain: walk, run, fetch a ball, or climb out of a bowl, on four legs
(dm_control/suite/quadruped.py).
"""

import functools
import math

import jax
import jax.numpy as jnp
import mujoco

from tasks import quadruped_terrain
from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, hinge_slices, read_spec
from tasks.rewards import tolerance

WALK_SPEED = 0.5  # m/s, forward speed of the torso for full reward
RUN_SPEED = 5.0  # m/s
TIME_LIMIT = 20.0  # s, for which the floor must be long enough at the target speed

# task -> target speed in m/s, None for the tasks with a ball and in a bowl
TASKS = {"walk": WALK_SPEED, "run": RUN_SPEED, "escape": None, "fetch": None}
LEGS = ("front_left", "front_right", "back_right", "back_left")
TOES = ("toe_front_left", "toe_back_left", "toe_back_right", "toe_front_right")
FORCE_TORQUE = tuple(f"{kind}_toe_{leg}" for kind in ("force", "torque") for leg in LEGS)


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    if name == "escape":
        spec = quadruped_terrain.read_terrain_spec()
    elif name == "fetch":
        spec = read_spec("quadruped", "make_model", walls_and_ball=True)
        add_frame_sensors(spec, "body", ("ball",), "pos")
        add_frame_sensors(spec, "site", ("workspace", "target"), "pos")
    else:
        spec = read_spec("quadruped", "make_model", floor_size=TIME_LIMIT * TASKS[name])
    add_frame_sensors(spec, "body", ("torso",), "pos", "xaxis", "yaxis", "zaxis")
    model = spec.compile()
    common = functools.partial(_observe, *hinge_slices(model))
    if name == "escape":
        sees = lambda p: jnp.append(common(p), origin(p))  # noqa: E731
        return quadruped_terrain.escape(model, sees, functools.partial(_upright, deviation=20))
    if name == "fetch":
        ball = int(model.joint("ball_root").dofadr[0])
        observe = lambda p: jnp.append(common(p), _ball(p, ball))  # noqa: E731
        return Task("quadruped", name, model, observe, _fetch_reward(model))
    return Task("quadruped", name, model, common, lambda p: _move_reward(p, TASKS[name]))


def torso_frame(physics: Physics) -> jax.Array:
    """Rotation from the torso's frame to the world's: columns are the torso's axes. (3, 3)"""
    return jnp.stack([physics.sensors[f"torso_{axis}axis"] for axis in "xyz"], axis=1)


def torso_upright(physics: Physics) -> jax.Array:
    """Vertical component of the torso's z-axis: 1 upright, -1 on its back. ()"""
    return physics.sensors["torso_zaxis"][2]


def torso_velocity(physics: Physics) -> jax.Array:
    """Velocity of the torso in its own frame, m/s. (3,)"""
    return physics.sensors["velocimeter"]


def imu(physics: Physics) -> jax.Array:
    """Acceleration (m/s^2) and angular velocity (rad/s) of the torso in its own frame. (6,)"""
    return jnp.concatenate([physics.sensors["imu_accel"], physics.sensors["imu_gyro"]])


def force_torque(physics: Physics) -> jax.Array:
    """The toes' forces (N), then torques (N m), in their own frames, through arcsinh. (24,)"""
    return jnp.arcsinh(jnp.concatenate([physics.sensors[name] for name in FORCE_TORQUE]))


def ball_state(physics: Physics, ball: int) -> jax.Array:
    """The ball's position (m) and velocity (m/s) from the torso's, and its rotation (rad/s). (9,)

    Each is multiplied with the torso's frame, the rotation too, which is in the ball's own frame.

    Args:
      physics: after a control step.
      ball: where the ball's free joint begins in qvel; the torso's begins at 0.
    """
    position = physics.sensors["ball_pos"] - physics.sensors["torso_pos"]
    velocity = physics.qvel[ball : ball + 3] - physics.qvel[:3]
    rotation = physics.qvel[ball + 3 : ball + 6]
    return (jnp.stack([position, velocity, rotation]) @ torso_frame(physics)).ravel()


def target_position(physics: Physics) -> jax.Array:
    """The target relative to the torso, in the torso's frame, m. (3,)"""
    return (physics.sensors["target_pos"] - physics.sensors["torso_pos"]) @ torso_frame(physics)


def origin(physics: Physics) -> jax.Array:
    """The middle of the bowl relative to the torso, in the torso's frame, m. (3,)"""
    return -physics.sensors["torso_pos"] @ torso_frame(physics)


def ball_distance(physics: Physics, site: str) -> jax.Array:
    """Horizontal distance from the ball to the site "workspace" or "target", m. ()"""
    return jnp.linalg.norm((physics.sensors[f"{site}_pos"] - physics.sensors["ball_pos"])[:2])


def _observe(angles: slice, velocities: slice, physics: Physics) -> jax.Array:
    return jnp.concatenate(
        [
            physics.qpos[angles],  # rad
            physics.qvel[velocities],  # rad/s
            physics.act,
            torso_velocity(physics),
            torso_upright(physics)[None],
            imu(physics),
            force_torque(physics),
        ]
    )


def _ball(physics: Physics, ball: int) -> jax.Array:
    return jnp.concatenate([ball_state(physics, ball), target_position(physics)])


def _upright(physics: Physics, deviation: float = 0) -> jax.Array:
    """1 up to `deviation` degrees from upright, and 0 upside down. ()"""
    least = math.cos(math.radians(deviation))
    return tolerance(torso_upright(physics), (least, math.inf), 1 + least, "linear", 0)


def _move_reward(physics: Physics, speed: float) -> jax.Array:
    forward = torso_velocity(physics)[0]
    return _upright(physics) * tolerance(forward, (speed, math.inf), speed, "linear", 0.5)


def _fetch_reward(model: mujoco.MjModel):
    """Returns the reward for reaching the ball and taking it to the target; sizes in m."""
    arena = float(model.geom("floor").size[0]) * math.sqrt(2)
    near_ball = float(model.site("workspace").size[0] + model.geom("ball").size[0])
    near_target = float(model.site("target").size[0])

    def reward(physics: Physics) -> jax.Array:
        reach = tolerance(ball_distance(physics, "workspace"), (0, near_ball), arena, "linear", 0)
        fetch = tolerance(ball_distance(physics, "target"), (0, near_target), arena, "linear", 0)
        return _upright(physics) * reach * (0.5 + 0.5 * fetch)

    return reward
