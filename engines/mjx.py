"""MJX, impl `jax`: physics as XLA code."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from engines import PhysicsState
from engines.mjx_kinematics import kinematics

# Steps of the line search, 50 in dm_control's models. Nothing that was measured changes, and it is
# 1.1 to 1.4 times as fast (benchmarks/solver_iterations.csv): under `vmap` all environments go on
# until the slowest has bisected down to float32's last bit.
MAX_LS_ITERATIONS = 16


def import_mjx():
    """Imports mujoco.mjx without what it prints."""
    with contextlib.redirect_stdout(None):  # it says so where the optional warp is missing
        from mujoco import mjx
    return mjx


def with_rows(model: Any, rows: dict[str, np.ndarray], episode: dict[str, jax.Array]) -> Any:
    """An MJX model with an episode's values in it: field -> (k, dim), at row numbers (k,)."""
    fields = {name: jnp.asarray(getattr(model, name)) for name in rows}
    for name, ids in rows.items():
        value = episode[name].reshape(fields[name][ids].shape)
        fields[name] = fields[name].at[ids].set(value)
    return model.replace(**fields)


def with_contacts(
    model: mujoco.MjModel, with_floor: tuple[str, ...], obstacles: tuple[str, ...] = ("floor",)
) -> mujoco.MjModel:
    """A copy in which only the geoms of these names touch, and only the geoms `obstacles`.

    With no names the contacts stay as they are; but where the model's flags disable them, no pair
    is left, so that MJX does not refuse a kind of pair that would never be looked at.
    """
    model = copy.copy(model)
    flags = mujoco.mjtDisableBit
    idle = model.opt.disableflags & (flags.mjDSBL_CONTACT | flags.mjDSBL_CONSTRAINT)
    if idle or with_floor:
        model.geom_contype[:], model.geom_conaffinity[:] = 0, 0
    if with_floor:
        model.geom_contype[[model.geom(name).id for name in with_floor]] = 1
        model.geom_conaffinity[[model.geom(name).id for name in obstacles]] = 1
    return model


