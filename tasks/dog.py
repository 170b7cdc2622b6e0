"""The dog domain: stand, walk, trot, run, or fetch a ball (dm_control/suite/dog.py)."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco

from tasks.base import Physics, Task
from tasks.models import add_frame_sensors, hinge_slices, read_spec
from tasks.rewards import tolerance

WALK_SPEED = 1.0  # m/s, forward speed of the centre of mass for full reward
TROT_SPEED = 3.0  # m/s
RUN_SPEED = 9.0  # m/s
TIME_LIMIT = 15.0  # s, for which the floor must be long enough at the target speed
UPRIGHT = math.cos(math.radians(30))  # a body's z-axis may lean by 30 degrees
STAND_FRACTION = 0.9  # of the height in the model's own pose, for full reward
TOUCH_AT_NONE = 0.9  # reward factor where no foot touches anything
BITE_MARGIN = 2.0  # m, distance of mouth and ball at which little reward is left

# task -> target speed in m/s; "fetch" has none, and a ball
TASKS = {
    "stand": 0.0,
    "walk": WALK_SPEED,
    "trot": TROT_SPEED,
    "run": RUN_SPEED,
    "fetch": 0.0,
}
UPRIGHT_BODIES = ("skull", "torso", "pelvis")
INERTIAL = ("accelerometer", "velocimeter", "gyro")  # m/s^2, m/s, rad/s in the head's frame
FOOT_FORCES = ("foot_L", "foot_R", "hand_L", "hand_R")  # N, in the feet's frames
# What touches the floor on mjx, where all pairs would be 29,564 rows of constraints, and pairs of
# an ellipsoid and a box are missing.
LIMBS = ("upper_leg_{}1", "lower_leg_{}", "foot_{}", "toe_{}0", "toe_{}1", "toe_{}2")
LIMBS += ("humerus_{}", "Radius_{}", "hand_{}", "finger_{}0", "finger_{}1", "finger_{}2")
LIMBS += ("collision_pelvis_{}",)
MJX_FLOOR = tuple(name.format(side) for side in "LR" for name in LIMBS)
MJX_FLOOR = tuple(n if n.startswith("collision") else f"{n}_collision" for n in MJX_FLOOR)
MJX_FLOOR += ("collision_torso", "skull0_collision", "skull1_collision")
TOUCH = ("palm_L", "palm_R", "sole_L", "sole_R")  # N


def load(name: str) -> Task:
    """Returns the task called `name`, a key of TASKS."""
    speed, fetches = TASKS[name], name == "fetch"
    floor = {} if fetches else {"floor_size": (speed or WALK_SPEED) * TIME_LIMIT}
    spec = read_spec("dog", **floor, remove_ball=not fetches)
    add_frame_sensors(spec, "body", UPRIGHT_BODIES, "pos", "xaxis", "yaxis", "zaxis")
    if fetches:
        add_frame_sensors(spec, "site", ("head",), "pos", "xaxis", "yaxis", "zaxis", "linvel")
        add_frame_sensors(spec, "site", ("upper_bite", "lower_bite"), "pos")
        add_frame_sensors(spec, "geom", ("ball",), "pos", "linvel")
        add_frame_sensors(spec, "geom", ("target",), "pos")
    model = spec.compile()
    angles, velocities = hinge_slices(model)
    stand = _stand_reward(model)
    further = _fetch_reward(model) if fetches else functools.partial(_move_reward, speed=speed)

    def observe(physics: Physics) -> jax.Array:
        obs = _observe(physics, angles, velocities)
        return jnp.concatenate([obs, ball_and_target(physics)]) if fetches else obs

    def reward(physics: Physics) -> jax.Array:
        return stand(physics) * further(physics)

    coarse = "on warp contacts of an ellipsoid, and of two boxes, are not quite C's"
    task = Task("dog", name, model, observe, reward, differences=coarse)
    if fetches:
        why = "only the floor is touched there, and the mouth could not hold the ball"
        return dataclasses.replace(task, cannot={"mjx": why})
    reduced = f"on mjx only {len(MJX_FLOOR)} geoms (limbs, torso, pelvis, skull) touch the floor, "
    reduced += "nothing else touches, and friction lacks MuJoCo's noslip iterations"
    return dataclasses.replace(task, mjx_floor=MJX_FLOOR, differences=f"{reduced}; {coarse}")


def frame(physics: Physics, name: str) -> jax.Array:
    """Rotation from a body's frame, or the site head's, to the world's: columns are axes. (3, 3)"""
    return jnp.stack([physics.sensors[f"{name}_{axis}axis"] for axis in "xyz"], axis=1)


