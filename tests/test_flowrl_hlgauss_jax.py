"""FlowRL with categorical critics against a numpy oracle, and small problems with known answers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from samples import OBS, A, B, directional, float64, make_batch, perturbed

import flowrl_hlgauss_jax as hl
import flowrl_jax as flowrl
import numpy_policy
from benchmarks import bandit
from harness import command_line

SMALL = dict(hidden_size=32, batch_size=B, num_envs=4, num_bins=12, v_min=-4.0, v_max=20.0)
SMALL = dataclasses.replace(hl.Args(), **SMALL)
RANGE = (SMALL.v_min, SMALL.v_max)
NOISE = flowrl.draw_update_noise(jax.random.key(7), B, A)
UPDATE = jax.jit(hl.update, static_argnums=3)  # one program, whether a policy step is due or not
VALUES = jax.jit(hl.head_values, static_argnums=3)
INIT = jax.jit(hl.init_learner, static_argnums=(1, 2, 3))


def make_learner(args=SMALL):
    """All networks away from their start, and statistics of 3 batches that were far from normal."""
    state = INIT(jax.random.key(0), OBS, A, args)
    theta = state.velocity_field.params
    rng = np.random.default_rng(5)
    seen = {"mean": rng.standard_normal(OBS), "var": rng.uniform(0.1, 9, OBS), "count": 3.0}
    seen = jax.tree.map(jnp.float32, seen)
    theta = {"params": perturbed(theta["params"], 1), "obs": seen}
    return state.replace(
        velocity_field=state.velocity_field.replace(params=theta),
        critics=state.critics.replace(params=perturbed(state.critics.params, 2)),
        behaviour_value=state.behaviour_value.replace(
            params=perturbed(state.behaviour_value.params, 3)
        ),
        target_critics=perturbed(state.target_critics, 4),
    )


# ------------------------------------------------------------------------------- distributions


def test_a_value_as_a_distribution_is_the_oracles():
    y = np.array([-7.0, -4.0, -3.9, 0.0, 0.31, 1.77, 20.0, 99.0], np.float32)
    found = hl.hl_gauss(y, SMALL)
    np.testing.assert_allclose(found, oracle.hl_gauss(y, *RANGE, 12), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)


def test_the_mean_of_a_distribution_is_the_value_away_from_the_edges():
    """Three bins from an edge: a bell cut off there has another mean."""
    there_and_back = jax.jit(
        lambda y, args: hl.mean_value(jnp.log(hl.hl_gauss(y, args) + 1e-30), args), static_argnums=1
    )
    y = jnp.append(jnp.linspace(-4 + 6, 20 - 6, 50), -4.0)
    mean = there_and_back(y, SMALL)
    np.testing.assert_allclose(mean[:-1], y[:-1], atol=2e-3)
    assert mean[-1] > -4 + 0.8
    args = hl.Args()  # so that the defaults leave room around all returns of rewards in [0, 1]
    y = jnp.linspace(0, 1 / (1 - args.gamma), 500)
    np.testing.assert_allclose(there_and_back(y, args), y, atol=0.01)


# -------------------------------------------------------------------------------- observations


def test_statistics_are_those_of_all_batches():
    """Also where the mean is large beside the spread, in float32."""
    rng = np.random.default_rng(0)
    batches = rng.normal([0, 50, -3], [1, 0.1, 40], (20, B, 3)).astype(np.float32)
    statistics = hl.init_statistics(3)
    for batch in batches:
        statistics = hl.count_batch(statistics, batch)
    together = batches.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(statistics["mean"], together.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], together.var(axis=0), rtol=1e-3)
    assert statistics["count"] == 20


def test_no_statistics_leave_observations_as_they_are():
    theta = {"obs": hl.init_statistics(3)}
    np.testing.assert_allclose(hl.normalise(theta, jnp.ones(3)), 1, atol=1e-4)
    np.testing.assert_array_equal(hl.normalise(theta, 1e9 * jnp.array([1.0, -1, 0])), [10, -10, 0])


def test_a_constant_observation_stays_finite():
    statistics = hl.count_batch(hl.init_statistics(2), jnp.full((B, 2), 7.0))
    np.testing.assert_allclose(statistics["var"], 0, atol=1e-6)
    np.testing.assert_allclose(hl.normalise({"obs": statistics}, jnp.full(2, 7.0)), 0, atol=1e-5)


def test_values_start_near_zero():
    """And not at the middle of the bins, 8, from where they come down slowly: NOTES.md."""
    learner, batch = INIT(jax.random.key(0), OBS, A, SMALL), make_batch()
    for critics in (learner.critics.params, learner.target_critics):
        q = VALUES(critics, batch.obs, batch.action, SMALL)
        assert np.abs(np.mean(q, axis=1)).max() < 2
        np.testing.assert_array_equal(q[:2], q[2:])  # Q_beta is a copy of Q_phi


# --------------------------------------------------------------------------------------- n steps
STEPS = dataclasses.replace(SMALL, n_step=3)


def make_windows(length=3):
    """(B, length, ...) of unbroken, unterminated episodes."""
    single = make_batch(size=B * length)
    window = jax.tree.map(lambda x: x.reshape(B, length, *x.shape[1:]), single)
    next_obs = np.concatenate([window.obs[:, 1:], window.next_obs[:, -1:]], axis=1)
    return window.replace(next_obs=next_obs, terminated=np.zeros((B, length), bool))


def test_n_steps_are_counted_one_by_one():
    """Against a loop; windows that end by termination, by a reset or the ring, and not at all."""
    window = make_windows()
    obs, terminated = window.obs.copy(), window.terminated.copy()
    for row, k in ((0, 0), (1, 1), (2, 2)):
        terminated[row, k] = True
    for row, k in ((3, 1), (4, 2), (2, 1)):
        obs[row, k] += 1.0  # another episode's
    obs[5, 1, 0] += 1e-3  # one number differs
    window = window.replace(obs=obs, terminated=terminated)
    found, gamma = hl.n_step(window, STEPS)
    lengths = []
    for row in range(B):
        k, total = 0, float(window.reward[row, 0])
        while k < 2 and not terminated[row, k]:
            if any(obs[row, k + 1] != window.next_obs[row, k]):
                break
            k += 1
            total += STEPS.gamma**k * float(window.reward[row, k])
        np.testing.assert_allclose(found.reward[row], total, rtol=1e-6)
        np.testing.assert_allclose(gamma[row], STEPS.gamma ** (k + 1), rtol=1e-6)
        np.testing.assert_array_equal(found.next_obs[row], window.next_obs[row, k])
        np.testing.assert_array_equal(found.obs[row], obs[row, 0])
        np.testing.assert_array_equal(found.action[row], window.action[row, 0])
        assert found.terminated[row] == terminated[row, k]
        lengths.append(k + 1)
    assert lengths == [1, 2, 1, 1, 2, 1, *[3] * 10]


def test_an_update_of_n_steps_is_one_of_a_single_long_step():
    window, state = make_windows(), make_learner()
    powers = STEPS.gamma ** np.arange(3)
    long = flowrl.Transition(
        obs=window.obs[:, 0],
        action=window.action[:, 0],
        reward=(powers * window.reward).sum(axis=1).astype(np.float32),
        next_obs=window.next_obs[:, -1],
        terminated=window.terminated[:, -1],
    )
    args = dataclasses.replace(SMALL, gamma=STEPS.gamma**3)
    found, metrics = UPDATE(state, window, NOISE, STEPS, jnp.int32(1))
    expected, expected_metrics = UPDATE(state, long, NOISE, args, jnp.int32(1))
    chex.assert_trees_all_close(found, expected, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)


# --------------------------------------------------------------- an update against the oracle


@pytest.fixture(scope="module")
def updated():
    """An update from `make_learner`: before, after, metrics, and what it saw, in float64."""
    state, batch = make_learner(), make_batch()
    after, metrics = UPDATE(state, batch, NOISE, SMALL, jnp.int32(1))
    seen, s = float64(state.velocity_field.params["obs"]), float64(batch.obs)
    delta = s.mean(axis=0) - seen["mean"]
    mean = seen["mean"] + delta / 4  # four batches, of one size
    var = (3 * seen["var"] + s.var(axis=0)) / 4 + 3 / 16 * delta**2
    normal = functools.partial(oracle.normal_obs, mean, var)
    batch = float64(batch)
    batch = batch.replace(obs=normal(batch.obs), next_obs=normal(batch.next_obs))
    return state, after, metrics, batch, (mean, var)


def min_q(params, heads, s, a, of_both=np.minimum):
    return of_both(*(oracle.categorical_q(params, head, s, a, *RANGE) for head in heads))


def expected_metrics(state, after, b, of_both=np.minimum):
    """What the oracle has for each metric of an update with a policy step; of_both: heads in y."""
    theta, noise = float64(state.velocity_field.params), float64(NOISE)
    critics, new = float64(state.critics.params), float64(after.critics.params)
    targets, value = float64(state.target_critics), float64(state.behaviour_value.params)
    a_next = oracle.act(theta, b.next_obs, noise.x0_next, 1, "euler")
    y = oracle.y(b, min_q(targets, (0, 1), b.next_obs, a_next, of_both), SMALL.gamma)
    y_b = oracle.y(b, oracle.value(value, b.next_obs), SMALL.gamma)
    h, h_b = (oracle.hl_gauss(target, *RANGE, 12) for target in (y, y_b))
    q_behaviour = min_q(critics, (2, 3), b.obs, b.action)  # before its step
    a_pi = oracle.act(theta, b.obs, noise.x0_policy, 1, "euler")
    q_policy = min_q(new, (0, 1), b.obs, a_pi)  # after its step
    w = oracle.weight(q_behaviour, q_policy, SMALL.w2_coef)
    flow = oracle.flow_error(theta, b, noise.x0_flow, noise.t)
    q_target = min_q(targets, (2, 3), b.obs, b.action)
    return {
        "critic": sum(oracle.cross_entropy(critics, head, b, h) for head in (0, 1)),
        "behaviour_critic": sum(oracle.cross_entropy(critics, head, b, h_b) for head in (2, 3)),
        "behaviour_value": oracle.value_loss(value, b.obs, q_target, SMALL.expectile),
        "q": min_q(critics, (0, 1), b.obs, b.action).mean(),
        "q_behaviour": q_behaviour.mean(),
        "v_behaviour": oracle.value(value, b.obs).mean(),
        "at_edges": np.mean([(t < RANGE[0] + 4) | (t > RANGE[1] - 4) for t in (y, y_b)]),
        "policy": -q_policy.mean() + (w * flow).mean(),
        "policy_q": q_policy.mean(),
        "policy_flow": flow.mean(),
        "policy_w2": (w * flow).mean(),
        "policy_weight": w.mean(),
    }


def test_an_update_is_the_oracles(updated):
    state, after, metrics, batch, _ = updated
    expected = expected_metrics(state, after, batch)
    assert set(metrics) == {f"losses/{name}" for name in expected}
    for name, value in expected.items():
        assert float(metrics[f"losses/{name}"]) == pytest.approx(value, rel=1e-4), name
    assert 0 < expected["at_edges"] < 1
    # The order would show: with the critic of before its step the policy's loss is another.
    wrong = expected_metrics(state, state, batch)
    assert abs(wrong["policy_q"] - expected["policy_q"]) > 1e-3


def share_of_min(share):
    return lambda p, q: share * np.minimum(p, q) + (1 - share) * (p + q) / 2


@pytest.mark.parametrize(
    ("heads", "updates", "share"),
    [("mean", 0, 0), ("mean_to_min", 1, 0), ("mean_to_min", 5, 0.3), ("mean_to_min", 99, 1)],
)
def test_targets_by_other_than_the_minimum_of_heads(updated, heads, updates, share):
    state, minimum, _, batch, _ = updated
    args = dataclasses.replace(SMALL, target_heads=heads, decay_updates=10, decay_after=2)
    state = state.replace(critics=state.critics.replace(step=jnp.int32(updates)))
    after, metrics = UPDATE(state, make_batch(), NOISE, args, jnp.int32(1))
    expected = expected_metrics(state, after, batch, share_of_min(share))
    for name, value in expected.items():
        assert float(metrics[f"losses/{name}"]) == pytest.approx(value, rel=1e-4), name
    wrong = expected_metrics(state, minimum, batch)
    assert (abs(wrong["critic"] - expected["critic"]) > 1e-3) == (share < 1)


@pytest.mark.parametrize(("ends_early", "heads"), [(True, "min"), (False, "mean")])
def test_by_task_is_the_minimum_where_an_episode_can_end_early(ends_early, heads):
    """Training by it is training by that, to the bit, and not by the other."""
    env = bandit.Probe(SMALL.num_envs, 3, ends_early, jnp.tanh)
    args = dataclasses.replace(SMALL, learning_starts=8, updates_per_step=2, log_interval=32)

    def trained(target_heads):
        chosen = dataclasses.replace(args, target_heads=target_heads)
        state, _ = hl.train_chunk(hl.init_state(env, chosen), env, chosen)
        return state.learner.critics.params

    by_task, same = trained("by_task"), trained(heads)
    jax.tree.map(np.testing.assert_array_equal, by_task, same)
    other = trained({"min": "mean", "mean": "min"}[heads])
    assert any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), by_task, other)))


def test_an_update_alone_wants_to_know_the_task():
    by_task = dataclasses.replace(SMALL, target_heads="by_task")
    with pytest.raises(KeyError, match="by_task"):
        hl.of_heads(jnp.zeros((2, 1)), 0, by_task)


def test_statistics_and_targets_after_an_update(updated):
    state, after, _, _, (mean, var) = updated
    seen = after.velocity_field.params["obs"]
    np.testing.assert_allclose(seen["mean"], mean, rtol=1e-5, atol=1e-6)  # and no gradient
    np.testing.assert_allclose(seen["var"], var, rtol=1e-5)
    assert seen["count"] == 4
    tau = SMALL.target_tau
    jax.tree.map(
        lambda t, o, p: np.testing.assert_allclose(t, (1 - tau) * o + tau * p, atol=1e-6),
        *(after.target_critics, state.target_critics, after.critics.params),
    )


def test_without_a_policy_step_only_statistics_of_the_policy_move(updated):
    state = updated[0]
    after, metrics = UPDATE(state, make_batch(), NOISE, SMALL, jnp.int32(0))
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(after.velocity_field.params["params"], state.velocity_field.params["params"])
    same(after.target_critics, state.target_critics)
    assert after.velocity_field.params["obs"]["count"] == 4
    assert metrics["losses/policy"] == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.critics, state.critics)
    assert all(jax.tree.leaves(moved.params))


def test_the_step_falls_after_decay_after_in_decay_updates_and_stays(updated):
    """Each parameter moves by Adam's direction times the step of that update, the policy's too."""
    *_, batch, _ = updated
    single = jax.tree.map(jnp.float32, batch)
    falls = dict(learning_rate=1e-2, learning_rate_decay=0.2, decay_updates=4, decay_after=2)
    args = dataclasses.replace(SMALL, **falls)
    state, run = make_learner(args), jax.jit(hl.update, static_argnums=3)
    names = {  # updates so far -> step; the policy's of updates 0, 2, 4, 6, 8
        "critics": [1e-2, 1e-2, 1e-2, 0.8e-2, 0.6e-2, 0.4e-2, 0.2e-2, 0.2e-2, 0.2e-2],
        "velocity_field": [1e-2, None, 1e-2, None, 0.6e-2, None, 0.2e-2, None, 0.2e-2],
    }
    for k in range(9):
        before, (state, _) = state, run(state, single, NOISE, args)
        for name, steps in names.items():
            old, new = getattr(before, name), getattr(state, name)
            moments = new.opt_state[0]
            count, scale = int(moments.count), 0.0 if steps[k] is None else steps[k]
            leaves = (old.params["params"], new.params["params"])
            for p, q, m, v in zip(
                *map(jax.tree.leaves, (*leaves, moments.mu["params"], moments.nu["params"])),
                strict=True,
            ):
                m, v = np.float64(m) / (1 - 0.9**count), np.float64(v) / (1 - 0.999**count)
                moved = np.float64(q) - np.float64(p)
                np.testing.assert_allclose(moved, -scale * m / (np.sqrt(v) + 1e-8), atol=2e-6)


def test_a_fall_begins_at_once_unless_told():
    falls = dataclasses.replace(SMALL, learning_rate=1.0, learning_rate_decay=0.5)
    falls = dataclasses.replace(falls, decay_updates=4, target_heads="mean_to_min")
    assert [float(hl.step_size(falls)(k)) for k in range(5)] == [1, 0.875, 0.75, 0.625, 0.5]
    q = jnp.array([[0.0], [2.0]])
    assert [float(hl.of_heads(q, k, falls)[0]) for k in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_a_constant_step_keeps_the_optimiser_of_checkpoints_of_before():
    (_, scale) = make_learner().critics.opt_state
    assert not jax.tree.leaves(scale)
    assert hl.step_size(SMALL) == SMALL.learning_rate


def test_the_critics_gradient_is_that_of_the_oracle(updated):
    state, _, _, batch, _ = updated
    y, y_b = np.random.default_rng(3).uniform(-1, 3, (2, B)).astype(np.float32)
    single = jax.tree.map(jnp.float32, batch)
    of = jax.jit(jax.grad(hl.critic_loss, has_aux=True), static_argnums=4)
    gradient, _ = of(state.critics.params, single, y, y_b, SMALL)
    params, rng = float64(state.critics.params), np.random.default_rng(0)
    targets = [oracle.hl_gauss(t, *RANGE, 12) for t in (y, y, y_b, y_b)]

    def loss(params):
        return sum(
            oracle.cross_entropy(params, k, batch, target) for k, target in enumerate(targets)
        )

    for _ in range(3):
        direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), params)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        ours = sum(float(np.vdot(np.asarray(g, np.float64), d)) for g, d in pairs)
        assert ours == pytest.approx(directional(loss, params, direction), rel=1e-3, abs=1e-3)


# ------------------------------------------------------------- small problems with known answers

SIZES = dict(num_envs=4, hidden_size=32, batch_size=64, buffer_size=4096, learning_starts=64)
SIZES |= dict(updates_per_step=4, learning_rate=1e-3, log_interval=1_200, gamma=0.8)
PROBE = dataclasses.replace(hl.Args(), **SIZES, target_tau=0.1, num_bins=41, v_min=-2.0, v_max=8.0)


@pytest.mark.parametrize(
    ("terminates", "known"),
    [pytest.param(False, 1 / (1 - 0.8), marks=pytest.mark.slow), (True, 1.0)],
)
def test_value_of_reward_one_is_known(terminates, known):
    """A time limit bootstraps, a termination does not."""
    env = bandit.Probe(4, 1 if terminates else 3, terminates, jnp.ones_like)
    state = hl.init_state(env, PROBE)
    for _ in range(2):
        state, metrics = hl.train_chunk(state, env, PROBE)
    obs = hl.normalise(state.learner.velocity_field.params, jnp.ones((5, 1)))
    actions = jnp.linspace(-1, 1, 5)[:, None]
    q = hl.head_values(state.learner.critics.params, obs, actions, PROBE)
    np.testing.assert_allclose(q.min(axis=0), known, rtol=0.05)
    assert metrics["losses/at_edges"] == 0


@pytest.mark.slow
def test_values_that_end_at_the_last_bin_are_told():
    """Where the true value is 5 and the last edge 2, no target is outside by much: it saturates."""
    args = dataclasses.replace(PROBE, v_max=2.0)
    env = bandit.Probe(4, 3, False, jnp.ones_like)
    state = hl.init_state(env, args)
    for _ in range(2):
        state, metrics = hl.train_chunk(state, env, args)
    assert metrics["losses/at_edges"] > 0.9


def test_the_policys_gradient_goes_through_the_categorical_value(updated):
    """Of -min Q_phi(s, a_pi) by the oracle, along directions; w2_coef makes the W2 term small."""
    state, _, _, batch, _ = updated
    args = dataclasses.replace(SMALL, w2_coef=0.0)
    theta, phi = state.velocity_field.params, hl.of_phi(state.critics.params)
    single = jax.tree.map(jnp.float32, batch)
    of = jax.jit(jax.grad(flowrl.policy_loss, has_aux=True), static_argnums=(5, 6))
    gradient, _ = of(theta, phi, single, jnp.zeros(B), NOISE, args, hl.head_values)
    phi64, theta64, noise = float64((phi, theta, NOISE))

    def loss(params):
        a_pi = oracle.act(params, batch.obs, noise.x0_policy, 1, "euler")
        flow = oracle.flow_error(params, batch, noise.x0_flow, noise.t)
        return -min_q(phi64, (0, 1), batch.obs, a_pi).mean() + 1e-3 * flow.mean()

    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), theta64)
        direction["obs"] = jax.tree.map(np.zeros_like, direction["obs"])
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        ours = sum(float(np.vdot(np.asarray(g, np.float64), d)) for g, d in pairs)
        assert abs(ours) > 1e-2
        assert ours == pytest.approx(directional(loss, theta64, direction), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("action_noise", [0.0, 0.4])
def test_what_acts_sees_normalised_observations(action_noise):
    """The stored action is `policy_action`'s, with statistics that change it, and noise."""
    args = dataclasses.replace(PROBE, learning_starts=0, hidden_size=32, action_noise=action_noise)
    env = bandit.Probe(4, 3, False, jnp.ones_like)
    state = hl.init_state(env, args)
    network = state.learner.velocity_field
    seen = {"mean": jnp.full(1, 3.0), "var": jnp.full(1, 4.0), "count": jnp.float32(3)}
    theta = {"params": perturbed(network.params["params"], 1), "obs": seen}
    learner = state.learner.replace(velocity_field=network.replace(params=theta))
    state = state.replace(learner=learner)
    key, noise_key = jax.random.split(state.key) if action_noise else (state.key, state.key)
    x0 = flowrl.source_noise(jax.random.split(key, 4)[1], (4, 1))
    expected = hl.policy_action(theta, state.env.obs, x0, args)
    raw = flowrl.policy_action(theta, state.env.obs, x0, args)
    xi = np.asarray(jax.random.normal(noise_key, (4, 1)))
    expected = np.clip(expected + action_noise * np.array([[0.25], [0.5], [0.75], [1]]) * xi, -1, 1)
    learns_nothing = lambda learner, *_: (learner, {"losses/policy": jnp.zeros(())})  # noqa: E731
    step = functools.partial(hl.train_step, env=env, args=args, update=learns_nothing)
    after, _ = jax.jit(step)(state)
    np.testing.assert_allclose(after.replay.data.action[:4], expected, atol=1e-5)
    assert np.abs(expected - raw).max() > 0.05


