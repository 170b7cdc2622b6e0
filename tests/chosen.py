"""Of many tests of one kind: which are fast. The others are marked slow, and CI runs them too."""

from collections.abc import Iterable

import pytest

# A task a domain, the one whose rewards and observations go through most of its module.
TASKS = (
    "acrobot-swingup",
    "ball_in_cup-catch",
    "cartpole-swingup_sparse",
    "cartpole-three_poles",
    "cheetah-run",
    "dog-fetch",
    "finger-turn_hard",
    "fish-swim",
    "hopper-hop",
    "humanoid-run",
    "humanoid_CMU-run",
    "lqr-lqr_6_2",
    "manipulator-insert_peg",
    "pendulum-swingup",
    "point_mass-hard",
    "quadruped-fetch",
    "reacher-hard",
    "stacker-stack_2",
    "swimmer-swimmer6",
    "walker-run",
)
# What differs between the H1's tasks: the robot alone, obstacles and memory, a loose thing, a goal.
H1_TASKS = ("walk", "maze", "balance_hard", "reach")


def fast_are(fast: Iterable[str], values: Iterable[str]) -> list:
    """Parameters for all of `values`, those that are not among `fast` marked slow."""
    fast, values = tuple(fast), tuple(values)
    assert set(fast) <= set(values), set(fast) - set(values)
    return [pytest.param(v, marks=() if v in fast else pytest.mark.slow) for v in values]
