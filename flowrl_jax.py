"""FlowRL in JAX, unofficial, on one page. On a CPU flowrl_hlgauss_jax.py learns more in a minute.

https://arxiv.org/abs/2506.12811 (Lv et al., "Flow-Based Policy for Online Reinforcement Learning").

    policy      a = tanh(x_N),  x_{k+1} = x_k + v_theta(s, x_k, k/N) / N,  x_0 ~ clip(N(0, I))  (1)
    repeat      act in N environments, store (s, a, r, s', terminated)           train_chunk
      U times   sample a batch, draw the noise of one update                     update
                y   = r + gamma (1 - terminated) min Qbar_phi(s', a'),  a' ~ (1)
                phi  <- phi  - grad mean (Q_phi(s, a) - y)^2                                   (2)
                y_b = r + gamma (1 - terminated) V_beta(s')
                beta <- beta - grad mean (Q_beta(s, a) - y_b)^2                                (3)
                V    <- V    - grad expectile loss of min Qbar_beta(s, a) - V_beta(s)          (4)
                on every second update, with x_t = t a + (1-t) x_0,  t ~ U(0, 1):
                w     = clip(lambda exp(u - mean u)),  u = relu(Q_beta(s, a) - Q_phi(s, a_pi)) (5)
                theta <- theta - grad mean(w |v_theta(s,x_t,t) - (a-x_0)|^2/A - Q_phi(s, a_pi)) (6)
                targets <- (1 - target_tau) targets + target_tau online
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import chex
import flax.linen as nn  # not nnx: parameters stay plain pytrees, so a target is one tree.map
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState as Network  # params, opt_state, step
from jax import Array

import envs
import numpy_policy
from harness import command_line, launch, loops, replay
from harness.contract import MAX_INT, RunArgs, chunk_length
from harness.policy import Policy
from vector_env import EnvState, VectorEnv

Metrics, Params = dict[str, Array], Any  # Params: a pytree of float32 arrays
Dtype, Precision = Literal["float32", "bfloat16"], Literal["highest", "tensorfloat32", "bfloat16"]
Solver, Weighting = Literal["euler", "midpoint", "rk4"], Literal["per_sample", "batch_mean"]


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """The algorithm's flags; those of any run are RunArgs'. These values are preset `paper`'s."""

    gamma: float = 0.99  # discount factor gamma
    batch_size: int = 256  # transitions in one update, B
    updates_per_step: int = 1  # updates U after each step of all environments
    learning_starts: int = 5_000  # environment steps of random actions before the first update
    buffer_size: int = 1_000_000  # transitions in the replay, rounded down to a multiple of N
    buffer_dtype: Dtype = "float32"  # of observations in the replay; bfloat16: half the memory
    recent_fraction: float = 0.2  # share of each batch drawn from the newest transitions
    recent_window: int = 2_048  # how many transitions count as the newest
    learning_rate: float = 3e-4  # Adam's step size, all networks
    hidden_size: int = 512  # width H of every hidden layer
    target_tau: float = 0.95  # weight of the online network in each target update
    flow_steps: int = 1  # ODE steps N of (1); 5, 10 learned less at w2_coef 0.1: docs/results.md
    ode_solver: Solver = "euler"  # of the policy; the released code uses midpoint, one step
    expectile: float = 0.9  # tau_e of the behaviour value, equation (4)
    w2_coef: float = 0.1  # lambda, weight of the Wasserstein-2 term (5); at 0, w is 1e-3 still
    w2_weighting: Weighting = "per_sample"  # the released code: batch_mean, mean(w) * mean(flow)
    w2_indicator: bool = False  # multiply w by 1[Q_beta > Q_phi], as the paper writes (5)
    compute_dtype: Dtype = "float32"  # inside the networks; parameters and losses stay float32
    matmul_precision: Precision = "highest"  # of their float32 products; matters on GPUs and TPUs


