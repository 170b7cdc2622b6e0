"""FlowRL in JAX: Flow-Based Policy for Online Reinforcement Learning, on one page.

Paper: Lv et al., arXiv 2506.12811 (https://arxiv.org/abs/2506.12811). Unofficial.

    policy      a = tanh(x_N),  x_{k+1} = x_k + v_theta(s, x_k, k/N) / N,  x_0 ~ clip(N(0, I))  (1)
    repeat      act in N environments, store (s, a, r, s', terminated)           train_chunk
      U times   sample a batch, draw the noise of one update                     update
                y   = r + gamma (1 - terminated) min Qbar_phi(s', a'),  a' ~ (1)
                phi  <- phi  - grad mean (Q_phi(s, a) - y)^2                                   (2)
                y_b = r + gamma (1 - terminated) V_beta(s')
                beta <- beta - grad mean (Q_beta(s, a) - y_b)^2                                (3)
                V    <- V    - grad expectile loss of min Qbar_beta(s, a) - V_beta(s)          (4)
                on every second update:
                w     = clip(lambda exp(u - mean u)),  u = relu(Q_beta(s, a) - Q_phi(s, a_pi)) (5)
                theta <- theta - grad mean(-min Q_phi(s, a_pi) + w |v_theta(s, x_t, t) - (a - x_0)|^2)
                targets <- (1 - target_tau) targets + target_tau online                        (6)

Run `python flowrl_jax.py --env-id humanoid-run --seed 1`; `--help` lists every hyperparameter.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import chex
import flax.linen as nn  # not nnx: parameters stay plain pytrees, so a target is one tree.map
import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import envs
import runs

Metrics = dict[str, jax.Array]
Params = Any  # a pytree of float32 arrays


@dataclasses.dataclass(frozen=True)
class Args:
    """Every hyperparameter; the defaults are the paper's and its released code's."""

    env_id: str = "humanoid-run"
    """task, `domain-task`; `python envs.py` lists them"""
    seed: int = 1
    """seed of everything random"""
    total_timesteps: int = 1_000_000
    """environment steps, summed over environments"""
    preset: Literal["auto", "paper", "gpu", "cpu"] = "auto"
    """defaults of all other flags; auto: gpu or cpu, by the device that JAX finds"""
    engine: str = "auto"
    """physics: native (MuJoCo in C), mjx, or auto"""
    num_envs: int = 1
    """parallel environments N"""
    num_threads: int = 0
    """threads of engine native; 0: all cores"""
    runs_dir: str = "runs"
    """folder in which the run's folder is made"""

    gamma: float = 0.99
    """discount factor gamma"""
    batch_size: int = 256
    """transitions in one update, B"""
    updates_per_step: int = 1
    """updates U after each step of all environments"""
    learning_starts: int = 5_000
    """environment steps with uniformly random actions before the first update"""
    buffer_size: int = 1_000_000
    """transitions in the replay; rounded down to a multiple of num_envs"""
    recent_fraction: float = 0.2
    """share of each batch drawn from the newest transitions"""
    recent_window: int = 2_048
    """how many transitions count as the newest"""
    learning_rate: float = 3e-4
    """Adam's step size, all networks"""
    hidden_size: int = 512
    """width H of every hidden layer"""
    target_tau: float = 0.95
    """weight of the online network in each target update"""

    flow_steps: int = 1
    """ODE steps N of the policy (equation 1)"""
    ode_solver: Literal["euler", "midpoint", "rk4"] = "euler"
    """ODE solver of the policy; the released code uses midpoint"""
    expectile: float = 0.9
    """tau_e of the behaviour value (equation 4)"""
    w2_coef: float = 0.1
    """lambda, weight of the Wasserstein-2 proximal term (equation 5)"""
    w2_weighting: Literal["per_sample", "batch_mean"] = "per_sample"
    """the paper's weight per sample, or the released code's mean(w) * mean(flow loss)"""
    w2_indicator: bool = False
    """multiply the weight by the paper's indicator 1[Q_beta > Q_phi] (equation 5)"""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """number type inside the networks; parameters and losses stay float32"""

    log_interval: int = 1_000
    """environment steps between log rows; also how many one compiled train_chunk takes"""
    eval_interval: int = 10_000
    """environment steps between evaluations; 0: none"""
    eval_episodes: int = 10
    """episodes of each evaluation, sampled x0 and x0 = 0 each"""


