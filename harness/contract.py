"""What an algorithm, the harness and the environments owe each other: read this to write another.

    args      RunArgs, the flags of any run, which an algorithm's `Args` extends
    state     State, all that a run's chunk reads and writes
    functions Algorithm, what an algorithm's file hands to `launch.run`
    tasks     Environments and VectorEnv, what the harness asks of them; envs.py is one

Everything else of the harness follows from these, and none of it names an algorithm or a task.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np

MAX_INT = 2**30  # largest size and count of a flag: int32 with room to add
Metrics = dict[str, jax.Array]  # scalars by name
Act = Callable[..., jax.Array]  # act(obs, key=None): (B, O) -> (B, A) in [-1, 1]
Preset = Literal["auto", "paper", "gpu", "cpu"]


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags of any run. An algorithm's own `Args` extends it; presets change both."""

    env_id: str = "humanoid-run"  # task, `domain-task`; `python envs.py` lists them
    seed: int = 1  # seed of everything random
    total_timesteps: int = 1_000_000  # environment steps, summed over environments
    preset: Preset = "auto"  # defaults of the other flags; auto: gpu or cpu, as JAX finds
    engine: str = "auto"  # physics: native (MuJoCo in C), mjx, warp, or auto
    num_envs: int = 1  # parallel environments N
    log_interval: int = 1_000  # environment steps between log rows: one compiled train_chunk
    eval_interval: int = 10_000  # environment steps between evaluations; 0: only at the end
    eval_episodes: int = 10  # of each evaluation, of each of its two kinds; 128 begin apart
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or reward: end, or drop that update
    evaluate: str = ""  # a run folder: evaluates its policy, also with --engine dm_control

    runs_dir: str = "runs"  # folder in which the run's folder is made
    resume: str = ""  # run folder to go on with, from its newest checkpoint; its flags are kept
    checkpoint_interval: int = 50_000  # environment steps between checkpoints; 0: only at the end
    keep_checkpoints: int = 2  # how many, the newest, are kept
    checkpoint_replay: bool = True  # without, a resume first refills an empty one and is not exact
    capture_video: bool = False  # an mp4 of an episode, after training or with --evaluate
    track: bool = False  # metrics also to Weights & Biases; WANDB_MODE=offline: on disk only

    num_seeds: int = 1  # K: trains seeds seed .. seed + K - 1 at once, one run folder each
    num_devices: int = 1  # D, over which environments, replay and batch are split; 0: all there are
    distributed: bool = False  # this is one of several processes, on one host or more; see docs
    num_threads: int = 0  # threads of engine native; 0: all cores
    warp_headroom: float = 2.0  # buffers of engine warp, over what random play needed


# How `--help` and the table of flags group them; an algorithm's own fields are the group before.
GROUPS = {
    "task and run": "env_id seed total_timesteps preset engine num_envs log_interval eval_interval"
    " eval_episodes on_nonfinite evaluate",
    "saving": "runs_dir resume checkpoint_interval keep_checkpoints checkpoint_replay"
    " capture_video track",
    "devices": "num_seeds num_devices distributed num_threads warp_headroom",
}
BOUNDS = {  # of RunArgs, as Algorithm.bounds
    "num_envs": (1, 2**18),
    "eval_episodes": (1, 2**18),
    "num_seeds": (1, 1024),
    "log_interval": (1, MAX_INT),
    "total_timesteps": (1, np.inf),
    "keep_checkpoints": (1, np.inf),
    "eval_interval": (0, MAX_INT),
    "checkpoint_interval": (0, MAX_INT),
    "seed": (0, MAX_INT),
}


class State(Protocol):
    """A run's state: a frozen pytree whose leaves are arrays, so that it can be donated and saved.

    All of it goes through the chunk and into a checkpoint. Scalar integers, (), count what all
    seeds have in common (steps, updates): of several seeds one is kept. Over several devices `env`
    and `replay.data` are split along their leading axis, and all else is a copy on each.
    """

    learner: Any  # what is learned: evaluated, exported, and checked to be finite
    replay: Any  # harness.replay.Replay: what a checkpoint may leave out
    env: Any  # the state of N environments, leading axis N: refreshed between chunks

    def replace(self, **fields: Any) -> "State":
        """As flax.struct.dataclass has it."""


