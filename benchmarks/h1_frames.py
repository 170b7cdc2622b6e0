"""A frame of each H1 task, as it starts, in one picture.

MUJOCO_GL=egl python benchmarks/h1_frames.py       # or osmesa; writes h1.png beside this file
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("MUJOCO_GL", "egl")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import matplotlib.pyplot as plt
import mujoco
import numpy as np

import envs
from tasks import h1

PATH = pathlib.Path(__file__).with_name("h1.png")
WIDTH, HEIGHT, COLUMNS = 480, 360, 4  # pixels of a frame, frames in a row
# The camera's distance (m), turn and tilt (degrees), and what it looks at.
DEFAULT = (3.6, 130, -12, (0.1, 0, 0.9))
VIEWS = {
    "stair": (8, 130, -18, (1.5, 0, 0.6)),
    "slide": (10, 130, -15, (2.5, 0, 0.7)),
    "crawl": (8, 130, -18, (2.5, 0, 0.6)),
    "pole": (9, 140, -35, (2, 0, 0.5)),
    "hurdle": (15, 160, -20, (4.5, 0, 0.3)),
    "maze": (13, 110, -60, (2.8, 3.0, 0)),
}


def frame(name: str) -> np.ndarray:
    """The task's first state from its view, (HEIGHT, WIDTH, 3) bytes."""
    model = envs.load_task(f"h1-{name}").model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.distance, camera.azimuth, camera.elevation, camera.lookat = VIEWS.get(name, DEFAULT)
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        renderer.update_scene(data, camera)
        return renderer.render()


def main() -> None:
    """Draws the picture."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = -(-len(h1.TASKS) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 2.45 * rows))
    for axis in axes.flat:
        axis.axis("off")
    for axis, name in zip(axes.flat, h1.TASKS, strict=False):
        axis.imshow(frame(name))
        axis.set_title(f"h1-{name}", fontsize=10)
    figure.tight_layout(pad=0.4)
    figure.savefig(PATH, dpi=90)


if __name__ == "__main__":
    main()