# Presets differ from Args' defaults by these fields only; flags override them.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {
        "num_envs": 8,
        "updates_per_step": 4,
        "hidden_size": 128,
        "learning_starts": 4_000,
        "buffer_size": 500_000,
        "total_timesteps": 300_000,
        "log_interval": 2_000,
    },
    "gpu": {
        "num_envs": 1_024,
        "updates_per_step": 8,
        "batch_size": 8_192,
        "learning_starts": 102_400,
        "buffer_size": 4_194_304,
        "recent_window": 262_144,
        "total_timesteps": 50_000_000,
        "log_interval": 102_400,
        "eval_interval": 1_024_000,
        "eval_episodes": 128,
    },
}


# ------------------------------------------------------------------------------------- networks


def _dense(size: int, dtype: str) -> nn.Dense:
    """Xavier-uniform weights, zero biases; float32 products are not rounded to TF32."""
    init = nn.initializers.xavier_uniform()
    return nn.Dense(size, dtype=dtype, kernel_init=init, precision=jax.lax.Precision.HIGHEST)


def _layer_norm(dtype: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False)


_gelu = functools.partial(nn.gelu, approximate=False)  # the erf form


class VelocityField(nn.Module):
    """v_theta(s, x, t), the policy network: (..., O), (..., A), (..., 1) -> (..., A)."""

    action_size: int
    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        h = jnp.concatenate([obs, x, t], axis=-1)
        for _ in range(2):
            h = nn.elu(_layer_norm(self.dtype)(_dense(self.hidden_size, self.dtype)(h)))
        return _dense(self.action_size, self.dtype)(h).astype(jnp.float32)


class ValueNetwork(nn.Module):
    """V_beta(s): (..., O) -> (...). One critic head has the same layers, on [s, a]."""

    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        h = _layer_norm(self.dtype)(_dense(self.hidden_size, self.dtype)(obs))
        for _ in range(2):
            h = _gelu(_layer_norm(self.dtype)(_dense(self.hidden_size, self.dtype)(h)))
        h = _layer_norm(self.dtype)(_dense(self.hidden_size, self.dtype)(h))
        return _dense(1, self.dtype)(h)[..., 0].astype(jnp.float32)


