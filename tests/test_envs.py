"""The vector environments: their interface, resets, containment of bad states, determinism."""

import copy
import dataclasses
import functools
import os
import subprocess
import sys
import types

import flax.struct
import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
import pytest
from chosen import fast_are
from dm_control import suite

import envs
import flowrl_hlgauss_jax
import flowrl_jax
import sac_jax
import vector_env
from benchmarks import parity
from engines import PhysicsState, mjx, native
from harness import loops
from tasks.models import read_spec

N = 4


@functools.cache
def make(env_id="walker-run", num_envs=N, seed=0, num_threads=0):
    return envs.make(env_id, num_envs, "native", seed, num_threads)


@functools.cache
def stepper(env):
    return jax.jit(env.step)


def actions(env, seed=1):
    return jax.random.uniform(
        jax.random.key(seed), (env.num_envs, env.action_size), minval=-1.0, maxval=1.0
    )


def numbers(tree):
    """Every leaf as numpy, keys included."""
    raw = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [np.asarray(leaf) for leaf in raw]


def assert_same(a, b):
    for left, right in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_array_equal(left, right)


@flax.struct.dataclass
class Counted:
    episode_return: jax.Array
    num_steps: jax.Array


def with_bad_velocity(state, index, value=jnp.nan):
    qvel = state.physics.qvel.at[index, 0].set(value)
    return state.replace(physics=state.physics.replace(qvel=qvel))


# Those that other tests here compile as well, one that moves a target, one with obstacles.
INTERFACE = ("cheetah-run", "dog-fetch", "hopper-hop", "humanoid-run", "quadruped-fetch")
INTERFACE += ("walker-run", "finger-turn_hard", "h1-maze")


@pytest.mark.parametrize("env_id", fast_are(INTERFACE, envs.task_ids()))
def test_interface(env_id):
    env = make(env_id)
    original = parity.load_original(env_id, seed=0)
    assert env.action_size == original.action_spec().shape[0]
    sizes = [int(np.prod(spec.shape)) for spec in original.observation_spec().values()]
    assert env.observation_size == sum(sizes)
    assert env.episode_length == 1000
    assert env.control_timestep == original.control_timestep()
    state = env.reset(jax.random.key(0))
    after = stepper(env)(state, actions(env))
    for leaf in jax.tree.leaves((state, after)):
        assert leaf.shape[0] == N
    assert after.obs.shape == after.next_obs.shape == (N, env.observation_size)
    assert after.reward.shape == after.terminated.shape == after.truncated.shape == (N,)
    assert np.isfinite(after.obs).all()
    highest = {"h1-maze": 101, "h1-reach": 20}.get(env_id, 1)  # a checkpoint's bonus; a hand's
    lowest = -np.inf if env_id.startswith("lqr-") else 0  # a cost has no bound
    assert ((after.reward >= lowest) & (after.reward <= highest)).all()
    assert np.ptp(np.asarray(state.obs), axis=0).max() > 0, "initial states are random"
    assert not np.array_equal(state.obs, after.obs)


def test_truncation_at_the_episode_length_and_true_successor():
    env = make()
    state = env.reset(jax.random.key(0))
    count = jnp.full(N, env.episode_length - 2).at[1].set(env.episode_length - 1)
    state = state.replace(step_count=count)
    first = stepper(env)(state, actions(env))
    assert first.truncated.tolist() == [False, True, False, False]
    assert not first.terminated.any()
    assert first.step_count.tolist() == [999, 0, 999, 999]
    running = stepper(env)(state.replace(step_count=jnp.zeros(N, jnp.int32)), actions(env))
    np.testing.assert_array_equal(first.next_obs, running.obs)  # as if it had gone on
    np.testing.assert_array_equal(
        first.obs[jnp.array([0, 2, 3])], running.obs[jnp.array([0, 2, 3])]
    )
    drawn = np.asarray(first.pool.obs).reshape(-1, env.observation_size)
    assert (drawn == np.asarray(first.obs[1])).all(axis=1).any(), "obs is an initial state"
    assert not np.array_equal(first.obs[1], first.next_obs[1])
    second = stepper(env)(first, actions(env, 2))
    assert second.truncated.tolist() == [True, False, True, True]
    assert second.step_count.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_nonfinite_state_is_contained(bad):
    env = make()
    state = env.reset(jax.random.key(0))
    clean = stepper(env)(state, actions(env))
    hurt = stepper(env)(with_bad_velocity(state, 2, bad), actions(env))
    assert hurt.terminated.tolist() == [False, False, True, False]
    assert not hurt.truncated.any()
    assert hurt.reward[2] == 0
    assert hurt.nonfinite_count.tolist() == [0, 0, 1, 0]
    np.testing.assert_array_equal(hurt.next_obs[2], state.obs[2])
    others = np.array([0, 1, 3])
    assert_same(*(jax.tree.map(lambda x: x[others], s) for s in (clean, hurt)))
    after = stepper(env)(hurt, actions(env, 2))
    assert all(np.isfinite(x).all() for x in numbers((hurt, after)) if x.dtype.kind == "f")
    assert not after.terminated.any(), "it recovers"
    assert after.step_count.tolist() == [2, 2, 1, 2]


