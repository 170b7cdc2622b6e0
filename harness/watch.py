"""Watching a trained policy: returns of many episodes, also in the original environment; videos.

    python ALGORITHM.py --evaluate runs/FOLDER --eval-episodes 100 --engine dm_control

A policy is `act(obs, key=None)`, (B, O) -> (B, A) in [-1, 1], which draws its noise with the key,
and without one takes none.
"""

import contextlib
import csv
import dataclasses
import fcntl
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.errors
import jax
import mujoco
import numpy as np
from tqdm import tqdm

from harness import command_line, contract, machine, runs
from harness.contract import Act, Algorithm, Environments, VectorEnv
from harness.errors import RunError, one_line

ORIGINAL = "dm_control"  # a value of --engine, here only
SEED = 2_000_003  # added to --seed: initial states of neither training nor its evaluations
RESAMPLES, CONFIDENCE = 10_000, 0.95
MAX_EPISODES = 10_000
BACKENDS = ("egl", "osmesa")  # that draw without a display, in this order
FILM_SECONDS = 1_800  # after which a drawing process is given up
HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Motion:
    """One episode as it is drawn: a model, and its poses (T, nq) at equal steps of time (s)."""

    model: mujoco.MjModel
    qpos: np.ndarray
    timestep: float


@dataclasses.dataclass(frozen=True)
class Episodes:
    returns: np.ndarray  # (E,)  float64
    lengths: np.ndarray  # (E,)  control steps
    motion: Motion | None  # the first episode; None where it cannot be drawn


# --- playing --------------------------------------------------------------------------------------


def play(env: VectorEnv, act: Act, start: Any, step, kind: str = "", key=None) -> Episodes:
    """One episode in each environment from the state `start`.

    step: `jax.jit(env.step)`, kept by the caller. kind: what the progress bar says. key: of the
    policy's noise, or None. Raises the environments' UsageError as `env.check`.
    """
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    alive, state, poses = np.ones(env.num_envs, bool), start, []
    model = env.drawn_model(start)
    for t in _progress(env.episode_length, kind):
        if model is not None and alive[0]:
            poses.append(env.pose(state))
        state = step(state, act(state.obs, None if key is None else jax.random.fold_in(key, t)))
        returns += np.where(alive, state.reward, 0.0)
        lengths += alive
        alive &= ~np.asarray(state.terminated | state.truncated)
        if not alive.any():
            break
    motion = None if model is None else Motion(model, np.stack(poses), env.control_timestep)
    return Episodes(env.check(returns), lengths, motion)


def play_original(original: Any, act: Act, episodes: int, kind: str = "", key=None) -> Episodes:
    """The same in a task's original, one episode after the other; see tasks/original.py."""
    original.restart()
    returns, lengths, poses, motion = np.zeros(episodes), np.zeros(episodes, int), [], None
    for k in _progress(episodes, kind):
        obs, over = original.reset(), False
        episode_key = None if key is None else jax.random.fold_in(key, k)
        while not over:
            if k == 0:
                poses.append(original.pose)
            noise = None if key is None else jax.random.fold_in(episode_key, int(lengths[k]))
            obs, reward, over = original.step(np.asarray(act(obs[None], noise))[0])
            returns[k] += reward
            lengths[k] += 1
        if k == 0:
            motion = Motion(original.model, np.stack(poses), original.control_timestep)
    return Episodes(returns, lengths, motion)


def _progress(count: int, text: str):
    return tqdm(range(count), desc=text, leave=False, disable=not sys.stderr.isatty())


# --- what the returns say -------------------------------------------------------------------------


