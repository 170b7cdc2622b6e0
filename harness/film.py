"""Draws an episode as a video: `watch.film` runs this file in a process of its own.

    MUJOCO_GL=egl python film.py model.mjb qpos.npy out.mp4 0.025

Of its own, because MuJoCo settles at import what it draws with, and the process that trains has
imported it without a display; because a driver that crashes then ends nothing else; and so that
the next way to draw can be tried. It needs mujoco, numpy and av (which brings FFmpeg), not JAX.
"""

import fractions
import sys

import av
import mujoco
import numpy as np

WIDTH, HEIGHT, RATE = 640, 480, 30  # pixels, the most that any model allows; frames/s, about
PREFERRED = ("side", "x", "y-axis")  # of several cameras that follow the robot
DISTANCE, ELEVATION, AZIMUTH = 1.5, -20.0, 120.0  # in sizes of the model, degrees, degrees


def camera(model: mujoco.MjModel) -> int | mujoco.MjvCamera:
    """The model's own camera that shows the robot: one that follows it, else the first.

    A camera inside the robot (an eye, a hand) is fixed to a body and comes in neither place. A
    model without a camera gets one that looks at its middle.
    """
    tracking = int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)
    follows = [k for k in range(model.ncam) if model.cam_mode[k] == tracking]
    preferred = [k for k in follows if model.camera(k).name in PREFERRED]
    outside = [k for k in range(model.ncam) if model.cam_bodyid[k] == 0]
    for found in (preferred, follows, outside):
        if found:
            return found[0]
    free = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, free)
    free.distance = DISTANCE * model.stat.extent
    free.elevation, free.azimuth = ELEVATION, AZIMUTH
    return free


def frames(model: mujoco.MjModel, qpos: np.ndarray):
    """Yields a picture of each pose: (HEIGHT, WIDTH, 3) bytes. qpos: (T, nq)."""
    data, view = mujoco.MjData(model), camera(model)
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for pose in qpos:
            data.qpos[:] = pose
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, view)
            yield renderer.render()


def encode(path: str, pictures, rate: fractions.Fraction) -> int:
    """Writes H.264 as browsers play it. Returns the number of pictures. rate: a second."""
    count = 0
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count


def main(model_path: str, qpos_path: str, video_path: str, timestep: str) -> None:
    """timestep: s, between two poses. Poses are left out for about RATE pictures a second."""
    model, qpos = mujoco.MjModel.from_binary_path(model_path), np.load(qpos_path)
    seconds = fractions.Fraction(timestep)
    stride = max(1, round(1 / (RATE * seconds)))
    encode(video_path, frames(model, qpos[::stride]), 1 / (stride * seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