class VectorEnv(Protocol):
    """N copies of a task on one engine, with auto-reset; vector_env.py has what each means."""

    env_id: str
    engine: str
    num_envs: int
    observation_size: int
    action_size: int
    episode_length: int  # control steps
    control_timestep: float  # s
    success: float | None  # the return of an episode that counts as success
    ends_early: bool  # whether an episode can end before its time limit, other than by a bad state
    mesh: Any  # the devices over which it is spread, or None

    def reset(self, key: jax.Array) -> Any:
        """Its state, with obs (N, O), reward, terminated and truncated (N,)."""

    def step(self, state: Any, action: jax.Array) -> Any:
        """The state after one control step. action: (N, A) in [-1, 1]. Pure and jittable."""

    def refresh(self, state: Any, index: int) -> Any:
        """New initial states for later episodes, the same for the same index 1, 2, 3 ..."""

    def check(self, numbers: Any) -> Any:
        """Returns `numbers`, or raises if they show that a buffer was too small."""

    def first_states(self) -> Any:
        """The state at the first N initial states of its seed, on any engine the same."""

    def drawn_model(self, state: Any) -> Any:
        """A mujoco.MjModel of environment 0 as its episode has it, or None: it is not drawn."""

    def pose(self, state: Any) -> np.ndarray:
        """The pose of environment 0, (nq,), for its `drawn_model`."""


class Environments(Protocol):
    """The door to environments, such as the module envs."""

    UsageError: type[Exception]  # its message is one line that names the flag to change

    def make(self, env_id: str, num_envs: int, engine: str, seed: int, num_threads: int, headroom):
        """A VectorEnv."""

    def make_original(self, env_id: str, seed: int) -> Any:
        """The task's original, one environment outside JAX, as tasks.original.Original is."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What an algorithm's file hands to `launch.run`. B: batch, E: episodes, O, A: sizes.

    name: of its file, without .py, and part of a run folder's name.
    args: its dataclass of flags, which has hidden_size, batch_size, buffer_size and
      learning_starts beside those of RunArgs.
    presets: preset's name -> the fields that it changes.
    bounds: flag -> (smallest, largest) value, of its own flags.
    init_state: (env, args) -> State at step 0; jittable, so that sizes are known before memory is
      taken. In its `learner` whatever has `params` is a network.
    train_chunk: (state, env, args) -> (state, metrics), jittable: `steps_per_chunk(args)`
      environment steps. Metrics are scalars; "charts/updates" counts updates so far,
      "charts/episodic_return" is shown, and "charts/nonfinite_losses" and
      "charts/nonfinite_rewards" end the run unless they are 0 or on_nonfinite is "skip".
    evaluate: (learner, start, key, env, args) -> {kind: returns (E,)}, one episode in each of
      env's 2 E environments, for the two `kinds`.
    kinds: "sampled" and "deterministic", their names in metrics -> in words; the second takes no
      noise. Curves and reports look for these two.
    export: (learner, args) -> {file's name: its content}, written into the run's folder.
    load_policy: run folder -> Act; with a key it samples as in training.
    """

    name: str
    args: type[RunArgs]
    presets: Mapping[str, Mapping[str, Any]]
    bounds: Mapping[str, tuple[float, float]]
    init_state: Callable[[Any, Any], Any]
    train_chunk: Callable[[Any, Any, Any], tuple[Any, Metrics]]
    evaluate: Callable[..., dict[str, jax.Array]]
    export: Callable[[Any, Any], dict[str, bytes]]
    load_policy: Callable[[str | Path], Act]
    kinds: Mapping[str, str]


def chunk_length(args: RunArgs) -> int:
    """Steps of all environments in one `train_chunk`: `log_interval`, in whole vector steps."""
    return max(1, round(args.log_interval / args.num_envs))


def steps_per_chunk(args: RunArgs) -> int:
    """Environment steps in one `train_chunk`, summed over environments."""
    return chunk_length(args) * args.num_envs


def num_chunks(args: RunArgs) -> int:
    """Chunks of a run: the last one goes on to its end, past `total_timesteps`."""
    return -(-args.total_timesteps // steps_per_chunk(args))
