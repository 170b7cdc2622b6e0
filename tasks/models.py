"""dm_control's own models: read, given sensors, and looked into."""

import importlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from absl import logging

# An attribute of dm_control's own cheetah.xml, about which nobody here can do anything: the
# models compiled here warn through `warnings`, those compiled by dm_control through absl.
_KNOWN_WARNING = "compiler attribute 'settotalmass' is deprecated"
warnings.filterwarnings("ignore", message=_KNOWN_WARNING, category=UserWarning)
logging.get_absl_logger().addFilter(lambda record: _KNOWN_WARNING not in record.getMessage())


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
