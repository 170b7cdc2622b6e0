"""Soft Actor-Critic in JAX: a squashed Gaussian with automatic temperature, on one page.

Paper: Haarnoja et al., arXiv 1812.05905 (https://arxiv.org/abs/1812.05905). Unofficial.
The critic is FlowRL's, imported from its page: a comparison with it is one of policies.

    policy      a = tanh(u),  u = mu(s) + sigma(s) eps,  eps ~ N(0, I)                      (1)
                log pi(a|s) = log N(u; mu, sigma) - sum log(1 - tanh(u)^2)                  (2)
    repeat      act in N environments, store (s, a, r, s', terminated)           train_chunk
      U times   sample a batch, draw the noise of one update                     update
                v'    = min Qbar_phi(s', a') - alpha log pi(a'|s'),  a' ~ (1)
                y     = r + gamma (1 - terminated) v'
                phi   <- phi   - grad mean (Q_phi(s, a) - y)^2                              (3)
                theta <- theta - grad mean(alpha log pi(a_pi|s) - min Q_phi(s, a_pi))       (4)
                alpha <- alpha - grad mean alpha (-log pi(a_pi|s) - target entropy)         (5)
                Qbar  <- (1 - target_tau) Qbar + target_tau Q                               (6)
"""

import dataclasses
import functools
import math
import sys
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

import envs
import flowrl_jax as flowrl
import numpy_policy
from flowrl_jax import Dtype, Metrics, Network, Params, Precision, TrainState, Transition
from harness import command_line, launch, loops, replay
from harness.contract import MAX_INT, RunArgs, chunk_length
from harness.policy import Policy
from vector_env import VectorEnv


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """The algorithm's flags; those of any run are RunArgs'. These values are preset `paper`'s."""

    gamma: float = 0.99  # discount factor gamma
    batch_size: int = 256  # transitions in one update, B
    updates_per_step: int = 1  # updates U after each step of all environments
    learning_starts: int = 5_000  # environment steps of random actions before the first update
    buffer_size: int = 1_000_000  # transitions in the replay, rounded down to a multiple of N
    buffer_dtype: Dtype = "float32"  # of observations in the replay; bfloat16: half the memory
    recent_fraction: float = 0.0  # share of each batch drawn from the newest; SAC draws uniformly
    recent_window: int = 2_048  # how many transitions count as the newest
    learning_rate: float = 3e-4  # Adam's step size, all networks and alpha
    hidden_size: int = 512  # width H of every hidden layer
    target_tau: float = 0.005  # weight of the online network in each target update, equation (6)
    alpha: float = 1.0  # temperature alpha at the start; equation (5) learns it
    target_entropy_scale: float = 1.0  # target entropy of (5) is -target_entropy_scale * A
    compute_dtype: Dtype = "float32"  # inside the networks; parameters and losses stay float32
    matmul_precision: Precision = "highest"  # of their float32 products; matters on GPUs and TPUs


# What presets change; flags override them. Sizes are FlowRL's, the target's rate stays SAC's.
PRESETS: dict[str, dict[str, Any]] = {
    name: {flag: value for flag, value in preset.items() if flag != "target_tau"}
    for name, preset in flowrl.PRESETS.items()
}
BOUNDS = dict.fromkeys(("batch_size", "hidden_size"), (1, 2**18))  # smallest and largest values
BOUNDS |= dict.fromkeys(("buffer_size", "recent_window"), (1, MAX_INT))
BOUNDS |= dict.fromkeys(("learning_starts", "target_entropy_scale"), (0, MAX_INT))
BOUNDS |= dict.fromkeys(("gamma", "recent_fraction", "target_tau", "learning_rate"), (0, 1))
BOUNDS |= {"updates_per_step": (1, 1024), "alpha": (1e-6, MAX_INT)}
LOG_STD = (-5.0, 2.0)  # lowest and highest log sigma


# ------------------------------------------------------------------------------------- networks
class Actor(nn.Module):
    """(mu, log sigma)(s): (..., O) -> 2 x (..., A). The layers of FlowRL's v_theta, two heads."""

    action_size: int
    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        h = nn.elu(flowrl.dense_norm(obs, self.hidden_size, self.dtype))
        h = nn.elu(flowrl.dense_norm(h, self.hidden_size, self.dtype))
        mean = flowrl.dense(self.action_size, self.dtype)(h).astype(jnp.float32)
        raw = flowrl.dense(self.action_size, self.dtype)(h).astype(jnp.float32)
        low, high = LOG_STD
        return mean, low + (high - low) * (jnp.tanh(raw) + 1.0) / 2.0  # a clip would stop gradients


# --------------------------------------------------------------------------- state and transition
@flax.struct.dataclass
class UpdateNoise:
    """All that is random in one update, given its batch: standard normals."""

    next: Array  # (B, A)  eps of a' in (3)
    policy: Array  # (B, A)  eps of a_pi in (4) and (5)


