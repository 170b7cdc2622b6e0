"""One program on several devices and in several processes.

The functions `four_*` need four devices, and JAX has to be told before it starts: the tests at the
end run this file a second time, in a process of its own with four CPU devices. Two processes on
this machine stand for two hosts.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scripts import COMPILE_QUICKLY
from small import init_state
from test_adapters import Slider

import adapters
import envs
import flowrl_jax as flowrl
from harness import checkpoints, parallel, replay
from harness.errors import RunError

ROOT = Path(flowrl.__file__).parent
SMALL = dict(env_id="cartpole-balance", engine="native", num_envs=8, num_threads=1, batch_size=32)
SMALL |= dict(hidden_size=16, updates_per_step=2, buffer_size=800, learning_starts=80)
SMALL |= dict(log_interval=160, recent_window=80, total_timesteps=320, eval_episodes=1)
FOUR = dataclasses.replace(flowrl.Args(), **SMALL, num_devices=4)
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
)


def make_state(args):
    """Devices, environments and the state at step 0, as main makes them."""
    devices = parallel.Devices(args)
    make = functools.partial(make_env, args)
    env = devices.spread(make, args.num_envs, seed=args.seed)
    return devices, env, devices.place(init_state(env, args))


def make_env(args, num_envs, seed):
    return envs.make(args.env_id, num_envs, args.engine, seed=seed, num_threads=1)


def compile_chunk(devices, env, state, args):
    chunk = functools.partial(flowrl.train_chunk, env=env, args=args)
    return devices.program(chunk, state).lower(state).compile()


def equal_on_all(tree):
    """Whether every device holds the same bits of every leaf."""
    return all(
        np.array_equal(np.asarray(leaf.addressable_data(0)), np.asarray(shard.data))
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
    )


def assert_close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


def assert_same(trees):
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(a, b)


# --- on four devices ------------------------------------------------------------------------------


def four_updates_are_those_of_one_device():
    """Same batch and noise: what differs is the order of sums, to float32's rounding."""
    obs_size, action_size, size = 5, 3, FOUR.batch_size
    keys = jax.random.split(jax.random.key(5), 8)
    normal = lambda k, *shape: jax.random.normal(keys[k], (size, *shape))  # noqa: E731
    batch = flowrl.Transition(
        obs=normal(0, obs_size),
        action=jnp.tanh(normal(1, action_size)),
        # The devices' parts differ, so that a mean over one part is not the mean.
        reward=normal(2) + jnp.arange(size) / 4,
        next_obs=normal(3, obs_size),
        terminated=normal(4) > 1,
    )
    noise = flowrl.draw_update_noise(keys[5], size, action_size)
    devices = parallel.Devices(FOUR)
    learner = flowrl.init_learner(keys[6], obs_size, action_size, FOUR)
    split = functools.partial(jax.device_put, device=NamedSharding(devices.mesh, P("devices")))
    update = jax.jit(functools.partial(flowrl.update, args=FOUR))
    one, four = (learner, batch, noise), (devices.place(learner), split(batch), split(noise))
    for _ in range(4):
        state, losses = update(*one)
        four_state, four_losses = update(*four)
        assert_close(four_losses, losses, rtol=2e-6, atol=1e-7)
        one, four = (state, *one[1:]), (four_state, *four[1:])
    # Adam divides by the root of a mean square, so a gradient near zero magnifies rounding.
    params = [vars(network)["params"] for network in (one[0].critic, one[0].velocity_field)]
    four_params = [vars(network)["params"] for network in (four[0].critic, four[0].velocity_field)]
    assert_close(four_params, params, rtol=1e-5, atol=2e-6)
    assert equal_on_all(four_params)


