"""Other libraries' environments: with a small library of our own, and with the real ones.

The real ones are optional. Where a package is absent its tests are skipped, and say how to get it.
"""

import dataclasses
import importlib
import subprocess
import sys
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adapters
import envs
import flowrl_jax as flowrl
import vector_env

N, LIMIT = 4, 5
REAL = {"playground:CartpoleBalance": "mujoco_playground", "brax:inverted_pendulum": "brax"}


@flax.struct.dataclass
class Data:
    qpos: jax.Array  # (1,)
    qvel: jax.Array  # (1,)
    unused: jax.Array  # (1,)  infinite, as a solver's empty contacts may be


@flax.struct.dataclass
class State:
    data: Data
    obs: dict[str, jax.Array]
    reward: jax.Array
    done: jax.Array
    info: dict[str, jax.Array]


class Slider:
    """Moves a point by its action; ends outside [-1, 1]; noise from `info`, as Playground does."""

    dt, action_size = 0.1, 1

    def _state(self, qpos, qvel, rng):
        rng, noise_rng = jax.random.split(rng)
        obs = jnp.concatenate([qpos, qvel])
        privileged = jnp.append(obs, jax.random.normal(noise_rng))
        outside = (jnp.abs(qpos[0]) > 1.0).astype(jnp.float32)
        return State(
            Data(qpos, qvel, jnp.full(1, jnp.inf)),
            {"privileged_state": privileged, "state": obs},
            reward=qpos[0],
            done=outside,
            info={"rng": rng, "noise": privileged[-1]},
        )

    def reset(self, rng):
        rng, start_rng = jax.random.split(rng)
        return self._state(jax.random.uniform(start_rng, (1,)) / 2, jnp.zeros(1), rng)

    def step(self, state, action):
        return self._state(state.data.qpos + action * self.dt, action, state.info["rng"])


class Pixels(Slider):
    def reset(self, rng):
        return super().reset(rng).replace(obs={"pixels/view_0": jnp.zeros((4, 4, 3))})


class Config(dict):
    episode_length = LIMIT


@pytest.fixture
def library(monkeypatch):
    """A library shaped as Playground, with three environments, in its place."""
    known = {"SliderRun": Slider, "SliderPixels": Pixels, "SliderEndless": Slider}
    registry = types.SimpleNamespace(
        ALL_ENVS=tuple(known),
        get_default_config=lambda name: Config(impl="warp"),
        load=lambda name, config, config_overrides: known[name](),
    )
    module = types.ModuleType("mujoco_playground")
    module.registry = registry
    module.dm_control_suite = types.SimpleNamespace(ALL_ENVS=("SliderPixels", "SliderEndless"))
    monkeypatch.setitem(sys.modules, "mujoco_playground", module)
    return registry


@pytest.fixture
def env(library):
    return envs.make("playground:SliderRun", N)


def test_whether_an_episode_can_end_early_is_known_by_name(library, env):
    assert env.ends_early
    assert not envs.make("playground:SliderEndless", N).ends_early


def act(env, value):
    return jnp.full((env.num_envs, env.action_size), value)


def test_interface(env):
    assert (env.observation_size, env.action_size, env.episode_length) == (2, 1, LIMIT)
    assert (env.control_timestep, env.engine) == (0.1, "playground (mjx)")
    state = env.reset(jax.random.key(0))
    with jax.debug_key_reuse(True):
        after = jax.jit(env.step)(state, act(env, 0.1))
    for leaf in jax.tree.leaves((state, after)):
        assert leaf.shape[0] == N
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(after)]
    assert len(np.unique(state.obs[:, 0])) > 1, "initial states are random"


def test_time_limit_truncates_and_keeps_the_true_successor(env):
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    raw = [jax.tree.map(lambda x, i=i: x[i], state.physics) for i in range(N)]
    for count in range(1, LIMIT + 1):
        state = step(state, act(env, 0.1))
        raw = [Slider().step(one, jnp.full(1, 0.1)) for one in raw]
        expected = np.stack([one.obs["state"] for one in raw])
        np.testing.assert_allclose(state.next_obs, expected, rtol=1e-6)
        np.testing.assert_allclose(state.reward, expected[:, 0], rtol=1e-6)
        assert state.truncated.tolist() == [count == LIMIT] * N
        assert not state.terminated.any()
        np.testing.assert_array_equal(state.step_count, count % LIMIT)
    assert (state.obs != state.next_obs).any(axis=1).all()
    np.testing.assert_array_equal(state.obs, state.physics.obs["state"])
    pool = np.asarray(state.pool.obs).reshape(-1, 2)
    assert all((pool == one).all(axis=1).any() for one in np.asarray(state.obs))