@flax.struct.dataclass
class LearnerState:
    actor: Network  # mu, sigma: theta
    critic: Network  # Q_phi, both heads
    alpha: Network  # its one parameter is log alpha, ()
    target_critic: Params  # Qbar_phi


def init_learner(key: Array, obs_size: int, action_size: int, args: Args) -> LearnerState:
    """The target starts as a copy of the critic, drawn anew: a buffer can be donated once."""
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, obs_size)), jnp.zeros((1, action_size))
    sizes = {"hidden_size": args.hidden_size, "dtype": args.compute_dtype}

    network = functools.partial(flowrl.new_network, args=args)
    critic = functools.partial(flowrl.TwinCritic(**sizes).init, critic_key, obs, action)
    return LearnerState(
        actor=network(Actor(action_size, **sizes).init(actor_key, obs)),
        critic=network(critic()),
        alpha=network({"log_alpha": jnp.log(jnp.float32(args.alpha))}),
        target_critic=critic(),
    )


def draw_update_noise(key: Array, batch_size: int, action_size: int) -> UpdateNoise:
    """The one place where an update's noise comes from."""
    next_key, policy_key = jax.random.split(key)
    shape = (batch_size, action_size)
    return UpdateNoise(jax.random.normal(next_key, shape), jax.random.normal(policy_key, shape))


