"""FlowRL against a numpy oracle, closed forms and small problems with known answers."""

import contextlib
import dataclasses
import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from samples import OBS, A, B, directional, float64, make_batch, perturbed
from scripts import COMPILER_OPTIONS
from small import init_learner, init_state

import envs
import flowrl_jax as flowrl
from benchmarks import bandit
from harness import command_line, parallel
from harness.errors import RunError

ROOT = Path(__file__).parents[1]
SMALL = dataclasses.replace(flowrl.Args(), hidden_size=32, batch_size=B, num_envs=4)


# One program for all tests: op by op, and anew in each, compiling would take most of the time.
update = jax.jit(flowrl.update, static_argnums=3)
policy_action = jax.jit(flowrl.policy_action, static_argnums=3)
twin_q = jax.jit(flowrl.twin_q, static_argnums=3)
behaviour_value = jax.jit(flowrl.behaviour_value, static_argnums=2)


@functools.cache
def make_learner(args=SMALL):
    state = init_learner(jax.random.key(0), OBS, A, args)

    def shake(network, seed):
        return network.replace(params=perturbed(network.params, seed))

    return state.replace(
        velocity_field=shake(state.velocity_field, 1),
        critic=shake(state.critic, 2),
        behaviour_critic=shake(state.behaviour_critic, 3),
        behaviour_value=shake(state.behaviour_value, 4),
        target_critic=perturbed(state.target_critic, 5),
        target_behaviour_critic=perturbed(state.target_behaviour_critic, 6),
    )


NOISE = flowrl.draw_update_noise(jax.random.key(7), B, A)


# ------------------------------------------------------------------------------- ODE solvers


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solver_reaches_the_closed_form_at_its_order(solver, order):
    """dx/dt = c x + t has a closed form; halving the step divides the error by 2^order."""
    c, x0 = -1.3, np.linspace(-1, 1, 6).reshape(2, 3)
    exact = (x0 + 1 / c**2) * np.exp(c) - (c + 1) / c**2
    with jax.enable_x64():
        errors = [
            np.abs(
                flowrl.ode_rollout(lambda x, t: c * x + t, jnp.asarray(x0), n, solver) - exact
            ).max()
            for n in (8, 16)
        ]
    assert errors[1] < 0.1
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_one_euler_step_is_x0_plus_velocity():
    x = flowrl.ode_rollout(lambda x, t: 3 * x + t, jnp.ones((2, 3)), 1, "euler")
    np.testing.assert_array_equal(x, 4.0)


def test_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="ode_solver"):
        flowrl.ode_rollout(lambda x, t: x, jnp.ones((1, 1)), 1, "heun")


# ----------------------------------------------------------------- losses against the oracle


@pytest.mark.parametrize(("solver", "steps"), [("euler", 1), ("euler", 4), ("midpoint", 2)])
def test_policy_action(solver, steps):
    args = dataclasses.replace(SMALL, ode_solver=solver, flow_steps=steps)
    theta, batch = make_learner().velocity_field.params, make_batch()
    ours = policy_action(theta, batch.obs, NOISE.x0_policy, args)
    expected = oracle.act(
        float64(theta), float64(batch.obs), float64(NOISE.x0_policy), steps, solver
    )
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_source_noise_is_a_clipped_normal():
    x0 = np.asarray(flowrl.source_noise(jax.random.key(0), (40_000,)))
    assert np.abs(x0).max() == 1.0
    # 2 (1 - Phi(1)) of a normal lies beyond the clip; variance of the clipped one in closed form
    assert np.mean(np.abs(x0) == 1.0) == pytest.approx(0.3173, abs=0.01)
    assert x0.var() == pytest.approx(0.1988 + 0.3173, abs=0.01)