def test_a_single_environment_has_all_of_the_noise_and_no_action_is_out_of_bounds():
    args, noise = dataclasses.replace(SMALL, action_noise=0.4), np.float32([[1.0, -2.0, 9.0]])
    found = hl.explore(noise, jnp.float32([[0.1, -0.5, 0.9]]), args)
    np.testing.assert_allclose(found, [[0.5, -1.0, 1.0]], atol=1e-6)


class Counting(bandit.Probe):
    """Its observation: 100 times the environment's number, from 1, and the step in the episode."""

    def reset(self, key):
        start = super().reset(key)
        obs = 100.0 * jnp.arange(1.0, self.num_envs + 1)[:, None]
        return start.replace(obs=obs, next_obs=obs + 0)

    def step(self, state, action):
        after = super().step(state, action)
        first = state.obs - state.step_count[:, None]
        return after.replace(obs=first + after.step_count[:, None], next_obs=state.obs + 1.0)


def test_what_trains_draws_windows_of_one_environment():
    """In episodes of 5 steps, of which a window holds 3, or what is left."""
    args = dataclasses.replace(PROBE, n_step=3, learning_starts=0)
    env = Counting(4, 5, False, jnp.ones_like)
    state = hl.init_state(env, args)

    def learns_nothing(learner, batch, *_):
        chex.assert_shape(batch.obs, (args.batch_size, 3, 1))  # what train_step draws
        return learner, {"losses/policy": jnp.zeros(())}

    step = jax.jit(functools.partial(hl.train_step, env=env, args=args, update=learns_nothing))
    for _ in range(12):
        state, _ = step(state)
    windows, _ = hl.draw_batches(jax.random.key(0), state.replay, args)
    batch, gamma = hl.n_step(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), windows), args)
    length = np.round(np.log(gamma) / np.log(args.gamma)).astype(int)
    begun = np.asarray(batch.obs)[:, 0] % 100
    np.testing.assert_array_equal(batch.next_obs, batch.obs + length[:, None])
    after_start = begun >= 2  # the newest are steps 0 and 1 of an episode: what follows is to come
    np.testing.assert_array_equal(length[after_start], np.minimum(3, 5 - begun)[after_start])
    assert set(length[begun == 0]) == {2, 3}
    assert set(length[begun == 1]) == {1, 3}


def test_the_numpy_policy_is_the_jax_one(tmp_path):
    learner, obs = make_learner(), make_batch().obs * 5
    file = tmp_path / "policy.npz"
    file.write_bytes(hl.POLICY.export(learner, SMALL)["policy.npz"])
    act = numpy_policy.load(file)
    rng = np.random.default_rng
    drawn = rng(4).standard_normal((B, A), np.float32)
    for noise, found in ((np.zeros_like(drawn), act(obs)), (drawn, act(obs, rng(4)))):
        theta = learner.velocity_field.params
        expected = hl.policy_action(theta, obs, jnp.clip(noise, -1, 1), SMALL)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.dtype == np.float32


@pytest.mark.parametrize("flags", ["--v-min 3", "--v-max 0", "--num-bins 1"])
def test_bins_without_a_width_are_refused(flags, capsys):
    args = command_line.parse_args(hl.ALGORITHM, "cpu", flags.split())
    with pytest.raises(Exception, match=flags.split()[0]):
        hl.main(args)
