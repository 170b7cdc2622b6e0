"""Watching a trained policy: returns of many episodes, also in the original environment; videos.

    python flowrl_jax.py --evaluate runs/FOLDER --eval-episodes 100 --engine dm_control

It knows no algorithm: a policy is `act(obs, key=None)`, (B, O) -> (B, A) in [-1, 1], which draws
its noise with the key, and without one takes none (x0 = 0).
"""

import copy
import csv
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import flax.errors
import jax
import mujoco
import numpy as np
import scipy.stats
from tqdm import tqdm

import envs
from harness import command_line, machine, runs
from tasks.models import import_dm_control
from tasks.resets import episode_rows, reseed, write_rows
from vector_env import EnvState, VectorEnv

Act = Callable[..., jax.Array]
ORIGINAL = "dm_control"  # a value of --engine, here only
SEED = 2_000_003  # added to --seed: initial states of neither training nor its evaluations
RESAMPLES, CONFIDENCE = 10_000, 0.95
MAX_EPISODES = 10_000
BACKENDS = ("egl", "osmesa")  # that draw without a display, in this order
FILM_SECONDS = 1_800  # after which a drawing process is given up
KINDS = {"sampled": "sampled", "deterministic": "x0 = 0"}
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


def play(env: VectorEnv, act: Act, start: EnvState, step, key=None) -> Episodes:
    """One episode in each environment from `start`. step: `jax.jit(env.step)`, kept by the caller.

    Raises UsageError as `env.check`.
    """
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    alive, state, poses = np.ones(env.num_envs, bool), start, []
    for t in _progress(env.episode_length, "x0 = 0" if key is None else "sampled"):
        if env.task is not None and alive[0]:
            poses.append(np.asarray(state.physics.qpos[0]))
        state = step(state, act(state.obs, None if key is None else jax.random.fold_in(key, t)))
        returns += np.where(alive, state.reward, 0.0)
        lengths += alive
        alive &= ~np.asarray(state.terminated | state.truncated)
        if not alive.any():
            break
    return Episodes(env.check(returns), lengths, _motion(env, start, poses))


def _motion(env: VectorEnv, start: EnvState, poses: list[np.ndarray]) -> Motion | None:
    if env.task is None:  # another library's: its State is not only MuJoCo's
        return None
    model = copy.copy(env.task.model)
    rows = episode_rows(model, env.task.episode)
    write_rows(model, rows, {field: np.asarray(start.episode[field][0]) for field in rows})
    return Motion(model, np.stack(poses), env.control_timestep)


def starts(env: VectorEnv, seed: int) -> EnvState:
    """The first N initial states of `seed`: no two are one draw, and they are any engine's."""
    if env.task is None:
        return env.reset(jax.random.fold_in(jax.random.key(seed), 2**30))  # no time step
    states, episode = env._initial.draw(0, env.num_envs)
    return env.reset_to(states["qpos"], states["qvel"], states["act"], episode)


def play_original(env_id: str, act: Act, episodes: int, seed: int, key=None) -> Episodes:
    """The same in dm_control's own environment, one episode after the other.

    Its resets draw from the same generator as `starts`, so they are the same initial states.
    """
    domain, name = env_id.split("-", 1)
    original = import_dm_control("suite").load(domain, name, task_kwargs={"random": seed})
    reseed(original.task.random, seed, 0)
    spec, physics = original.action_spec(), original.physics
    middle, half_range = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
    returns, lengths, poses, motion = np.zeros(episodes), np.zeros(episodes, int), [], None
    for k in _progress(episodes, "x0 = 0" if key is None else "sampled"):
        outcome = original.reset()
        episode_key = None if key is None else jax.random.fold_in(key, k)
        while not outcome.last():
            if k == 0:
                poses.append(np.array(physics.data.qpos))
            noise = None if key is None else jax.random.fold_in(episode_key, int(lengths[k]))
            action = np.asarray(act(flatten(outcome.observation)[None], noise))[0]
            outcome = original.step(middle + half_range * action)
            returns[k] += outcome.reward
            lengths[k] += 1
        if k == 0:
            model = copy.copy(physics.model.ptr)
            motion = Motion(model, np.stack(poses), original.control_timestep())
    return Episodes(returns, lengths, motion)


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    """dm_control's entries in dm_control's order. (O,) float32"""
    entries = [np.ravel(entry) for entry in observation.values()]
    return np.concatenate(entries).astype(np.float32)


def _progress(count: int, text: str):
    return tqdm(range(count), desc=text, leave=False, disable=not sys.stderr.isatty())


# --- what the returns say -------------------------------------------------------------------------