def four_replay_keeps_and_draws_what_is_a_devices_own():
    devices = parallel.Devices(FOUR)
    ring = replay.init(jnp.zeros(()), 32, devices.mesh)
    insert = jax.jit(replay.insert)
    for step in range(10):  # device d has the transitions 100 d + step and 100 d + 50 + step
        new = jnp.concatenate([jnp.array([0.0, 50.0]) + 100 * d + step for d in range(4)])
        ring = insert(ring, devices.join(new, P("devices")))
    own = [np.asarray(shard.data) for shard in ring.data.addressable_shards]
    for d, rows in enumerate(own):
        newest = [100 * d + at + step for step in range(6, 10) for at in (0, 50)]
        assert sorted(rows) == sorted(newest)
    assert (int(ring.position), int(ring.size)) == (4, 8)

    draw = jax.jit(lambda key: replay.sample(key, ring, (50, 16), 0.5, 8))
    batch = draw(jax.random.key(0))
    assert batch.sharding.is_equivalent_to(NamedSharding(devices.mesh, P(None, "devices")), 2)
    drawn = [np.asarray(shard.data) for shard in batch.addressable_shards]
    for d, part in enumerate(drawn):
        assert part.shape == (50, 4)
        assert set(part.ravel()) == set(own[d])
        # The newest 8 of all are the newest 2 of each: the last step's.
        assert set(part[:, :2].ravel()) == {100.0 * d + 9, 100.0 * d + 59}
    assert (drawn[0] % 100 != drawn[1] % 100).any(), "two devices draw the same rows"
    assert draw(jax.random.key(0)).tolist() == batch.tolist()
    windows = np.asarray(replay.sample(jax.random.key(0), ring, (50, 16), 0.5, 8, (3, 8)))
    assert windows.shape == (50, 16, 3)
    np.testing.assert_array_equal(windows // 50, windows[..., :1] // 50 + np.zeros(3))  # its own
    np.testing.assert_array_equal((np.diff(windows) - 1) % 4, 0)  # one step on; the ring holds 4


def make_adapted(num_envs, seed):
    """Another library's environment; this one moves a point."""
    return adapters.AdaptedEnv("slider", Slider(), num_envs, "slider", 5, True, seed)


@pytest.mark.parametrize("make", [functools.partial(make_env, FOUR), make_adapted])
def four_environments_are_those_of_one_device(make):
    """The same initial states, steps and refreshes; but a reset draws from a device's own pool."""
    one, env = make(8, seed=3), parallel.Devices(FOUR).spread(make, 8, seed=3)
    key = jax.random.key(1)
    states, step = [one.reset(key), env.reset(key)], [jax.jit(one.step), jax.jit(env.step)]
    for index in range(1, 5):
        action = jax.random.uniform(jax.random.fold_in(key, index), (8, 1), minval=-1.0)
        states = [step[k](states[k], action) for k in range(2)]
        states = [env.refresh(state, index) for env, state in zip((one, env), states, strict=True)]
    physics = [(state.physics, state.obs, state.next_obs, state.reward) for state in states]
    assert_close(*physics, rtol=1e-6, atol=1e-6)
    assert_close(*[state.pool for state in states], rtol=0, atol=0)
    first = jax.tree.leaves(env._first_pool)[0]
    assert (np.asarray(jax.tree.leaves(states[1].pool)[0]) != first).mean() > 0.5
    state = step[1](states[1], action)
    assert np.asarray(state.truncated).all() == (make is make_adapted)  # its episodes have 5 steps
    for shard, pool in zip(
        *(x.addressable_shards for x in (state.obs, state.pool.obs)), strict=True
    ):
        if make is make_adapted:
            starts = np.asarray(pool.data).reshape(-1, shard.data.shape[1])
            assert np.isin(shard.data, starts).all()
            assert pool.data.shape[0] == shard.data.shape[0] == 2


@functools.cache
def compiled(args):
    """The program, and a function that gives the state at step 0, which the program donates."""
    devices, env, state = make_state(args)
    chunk = compile_chunk(devices, env, state, args)
    return chunk, lambda: devices.place(init_state(env, args)), env


def train(args, num_chunks=3):
    """State and metrics after some chunks, and where in memory the replay lay at first."""
    chunk, begin, env = compiled(args)
    state = begin()
    before = [shard.data.unsafe_buffer_pointer() for shard in state.replay.data.obs.global_shards]
    for index in range(1, num_chunks + 1):
        state, metrics = chunk(state)
        state = state.replace(env=env.refresh(state.env, index))
    return state, jax.device_get(metrics), before


@functools.cache
def trained():
    return train(FOUR)


def four_parameters_stay_equal_and_all_else_stays_split():
    state, metrics, _ = trained()
    assert equal_on_all(state.learner)
    assert metrics["charts/updates"] == 2 * 50
    assert all(np.isfinite(v) for k, v in metrics.items() if k.startswith("losses/"))
    for leaf in jax.tree.leaves((state.env, state.episode_return, state.replay.data)):
        assert len(leaf.addressable_shards) == 4
        assert leaf.addressable_shards[0].data.shape[0] == leaf.shape[0] // 4
    # Each device stored its own environments' transitions: their successors are its last ones.
    ring, at = state.replay, int(state.replay.position) - 2
    for d, shard in enumerate(ring.data.next_obs.addressable_shards):
        own = state.env.next_obs.addressable_shards[d].data
        np.testing.assert_array_equal(shard.data[at : at + 2], own)


def four_runs_of_one_seed_repeat_bit_for_bit():
    first, second = trained(), train(FOUR)
    np.testing.assert_equal(first[1], second[1])  # nan is nan: no episode ended
    assert_same([first[0].learner, second[0].learner])


def four_devices_exchange_gradients_and_nothing_else():
    """In what XLA compiled: sums of gradients and of metrics, no rows of replay or batch."""
    (state, *_), (chunk, *_) = trained(), compiled(FOUR)
    found = COLLECTIVE.findall(chunk.as_text())
    assert {kind for _, kind in found} == {"all-reduce"}
    shapes = [shape for text, _ in found for shape in re.findall(r"[fs]32\[([\d,]*)\]", text)]
    sums = {tuple(sorted(int(n) for n in shape.split(",") if n)) for shape in shapes}
    networks = (state.learner.velocity_field, state.learner.critic, state.learner.behaviour_value)
    leaves = [leaf for network in networks for leaf in jax.tree.leaves(network.params)]
    parameters = {tuple(sorted(leaf.shape)) for leaf in leaves}  # XLA may sum a transpose
    assert parameters <= sums, "a gradient is not averaged"
    assert sums <= parameters | {()}, "more than gradients and metrics is exchanged"


def four_buffers_are_given_back():
    (state, _, before), (chunk, *_) = trained(), compiled(FOUR)
    memory = chunk.memory_analysis()
    assert memory.alias_size_in_bytes == memory.argument_size_in_bytes
    shards = state.replay.data.obs.global_shards
    assert [shard.data.unsafe_buffer_pointer() for shard in shards] == before


@pytest.mark.slow
def four_devices_run_mjx():
    args = dataclasses.replace(FOUR, engine="mjx", log_interval=96)
    runs = [train(args, num_chunks=1) for _ in range(2)]
    state, metrics, _ = runs[0]
    assert compiled(args)[2].engine == "mjx"
    assert equal_on_all(state.learner)
    assert metrics["charts/updates"] == 2 * 2  # 12 steps of all, 10 of them random
    assert len(state.env.physics.qpos.addressable_shards) == 4
    assert_same([run[0].learner for run in runs])
    np.testing.assert_equal(runs[0][1], runs[1][1])


BAD_INPUT = [
    (dict(num_envs=6), "--num-envs: 6 cannot be split over 4 devices"),
    (dict(batch_size=30), "--batch-size: 30 cannot be split over 4 devices"),
    (dict(num_devices=5), "--num-devices: 5, but JAX finds 4"),
    (dict(num_devices=-1), "--num-devices: -1, but JAX finds 4"),
    (dict(num_seeds=2), "--num-seeds: several seeds train on one device only"),
    (dict(engine="warp"), "--engine: warp runs on one device only"),
]


@pytest.mark.parametrize(("changes", "says"), BAD_INPUT, ids=lambda value: str(value)[:20])
def four_bad_input(changes, says, tmp_path, monkeypatch):
    if "engine" in changes:  # as `envs.make` would, where warp is installed
        original = envs.make

        def make(*args, **kwargs):
            env = original(*args, **(kwargs | {"engine": "native"}))
            env.engine = "warp"
            return env

        monkeypatch.setattr(envs, "make", make)
    args = dataclasses.replace(FOUR, **{"runs_dir": str(tmp_path / "runs")} | changes)
    with pytest.raises(RunError, match=re.escape(says)) as raised:
        flowrl.main(args)
    assert "\n" not in str(raised.value)
    assert "use " in str(raised.value)
    assert not list(tmp_path.iterdir())


# --- on one device --------------------------------------------------------------------------------


def test_one_device_has_the_plain_program():
    args = dataclasses.replace(FOUR, num_devices=1)
    devices, env, state = make_state(args)
    assert isinstance(env, envs.VectorEnv)
    chunk = functools.partial(flowrl.train_chunk, env=env, args=args)
    text = devices.program(chunk, state).lower(state).as_text()
    assert text == jax.jit(chunk, donate_argnums=0).lower(state).as_text()
    assert not re.search("manual_computation|all_reduce|@mesh", text)
    assert devices.local(state) is state
    assert devices.agree(3) == 3


def four_a_checkpoint_comes_back_split_as_it_was():
    devices, (chunk, begin, _) = parallel.Devices(FOUR), compiled(FOUR)
    state, _ = chunk(begin())
    arrays = checkpoints.flatten(state, devices.gather)
    arrays = {name: array.copy() for name, array in arrays.items()}
    _, _, other = make_state(dataclasses.replace(FOUR, seed=9))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, other)
    other = checkpoints.unflatten(other, arrays, devices.scatter)
    assert jax.tree.map(lambda leaf: leaf.sharding, other) == shardings
    assert equal_on_all(other.learner)
    (state, _), (other, _) = chunk(state), chunk(other)
    assert_same([checkpoints.flatten(tree, devices.gather) for tree in (state, other)])


