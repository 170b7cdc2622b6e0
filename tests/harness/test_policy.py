"""A policy of any algorithm: its evaluation by hand, what it saves, and what it loads."""

import dataclasses
import types

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness import contract, runs
from harness.errors import RunError
from harness.policy import Policy

OBS, ACTIONS = 3, 2


@dataclasses.dataclass(frozen=True)
class Args(contract.RunArgs):
    gain: float = 2.0  # of its own


def act(params, obs, noise, args):
    return jnp.tanh(args.gain * (obs @ params["w"]) + noise)


POLICY = Policy(
    network="actor",
    act=act,
    noise=lambda key, shape: 0.5 + jnp.abs(jax.random.normal(key, shape)),
    sizes=lambda params: params["w"].shape,
    pack=lambda params, args: np.asarray(params["w"]).tobytes() + str(args["gain"]).encode(),
)
ALGORITHM = POLICY.algorithm("linear", Args, {}, {}, None, None, {"sampled": "", "plain": ""})
W = np.linspace(-1, 1, OBS * ACTIONS, dtype=np.float32).reshape(OBS, ACTIONS)


@flax.struct.dataclass
class Network:
    params: dict


@flax.struct.dataclass
class Learned:
    actor: Network  # what acts
    other: Network
    target_other: dict  # a target has no `params`


LEARNED = Learned(Network({"w": jnp.asarray(W)}), Network({"v": jnp.ones(2)}), {"v": jnp.zeros(2)})


# --- evaluation -----------------------------------------------------------------------------------


@flax.struct.dataclass
class Walk:
    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    count: jax.Array


class Ends:
    """Rewards the first action; environment k ends after k + 1 steps, and then rewards nan."""

    num_envs, action_size, episode_length = 6, ACTIONS, 8

    def start(self):
        k = jnp.arange(self.num_envs)
        obs = jnp.stack([k / 6, jnp.ones(6), -k / 3], axis=1)
        return Walk(obs, jnp.zeros(6), k < 0, k < 0, jnp.zeros((), int))

    def step(self, state, action):
        length = jnp.arange(self.num_envs) + 1
        count = state.count + 1
        ends, even = count == length, length % 2 == 0  # a time limit for some, an end for others
        reward = jnp.where(count > length, jnp.nan, action[:, 0])
        return Walk(-state.obs, reward, ends & even, ends & ~even, count)


def test_half_acts_with_noise_the_other_without_and_an_end_ends_counting():
    env, args = Ends(), Args()
    start = env.start()
    found = POLICY.evaluate(LEARNED, start, jax.random.key(0), env, args)
    assert set(found) == {"sampled", "deterministic"}
    assert {values.shape for values in found.values()} == {(3,)}
    signs = [(-1) ** np.arange(k + 1) for k in range(6)]  # an observation changes its sign
    mean = np.asarray(start.obs) @ W[:, 0] * args.gain
    plain = np.array([np.tanh(sign * mean[k]).sum() for k, sign in enumerate(signs)])
    np.testing.assert_allclose(found["deterministic"], plain[3:], rtol=1e-5)
    # This noise is at least 0.5, so what it adds to each reward can be told from nothing.
    least = np.array([np.tanh(sign * mean[k] + 0.5).sum() for k, sign in enumerate(signs)])
    assert (found["sampled"] > least[:3] - 1e-5).all()
    assert (least[:3] > plain[:3] + 0.05).all()


def test_evaluation_repeats_by_key_where_there_is_noise():
    env, args = Ends(), Args()
    first, again, other = (
        POLICY.evaluate(LEARNED, env.start(), jax.random.key(seed), env, args) for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["sampled"] != other["sampled"]).all()
    np.testing.assert_array_equal(first["deterministic"], other["deterministic"])


def test_charts_are_the_deviation_over_noise_and_what_environments_counted():
    env = types.SimpleNamespace(obs=jnp.ones((20, OBS)), nonfinite_count=jnp.arange(20))
    learned = LEARNED.replace(actor=Network({"w": jnp.zeros((OBS, ACTIONS))}))
    state = types.SimpleNamespace(learner=learned, env=env)
    size = types.SimpleNamespace(action_size=ACTIONS)
    still = dataclasses.replace(POLICY, noise=lambda key, shape: jnp.ones(shape))

    @jax.jit
    def charts(key):
        return [one.charts(state, key, size, Args()) for one in (POLICY, still)]

    found, nothing = charts(jax.random.key(0))
    noise = np.random.default_rng(1).standard_normal(20_000)
    assert found["charts/action_std"] == pytest.approx(np.tanh(0.5 + np.abs(noise)).std(), rel=0.1)
    assert nothing["charts/action_std"] == pytest.approx(0, abs=1e-6)
    assert found["charts/nonfinite_states"] == sum(range(20))


# --- save and load --------------------------------------------------------------------------------


def saved_run(runs_dir, **changes):
    args = Args(env_id="none", **changes)
    config = dataclasses.asdict(args)
    with runs.Run.create(runs_dir, "none", "linear", 1, config) as run:
        for name, content in ALGORITHM.export(LEARNED, args).items():
            run.save_bytes(name, content)
    return run.folder


def test_all_networks_are_exported_and_the_policy_alone():
    files = POLICY.export(LEARNED, Args(gain=3.0))
    assert set(files) == {"params.msgpack", "policy.npz"}
    found = flax.serialization.msgpack_restore(files["params.msgpack"])
    assert set(found) == {"actor", "other", "target_other"}
    np.testing.assert_array_equal(found["actor"]["w"], W)
    np.testing.assert_array_equal(found["other"]["v"], 1)
    np.testing.assert_array_equal(found["target_other"]["v"], 0)
    assert files["policy.npz"] == W.tobytes() + b"3.0"


def test_what_is_loaded_acts_as_what_was_saved(tmp_path):
    load, args = ALGORITHM.load_policy, Args(gain=0.7)
    loaded = load(saved_run(tmp_path, gain=0.7))
    obs = np.random.default_rng(0).normal(size=(4, 5, OBS)).astype(np.float32)
    np.testing.assert_allclose(loaded(obs), np.tanh(args.gain * obs @ W), rtol=1e-5, atol=1e-6)
    assert loaded(obs[0, 0]).shape == (ACTIONS,)
    key = jax.random.key(3)
    sampled = act({"w": W}, obs, POLICY.noise(key, (4, 5, ACTIONS)), args)
    np.testing.assert_allclose(loaded(obs, key), sampled, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(loaded(obs, key), loaded(obs, jax.random.key(4)))


@pytest.mark.parametrize("shape", [(4,), (7, 2), ()])
def test_observations_of_another_size_are_refused_with_both_sizes(shape, tmp_path):
    loaded = ALGORITHM.load_policy(saved_run(tmp_path))
    with pytest.raises(ValueError, match=r"this policy needs \(\.\.\., 3\)") as caught:
        loaded(jnp.zeros(shape))
    assert f"obs has shape {shape}" in str(caught.value)


def test_a_folder_of_another_algorithm_or_of_none_is_refused(tmp_path):
    folder = saved_run(tmp_path / "runs")
    other = dataclasses.replace(ALGORITHM, name="other")
    with pytest.raises(RunError, match=r"a run of linear\.py, not of other\.py"):
        POLICY.load(other, folder)
    with pytest.raises(RunError, match="is no run folder"):
        POLICY.load(ALGORITHM, tmp_path)
    (folder / "params.msgpack").unlink()
    with pytest.raises(FileNotFoundError):
        POLICY.load(ALGORITHM, folder)