class TwinCritic(nn.Module):
    """(Q_1, Q_2)(s, a): (..., O), (..., A) -> (2, ...). Two heads, one ensemble axis."""

    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        heads = nn.vmap(
            ValueNetwork,
            in_axes=None,
            axis_size=2,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return heads(self.hidden_size, self.dtype)(jnp.concatenate([obs, action], axis=-1))


# ---------------------------------------------------------------------------- state, transition


@flax.struct.dataclass
class Transition:
    obs: jax.Array  # (B, O)  s
    action: jax.Array  # (B, A)  a, in [-1, 1]
    reward: jax.Array  # (B,)  r
    next_obs: jax.Array  # (B, O)  s', before any auto-reset
    terminated: jax.Array  # (B,)  bool; a time limit is not a termination


@flax.struct.dataclass
class UpdateNoise:
    """All that is random in one update, given the batch."""

    x0_next: jax.Array  # (B, A)  source noise of a' in (2)
    x0_policy: jax.Array  # (B, A)  source noise of a_pi in (5), (6)
    x0_flow: jax.Array  # (B, A)  x_0 of the flow-matching term in (6)
    t: jax.Array  # (B, 1)  flow time of that term, uniform in [0, 1]


@flax.struct.dataclass
class Networks:
    """One entry for each trained network: parameters, or their optimisers' states."""

    velocity_field: Params
    critic: Params
    behaviour_critic: Params
    behaviour_value: Params


@flax.struct.dataclass
class LearnerState:
    params: Networks
    optimiser: Networks
    target_critic: Params
    target_behaviour_critic: Params
    num_updates: jax.Array  # () int32


@flax.struct.dataclass
class TrainState:
    """All that `train_chunk` reads and writes."""

    learner: LearnerState
    replay: "Replay"
    env: envs.EnvState
    episode_return: jax.Array  # (N,)  reward summed over the present episode
    num_steps: jax.Array  # () int32, environment steps so far
    key: jax.Array  # () typed key


def optimiser(args: Args) -> optax.GradientTransformation:
    return optax.adam(args.learning_rate, b1=0.9, b2=0.999, eps=1e-8)


def init_learner(key: jax.Array, obs_size: int, action_size: int, args: Args) -> LearnerState:
    """Q_beta starts as a copy of Q_phi, and both targets as copies of their online networks."""
    policy_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action, t = jnp.zeros((1, obs_size)), jnp.zeros((1, action_size)), jnp.zeros((1, 1))
    net = {"hidden_size": args.hidden_size, "dtype": args.compute_dtype}
    critic = TwinCritic(**net).init(critic_key, obs, action)
    params = Networks(
        velocity_field=VelocityField(action_size, **net).init(policy_key, obs, action, t),
        critic=critic,
        behaviour_critic=_copy(critic),
        behaviour_value=ValueNetwork(**net).init(value_key, obs),
    )
    return LearnerState(
        params=params,
        optimiser=Networks(**{n: optimiser(args).init(p) for n, p in vars(params).items()}),
        target_critic=_copy(critic),
        target_behaviour_critic=_copy(critic),
        num_updates=jnp.zeros((), jnp.int32),
    )


def _copy(tree: Params) -> Params:
    """Buffers of their own: the whole state is donated, and a buffer can be donated once."""
    return jax.tree.map(jnp.array, tree)


# --------------------------------------------------------------------------------------- replay


@flax.struct.dataclass
class Replay:
    """A ring of transitions on the device. Capacity is a multiple of the number inserted."""

    data: Transition  # leading axis: capacity
    position: jax.Array  # () int32, where the next insert begins
    size: jax.Array  # () int32, how many are filled


def init_replay(obs_size: int, action_size: int, capacity: int) -> Replay:
    data = Transition(
        obs=jnp.zeros((capacity, obs_size)),
        action=jnp.zeros((capacity, action_size)),
        reward=jnp.zeros(capacity),
        next_obs=jnp.zeros((capacity, obs_size)),
        terminated=jnp.zeros(capacity, bool),
    )
    return Replay(data, position=jnp.zeros((), jnp.int32), size=jnp.zeros((), jnp.int32))


def replay_insert(replay: Replay, batch: Transition) -> Replay:
    """Writes N transitions in place, over the oldest. capacity % N must be 0."""
    capacity, num = replay.data.reward.shape[0], batch.reward.shape[0]
    if capacity % num:
        raise ValueError(f"capacity {capacity} is not a multiple of the {num} inserted")
    start = replay.position
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return Replay(
        data=jax.tree.map(lambda ring, new: write(ring, new, start), replay.data, batch),
        position=(start + num) % capacity,
        size=jnp.minimum(replay.size + num, capacity),
    )


def replay_indices(key: jax.Array, replay: Replay, shape: tuple[int, int], args: Args) -> jax.Array:
    """Draws (U, B) rows: `recent_fraction` of each batch from the newest, the rest uniformly."""
    recent_key, uniform_key = jax.random.split(key)
    num_updates, batch_size = shape
    num_recent = round(args.recent_fraction * batch_size)
    newest = jnp.minimum(args.recent_window, replay.size)
    age = jax.random.randint(recent_key, (num_updates, num_recent), 0, newest)
    recent = (replay.position - 1 - age) % replay.data.reward.shape[0]
    uniform_shape = (num_updates, batch_size - num_recent)
    uniform = jax.random.randint(uniform_key, uniform_shape, 0, replay.size)
    return jnp.concatenate([recent, uniform], axis=1)


# ----------------------------------------------------------------------------------------- flow


def source_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_0: a standard normal clipped to [-1, 1]."""
    return jnp.clip(jax.random.normal(key, shape), -1.0, 1.0)


def draw_update_noise(key: jax.Array, batch_size: int, action_size: int) -> UpdateNoise:
    """The one place where an update's noise comes from."""
    next_key, policy_key, flow_key, t_key = jax.random.split(key, 4)
    shape = (batch_size, action_size)
    return UpdateNoise(
        x0_next=source_noise(next_key, shape),
        x0_policy=source_noise(policy_key, shape),
        x0_flow=source_noise(flow_key, shape),
        t=jax.random.uniform(t_key, (batch_size, 1)),
    )


def ode_rollout(
    velocity: Callable[[jax.Array, jax.Array], jax.Array],
    x0: jax.Array,
    num_steps: int,
    solver: str,
) -> jax.Array:
    """Equation (1): integrates dx/dt = velocity(x, t) from t = 0 to 1 in equal steps.

    Args:
      velocity: (..., A), (..., 1) -> (..., A).
      x0: (..., A) at t = 0.
      num_steps: N.
      solver: "euler", "midpoint" or "rk4".

    Returns:
      x_N, (..., A), before the tanh.
    """
    h, x = 1.0 / num_steps, x0
    for k in range(num_steps):
        t = jnp.full((*x.shape[:-1], 1), k * h, x.dtype)
        k1 = velocity(x, t)
        if solver == "euler":
            x = x + h * k1
        elif solver == "midpoint":
            x = x + h * velocity(x + h / 2 * k1, t + h / 2)
        elif solver == "rk4":
            k2 = velocity(x + h / 2 * k1, t + h / 2)
            k3 = velocity(x + h / 2 * k2, t + h / 2)
            k4 = velocity(x + h * k3, t + h)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        else:
            raise ValueError(f"unknown ode_solver {solver!r}: use euler, midpoint or rk4")
    return x


def policy_action(params: Params, obs: jax.Array, x0: jax.Array, args: Args) -> jax.Array:
    """a = tanh(x_N), equation (1). obs: (..., O), x0: (..., A). Returns (..., A) in [-1, 1]."""
    field = VelocityField(x0.shape[-1], args.hidden_size, args.compute_dtype)

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        return field.apply(params, obs, x, t)

    return jnp.tanh(ode_rollout(velocity, x0, args.flow_steps, args.ode_solver))


# --------------------------------------------------------------------------------------- losses


def critic(params: Params, obs: jax.Array, action: jax.Array, args: Args) -> jax.Array:
    """Twin Q(s, a): (B, O), (B, A) -> (2, B)."""
    return TwinCritic(args.hidden_size, args.compute_dtype).apply(params, obs, action)


def behaviour_value(params: Params, obs: jax.Array, args: Args) -> jax.Array:
    """V_beta(s): (B, O) -> (B,)."""
    return ValueNetwork(args.hidden_size, args.compute_dtype).apply(params, obs)


def td_target(batch: Transition, next_value: jax.Array, args: Args) -> jax.Array:
    """r + gamma (1 - terminated) next_value, for (2) and (3), without gradient. (B,)"""
    chex.assert_equal_shape([batch.reward, batch.terminated, next_value])
    continues = 1.0 - batch.terminated.astype(jnp.float32)
    return jax.lax.stop_gradient(batch.reward + args.gamma * continues * next_value)


def critic_loss(params: Params, batch: Transition, target: jax.Array, args: Args):
    """Equations (2) and (3): mean (Q_1 - y)^2 + (Q_2 - y)^2. Returns (loss, Q of shape (2, B))."""
    q = critic(params, batch.obs, batch.action, args)
    chex.assert_shape(q, (2, *target.shape))
    return jnp.mean(jnp.sum((q - target) ** 2, axis=0)), q


def behaviour_value_loss(params: Params, obs: jax.Array, q: jax.Array, args: Args):
    """Equation (4): expectile regression of V_beta towards q, (B,). Returns (loss, V (B,))."""
    value = behaviour_value(params, obs, args)
    chex.assert_equal_shape([value, q])
    d = jax.lax.stop_gradient(q) - value
    return jnp.mean(jnp.abs(args.expectile - (d < 0)) * d**2), value


def proximal_weight(q_behaviour: jax.Array, q_policy: jax.Array, args: Args) -> jax.Array:
    """Equation (5), without gradient. min Q_beta(s, a) and min Q_phi(s, a_pi), (B,) -> w, (B,)."""
    chex.assert_equal_shape([q_behaviour, q_policy])
    difference = jax.lax.stop_gradient(q_behaviour - q_policy)
    u = jax.nn.relu(difference)
    weight = jnp.clip(args.w2_coef * jnp.exp(u - jnp.mean(u)), 1e-3, 1.0)
    return weight * (difference > 0) if args.w2_indicator else weight


def policy_loss(
    params: Params,
    critic_params: Params,
    batch: Transition,
    q_behaviour: jax.Array,
    noise: UpdateNoise,
    args: Args,
) -> tuple[jax.Array, Metrics]:
    """Equation (6): Q-maximisation plus the weighted flow-matching bound of W2. Returns (), info."""
    critic_params = jax.lax.stop_gradient(critic_params)
    action = policy_action(params, batch.obs, noise.x0_policy, args)
    q_policy = jnp.min(critic(critic_params, batch.obs, action, args), axis=0)  # (B,)
    weight = proximal_weight(q_behaviour, q_policy, args)

    x0, t = noise.x0_flow, noise.t
    x_t = t * batch.action + (1.0 - t) * x0
    field = VelocityField(x0.shape[-1], args.hidden_size, args.compute_dtype)
    error = field.apply(params, batch.obs, x_t, t) - (batch.action - x0)
    flow = jnp.mean(error**2, axis=-1)
    chex.assert_equal_shape([q_policy, weight, flow])
    if args.w2_weighting == "per_sample":
        w2 = jnp.mean(weight * flow)
    else:
        w2 = jnp.mean(weight) * jnp.mean(flow)
    info = {
        "losses/q_policy": jnp.mean(q_policy),
        "losses/flow": jnp.mean(flow),
        "losses/w2": w2,
        "losses/proximal_weight": jnp.mean(weight),
    }
    return jnp.mean(-q_policy) + w2, info


# --------------------------------------------------------------------------------------- update


def gradient_step(loss: Callable, params: Params, optimiser_state: Params, args: Args):
    """One Adam step down `loss(params) -> (loss, info)`. Returns params, state, loss, info."""
    (value, info), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    change, optimiser_state = optimiser(args).update(gradient, optimiser_state)
    return optax.apply_updates(params, change), optimiser_state, value, info


def polyak(online: Params, target: Params, args: Args) -> Params:
    """(1 - target_tau) target + target_tau online."""
    return optax.incremental_update(online, target, args.target_tau)


def update(
    state: LearnerState, batch: Transition, noise: UpdateNoise, args: Args
) -> tuple[LearnerState, Metrics]:
    """One update: (2), (3), (4), and on every second one (6) and the targets.

    The policy's metrics are zero on updates that skip it; `policy_updates` counts the others.
    """
    params, opt = state.params, state.optimiser

    next_action = policy_action(params.velocity_field, batch.next_obs, noise.x0_next, args)
    next_q = critic(state.target_critic, batch.next_obs, next_action, args)
    y = td_target(batch, jnp.min(next_q, axis=0), args)
    phi, phi_opt, phi_loss, q = gradient_step(
        lambda p: critic_loss(p, batch, y, args), params.critic, opt.critic, args
    )

    next_value = behaviour_value(params.behaviour_value, batch.next_obs, args)
    y_b = td_target(batch, next_value, args)
    beta, beta_opt, beta_loss, q_before = gradient_step(
        lambda p: critic_loss(p, batch, y_b, args), params.behaviour_critic, opt.behaviour_critic, args
    )
    q_behaviour = jnp.min(q_before, axis=0)  # of the parameters before this step

    target_q = critic(state.target_behaviour_critic, batch.obs, batch.action, args)
    value, value_opt, value_loss, v = gradient_step(
        lambda p: behaviour_value_loss(p, batch.obs, jnp.min(target_q, axis=0), args),
        params.behaviour_value,
        opt.behaviour_value,
        args,
    )

    def policy_step(operand):
        theta, theta_opt, targets = operand
        theta, theta_opt, loss, info = gradient_step(
            lambda p: policy_loss(p, phi, batch, q_behaviour, noise, args), theta, theta_opt, args
        )
        targets = polyak((phi, beta), targets, args)
        return theta, theta_opt, targets, {"losses/policy": loss, "policy_updates": 1.0} | info

    def skip(operand):
        shapes = jax.eval_shape(policy_step, operand)[3]
        return *operand, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    theta, theta_opt, (target_phi, target_beta), policy_metrics = jax.lax.cond(
        state.num_updates % 2 == 0,
        policy_step,
        skip,
        (
            params.velocity_field,
            opt.velocity_field,
            (state.target_critic, state.target_behaviour_critic),
        ),
    )
    metrics = {
        "losses/critic": phi_loss,
        "losses/behaviour_critic": beta_loss,
        "losses/behaviour_value": value_loss,
        "losses/q": jnp.mean(q),
        "losses/q_behaviour": jnp.mean(q_behaviour),
        "losses/v_behaviour": jnp.mean(v),
    }
    state = LearnerState(
        params=Networks(theta, phi, beta, value),
        optimiser=Networks(theta_opt, phi_opt, beta_opt, value_opt),
        target_critic=target_phi,
        target_behaviour_critic=target_beta,
        num_updates=state.num_updates + 1,
    )
    return state, metrics | policy_metrics


# ------------------------------------------------------------------------- training, evaluation

# Metrics of the policy step, which every second update skips.
POLICY_METRICS = ("losses/policy", "losses/q_policy", "losses/flow", "losses/w2")
POLICY_METRICS += ("losses/proximal_weight",)


def learn(key: jax.Array, learner: LearnerState, replay: Replay, args: Args):
    """U updates on batches drawn at once. Returns the learner and the metrics' sums."""
    index_key, noise_key = jax.random.split(key)
    num_updates, action_size = args.updates_per_step, replay.data.action.shape[-1]
    rows = replay_indices(index_key, replay, (num_updates, args.batch_size), args)
    batches = jax.tree.map(lambda ring: ring[rows], replay.data)  # (U, B, ...)
    noises = jax.vmap(lambda k: draw_update_noise(k, args.batch_size, action_size))(
        jax.random.split(noise_key, num_updates)
    )
    learner, metrics = jax.lax.scan(
        lambda state, inputs: update(state, *inputs, args), learner, (batches, noises)
    )
    return learner, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), metrics)