# --- processes ------------------------------------------------------------------------------------


def run_four(expression):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    command += ["-n", "0", "-o", "python_functions=four_*", "-m", expression]
    flags = f"--xla_force_host_platform_device_count=4 {COMPILE_QUICKLY}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_on_four_devices():
    assert run_four("not slow") == 9 + len(BAD_INPUT)


@pytest.mark.long
def test_mjx_on_four_devices():
    assert run_four("slow") == 1


def command_line(runs_dir, **flags):
    settings = SMALL | {"runs_dir": runs_dir} | flags
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [sys.executable, "flowrl_jax.py", *options]


@contextlib.contextmanager
def two_processes(command, devices_each=1):
    """Starts `command` twice, joined on loopback; kills what is left of them at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    joined |= {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    flags = f"--xla_force_host_platform_device_count={devices_each} {COMPILE_QUICKLY}"
    joined["XLA_FLAGS"] = flags
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    processes = [
        subprocess.Popen(command, env=os.environ | joined | {"JAX_PROCESS_ID": str(k)}, **pipes)
        for k in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def outputs(processes, timeout=300):
    """What each process printed; fails if one does not end."""
    until = time.monotonic() + timeout
    return [p.communicate(timeout=max(1.0, until - time.monotonic()))[0] for p in processes]


def assert_whole(path):
    params = flax.serialization.msgpack_restore(path.read_bytes())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert set(params) >= {"velocity_field", "critic", "target_critic"}


@pytest.mark.parametrize("variables", [{}, {"JAX_PROCESS_ID": "one"}])
def test_nothing_to_join_is_one_line(variables, tmp_path):
    command = [*command_line(tmp_path / "runs", num_devices=0), "--distributed"]
    environment = {"JAX_PLATFORMS": "cpu"} | variables
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: --distributed: .*JAX_COORDINATOR_ADDRESS.*\n", done.stderr)
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_two_processes_train_one_run(tmp_path):
    command = [*command_line(tmp_path, num_devices=0), "--distributed"]
    with two_processes(command, devices_each=2) as processes:
        main, other = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], main + other
    assert "4 devices of 2 processes" in main
    assert "each device: 2 environments, 8 transitions of a batch, 200 of the replay" in main
    said = [line for line in other.splitlines() if not line.startswith("[Gloo]")]
    assert said == []
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["status"] == "finished"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2
    assert_whole(folder / "params.msgpack")
    assert (folder / "learning_curve.png").stat().st_size > 1000


PAIR = """
    import dataclasses, functools, hashlib, json, sys
    sys.path[:0] = ["tests"]
    import jax, numpy as np
    from harness import parallel
    parallel.connect()
    out, sys.stdout = sys.__stdout__, sys.__stdout__
    import test_parallel as t
    args = dataclasses.replace(t.FOUR, num_devices=0, log_interval=80)
    devices, env, state = t.make_state(args)
    starts = [np.asarray(shard.data).tolist() for shard in state.env.obs.addressable_shards]
    chunk = t.compile_chunk(devices, env, state, args)
    for index in range(1, 4):
        state, metrics = chunk(state)
        state = state.replace(env=env.refresh(state.env, index))
    equal = t.equal_on_all(state.learner)
    leaves = jax.tree.leaves(devices.local(state.learner))
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    pool = [np.asarray(shard.data).tolist() for shard in state.env.pool.obs.addressable_shards]
    agreed = devices.agree(7 * devices.process)
    updates = float(metrics["charts/updates"])
    found = [digest, equal, updates, agreed, starts, pool, np.asarray(env._first_pool.obs).tolist()]
    print("\\nFOUND", json.dumps(found), flush=True)
    devices.agree(0)
