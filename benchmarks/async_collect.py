"""What acting with a policy that is one step old would give: `python benchmarks/async_collect.py`.

Physics and updates of a step then no longer wait for each other. Here the step of `train_step` is
written so that XLA may run them at once: the updates draw from the replay as it was before the
step, the action comes from the policy as it was before the updates (as it does anyway). Beside it,
block by block, the step as it is, and the two parts alone: with perfect overlap a step would take
as long as the longer part. Rows go to async_collect.csv beside this file.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import throughput  # noqa: I001  # before jax: it sets MUJOCO_GL

import jax
import jax.numpy as jnp

import envs
import flowrl_jax as flowrl
from harness import replay

CASES = {  # by the device they are meant for
    "cpu": [("cheetah-run", 8, 8, 128, 128), ("humanoid-run", 8, 8, 128, 128)]
    + [("humanoid-run", 64, 8, 128, 128), ("humanoid-run", 1, 1, 256, 512)],
    "gpu": [("humanoid-run", 512, 8, 2048, 512), ("humanoid-run", 128, 8, 512, 512)]
    + [("humanoid-run", 1024, 8, 8192, 512), ("dog-run", 128, 8, 512, 512)],
}


def overlapped(state: flowrl.TrainState, env: envs.VectorEnv, args: flowrl.Args):
    """`train_step` without its waiting: updates see the replay before this step's transitions."""
    key, x0_key, learn_key = jax.random.split(state.key, 3)
    theta, obs = state.learner.velocity_field.params, state.env.obs
    x0 = flowrl.source_noise(x0_key, (env.num_envs, env.action_size))
    action = flowrl.policy_action(theta, obs, x0, args)
    after = env.step(state.env, action)
    given = flowrl.draw_batches(learn_key, state.replay, args)
    learner, _ = flowrl.learn(state.learner, *given, args)
    step = flowrl.Transition(obs, action, after.reward, after.next_obs, after.terminated)
    ring = replay.insert(state.replay, step)
    return dataclasses.replace(state, learner=learner, replay=ring, env=after, key=key)


def measure(env_id: str, num_envs: int, updates: int, batch: int, width: int, blocks: int) -> dict:
    """Milliseconds a step: as it is, overlapped, and its parts."""
    sizes = {"num_envs": num_envs, "updates_per_step": updates, "batch_size": batch}
    args = flowrl.Args(env_id=env_id, hidden_size=width, learning_starts=0, **sizes)
    args = dataclasses.replace(args, buffer_size=2**17)
    if jax.default_backend() != "cpu":  # as preset gpu
        args = dataclasses.replace(args, matmul_precision="tensorfloat32")
    env = envs.make(env_id, num_envs, "native")
    state = flowrl.init_state(env, args)
    full = state.replay.replace(size=jnp.array(2**17, jnp.int32))
    state = state.replace(replay=full)
    shape = (64, num_envs, env.action_size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0)

    def learn(carry, i):
        key = jax.random.fold_in(jax.random.key(2), i)
        learner, ring = carry
        return flowrl.learn(learner, *flowrl.draw_batches(key, ring, args), args)[0], ring

    contenders = {
        "as it is": throughput.repeated(lambda s, _: flowrl.train_step(s, env, args)[0], state),
        "overlapped": throughput.repeated(lambda s, _: overlapped(s, env, args), state),
        "env": throughput.ours(env, state.env, actions),
        "updates": throughput.repeated(learn, (state.learner, full)),
    }
    seconds = throughput.interleaved(contenders, blocks)
    row = {"env_id": env_id} | {name: str(value) for name, value in sizes.items()}
    row |= {"width": str(width)}
    row |= {f"{k}, ms": f"{1e3 * throughput.median(v):.3g}" for k, v in seconds.items()}
    gain = throughput.ratio(seconds["as it is"], seconds["overlapped"])
    return row | {"as it is / overlapped": gain["ratio"], "range": gain["range"]}


def main() -> None:
    """Measures and writes the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    keys = ("env_id", "num_envs", "updates_per_step", "batch_size", "width")
    for case in CASES["cpu" if jax.default_backend() == "cpu" else "gpu"]:
        row = measure(*case, blocks=7) | throughput.conditions()
        row["command"] = "python benchmarks/async_collect.py"
        throughput.write("async_collect", keys, row)


if __name__ == "__main__":
    main()
