"""Positions and orientations of all bodies of an MJX model, in few and wide operations.

MJX goes down the tree by depth and, at each depth, once for every pattern of joints: the dog's 62
bodies become 26,000 lines of program (StableHLO), which XLA compiles for minutes. Here each body's
pose in its parent is computed for all bodies at once, and the poses in the world by doubling:
after k rounds a body knows its pose in its 2^k-th ancestor.
"""

from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

FREE, BALL, SLIDE, HINGE = map(int, mujoco.mjtJoint.__members__.values())
IDENTITY = (1.0, 0.0, 0.0, 0.0)  # quaternions are w, x, y, z


def kinematics(model: Any, data: Any) -> Any:
    """As `mjx.kinematics`: data with qpos (normalised quaternions) and all frames set.

    As in C, and unlike MJX, what is attached to a mocap body moves along.
    """
    qpos, motions, offsets = _joints(model, data.qpos)
    pos, quat = model.body_pos, model.body_quat
    if model.nmocap:
        mocap = np.flatnonzero(model.body_mocapid >= 0)
        number = model.body_mocapid[mocap]
        pos = pos.at[mocap].set(data.mocap_pos[number])
        quat = quat.at[mocap].set(_normalize(data.mocap_quat[number]))
    pos, quat, anchors, axes = _in_parent(model, pos, quat, qpos, motions, offsets)
    pos, quat = in_world(model.body_parentid, pos, quat)
    parent = model.body_parentid[model.jnt_bodyid]
    anchors = pos[parent] + _rotate(anchors, quat[parent])
    axes = _rotate(axes, quat[parent])
    data = data.replace(qpos=qpos, xanchor=anchors, xaxis=axes, xpos=pos, xquat=quat)
    everything = np.arange(model.nbody)
    frames = {"xmat": _matrix(quat)}
    frames["xipos"], frames["ximat"] = attach(
        pos, quat, everything, model.body_ipos, model.body_iquat
    )
    frames["geom_xpos"], frames["geom_xmat"] = attach(
        pos, quat, model.geom_bodyid, model.geom_pos, model.geom_quat
    )
    frames["site_xpos"], frames["site_xmat"] = attach(
        pos, quat, model.site_bodyid, model.site_pos, model.site_quat
    )
    return data.replace(**frames)


def _joints(model: Any, qpos: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What each joint does, in its own frame.

    Returns:
      qpos (nq,) with unit quaternions; rotations (njnt, 4), a slide's is none; displacements along
      the axis (njnt,), of a slide only.
    """
    types, start = np.asarray(model.jnt_type), np.asarray(model.jnt_qposadr)
    half = (qpos[start] - model.qpos0[start]) / 2
    hinge = jnp.asarray(types == HINGE)
    sine = jnp.where(hinge, jnp.sin(half), 0)[:, None] * model.jnt_axis
    cosine = jnp.where(hinge, jnp.cos(half), 1)[:, None]
    rotations = jnp.concatenate([cosine, sine], axis=1)
    offsets = jnp.where(jnp.asarray(types == SLIDE), 2 * half, 0)
    round_ = np.flatnonzero((types == FREE) | (types == BALL))
    if round_.size:
        where = (start + 3 * (types == FREE))[round_, None] + np.arange(4)
        units = _normalize(qpos[where])
        qpos, rotations = qpos.at[where].set(units), rotations.at[round_].set(units)
    return qpos, rotations, offsets


def _in_parent(model: Any, pos, quat, qpos, rotations, offsets):
    """Frames of bodies (nbody, 3), (nbody, 4) in those of their parents.

    Returns these and the joints' anchors (njnt, 3) and axes (njnt, 3), in the same frames. All
    bodies' first joints are one operation, then all second ones, and so on.
    """
    types, bodies = np.asarray(model.jnt_type), np.asarray(model.jnt_bodyid)
    anchors, axes = jnp.zeros((model.njnt, 3)), jnp.zeros((model.njnt, 3))
    turn = np.arange(model.njnt) - np.asarray(model.body_jntadr)[bodies]  # 0 for a body's first
    for i in range(turn.max(initial=-1) + 1):
        ids = np.flatnonzero((turn == i) & (types != FREE))
        body, arm = bodies[ids], model.jnt_pos[ids]
        anchor = pos[body] + _rotate(arm, quat[body])
        axis = _rotate(model.jnt_axis[ids], quat[body])
        turned = _multiply(quat[body], rotations[ids])
        moved = anchor - _rotate(arm, turned) + offsets[ids, None] * axis
        pos, quat = pos.at[body].set(moved), quat.at[body].set(turned)
        anchors, axes = anchors.at[ids].set(anchor), axes.at[ids].set(axis)
    free = np.flatnonzero(types == FREE)
    if free.size:
        place = qpos[np.asarray(model.jnt_qposadr)[free, None] + np.arange(3)]
        pos, quat = pos.at[bodies[free]].set(place), quat.at[bodies[free]].set(rotations[free])
        anchors, axes = anchors.at[free].set(place), axes.at[free].set(jnp.eye(3)[2])
    return pos, quat, anchors, axes


def in_world(parents: np.ndarray, pos: jax.Array, quat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frames in the parents' (nbody, 3), (nbody, 4) -> in the world's. parents: (nbody,)."""
    # Of the world's own body, its own parent, the frame is zero and no turn: it changes nothing.
    above = np.asarray(parents)
    while above.any():
        pos, quat = pos[above] + _rotate(pos, quat[above]), _multiply(quat[above], quat)
        above = above[above]
    return pos, quat


def attach(pos, quat, bodies, offset, turn) -> tuple[jax.Array, jax.Array]:
    """Frames (k, 3), (k, 3, 3) in the world of what is fixed at `offset`, `turn` to `bodies`."""
    bodies = np.asarray(bodies)
    there = pos[bodies] + _rotate(offset, quat[bodies])
    return there, _matrix(_multiply(quat[bodies], turn))


def _normalize(quat: jax.Array) -> jax.Array:
    """Unit quaternions (..., 4); a zero one becomes no turn, as in C."""
    length = jnp.sqrt(jnp.sum(quat * quat, axis=-1, keepdims=True))
    none = length < mujoco.mjMINVAL
    return jnp.where(none, jnp.array(IDENTITY), quat / jnp.where(none, 1, length))


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of quaternions, (..., 4) each: the turn b, then the turn a."""
    s, t, u, v = a[..., :1], b[..., :1], a[..., 1:], b[..., 1:]
    real = s * t - jnp.sum(u * v, axis=-1, keepdims=True)
    return jnp.concatenate([real, s * v + t * u + jnp.cross(u, v)], axis=-1)


def _rotate(vectors: jax.Array, quat: jax.Array) -> jax.Array:
    """Vectors (..., 3) turned by unit quaternions (..., 4)."""
    s, u = quat[..., :1], quat[..., 1:]
    twice = 2 * jnp.cross(u, vectors)
    return vectors + s * twice + jnp.cross(u, twice)


def _matrix(quat: jax.Array) -> jax.Array:
    """Unit quaternions (..., 4) -> rotation matrices (..., 3, 3): columns are the axes."""
    columns = [_rotate(jnp.broadcast_to(e, quat[..., 1:].shape), quat) for e in np.eye(3)]
    return jnp.stack(columns, axis=-1)
