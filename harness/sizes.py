"""What a run is and what it will take, told before anything is allocated."""

import math
from pathlib import Path

import jax

from harness import contract, machine, parallel, runs, tracking
from harness.errors import RunError


def check(args, env, state, devices: parallel.Devices) -> None:
    """Refuses a run that could not be: what it needs is known before anything is allocated.

    Args:
      args: an algorithm's. env: its vector environment.
      state: the algorithm's state, as arrays or shapes.

    Raises:
      RunError: learner or replay cannot fit, the replay is smaller than a batch, or the main
        process cannot write where the run folder will be, or not track.
    """
    if devices.is_main:
        if args.resume:
            runs.check_writable(Path(args.resume), "--resume goes on in it; make it writable")
        else:
            runs.check_writable(Path(args.runs_dir))
        if args.track:
            tracking.check()
    copies = args.num_seeds
    if copies > 1 and args.on_nonfinite == "skip":  # then seeds would count different updates
        raise RunError("--on-nonfinite: skip is for one seed at a time; use --num-seeds 1")
    check_memory(state.learner, "--hidden-size", copies)
    # On a CPU a checkpoint, of one seed after the other, is written from a copy of the replay.
    written = bool(args.checkpoint_replay) if jax.default_backend() == "cpu" else 0
    check_memory(state.replay.data, "--buffer-size", copies * devices.share() + written)
    if _capacity(state) < args.batch_size:
        needed = f"a batch of {args.batch_size} and {env.num_envs} environments"
        raise RunError(f"--buffer-size: {args.buffer_size} is too small for {needed}; raise it")


def describe(args, env, state, devices: parallel.Devices) -> str:
    """What is about to run: four lines, and one each for what is not as usual. As `check`."""
    copies, capacity = args.num_seeds, _capacity(state)
    gib, env_gib = (copies * num_bytes(x) / 2**30 for x in (state.replay.data, state.env))
    networks = {name: net for name, net in vars(state.learner).items() if hasattr(net, "params")}
    sizes = ", ".join(f"{name} {count(net.params):,}" for name, net in networks.items())
    several = copies > 1
    seeds = f"; each of {copies} seeds" if several else ""
    total = f", {gib:.2f} GiB" + (" of all seeds" if several else "")
    lines = [
        f"{devices.describe()}, engine {env.engine}, preset {args.preset}",
        f"{args.env_id}: {env.num_envs} environments, {env.observation_size} observations, "
        f"{env.action_size} actions{seeds}",
        f"networks: width {args.hidden_size}, parameters: {sizes}",
        f"replay: {capacity:,} transitions{total}; environments {env_gib:.3f} GiB",
    ]
    if devices.count > 1:
        split = (number // devices.count for number in (env.num_envs, args.batch_size, capacity))
        each = "{:,} environments, {:,} transitions of a batch, {:,} of the replay"
        lines.append("each device: " + each.format(*split))
    chunk = contract.steps_per_chunk(args)
    if chunk != args.log_interval:
        steps = f"{chunk:,}, a whole number of steps of all {args.num_envs:,} environments"
        lines.append(f"--log-interval {args.log_interval:,} is rounded to {steps}")
    end = contract.num_chunks(args) * chunk
    if args.learning_starts >= end:
        starts = f"--learning-starts {args.learning_starts:,}"
        lines.append(f"no update will be made: {starts} is not below the {end:,} steps of the run")
    return "\n".join(lines)


def _capacity(state) -> int:
    return jax.tree.leaves(state.replay.data)[0].shape[0]


def check_memory(tree, flag: str, copies: float = 1) -> float:
    """Returns the size of `copies` pytrees of arrays, or of their shapes, in GiB.

    Raises RunError, naming `flag`, if the device has not that much free. A part of a pytree is
    less than one copy.
    """
    return check_bytes(copies * num_bytes(tree), flag)


def check_bytes(needed: float, flag: str) -> float:
    """Returns so many bytes in GiB. Raises RunError, naming `flag`, if they are not free."""
    free = machine.device_memory_bytes()
    if free is not None and needed > 0.9 * free:
        sizes = f"it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        raise RunError(f"{flag}: cannot fit: {sizes}; lower it")
    return needed / 2**30


def num_bytes(tree) -> int:
    """Size of a pytree of arrays or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def count(tree) -> int:
    """Number of numbers in a pytree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
