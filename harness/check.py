"""Whether a program here would take these flags: `python -m harness.check ALGORITHM [FLAGS]`.

Prints the one line that it would refuse them with, and exits with its code, 2. It trains nothing.
"""

import importlib
import sys

from harness import command_line, contract


def main() -> int:
    """The exit code of the command line in `sys.argv`."""
    algorithm = importlib.import_module(sys.argv.pop(1)).ALGORITHM
    bounds = {**contract.BOUNDS, **algorithm.bounds}

    def check(args) -> int:
        command_line.check_bounds(args, bounds)
        return 0

    return command_line.exit_code(check, algorithm)


if __name__ == "__main__":
    sys.exit(main())
