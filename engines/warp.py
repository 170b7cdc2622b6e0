"""MJX, impl `warp`: MuJoCo Warp behind MJX's interface. Needs warp-lang."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from engines import PhysicsState, buffers, mjx_kinematics
from engines.mjx import import_mjx, with_rows


class WarpEngine:
    """MJX, impl `warp`: full contacts; for an NVIDIA GPU, and for a CPU in tests.

    Contacts and constraint rows live in buffers of a fixed size, `sizes` for each environment.
    Contacts are shared by all N, so where these overflow, every environment's step is marked.
    Inside an outer `vmap` over M batches, give M times the headroom.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_substeps: int,
        num_envs: int,
        sizes: buffers.Sizes,
        rows: dict[str, np.ndarray],
    ):
        mjx = import_mjx()
        import warp
        from mujoco.mjx.third_party.mujoco_warp._src.types import OverflowType as Overflow

        from engines import warp_contacts

        warp_contacts.install()
        warp.config.log_level = warp.LOG_WARNING  # not a line for each kernel that is loaded
        model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)  # as in MjxEngine
        self._mjx, self._num_substeps, self.sizes = mjx, num_substeps, sizes
        self._rows = rows
        # Geoms fixed to the world, where an episode moves any body or geom.
        moves = any(name.startswith(("body_", "geom_")) for name in rows)
        fixed = model.body_weldid[model.geom_bodyid] == 0
        self._fixed = np.flatnonzero(fixed & moves)
        self._parents, self._bodies = model.body_parentid, model.geom_bodyid[self._fixed]
        # Not a solver that ran out of iterations: that is allowed, as in C.
        contacts, rows = ("BROADPHASE", "NARROWPHASE", "CCD"), ("NEFC", "NJMAX_NNZ")
        self._full = int(sum(Overflow[name] for name in contacts + rows))
        quiet = {"opt._impl.warn_overflow": 0}  # no line from each environment: we count and raise
        self._model = mjx.put_model(model, impl="warp").tree_replace(quiet)
        # Position and velocity sensors read no forces, so here there are none to compute; but the
        # flag leaves out the contacts too.
        contacts_read = (model.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT).any()
        unread = 0 if contacts_read else mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
        idle = model.opt.disableflags | unread
        self._sensing = self._model.tree_replace({"opt.disableflags": mjx.DisableBit(idle)})
        stages = np.repeat(model.sensor_needstage, model.sensor_dim)
        self._fresh = stages != mujoco.mjtStage.mjSTAGE_ACC  # (nsensordata,)
        room = {"naconmax": num_envs * sizes.contacts, "njmax": sizes.rows}
        self._data = mjx.make_data(model, impl="warp", **room)

    def step(
        self, state: PhysicsState, ctrl: jax.Array, episode: dict[str, jax.Array]
    ) -> tuple[PhysicsState, jax.Array, jax.Array]:
        """As `NativeEngine.step`; an overflowed buffer is a bit of MuJoCo Warp's OverflowType."""
        return jax.vmap(self._step_one)(state, ctrl, episode)

    def _step_one(self, state: PhysicsState, ctrl: jax.Array, episode: dict[str, jax.Array]):
        model, sensing = (with_rows(m, self._rows, episode) for m in (self._model, self._sensing))
        fields = {"qpos": state.qpos, "qvel": state.qvel, "act": state.act, "ctrl": ctrl}
        data = self._data.replace(**fields, qacc_warmstart=state.warmstart)
        if self._fixed.size:  # Warp takes these geoms' frames from the data as it was made
            place = mjx_kinematics.in_world(self._parents, model.body_pos, model.body_quat)
            offsets = model.geom_pos[self._fixed], model.geom_quat[self._fixed]
            pos, mat = mjx_kinematics.attach(*place, self._bodies, *offsets)
            pos = data.geom_xpos.at[self._fixed].set(pos)
            data = data.replace(geom_xpos=pos, geom_xmat=data.geom_xmat.at[self._fixed].set(mat))
        substep = functools.partial(self._mjx.step, model)
        data = jax.lax.fori_loop(0, self._num_substeps, lambda _, data: substep(data), data)
        # Sensors of the acceleration stage keep the last substep's values, as in dm_control.
        sensed = self._mjx.forward(sensing, data)
        sensordata = jnp.where(self._fresh, sensed.sensordata, data.sensordata)
        state = PhysicsState(data.qpos, data.qvel, data.act, data.qacc_warmstart)
        return state, sensordata, data._impl.overflow & self._full
