"""What every task is made of: a `Task`, the `Physics` it looks at, and dm_control's own resets."""

import copy
import dataclasses
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import flax.struct
import jax
import mujoco
import numpy as np
from absl import logging

# An attribute of dm_control's own cheetah.xml, about which nobody here can do anything: the
# models compiled here warn through `warnings`, those compiled by dm_control through absl.
_KNOWN_WARNING = "compiler attribute 'settotalmass' is deprecated"
warnings.filterwarnings("ignore", message=_KNOWN_WARNING, category=UserWarning)
logging.get_absl_logger().addFilter(lambda record: _KNOWN_WARNING not in record.getMessage())

ENGINES = ("native", "mjx", "warp")


@flax.struct.dataclass
class Physics:
    """What a task may look at: one environment's physics after a control step (no batch axis)."""

    qpos: jax.Array  # (nq,)  generalised positions
    qvel: jax.Array  # (nv,)  generalised velocities
    act: jax.Array  # (na,)  actuator activations
    ctrl: jax.Array  # (nu,)  control applied during the step, in the actuators' own units
    sensors: dict[str, jax.Array]  # sensor name -> (dim,)
    episode: dict[str, jax.Array]  # (k, dim) by field of the model: what this episode changed;
    # and what the task remembers, (1, 1) each


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of one domain, independent of the engine that will step it.

    Attributes:
      domain, name: dm_control's names, where it has the task; the id is `domain-name`.
      model: the original model plus the named sensors that `observe` and `reward` read.
      observe: Physics -> (O,) observation, the original's entries in the original's order.
      reward: Physics -> () reward.
      terminated: Physics -> () bool, or None for a task that only ends by its time limit.
      episode: what a reset changes in the model: field of MjModel -> names of the elements whose
        rows it draws; no names: all rows.
      differences: what differs from the original, for the table of tasks; empty for nothing.
      engines: those that can step it.
      mjx_floor: on `mjx`, the geoms that touch anything, and then only `mjx_obstacles`; no names:
        all contacts of the model.
      mjx_obstacles: geoms that they touch.
      memory: what the task remembers within an episode, by its value at the start; it stands in
        `Physics.episode` as (1, 1).
      remember: Physics -> those values after a control step.
      success: the return of an episode that counts as success, or None.
      starts: seed -> the initial states, with the attributes of `InitialStates`; None for
        dm_control's.
    """

    domain: str
    name: str
    model: mujoco.MjModel
    observe: Callable[[Physics], jax.Array]
    reward: Callable[[Physics], jax.Array]
    terminated: Callable[[Physics], jax.Array] | None = None
    episode: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    differences: str = ""
    engines: tuple[str, ...] = ENGINES
    mjx_floor: tuple[str, ...] = ()
    mjx_obstacles: tuple[str, ...] = ("floor",)
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    remember: Callable[[Physics], dict[str, jax.Array]] | None = None
    success: float | None = None
    starts: Callable[[int], Any] | None = None


def import_dm_control(name: str):
    """Imports one of dm_control's modules without asking for a display."""
    os.environ.setdefault("MUJOCO_GL", "disable")
    return importlib.import_module(f"dm_control.{name}")


def read_spec(domain: str, maker: str = "get_model_and_assets", **options: Any) -> mujoco.MjSpec:
    """Returns dm_control's own MJCF of a domain as an editable specification.

    Args:
      domain: dm_control's module.
      maker: that module's function that makes the MJCF, alone or with the files that it names.
      **options: handed to `maker`, such as the size of the floor.
    """
    made = getattr(import_dm_control(f"suite.{domain}"), maker)(**options)
    common = import_dm_control("suite.common")
    xml, assets = made if isinstance(made, tuple) else (made, common.ASSETS)
    files = {name: _bytes(content) for name, content in assets.items()}
    return mujoco.MjSpec.from_string(_bytes(xml).decode(), include=files, assets=files)


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


_FRAME_SENSORS = {
    "pos": mujoco.mjtSensor.mjSENS_FRAMEPOS,
    "xaxis": mujoco.mjtSensor.mjSENS_FRAMEXAXIS,
    "yaxis": mujoco.mjtSensor.mjSENS_FRAMEYAXIS,
    "zaxis": mujoco.mjtSensor.mjSENS_FRAMEZAXIS,
    "quat": mujoco.mjtSensor.mjSENS_FRAMEQUAT,
    "linvel": mujoco.mjtSensor.mjSENS_FRAMELINVEL,
}
_FRAME_OBJECTS = {
    "body": mujoco.mjtObj.mjOBJ_XBODY,  # the body's own frame: dm_control's xpos, xmat
    "inertial": mujoco.mjtObj.mjOBJ_BODY,  # the body's centre of mass: dm_control's xipos
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "site": mujoco.mjtObj.mjOBJ_SITE,
}