PRESETS: dict[str, dict[str, Any]] = {  # what presets change; flags override them
    "paper": {},
    "cpu": dict(num_envs=8, updates_per_step=8, batch_size=128, hidden_size=128, target_tau=0.1)
    | dict(learning_starts=4_000, buffer_size=500_000, total_timesteps=300_000, log_interval=2_000),
    "gpu": dict(num_envs=1_024, updates_per_step=8, batch_size=8_192, checkpoint_interval=5_120_000)
    | dict(buffer_size=4_194_304, learning_starts=102_400, recent_window=262_144, eval_episodes=128)
    | dict(total_timesteps=50_000_000, log_interval=102_400, eval_interval=5_120_000)
    | dict(matmul_precision="tensorfloat32"),
}
BOUNDS = dict.fromkeys(("batch_size", "hidden_size"), (1, 2**18))  # smallest and largest values
BOUNDS |= dict.fromkeys(("updates_per_step", "flow_steps"), (1, 1024))
BOUNDS |= dict.fromkeys(("buffer_size", "recent_window"), (1, MAX_INT))
BOUNDS |= dict.fromkeys(("learning_starts", "w2_coef"), (0, MAX_INT))
BOUNDS |= dict.fromkeys(("gamma", "recent_fraction", "target_tau"), (0, 1))
BOUNDS |= dict.fromkeys(("expectile", "learning_rate"), (0, 1))


# ------------------------------------------------------------------------------------- networks
def dense(size: int, dtype: str) -> nn.Dense:
    """Xavier-uniform weights, zero biases; args.matmul_precision is set where it is applied."""
    return nn.Dense(size, dtype=dtype, kernel_init=nn.initializers.xavier_uniform())


def dense_norm(h: Array, size: int, dtype: str) -> Array:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False)(dense(size, dtype)(h))


class VelocityField(nn.Module):
    """v_theta(s, x, t), the policy network: (..., O), (..., A), (..., 1) -> (..., A)."""

    action_size: int
    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array, x: Array, t: Array) -> Array:
        h = jnp.concatenate([obs, x, t], axis=-1)
        h = nn.elu(dense_norm(h, self.hidden_size, self.dtype))
        h = nn.elu(dense_norm(h, self.hidden_size, self.dtype))
        return dense(self.action_size, self.dtype)(h).astype(jnp.float32)


class ValueNetwork(nn.Module):
    """V_beta(s): (..., O) -> (...). A critic's head has the same layers, on [s, a]."""

    hidden_size: int = 512
    dtype: str = "float32"
    num_logits: int = 0  # of a distribution over values, the output then (..., K); 0: a value

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        h = dense_norm(obs, self.hidden_size, self.dtype)
        for _ in range(2):
            h = dense_norm(h, self.hidden_size, self.dtype)
            h = h / 2 * (1.0 + jax.lax.erf(h / 2**0.5))  # GELU, exact; by erfc, as flax, slower
        h = dense_norm(h, self.hidden_size, self.dtype)
        out = dense(self.num_logits or 1, self.dtype)(h).astype(jnp.float32)
        return out if self.num_logits else out[..., 0]


class TwinCritic(nn.Module):
    """(Q_1, Q_2)(s, a): (..., O), (..., A) -> (2, ...). Two heads on one ensemble axis."""

    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        heads = nn.vmap(ValueNetwork, in_axes=None, axis_size=2, **axes)
        return heads(self.hidden_size, self.dtype)(jnp.concatenate([obs, action], axis=-1))


# --------------------------------------------------------------------------- state and transition
@flax.struct.dataclass
class Transition:
    obs: Array  # (B, O)  s
    action: Array  # (B, A)  a, in [-1, 1]
    reward: Array  # (B,)  r
    next_obs: Array  # (B, O)  s', before any auto-reset
    terminated: Array  # (B,)  bool; a time limit is not a termination


@flax.struct.dataclass
class UpdateNoise:
    """All that is random in one update, given its batch."""

    x0_next: Array  # (B, A)  source noise of a' in (2)
    x0_policy: Array  # (B, A)  source noise of a_pi in (5) and (6)
    x0_flow: Array  # (B, A)  x_0 of the flow-matching term in (6)
    t: Array  # (B, 1)  flow time of that term, uniform in [0, 1]


