"""The host's loop: chunks, evaluation, checkpoints, progress, signals. It knows no algorithm."""

import contextlib
import dataclasses
import functools
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from harness import checkpoints, machine, parallel, runs
from harness.runs import RunError

PLAIN_INTERVAL = 30.0  # seconds between progress lines where there is no terminal
STOP_GRACE = 3.0  # seconds that a second signal leaves Python to end before the process is ended
# What depends on the machine too and has to be the same when a run goes on, by the flag for it.
ALIKE = {"engine": "engine {}", "num_devices": "{} devices", "distributed": "{} processes"}
ALIKE |= {"log_interval": "{} steps a chunk"}


def train(
    each: list[Any],
    algorithm: str,
    steps_per_chunk: int,
    train_envs: list[Any],
    states: list[Any],
    chunk: Callable[[Any], tuple[Any, dict[str, jax.Array]]],
    evaluation: Callable[[Any, int, int], dict[str, jax.Array]],
    save: Callable[[runs.Run, Any], Any],
    devices: parallel.Devices,
    watch: Callable[[Any, Path], None] | None = None,
) -> int:
    """Trains K runs, a seed each, chunk after chunk. Returns the exit code.

    Every run has a folder, with its metrics and what `save` writes. Of several processes the main
    one writes, evaluates and tells; the others wait for it in the next chunk.

    Args:
      each: K dataclasses of arguments, alike but for `seed`, with env_id, total_timesteps,
        eval_interval and checkpoint_interval (in steps), keep_checkpoints, checkpoint_replay,
        on_nonfinite, capture_video, runs_dir, and resume: "" or, K being 1, the folder of the run
        to go on with.
      algorithm: part of the folder's name.
      steps_per_chunk: environment steps of one run that one chunk takes.
      train_envs: K vector environments, of which `refresh` is called after each chunk, with its
        index from 1, and `success` is the return of an episode that counts as such, or None.
      states: K pytrees that the chunk starts from and donates; their field `learner` is what is
        evaluated and saved, `env` what is refreshed, `replay` what a checkpoint may leave out, and
        all of it what a checkpoint has. On several devices K is 1, and what is split
        is split already.
      chunk: state -> (state, metrics, scalars by name), jittable, of which "charts/updates" counts
        updates so far, "charts/episodic_return" is shown, and "charts/nonfinite_losses" and
        "charts/nonfinite_rewards" end the program unless they are 0 or on_nonfinite is "skip".
      evaluation: (learner, k, index) -> name -> returns of some episodes, an array.
      save: (run, learner) -> what is not used; writes what was learned into the run's folder.
      devices: what to train on.
      watch: (arguments, run folder) -> None, called of each finished run that has capture_video.

    Raises:
      RunError: a folder cannot be made, or a run not be resumed.
      FloatingPointError: a loss, reward or parameter is not finite; it names step, metrics, seed
        and the last good checkpoint.
      checkpoints.SaveError: a checkpoint cannot be written.
    """
    began = time.perf_counter()
    args, engine = each[0], train_envs[0].engine
    num_chunks = -(-args.total_timesteps // steps_per_chunk)
    per_eval = _every(args.eval_interval, steps_per_chunk) or num_chunks
    per_checkpoint = _every(args.checkpoint_interval, steps_per_chunk) or num_chunks
    num_runs, state = len(each), devices.place(parallel.stack_seeds(states))
    del states  # the chunk donates a single one
    keeper = Keeper(each, devices, steps_per_chunk, engine)
    at = keeper.find() if args.resume else Progressed()
    chunk = _compiled(devices.program(chunk, state, num_runs), state)
    if args.resume:
        state = keeper.restore(state)
    began -= at.seconds

    def learner(k: int):
        return devices.local(parallel.of_seed(state.learner, k, num_runs))

    evaluated, folders, stopping = False, [], 0
    with contextlib.ExitStack() as stack:
        for one in each if devices.is_main else []:
            run = _open(one, algorithm, at.step, keeper.lock)
            folders.append(stack.enter_context(run))
            print(f"run folder {run.folder}", flush=True)
        keeper.folders = [run.folder for run in folders]
        stop = stack.enter_context(StopSignal())
        total = num_chunks * steps_per_chunk
        progress = stack.enter_context(Progress(total, at.step, shown=devices.is_main))
        for index in range(at.chunk + 1, num_chunks + 1):
            start, step = time.perf_counter(), index * steps_per_chunk
            state, metrics = chunk(state)
            metrics = _by_run(metrics, num_runs)
            seconds = time.perf_counter() - start
            updates = metrics[0]["charts/updates"]
            rates = {"charts/SPS": steps_per_chunk / seconds}
            rates["charts/UPS"] = (updates - at.updates) / seconds
            state = state.replace(env=_refreshed(state.env, train_envs, index))
            failed = any(_faults(row, one) for row, one in zip(metrics, each, strict=True))
            if (index % per_eval == 0 or index == num_chunks) and not failed:
                if not evaluated:
                    progress.write("evaluating; the first time compiles ...")
                evaluated = True
                keeper.check(state, step)  # before what it is of overwrites what was saved
                for k, run in enumerate(folders):
                    returns = evaluation(learner(k), k, index)
                    metrics[k] |= _evaluation_metrics(returns, train_envs[0].success)
                    save(run, learner(k))
                if devices.is_main:
                    progress.write(f"step {step:,}: {_evaluated(metrics)}")
            rates["charts/seconds"] = time.perf_counter() - began
            for run, row in zip(folders, metrics, strict=devices.is_main):
                if not failed:  # then nan is a mean over nothing (no episode ended): left out
                    row = {name: value for name, value in row.items() if not math.isnan(value)}
                run.log(step, row | rates)
            if failed:
                keeper.give_up(step, metrics)
            last_return = _mean_return(metrics, at.last_return)
            at = Progressed(step, index, rates["charts/seconds"], updates, last_return)
            progress.update(step, last_return, rates["charts/SPS"], rates["charts/UPS"])
            # One answer for all that follows: a signal may come at any time. None for the last.
            stopping = devices.agree(stop.requested or 0) if index < num_chunks else 0
            if index % per_checkpoint == 0 or index == num_chunks or stopping:
                for run in folders:
                    run.sync()
                keeper.save(state, at)
            if stopping:
                break
        for k, run in enumerate(folders):
            save(run, learner(k))
            run.finish("interrupted" if stopping else "finished")
            with contextlib.suppress(OSError):  # a full disk: what was learned is on it
                runs.plot_learning_curve(run.folder)
    state = None  # a video's program may need the memory
    if stopping:
        keeper.tell_how_to_resume(at.step)
    for one, run in zip(each, folders, strict=devices.is_main):
        if watch and one.capture_video and not stopping:  # who stops a run does not wait
            watch(one, run.folder)
    devices.agree(0)  # the processes leave together
    return 128 + stopping if stopping else 0


@dataclasses.dataclass(frozen=True)
class Progressed:
    """How far a run has come."""

    step: int = 0  # environment steps
    chunk: int = 0  # chunks, and so refreshes of the pool of initial states
    seconds: float = 0.0  # charts/seconds
    updates: float = 0.0
    last_return: float = math.nan  # of training episodes, as shown in the progress line


class Keeper:
    """Writes and finds the checkpoints of K runs that train at once.

    `folders`: the runs' folders, in the process that writes.
    """

    def __init__(self, each, devices: parallel.Devices, steps_per_chunk: int, engine: str):
        self.each, self.devices = each, devices
        self.folders: list[Path] = []
        self._found: checkpoints.Checkpoint | None = None
        self.lock: int | None = None  # of the run to resume
        self._alike = dict(engine=engine, num_devices=devices.count)
        self._alike |= dict(distributed=devices.num_processes, log_interval=steps_per_chunk)

    def save(self, state, at: Progressed) -> None:
        """Writes a checkpoint of each run. All processes call; the state is read, not kept.

        Raises:
          FloatingPointError: something that was learned is not finite: what is on disk stays.
          checkpoints.SaveError: the disk is full.
        """
        self.check(state, at.step)
        for k, args in enumerate(self.each):
            kept = state if args.checkpoint_replay else state.replace(replay=None)
            arrays = checkpoints.flatten(kept, functools.partial(self._own, k=k))
            host = {"run": dataclasses.asdict(at), "replay": args.checkpoint_replay}
            if self.folders:
                folder = self.folders[k] / "checkpoints"
                host |= {"alike": self._alike}
                checkpoints.save(folder, at.step, arrays, host, args.keep_checkpoints)

    def check(self, state, step: int) -> None:
        """Raises FloatingPointError if something that was learned is not finite. All call."""
        for k in range(len(self.each)):
            arrays = checkpoints.flatten(state.learner, functools.partial(self._own, k=k))
            bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
            if bad:
                self._stop(step, k, f"learner/{bad[0]}")

    def _own(self, leaf, k: int) -> np.ndarray:
        return self.devices.gather(parallel.of_seed(leaf, k, len(self.each)))

    def find(self) -> Progressed:
        """Finds the newest whole checkpoint of the run to resume, and returns how far it is.

        Raises RunError if there is none, or one from other circumstances than these.
        """
        folder, is_main = Path(self.each[0].resume) / "checkpoints", self.devices.is_main
        self.devices.agree(0)  # by now all have looked whether another is at work
        self.lock = runs.lock(folder.parent) if is_main else None
        found = checkpoints.newest(folder) if is_main else None
        chunk = self.devices.agree(found.host["run"]["chunk"] if found else 0)
        if not chunk:
            raise RunError(f"--resume: no checkpoint in '{folder}' is whole; begin a new run")
        if not is_main:
            try:
                found = checkpoints.at(folder, chunk * self._alike["log_interval"])
            except checkpoints.DamagedError as error:
                text = f"every process has to see '{folder}' ({error})"
                raise RunError(f"--resume: {text}") from None
        for name, here in self._alike.items():
            then = found.host["alike"][name]
            if here != then:
                flag, words = "--" + name.replace("_", "-"), ALIKE[name]
                was, now = words.format(then), words.format(here)
                raise RunError(f"{flag}: the run to resume had {was}, here it would have {now}")
        self._found = found
        return Progressed(**found.host["run"])

    def restore(self, state):
        """The state of the checkpoint found, in place of `state`, whose memory is given back.

        One array after the other: all of the checkpoint is in memory beside `state` before.

        Raises RunError if it is of another version of the program.
        """
        folder = self.each[0].resume
        like = state if self._found.host["replay"] else state.replace(replay=None)
        try:
            restored = checkpoints.unflatten(like, self._found.load(), self.devices.scatter)
        except (checkpoints.DamagedError, ValueError, OSError, KeyError) as error:
            text = " ".join(str(error).split())[:300]
            raise RunError(f"--resume: cannot go on with '{folder}': {text}") from None
        print(f"going on from {self._found.path}", flush=True)
        if self._found.host["replay"]:
            return restored
        print("the checkpoint is without the replay: updates wait until it has refilled")
        return restored.replace(replay=state.replay)

    def give_up(self, step: int, metrics: list[dict[str, float]]) -> NoReturn:
        """Raises FloatingPointError, naming step, metrics and the last good checkpoint."""
        k = next(k for k, args in enumerate(self.each) if _faults(metrics[k], args))
        self._stop(step, k, ", ".join(_faults(metrics[k], self.each[k])))

    def _stop(self, step: int, k: int, names: str) -> NoReturn:
        text = f"not finite at step {step}, seed {self.each[k].seed}: {names}"
        if not self.folders:  # of several processes one has them, and says the rest
            raise FloatingPointError(text)
        folder = self.folders[k]
        good = checkpoints.steps(folder / "checkpoints")
        last = f"last good checkpoint: step {good[-1]}" if good else "no good checkpoint yet"
        hint = f", {_resume_command(folder)} --on-nonfinite skip" if good else ""
        raise FloatingPointError(f"{text}; {last}{hint}")

    def tell_how_to_resume(self, step: int) -> None:
        """One line a run."""
        for folder in self.folders:
            print(f"stopped at step {step:,}; to go on: {_resume_command(folder)}", flush=True)


def _every(interval: int, steps_per_chunk: int) -> int:
    """An interval in steps as one in chunks, at least 1; 0 stays 0."""
    return max(1, round(interval / steps_per_chunk)) if interval else 0


def _resume_command(folder: Path) -> str:
    return f"python {sys.argv[0]} --resume {shlex.quote(str(folder))}"


def _compiled(program, state):
    """The compiled program of a chunk; says how long it took and what it takes."""
    print("compiling the training loop ...", flush=True)
    start = time.perf_counter()
    chunk = program.lower(state).compile()
    seconds, gib = time.perf_counter() - start, chunk.memory_analysis().temp_size_in_bytes / 2**30
    print(f"compiled in {seconds:.0f} s; running it takes {gib:.2f} GiB more", flush=True)
    return chunk


def _refreshed(states, train_envs: list, index: int):
    """Environment states of K seeds with new initial states for later episodes."""
    each = [parallel.of_seed(states, k, len(train_envs)) for k in range(len(train_envs))]
    each = [env.refresh(own, index) for env, own in zip(train_envs, each, strict=True)]
    return parallel.stack_seeds(each)


def _mean_return(metrics: list[dict[str, float]], last: float) -> float:
    """Return of the training episodes that ended, mean over seeds; `last` if none did."""
    returns = [row["charts/episodic_return"] for row in metrics if _episodes_ended(row)]
    return sum(returns) / len(returns) if returns else last


def _open(args, algorithm: str, step: int, held: int | None) -> runs.Run:
    config = dataclasses.asdict(args)
    if not args.resume:
        return runs.Run.create(Path(args.runs_dir), args.env_id, algorithm, args.seed, config)
    changed = set(config) & runs.CHANGEABLE - {"resume"}
    return runs.Run.reopen(Path(args.resume), step, {name: config[name] for name in changed}, held)


def _by_run(metrics: dict, num_runs: int) -> list[dict[str, float]]:
    values = {name: np.broadcast_to(value, num_runs) for name, value in metrics.items()}
    return [{name: float(value[k]) for name, value in values.items()} for k in range(num_runs)]


def _episodes_ended(row: dict[str, float]) -> bool:
    return not math.isnan(row.get("charts/episodic_return", math.nan))


def _evaluated(metrics: list[dict[str, float]]) -> str:
    """Returns of evaluation, means over seeds, for people."""
    means = {}
    for kind in ("sampled", "deterministic"):
        name = f"eval/episodic_return_{kind}"
        means[kind] = sum(row.get(name, math.nan) for row in metrics) / len(metrics)
    several = f", mean of {len(metrics)} seeds" if len(metrics) > 1 else ""
    values = f"{means['sampled']:.1f} (sampled x0), {means['deterministic']:.1f} (x0 = 0)"
    return f"evaluation return {values}{several}"


def _evaluation_metrics(evaluation: dict, success: float | None) -> dict[str, float]:
    metrics = {}
    for kind, returns in evaluation.items():
        name = f"eval/episodic_return_{kind}"
        metrics |= {name: float(returns.mean()), f"{name}_std": float(returns.std())}
        if success is not None:
            metrics[f"eval/success_{kind}"] = float((returns >= success).mean())
    return metrics


def _faults(row: dict[str, float], args) -> list[str]:
    """The metrics of a chunk that are to end the run, because what they are of is not finite."""
    if args.on_nonfinite == "skip":
        return []
    faults = ["charts/nonfinite_rewards"] if row.get("charts/nonfinite_rewards") else []
    if row.get("charts/nonfinite_losses"):
        losses = (name for name in row if name.startswith("losses/"))
        faults += [name for name in losses if not math.isfinite(row[name])] or ["a loss"]
    return faults


def guarded(step, skip: bool):
    """A step of learning that counts what is not finite, for `jax.lax.scan` or alone.

    Args:
      step: (state, input) -> (state, metrics), metrics being scalars by name.
      skip: whether a step of which anything is not finite, state or metrics, is dropped: then the
        state is that of before, and the metrics are zeros.

    Returns the same with one more metric, "charts/nonfinite_losses": 1 if the metrics, with `skip`
    also if the state, are not finite, else 0.
    """

    def guarded_step(before, given):
        after, metrics = step(before, given)
        leaves = jax.tree.leaves((after, metrics) if skip else metrics)
        bad = ~jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
        if skip:
            kept = (before, jax.tree.map(jnp.zeros_like, metrics))
            keep = functools.partial(jnp.where, bad)
            after, metrics = jax.tree.map(keep, kept, (after, metrics))
        return after, metrics | {"charts/nonfinite_losses": bad.astype(jnp.int32)}

    return guarded_step


def describe(args, env, state, devices: parallel.Devices) -> str:
    """What is about to run, four lines, and on several devices one on what each has.

    Raises RunError if learner or replay cannot fit, if the replay is smaller than a batch, or if
    the main process cannot write where the run folder will be.

    Args:
      args: has env_id, preset, hidden_size, batch_size, buffer_size, num_seeds, runs_dir. env: a
        vector environment.
      state: as arrays or shapes, with fields replay, whose `data` are the transitions, env, and
        learner, of which all that has `params` is a network.
    """
    if devices.is_main:
        runs.check_writable(Path(args.runs_dir))
        if args.track:
            runs.check_tracking()
    copies, replay_data = args.num_seeds, state.replay.data
    check_memory(state.learner, "--hidden-size", copies)
    if copies > 1 and args.on_nonfinite == "skip":  # then seeds would count different updates
        raise RunError("--on-nonfinite: skip is for one seed at a time; use --num-seeds 1")
    # On a CPU a checkpoint, of one seed after the other, is written from a copy of the replay.
    written = bool(args.checkpoint_replay) if jax.default_backend() == "cpu" else 0
    check_memory(replay_data, "--buffer-size", copies * devices.share() + written)
    gib = copies * num_bytes(replay_data) / 2**30
    capacity = jax.tree.leaves(replay_data)[0].shape[0]
    if capacity < args.batch_size:
        needed = f"a batch of {args.batch_size} and {env.num_envs} environments"
        raise RunError(f"--buffer-size: {args.buffer_size} is too small for {needed}; raise it")
    networks = {name: net for name, net in vars(state.learner).items() if hasattr(net, "params")}
    sizes = ", ".join(f"{name} {count(net.params):,}" for name, net in networks.items())
    several = args.num_seeds > 1
    seeds = f"; each of {args.num_seeds} seeds" if several else ""
    total = f", {gib:.2f} GiB" + (" of all seeds" if several else "")
    env_gib = copies * num_bytes(state.env) / 2**30
    split = [env.num_envs, args.batch_size, capacity]
    each = "{:,} environments, {:,} transitions of a batch, {:,} of the replay"
    each = "\neach device: " + each.format(*(number // devices.count for number in split))
    never = f"\nno update will be made: --learning-starts {args.learning_starts:,} is not below "
    never += f"--total-timesteps {args.total_timesteps:,}"
    return (
        f"{devices.describe()}, engine {env.engine}, preset {args.preset}\n"
        f"{args.env_id}: {env.num_envs} environments, {env.observation_size} observations, "
        f"{env.action_size} actions{seeds}\n"
        f"networks: width {args.hidden_size}, parameters: {sizes}\n"
        f"replay: {capacity:,} transitions{total}; environments {env_gib:.3f} GiB"
        + (each if devices.count > 1 else "")
        + (never if args.learning_starts >= args.total_timesteps else "")
    )


def check_memory(tree, flag: str, copies: float = 1) -> float:
    """Returns the size of `copies` pytrees of arrays, or of their shapes, in GiB.

    Raises RunError, naming `flag`, if the device has not that much free. A part of a pytree is
    less than one copy.
    """
    needed = copies * num_bytes(tree)
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


class Progress:
    """A bar over environment steps on stderr; on no terminal, a line every PLAIN_INTERVAL."""

    def __init__(self, total: int, initial: int = 0, shown: bool = True):
        terminal = sys.stderr.isatty()
        bar = "{bar}| " if terminal else ""
        self._started = False
        self._bar = tqdm(
            total=total,
            initial=initial,
            file=sys.stderr if terminal else _Lines(sys.stderr),
            mininterval=0.1 if terminal else PLAIN_INTERVAL,
            miniters=1,
            smoothing=0.1,
            unit_scale=True,
            dynamic_ncols=terminal,
            disable=not shown,
            delay=math.inf,  # nothing is drawn before the first update
            bar_format="{percentage:3.0f}% " + bar + "{n_fmt}/{total_fmt} steps"
            " [{elapsed}<{remaining}{postfix}]",
        )

    def update(self, step: int, return_: float, sps: float, ups: float) -> None:
        """Moves to `step`; return_ may be NaN, sps and ups are steps and updates per second.

        The time left is estimated from the call after the first one with updates.
        """
        shown = "-" if math.isnan(return_) else f"{return_:.1f}"
        rates = f"return {shown}, {sps:,.0f} steps/s, {ups:,.0f} updates/s"
        self._bar.set_postfix_str(rates, refresh=False)
        if self._started:
            self._bar.update(step - self._bar.n)
            return
        self._started = ups > 0  # steps of random actions say nothing of the time left
        self._bar.delay = 0
        self._bar.initial = self._bar.n = self._bar.last_print_n = step
        self._bar.unpause()
        self._bar.refresh()

    def write(self, text: str) -> None:
        """Prints a line on stdout, above the bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()


class _Lines:
    """Turns tqdm's redrawing into lines, for a log file."""

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        if text.strip():
            self._file.write(text.strip() + "\n")

    def flush(self) -> None:
        self._file.flush()


class StopSignal:
    """Turns SIGINT and SIGTERM into a request to stop after the present chunk.

    `requested` is the signal's number, or None. A second signal raises KeyboardInterrupt, and ends
    the process if Python cannot raise it within STOP_GRACE seconds. Main thread only.

    Python runs signal handlers between bytecodes, so never while XLA compiles or a chunk runs.
    Hence a thread too: it hears of a signal at once, by `signal.set_wakeup_fd`.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested: int | None = None
        self._handled = 0

    @property
    def exit_code(self) -> int:
        """What the shell expects of a program stopped so: 130, 143, or 0 if it was not."""
        return 0 if self.requested is None else 128 + self.requested

    def __enter__(self) -> "StopSignal":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno())
        self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._over.set()
        self._writer.close()  # the watcher's recv returns b""
        self._watcher.join()
        self._reader.close()

    def _handle(self, number: int, frame) -> None:
        self.requested = self.requested or number
        self._handled += 1
        if self._handled > 1:
            raise KeyboardInterrupt(number)

    def _watch(self) -> None:
        heard = 0
        while byte := self._reader.recv(1):
            number = byte[0]
            if number not in self.SIGNALS:
                continue
            heard += 1
            self.requested = self.requested or number
            if heard == 1:
                name = signal.Signals(number).name
                text = f"\n{name}: stopping after the present chunk; once more to stop now\n"
                os.write(2, text.encode())
            elif not self._over.wait(STOP_GRACE):
                os._exit(128 + number)