def mean_interval(returns: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean, (E,): percentile bootstrap over episodes, RESAMPLES resamples.

    Not Student's: returns are bounded and skewed, and this one stays within what was seen.
    """
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
        count = int((returns >= success).sum())
        interval = scipy.stats.binomtest(count, len(returns)).proportion_ci(CONFIDENCE, "wilson")
        row |= {"success": count / len(returns)}
        row |= {"success_low": float(interval.low), "success_high": float(interval.high)}
    return row


def table(rows: list[dict], success: float | None) -> str:
    """The rows of `summary` for people, a line each."""
    text = "x0          mean  95% interval           std      min   median      max   length"
    lines = [text + ("  success (95% interval)" if success is not None else "")]
    for row in rows:
        interval = f"[{row['low']:.1f}, {row['high']:.1f}]"
        numbers = "".join(f"{row[name]:9.1f}" for name in ("std", "min", "median", "max", "length"))
        line = f"{KINDS[row['x0']]:8}{row['mean']:8.1f}  {interval:<18}" + numbers
        if success is not None:
            bounds = f"[{row['success_low']:.2f}, {row['success_high']:.2f}]"
            line += f"  {row['success']:.2f} {bounds}"
        lines.append(line)
    return "\n".join(lines)


# --- the command ----------------------------------------------------------------------------------


def evaluate(args, load_policy: Callable[[str], Act]) -> int:
    """`--evaluate`: plays, prints a table, adds to evaluation.csv and .json. Returns 0.

    Args:
      args: the run's own, with evaluate (the run folder), engine, eval_episodes, seed, num_threads,
        warp_headroom and capture_video from the command line.
      load_policy: run folder -> `act(obs, key=None)`.

    Raises:
      RunError, UsageError: bad input; nothing has been written.
    """
    command_line.check_bounds(args, 2, MAX_EPISODES, "eval_episodes")
    command_line.check_bounds(args, 0, 2**30, "seed")
    folder, began = Path(args.evaluate), time.perf_counter()
    records = _earlier(folder)
    act = _policy(args, load_policy)
    seed, count = args.seed + SEED, args.eval_episodes
    key, original = jax.random.key(seed), args.engine == ORIGINAL
    env = make_env(args, 1 if original else count, seed, "native" if original else args.engine)
    _check_fit(folder, act, env)
    if original:
        played = [play_original(args.env_id, act, count, seed, k) for k in (key, None)]
    else:
        start, step = starts(env, seed), jax.jit(env.step)
        played = [play(env, act, start, step, k) for k in (key, None)]
    engine = ORIGINAL if original else env.engine
    common = {"time": runs.now(), "env_id": args.env_id, "engine": engine, "seed": args.seed}
    common |= {"episodes": count, "seconds": round(time.perf_counter() - began, 1)}
    rows = [
        common | {"x0": kind} | summary(episodes, env.success)
        for kind, episodes in zip(KINDS, played, strict=True)
    ]
    print(f"{folder}: {args.env_id}, engine {engine}, seed {args.seed}, {count} episodes a row")
    print(table(rows, env.success))
    print(f"95% interval of the mean: percentile bootstrap over episodes, {RESAMPLES:,} resamples")
    source = {"versions": machine.versions(), "git": machine.git_state(HERE)}
    for row, episodes in zip(rows, played, strict=True):
        returns = {"returns": episodes.returns.tolist(), "lengths": episodes.lengths.tolist()}
        records.append(row | source | returns)
    print(f"written: {_write(folder, records)}", flush=True)
    if args.capture_video:
        name = f"evaluation__{engine}__seed{args.seed}.mp4".replace(" ", "_")
        _tell_film(folder / "videos" / name, played[1].motion, args.env_id)
    return 0


def make_env(args, num_envs: int, seed: int, engine: str) -> VectorEnv:
    """Environments to evaluate in. Raises UsageError, also where there is no original."""
    if args.engine == ORIGINAL and (":" in args.env_id or args.env_id.startswith("h1-")):
        whose = "another library's" if ":" in args.env_id else "HumanoidBench's"
        text = f"{args.env_id} is {whose}, dm_control has no such task; leave the flag out"
        raise envs.UsageError(f"--engine: {text}")
    try:
        return envs.make(args.env_id, num_envs, engine, seed, args.num_threads, args.warp_headroom)
    except envs.UsageError as error:
        raise envs.UsageError(str(error).replace("--num-envs", "--eval-episodes")) from None


def _policy(args, load_policy: Callable[[str], Act]) -> Act:
    try:
        return load_policy(args.evaluate)
    except FileNotFoundError as error:
        reason = f"no {Path(error.filename).name}: nothing was saved in it yet"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"its policy cannot be read ({runs.one_line(error)})"
    raise runs.RunError(f"--evaluate: {args.evaluate}: {reason}")


def _check_fit(folder: Path, act: Act, env: VectorEnv) -> None:
    try:
        size = act(np.zeros((1, env.observation_size), np.float32)).shape[-1]
    except (flax.errors.FlaxError, TypeError, ValueError) as error:
        size = runs.one_line(error)
    if size != env.action_size:
        text = f"its policy does not fit {env.env_id} and config.json ({size})"
        raise runs.RunError(f"--evaluate: {folder}: {text}")


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
        raise runs.RunError(f"--evaluate: cannot write in {folder} ({error.strerror})") from None
    except ValueError as error:
        text = f"{path} is damaged ({runs.one_line(error)}); move it away"
        raise runs.RunError(f"--evaluate: {text}") from None
    return records


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


def film_policy(folder: Path, args, act: Act) -> None:
    """`--capture-video` after training: an episode (x0 = 0) on engine `native`, or a line why not.

    Nothing here ends the program but a KeyboardInterrupt: the training is done and saved.
    """
    path, seed = Path(folder) / "videos" / "trained.mp4", args.seed + SEED
    motion = None
    if ":" not in args.env_id:
        env = envs.make(args.env_id, 1, "native", seed, args.num_threads)
        motion = play(env, act, starts(env, seed), jax.jit(env.step)).motion
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
    neither a display nor this process's MUJOCO_GL matters. Raises OSError.
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
