"""The host's loop: chunk after chunk, and between them evaluation, log, checkpoints, signals.

    compile -> open the run folders -> (chunk -> evaluate -> log -> keep) ... -> finish

K runs, a seed each, are one program. Of several processes the main one has the folders, writes,
evaluates and tells; the others wait for it in the next chunk.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from harness import contract, learning_curve, parallel, runs, sizes
from harness.contract import Algorithm
from harness.keeper import Keeper, Progressed, faults
from harness.progress import Progress
from harness.stopping import StopSignal

EVAL_SEED = 1_000_003  # added to a run's seed: evaluation's initial states and noise are its own
Rows = list[dict[str, float]]  # a chunk's metrics, a dictionary for each run


def train(
    algorithm: Algorithm,
    each: list[Any],
    train_envs: list[Any],
    eval_envs: list[Any],
    devices: parallel.Devices,
    watch: Callable[[Any, Path], None] | None = None,
) -> int:
    """Trains K runs and returns the exit code. Every run has a folder, with all it leaves behind.

    Args:
      algorithm: what learns.
      each: K arguments of it, alike but for `seed`; `resume` only where K is 1.
      train_envs, eval_envs: K vector environments each, of N and of 2 `eval_episodes`.
      devices: what to train on; on several K is 1.
      watch: (arguments, run folder) -> None, called of each finished run that has capture_video.

    Raises:
      RunError: a folder cannot be made, a run not be resumed, or the program not fit in memory.
      FloatingPointError: a loss, reward or parameter is not finite; it names step, metrics, seed
        and the last good checkpoint.
      checkpoints.SaveError: a checkpoint cannot be written.
      UsageError, the environments': a buffer of `warp` overflowed, see `VectorEnv.check`.
    """
    loop = _Loop(algorithm, each, train_envs, eval_envs, devices)
    loop.compile()
    with contextlib.ExitStack() as stack:
        loop.open(stack)
        for index in range(loop.at.chunk + 1, loop.num_chunks + 1):
            rows, rates = loop.chunk(index)
            loop.evaluate(index, rows)
            loop.log(index, rows, rates)
            if loop.keep(index):
                break
        loop.finish()
    loop.tell(watch)
    devices.agree(0)  # the processes leave together
    return 128 + loop.stopping if loop.stopping else 0


class _Loop:
    """What `train` does, step by step, in the order of its methods.

    `at`: how far the runs are. `stopping`: the signal that ends them, or 0.
    """

    def __init__(self, algorithm, each, train_envs, eval_envs, devices: parallel.Devices):
        self.began = time.perf_counter()
        self.algorithm, self.each, self.args = algorithm, each, each[0]
        self.train_envs, self.eval_envs, self.devices = train_envs, eval_envs, devices
        self.steps_per_chunk = contract.steps_per_chunk(self.args)
        self.num_chunks = contract.num_chunks(self.args)
        self.at, self.stopping, self.evaluated = Progressed(), 0, False
        self.folders: list[runs.Run] = []
        self.keeper = Keeper(each, devices, self.steps_per_chunk, train_envs[0].engine)

    def compile(self) -> None:
        """Sets the state, of step 0 or of a checkpoint, and the compiled chunk."""
        pairs = zip(self.train_envs, self.each, strict=True)
        states = [self.algorithm.init_state(env, args) for env, args in pairs]
        state = self.devices.place(parallel.stack_seeds(states))
        del states  # the chunk donates a single one
        if self.args.resume:
            self.at = self.keeper.find()
        env = self.train_envs[0]
        chunk = functools.partial(self.algorithm.train_chunk, env=env, args=self.args)
        self.program = _compiled(self.devices.program(chunk, state, len(self.each)), state)
        self.state = self.keeper.restore(state) if self.args.resume else state
        self.began -= self.at.seconds

    def open(self, stack: contextlib.ExitStack) -> None:
        """Makes or reopens the run folders; from here on a signal is a request."""
        for one in self.each if self.devices.is_main else []:
            run = _open(one, self.algorithm.name, self.at.step, self.keeper.lock)
            self.folders.append(stack.enter_context(run))
            print(f"run folder {run.folder}", flush=True)
        self.keeper.folders = [run.folder for run in self.folders]
        self.stop = stack.enter_context(StopSignal())
        total, shown = self.num_chunks * self.steps_per_chunk, self.devices.is_main
        self.progress = stack.enter_context(Progress(total, self.at.step, shown=shown))

    def chunk(self, index: int) -> tuple[Rows, dict[str, float]]:
        """Trains for one chunk. Returns each run's metrics, and the rates of all."""
        start = time.perf_counter()
        self.state, metrics = self.program(self.state)
        rows = _by_run(metrics, len(self.each))
        seconds = time.perf_counter() - start
        self.state = self.state.replace(env=_refreshed(self.state.env, self.train_envs, index))
        updates = rows[0]["charts/updates"] - self.at.updates
        rates = {"charts/SPS": self.steps_per_chunk / seconds, "charts/UPS": updates / seconds}
        return rows, rates

    def evaluate(self, index: int, rows: Rows) -> None:
        """Where it is due, adds the returns of evaluation to `rows` and saves what was learned."""
        if not self._due(self.args.eval_interval, index) or self._failed(rows):
            return
        step = index * self.steps_per_chunk
        if not self.evaluated:
            self.progress.write("evaluating; the first time compiles ...")
        self.evaluated = True
        self.keeper.check(self.state, step)  # before what it is of overwrites what was saved
        for k, run in enumerate(self.folders):
            rows[k] |= evaluation_metrics(self._returns(k, index), self.train_envs[0].success)
            self._export(k, run)
        if self.devices.is_main:
            self.progress.write(f"step {step:,}: {self._in_words(rows)}")

    def log(self, index: int, rows: Rows, rates: dict[str, float]) -> None:
        """Writes a row a run. Raises FloatingPointError if one has failed: it is in the log."""
        step, failed = index * self.steps_per_chunk, self._failed(rows)
        rates["charts/seconds"] = time.perf_counter() - self.began
        for run, row in zip(self.folders, rows, strict=self.devices.is_main):
            if not failed:  # then nan is a mean over nothing (no episode ended): left out
                row = {name: value for name, value in row.items() if not math.isnan(value)}
            run.log(step, row | rates)
        if failed:
            self.keeper.give_up(step, rows)
        last_return, updates = _mean_return(rows, self.at.last_return), rows[0]["charts/updates"]
        self.at = Progressed(step, index, rates["charts/seconds"], updates, last_return)
        self.progress.update(step, last_return, rates["charts/SPS"], rates["charts/UPS"])

    def keep(self, index: int) -> int:
        """Writes a checkpoint where one is due. Returns the signal to stop at, or 0."""
        # One answer for all that follows: a signal may come at any time. None for the last.
        last = index == self.num_chunks
        self.stopping = 0 if last else self.devices.agree(self.stop.requested or 0)
        if self._due(self.args.checkpoint_interval, index) or self.stopping:
            for run in self.folders:
                run.sync()
            self.keeper.save(self.state, self.at)
        return self.stopping

    def finish(self) -> None:
        """Saves what was learned and closes the folders."""
        for k, run in enumerate(self.folders):
            self._export(k, run)
            run.finish("interrupted" if self.stopping else "finished")
            with contextlib.suppress(OSError):  # a full disk: what was learned is on it
                learning_curve.plot(run.folder)
        self.state = None  # a video's program may need the memory

    def tell(self, watch: Callable[[Any, Path], None] | None) -> None:
        """How to resume, or the videos."""
        if self.stopping:  # who stops a run does not wait
            self.keeper.tell_how_to_resume(self.at.step)
            return
        for one, run in zip(self.each, self.folders, strict=self.devices.is_main):
            if watch and one.capture_video:
                watch(one, run.folder)

    def _due(self, interval: int, index: int) -> bool:
        """Whether something is, after chunk `index`, every `interval` steps and at the end."""
        every = max(1, round(interval / self.steps_per_chunk)) if interval else self.num_chunks
        return index % every == 0 or index == self.num_chunks

    def _failed(self, rows: Rows) -> bool:
        return any(faults(row, one) for row, one in zip(rows, self.each, strict=True))

    def _learner(self, k: int):
        return self.devices.local(parallel.of_seed(self.state.learner, k, len(self.each)))

    def _export(self, k: int, run: runs.Run) -> None:
        for name, content in self.algorithm.export(self._learner(k), self.each[k]).items():
            run.save_bytes(name, content)

    def _returns(self, k: int, index: int) -> dict[str, np.ndarray]:
        """Of one episode in each environment, by kind, (E,) each. The same for the same index."""
        key = jax.random.fold_in(jax.random.key(self.each[k].seed + EVAL_SEED), index)
        start = self.eval_envs[k].reset(jax.random.fold_in(key, contract.MAX_INT))
        env = self.eval_envs[0]  # one program for all seeds
        returns = self.algorithm.evaluate(self._learner(k), start, key, env, self.args)
        return env.check(jax.device_get(returns))

    def _in_words(self, rows: Rows) -> str:
        """Returns of evaluation, means over seeds."""
        means = []
        for kind, words in self.algorithm.kinds.items():
            name = f"eval/episodic_return_{kind}"
            mean = sum(row.get(name, math.nan) for row in rows) / len(rows)
            means.append(f"{mean:.1f} ({words})")
        several = f", mean of {len(rows)} seeds" if len(rows) > 1 else ""
        return f"evaluation return {', '.join(means)}{several}"