@flax.struct.dataclass
class LearnerState:
    velocity_field: Network  # v_theta
    critic: Network  # Q_phi, both heads
    behaviour_critic: Network  # Q_beta, both heads
    behaviour_value: Network  # V_beta
    target_critic: Params  # Qbar_phi
    target_behaviour_critic: Params  # Qbar_beta


@flax.struct.dataclass
class TrainState:
    """All that `train_chunk` reads and writes."""

    learner: Any  # LearnerState, or another algorithm's
    replay: replay.Replay  # of Transition
    env: EnvState
    episode_return: Array  # (N,)  reward summed over the present episode
    num_steps: Array  # () int32, environment steps so far; stays at MAX_INT from there on
    key: Array  # () typed key


@functools.cache
def adam(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """One for all states: JAX compiles a program anew for a state with another optimiser."""
    return optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)


def new_network(params: Params, args: Any, step: optax.ScalarOrSchedule | None = None) -> Network:
    """Parameters with Adam's state, at step 0. step: Adam's step size, else args.learning_rate."""
    fresh = Network.create(apply_fn=None, params=params, tx=adam(step or args.learning_rate))
    return fresh.replace(step=jnp.zeros((), jnp.int32))


def init_learner(key: Array, obs_size: int, action_size: int, args: Args) -> LearnerState:
    """Q_beta starts as a copy of Q_phi, and both targets as copies of their online networks."""
    policy_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action, t = jnp.zeros((1, obs_size)), jnp.zeros((1, action_size)), jnp.zeros((1, 1))
    sizes = {"hidden_size": args.hidden_size, "dtype": args.compute_dtype}
    network = functools.partial(new_network, args=args)
    # The whole state is donated, and a buffer can be donated once: copies are drawn anew.
    critic = functools.partial(TwinCritic(**sizes).init, critic_key, obs, action)
    theta = VelocityField(action_size, **sizes).init(policy_key, obs, action, t)
    return LearnerState(
        velocity_field=network(theta),
        critic=network(critic()),
        behaviour_critic=network(critic()),
        behaviour_value=network(ValueNetwork(**sizes).init(value_key, obs)),
        target_critic=critic(),
        target_behaviour_critic=critic(),
    )


# ------------------------------------------------------------------------------------------- flow
def source_noise(key: Array, shape: tuple[int, ...]) -> Array:
    """x_0: a standard normal clipped to [-1, 1]."""
    return jnp.clip(jax.random.normal(key, shape), -1.0, 1.0)


def draw_update_noise(key: Array, batch_size: int, action_size: int) -> UpdateNoise:
    """The one place where an update's noise comes from."""
    next_key, policy_key, flow_key, t_key = jax.random.split(key, 4)
    x0 = functools.partial(source_noise, shape=(batch_size, action_size))
    t = jax.random.uniform(t_key, (batch_size, 1))
    return UpdateNoise(x0(next_key), x0(policy_key), x0(flow_key), t)