def test_a_reward_that_is_not_finite_is_not_hidden():
    """It is a fault of the task's, of which training is told; a bad state's own stays 0."""

    def reward(physics):
        return jnp.where(physics.qpos[0] > 1e3, jnp.inf, jnp.nan)

    task = dataclasses.replace(envs.load_task("walker-run"), reward=reward)
    env = vector_env.VectorEnv(task, N, "native", 0, 0, 1.0)
    state = with_bad_velocity(env.reset(jax.random.key(0)), 2)
    after = jax.jit(env.step)(state, actions(env))
    np.testing.assert_array_equal(after.reward, [np.nan, np.nan, 0.0, np.nan])
    assert after.terminated.tolist() == [False, False, True, False]
    assert after.nonfinite_count.tolist() == [0, 0, 1, 0]
    metrics = loops.count_step(Counted(jnp.zeros(N), jnp.int32(0)), after, actions(env))[1]
    assert metrics["charts/nonfinite_rewards"] == 3


def test_an_error_inside_mujoco_is_contained_and_leaves_the_others_alone():
    """A state whose contacts need more memory than the model has."""
    spec = read_spec("humanoid")
    spec.memory = 20_000  # bytes
    model = spec.compile()
    qpos = np.tile(model.qpos0, (3, 1)).astype(np.float32)
    qpos[:, 2] = (3.0, -0.5, 3.0)  # m, the second is deep in the floor
    rest = np.zeros((3, model.nv), np.float32)
    state = vector_env.PhysicsState(qpos, rest, np.zeros((3, 0), np.float32), rest)
    for substeps in (1, 5):
        engine = vector_env.NativeEngine(model, substeps, 1, {})
        after, sensordata, _ = engine.step(state, jnp.zeros((3, model.nu)), {})
        for leaf in (after.qpos, after.qvel, sensordata):
            assert np.isnan(leaf[1]).all()
            assert np.isfinite(leaf[0]).all()
            np.testing.assert_array_equal(leaf[0], leaf[2])


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("lean", [0.0, 1e-8, 0.1, 1.0])
def test_contact_frames_of_a_capsule_on_a_plane_are_rotations_along_it(normal, lean):
    normal, side = np.array(normal), np.array([0.0, 1.0, 0.0])
    axis = np.cos(lean) * normal + np.sin(lean) * side
    plane = types.SimpleNamespace(mat=jnp.zeros((3, 3)).at[:, 2].set(normal), pos=jnp.zeros(3))
    mat, size = jnp.zeros((3, 3)).at[:, 2].set(axis), jnp.array([0.1, 0.5])
    capsule = types.SimpleNamespace(mat=mat, pos=jnp.array(normal), size=size)
    distances, _, frames = mjx._plane_capsule(plane, capsule)
    np.testing.assert_allclose(distances, 0.9 + 0.5 * np.cos(lean) * np.array([1, -1]), atol=1e-6)
    for frame in np.asarray(frames):
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(frame[0], normal, atol=1e-6)
        if lean > 1e-3:
            np.testing.assert_allclose(frame[1], side, atol=1e-5)


def test_nonfinite_action_is_contained():
    env = make()
    state = env.reset(jax.random.key(0))
    after = stepper(env)(state, actions(env).at[0, 0].set(jnp.nan))
    assert after.terminated.tolist() == [True, False, False, False]
    assert np.isfinite(after.obs).all()
    assert np.isfinite(after.reward).all()


def test_initial_states_are_dm_controls_own():
    env = make("humanoid-run", seed=5)
    original = suite.load("humanoid", "run")
    original.task.random.seed(np.random.SeedSequence([5, 0]).generate_state(8))
    pool = np.asarray(env.reset(jax.random.key(0)).pool.obs).reshape(-1, env.observation_size)
    for drawn in pool[:5]:
        theirs = np.concatenate([np.ravel(x) for x in original.reset().observation.values()])
        np.testing.assert_allclose(drawn, theirs, atol=1e-5)
    assert len(np.unique(pool, axis=0)) == len(pool)