def _compiled(program, state):
    """The compiled program of a chunk; says how long it took and what it takes.

    Raises RunError if that much memory is not free.
    """
    print("compiling the training loop ...", flush=True)
    start = time.perf_counter()
    chunk = program.lower(state).compile()
    seconds, needed = time.perf_counter() - start, chunk.memory_analysis().temp_size_in_bytes
    gib = sizes.check_bytes(needed, "--batch-size, --updates-per-step, --num-envs")
    print(f"compiled in {seconds:.0f} s; running it takes {gib:.2f} GiB more", flush=True)
    return chunk


def _refreshed(states, train_envs: list, index: int):
    """Environment states of K seeds with new initial states for later episodes."""
    each = [parallel.of_seed(states, k, len(train_envs)) for k in range(len(train_envs))]
    each = [env.refresh(own, index) for env, own in zip(train_envs, each, strict=True)]
    return parallel.stack_seeds(each)


def _open(args, algorithm: str, step: int, held: int | None) -> runs.Run:
    config = dataclasses.asdict(args)
    if not args.resume:
        return runs.Run.create(Path(args.runs_dir), args.env_id, algorithm, args.seed, config)
    changed = set(config) & runs.CHANGEABLE - {"resume"}
    return runs.Run.reopen(Path(args.resume), step, {name: config[name] for name in changed}, held)


def _by_run(metrics: dict, num_runs: int) -> Rows:
    values = {name: np.broadcast_to(value, num_runs) for name, value in metrics.items()}
    return [{name: float(value[k]) for name, value in values.items()} for k in range(num_runs)]


def _mean_return(rows: Rows, last: float) -> float:
    """Return of the training episodes that ended, mean over seeds; `last` if none did."""
    name = "charts/episodic_return"
    returns = [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]
    return sum(returns) / len(returns) if returns else last


def evaluation_metrics(returns: dict[str, np.ndarray], success: float | None) -> dict[str, float]:
    """Means and standard deviations by kind; with a threshold the share that reaches it."""
    metrics = {}
    for kind, values in returns.items():
        name = f"eval/episodic_return_{kind}"
        metrics |= {name: float(values.mean()), f"{name}_std": float(values.std())}
        if success is not None:
            metrics[f"eval/success_{kind}"] = float((values >= success).mean())
    return metrics