"""


@pytest.mark.long
def test_two_processes_have_equal_parameters_and_environments_of_their_own():
    runs = []
    for _ in range(2):
        with two_processes([sys.executable, "-c", textwrap.dedent(PAIR)], 2) as processes:
            texts = outputs(processes)
        assert [p.returncode for p in processes] == [0, 0], "".join(texts)
        runs.append([json.loads(re.search(r"^FOUND (.*)$", t, re.M)[1]) for t in texts])
    assert runs[0] == runs[1], "two runs of one seed differ"
    (digest, equal, updates, agreed, starts, pool, first), other = runs[0]
    assert (digest, equal, updates, agreed) == (other[0], True, 2 * 20, 7)
    assert other[1:4] == [True, 2 * 20, 7]
    assert not np.isin(starts, other[4]).all(axis=-1).any(), "two processes share initial states"
    # Each wrote 32 states a refresh into its own 64, over both its devices.
    for own, before in ((pool, first), (other[5], other[6])):
        assert (np.concatenate(own) != np.array(before)).any(axis=-1).all()
        assert len(own) == 2


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        pytest.param(1, "SIGKILL", marks=pytest.mark.slow),
        pytest.param(0, "SIGKILL", marks=pytest.mark.long),
        pytest.param(1, "SIGTERM", marks=pytest.mark.long),
    ],
)
def test_the_end_of_one_process_ends_all(victim, number, tmp_path):
    endless = dict(num_devices=0, total_timesteps=10**7, eval_interval=160)
    command = [*command_line(tmp_path, **endless), "--distributed"]
    with two_processes(command) as processes:
        until = time.monotonic() + 600
        while not list(tmp_path.glob("*/params.msgpack")):
            assert all(p.poll() is None for p in processes)
            assert time.monotonic() < until
            time.sleep(0.2)
        time.sleep(2)  # into the next chunks
        processes[victim].send_signal(signal.Signals[number])
        sent = time.monotonic()
        texts = outputs(processes, timeout=60)
        seconds = time.monotonic() - sent
    (folder,) = tmp_path.iterdir()
    status = json.loads((folder / "config.json").read_text())["status"]
    assert_whole(folder / "params.msgpack")
    codes = [p.returncode for p in processes]
    if number == "SIGTERM":
        assert codes == [143, 143], "".join(texts)
        assert status == "interrupted"
        return
    survivor = 1 - victim
    assert (codes[victim], codes[survivor]) == (-9, 1), "".join(texts)
    assert texts[survivor].strip().splitlines()[-1] == parallel.LOST
    assert seconds < 20
    assert "Traceback" not in texts[survivor]
    assert status == ("failed" if survivor == 0 else "running")  # nobody is left to say so


@pytest.mark.long
def test_two_processes_resume_after_the_end_of_one(tmp_path):
    long = dict(num_devices=0, total_timesteps=1600, checkpoint_interval=160)
    folders = []
    for name in ("whole", "killed"):
        with two_processes([*command_line(tmp_path / name, **long), "--distributed"]) as processes:
            until = time.monotonic() + 600
            while name == "killed" and not list(tmp_path.glob("killed/*/checkpoints/0*")):
                assert time.monotonic() < until
                time.sleep(0.05)
            if name == "killed":
                processes[1].kill()
            texts = outputs(processes)
        assert [p.returncode for p in processes] == ([0, 0] if name == "whole" else [1, -9]), texts
        folders += (tmp_path / name).iterdir()
    step = checkpoints.newest(folders[1] / "checkpoints").host["run"]["step"]
    assert 160 <= step < 1600
    resume = [sys.executable, "flowrl_jax.py", "--resume", str(folders[1])]
    alone = subprocess.run(
        [*resume, "--no-distributed"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert alone.returncode == 2
    assert "--distributed: False is in conflict" in alone.stderr
    with two_processes(resume) as processes:
        texts = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], texts
    assert f"{step:012d}" in texts[0]
    assert_same([checkpoints.newest(folder / "checkpoints").load() for folder in folders])
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in folders]
    assert len(rows[0]) == len(rows[1]) == 1 + 10