def mean_interval(returns: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean, (E,): percentile bootstrap over episodes, RESAMPLES resamples.

    Not Student's: returns are bounded and skewed, and this one stays within what was seen.
    """
    import scipy.stats  # here: at the top it would be a third of every start, also of a training

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all returns alike: an interval of no width, not an error
        result = scipy.stats.bootstrap(
            (returns,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, 10**7 // len(returns)),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summary(episodes: Episodes, success: float | None) -> dict[str, float | int | None]:
    """One row of evaluation.csv. success: the return from which an episode counts as such."""
    returns = episodes.returns
    low, high = mean_interval(returns)
    row = {"mean": returns.mean(), "low": low, "high": high, "std": returns.std(ddof=1)}
    row |= {"min": returns.min(), "median": np.median(returns), "max": returns.max()}
    row |= {"length": episodes.lengths.mean()}
    row = {name: float(value) for name, value in row.items()}
    row |= dict.fromkeys(("success", "success_low", "success_high"))
    if success is not None:
        import scipy.stats

        count = int((returns >= success).sum())
        interval = scipy.stats.binomtest(count, len(returns)).proportion_ci(CONFIDENCE, "wilson")
        row |= {"success": count / len(returns)}
        row |= {"success_low": float(interval.low), "success_high": float(interval.high)}
    return row


def table(rows: list[dict], success: float | None, kinds: Mapping[str, str]) -> str:
    """The rows of `summary` for people, a line each."""
    width = max(map(len, kinds.values()))
    text = f"{'':{width}}      mean  95% interval           std      min   median      max   length"
    lines = [text + ("  success (95% interval)" if success is not None else "")]
    for row in rows:
        interval = f"[{row['low']:.1f}, {row['high']:.1f}]"
        numbers = "".join(f"{row[name]:9.1f}" for name in ("std", "min", "median", "max", "length"))
        line = f"{kinds[row['kind']]:{width}}  {row['mean']:8.1f}  {interval:<18}" + numbers
        if success is not None:
            bounds = f"[{row['success_low']:.2f}, {row['success_high']:.2f}]"
            line += f"  {row['success']:.2f} {bounds}"
        lines.append(line)
    return "\n".join(lines)


# --- the command ----------------------------------------------------------------------------------


def evaluate(algorithm: Algorithm, args: Any, environments: Environments) -> int:
    """`--evaluate`: plays, prints a table, adds to evaluation.csv and .json. Returns 0.

    args: the run's own, with evaluate (the run folder), engine, eval_episodes, seed, num_threads,
    warp_headroom and capture_video from the command line.

    Raises:
      RunError, environments.UsageError: bad input; nothing has been written.
    """
    bounds = {"eval_episodes": (2, MAX_EPISODES), "seed": (0, contract.MAX_INT)}
    command_line.check_bounds(args, bounds)
    folder, began = Path(args.evaluate), time.perf_counter()
    _earlier(folder)
    act = _policy(args, algorithm.load_policy)
    env, played = _played(algorithm, args, environments, act)
    engine = ORIGINAL if args.engine == ORIGINAL else env.engine
    count, kinds = args.eval_episodes, algorithm.kinds
    common = {"time": runs.now(), "env_id": args.env_id, "engine": engine, "seed": args.seed}
    common |= {"episodes": count, "seconds": round(time.perf_counter() - began, 1)}
    rows = [
        common | {"kind": kind} | summary(episodes, env.success)
        for kind, episodes in zip(kinds, played, strict=True)
    ]
    print(f"{folder}: {args.env_id}, engine {engine}, seed {args.seed}, {count} episodes a row")
    print(table(rows, env.success, kinds))
    print(f"95% interval of the mean: percentile bootstrap over episodes, {RESAMPLES:,} resamples")
    source = {"versions": machine.versions(), "git": machine.git_state(HERE)}
    records = [
        row | source | {"returns": one.returns.tolist(), "lengths": one.lengths.tolist()}
        for row, one in zip(rows, played, strict=True)
    ]
    print(f"written: {_add(folder, records)}", flush=True)
    if args.capture_video:
        name = f"evaluation__{engine}__seed{args.seed}.mp4".replace(" ", "_")
        _tell_film(folder / "videos" / name, played[1].motion, args.env_id)
    return 0


def _played(algorithm: Algorithm, args: Any, environments: Environments, act: Act):
    """A vector environment of the task, and the episodes of each of the algorithm's kinds."""
    seed, count, engine = args.seed + SEED, args.eval_episodes, args.engine
    original = environments.make_original(args.env_id, seed) if engine == ORIGINAL else None
    physics = ("native" if original else engine, seed, args.num_threads, args.warp_headroom)
    try:
        env = environments.make(args.env_id, 1 if original else count, *physics)
    except environments.UsageError as error:
        raise RunError(str(error).replace("--num-envs", "--eval-episodes")) from None
    check_fit(f"--evaluate: {args.evaluate}", act, env)
    kinds = list(zip(algorithm.kinds.values(), (jax.random.key(seed), None), strict=True))
    if original:
        return env, [play_original(original, act, count, *kind) for kind in kinds]
    start, step = env.first_states(), jax.jit(env.step)
    return env, [play(env, act, start, step, *kind) for kind in kinds]


def _policy(args, load_policy) -> Act:
    try:
        return load_policy(args.evaluate)
    except FileNotFoundError as error:
        reason = f"no {Path(error.filename).name}: nothing was saved in it yet"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"its policy cannot be read ({one_line(error)})"
    raise RunError(f"--evaluate: {args.evaluate}: {reason}")


def check_fit(policy: str, act: Act, env: VectorEnv) -> None:
    """Raises RunError, which begins with `policy`, unless `act` is for the task's sizes."""
    try:
        size = act(np.zeros((1, env.observation_size), np.float32)).shape[-1]
    except (flax.errors.FlaxError, TypeError, ValueError) as error:
        size = one_line(error)
    if size != env.action_size:
        raise RunError(f"{policy}: its policy does not fit {env.env_id} and config.json ({size})")


def _earlier(folder: Path) -> list[dict]:
    """The records of evaluation.json so far. Raises RunError if nothing could be added."""
    path = folder / "evaluation.json"
    try:
        descriptor, probe = tempfile.mkstemp(dir=folder)
        os.close(descriptor)
        os.unlink(probe)
        records = json.loads(path.read_text()) if path.exists() else []
        if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
            raise ValueError("no list of evaluations")
    except OSError as error:
        raise RunError(f"--evaluate: cannot write in {folder} ({error.strerror})") from None
    except ValueError as error:
        text = f"{path} is damaged ({one_line(error)}); move it away"
        raise RunError(f"--evaluate: {text}") from None
    return records


def _add(folder: Path, records: list[dict]) -> str:
    """Adds to evaluation.json, one process after the other, and returns what was written."""
    with (folder / "config.json").open() as held:  # the folder's own lock is a training's
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        return _write(folder, _earlier(folder) + records)


def _write(folder: Path, records: list[dict]) -> str:
    """Writes evaluation.json, and evaluation.csv from it, each whole or not at all."""
    data = json.dumps(records, indent=1, default=str) + "\n"
    written = [runs.replace_file(folder / "evaluation.json", data.encode())]
    text, rows = io.StringIO(newline=""), [_csv_row(record) for record in records]
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    written.append(runs.replace_file(folder / "evaluation.csv", text.getvalue().encode()))
    return ", ".join(map(str, written))


def _csv_row(record: dict) -> dict:
    flat = {k: v for k, v in record.items() if not isinstance(v, dict | list)}
    versions, git = record.get("versions") or {}, record.get("git") or {}
    flat |= {name: versions.get(name) for name in ("jax", "mujoco", "dm-control")}
    return flat | {"commit": git.get("commit")}


# --- videos ---------------------------------------------------------------------------------------


def film_policy(algorithm: Algorithm, environments: Environments, args: Any, folder: Path) -> None:
    """`--capture-video` after training: an episode without noise on `native`, or a line why not.

    Nothing here ends the program but a KeyboardInterrupt: the training is done and saved.
    """
    path, motion = Path(folder) / "videos" / "trained.mp4", None
    with contextlib.suppress(environments.UsageError):  # another library's: not on `native`
        env = environments.make(args.env_id, 1, "native", args.seed + SEED, args.num_threads)
        act = algorithm.load_policy(folder)
        motion = play(env, act, env.first_states(), jax.jit(env.step)).motion
    _tell_film(path, motion, args.env_id)


def _tell_film(path: Path, motion: Motion | None, env_id: str) -> None:
    if motion is None:
        print(f"no video: {env_id} is another library's, and is not drawn here", flush=True)
        return
    try:
        reason = film(path, motion)
    except OSError as error:
        reason = f"cannot write {path} ({error.strerror})"
    print(f"no video: {reason}" if reason else f"video {path}", flush=True)


def film(path: Path, motion: Motion) -> str | None:
    """Writes an mp4, whole or not at all. Returns None, or one line that says why there is none.

    Drawn by film.py in another process, first with what MUJOCO_GL asks for, then with BACKENDS;
    no display is needed, and MUJOCO_GL=disable in this process is no hindrance. Raises OSError.
    """
    if importlib.util.find_spec("av") is None:
        return "the package av is missing; `pip install -r requirements.txt`"
    asked, reasons = os.environ.get("MUJOCO_GL", "").lower(), []
    backends = dict.fromkeys(
        (asked, *BACKENDS) if asked == "glfw" or asked in BACKENDS else BACKENDS
    )
    with tempfile.TemporaryDirectory() as scratch:
        model, qpos, video = (str(Path(scratch, name)) for name in ("m.mjb", "q.npy", "v.mp4"))
        mujoco.mj_saveModel(motion.model, model)
        np.save(qpos, motion.qpos)
        command = [sys.executable, str(HERE / "film.py"), model, qpos, video]
        command.append(format(motion.timestep, ".9g"))
        for backend in backends:
            reason = _draw(command, backend)
            if reason is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                runs.replace_file(path, Path(video).read_bytes())
                return None
            reasons.append(f"{backend}: {reason}")
    return f"MuJoCo cannot draw here ({'; '.join(reasons)}); install libegl1 or libosmesa6"


def _draw(command: list[str], backend: str) -> str | None:
    """Runs film.py. Returns None, or the last line that it said."""
    environment = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    options = dict(env=environment, capture_output=True, text=True, timeout=FILM_SECONDS)
    try:
        result = subprocess.run(command, **options)
    except subprocess.TimeoutExpired:
        return f"not done after {FILM_SECONDS} s"
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Exception", " "))]
    errors = [line for line in lines if "Error" in line] or lines
    return errors[0].strip()[:150] if errors else f"exit code {result.returncode}"
