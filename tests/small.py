"""FlowRL's states for tests, from one program for each size: op by op they compile for seconds."""

import dataclasses
from unittest import mock

import jax

import flowrl_jax as flowrl

_init_learner = jax.jit(flowrl.init_learner, static_argnums=(1, 2, 3))
MATTER = ("hidden_size", "compute_dtype", "learning_rate")  # to a fresh learner


def init_learner(key, obs_size: int, action_size: int, args: flowrl.Args) -> flowrl.LearnerState:
    """As `flowrl.init_learner`; one program for all arguments that give the same."""
    same = {name: getattr(args, name) for name in MATTER}
    return _init_learner(key, obs_size, action_size, dataclasses.replace(flowrl.Args(), **same))


def init_state(env, args: flowrl.Args) -> flowrl.TrainState:
    """As `flowrl.init_state`; one program for the learners of all seeds."""
    with mock.patch.object(flowrl, "init_learner", init_learner):
        return flowrl.init_state(env, args)