def test_their_done_terminates_even_at_the_time_limit(env):
    state = env.reset(jax.random.key(0))
    qpos = state.physics.data.qpos.at[1, 0].set(0.95)
    physics = state.physics.replace(data=state.physics.data.replace(qpos=qpos))
    state = state.replace(physics=physics, step_count=state.step_count.at[1].set(LIMIT - 1))
    after = env.step(state, act(env, 9.0))  # is clipped to 1
    assert after.terminated.tolist() == [False, True, False, False]
    assert not after.truncated.any()
    np.testing.assert_allclose(after.next_obs[1], [1.05, 1.0], rtol=1e-6)
    assert abs(after.obs[1, 0]) <= 0.5
    assert after.nonfinite_count.tolist() == [0] * N


def test_a_reward_that_is_not_finite_is_not_hidden(library, monkeypatch):
    class Divided(Slider):
        def step(self, state, action):
            return super().step(state, action).replace(reward=jnp.nan)

    monkeypatch.setattr(library, "load", lambda name, config, config_overrides: Divided())
    env = envs.make("playground:SliderRun", N)
    after = env.step(env.reset(jax.random.key(0)), act(env, 0.1))
    assert np.isnan(after.reward).all()
    assert not after.terminated.any()
    assert after.nonfinite_count.tolist() == [0] * N


@pytest.mark.parametrize("where", ["state", "action"])
def test_nonfinite_state_is_contained_and_counted(env, where):
    state = env.reset(jax.random.key(0))
    action = act(env, 0.1)
    if where == "state":
        qpos = state.physics.data.qpos.at[2].set(jnp.nan)
        hurt = state.replace(
            physics=state.physics.replace(data=state.physics.data.replace(qpos=qpos))
        )
        after = env.step(hurt, action)
    else:
        after = env.step(state, action.at[2].set(jnp.nan))
    assert after.terminated.tolist() == [False, False, True, False]
    assert after.nonfinite_count.tolist() == [0, 0, 1, 0]
    assert after.reward[2] == 0
    np.testing.assert_array_equal(after.next_obs[2], state.obs[2])
    assert np.isfinite(after.obs).all()
    later = env.step(after, action)
    assert np.isfinite(later.next_obs).all()
    assert not later.terminated.any(), "it recovers"


def test_resets_differ_and_repeat(library):
    env, same, other = (envs.make("playground:SliderRun", 64, seed=seed) for seed in (0, 0, 1))
    one, again, two = (e.reset(jax.random.key(0)) for e in (env, same, other))
    np.testing.assert_array_equal(one.obs, again.obs)
    pools = [np.unique(state.pool.obs[..., 0]) for state in (one, two)]
    assert [len(pool) for pool in pools] == [64, 64]
    assert len(np.intersect1d(*pools)) == 0
    assert len(np.unique(one.obs[:, 0])) > 32


def test_episodes_from_one_initial_state_have_noise_of_their_own(env):
    state = env.reset(jax.random.key(0))
    alike = jax.tree.map(lambda x: jnp.stack([x[0]] * N), state.physics)
    after = env.step(state.replace(physics=alike), act(env, 0.1))
    assert len(np.unique(after.physics.info["noise"])) == N
    assert len(np.unique(after.next_obs[:, 0])) == 1


def test_refresh_renews_the_pool_and_is_a_function_of_the_index(library):
    env, other = (envs.make("playground:SliderRun", N) for _ in range(2))
    before = np.asarray(env.reset(jax.random.key(0)).pool.obs)
    first = np.asarray(env.refresh(env.reset(jax.random.key(0)), 1).pool.obs)
    second = np.asarray(env.refresh(env.reset(jax.random.key(0)), 2).pool.obs)
    np.testing.assert_array_equal(second, other.refresh(other.reset(jax.random.key(0)), 2).pool.obs)
    assert (first != before).any(axis=-1).sum() == vector_env.REFRESH
    assert len(np.intersect1d(first[first != before], second[second != before])) <= 1  # zeros