def test_critic_and_value_losses():
    state, batch = make_learner(), make_batch()
    b, n = float64(batch), float64(NOISE)
    phi, beta = float64(state.critic.params), float64(state.behaviour_critic.params)
    theta, v = float64(state.velocity_field.params), float64(state.behaviour_value.params)
    a_next = oracle.act(theta, b.next_obs, n.x0_next, 1, "euler")
    y = oracle.y(b, oracle.min_q(float64(state.target_critic), b.next_obs, a_next), SMALL.gamma)
    y_b = oracle.y(b, oracle.value(v, b.next_obs), SMALL.gamma)
    q_target = oracle.min_q(float64(state.target_behaviour_critic), b.obs, b.action)

    _, metrics = update(state, batch, NOISE, SMALL)
    expected = {
        "losses/critic": oracle.critic_loss(phi, b, y),
        "losses/behaviour_critic": oracle.critic_loss(beta, b, y_b),
        "losses/behaviour_value": oracle.value_loss(v, b.obs, q_target, SMALL.expectile),
        "losses/q": oracle.min_q(phi, b.obs, b.action).mean(),
        "losses/q_behaviour": oracle.min_q(beta, b.obs, b.action).mean(),
        "losses/v_behaviour": oracle.value(v, b.obs).mean(),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=2e-5), name


@pytest.mark.parametrize("indicator", [False, True])
def test_proximal_weight(indicator):
    rng = np.random.default_rng(0)
    q_behaviour, q_policy = 3 * rng.standard_normal((2, 64))
    args = dataclasses.replace(SMALL, w2_indicator=indicator)
    ours = flowrl.proximal_weight(jnp.asarray(q_behaviour), jnp.asarray(q_policy), args)
    expected = oracle.weight(q_behaviour, q_policy, SMALL.w2_coef, indicator)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert len(np.unique(expected)) > 10  # neither clip rules everything


@pytest.mark.parametrize(("w2_coef", "expected"), [(0.0, [1e-3, 1e-3]), (0.1, [1.0, 1e-3])])
@pytest.mark.parametrize("gap", [178.0, 1e4])  # exp(u - mean u) is too large for a float32
def test_a_weight_is_a_number_at_any_advantage(gap, w2_coef, expected):
    args = dataclasses.replace(SMALL, w2_coef=w2_coef, w2_indicator=False)
    q_behaviour, q_policy = jnp.array([2.5 * gap, 0.0]), jnp.zeros(2)
    ours = flowrl.proximal_weight(q_behaviour, q_policy, args)
    np.testing.assert_array_equal(ours, np.float32(expected))


@pytest.mark.parametrize("weighting", ["per_sample", "batch_mean"])
def test_update_uses_q_beta_from_before_and_q_phi_from_after_its_step(weighting):
    """Equations (5) and (6) within a whole update, for the order of algorithm.md."""
    args = dataclasses.replace(SMALL, w2_weighting=weighting)
    state, batch = make_learner(), make_batch()
    after, metrics = update(state, batch, NOISE, args)
    b, n, theta = float64(batch), float64(NOISE), float64(state.velocity_field.params)
    phi = float64(after.critic.params)
    a_pi = oracle.act(theta, b.obs, n.x0_policy, 1, "euler")
    q_behaviour = oracle.min_q(float64(state.behaviour_critic.params), b.obs, b.action)
    w = oracle.weight(q_behaviour, oracle.min_q(phi, b.obs, a_pi), args.w2_coef)
    assert float(metrics["losses/policy_weight"]) == pytest.approx(w.mean(), rel=2e-5)
    loss = oracle.policy_loss(theta, phi, b, n, w, args)
    assert float(metrics["losses/policy"]) == pytest.approx(loss, rel=2e-5)
    wrong = oracle.policy_loss(theta, float64(state.critic.params), b, n, w, args)
    assert abs(wrong - loss) > 1e-3  # so that the order shows


def adam_first_step(params, gradient, rate):
    """Adam's first step moves every parameter by rate * g / (|g| + eps)."""
    return jax.tree.map(lambda p, g: p - rate * g / (np.abs(g) + 1e-8), params, gradient)


def test_update_skips_policy_and_targets_every_second_time():
    state, batch = make_learner(), make_batch()
    first, _ = update(state, batch, NOISE, SMALL)
    second, metrics = update(first, batch, NOISE, SMALL)

    def same(x, y):
        return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True))

    assert not same(first.velocity_field.params, state.velocity_field.params)
    assert same(second.velocity_field, first.velocity_field)
    assert same(second.target_critic, first.target_critic)
    assert same(second.target_behaviour_critic, first.target_behaviour_critic)
    assert not same(second.critic.params, first.critic.params)
    assert metrics["losses/policy"] == 0
    tau = SMALL.target_tau
    for target, old, online in (
        (first.target_critic, state.target_critic, first.critic.params),
        (
            first.target_behaviour_critic,
            state.target_behaviour_critic,
            first.behaviour_critic.params,
        ),
    ):
        jax.tree.map(
            lambda t, o, n: np.testing.assert_allclose(t, (1 - tau) * o + tau * n, atol=1e-6),
            *(target, old, online),
        )