def test_resets_differ_between_environments_keys_and_episodes():
    env = envs.make("walker-run", 64, "native")
    one, two = (np.asarray(env.reset(jax.random.key(i)).obs) for i in (0, 1))
    assert len(np.unique(one, axis=0)) > 32
    assert (one != two).any(axis=1).mean() > 0.8
    state = env.reset(jax.random.key(0)).replace(step_count=jnp.full(64, env.episode_length - 1))
    again = np.asarray(stepper(env)(state, actions(env)).obs)
    assert len(np.unique(again, axis=0)) > 32
    assert (one != again).any(axis=1).mean() > 0.8


def test_refresh_renews_the_pool_and_is_a_function_of_the_index():
    env, other = make(), envs.make("walker-run", N, "native")
    before = np.asarray(env.reset(jax.random.key(0)).pool.obs)
    first = env.refresh(env.reset(jax.random.key(0)), 1)
    second = env.refresh(other.reset(jax.random.key(0)), 2)
    assert_same(first, env.refresh(env.reset(jax.random.key(0)), 1))
    assert_same(second, other.refresh(other.reset(jax.random.key(0)), 2))
    rows = [
        np.unique(x.obs.reshape(-1, env.observation_size), axis=0)
        for x in (first.pool, second.pool)
    ]
    assert not np.array_equal(*rows)
    changed = (np.asarray(first.pool.obs) != before).any(axis=-1).sum()
    assert changed == vector_env.REFRESH


def rollout(env, steps=20, key=0):
    def body(state, key):
        shape = (env.num_envs, env.action_size)
        state = env.step(state, jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))
        return state, (state.obs, state.reward)

    run = jax.jit(lambda s, keys: jax.lax.scan(body, s, keys))
    return run(env.reset(jax.random.key(key)), jax.random.split(jax.random.key(7), steps))


def test_native_is_called_as_the_device_that_is_lowered_for_needs():
    """Not as the device that JAX has while tracing: a program may be compiled for another."""
    env = envs.make("pendulum-swingup", 2, "native", num_threads=1)
    state, action = env.reset(jax.random.key(0)), jnp.zeros((2, 1))
    traced = str(jax.make_jaxpr(env.step)(state, action))
    assert "pure_callback" in traced
    assert "ffi_call" in traced
    lowered = jax.jit(env.step).lower(state, action).as_text()  # for the CPU
    assert "mujoco_" in lowered
    assert "callback" not in lowered


def test_without_jaxs_cpu_there_is_one_line(monkeypatch):
    def only_a_gpu(backend):
        raise RuntimeError(f"Unknown backend: {backend!r} requested, but no platforms")

    monkeypatch.setattr(jax, "local_devices", only_a_gpu)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(envs.UsageError, match="use JAX_PLATFORMS=cuda,cpu, or unset it") as error:
        envs.make("pendulum-swingup", 2, "native", num_threads=1)
    assert "\n" not in str(error.value)


def test_same_seed_same_numbers_on_any_number_of_threads():
    one, again, two = (
        rollout(envs.make("humanoid-run", 8, "native", num_threads=threads))
        for threads in (1, 1, 2)
    )
    assert_same(one, again)
    assert_same(one, two)
    other = rollout(envs.make("humanoid-run", 8, "native", seed=1, num_threads=1))
    assert not np.array_equal(one[1][0], other[1][0])


@pytest.mark.parametrize("env_id", ["dog-fetch", "humanoid_CMU-run", "quadruped-fetch"])
def test_same_seed_same_initial_states_of_slow_resets(env_id):
    one, again, other = (
        numbers(envs.make(env_id, N, "native", seed).reset(jax.random.key(0)).pool)
        for seed in (3, 3, 4)
    )
    for left, right in zip(one, again, strict=True):
        np.testing.assert_array_equal(left, right)
    obs, different = (
        one[-1].reshape(vector_env.MIN_POOL, -1),
        other[-1].reshape(vector_env.MIN_POOL, -1),
    )
    assert len(np.unique(np.concatenate([obs, different]), axis=0)) == 2 * vector_env.MIN_POOL


def test_a_large_pool_repeats_its_first_states_until_they_are_refreshed():
    env = envs.make("walker-run", 4 * vector_env.MAX_DISTINCT, "native")
    state = env.reset(jax.random.key(0))
    pool = np.asarray(state.pool.obs).reshape(-1, env.observation_size)
    assert len(np.unique(pool, axis=0)) == vector_env.MAX_DISTINCT
    pool = np.asarray(env.refresh(state, 1).pool.obs).reshape(-1, env.observation_size)
    assert len(np.unique(pool, axis=0)) == vector_env.MAX_DISTINCT + vector_env.REFRESH