def train_step(state: TrainState, env: envs.VectorEnv, args: Args) -> tuple[TrainState, Metrics]:
    """Acts in N environments, stores N transitions, makes U updates."""
    key, x0_key, random_key, learn_key = jax.random.split(state.key, 4)
    shape = (env.num_envs, env.action_size)
    policy = state.learner.params.velocity_field
    exploring = state.num_steps < args.learning_starts
    action = jnp.where(
        exploring,
        jax.random.uniform(random_key, shape, minval=-1.0, maxval=1.0),
        policy_action(policy, state.env.obs, source_noise(x0_key, shape), args),
    )
    after = env.step(state.env, action)
    replay = replay_insert(
        state.replay,
        Transition(state.env.obs, action, after.reward, after.next_obs, after.terminated),
    )

    def skip(learner: LearnerState):
        shapes = jax.eval_shape(lambda s: learn(learn_key, s, replay, args), learner)[1]
        return learner, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    learner, metrics = jax.lax.cond(
        exploring, skip, lambda s: learn(learn_key, s, replay, args), state.learner
    )
    done = after.terminated | after.truncated
    returns = state.episode_return + after.reward
    metrics |= {
        "episodes": jnp.sum(done),
        "charts/episodic_return": jnp.sum(returns * done),
        "charts/action_saturation": jnp.mean(jnp.abs(action) > 0.99),
    }
    state = TrainState(
        learner=learner,
        replay=replay,
        env=after,
        episode_return=jnp.where(done, 0.0, returns),
        num_steps=state.num_steps + env.num_envs,
        key=key,
    )
    return state, metrics


