"""Tasks: a model with named sensors, an observation and a reward; no task knows an engine.

To import this is to import MuJoCo, whatever MUJOCO_GL asks for: simulation draws nothing.
"""

import os
import sys

try:
    import mujoco
except Exception as error:  # of whatever kind the drawing library's is
    asked = os.environ.get("MUJOCO_GL")
    if asked is None:
        raise
    os.environ["MUJOCO_GL"] = "disable"
    import mujoco  # noqa: F401

    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    said = f"MUJOCO_GL={asked}: MuJoCo does not load with it ({reason}); goes on without it"
    print(said, file=sys.stderr)
