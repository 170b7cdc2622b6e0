"""Writes and finds the checkpoints of the runs that train at once, and says where they stand."""

import dataclasses
import functools
import math
import shlex
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np

from harness import checkpoints, parallel, runs
from harness.errors import RunError

# What depends on the machine too and has to be the same when a run goes on, by the flag for it.
ALIKE = {"engine": "engine {}", "num_devices": "{} devices", "distributed": "{} processes"}
ALIKE |= {"log_interval": "{} steps a chunk"}


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
        k = next(k for k, args in enumerate(self.each) if faults(metrics[k], args))
        self._stop(step, k, ", ".join(faults(metrics[k], self.each[k])))

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


def _resume_command(folder: Path) -> str:
    return shlex.join(["python", sys.argv[0], "--resume", str(folder)])


def faults(row: dict[str, float], args) -> list[str]:
    """The metrics of a chunk that are to end the run, because what they are of is not finite."""
    if args.on_nonfinite == "skip":
        return []
    faults = ["charts/nonfinite_rewards"] if row.get("charts/nonfinite_rewards") else []
    if row.get("charts/nonfinite_losses"):
        losses = (name for name in row if name.startswith("losses/"))
        faults += [name for name in losses if not math.isfinite(row[name])] or ["a loss"]
    return faults