@functools.partial(jax.jit, static_argnames=("env", "args"), donate_argnums=0)
def train_chunk(state: TrainState, env: envs.VectorEnv, args: Args) -> tuple[TrainState, Metrics]:
    """The whole training loop for about `log_interval` environment steps, as one program.

    Donates `state`. Returns the new one and metrics averaged over the chunk; a mean over nothing
    (no update, no finished episode) is nan.
    """
    length = chunk_length(args)
    before = state.learner.num_updates
    state, sums = jax.lax.scan(lambda s, _: train_step(s, env, args), state, length=length)
    sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums)
    counts = {name: state.learner.num_updates - before for name in sums}
    counts |= {name: sums["policy_updates"] for name in POLICY_METRICS}
    counts |= {"charts/episodic_return": sums["episodes"], "charts/action_saturation": length}
    names = [name for name in sums if "/" in name]
    metrics = {name: sums[name] / counts[name] for name in names}
    # The spread of actions over x_0 at one state: what there is of exploration.
    key, x0_key = jax.random.split(state.key)
    obs = jnp.broadcast_to(state.env.obs[:8, None], (min(8, env.num_envs), 64, obs_size(state)))
    x0 = source_noise(x0_key, (*obs.shape[:2], env.action_size))
    action = policy_action(state.learner.params.velocity_field, obs, x0, args)
    metrics["charts/action_std"] = jnp.mean(jnp.std(action, axis=1))
    metrics["charts/nonfinite_states"] = jnp.sum(state.env.nonfinite_count)
    metrics["charts/updates"] = state.learner.num_updates
    return state.replace(key=key), metrics