def ode_rollout(velocity: Callable, x0: Array, num_steps: int, solver: str) -> Array:
    """Equation (1) up to x_N: integrates dx/dt = velocity(x, t) from t = 0 to 1 in equal steps.

    velocity: (..., A), (..., 1) -> (..., A). x0: (..., A). solver: euler, midpoint or rk4.
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


def velocity_field(params: Params, obs: Array, x: Array, t: Array, args: Args):
    """v_theta(s, x, t): (..., O), (..., A), (..., 1) -> (..., A)."""
    module = VelocityField(x.shape[-1], args.hidden_size, args.compute_dtype)
    with jax.default_matmul_precision(args.matmul_precision):
        return module.apply(params, obs, x, t)


def policy_action(params: Params, obs: Array, x0: Array, args: Args) -> Array:
    """Equation (1): a = tanh(x_N). (..., O), (..., A) -> (..., A), in [-1, 1]."""
    field = functools.partial(velocity_field, params, obs, args=args)
    return jnp.tanh(ode_rollout(field, x0, args.flow_steps, args.ode_solver))


# ----------------------------------------------------------------------------------------- losses
def twin_q(params: Params, obs: Array, action: Array, args: Args) -> Array:
    """(Q_1, Q_2)(s, a): (B, O), (B, A) -> (2, B)."""
    with jax.default_matmul_precision(args.matmul_precision):
        return TwinCritic(args.hidden_size, args.compute_dtype).apply(params, obs, action)


def behaviour_value(params: Params, obs: Array, args: Args) -> Array:
    """V_beta(s): (B, O) -> (B,)."""
    with jax.default_matmul_precision(args.matmul_precision):
        return ValueNetwork(args.hidden_size, args.compute_dtype).apply(params, obs)


def td_target(batch: Transition, next_value: Array, gamma: float | Array) -> Array:
    """y of (2), (3): r + gamma (1 - terminated) next_value, (B,), gamma () or (B,); no gradient."""
    chex.assert_equal_shape([batch.reward, batch.terminated, next_value])
    return jax.lax.stop_gradient(batch.reward + gamma * (1.0 - batch.terminated) * next_value)


def critic_loss(params: Params, batch: Transition, y: Array, args: Args):
    """Equations (2), (3): mean (Q_1 - y)^2 + (Q_2 - y)^2, and min Q (B,)."""
    q = twin_q(params, batch.obs, batch.action, args)
    chex.assert_shape(q, (2, *y.shape))
    return jnp.mean(jnp.sum((q - y) ** 2, axis=0)), jnp.min(q, axis=0)


def behaviour_value_loss(params: Params, obs: Array, target_q: Array, args: Args):
    """Equation (4): expectile regression of V_beta to min Qbar_beta(s, a), and V_beta (B,)."""
    value = behaviour_value(params, obs, args)
    chex.assert_equal_shape([value, target_q])
    d = jax.lax.stop_gradient(target_q) - value
    return jnp.mean(jnp.abs(args.expectile - (d < 0)) * d**2), value


def proximal_weight(q_behaviour: Array, q_policy: Array, args: Args) -> Array:
    """Equation (5): w of min Q_beta(s, a) and min Q_phi(s, a_pi), all (B,); no gradient."""
    chex.assert_equal_shape([q_behaviour, q_policy])
    advantage = jax.lax.stop_gradient(q_behaviour - q_policy)
    u = jax.nn.relu(advantage)  # below, 88: exp stays finite, since 0 * inf is nan
    weight = jnp.clip(args.w2_coef * jnp.exp(jnp.minimum(u - jnp.mean(u), 88.0)), 1e-3, 1.0)
    return weight * (advantage > 0) if args.w2_indicator else weight


def policy_loss(
    theta: Params, phi: Params, batch: Transition, q_beta: Array, noise: UpdateNoise, args, q=twin_q
) -> tuple[Array, Metrics]:
    """Equation (6): Q-maximisation, Q by `q`, and the weighted flow matching that bounds W2."""
    action = policy_action(theta, batch.obs, noise.x0_policy, args)
    q_policy = jnp.min(q(jax.lax.stop_gradient(phi), batch.obs, action, args), axis=0)
    weight = proximal_weight(q_beta, q_policy, args)
    x_0, t = noise.x0_flow, noise.t
    x_t = t * batch.action + (1.0 - t) * x_0
    error = velocity_field(theta, batch.obs, x_t, t, args) - (batch.action - x_0)
    flow = jnp.mean(error**2, axis=-1)
    chex.assert_equal_shape([q_policy, weight, flow])
    per_sample = args.w2_weighting == "per_sample"
    w2 = jnp.mean(weight * flow) if per_sample else jnp.mean(weight) * jnp.mean(flow)
    loss = jnp.mean(-q_policy) + w2
    metrics = {"": loss, "_q": q_policy, "_flow": flow, "_w2": w2, "_weight": weight}
    return loss, {f"losses/policy{name}": jnp.mean(value) for name, value in metrics.items()}


# ----------------------------------------------------------------------------------------- update
def gradient_step(network: Network, loss: Callable[[Params], tuple[Array, Any]]):
    """One Adam step. Returns the network, the loss and what else `loss` returned."""
    (value, info), gradient = jax.value_and_grad(loss, has_aux=True)(network.params)
    return network.apply_gradients(grads=gradient), value, info


def update(state: LearnerState, batch: Transition, noise: UpdateNoise, args: Args, due=None):
    """One update: (2), (3), (4), then (6) and the targets. Returns the learner and its metrics.

    due: whether (6) and the targets are, 1 or 0; None: on updates 0, 2, 4 ... Where they are not,
    the metrics `losses/policy*` are zero.
    """
    a_next = policy_action(state.velocity_field.params, batch.next_obs, noise.x0_next, args)
    q_next = twin_q(state.target_critic, batch.next_obs, a_next, args).min(axis=0)
    y = td_target(batch, q_next, args.gamma)
    critic, phi_loss, q = gradient_step(state.critic, lambda phi: critic_loss(phi, batch, y, args))
    v_next = behaviour_value(state.behaviour_value.params, batch.next_obs, args)
    y_b = td_target(batch, v_next, args.gamma)
    behaviour_critic, beta_loss, q_behaviour = gradient_step(  # q_behaviour: before this step
        state.behaviour_critic, lambda beta: critic_loss(beta, batch, y_b, args)
    )
    q_target = twin_q(state.target_behaviour_critic, batch.obs, batch.action, args).min(axis=0)
    value, value_loss, v = gradient_step(
        state.behaviour_value, lambda p: behaviour_value_loss(p, batch.obs, q_target, args)
    )
    metrics = {"critic": phi_loss, "behaviour_critic": beta_loss, "behaviour_value": value_loss}
    metrics |= {"q": jnp.mean(q), "q_behaviour": jnp.mean(q_behaviour), "v_behaviour": jnp.mean(v)}
    online = (critic.params, behaviour_critic.params)

    def policy_step(policy_and_targets: tuple[Network, tuple[Params, Params]]):
        policy, targets = policy_and_targets
        policy, _, metrics = gradient_step(
            policy, lambda theta: policy_loss(theta, critic.params, batch, q_behaviour, noise, args)
        )
        return (policy, optax.incremental_update(online, targets, args.target_tau)), metrics

    due = 1 - state.critic.step % 2 if due is None else due
    targets = (state.target_critic, state.target_behaviour_critic)
    (policy, targets), more = loops.repeat(policy_step, (state.velocity_field, targets), due)
    state = LearnerState(policy, critic, behaviour_critic, value, *targets)
    return state, {f"losses/{name}": value for name, value in metrics.items()} | more


# ----------------------------------------------------------------------------------------- train
def draw_batches(key: Array, ring: replay.Replay, args: Any, noise=draw_update_noise, steps=None):
    """Transition and UpdateNoise of U updates, (U, B, ...). steps: `following` of replay.sample."""
    batch_key, noise_key = jax.random.split(key)
    shape, action_size = (args.updates_per_step, args.batch_size), ring.data.action.shape[-1]
    newest = (args.recent_fraction, args.recent_window)
    batches = replay.sample(batch_key, ring, shape, *newest, steps)
    keys = jax.random.split(noise_key, args.updates_per_step)
    return batches, jax.vmap(lambda key: noise(key, args.batch_size, action_size))(keys)


def learn(learner: Any, batches: Transition, noises: UpdateNoise, args: Any, update=update):
    """U updates, on leaves (U, B, ...). Returns the learner and summed metrics."""

    def one(learner: Any, given: tuple[Transition, UpdateNoise], due=None):
        return update(learner, *given, args, due)

    skips = args.on_nonfinite == "skip"  # then which update is due depends on what was skipped
    loop = loops.over if skips else loops.alternating
    return loop(loops.guarded(one, skips), learner, (batches, noises))


def train_step(
    state: TrainState, env: VectorEnv, args, act=policy_action, update=update, draw=draw_batches
) -> tuple[TrainState, Metrics]:
    """Acts by `act` in N environments, stores N transitions, makes U updates. Metrics are sums."""
    key, x0_key, random_key, learn_key = jax.random.split(state.key, 4)
    shape = (env.num_envs, env.action_size)
    theta, obs = state.learner.velocity_field.params, state.env.obs
    started = state.num_steps >= args.learning_starts
    action = act(theta, obs, source_noise(x0_key, shape), args)
    action = jnp.where(started, action, jax.random.uniform(random_key, shape, minval=-1.0))
    after = env.step(state.env, action)
    transition = Transition(obs, action, after.reward, after.next_obs, after.terminated)
    ring = replay.insert(state.replay, transition)
    learns = started & replay.holds(state.replay, args.learning_starts)  # a resume may lack it
    given = loops.when(learns, lambda: draw(learn_key, ring, args))
    learner, metrics = loops.repeat(lambda s: learn(s, *given, args, update), state.learner, learns)
    state, charts = loops.count_step(state, after, action)
    return state.replace(learner=learner, replay=ring, env=after, key=key), metrics | charts


@functools.partial(jax.jit, static_argnames=("env", "args"), donate_argnums=0)
def train_chunk(state: TrainState, env: VectorEnv, args: Args) -> tuple[TrainState, Metrics]:
    """The whole training loop for `log_interval` environment steps, as one program.

    Donates `state`. Metrics are means over the chunk; a mean over nothing is nan.
    """

    def updates(learner: LearnerState) -> Array:  # (2,): all of them, and policy steps
        return jnp.stack([learner.critic.step, learner.velocity_field.step])

    length, before = chunk_length(args), updates(state.learner)
    state, sums = loops.repeat(lambda s: train_step(s, env, args), state, length)
    num_updates, num_policy_steps = updates(state.learner) - before
    counts = {"losses/policy": num_policy_steps, "losses/": num_updates}
    counts |= {"charts/episodic_return": sums.pop("episodes"), "charts/action_saturation": length}
    metrics = loops.means(sums, counts) | {"charts/updates": state.learner.critic.step}
    key, noise_key = jax.random.split(state.key)
    return state.replace(key=key), metrics | POLICY.charts(state, noise_key, env, args)


def init_state(env: VectorEnv, args: Args) -> TrainState:
    """Everything at step 0, from `args.seed`."""
    return state_with(init_learner, env, args)


def state_with(init_learner: Callable, env: VectorEnv, args: Any) -> TrainState:
    """Everything at step 0. init_learner: (key, obs_size, action_size, args) -> what learns."""
    learner_key, env_key, key = jax.random.split(jax.random.key(args.seed), 3)
    obs, action = jnp.zeros(env.observation_size, args.buffer_dtype), jnp.zeros(env.action_size)
    example = Transition(obs, action, jnp.zeros(()), obs, jnp.zeros((), bool))
    ring = replay.init(example, args.buffer_size // args.num_envs * args.num_envs, env.mesh)
    learner = init_learner(learner_key, obs.size, action.size, args)
    start, steps = env.reset(env_key), jnp.zeros((), jnp.int32)
    return TrainState(learner, ring, start, jnp.zeros_like(start.reward), steps, key)


# ------------------------------------------------------------------ evaluate, save, load and main
def policy_sizes(theta: Params) -> tuple[int, int]:
    """(O, A), by v_theta's layers."""
    first, last = theta["params"]["Dense_0"]["kernel"], theta["params"]["Dense_2"]["bias"]
    return first.shape[0] - last.shape[0] - 1, last.shape[0]


POLICY = Policy("velocity_field", policy_action, source_noise, policy_sizes, numpy_policy.pack)
KINDS = {"sampled": "sampled x0", "deterministic": "x0 = 0"}
ALGORITHM = POLICY.algorithm("flowrl_jax", Args, PRESETS, BOUNDS, init_state, train_chunk, KINDS)
load_policy = ALGORITHM.load_policy  # run folder -> act(obs, key=None): for a loop of your own


def main(args: Args) -> int:
    """Trains or evaluates as `args` say; returns the exit code. Bad input: RunError, UsageError."""
    return launch.run(ALGORITHM, args, envs)


if __name__ == "__main__":
    sys.exit(command_line.exit_code(main, ALGORITHM, envs.UsageError))
