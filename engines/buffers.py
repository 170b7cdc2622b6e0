"""How large MuJoCo Warp's buffers must be for a model, measured in MuJoCo's C.

Warp keeps contacts and constraint rows in buffers of a fixed size and drops what does not fit.
Its defaults know nothing of the model, so the sizes come from random play (`measure`), times
the headroom that the user gives, for what a trained policy does and random play does not.
"""

import dataclasses
import math

import mujoco
import numpy as np

EPISODES, STEPS, HOLD = 8, 60, 10  # of random play; control steps for which an action is held
# What an environment gets at least: room for a model that hardly touches anything.
MIN_CONTACTS, MIN_ROWS = 8, 16


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Buffer sizes of one environment."""

    contacts: int  # contacts, and as many pairs of geoms that are near enough to be looked at
    rows: int  # rows of the constraint Jacobian: contacts, joint limits, friction, equalities

    def scaled(self, headroom: float) -> "Sizes":
        """Returns `headroom` times these sizes, and no less than the minimum."""
        contacts = max(MIN_CONTACTS, math.ceil(headroom * self.contacts))
        return Sizes(contacts, max(MIN_ROWS, math.ceil(headroom * self.rows)))


def measure(model: mujoco.MjModel, num_substeps: int, starts: dict[str, np.ndarray]) -> Sizes:
    """The most that each buffer held in random play.

    Args:
      model: as it is stepped.
      num_substeps: of a control step.
      starts: initial states, one an episode: qpos (E, nq), qvel (E, nv), act (E, na).

    Warp's contact buffer first holds the pairs whose bounding spheres touch (its other filters
    only take some away), and these are many more than the contacts: 209 to 27 on the dog. Every
    second episode is played with full force, every fourth with none: a heap has contacts too.
    """
    random, data = np.random.default_rng(0), mujoco.MjData(model)
    low, high = model.actuator_ctrlrange.T
    first, second = _colliding_pairs(model)
    contacts = rows = 0
    for episode, (qpos, qvel, act) in enumerate(
        zip(starts["qpos"], starts["qvel"], starts["act"], strict=True)
    ):
        mujoco.mj_resetData(model, data)
        data.qpos, data.qvel, data.act = qpos, qvel, act
        for i in range(STEPS):
            if i % HOLD == 0:
                share = random.uniform(size=model.nu)
                share = np.round(share) if episode % 2 else share
                data.ctrl[:] = (low + (high - low) * share) * (episode % 4 > 0)
            mujoco.mj_step(model, data, num_substeps)
            near = _near(model, data, first, second)
            contacts, rows = max(contacts, near, data.ncon), max(rows, data.nefc)
    return Sizes(contacts, rows)


def _colliding_pairs(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """The geoms (P,), (P,) of every pair that MuJoCo's filters let collide."""
    first, second = np.triu_indices(model.ngeom, 1)
    bodies = model.geom_bodyid[first], model.geom_bodyid[second]
    welds = [model.body_weldid[body] for body in bodies]
    parents = [model.body_weldid[model.body_parentid[weld]] for weld in welds]
    types, affinities = model.geom_contype, model.geom_conaffinity
    keep = (types[first] & affinities[second]) | (types[second] & affinities[first])
    keep = (keep > 0) & (welds[0] != welds[1])
    if not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_FILTERPARENT:
        child = (welds[0] == parents[1]) | (welds[1] == parents[0])
        keep &= ~(child & (welds[0] > 0) & (welds[1] > 0))
    signature = (np.minimum(*bodies) << 16) + np.maximum(*bodies)
    keep &= ~np.isin(signature, model.exclude_signature)
    explicit = np.minimum(model.pair_geom1, model.pair_geom2) * model.ngeom
    explicit = explicit + np.maximum(model.pair_geom1, model.pair_geom2)
    keep |= np.isin(first * model.ngeom + second, explicit)
    return first[keep], second[keep]


def _near(model, data, first: np.ndarray, second: np.ndarray) -> int:
    """How many of the pairs have bounding spheres that touch, a plane being unbounded."""
    gap = model.geom_margin[first] + model.geom_margin[second]
    gap = gap + model.geom_rbound[first] + model.geom_rbound[second]
    offset = data.geom_xpos[second] - data.geom_xpos[first]
    distance = np.linalg.norm(offset, axis=1)
    normals = data.geom_xmat.reshape(-1, 3, 3)[..., 2]
    for plane, sign in ((first, 1), (second, -1)):
        height = sign * (offset * normals[plane]).sum(axis=1)
        distance = np.where(model.geom_rbound[plane] == 0, height, distance)
    return int((distance <= gap).sum())
