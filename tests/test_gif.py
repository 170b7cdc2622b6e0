"""benchmarks/gif.py without its drawing: which poses, at what speed, how they are put together."""

import io
import types

import numpy as np
from PIL import Image

from benchmarks import gif
from harness import film, watch


def episode_of(steps: int, timestep: float) -> watch.Motion:
    """Its pose is the number of the step."""
    return watch.Motion(types.SimpleNamespace(), np.arange(steps)[:, None], timestep)


def drawn(monkeypatch, motion: watch.Motion, *part) -> list[int]:
    poses = []

    def frames(model, qpos):
        poses.extend(qpos[:, 0].tolist())
        return [np.zeros((48, 64, 3), np.uint8) for _ in qpos]

    monkeypatch.setattr(film, "frames", frames)
    assert len(gif.pictures(motion, *part)) == len(poses)
    return poses


def test_pictures_are_of_the_part_asked_for(monkeypatch):
    assert drawn(monkeypatch, episode_of(1000, 0.025), 2.0, 1.0, 100) == list(range(80, 120, 4))
    assert drawn(monkeypatch, episode_of(1000, 0.01), 0.0, 0.2, 50) == [0, 5, 10, 15]
    # An episode that ended before: what there is of its end.
    assert drawn(monkeypatch, episode_of(40, 0.025), 2.0, 0.5, 100) == [20, 24, 28, 32, 36]
    assert drawn(monkeypatch, episode_of(8, 0.025), 2.0, 4.0, 100) == [0, 4]


def test_it_is_endless_and_as_fast_as_the_task():
    shades = [Image.new("RGB", (64, 48), (k, 0, 0)) for k in (10, 100, 200)]
    shorter = [Image.new("RGB", (64, 48), (0, k, 0)) for k in (10, 200)]
    frames = gif.side_by_side([shades, shorter])
    assert len(frames) == 2
    assert frames[0].size == (64 + gif.GAP + 64, 48)
    found = Image.open(io.BytesIO(gif.encoded(frames, 70, 16)))
    assert (found.n_frames, found.info["loop"], found.info["duration"]) == (2, 0, 70)
    found.seek(1)
    picture = found.convert("RGB")
    assert picture.getpixel((5, 5))[0] > 90  # the second shade on the left
    assert picture.getpixel((120, 5))[1] > 150  # and on the right
