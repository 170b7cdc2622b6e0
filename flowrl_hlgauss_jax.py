"""FlowRL with categorical critics and normalised observations: the one to try first.

Policy, behaviour-optimal critic and W2 term are those of flowrl_jax.py (arXiv 2506.12811), which is
imported: read it first. Two things are added, each from a paper of its own:

    HL-Gauss     a critic is a distribution over K bins, and learns by cross-entropy: Farebrother et
                 al., "Stop Regressing", arXiv 2403.03950
    observations normalised by their running mean and variance, after Lee et al., "SimBa", arXiv
                 2410.09754

    observations s <- clip((s - mean) / sqrt(var + 1e-4), -10, 10), for every network          (7)
    critic       Q(s, a) = sum_k p_k z_k,  p = softmax(logits(s, a)),  z_k: centres of bins    (8)
    of a value y h_k(y) ~ Phi((e_{k+1} - y) / sigma) - Phi((e_k - y) / sigma),  e: edges       (9)
    an update    batch seen by (7);  y, y_b as in (2), (3), by (8), from s' n steps later:
                 r = sum_{k<n} gamma^k r_k,  gamma^n in place of gamma                        (10)
                 y by min or mean of Qbar_phi's two heads, --target-heads; by_task, of presets cpu
                 and gpu: min where an episode can end early, as SimBa chooses suite by suite
                 phi  <- phi  - grad mean -sum_k h_k(y)   log p_k(s, a)                        (2)
                 beta <- beta - grad mean -sum_k h_k(y_b) log p_k(s, a)                        (3)
                 V, theta and targets as in (4), (5), (6)
    acting       a <- clip(a + eta i / N xi, -1, 1),  xi ~ N(0, 1),  in environment i of N     (11)
                 eta: --action-noise, 0 unless told; after Seo et al., "FastTD3", arXiv 2505.22642

The heads of Q_phi and Q_beta have the same layers and see the same (s, a): they are one network of
four heads, a single product for each layer.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Literal

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
from flowrl_jax import Metrics, Network, Params, TrainState, Transition, UpdateNoise
from harness import command_line, launch, loops, replay
from harness.contract import MAX_INT, chunk_length
from harness.policy import Policy
from vector_env import VectorEnv

Heads = Literal["min", "mean", "mean_to_min", "by_task"]


@dataclasses.dataclass(frozen=True)
class Args(flowrl.Args):
    """FlowRL's flags, which mean the same, and those of the bins."""

    num_bins: int = 55  # K, bins of a critic's distribution
    v_min: float = -5.0  # lowest edge; below the lowest return by a few bins, as a bell has tails
    v_max: float = 105.0  # highest edge; rewards in [0, 1] give 1 / (1 - gamma) at most
    n_step: int = 1  # n, rewards in a target before it bootstraps; as stored, not corrected
    learning_rate_decay: float = 1.0  # share of learning_rate that is left at the fall's end
    decay_updates: int = 50_000  # updates over which the step falls, and mean goes to min, linearly
    decay_after: int = 0  # updates before that begins; both do nothing where neither falls
    target_heads: Heads = "min"  # Q_phi's, in y; by_task: min if episodes can end early, else mean
    action_noise: float = 0.0  # eta of (11), in units of actions; of training only


CPU = dict(num_envs=64, batch_size=512, learning_rate=1e-3, target_heads="by_task")  # see docs
CPU |= dict(total_timesteps=1_000_000, log_interval=8_000, eval_interval=40_000)
CPU |= dict(checkpoint_interval=200_000)
GPU = dict(num_envs=512, batch_size=2_048, learning_rate=1e-3, target_heads="by_task")
GPU |= dict(target_tau=0.1, learning_rate_decay=0.3, decay_updates=100_000)
PRESETS = flowrl.PRESETS | {"cpu": flowrl.PRESETS["cpu"] | CPU, "gpu": flowrl.PRESETS["gpu"] | GPU}
BOUNDS = flowrl.BOUNDS | {"num_bins": (8, 2**12), "n_step": (1, 100)}
BOUNDS |= {"v_min": (-MAX_INT, 0), "v_max": (1e-3, MAX_INT)}
BOUNDS |= {"learning_rate_decay": (0, 1), "action_noise": (0, 2)}
BOUNDS |= {"decay_updates": (2, MAX_INT), "decay_after": (0, MAX_INT)}
SIGMA = 0.75  # of (9), in bins: the paper's
STD_MIN, OBS_MAX = 1e-2, 10.0  # of (7)


