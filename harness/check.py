"""Whether a program here would take these flags: `python -m harness.check ALGORITHM [FLAGS]`.

Prints the one line that it would refuse them with, and exits with its code, 2. It starts no device,
and joins no other process.
"""

import importlib
import sys

from harness import command_line
from harness.errors import RunError


def main(name: str, *flags: str) -> int:
    """The exit code: 0, or 2 for flags that are refused."""
    algorithm = importlib.import_module(name).ALGORITHM
    try:
        command_line.check(command_line.parse_args(algorithm, "cpu", list(flags)), algorithm)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
