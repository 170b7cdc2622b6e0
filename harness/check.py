"""Whether a program here would take these flags: `python -m harness.check ALGORITHM [FLAGS]`.

Prints the one line that it would refuse them with, and exits with its code, 2. It starts no device,
and joins no other process: what hangs by them, or by the task, the program itself refuses.
"""

import importlib
import sys

from harness import command_line
from harness.errors import RunError


def main(name: str, *flags: str) -> int:
    """The exit code: 0, or 2 for flags that are refused."""
    module = importlib.import_module(name)
    algorithm, envs = module.ALGORITHM, module.envs
    try:
        args = command_line.parse_args(algorithm, "cpu", list(flags))
        command_line.check(args, algorithm)
        envs.check(args.num_envs, args.engine, args.seed, args.num_threads, args.warp_headroom)
    except (RunError, envs.UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