# ----------------------------------------------------------------------------------------- policy
def squash(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """Equations (1), (2): a and log pi(a|s), all (..., A) -> (..., A), (...).

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)) is exact where tanh(u) rounds to 1.
    """
    chex.assert_equal_shape([mean, log_std, noise])
    u = mean + jnp.exp(log_std) * noise
    normal = -(noise**2) / 2.0 - log_std - math.log(2.0 * math.pi) / 2.0
    squashed = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return jnp.tanh(u), jnp.sum(normal - squashed, axis=-1)


def sample(params: Params, obs: Array, noise: Array, args: Args) -> tuple[Array, Array]:
    """a ~ pi(.|s) and log pi(a|s): (..., O), (..., A) -> (..., A), (...)."""
    actor = Actor(noise.shape[-1], args.hidden_size, args.compute_dtype)
    with jax.default_matmul_precision(args.matmul_precision):
        mean, log_std = actor.apply(params, obs)
    return squash(mean, log_std, noise)


def policy_action(params: Params, obs: Array, noise: Array, args: Args) -> Array:
    """Equation (1): (..., O), (..., A) -> (..., A), in [-1, 1]. Without noise it is tanh(mu)."""
    return sample(params, obs, noise, args)[0]


# ----------------------------------------------------------------------------------------- losses
def soft_value(q: Array, log_prob: Array, alpha: Array) -> Array:
    """v of (3): min Q(s, a) - alpha log pi(a|s), (2, B), (B,), () -> (B,)."""
    chex.assert_shape(q, (2, *log_prob.shape))
    chex.assert_shape(alpha, ())
    return jnp.min(q, axis=0) - alpha * log_prob


def policy_loss(
    theta: Params, phi: Params, alpha: Array, obs: Array, noise: Array, args: Args
) -> tuple[Array, tuple[Array, Array]]:
    """Equation (4), and log pi(a_pi|s) and min Q_phi(s, a_pi), (B,) each."""
    phi, alpha = jax.lax.stop_gradient((phi, alpha))
    action, log_prob = sample(theta, obs, noise, args)
    q = flowrl.twin_q(phi, obs, action, args)
    value = soft_value(q, log_prob, alpha)
    chex.assert_shape(value, (obs.shape[0],))
    return -jnp.mean(value), (log_prob, jnp.min(q, axis=0))


def alpha_of(params: Params) -> Array:
    """alpha > 0, (): what is learned is its logarithm."""
    return jnp.exp(params["log_alpha"])


def temperature_loss(params: Params, log_prob: Array, target_entropy: float):
    """Equation (5), and alpha: it grows while the entropy is below its target."""
    chex.assert_rank(log_prob, 1)
    missing = jax.lax.stop_gradient(log_prob + target_entropy)  # (B,)
    alpha = alpha_of(params)
    return jnp.mean(-alpha * missing), alpha


# ----------------------------------------------------------------------------------------- update
def update(
    state: LearnerState, batch: Transition, noise: UpdateNoise, args: Args
) -> tuple[LearnerState, Metrics]:
    """One update: (3), (4) with the critic of (3), (5) with the actions of (4), then (6)."""
    theta, alpha = state.actor.params, alpha_of(state.alpha.params)
    a_next, log_prob_next = sample(theta, batch.next_obs, noise.next, args)
    q_next = flowrl.twin_q(state.target_critic, batch.next_obs, a_next, args)
    y = flowrl.td_target(batch, soft_value(q_next, log_prob_next, alpha), args.gamma)
    critic, phi_loss, q = flowrl.gradient_step(
        state.critic, lambda phi: flowrl.critic_loss(phi, batch, y, args)
    )
    actor, theta_loss, (log_prob, q_policy) = flowrl.gradient_step(
        state.actor,
        lambda theta: policy_loss(theta, critic.params, alpha, batch.obs, noise.policy, args),
    )
    target_entropy = -args.target_entropy_scale * batch.action.shape[-1]
    temperature, alpha_loss, alpha = flowrl.gradient_step(
        state.alpha, lambda params: temperature_loss(params, log_prob, target_entropy)
    )
    target = optax.incremental_update(critic.params, state.target_critic, args.target_tau)
    metrics = {"critic": phi_loss, "q": q, "policy": theta_loss, "policy_q": q_policy}
    metrics |= {"entropy": -log_prob, "temperature": alpha_loss, "alpha": alpha}
    metrics = {f"losses/{name}": jnp.mean(value) for name, value in metrics.items()}
    return LearnerState(actor, critic, temperature, target), metrics


# ----------------------------------------------------------------------------------------- train
def learn(learner: LearnerState, batches: Transition, noises: UpdateNoise, args: Args):
    """U updates, on leaves (U, B, ...). Returns the learner and summed metrics."""
    step = loops.guarded(lambda s, given: update(s, *given, args), args.on_nonfinite == "skip")
    return loops.over(step, learner, (batches, noises))


def train_step(state: TrainState, env: VectorEnv, args: Args) -> tuple[TrainState, Metrics]:
    """Acts in N environments, stores N transitions, makes U updates. Metrics are sums."""
    key, noise_key, random_key, learn_key = jax.random.split(state.key, 4)
    shape, obs = (env.num_envs, env.action_size), state.env.obs
    started = state.num_steps >= args.learning_starts
    noise = jax.random.normal(noise_key, shape)
    action = policy_action(state.learner.actor.params, obs, noise, args)
    action = jnp.where(started, action, jax.random.uniform(random_key, shape, minval=-1.0))
    after = env.step(state.env, action)
    transition = Transition(obs, action, after.reward, after.next_obs, after.terminated)
    ring = replay.insert(state.replay, transition)
    learns = started & replay.holds(state.replay, args.learning_starts)  # a resume may lack it
    given = loops.when(
        learns, lambda: flowrl.draw_batches(learn_key, ring, args, draw_update_noise)
    )
    learner, metrics = loops.repeat(lambda s: learn(s, *given, args), state.learner, learns)
    state, charts = loops.count_step(state, after, action)
    return state.replace(learner=learner, replay=ring, env=after, key=key), metrics | charts


@functools.partial(jax.jit, static_argnames=("env", "args"), donate_argnums=0)
def train_chunk(state: TrainState, env: VectorEnv, args: Args) -> tuple[TrainState, Metrics]:
    """The whole training loop for `log_interval` environment steps, as one program.

    Donates `state`. Metrics are means over the chunk; a mean over nothing is nan.
    """
    length, before = chunk_length(args), state.learner.critic.step
    state, sums = loops.repeat(lambda s: train_step(s, env, args), state, length)
    counts = {"losses/": state.learner.critic.step - before, "charts/action_saturation": length}
    counts["charts/episodic_return"] = sums.pop("episodes")
    metrics = loops.means(sums, counts) | {"charts/updates": state.learner.critic.step}
    key, noise_key = jax.random.split(state.key)
    return state.replace(key=key), metrics | POLICY.charts(state, noise_key, env, args)


def init_state(env: VectorEnv, args: Args) -> TrainState:
    """Everything at step 0, from `args.seed`."""
    return flowrl.state_with(init_learner, env, args)


# ------------------------------------------------------------------ evaluate, save, load and main
def policy_sizes(theta: Params) -> tuple[int, int]:
    """(O, A), by the actor's layers."""
    layers = theta["params"]
    return layers["Dense_0"]["kernel"].shape[0], layers["Dense_2"]["bias"].shape[0]


POLICY = Policy(
    network="actor",
    act=policy_action,
    noise=jax.random.normal,
    sizes=policy_sizes,
    pack=lambda theta, _: numpy_policy.pack(theta, {"log_std": LOG_STD}),
)
KINDS = {"sampled": "sampled", "deterministic": "tanh(mu)"}
ALGORITHM = POLICY.algorithm("sac_jax", Args, PRESETS, BOUNDS, init_state, train_chunk, KINDS)
load_policy = ALGORITHM.load_policy  # run folder -> act(obs, key=None): for a loop of your own


def main(args: Args) -> int:
    """Trains or evaluates as `args` say; returns the exit code. Bad input: RunError, UsageError."""
    return launch.run(ALGORITHM, args, envs)


if __name__ == "__main__":
    sys.exit(command_line.exit_code(main, ALGORITHM, envs.UsageError))
