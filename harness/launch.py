"""From arguments to a run: checks, environments and devices, then training or `--evaluate`."""

import dataclasses
import functools
from typing import Any

import jax

from harness import command_line, contract, parallel, sizes, training, watch


def run(algorithm: contract.Algorithm, args: Any, environments: contract.Environments) -> int:
    """Trains or evaluates as `args`, an `algorithm.args`, say; returns the exit code.

    Raises:
      RunError, environments.UsageError: bad input, in one line; nothing has been written, unless
        it is a buffer of `warp` that overflowed as it ran.
      FloatingPointError, checkpoints.SaveError: as `training.train`.
    """
    if args.evaluate:
        return watch.evaluate(algorithm, args, environments)
    command_line.check(args, algorithm)
    devices = parallel.Devices(args)
    each = [dataclasses.replace(args, seed=args.seed + k) for k in range(args.num_seeds)]
    command_line.check(each[-1], algorithm)  # the highest seed, too
    make = environment_maker(args, environments)
    env = devices.spread(make, args.num_envs, seed=args.seed)
    shapes = jax.eval_shape(functools.partial(algorithm.init_state, env, args))
    sizes.check(args, env, shapes, devices)
    print(sizes.describe(args, env, shapes, devices), flush=True)
    train_envs = [env, *(make(args.num_envs, seed=one.seed) for one in each[1:])]
    count = 2 * args.eval_episodes
    eval_envs = [make(count, seed=one.seed + training.EVAL_SEED) for one in each]
    film = functools.partial(watch.film_policy, algorithm, environments)
    return training.train(algorithm, each, train_envs, eval_envs, devices, film)


def environment_maker(args: Any, environments: contract.Environments):
    """(num_envs, seed) -> vector environment of the arguments' task and engine."""
    physics = dict(engine=args.engine, num_threads=args.num_threads, headroom=args.warp_headroom)
    return functools.partial(environments.make, args.env_id, **physics)
