"""Ctrl-C and SIGTERM as a request to stop after the present chunk."""

import os
import signal
import socket
import threading
import time

ECHO = 0.3  # seconds within which a signal again is the same request: `timeout` sends it twice
STOP_GRACE = 3.0  # seconds that a second signal leaves Python to end before the process is ended


class StopSignal:
    """Turns SIGINT and SIGTERM into a request to stop after the present chunk.

    `requested` is the signal's number, or None. A second signal, ECHO seconds later or more,
    raises KeyboardInterrupt, and ends the process if Python cannot raise it within STOP_GRACE
    seconds. Main thread only.

    Python runs signal handlers between bytecodes, so never while XLA compiles or a chunk runs.
    Hence a thread too: it hears of a signal at once, by `signal.set_wakeup_fd`.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested: int | None = None
        self._handled: float | None = None  # when the first was

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
        now = time.monotonic()
        self._handled = self._handled or now
        if now - self._handled > ECHO:
            raise KeyboardInterrupt(number)

    def _watch(self) -> None:
        heard: float | None = None  # when the first was
        while byte := self._reader.recv(1):
            number = byte[0]
            if number not in self.SIGNALS:
                continue
            now = time.monotonic()
            self.requested = self.requested or number
            if heard is None:
                heard = now
                name = signal.Signals(number).name
                text = f"\n{name}: stopping after the present chunk; once more to stop now\n"
                os.write(2, text.encode())
            elif now - heard > ECHO and not self._over.wait(STOP_GRACE):
                os._exit(128 + number)