def obs_size(state: TrainState) -> int:
    return state.env.obs.shape[-1]


def chunk_length(args: Args) -> int:
    """Vector steps in one `train_chunk`."""
    return max(1, round(args.log_interval / args.num_envs))


@functools.partial(jax.jit, static_argnames=("env", "args"))
def evaluate(params: Params, key: jax.Array, env: envs.VectorEnv, args: Args) -> jax.Array:
    """Returns of one episode in each of `env`'s environments, (2, N / 2): sampled x0, x0 = 0."""
    reset_key, x0_key = jax.random.split(key)
    sampled = (jnp.arange(env.num_envs) < env.num_envs // 2)[:, None]

    def step(carry, x0_key):
        state, returns, alive = carry
        x0 = sampled * source_noise(x0_key, (env.num_envs, env.action_size))
        state = env.step(state, policy_action(params, state.obs, x0, args))
        returns += alive * state.reward
        return (state, returns, alive & ~(state.terminated | state.truncated)), None

    start = (env.reset(reset_key), jnp.zeros(env.num_envs), jnp.ones(env.num_envs, bool))
    keys = jax.random.split(x0_key, env.episode_length)
    (_, returns, _), _ = jax.lax.scan(step, start, keys)
    return returns.reshape(2, -1)


def init_state(env: envs.VectorEnv, args: Args) -> TrainState:
    """Everything at step 0, from `args.seed`."""
    learner_key, env_key, key = jax.random.split(jax.random.key(args.seed), 3)
    env_state = env.reset(env_key)
    return TrainState(
        learner=init_learner(learner_key, env.observation_size, env.action_size, args),
        replay=init_replay(env.observation_size, env.action_size, replay_capacity(args)),
        env=env_state,
        episode_return=jnp.zeros(env.num_envs),
        num_steps=jnp.zeros((), jnp.int32),
        key=key,
    )


def replay_capacity(args: Args) -> int:
    return args.buffer_size // args.num_envs * args.num_envs