class MjxEngine:
    """MJX, impl `jax`: physics as part of the compiled program, on GPU, TPU or CPU.

    MJX has no noslip solver and leaves the model's `noslip_iterations` (the dog's 4) undone.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_substeps: int,
        rows: dict[str, np.ndarray],
        with_floor: tuple[str, ...] = (),
        obstacles: tuple[str, ...] = ("floor",),
    ):
        mjx = import_mjx()
        model = with_contacts(model, with_floor, obstacles)
        # MJX refuses the energy flag, which computes energies and changes no dynamics.
        model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
        model.opt.ls_iterations = min(model.opt.ls_iterations, MAX_LS_ITERATIONS)
        self._mjx, self._rows = mjx, rows
        self._model = mjx.put_model(model, impl="jax")
        self._data = mjx.make_data(model, impl="jax")
        self._num_substeps = num_substeps

    def step(
        self, state: PhysicsState, ctrl: jax.Array, episode: dict[str, jax.Array]
    ) -> tuple[PhysicsState, jax.Array, jax.Array]:
        """As `NativeEngine.step`."""
        with replacements():
            state, sensordata = jax.vmap(self._step_one)(state, ctrl, episode)
        return state, sensordata, jnp.zeros(len(ctrl), jnp.int32)

    def _load(self, state: PhysicsState, ctrl: jax.Array, sensordata: jax.Array):
        return self._data.replace(
            qpos=state.qpos,
            qvel=state.qvel,
            act=state.act,
            qacc_warmstart=state.warmstart,
            ctrl=ctrl,
            sensordata=sensordata,
        )

    def _step_one(self, state: PhysicsState, ctrl: jax.Array, episode: dict[str, jax.Array]):
        mjx, model = self._mjx, with_rows(self._model, self._rows, episode)

        def substep(carry, _):
            data = mjx.step(model, self._load(carry[0], ctrl, carry[1]))
            state = PhysicsState(data.qpos, data.qvel, data.act, data.qacc_warmstart)
            return (state, data.sensordata), None

        carry = (state, self._data.sensordata)
        (state, sensordata), _ = jax.lax.scan(substep, carry, length=self._num_substeps)
        # The position and velocity stages at the new state; XLA drops what no sensor reads.
        data = mjx.fwd_position(model, self._load(state, ctrl, sensordata))
        data = mjx.fwd_velocity(model, mjx.sensor_pos(model, data))
        return state, mjx.sensor_vel(model, data).sensordata


@contextlib.contextmanager
def replacements():
    """While an engine of ours is traced, and only then, MJX has four functions of ours.

    `_plane_capsule` and `_plane_box`, for C's contacts; kinematics, for compile time; and the line
    search's loop ends when every environment's has. MJX's own is differentiable: a scan over all
    `ls_iterations`, 50 in dm_control's models, of which under `vmap` each is computed, needed or
    not.
    """
    mjx = import_mjx()
    from mujoco.mjx._src import collision_driver, collision_primitive, smooth, solver

    kinds, collider = mjx.GeomType, collision_primitive.collider
    contacts = {
        (kinds.PLANE, kinds.CAPSULE): collider(ncon=2)(_plane_capsule),
        (kinds.PLANE, kinds.BOX): collider(ncon=4)(_plane_box),
    }

    def loop(condition: Callable, body: Callable, start: Any, _) -> Any:
        return jax.lax.while_loop(condition, body, start)

    with (
        mock.patch.dict(collision_driver._COLLISION_FUNC, contacts),
        mock.patch.object(smooth, "kinematics", kinematics),
        mock.patch.object(solver, "_while_loop_scan", loop),
    ):
        yield


def _plane_capsule(plane: Any, capsule: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The contacts of a capsule's two ends with a plane: distances (2,), points, frames (2, 3, 3).

    As in C, the first tangent follows the capsule. MJX's own turns it to the world's y for a steep
    capsule, and a pyramidal friction cone with it: on humanoid-run the next observation was then
    off by a quarter (benchmarks/NOTES.md).
    """
    normal, axis = plane.mat[:, 2], capsule.mat[:, 2]
    along = axis - normal * jnp.dot(normal, axis)
    # A capsule that stands on the plane has no direction there: any tangent, C's on a floor.
    spare = jnp.where(jnp.abs(normal[0]) < 0.9, jnp.eye(3)[0], jnp.eye(3)[1])
    upright = jnp.dot(along, along) < 1e-12  # 1e-6 long: no more than float32's rounding
    along = jnp.where(upright, spare - normal * jnp.dot(normal, spare), along)
    tangent = along / jnp.linalg.norm(along)
    frame = jnp.stack([normal, tangent, jnp.cross(normal, tangent)])
    ends = capsule.pos + jnp.array([[1.0], [-1.0]]) * axis * capsule.size[1]
    radius = capsule.size[0]
    distances = (ends - plane.pos) @ normal - radius
    points = ends - (radius + distances / 2)[:, None] * normal
    return distances, points, jnp.stack([frame, frame])


def _plane_box(plane: Any, box: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The contacts of a box's four lower corners with a plane: distances (4,), points, frames.

    As in C, every corner below the plane touches. MJX's own takes only corners within 1 mm of the
    deepest, so that a tilted box touches at one edge or corner: on dog-run, whose hands are boxes,
    a joint's speed was then off by 0.4 rad/s after one physics step (benchmarks/NOTES.md).
    """
    from mujoco.mjx._src import math

    normal = plane.mat[:, 2]
    # One of each two corners that are opposite; of the two the lower one is taken.
    signs = jnp.array([[1.0, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    corners = (signs * box.size) @ box.mat.T
    corners = jnp.where((corners @ normal > 0)[:, None], -corners, corners)
    distances = (box.pos - plane.pos) @ normal + corners @ normal
    points = box.pos + corners - distances[:, None] / 2 * normal
    return distances, points, jnp.stack([math.make_frame(normal)] * 4)
