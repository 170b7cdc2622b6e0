"""Where metrics go besides metrics.csv: TensorBoard always, Weights & Biases with --track."""

import logging
import os
import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from harness import checkpoints
from harness.errors import RunError, one_line


class EventFile:
    """A TensorBoard file. Written at once: its own SummaryWriter's thread dies of a full disk."""

    def __init__(self, folder: Path, resumed_from: int | None = None):
        # Its only warning is for NaN, which is the rule until the first episode has ended.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        before = set(folder.glob("events.out.tfevents.*"))  # two may begin in one second
        self._writer = EventsWriter(str(folder / "events"), f".{len(before)}")
        (self._path,) = set(folder.glob("events.out.tfevents.*")) - before
        if resumed_from is not None:  # readers drop all from this step on in the files before
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=resumed_from + 1, session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(Event(step=int(step), summary=summary.scalar(name, float(value))))
        self._writer.flush()

    def text(self, name: str, markdown: str) -> None:
        self._write(Event(step=0, summary=summary.text(name, markdown)))

    def sync(self) -> None:
        self._writer.flush()
        checkpoints.sync_entry(self._path)

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def check() -> None:
    """Raises RunError if Weights & Biases is not installed, or wants a login that it has not."""
    try:
        import wandb
    except ImportError:
        pip = "`pip install wandb==0.31.0`"
        raise RunError(f"--track: needs the package wandb; {pip}") from None
    offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
    if not offline and not wandb.login(prompt=False):
        fix = "`wandb login`, or WANDB_MODE=offline to keep it on disk"
        raise RunError(f"--track: Weights & Biases has no API key; {fix}")


def start(folder: Path, config: dict):
    """A run of Weights & Biases, in a run's folder and with its name; see its `id`.

    Raises RunError if it refuses.
    """
    import wandb

    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", config["algorithm"]),
            name=folder.name,
            id=config.get("wandb"),  # a resume goes on with the same
            resume="allow",
            dir=folder,
            config=config["args"],
            reinit="create_new",  # several seeds are several runs at once
            settings=wandb.Settings(console="off", silent=True),  # progress is not to be captured
        )
    except (wandb.Error, OSError) as error:
        raise RunError(f"--track: {one_line(error)}; WANDB_MODE=offline needs no server") from None
