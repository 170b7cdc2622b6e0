"""The progress line of a run: a bar on a terminal, a line now and then in a log file."""

import math
import sys

from tqdm import tqdm

PLAIN_INTERVAL = 30.0  # seconds between progress lines where there is no terminal


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