# ------------------------------------------------------------------------------------- networks
class Critics(nn.Module):
    """Logits of Q_phi's two heads, and of Q_beta's two: (B, O), (B, A) -> (4, B, K)."""

    hidden_size: int
    dtype: str
    num_bins: int
    num_heads: int = 4

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        heads = nn.vmap(flowrl.ValueNetwork, in_axes=None, axis_size=self.num_heads, **axes)
        inputs = jnp.concatenate([obs, action], axis=-1)
        return heads(self.hidden_size, self.dtype, self.num_bins)(inputs)


@flax.struct.dataclass
class LearnerState:
    velocity_field: Network  # v_theta; beside its "params" the statistics of (7), "obs"
    critics: Network  # Q_phi and Q_beta
    behaviour_value: Network  # V_beta, of normalised observations
    target_critics: Params  # Qbar_phi and Qbar_beta


falling = functools.cache(optax.linear_schedule)  # one for all states, as flowrl_jax.adam


def step_size(args: Args, every: int = 1) -> optax.ScalarOrSchedule:
    """Adam's, by the steps of a network that makes one on every `every`-th update."""
    if args.learning_rate_decay == 1.0:
        return args.learning_rate
    end = args.learning_rate * args.learning_rate_decay
    return falling(args.learning_rate, end, args.decay_updates // every, args.decay_after // every)


def init_learner(key: Array, obs_size: int, action_size: int, args: Args) -> LearnerState:
    """Q_beta starts as a copy of Q_phi, and the targets as copies of both.

    All start near a value of 0, by the last layer's biases: without, at the middle of the bins.
    """
    policy_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action, t = jnp.zeros((1, obs_size)), jnp.zeros((1, action_size)), jnp.zeros((1, 1))
    sizes = {"hidden_size": args.hidden_size, "dtype": args.compute_dtype}
    network = functools.partial(flowrl.new_network, args=args, step=step_size(args))
    policy = functools.partial(network, step=step_size(args, every=2))

    def critics() -> Params:  # drawn anew for each: a buffer can be donated once
        drawn = Critics(**sizes, num_bins=args.num_bins).init(critic_key, obs, action)
        heads = jax.tree.map(lambda x: jnp.concatenate([x[:2], x[:2]]), drawn)
        (layers,) = heads["params"].values()
        layers["Dense_4"]["bias"] += jnp.log(hl_gauss(jnp.zeros(()), args) + 1e-6)
        return heads

    theta = flowrl.VelocityField(action_size, **sizes).init(policy_key, obs, action, t)
    return LearnerState(
        velocity_field=policy(dict(theta) | {"obs": init_statistics(obs_size)}),
        critics=network(critics()),
        behaviour_value=network(flowrl.ValueNetwork(**sizes).init(value_key, obs)),
        target_critics=critics(),
    )


# ----------------------------------------------------------------------------------- observations
def init_statistics(obs_size: int) -> Params:
    """Of no observation: (7) then all but leaves them as they are, up to the clip."""
    return {"mean": jnp.zeros(obs_size), "var": jnp.ones(obs_size), "count": jnp.zeros(())}


def count_batch(statistics: Params, obs: Array) -> Params:
    """Mean and variance of all batches so far, obs (B, O) the newest; count: of batches."""
    mean, var, count = (statistics[name] for name in ("mean", "var", "count"))
    chex.assert_shape(obs, (None, *mean.shape))
    rate, delta = 1.0 / (count + 1.0), jnp.mean(obs, axis=0) - mean
    spread = jnp.var(obs, axis=0) + (1.0 - rate) * delta**2
    return {"mean": mean + rate * delta, "var": var + rate * (spread - var), "count": count + 1.0}


def std(statistics: Params) -> Array:
    """Of (7), (O,): observations that hardly change are not blown up."""
    return jnp.sqrt(statistics["var"] + STD_MIN**2)


def normalise(theta: Params, obs: Array) -> Array:
    """Equation (7): (..., O) -> (..., O); no gradient."""
    statistics = jax.lax.stop_gradient(theta["obs"])
    return jnp.clip((obs - statistics["mean"]) / std(statistics), -OBS_MAX, OBS_MAX)


def pack(theta: Params, settings: Mapping) -> bytes:
    """What numpy_policy.py reads: the layers, and mean, std and bound of (7) as one more."""
    normaliser = {
        "mean": theta["obs"]["mean"],
        "std": std(theta["obs"]),
        "max": jnp.float32(OBS_MAX),
    }
    return numpy_policy.pack({"params": theta["params"] | {"obs": normaliser}}, settings)


def policy_action(theta: Params, obs: Array, x0: Array, args: Args) -> Array:
    """Equation (1) after (7): (..., O), (..., A) -> (..., A), in [-1, 1]."""
    return flowrl.policy_action(theta, normalise(theta, obs), x0, args)


# -------------------------------------------------------------------------------------- n steps
def draw_batches(key: Array, ring: replay.Replay, args: Args) -> tuple[Transition, UpdateNoise]:
    """As flowrl_jax.draw_batches; for n > 1 with the transitions that follow: (U, B, n, ...)."""
    steps = (args.n_step, args.num_envs) if args.n_step > 1 else None
    return flowrl.draw_batches(key, ring, args, steps=steps)


def n_step(window: Transition, args: Args) -> tuple[Transition, Array]:
    """Equation (10), n transitions as one: (B, n, ...) -> (B, ...), and gamma^n, (B,).

    Fewer than n where the episode or the ring ends sooner: where the next does not begin at s'.
    """
    goes_on = jnp.all(window.obs[:, 1:] == window.next_obs[:, :-1], axis=-1)
    goes_on &= ~window.terminated[:, :-1]
    counts = jnp.cumprod(jnp.pad(goes_on, ((0, 0), (1, 0)), constant_values=True), axis=1)
    last = jnp.sum(counts, axis=1) - 1
    reward = jnp.sum(counts * args.gamma ** jnp.arange(args.n_step) * window.reward, axis=1)
    end = jax.tree.map(lambda x: x[jnp.arange(len(last)), last], window)
    begin = {"obs": window.obs[:, 0], "action": window.action[:, 0]}
    return end.replace(**begin, reward=reward), args.gamma ** (last + 1)


# ----------------------------------------------------------------------------------------- values
def edges(args: Args) -> Array:
    """e of (9), (K + 1,)."""
    return jnp.linspace(args.v_min, args.v_max, args.num_bins + 1)


def mean_value(logits: Array, args: Args) -> Array:
    """Equation (8): (..., K) -> (...)."""
    e = edges(args)
    return jax.nn.softmax(logits) @ ((e[:-1] + e[1:]) / 2.0)


def hl_gauss(y: Array, args: Args) -> Array:
    """Equation (9), which sums to 1: (...) -> (..., K). y is clipped to the edges; no gradient."""
    e, y = edges(args), jax.lax.stop_gradient(jnp.clip(y, args.v_min, args.v_max))
    sigma = SIGMA * (args.v_max - args.v_min) / args.num_bins
    cdf = jax.lax.erf((e - y[..., None]) / (sigma * 2**0.5))  # 2 Phi - 1: the rest cancels
    return jnp.diff(cdf) / (cdf[..., -1:] - cdf[..., :1])


def critic_logits(params: Params, obs: Array, action: Array, args: Args) -> Array:
    """Of as many heads H as there are parameters of: (B, O), (B, A) -> (H, B, K)."""
    num_heads = len(jax.tree.leaves(params)[0])
    critics = Critics(args.hidden_size, args.compute_dtype, args.num_bins, num_heads)
    with jax.default_matmul_precision(args.matmul_precision):
        return critics.apply(params, obs, action)


def head_values(params: Params, obs: Array, action: Array, args: Args) -> Array:
    """Q(s, a) of each head: (B, O), (B, A) -> (H, B)."""
    return mean_value(critic_logits(params, obs, action, args), args)


def of_phi(critics: Params) -> Params:
    """Q_phi's two heads of the four."""
    return jax.tree.map(lambda x: x[:2], critics)


def of_beta(critics: Params) -> Params:
    """Q_beta's two heads of the four."""
    return jax.tree.map(lambda x: x[2:], critics)


def for_task(args: Args, env: VectorEnv) -> Args:
    """With `by_task` of --target-heads as what it is on this task."""
    if args.target_heads != "by_task":
        return args
    return dataclasses.replace(args, target_heads="min" if env.ends_early else "mean")


def of_heads(q: Array, updates: Array, args: Args) -> Array:
    """What y takes of the heads, after so many updates: (H, B) -> (B,). args: as of `for_task`."""
    low, mean = q.min(axis=0), q.mean(axis=0)
    if args.target_heads == "mean_to_min":
        share = jnp.clip((updates - args.decay_after) / args.decay_updates, 0.0, 1.0)
        return share * low + (1.0 - share) * mean
    return {"min": low, "mean": mean}[args.target_heads]


# ----------------------------------------------------------------------------------------- losses
def critic_loss(
    params: Params, batch: Transition, y: Array, y_b: Array, args: Args
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """(2) + (3) of all four heads, and what is told of them: (2), (3), min Q_phi, min Q_beta."""
    logits = critic_logits(params, batch.obs, batch.action, args)
    target = jnp.repeat(hl_gauss(jnp.stack([y, y_b]), args), 2, axis=0)  # two heads each
    chex.assert_equal_shape([logits, target])
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)  # (4, B)
    q = mean_value(logits, args)
    phi_loss, beta_loss = jnp.mean(jnp.sum(loss.reshape(2, 2, -1), axis=1), axis=-1)
    return phi_loss + beta_loss, (phi_loss, beta_loss, q[:2].min(axis=0), q[2:].min(axis=0))


# ----------------------------------------------------------------------------------------- update
def update(
    state: LearnerState, batch: Transition, noise: UpdateNoise, args: Args, due: Array | None = None
) -> tuple[LearnerState, Metrics]:
    """One update: (7), then (2) and (3), (4), (6) and the targets. As flowrl_jax.update.

    due: whether (6) and the targets are, 1 or 0; None: on updates 0, 2, 4 ...
    """
    batch, gamma = n_step(batch, args) if args.n_step > 1 else (batch, args.gamma)
    theta = state.velocity_field.params
    theta = theta | {"obs": count_batch(theta["obs"], batch.obs)}
    obs, next_obs = normalise(theta, batch.obs), normalise(theta, batch.next_obs)
    batch = batch.replace(obs=obs, next_obs=next_obs)
    a_next = flowrl.policy_action(theta, next_obs, noise.x0_next, args)
    target_phi, target_beta = of_phi(state.target_critics), of_beta(state.target_critics)
    q_next = head_values(target_phi, next_obs, a_next, args)
    q_next = of_heads(q_next, state.critics.step, args)
    q_target = head_values(target_beta, obs, batch.action, args).min(axis=0)
    y = flowrl.td_target(batch, q_next, gamma)
    v_next = flowrl.behaviour_value(state.behaviour_value.params, next_obs, args)
    y_b = flowrl.td_target(batch, v_next, gamma)
    critics, _, (phi_loss, beta_loss, q, q_behaviour) = flowrl.gradient_step(
        state.critics, lambda params: critic_loss(params, batch, y, y_b, args)
    )
    value, value_loss, v = flowrl.gradient_step(
        state.behaviour_value, lambda p: flowrl.behaviour_value_loss(p, obs, q_target, args)
    )
    metrics = {"critic": phi_loss, "behaviour_critic": beta_loss, "behaviour_value": value_loss}
    metrics |= {"q": q, "q_behaviour": q_behaviour, "v_behaviour": v}
    low, high, targets = edges(args)[2], edges(args)[-3], jnp.stack([y, y_b])
    metrics |= {"at_edges": (targets < low) | (targets > high)}  # within two bins, or outside

    def policy_step(policy_and_targets: tuple[Network, Params]):
        policy, targets = policy_and_targets
        phi = of_phi(critics.params)
        policy, _, metrics = flowrl.gradient_step(
            policy,
            lambda theta: flowrl.policy_loss(
                theta, phi, batch, q_behaviour, noise, args, head_values
            ),
        )
        return (policy, optax.incremental_update(critics.params, targets, args.target_tau)), metrics

    due = 1 - state.critics.step % 2 if due is None else due
    policy = state.velocity_field.replace(params=theta)
    (policy, targets), more = loops.repeat(policy_step, (policy, state.target_critics), due)
    metrics = {f"losses/{name}": jnp.mean(value) for name, value in metrics.items()}
    return LearnerState(policy, critics, value, targets), metrics | more


# ----------------------------------------------------------------------------------------- train
def explore(noise: Array, action: Array, args: Args) -> Array:
    """Equation (11), xi and a: (N, A), (N, A) -> (N, A)."""
    chex.assert_equal_shape([noise, action])
    scale = jnp.linspace(0.0, args.action_noise, len(action) + 1)[1:, None]
    return jnp.clip(action + scale * noise, -1.0, 1.0)


def train_step(
    state: TrainState, env: VectorEnv, args: Args, update=update
) -> tuple[TrainState, Metrics]:
    """Acts in N environments, stores N transitions, makes U updates; as flowrl_jax.train_step."""
    act, args = policy_action, for_task(args, env)
    if args.action_noise:
        key, noise_key = jax.random.split(state.key)
        noise = jax.random.normal(noise_key, (env.num_envs, env.action_size))
        state = state.replace(key=key)

        def act(theta: Params, obs: Array, x0: Array, args: Args) -> Array:
            return explore(noise, policy_action(theta, obs, x0, args), args)

    return flowrl.train_step(state, env, args, act=act, update=update, draw=draw_batches)


@functools.partial(jax.jit, static_argnames=("env", "args"), donate_argnums=0)
def train_chunk(state: TrainState, env: VectorEnv, args: Args) -> tuple[TrainState, Metrics]:
    """The whole training loop for `log_interval` environment steps, as one program.

    Donates `state`. Metrics are means over the chunk; a mean over nothing is nan.
    """

    def updates(learner: LearnerState) -> Array:  # (2,): all of them, and policy steps
        return jnp.stack([learner.critics.step, learner.velocity_field.step])

    length, before = chunk_length(args), updates(state.learner)
    state, sums = loops.repeat(lambda s: train_step(s, env, args), state, length)
    num_updates, num_policy_steps = updates(state.learner) - before
    counts = {"losses/policy": num_policy_steps, "losses/": num_updates}
    counts |= {"charts/episodic_return": sums.pop("episodes"), "charts/action_saturation": length}
    metrics = loops.means(sums, counts) | {"charts/updates": state.learner.critics.step}
    key, noise_key = jax.random.split(state.key)
    return state.replace(key=key), metrics | POLICY.charts(state, noise_key, env, args)


def init_state(env: VectorEnv, args: Args) -> TrainState:
    """Everything at step 0, from `args.seed`."""
    return flowrl.state_with(init_learner, env, args)


# ------------------------------------------------------------------ evaluate, save, load and main
POLICY = Policy(
    network="velocity_field",
    act=policy_action,
    noise=flowrl.source_noise,
    sizes=flowrl.policy_sizes,
    pack=pack,
)
KINDS = flowrl.KINDS
ALGORITHM = POLICY.algorithm(
    "flowrl_hlgauss_jax", Args, PRESETS, BOUNDS, init_state, train_chunk, KINDS
)
load_policy = ALGORITHM.load_policy  # run folder -> act(obs, key=None): for a loop of your own


def main(args: Args) -> int:
    """Trains or evaluates as `args` say; returns the exit code. Bad input: RunError, UsageError."""
    return launch.run(ALGORITHM, args, envs)


if __name__ == "__main__":
    sys.exit(command_line.exit_code(main, ALGORITHM, envs.UsageError))