def test_the_episodes_of_a_presets_evaluation_begin_apart():
    for module in (flowrl_jax, flowrl_hlgauss_jax, sac_jax):
        for name, preset in module.PRESETS.items():
            args = dataclasses.replace(module.Args(), **preset)
            assert 2 * args.eval_episodes <= vector_env.MAX_DISTINCT, name


def test_step_is_pure():
    env = make("humanoid-run")
    state = env.reset(jax.random.key(0))
    before = numbers(state)
    one = stepper(env)(state, actions(env))
    stepper(env)(one, actions(env, 3))  # something else in between
    assert_same(one, stepper(env)(state, actions(env)))
    assert_same(before, numbers(state))


def test_scan_equals_a_python_loop():
    env = make()
    final, (obs, _) = rollout(env, steps=5)
    state = env.reset(jax.random.key(0))
    for i, key in enumerate(jax.random.split(jax.random.key(7), 5)):
        shape = (env.num_envs, env.action_size)
        state = stepper(env)(state, jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))
        np.testing.assert_allclose(obs[i], state.obs, rtol=1e-5, atol=1e-5)
    assert final.step_count.tolist() == state.step_count.tolist() == [5] * N


def test_vmap_over_batches_equals_a_loop():
    env = make()
    states = [env.reset(jax.random.key(i)) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    action = jnp.stack([actions(env, i) for i in range(3)])
    together = jax.jit(jax.vmap(env.step))(stacked, action)
    for i, state in enumerate(states):
        alone = stepper(env)(state, action[i])
        np.testing.assert_array_equal(together.obs[i], alone.obs)
        np.testing.assert_array_equal(together.reward[i], alone.reward)


def test_actions_are_scaled_and_clipped():
    env = make("humanoid-stand")  # MuJoCo clips too, but this reward reads the control itself
    view = []
    env_step = env._engine.step
    env._engine.step = lambda state, ctrl, ep: view.append(ctrl) or env_step(state, ctrl, ep)
    try:
        for scale in (9, 1, -0.5):
            env.step(env.reset(jax.random.key(0)), jnp.full((N, env.action_size), float(scale)))
    finally:
        env._engine.step = env_step
    low, high = env.task.model.actuator_ctrlrange.T
    np.testing.assert_array_equal(view[0], view[1])
    np.testing.assert_allclose(view[1], np.tile(high, (N, 1)), rtol=1e-6)
    np.testing.assert_allclose(view[2], np.tile(low + (high - low) / 4, (N, 1)), rtol=1e-6)


def test_native_steps_from_the_states_own_warm_start():
    env = make("humanoid-run")
    state = env.reset(jax.random.key(0))
    for i in range(30):
        state = stepper(env)(state, actions(env, i))  # until there are contacts
    model = copy.copy(env.task.model)
    model.opt.iterations = 1  # a solver that stops early shows where it started
    engine = vector_env.NativeEngine(model, 1, 1, {})
    ctrl = actions(env)
    cold = state.physics.replace(warmstart=jnp.zeros_like(state.physics.warmstart))
    first, *_ = engine.step(cold, ctrl, {})
    warm, *_ = engine.step(state.physics, ctrl, {})
    again, *_ = engine.step(cold, ctrl, {})
    assert_same(first, again)
    assert not np.array_equal(first.qvel, warm.qvel)


def rounded(data):
    """Rounds a state to float32, in place."""
    for array in (data.qpos, data.qvel, data.act, data.qacc_warmstart):
        array[:] = array.astype(np.float32)


@pytest.mark.parametrize(
    "env_id", ["cheetah-run", "dog-fetch", "hopper-hop", "humanoid-run", "quadruped-fetch"]
)
def test_native_steps_as_one_fresh_simulation_would_whatever_it_did_before(env_id):
    env = make(env_id)
    state = env.reset(jax.random.key(0))
    for i in range(30):
        state = stepper(env)(state, actions(env, i))  # until there are contacts
    ctrl = actions(env)
    after, sensordata, _ = env._engine.step(state.physics, ctrl, {})
    model = env.task.model
    substeps = round(env.control_timestep / model.opt.timestep)
    for i in range(N):
        data, start = mujoco.MjData(model), state.physics
        data.qpos, data.qvel, data.act = start.qpos[i], start.qvel[i], start.act[i]
        data.qacc_warmstart, data.ctrl = start.warmstart[i], ctrl[i]
        mujoco.mj_step(model, data, substeps)
        if substeps == 1:
            rounded(data)  # see NativeEngine
        mujoco.mj_step1(model, data)
        # But for numbers near 1e-44, which XLA takes for zero.
        same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-37)
        same(sensordata[i], data.sensordata.astype(np.float32))
        rounded(data)
        same(after.qpos[i], data.qpos)
        same(after.warmstart[i], data.qacc_warmstart)


