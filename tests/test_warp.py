"""The engine `warp`, on the CPU: what is its own. Parity with dm_control is in test_tasks.py."""

import copy
import functools
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import envs
import flowrl_jax as flowrl
import vector_env
from engines import buffers

needs_warp = pytest.mark.skipif(
    not envs._importable("warp"),
    reason="no warp-lang: `pip install -r requirements-warp.txt` (a download of 150 MB)",
)
N = 4


@functools.cache
def make(env_id, num_envs=N, headroom=vector_env.HEADROOM):
    return envs.make(env_id, num_envs, "warp", headroom=headroom)


@functools.cache
def stepper(env):
    return jax.jit(env.step)


def actions(env, steps, seed=1):
    shape = (steps, env.num_envs, env.action_size)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0, maxval=1.0)


@functools.cache
def fallen(count=N):
    """Humanoids on the floor: states with many contacts, physics (count, ...)."""
    env = envs.make("humanoid-run", count, "native")
    state = env.reset(jax.random.key(0))
    for action in actions(env, 80):
        state = stepper(env)(state, action)
    return state.physics


def start(env, rows=slice(None)):
    """An EnvState at `fallen` states."""
    physics = jax.tree.map(lambda leaf: leaf[rows], fallen())
    return env.reset(jax.random.key(0)).replace(physics=physics)


@needs_warp
@pytest.mark.slow
def test_an_environment_does_not_depend_on_its_neighbours():
    together, alone = make("humanoid-run"), make("humanoid-run", 1)
    action = actions(together, 3)
    state = start(together)
    for a in action:
        state = stepper(together)(state, a)
    assert not state.overflow.any()
    for i in range(N):
        single = start(alone, slice(i, i + 1))
        for a in action:
            single = stepper(alone)(single, a[i : i + 1])
        np.testing.assert_array_equal(single.next_obs[0], state.next_obs[i])
        np.testing.assert_array_equal(single.physics.qvel[0], state.physics.qvel[i])


@needs_warp
@pytest.mark.slow
def test_a_scan_of_a_scan_and_an_outer_vmap_equal_a_loop():
    env = make("humanoid-run", headroom=2 * vector_env.HEADROOM)  # two batches share the buffers
    action = actions(env, 4)

    def steps(state, action):
        return jax.lax.scan(lambda s, a: (env.step(s, a), None), state, action)[0]

    def chunks(state, action):
        return jax.lax.scan(lambda s, a: (steps(s, a), None), state, action)[0]

    looped = start(env)
    for a in action:
        looped = stepper(env)(looped, a)
    nested = jax.jit(chunks)(start(env), action.reshape(2, 2, *action.shape[1:]))
    np.testing.assert_allclose(nested.obs, looped.obs, rtol=1e-5, atol=1e-5)
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start(env))
    mapped = jax.jit(jax.vmap(env.step))(pair, action[:2])
    for i in range(2):
        one = stepper(env)(start(env), action[i])
        np.testing.assert_allclose(mapped.obs[i], one.obs, rtol=1e-5, atol=1e-5)


