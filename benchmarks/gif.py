"""A GIF of trained policies, side by side: an episode of each, without noise, on `native`.

    python benchmarks/gif.py runs/FOLDER [runs/FOLDER ...] --out docs/images/policies.gif

Each episode begins at the same initial state as `--evaluate`'s first; `--start` and `--seconds`
say which part of it is shown. Drawing needs libegl1, or libosmesa6 with MUJOCO_GL=osmesa. Not by
way of an mp4: its noise in still parts makes a GIF several times as large. A file above MAX_BYTES
is not written: pages load it each time that they are opened.
"""

import argparse
import io
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import envs
from benchmarks import inputs
from harness import command_line, contract, film, machine, runs, watch
from harness.errors import RunError

MAX_BYTES = 2_000_000
GAP, MARGIN = 4, 6  # pixels between pictures, and around a caption
BOUNDS = {  # of flags; a GIF counts in hundredths of a second
    "seed": (0, contract.MAX_INT),
    "start": (0, math.inf),
    "seconds": (0.01, math.inf),
    "rate": (1, 100),
    "width": (40, film.WIDTH),
    "colors": (2, 256),
}


def episode(folder: Path, act: contract.Act, seed: int) -> tuple[str, float, watch.Motion]:
    """The task of a run, and the return and poses of an episode of its policy."""
    env_id = runs.read_args(inputs.algorithm_of(folder).ALGORITHM, folder).env_id
    env = envs.make(env_id, 1, "native", seed + watch.SEED)
    watch.check_fit(str(folder), act, env)
    played = watch.play(env, act, env.first_states(), jax.jit(env.step))
    if played.motion is None:
        raise RunError(f"{folder}: {env.env_id} is another library's, and is not drawn here")
    return env.env_id, float(played.returns[0]), played.motion


def pictures(motion: watch.Motion, start: float, seconds: float, delay: int) -> list[Image.Image]:
    """A part of an episode, a picture every `delay` ms. start, seconds: s."""
    end = min(start + seconds, len(motion.qpos) * motion.timestep)
    times = np.arange(max(0.0, end - seconds), end - 1e-6, delay / 1000)
    poses = motion.qpos[(times / motion.timestep + 1e-6).astype(int)]
    return [Image.fromarray(drawn) for drawn in film.frames(motion.model, poses)]


def captioned(picture: Image.Image, text: str, width: int) -> Image.Image:
    """The picture at another width, with a line of text in its corner."""
    small = picture.resize((width, width * picture.height // picture.width), Image.LANCZOS)
    draw, font = ImageDraw.Draw(small), ImageFont.load_default(width // 20)
    box = draw.textbbox((2 * MARGIN, 2 * MARGIN), text, font)
    draw.rectangle((MARGIN, MARGIN, box[2] + MARGIN, box[3] + MARGIN), fill="white")
    draw.text((2 * MARGIN, 2 * MARGIN), text, "black", font)
    return small


def side_by_side(columns: list[list[Image.Image]]) -> list[Image.Image]:
    """One row of pictures for each moment."""
    frames = []
    for row in zip(*columns, strict=False):  # an episode that ended early ends all
        width = sum(picture.width for picture in row) + GAP * (len(row) - 1)
        frame, left = Image.new("RGB", (width, row[0].height), "white"), 0
        for picture in row:
            frame.paste(picture, (left, 0))
            left += picture.width + GAP
        frames.append(frame)
    return frames


def encoded(frames: list[Image.Image], delay: int, colors: int) -> bytes:
    """An endless GIF, with one palette for all frames and no dithering, which compresses badly."""
    shown = frames[:: max(1, len(frames) // 8)]
    sheet = Image.new("RGB", (frames[0].width, frames[0].height * len(shown)))
    for k, frame in enumerate(shown):
        sheet.paste(frame, (0, k * frame.height))
    palette, file = sheet.quantize(colors, dither=Image.Dither.NONE), io.BytesIO()
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    options = dict(append_images=flat[1:], duration=delay, loop=0, optimize=False)
    flat[0].save(file, "gif", save_all=True, **options)
    return file.getvalue()


def arguments() -> argparse.Namespace:
    """The command line. Raises RunError for a value that nothing could be drawn with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("policies.gif"))
    parser.add_argument("--seed", type=int, default=1, help="of the initial state")
    parser.add_argument("--start", type=float, default=2.0, help="s of the episode left out before")
    parser.add_argument("--seconds", type=float, default=4.0, help="s of the episode shown")
    parser.add_argument("--rate", type=int, default=15, help="pictures a second, about")
    parser.add_argument("--width", type=int, default=272, help="pixels of each picture")
    parser.add_argument("--colors", type=int, default=48, help="of the palette, at most 256")
    args = parser.parse_args()
    command_line.check_bounds(args, BOUNDS)
    if args.out.is_dir():
        raise RunError(f"--out: '{args.out}' is a folder; name a file in it")
    try:
        runs.check_writable(args.out.parent)
    except RunError:
        raise RunError(f"--out: cannot write in '{args.out.parent}'; choose another") from None
    return args


def draw(args: argparse.Namespace) -> None:
    """Plays, draws and writes. Raises RunError, UsageError, OSError; then nothing is written."""
    acts = [inputs.load_policy(folder) for folder in args.runs]
    machine.enable_compilation_cache()
    columns, delay = [], 10 * round(100 / args.rate)  # ms
    for folder, act in zip(args.runs, acts, strict=True):
        env_id, total, motion = episode(folder, act, args.seed)
        text = f"{env_id}, return {total:.0f}"
        print(f"{folder}: {text}", flush=True)
        drawn = pictures(motion, args.start, args.seconds, delay)
        columns.append([captioned(one, text, args.width) for one in drawn])
    frames = side_by_side(columns)
    content = encoded(frames, delay, args.colors)
    size = f"{len(content) / 1e6:.2f} MB, {len(frames)} pictures of {frames[0].size}"
    if len(content) > MAX_BYTES:
        much = f"{size}: above {MAX_BYTES / 1e6:g} MB"
        raise RunError(f"--out: {much}; lower --seconds, --rate or --width")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs.replace_file(args.out, content)
    print(f"{args.out}: {size}")


def main() -> int:
    """Draws what the command line says. Returns the exit code."""
    try:
        draw(arguments())
    except (RunError, envs.UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