AUTO = {"walker-run": "warp", "dog-fetch": "warp", "quadruped-escape": "native"}


@pytest.mark.parametrize(
    ("arguments", "flag", "hint"),
    [
        (("humanoid-rum", 1), "--env-id", "did you mean humanoid-run"),
        (("zzzzzz", 1), "--env-id", "python envs.py"),
        (("walker-run", 0), "--num-envs", "at least 1"),
        (("walker-run", -3), "--num-envs", "at least 1"),
        (("walker-run", 1, "brax"), "--engine", "native"),
        (("dog-fetch", 1, "mjx"), "--engine", "hold the ball; use --engine native or warp"),
        (("quadruped-escape", 1, "warp"), "--engine", "heights for all environments; use --engine"),
        (("walker-run", 1, "native", 0, -1), "--num-threads", "or more"),
        (("walker-run", 1, "native", -1), "--seed", "needs 0 to"),
    ],
)
def test_bad_requests_are_one_line_that_names_the_flag(arguments, flag, hint):
    with pytest.raises(envs.UsageError) as error:
        envs.make(*arguments)
    message = str(error.value)
    assert message.startswith(flag)
    assert hint in message
    assert "\n" not in message


def test_auto_leaves_out_what_cannot_step_the_task(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(envs, "_on_cuda", lambda: True)
    monkeypatch.setattr(envs, "_importable", lambda name: True)
    chosen = [envs.choose_engine("auto", envs.load_task(env_id).cannot) for env_id in AUTO]
    assert chosen == list(AUTO.values())


def test_engine_that_this_machine_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)  # as if it were not installed
    with pytest.raises(envs.UsageError, match=r"--engine.*mjx.*mujoco-mjx"):
        envs.make("pendulum-swingup", 1, "mjx")


def test_reset_to_refuses_the_wrong_number_of_states():
    env = make("pendulum-swingup")
    with pytest.raises(ValueError, match="4 states"):
        env.reset_to(np.zeros((3, 1)), np.zeros((3, 1)))


@pytest.mark.parametrize("env_id", ["cheetah-run", "quadruped-escape"])
def test_import_and_make_are_silent_and_need_no_display(env_id):
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    code = f"import envs; envs.make('{env_id}', 1, 'native')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        cwd=os.path.dirname(envs.__file__),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_way_to_draw_that_is_not_there_is_one_line_and_keeps_nobody_from_training():
    environment = os.environ | {"MUJOCO_GL": "nonsense", "JAX_PLATFORMS": "cpu"}
    code = "import envs, os; envs.make('cartpole-balance', 1); print(os.environ['MUJOCO_GL'])"
    options = {"capture_output": True, "text": True, "cwd": os.path.dirname(envs.__file__)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, **options)
    assert (result.returncode, result.stdout) == (0, "disable\n")
    assert result.stderr.startswith("MUJOCO_GL=nonsense: MuJoCo does not load with it (RuntimeE")
    assert result.stderr.count("\n") == 1


def test_forces_are_the_simulations_own_however_many_there_are():
    """A touch sensor is of the step's last stage; data of simulations share memory above 512."""
    xml = """<mujoco><worldbody><geom type="plane" size="1 1 1"/>
        <body pos="0 0 0.1"><joint type="slide" axis="0 0 1"/><geom size="0.1"/>
        <site name="s" size="0.11"/></body></worldbody>
        <sensor><touch site="s"/></sensor></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    count = native.MAX_PERSISTENT + 88
    heights = np.linspace(-0.02, 0.01, count, dtype=np.float32)[:, None]
    zeros = jnp.zeros((count, 1))
    state = PhysicsState(jnp.asarray(heights), zeros, jnp.zeros((count, 0)), zeros)
    engine = native.NativeEngine(model, 1, 1, {})
    _, touch, _ = jax.jit(engine.step)(state, jnp.zeros((count, 0)), {})
    expected = []
    for height in heights:
        data = mujoco.MjData(model)
        data.qpos[:] = height
        mujoco.mj_step(model, data)
        expected.append(data.sensordata.copy())
    assert np.ptp(expected) > 10
    np.testing.assert_allclose(touch, expected, rtol=1e-4, atol=1e-4)
