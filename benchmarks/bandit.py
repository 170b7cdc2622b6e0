"""A bandit with two optima: what a flow policy is for.

    python benchmarks/bandit.py        # trains, writes benchmarks/bandit.csv and bandit.png

One state, one action, episodes of one step; the reward has a peak of height 1 at -0.6 and at 0.6.
A policy that is one Gaussian must choose. Writes the actions of 2,000 draws of x0 for a weak and a
strong proximal term (lambda of equation 5).
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flowrl_jax as flowrl


@flax.struct.dataclass
class ProbeState:
    obs: jax.Array
    next_obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    step_count: jax.Array
    nonfinite_count: jax.Array


class Probe:
    """Observation 1, reward by `reward(action)`; episodes of `length` steps."""

    action_size, observation_size, engine, mesh = 1, 1, "probe", None

    def __init__(self, num_envs, length, terminates, reward):
        self.num_envs, self.episode_length = num_envs, length
        self.terminates, self.ends_early, self.reward = terminates, terminates, reward

    def reset(self, key):
        del key
        n = self.num_envs
        one, no = jnp.ones((n, 1)), jnp.zeros(n, bool)
        count = jnp.zeros(n, jnp.int32)
        return ProbeState(one, one + 0, jnp.zeros(n), no, ~~no, count, count + 0)

    def step(self, state, action):
        count = state.step_count + 1
        done = count >= self.episode_length
        return state.replace(
            reward=self.reward(action[:, 0]),
            terminated=done & self.terminates,
            truncated=done & (not self.terminates),
            step_count=jnp.where(done, 0, count),
        )

    def refresh(self, state, index):
        del index
        return state


PROBE_ARGS = dataclasses.replace(
    flowrl.Args(),
    num_envs=4,
    hidden_size=32,
    batch_size=64,
    buffer_size=4096,
    learning_starts=64,
    updates_per_step=4,
    learning_rate=1e-3,
    log_interval=1_200,
    gamma=0.8,
)
ARGS = dataclasses.replace(PROBE_ARGS, gamma=0.0, flow_steps=4, w2_coef=1.0)


def two_peaks(action):
    """Reward 1 at a = -0.6 and at a = 0.6, and near 0 between them and at the ends."""
    return jnp.exp(-(((jnp.abs(action) - 0.6) / 0.2) ** 2))


def final_actions(args):
    """Trains, and returns the actions of 2,000 draws of x0. (2000,)"""
    env = Probe(4, 1, True, two_peaks)
    state = flowrl.init_state(env, args)
    for _ in range(4):
        state, _ = flowrl.train_chunk(state, env, args)
    x0 = flowrl.source_noise(jax.random.key(5), (2_000, 1))
    theta = state.learner.velocity_field.params
    return np.asarray(flowrl.policy_action(theta, jnp.ones((2_000, 1)), x0, args))[:, 0]


def main():
    """Writes the CSV and the plot."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder = ROOT / "benchmarks"
    grid = np.linspace(-1, 1, 401)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True, sharey=True)
    with (folder / "bandit.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["w2_coef", "seed", "mean_reward", "share_left"])
        for axis, w2_coef in zip(axes, (0.1, 1.0), strict=True):
            for seed in (1, 2, 3):
                actions = final_actions(dataclasses.replace(ARGS, w2_coef=w2_coef, seed=seed))
                reward, left = float(np.mean(two_peaks(actions))), float(np.mean(actions < 0))
                writer.writerow([w2_coef, seed, round(reward, 4), round(left, 4)])
                print(f"{w2_coef=} {seed=} reward {reward:.3f}, {left:.0%} left", flush=True)
                axis.hist(actions, 80, range=(-1, 1), density=True, alpha=0.5, label=f"seed {seed}")
            scale = axis.get_ylim()[1]
            axis.plot(grid, scale * np.asarray(two_peaks(grid)), "k", lw=1, label="reward (scaled)")
            axis.set(title=f"lambda = {w2_coef}", xlabel="action")
    axes[0].set_ylabel("density of actions over x0")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "bandit.png", dpi=120)


if __name__ == "__main__":
    main()