def add_frame_sensors(spec: mujoco.MjSpec, kind: str, names: tuple[str, ...], *frames: str):
    """Adds sensors `{name}_{frame}` in world coordinates.

    Args:
      spec: changed in place.
      kind: "body", "inertial" (the body's centre of mass), "geom" or "site".
      names: MJCF names of the objects.
      *frames: any of "pos" (m), "xaxis", "yaxis", "zaxis" (unit vectors), "quat" (w, x, y, z),
        "linvel" (m/s).
    """
    for name in names:
        for frame in frames:
            spec.add_sensor(
                name=f"{name}_{frame}",
                type=_FRAME_SENSORS[frame],
                objtype=_FRAME_OBJECTS[kind],
                objname=name,
            )


def joint_addresses(model: mujoco.MjModel, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where hinges and slides stand in qpos and in qvel, (len(names),) each."""
    ids = [model.joint(name).id for name in names]
    return model.jnt_qposadr[ids], model.jnt_dofadr[ids]


def episode_rows(model: mujoco.MjModel, episode: dict[str, tuple[str, ...]]) -> dict:
    """Row numbers of a `Task.episode` in the fields of a model: field -> (k,)."""
    rows = {}
    for field, names in episode.items():
        element = getattr(model, field.split("_")[0], None)  # model.body, model.geom, model.site
        ids = [element(name).id for name in names] or range(len(getattr(model, field)))
        rows[field] = np.array(ids)
    return rows


def read_rows(model: mujoco.MjModel, rows: dict) -> dict[str, np.ndarray]:
    """The values of a model at `episode_rows`: field -> (k, dim)."""
    return {k: np.array(getattr(model, k)[ids]).reshape(len(ids), -1) for k, ids in rows.items()}


def write_rows(model: mujoco.MjModel, rows: dict, values: dict[str, np.ndarray]) -> None:
    """Changes a model at `episode_rows`. values: field -> (k, dim)."""
    for field, ids in rows.items():
        array = getattr(model, field)
        array[ids] = np.reshape(values[field], array[ids].shape)


def hinge_slices(model: mujoco.MjModel) -> tuple[slice, slice]:
    """Returns where the hinge joints stand in qpos and in qvel: what a free joint leaves.

    Raises:
      ValueError: they do not stand side by side.
    """
    hinges = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
    count, first = len(hinges), hinges[0]
    if hinges[-1] - first + 1 != count:
        raise ValueError(f"hinge joints with others in between: {hinges}")
    position, velocity = model.jnt_qposadr[first], model.jnt_dofadr[first]
    return slice(position, position + count), slice(velocity, velocity + count)


def reseed(random: np.random.RandomState, seed: int, index: int) -> None:
    """Gives dm_control's generator what batch number `index` of seed `seed` begins with."""
    random.seed(np.random.SeedSequence([seed, index]).generate_state(8))


class InitialStates:
    """Initial states drawn by dm_control's own `initialize_episode`.

    Batch number `index` of seed `seed` is always the same: a run that resumes draws what the
    uninterrupted run would have drawn.
    """

    def __init__(self, task: Task, seed: int):
        wrapper = import_dm_control("mujoco.wrapper")
        suite = import_dm_control("suite")
        self._seed = seed
        # Not compiled a second time: the task's model is the domain's own, with more sensors.
        model = wrapper.MjModel(copy.copy(task.model))
        with mock.patch.object(wrapper.MjModel, "from_xml_string", return_value=model):
            self._env = suite.load(task.domain, task.name, task_kwargs={"random": seed})
        self._rows = episode_rows(self._env.physics.model.ptr, task.episode)
        physics_timestep = self._env.physics.timestep()
        self.control_timestep: float = self._env.control_timestep()
        self.num_substeps = round(self.control_timestep / physics_timestep)
        self.episode_length = round(self._env._step_limit)

    def draw(self, index: int, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Draws `count` states.

        Returns:
          qpos (count, nq), qvel (count, nv) and act (count, na); and what the episodes changed in
          the model, by field (count, k, dim).
        """
        reseed(self._env.task.random, self._seed, index)
        physics = self._env.physics
        states: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "act": []}
        episodes: dict[str, list[np.ndarray]] = {field: [] for field in self._rows}
        for _ in range(count):
            with physics.reset_context():
                self._env.task.initialize_episode(physics)
            for field, values in states.items():
                values.append(np.array(getattr(physics.data, field)))
            for field, value in read_rows(physics.model.ptr, self._rows).items():
                episodes[field].append(value)
        stack = functools.partial(jax.tree.map, np.stack, is_leaf=lambda x: isinstance(x, list))
        return stack(states), stack(episodes)

    def crowded(self, count: int) -> dict[str, np.ndarray]:
        """`count` states in which buffers for contacts are measured: here, any start."""
        return self.draw(0, count)[0]