@needs_warp
@pytest.mark.slow
def test_an_overflow_ends_the_episode_and_names_the_flag():
    env = make("humanoid-run", headroom=0.05)
    after = stepper(env)(start(env), actions(env, 1)[0])
    assert after.overflow.all(), "contacts are shared: nobody's step is to be trusted"
    assert after.terminated.all()
    assert np.isnan(after.reward).all()
    assert np.isfinite(after.obs).all()
    following = stepper(env)(after, actions(env, 1)[0])
    assert (following.overflow != 0).all(), "it is remembered"
    with pytest.raises(envs.UsageError, match=r"--warp-headroom.*humanoid-run.* 0\.1") as error:
        env.refresh(following, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(envs.UsageError, match="--warp-headroom"):
        env.check({"sampled": after.reward})  # returns of an evaluation


@needs_warp
@pytest.mark.slow
def test_rows_of_one_environment_overflow_alone():
    task = envs.load_task("humanoid-run")
    state = fallen().replace(qpos=fallen().qpos.at[1:, 2].add(5.0))  # all but one in the air
    engine = vector_env.WarpEngine(task.model, 5, N, buffers.Sizes(contacts=120, rows=4), {})
    *_, overflow = jax.jit(engine.step)(state, jnp.zeros((N, task.model.nu)), {})
    assert overflow[0]
    assert not overflow.all()


@needs_warp
@pytest.mark.slow
def test_the_models_solver_iterations_hold():
    """With one iteration the solver stops early; with the model's own it ends where C does."""
    model = copy.copy(envs.load_task("humanoid-run").model)
    ctrl, state, results = jnp.zeros((N, model.nu)), fallen(), {}
    cold = state.replace(warmstart=jnp.zeros_like(state.warmstart))
    theirs, *_ = vector_env.NativeEngine(copy.copy(model), 1, 1, {}).step(cold, ctrl, {})
    for iterations in (1, model.opt.iterations):
        model.opt.iterations = iterations
        engine = vector_env.WarpEngine(copy.copy(model), 1, N, buffers.Sizes(120, 80), {})
        results[iterations] = jax.jit(engine.step)(cold, ctrl, {})[0].qvel
    early, converged = results.values()
    np.testing.assert_allclose(converged, theirs.qvel, atol=1e-4)  # measured: 1e-5
    assert np.abs(early - converged).max() > 1e-2  # measured: 0.6


def test_buffers_hold_what_random_play_needs_and_never_nothing():
    env = envs.make("humanoid-run", 1, "native")
    starts, _ = env._initial.draw(0, buffers.EPISODES)
    sizes = buffers.measure(env.task.model, 5, starts)
    assert sizes == buffers.measure(env.task.model, 5, starts), "it is a function of the states"
    assert 20 < sizes.contacts < 161, "more than its contacts, less than all of its pairs"
    assert 20 < sizes.rows < 100
    assert sizes.scaled(2.0) == buffers.Sizes(2 * sizes.contacts, 2 * sizes.rows)
    smallest = buffers.Sizes(buffers.MIN_CONTACTS, buffers.MIN_ROWS)
    assert buffers.Sizes(0, 0).scaled(2.0) == smallest


@pytest.mark.parametrize("env_id", ["humanoid-run", "cheetah-run", "hopper-hop", "walker-run"])
def test_every_contact_is_between_a_pair_that_is_counted(env_id):
    env = envs.make(env_id, 1, "native")
    model, random = env.task.model, np.random.default_rng(0)
    pairs = buffers._colliding_pairs(model)
    known, data = set(zip(*map(np.ndarray.tolist, pairs), strict=True)), mujoco.MjData(model)
    seen = set()
    for _ in range(50):
        data.qpos = env.task.model.qpos0 + random.normal(size=model.nq)
        mujoco.mj_forward(model, data)
        touching = {tuple(sorted(pair)) for pair in data.contact.geom.tolist()}
        assert len(touching) <= buffers._near(model, data, *pairs)
        seen |= touching
    assert seen
    assert seen <= known


@pytest.mark.parametrize(
    ("backend", "platform", "kind", "installed", "chosen"),
    [
        ("cpu", "cpu", "cpu", True, "native"),
        ("gpu", "cuda", "NVIDIA H200", True, "warp"),
        ("gpu", "cuda", "Tesla V100-SXM2-16GB", True, "warp"),
        ("gpu", "cuda", "NVIDIA H200", False, "mjx"),
        ("gpu", "rocm", "AMD Instinct MI300X", True, "mjx"),
        ("tpu", "tpu", "TPU v5 lite", True, "mjx"),
    ],
)
def test_auto_suits_the_device(monkeypatch, backend, platform, kind, installed, chosen):
    def devices(asked=platform):
        if asked not in (platform, backend):
            raise RuntimeError(f"Unknown backend {asked}")
        return [types.SimpleNamespace(device_kind=kind)]

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(envs, "_importable", lambda name: installed or name != "warp")
    assert envs.choose_engine("auto") == chosen
    if not installed:
        with pytest.raises(envs.UsageError, match=r"--engine: warp needs.*`pip install .*warp"):
            envs.choose_engine("warp")
    elif backend != "cpu" and chosen != "warp":
        with pytest.raises(envs.UsageError, match="--engine: warp needs an NVIDIA GPU"):
            envs.choose_engine("warp")


@pytest.mark.parametrize("headroom", [0, -1, float("nan"), 1e9])
def test_headroom_that_makes_no_sense(headroom):
    with pytest.raises(envs.UsageError, match="--warp-headroom"):
        envs.make("pendulum-swingup", 1, "native", headroom=headroom)


@needs_warp
@pytest.mark.slow
def test_training_and_evaluation_can_be_lowered_for_a_gpu():
    """Not exported, as with `mjx`: a call of Warp's kernels belongs to this process."""
    sizes = dict(num_envs=N, hidden_size=8, batch_size=8, updates_per_step=2, buffer_size=64)
    args = flowrl.Args(env_id="cartpole-balance", log_interval=8, eval_episodes=2, **sizes)
    env = make(args.env_id)
    state = jax.eval_shape(functools.partial(flowrl.init_state, env, args))
    chunk = jax.jit(functools.partial(flowrl.train_chunk, env=env, args=args), donate_argnums=0)
    evaluate = jax.jit(functools.partial(flowrl.POLICY.evaluate, env=env, args=args))
    for program, given in ((chunk, (state,)), (evaluate, (state.learner, state.env, state.key))):
        text = program.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
        assert "stablehlo.custom_call @jax_callable" in text  # Warp's own kernels
        assert "callback" not in text