def test_first_critic_step_is_adam_down_the_gradient():
    state, batch = make_learner(), make_batch()
    after, _ = update(state, batch, NOISE, SMALL)

    @jax.jit
    @jax.grad
    def gradient(params):
        v = flowrl.behaviour_value(state.behaviour_value.params, batch.next_obs, SMALL)
        y_b = flowrl.td_target(batch, v, SMALL.gamma)
        return flowrl.critic_loss(params, batch, y_b, SMALL)[0]

    gradient = gradient(state.behaviour_critic.params)
    expected = adam_first_step(state.behaviour_critic.params, gradient, SMALL.learning_rate)
    jax.tree.map(
        lambda ours, other: np.testing.assert_allclose(ours, other, atol=2e-6),
        *(after.behaviour_critic.params, expected),
    )


# ---------------------------------------------------------------- gradients and stop_gradient


@pytest.mark.parametrize("weighting", ["per_sample", "batch_mean"])
def test_policy_gradient_takes_the_weight_as_a_constant(weighting):
    args = dataclasses.replace(SMALL, w2_weighting=weighting, w2_coef=0.5)
    state, batch = make_learner(), make_batch()
    theta, phi = state.velocity_field.params, state.critic.params
    b, n, theta64, phi64 = float64(batch), float64(NOISE), float64(theta), float64(phi)
    q_behaviour = 2 + np.arange(B, dtype=np.float32) / B
    gradient = jax.jit(jax.grad(flowrl.policy_loss, has_aux=True), static_argnums=5)
    gradient, _ = gradient(theta, phi, batch, q_behaviour, NOISE, args)

    def weights(theta):
        a = oracle.act(theta, b.obs, n.x0_policy, 1, "euler")
        return oracle.weight(q_behaviour, oracle.min_q(phi64, b.obs, a), args.w2_coef)

    fixed = weights(theta64)
    rng = np.random.default_rng(0)
    differs = 0.0
    for _ in range(4):
        direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), theta64)
        ours = sum(
            float(np.vdot(np.asarray(g, np.float64), d))
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        held = directional(
            lambda p: oracle.policy_loss(p, phi64, b, n, fixed, args), theta64, direction
        )
        through = directional(
            lambda p: oracle.policy_loss(p, phi64, b, n, weights(p), args), theta64, direction
        )
        assert ours == pytest.approx(held, rel=1e-3, abs=1e-3)
        differs = max(differs, abs(through - held))
    assert differs > 0.02  # a gradient through the weight would have shown


def test_no_gradient_where_none_belongs():
    state, batch = make_learner(), make_batch()
    phi, theta = state.critic.params, state.velocity_field.params

    def of_critic(p):
        return flowrl.policy_loss(theta, p, batch, jnp.ones(B), NOISE, SMALL)[0]

    def of_q(q):
        return jnp.sum(flowrl.proximal_weight(q, 0.5 * q, SMALL))

    def of_value(p):
        v = flowrl.behaviour_value(p, batch.next_obs, SMALL)
        return jnp.sum(flowrl.td_target(batch, v, SMALL.gamma))

    def of_target(q):
        return flowrl.behaviour_value_loss(state.behaviour_value.params, batch.obs, q, SMALL)[0]

    functions = (of_critic, of_q, of_value, of_target)
    arguments = (phi, jnp.linspace(1.0, 3.0, B), state.behaviour_value.params, jnp.ones(B))

    @jax.jit
    def gradients(arguments):
        return [jax.grad(f)(x) for f, x in zip(functions, arguments, strict=True)]

    found = gradients(arguments)
    assert jax.tree.structure(found) == jax.tree.structure(list(arguments))
    for gradient in jax.tree.leaves(found):
        np.testing.assert_array_equal(gradient, 0.0)


# -------------------------------------------------------------------------- initialisation


def test_networks_start_as_the_paper_says():
    args = dataclasses.replace(SMALL, hidden_size=64)
    state = init_learner(jax.random.key(3), OBS, A, args)
    (heads,) = state.critic.params["params"].values()
    kernel = np.asarray(heads["Dense_1"]["kernel"])  # (2, 64, 64)
    bound = np.sqrt(6 / (64 + 64))
    assert np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    assert not np.allclose(kernel[0], kernel[1])
    assert heads["Dense_4"]["kernel"].shape == (2, 64, 1)
    np.testing.assert_array_equal(heads["Dense_0"]["bias"], 0)
    for other in (
        state.behaviour_critic.params,
        state.target_critic,
        state.target_behaviour_critic,
    ):
        jax.tree.map(np.testing.assert_array_equal, state.critic.params, other)


# ---------------------------------------------------- small problems with known answers


def q_of(state, actions, args):
    """min Q_phi(1, a) for each action."""
    actions = jnp.asarray(actions)[:, None]
    return twin_q(state.learner.critic.params, jnp.ones_like(actions), actions, args).min(axis=0)


@flax.struct.dataclass
class EpisodeState(bandit.ProbeState):
    length: jax.Array
    terminates: jax.Array


class Episodes(bandit.Probe):
    """Reward 1; how an episode ends is in its state, so that one program is for all of them."""

    def __init__(self):
        super().__init__(4, None, None, jnp.ones_like)

    def begin(self, state, length, terminates):
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        fields |= {"length": jnp.full(4, length), "terminates": jnp.full(4, terminates)}
        return EpisodeState(**fields)

    def step(self, state, action):
        count = state.step_count + 1
        done = count >= state.length
        return state.replace(
            reward=self.reward(action[:, 0]),
            terminated=done & state.terminates,
            truncated=done & ~state.terminates,
            step_count=jnp.where(done, 0, count),
        )


EPISODES = Episodes()
# One update a step: what is known does not depend on it, and two would be a program twice as large.
PROBE_ARGS = dataclasses.replace(bandit.PROBE_ARGS, updates_per_step=1, log_interval=4_800)


@pytest.mark.parametrize(("terminates", "known"), [(False, 1 / (1 - 0.8)), (True, 1.0)])
def test_value_of_reward_one_is_known(terminates, known):
    """Reward 1 at each step: a time limit bootstraps, so Q = 1 / (1 - gamma); a termination
    after each step does not, so Q = 1."""
    state = init_state(EPISODES, PROBE_ARGS)
    state = state.replace(env=EPISODES.begin(state.env, 1 if terminates else 3, terminates))
    for _ in range(2):
        state, _ = flowrl.train_chunk(state, EPISODES, PROBE_ARGS)
    actions = np.linspace(-1, 1, 5, dtype=np.float32)
    np.testing.assert_allclose(q_of(state, actions, PROBE_ARGS), known, rtol=0.05)
    v = behaviour_value(state.learner.behaviour_value.params, jnp.ones((1, 1)), PROBE_ARGS)
    np.testing.assert_allclose(v, known, rtol=0.05)


def test_the_flow_reaches_both_optima_of_a_bandit():
    """On one of three seeds: which keep both is chance, and other ones on other processors."""
    args = dataclasses.replace(bandit.ARGS, updates_per_step=1, log_interval=4_800)
    shares = []  # of actions on the left
    for seed in (2, 3, 4):
        actions = bandit.final_actions(dataclasses.replace(args, seed=seed))
        assert np.asarray(bandit.two_peaks(actions)).mean() > 0.9
        shares.append(np.mean(actions < 0))
        if 0.1 < shares[-1] < 0.9:
            return
    raise AssertionError(f"all actions on one side: {shares}")


# --------------------------------------------------------- randomness, compilation, memory


@contextlib.contextmanager
def count_lowerings(counts):
    """Counts the programs that JAX lowers meanwhile, by function name."""
    from jax._src import test_util

    with test_util.count_jit_and_pmap_lowerings() as count:
        yield
    counts.append(count())


REAL_ARGS = dataclasses.replace(
    SMALL, env_id="cartpole-swingup", buffer_size=200_000, learning_starts=40, log_interval=80
)


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("cartpole-swingup", 4, "native", seed=1)


def run_chunks(env, args, num=2, program=None):
    """program: (env, args) of a chunk that is compiled already and is the same one."""
    state = init_state(env, args)
    for i in range(1, num + 1):
        state, metrics = flowrl.train_chunk(state, *(program or (env, args)))
        state = state.replace(env=env.refresh(state.env, i))
    return state, metrics


def leaves_of(state):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


def test_one_seed_repeats_bit_for_bit_and_two_differ(cartpole):
    first, _ = run_chunks(cartpole, REAL_ARGS)
    program = (cartpole, REAL_ARGS)
    fresh = envs.make("cartpole-swingup", 4, "native", seed=1)
    again, _ = run_chunks(fresh, REAL_ARGS, program=program)
    for a, b in zip(leaves_of(first), leaves_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other, _ = run_chunks(cartpole, dataclasses.replace(REAL_ARGS, seed=2), program=program)
    theta = [jax.tree.leaves(s.learner.velocity_field.params) for s in (first, other)]
    assert all(not np.array_equal(a, b) for a, b in zip(*theta, strict=True) if a.ndim == 2)
    assert not np.array_equal(first.replay.data.action, other.replay.data.action)


def test_no_key_is_used_twice(cartpole):
    with jax.debug_key_reuse(True):
        state = flowrl.init_state(cartpole, REAL_ARGS)
        state, _ = flowrl.train_chunk(state, cartpole, REAL_ARGS)
        eval_args = dataclasses.replace(REAL_ARGS, eval_episodes=2)
        start, key = cartpole.reset(jax.random.key(1)), jax.random.key(0)
        flowrl.POLICY.evaluate(state.learner, start, key, cartpole, eval_args)


def test_the_training_loop_is_lowered_once(cartpole):
    args = dataclasses.replace(REAL_ARGS, seed=11)
    state = init_state(cartpole, args)
    counts = []
    for _ in range(3):
        with count_lowerings(counts):
            state, _ = flowrl.train_chunk(state, cartpole, args)
    assert counts == [1, 0, 0]


@pytest.mark.parametrize(
    ("num_envs", "updates_per_step"),
    [
        (1, 1),
        pytest.param(4, 1, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
    ],
)
def test_the_replay_is_never_copied(num_envs, updates_per_step):
    """Of one environment XLA merged the write of its row with the batch's read, for a copy."""
    cartpole = envs.make("cartpole-swingup", num_envs, "native", seed=1)
    sizes = dict(num_envs=num_envs, updates_per_step=updates_per_step)
    args = dataclasses.replace(REAL_ARGS, buffer_size=200_000, **sizes)
    state = jax.eval_shape(lambda: flowrl.init_state(cartpole, args))
    lowered = flowrl.train_chunk.lower(state, cartpole, args)
    # LLVM, which takes most of the time, comes after buffers are assigned, and nothing is run.
    memory = lowered.compile(COMPILER_OPTIONS).memory_analysis()
    nbytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.replay.data))
    assert memory.alias_size_in_bytes >= nbytes  # donated
    assert memory.temp_size_in_bytes < nbytes / 4


def test_metrics_and_counters(cartpole):
    state, metrics = run_chunks(cartpole, REAL_ARGS, num=2)
    assert int(state.num_steps) == 160
    assert int(state.learner.critic.step) == 160 // 4 - 10  # 10 random vector steps
    assert int(state.learner.velocity_field.step) == (160 // 4 - 10 + 1) // 2
    assert np.isnan(metrics["charts/episodic_return"])  # no episode has ended yet
    assert all(np.isfinite(v) for k, v in metrics.items() if k.startswith("losses/"))
    # the policy's mean is over its own updates, not diluted by those that skip it
    last = {k: float(v) for k, v in metrics.items()}
    assert last["losses/policy"] == pytest.approx(
        -last["losses/policy_q"] + last["losses/policy_w2"], abs=1e-4
    )


def test_a_chunk_of_one_update_is_sound(cartpole):
    """The second update makes no policy step: its policy metrics are a mean over nothing."""
    args = dataclasses.replace(REAL_ARGS, learning_starts=0, log_interval=4)
    state = init_state(cartpole, args)
    for policy_steps in (1, 0):
        state, metrics = flowrl.train_chunk(state, cartpole, args)
        assert np.isfinite(metrics["losses/policy"]) == bool(policy_steps)
        assert metrics["charts/nonfinite_losses"] == 0


def test_a_loss_that_is_not_finite_is_counted(cartpole):
    state = init_state(cartpole, REAL_ARGS)
    critic = state.learner.critic
    broken = critic.replace(params=jax.tree.map(lambda p: p * jnp.nan, critic.params))
    state = state.replace(learner=state.learner.replace(critic=broken))
    _, metrics = flowrl.train_chunk(state, cartpole, REAL_ARGS)
    assert metrics["charts/nonfinite_losses"] > 0


def test_counting_steps_never_wraps_into_exploring_again(cartpole):
    state = init_state(cartpole, REAL_ARGS)
    full = state.replay.replace(size=jnp.int32(len(state.replay.data.reward)))
    state = state.replace(num_steps=jnp.int32(flowrl.MAX_INT - 2), replay=full)
    state, metrics = flowrl.train_chunk(state, cartpole, REAL_ARGS)
    assert int(metrics["charts/updates"]) == 20
    assert int(state.num_steps) == flowrl.MAX_INT


@pytest.mark.parametrize(
    ("precision", "in_the_program"),
    [("highest", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")],
)
def test_every_product_of_an_update_has_the_precision_asked_for(precision, in_the_program):
    """Forward and backward: of a float32 product "highest" alone is not rounded on a GPU."""
    args = dataclasses.replace(SMALL, matmul_precision=precision)
    noise = flowrl.draw_update_noise(jax.random.key(3), B, A)
    program = jax.jit(functools.partial(flowrl.update, args=args)).lower(
        make_learner(), make_batch(), noise
    )
    products = re.findall(r"dot_general.*", program.as_text())
    found = [re.search(r"precision = \[(\w+), \1\]", line) for line in products]
    assert len(found) > 50
    assert {match[1] if match else "DEFAULT" for match in found} == {in_the_program}


def test_bfloat16_computes_the_same_to_its_precision():
    state, batch = make_learner(), make_batch()
    half = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    full = twin_q(state.critic.params, batch.obs, batch.action, SMALL)
    rough = twin_q(state.critic.params, batch.obs, batch.action, half)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(full - rough).max() < 0.1 * np.abs(full).max()


def test_seeds_in_one_program_are_the_single_runs(cartpole):
    """To rounding: a product of several matrices at once sums in another order."""
    seeds = (1, 7)
    each = [dataclasses.replace(REAL_ARGS, seed=seed) for seed in seeds]
    own = [envs.make("cartpole-swingup", 4, "native", seed=seed) for seed in seeds]
    chunk = functools.partial(flowrl.train_chunk, env=cartpole, args=REAL_ARGS)
    alone, together = chunk, parallel.over_seeds(chunk, 2)
    singles = [init_state(env, args) for env, args in zip(own, each, strict=True)]
    state = parallel.stack_seeds(
        [init_state(env, args) for env, args in zip(own, each, strict=True)]
    )
    for _ in range(2):
        state, metrics = together(state)
        for k in range(2):
            singles[k], expected = alone(singles[k])
            for name, value in expected.items():
                found = np.broadcast_to(metrics[name], 2)[k]
                np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-5, err_msg=name)
    for k in range(2):
        for part in ("learner", "replay"):
            found = jax.tree.leaves(parallel.of_seed(getattr(state, part), k, 2))
            expected = jax.tree.leaves(getattr(singles[k], part))
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert not np.allclose(*(singles[k].replay.data.obs[:40] for k in range(2)), atol=1e-3)
    # What all seeds have in common stays one number, and with it conditions stay conditions.
    assert state.num_steps.shape == state.learner.critic.step.shape == ()
    program = together.lower(state).as_text()
    single = flowrl.train_chunk.lower(singles[0], cartpole, REAL_ARGS).as_text()
    assert program.count("stablehlo.case") == single.count("stablehlo.case")


# ------------------------------------------------------------------------------ the program


def program(*flags, folder):
    return [sys.executable, str(ROOT / "flowrl_jax.py"), *flags, "--runs-dir", str(folder)]


TINY = ("--env-id", "cartpole-balance", "--num-envs", "4", "--hidden-size", "16")
TINY += ("--batch-size", "16", "--log-interval", "400", "--learning-starts", "200")
TINY += ("--eval-interval", "400", "--eval-episodes", "2", "--buffer-size", "2000")


@pytest.mark.slow
def test_program_leaves_a_whole_run_folder(tmp_path):
    command = program(*TINY, "--total-timesteps", "800", folder=tmp_path)
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    for text in ("engine native", "preset cpu", "width 16", "GiB", "compiling"):
        assert text in result.stdout
    (folder,) = tmp_path.iterdir()
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "metrics.csv",
        "params.msgpack",
        "learning_curve.png",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["hidden_size"] == 16
    assert config["status"] == "finished"
    act = flowrl.load_policy(folder)
    obs = jnp.ones((7, 5))
    assert act(obs).shape == (7, 1)
    assert not np.array_equal(act(obs), act(obs, jax.random.key(0)))
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "eval/episodic_return_sampled" in rows[0]


@pytest.mark.long
def test_seeds_have_a_run_folder_each(tmp_path):
    command = program(*TINY, "--total-timesteps", "400", "--num-seeds", "2", folder=tmp_path)
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "each of 2 seeds" in result.stdout
    folders = sorted(tmp_path.iterdir())
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [config["args"]["seed"] for config in configs] == [1, 2]
    assert [config["status"] for config in configs] == ["finished"] * 2
    actions = [flowrl.load_policy(folder)(jnp.ones((1, 5))) for folder in folders]
    assert not np.array_equal(*actions)
    texts = [(folder / "metrics.csv").read_text() for folder in folders]
    assert texts[0] != texts[1]
    assert all("eval/episodic_return_sampled" in text for text in texts)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_so(tmp_path, number, code):
    command = program(*TINY, "--total-timesteps", "10000000", folder=tmp_path)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.time() + 120
        while not list(tmp_path.glob("*/params.msgpack")) and time.time() < deadline:
            time.sleep(0.2)
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == code
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["status"] == "interrupted"
    assert flowrl.load_policy(folder)(jnp.zeros((1, 5))).shape == (1, 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--env-id", "humanoid-rum"], "humanoid-run"),
        (["--engine", "physx"], "--engine"),
        (["--num-envs", "0"], "--num-envs"),
        (["--total-timesteps", "-5"], "--total-timesteps"),
        (["--batch-size", "4000", "--buffer-size", "1000"], "--buffer-size"),
        (["--buffer-size", "1000000000000"], "--buffer-size"),
        (["--preset", "huge"], "--preset"),
        (["--no-such-flag"], "no-such-flag"),
        (["--seed", "one"], "--seed"),
        (["--gamma", "nan"], "--gamma"),
        (["--num-threads", "-1"], "--num-threads"),
        (["--num-threads", "3000000000"], "--num-threads"),
        (["--seed", "5000000000"], "--seed"),
        (["--learning-starts", "3000000000"], "--learning-starts"),
        (["--recent-window", "3000000000"], "--recent-window"),
        (["--num-envs", "1000000000"], "--num-envs"),
        (["--num-seeds", "0"], "--num-seeds"),
        (["--num-seeds", "1000", "--buffer-size", "10000000"], "--buffer-size"),
        (["--hidden-size", "1000000"], "--hidden-size"),
    ],
)
def test_bad_input_is_one_line(flags, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((RunError, envs.UsageError)) as error:
        flowrl.main(command_line.parse_args(flowrl.ALGORITHM, "cpu", flags))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_input_exits_with_2_and_no_traceback(tmp_path):
    command = program("--env-id", "walker-wak", folder=tmp_path / "runs")
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "walker-walk" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_flags_override_presets():
    def parse(*flags):
        return command_line.parse_args(flowrl.ALGORITHM, "cpu", list(flags))

    assert parse().hidden_size == flowrl.PRESETS["cpu"]["hidden_size"]
    assert parse().preset == "cpu"
    assert parse("--preset", "paper").hidden_size == 512
    assert parse("--preset=paper", "--hidden-size", "7").hidden_size == 7
    for preset in flowrl.PRESETS.values():
        dataclasses.replace(flowrl.Args(), **preset)
