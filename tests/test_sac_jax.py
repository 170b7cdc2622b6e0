"""Soft Actor-Critic against a numpy oracle, its density's integral and small known problems."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from samples import OBS, A, B, directional, float64, make_batch, perturbed

import flowrl_jax as flowrl
import numpy_policy
import sac_jax as sac
from benchmarks import bandit
from harness import command_line

SMALL = dataclasses.replace(sac.Args(), hidden_size=32, batch_size=B, num_envs=4, alpha=0.3)
NOISE = sac.draw_update_noise(jax.random.key(7), B, A)


def make_learner(args=SMALL):
    state = sac.init_learner(jax.random.key(0), OBS, A, args)
    actor = state.actor.replace(params=perturbed(state.actor.params, 1))
    critic = state.critic.replace(params=perturbed(state.critic.params, 2))
    target = perturbed(state.target_critic, 3)
    return state.replace(actor=actor, critic=critic, target_critic=target)


UPDATE = jax.jit(sac.update, static_argnums=3)


# ------------------------------------------------------------------------------- log-probability


def density(mean, log_std, u):
    """Of actions tanh(u), in float64: (K,)."""
    with jax.enable_x64():
        noise = jnp.asarray((u - mean) * np.exp(-log_std))[:, None]
        same = [jnp.full_like(noise, x) for x in (mean, log_std)]
        action, log_prob = sac.squash(*same, noise)
        np.testing.assert_allclose(action[:, 0], np.tanh(u), atol=1e-12)
        return np.exp(np.asarray(log_prob))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -2.0), (-1.5, 0.5), (2.0, -5.0)])
def test_the_density_over_actions_integrates_to_one(mean, log_std):
    u = np.concatenate([np.linspace(-17, 17, 40_001), mean + np.linspace(-0.1, 0.1, 4_001)])
    u = np.sort(u)
    assert np.trapezoid(density(mean, log_std, u), np.tanh(u)) == pytest.approx(1, abs=1e-4)


def test_draws_are_as_frequent_as_the_density_says():
    mean, log_std, edges = 0.4, 0.2, np.linspace(-0.999, 0.999, 21)
    noise = jax.random.normal(jax.random.key(0), (200_000, 1))
    actions, _ = sac.squash(jnp.full_like(noise, mean), jnp.full_like(noise, log_std), noise)
    found = np.histogram(actions, edges)[0] / len(noise)
    for (low, high), share in zip(itertools.pairwise(edges), found, strict=True):
        u = np.arctanh(np.linspace(low, high, 2_001))
        expected = np.trapezoid(density(mean, log_std, u), np.tanh(u))
        assert share == pytest.approx(expected, abs=0.003)


def test_log_probability_is_exact_where_tanh_is_one():
    """log(1 - tanh(u)^2) -> log 4 - 2 |u|, where 1 - tanh(u)^2 in float32 is 0; A terms add up."""
    mean = jnp.array([[30.0, -30.0]])
    action, log_prob = sac.squash(mean, jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    np.testing.assert_array_equal(action, [[1.0, -1.0]])
    expected = 2 * (-np.log(2 * np.pi) / 2 - (np.log(4) - 60))
    np.testing.assert_allclose(log_prob, [expected], rtol=1e-6)
    slope = jax.grad(lambda m: sac.squash(m, jnp.zeros((1, 2)), jnp.zeros((1, 2)))[1].sum())(mean)
    np.testing.assert_allclose(slope, [[2.0, -2.0]])


# -------------------------------------------------------------- an update against the oracle


def test_an_update_is_the_oracles():
    """Also the order: (4) with the critic of after its step, (5) with the actions of (4)."""
    state, batch = make_learner(), make_batch()
    after, metrics = UPDATE(state, batch, NOISE, SMALL)
    b, n, theta = float64(batch), float64(NOISE), float64(state.actor.params)
    phi, new_phi = float64(state.critic.params), float64(after.critic.params)
    y = oracle.soft_y(theta, float64(state.target_critic), 0.3, b, n.next, SMALL.gamma)
    a_pi, log_prob = oracle.draw(theta, b.obs, n.policy)
    expected = {
        "critic": oracle.critic_loss(phi, b, y),
        "q": oracle.min_q(phi, b.obs, b.action).mean(),
        "policy": oracle.sac_policy_loss(theta, new_phi, 0.3, b.obs, n.policy),
        "policy_q": oracle.min_q(new_phi, b.obs, a_pi).mean(),
        "entropy": -log_prob.mean(),
        "temperature": 0.3 * np.mean(-log_prob + A),
        "alpha": 0.3,
    }
    assert set(metrics) == {f"losses/{name}" for name in expected}
    for name, value in expected.items():
        assert float(metrics[f"losses/{name}"]) == pytest.approx(value, rel=3e-5), name
    wrong = oracle.sac_policy_loss(theta, phi, 0.3, b.obs, n.policy)
    assert abs(wrong - expected["policy"]) > 1e-3  # so that the order shows
    tau = SMALL.target_tau
    jax.tree.map(
        lambda t, o, p: np.testing.assert_allclose(t, (1 - tau) * o + tau * p, atol=1e-6),
        *(after.target_critic, state.target_critic, after.critic.params),
    )
    # Adam's first step is the learning rate, down the gradient of alpha (entropy - target).
    moved = after.alpha.params["log_alpha"] - state.alpha.params["log_alpha"]
    assert float(moved) == pytest.approx(-3e-4 * np.sign(np.mean(A - log_prob)), rel=1e-2)


@pytest.mark.parametrize(("scale", "grows"), [(0.0, True), (100.0, False)])
def test_alpha_grows_while_entropy_is_below_its_target(scale, grows):
    args = dataclasses.replace(SMALL, target_entropy_scale=scale)
    learner = make_learner(args)
    far = jax.tree.map(lambda p: p, learner.actor.params)
    far["params"]["Dense_3"]["bias"] = jnp.full(A, -9.0)  # sigma is e^-5: entropy far below 0
    state = learner.replace(actor=learner.actor.replace(params=far))
    after, metrics = UPDATE(state, make_batch(), NOISE, args)
    assert -100 * A < metrics["losses/entropy"] < 0
    assert (after.alpha.params["log_alpha"] > state.alpha.params["log_alpha"]) == grows


def test_the_policys_gradient_is_that_of_the_oracle():
    state, batch = make_learner(), make_batch()
    theta, phi = state.actor.params, state.critic.params
    given = (phi, jnp.float32(0.3), batch.obs, NOISE.policy, SMALL)
    gradient, _ = jax.grad(sac.policy_loss, has_aux=True)(theta, *given)
    s, noise, phi64, theta64 = float64((batch.obs, NOISE.policy, phi, theta))
    rng = np.random.default_rng(0)
    for _ in range(4):
        direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), theta64)
        loss = functools.partial(oracle.sac_policy_loss, phi=phi64, alpha=0.3, s=s, noise=noise)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        ours = sum(float(np.vdot(np.asarray(g, np.float64), d)) for g, d in pairs)
        assert ours == pytest.approx(directional(loss, theta64, direction), rel=1e-3, abs=1e-3)


def test_no_gradient_where_none_belongs():
    state, batch = make_learner(), make_batch()
    theta, phi, alpha = state.actor.params, state.critic.params, jnp.float32(0.3)

    def of_policy(phi, alpha):
        return sac.policy_loss(theta, phi, alpha, batch.obs, NOISE.policy, SMALL)[0]

    def of_target(q, alpha):
        value = sac.soft_value(q, jnp.ones(B), alpha)
        return flowrl.td_target(batch, value, SMALL.gamma).sum()

    def of_temperature(log_prob, _):
        return sac.temperature_loss(state.alpha.params, log_prob, -1.0)[0]

    for function, first in (
        (of_policy, phi),
        (of_target, jnp.ones((2, B))),
        (of_temperature, jnp.ones(B)),
    ):
        for gradient in jax.tree.leaves(jax.grad(function, argnums=(0, 1))(first, alpha)):
            np.testing.assert_array_equal(gradient, 0.0)


# ------------------------------------------------------------- small problems with known answers

SIZES = dict(num_envs=4, hidden_size=32, batch_size=64, buffer_size=4096, learning_starts=64)
SIZES |= dict(updates_per_step=4, learning_rate=1e-3, log_interval=1_200, gamma=0.8)
PROBE = dataclasses.replace(sac.Args(), **SIZES)


@pytest.mark.parametrize(("terminates", "known"), [(False, 1 / (1 - 0.8)), (True, 1.0)])
def test_value_of_reward_one_is_known(terminates, known):
    """A time limit bootstraps, a termination does not; alpha is as good as 0."""
    args = dataclasses.replace(PROBE, alpha=1e-6, target_tau=0.05)
    env = bandit.Probe(4, 1 if terminates else 3, terminates, jnp.ones_like)
    state = sac.init_state(env, args)
    for _ in range(2):
        state, _ = sac.train_chunk(state, env, args)
    actions = jnp.linspace(-1, 1, 5)[:, None]
    q = flowrl.twin_q(state.learner.critic.params, jnp.ones((5, 1)), actions, args)
    np.testing.assert_allclose(q.min(axis=0), known, rtol=0.05)


def test_a_bandit_is_learned_to_the_target_entropy():
    """Of two optima a Gaussian takes one, with the entropy asked for: what a flow need not do."""
    args = dataclasses.replace(PROBE, gamma=0.0, alpha=0.1)
    env = bandit.Probe(4, 1, True, bandit.two_peaks)
    state = sac.init_state(env, args)
    for _ in range(3):
        state, metrics = sac.train_chunk(state, env, args)
    noise = jax.random.normal(jax.random.key(5), (2_000, 1))
    actions = sac.policy_action(state.learner.actor.params, jnp.ones((2_000, 1)), noise, args)
    assert np.asarray(bandit.two_peaks(actions)).mean() > 0.8
    assert np.mean(actions < 0) in (0, 1)
    assert float(metrics["losses/entropy"]) == pytest.approx(-1.0, abs=0.3)


def test_presets_are_flowrls_sizes():
    assert set(sac.PRESETS) == set(flowrl.PRESETS)
    shared = {f.name for f in dataclasses.fields(sac.Args)} & set(vars(flowrl.Args()))
    differ = {"target_tau", "recent_fraction"}  # SAC's own
    for name, preset in sac.PRESETS.items():
        ours = dataclasses.replace(sac.Args(), **preset)
        theirs = dataclasses.replace(flowrl.Args(), **flowrl.PRESETS[name])
        assert {n for n in shared if getattr(ours, n) != getattr(theirs, n)} == differ
        assert (ours.target_tau, ours.recent_fraction) == (0.005, 0.0)
        command_line.check_bounds(ours, sac.BOUNDS)


def test_the_numpy_policy_is_the_jax_one(tmp_path):
    learner, obs = make_learner(), make_batch().obs
    file = tmp_path / "policy.npz"
    file.write_bytes(sac.POLICY.export(learner, SMALL)["policy.npz"])
    act = numpy_policy.load(file)
    rng = np.random.default_rng
    drawn = rng(4).standard_normal((B, A), np.float32)
    for noise, found in ((np.zeros_like(drawn), act(obs)), (drawn, act(obs, rng(4)))):
        expected = sac.policy_action(learner.actor.params, obs, noise, SMALL)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"needs \(\.\.\., 5\)"):
        act(np.zeros(6))
