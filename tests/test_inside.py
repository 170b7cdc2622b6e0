"""What is read off a run's checkpoints."""

import csv
import dataclasses
import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import OBS, A, B, make_batch, perturbed

import flowrl_jax as flowrl
from benchmarks import inside
from harness import command_line
from harness.errors import RunError


def test_earned_is_the_discounted_return_along_an_environments_episode():
    """Against a loop; 2 environments in turn, episodes of 5 and 7 steps, whole horizons only."""
    num_envs, gamma, lengths = 2, 0.9, (5, 7)
    rng = np.random.default_rng(0)
    steps = 12
    obs, next_obs = np.zeros((2, steps, num_envs, 1))
    reward = rng.uniform(size=(steps, num_envs))
    for env, length in enumerate(lengths):
        for t in range(steps):
            obs[t, env] = 100 * env + 10 * (t // length) + t % length / 10
            next_obs[t, env] = obs[t, env] + 0.1
            if t % length != length - 1 and t + 1 < steps:
                next_obs[t, env] = 100 * env + 10 * ((t + 1) // length) + (t + 1) % length / 10
    flat = [x.reshape(steps * num_envs, *x.shape[2:]) for x in (obs, reward, next_obs)]
    replay = flowrl.Transition(flat[0], None, flat[1], flat[2], None)
    found = inside.earned(replay, num_envs, gamma, 3).reshape(steps, num_envs)
    for env, length in enumerate(lengths):
        for t in range(steps):
            whole = t % length + 3 < length and t + 3 < steps
            expected = sum(gamma**k * reward[t + k, env] for k in range(3)) if whole else math.nan
            np.testing.assert_allclose(found[t, env], expected, err_msg=f"{t} of {env}")
            assert inside.age(replay, num_envs)[t * num_envs + env] == t % length
    too_far = inside.earned(replay, num_envs, gamma, steps + 2)  # further than the replay holds
    assert too_far.shape == (steps * num_envs,)
    assert np.isnan(too_far).all()


def test_half_of_the_reward_is_with_the_best_few():
    reward = np.array([0, 0, 4, 0, 1, 1, 1, 1, 0, 0], np.float32)  # 8 in all, 4 of them in one
    assert inside.half(reward) == pytest.approx(0.1)
    assert inside.half(np.ones(10, np.float32)) == pytest.approx(0.5)


def test_rank_counts_what_makes_up_nearly_all():
    u, v = (np.linalg.qr(np.random.default_rng(k).normal(size=(20, 6)))[0] for k in (0, 1))
    values = np.array([60.0, 30.0, 9.5, 0.3, 0.1, 0.1])  # 60, 90, 99.5 % ...
    assert inside.rank(jnp.asarray(u * values @ v.T)) == 3
    assert inside.rank(jnp.asarray(np.outer(u[:, 0], v[:, 0]))) == 1


def test_dormant_units_are_those_far_below_their_layer():
    layer = np.ones((10, 8), np.float32)
    layer[:, 0], layer[:, 1] = 0.0, 0.02  # the mean of sizes is 0.75: 2.5 % of it is 0.019
    other = np.full((10, 8), 1e-6, np.float32)  # small, but all alike
    assert inside.dormant([jnp.asarray(layer), jnp.asarray(other)]) == pytest.approx(1 / 16)


def test_a_run_that_cannot_be_measured_is_one_line(tmp_path, capsys):
    def refused() -> str:
        assert inside.main(["tried", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert "is no run folder" in refused()
    for arguments, said in ((["tried"], "RUN_FOLDER: is missing"), (["a/b", "x"], "NAME: ")):
        with pytest.raises(SystemExit, match="2"):
            inside.main(arguments)
        assert f"error: {said}" in capsys.readouterr().err
    config = {"algorithm": "sac_jax", "args": {}, "status": "finished"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "a run of sac_jax" in refused()
    config |= {"algorithm": "flowrl_jax", "args": dataclasses.asdict(flowrl.Args())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "--checkpoint-interval" in refused()


def test_a_replay_that_is_full_or_absent_is_refused():
    with pytest.raises(RunError, match="--checkpoint-replay"):
        inside.replay_of({})
    batch = make_batch()
    arrays = {f"replay/data/{name}": value for name, value in vars(batch).items()}
    assert len(inside.replay_of(arrays | {"replay/size": np.array(B - 1)}).reward) == B - 1
    with pytest.raises(RunError, match="--buffer-size"):
        inside.replay_of(arrays | {"replay/size": np.array(B)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowrl_jax", "flowrl_hlgauss_jax"])
def test_gradients_are_as_long_as_differences_say(name):
    """Of (6): how fast -Q falls along its gradient, by two values of the policy's loss."""
    module = importlib.import_module(name)
    args = module.Args(hidden_size=8, w2_coef=0.2)
    learner = module.init_learner(jax.random.key(0), OBS, A, args)
    theta = learner.velocity_field.params
    shaken = theta | {"params": perturbed(theta["params"], 1)}
    changed = {"velocity_field": learner.velocity_field.replace(params=shaken)}
    for k, field in enumerate(
        n for n in ("critics", "critic", "behaviour_critic") if hasattr(learner, n)
    ):
        network = getattr(learner, field)  # so that Q_beta is no copy of Q_phi
        changed[field] = network.replace(params=perturbed(network.params, 5 + k))
    learner = learner.replace(**changed)
    batch, key = jax.tree.map(jnp.asarray, make_batch()), jax.random.key(3)
    found = inside.measured(module, learner, batch, key, args)
    noise = flowrl.draw_update_noise(key, B, A)
    if name == "flowrl_jax":
        obs, q_of = batch.obs, flowrl.twin_q
        phi, beta = learner.critic.params, learner.behaviour_critic.params
    else:
        obs = module.normalise(theta, batch.obs)
        heads, q_of = learner.critics.params, module.head_values
        phi, beta = module.of_phi(heads), module.of_beta(heads)

    def mean_q(theta):
        action = flowrl.policy_action(theta, obs, noise.x0_policy, args)
        return jnp.mean(q_of(phi, obs, action, args).min(axis=0))

    gradient = jax.grad(mean_q)(shaken)
    size = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    step = 1e-3
    ahead, behind = (
        mean_q(jax.tree.map(lambda p, g: p + sign * step * g / size, shaken, gradient))  # noqa: B023
        for sign in (1.0, -1.0)
    )
    assert found["gradient_q"] == pytest.approx(float(ahead - behind) / (2 * step), rel=0.02)
    assert found["gradient_w2"] > 0
    for measure, params in (("q", phi), ("q_beta", beta)):
        q = jnp.mean(q_of(params, obs, batch.action, args).min(axis=0))
        assert found[measure] == pytest.approx(float(q), rel=1e-5)


@pytest.mark.slow
def test_a_run_is_measured_at_each_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(inside, "FOLDER", tmp_path / "inside")
    monkeypatch.setattr(inside, "HORIZON", 50)
    monkeypatch.setattr(inside, "AHEAD", 10)
    module = importlib.import_module("flowrl_hlgauss_jax")
    flags = f"--env-id cartpole-balance --preset cpu --runs-dir {tmp_path}/runs"
    flags += " --num-envs 8 --hidden-size 8"
    flags += " --batch-size 8 --updates-per-step 2 --learning-starts 400 --total-timesteps 2000"
    flags += " --log-interval 400 --eval-interval 800 --eval-episodes 1 --num-threads 1"
    flags += " --checkpoint-interval 800 --keep-checkpoints 9 --buffer-size 8000"
    assert module.main(command_line.parse_args(module.ALGORITHM, "cpu", flags.split())) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert inside.main(["tried", str(folder)]) == 0
    with (tmp_path / "inside" / "tried.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["step"])) for row in rows] == [800, 1600, 2000]
    for row in rows:
        assert 0 < float(row["earned"]) <= 50
        assert 1 <= float(row["rank"]) <= 8
        assert 0 < float(row["early"]) <= 1
    with (tmp_path / "inside" / "tried.ages.csv").open() as file:
        ages = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["from"] for row in ages] == [50, 200]  # 250 steps of each: the later half
    for row in ages:
        assert 0 < row["reward"] <= 1
        assert row["reward"] < row["earned"] < 10
        assert row["spread"] > 0
    with (folder / "metrics.csv").open() as file:
        logged = {row["step"]: row[inside.SAMPLED] for row in csv.DictReader(file)}
    assert float(rows[0]["return"]) == pytest.approx(float(logged["800"]), rel=1e-4)
    assert (tmp_path / "inside.png").stat().st_size > 1_000