def heights(physics: Physics) -> jax.Array:
    """Heights of torso and pelvis above the floor, m. (2,)"""
    return jnp.stack([physics.sensors["torso_pos"][2], physics.sensors["pelvis_pos"][2]])


def verticals(physics: Physics) -> jax.Array:
    """Vertical components of the axes of skull, torso and pelvis: one row a body. (3, 3)"""
    return jnp.stack([frame(physics, name)[2] for name in UPRIGHT_BODIES])


def com_velocity(physics: Physics) -> jax.Array:
    """Velocity of the centre of mass in the torso's frame, m/s. (3,)"""
    return physics.sensors["torso_linvel"] @ frame(physics, "torso")


def touch(physics: Physics) -> jax.Array:
    """Forces on the pads of the four feet, N. (4,)"""
    return _sensors(physics, TOUCH)


def ball_and_target(physics: Physics) -> jax.Array:
    """The ball's position (m) and velocity (m/s), and the target's position, from the head. (9,)

    All are in the head's frame.
    """
    sensors = physics.sensors
    rows = [
        sensors["ball_pos"] - sensors["head_pos"],
        sensors["ball_linvel"] - sensors["head_linvel"],
        sensors["target_pos"] - sensors["head_pos"],
    ]
    return (jnp.stack(rows) @ frame(physics, "head")).ravel()


def ball_to_mouth(physics: Physics) -> jax.Array:
    """Mean distance of the ball from the two jaws, m. ()"""
    jaws = jnp.stack([physics.sensors["upper_bite_pos"], physics.sensors["lower_bite_pos"]])
    return jnp.linalg.norm(physics.sensors["ball_pos"] - jaws, axis=1).mean()


def ball_to_target(physics: Physics) -> jax.Array:
    """Distance of the ball from the target, m. ()"""
    return jnp.linalg.norm(physics.sensors["ball_pos"] - physics.sensors["target_pos"])


def _sensors(physics: Physics, names: tuple[str, ...]) -> jax.Array:
    return jnp.concatenate([physics.sensors[name] for name in names])


def _observe(physics: Physics, angles: slice, velocities: slice) -> jax.Array:
    return jnp.concatenate(
        [
            physics.qpos[angles],  # rad
            physics.qvel[velocities],  # rad/s
            heights(physics),
            verticals(physics).ravel(),
            com_velocity(physics),
            _sensors(physics, INERTIAL),
            _sensors(physics, FOOT_FORCES),
            touch(physics),
            physics.act,
        ]
    )


def _stand_reward(model: mujoco.MjModel) -> Callable[[Physics], jax.Array]:
    """Returns the reward for standing: high enough, upright, and with the weight on the feet."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)  # in the model's own pose
    torso, pelvis = (float(data.body(name).xpos[2]) for name in ("torso", "pelvis"))  # m
    weight = -float(model.opt.gravity[2]) * float(model.body("torso").subtreemass[0])  # N
    torso_height, pelvis_height = torso * STAND_FRACTION, pelvis * STAND_FRACTION

    def reward(physics: Physics) -> jax.Array:
        torso, pelvis = heights(physics)
        high = tolerance(torso, (torso_height, math.inf), torso_height)
        high *= tolerance(pelvis, (pelvis_height, math.inf), pelvis_height)
        lean = verticals(physics)[:, 2]
        upright = tolerance(lean, (UPRIGHT, math.inf), UPRIGHT + 1, "linear", 0).prod()
        force = touch(physics).sum()
        return (
            high * upright * tolerance(force, (weight, math.inf), weight, "linear", TOUCH_AT_NONE)
        )

    return reward


def _move_reward(physics: Physics, speed: float) -> jax.Array:
    if speed == 0:
        return jnp.ones(())
    forward = com_velocity(physics)[0]
    reached = tolerance(forward, (speed, 2 * speed), max(1.0, speed), "linear", value_at_margin=0)
    return (4 * reached + 1) / 5


def _fetch_reward(model: mujoco.MjModel) -> Callable[[Physics], jax.Array]:
    """Returns the reward for biting the ball and bringing it to the target; sizes in m."""
    bite, target = float(model.site("upper_bite").size[0]), float(model.geom("target").size[0])
    arena = float(model.geom("floor").size[0])

    def reward(physics: Physics) -> jax.Array:
        reach = tolerance(ball_to_mouth(physics), (0, bite), BITE_MARGIN, "reciprocal")
        distance = ball_to_target(physics)
        bring = tolerance(distance, (0, target), arena, "reciprocal")
        # Close to the target the ball may be let go.
        reach = jnp.where(distance < 2 * target, 1.0, (6 * reach + 1) / 7)
        return reach * (bring + 1) / 2

    return reward