def small_args(env_id, tmp_path, **changes):
    return dataclasses.replace(
        flowrl.Args(),
        **dict(env_id=env_id, num_envs=N, hidden_size=16, batch_size=8, buffer_size=400)
        | dict(learning_starts=40, total_timesteps=200, log_interval=100, eval_interval=100)
        | dict(eval_episodes=2, runs_dir=str(tmp_path))
        | changes,
    )


def trains(env_id, tmp_path):
    assert flowrl.main(small_args(env_id, tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(env_id.replace(":", "-"))
    policy = flowrl.load_policy(folder)
    env = envs.make(env_id, N)
    action = policy(env.reset(jax.random.key(0)).obs)
    assert action.shape == (N, env.action_size)
    assert (np.abs(action) <= 1).all()
    assert "eval/episodic_return_sampled" in (folder / "metrics.csv").read_text()


@pytest.mark.slow
def test_the_whole_program_trains_on_it(library, tmp_path):
    trains("playground:SliderRun", tmp_path)


@pytest.mark.parametrize(
    ("env_id", "engine", "flag", "hint"),
    [
        ("playground:sliderRum", "auto", "--env-id", "did you mean SliderRun"),
        ("playground:zzzz", "auto", "--env-id", "there are SliderEndless, SliderPixels, SliderRun"),
        ("playground:SliderPixels", "auto", "--env-id", "pixels/view_0 (4, 4, 3)"),
        ("gym:Ant", "auto", "--env-id", "playground:NAME and brax:NAME"),
        ("playground:SliderRun", "native", "--engine", "auto, mjx"),
        ("brax:ant", "warp", "--engine", "generalized"),
    ],
)
def test_bad_requests_are_one_line_that_names_the_flag(library, env_id, engine, flag, hint):
    with pytest.raises(envs.UsageError) as error:
        envs.make(env_id, N, engine)
    message = str(error.value)
    assert message.startswith(flag)
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("env_id", "module"), [("playground:CheetahRun", "mujoco_playground"), ("brax:ant", "brax")]
)
def test_a_missing_package_is_one_line_with_the_pip_command(monkeypatch, env_id, module):
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    prefix = env_id.split(":")[0]
    with pytest.raises(envs.UsageError, match=rf"--env-id: .*`pip install {prefix}==") as error:
        envs.make(env_id, N)
    assert "\n" not in str(error.value)


def test_nothing_optional_is_imported_for_our_own_tasks():
    code = "import sys, envs; envs.make('cheetah-run', 1); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "envs" in loaded, result.stderr
    assert not loaded & {"brax", "mujoco_playground", "warp"}


def needs(env_id):
    """Skips, visibly, where the package is absent."""
    install = adapters.LIBRARIES[env_id.split(":")[0]].install
    pytest.importorskip(REAL[env_id], reason=f"pip install {install}")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", REAL)
def test_real_library_keeps_the_true_successor(env_id):
    needs(env_id)
    env, library = envs.make(env_id, 2), adapters.LIBRARIES[env_id.split(":")[0]]
    module = importlib.import_module(library.module)
    assert set(library.endless(module)) < set(library.names(module))
    assert env.ends_early == (env_id == "brax:inverted_pendulum")
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    raw_step, before = jax.jit(jax.vmap(env._raw.step)), state.physics
    state = state.replace(step_count=state.step_count.at[0].set(env.episode_length - 2))
    for count in (1, 2):
        state, before = step(state, act(env, 0.3)), raw_step(before, act(env, 0.3))
        np.testing.assert_allclose(state.next_obs, before.obs, rtol=1e-4, atol=1e-5)
        assert state.truncated.tolist() == [count == 2, False]
        assert not state.terminated.any()
    assert not np.array_equal(state.obs[0], state.next_obs[0])
    np.testing.assert_array_equal(state.obs[1], state.next_obs[1])


@pytest.mark.long
@pytest.mark.parametrize("env_id", REAL)
def test_real_library_trains(env_id, tmp_path):
    needs(env_id)
    trains(env_id, tmp_path)
