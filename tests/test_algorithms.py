"""What every algorithm beside FlowRL has to do as a program: seeds, keys, resuming, devices."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import COMPILE_QUICKLY, COMPILER_OPTIONS

import envs
import flowrl_hlgauss_jax
import flowrl_jax as flowrl
import numpy_policy
import sac_jax
from harness import command_line, parallel

ROOT = Path(__file__).parents[1]
ALGORITHMS = pytest.mark.parametrize(
    "algorithm", [sac_jax, flowrl_hlgauss_jax], ids=lambda module: module.__name__
)
REAL = dict(env_id="cartpole-swingup", log_interval=80, num_envs=4, hidden_size=16)
REAL |= dict(batch_size=16, buffer_size=40_000, learning_starts=40)
MORE_KEYS = {flowrl_hlgauss_jax: {"action_noise": 0.4}}  # flags that draw, and are off by default
TINY = "--env-id cartpole-balance --num-envs 4 --hidden-size 16 --batch-size 16 --num-threads 1"
TINY += " --updates-per-step 1 --log-interval 200 --learning-starts 100 --eval-interval 400"
TINY += " --eval-episodes 2 --buffer-size 2000 --checkpoint-interval 400"


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("cartpole-swingup", 4, "native", seed=1)


# FlowRL's step, and so that of flowrl_hlgauss_jax.py, is in the fast tests already.
@pytest.mark.parametrize(
    "algorithm", [sac_jax, pytest.param(flowrl_hlgauss_jax, marks=pytest.mark.slow)]
)
def test_no_key_is_used_twice(algorithm, cartpole):
    args = algorithm.Args(**REAL, **MORE_KEYS.get(algorithm, {}))
    with jax.debug_key_reuse(True):
        state = algorithm.init_state(cartpole, args)
        state, _ = algorithm.train_chunk(state, cartpole, args)
        start, key = cartpole.reset(jax.random.key(1)), jax.random.key(0)
        algorithm.POLICY.evaluate(state.learner, start, key, cartpole, args)


@pytest.mark.slow
@ALGORITHMS
def test_seeds_in_one_program_are_the_single_runs(algorithm, cartpole):
    """To rounding: a product of several matrices at once sums in another order."""
    args = algorithm.Args(**REAL, **MORE_KEYS.get(algorithm, {}))
    each = [dataclasses.replace(args, seed=seed) for seed in (1, 7)]
    own = [envs.make("cartpole-swingup", 4, "native", seed=args.seed) for args in each]
    chunk = functools.partial(algorithm.train_chunk, env=cartpole, args=args)
    start = [algorithm.init_state(env, args) for env, args in zip(own, each, strict=True)]
    both = parallel.stack_seeds(start)
    state, metrics = parallel.over_seeds(chunk, 2).lower(both).compile(COMPILER_OPTIONS)(both)
    start = [algorithm.init_state(env, args) for env, args in zip(own, each, strict=True)]
    alone = parallel.over_seeds(chunk, 1).lower(start[0]).compile(COMPILER_OPTIONS)
    nbytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(start[0].replay.data))
    assert alone.memory_analysis().alias_size_in_bytes >= nbytes  # the replay is never copied
    assert alone.memory_analysis().temp_size_in_bytes < nbytes / 4
    for k, (single, expected) in enumerate(map(alone, start)):
        assert int(expected["charts/updates"]) == 80 // 4 - 10  # 10 random steps of all
        assert all(np.isfinite(v) for name, v in expected.items() if "losses/" in name)
        for name, value in expected.items():
            found = np.broadcast_to(metrics[name], 2)[k]
            np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-5, err_msg=name)
        found = jax.tree.leaves(parallel.of_seed(state.learner, k, 2))
        for a, b in zip(found, jax.tree.leaves(single.learner), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@ALGORITHMS
def test_a_run_resumes_to_the_bit_and_is_evaluated(algorithm, tmp_path, capsys):
    def run(*flags):
        given = command_line.parse_args(algorithm.ALGORITHM, "cpu", [*map(str, flags)])
        assert algorithm.main(given) == 0

    for name, steps in (("a", 800), ("b", 400)):
        run(*TINY.split(), "--runs-dir", tmp_path / name, "--total-timesteps", steps)
    name = algorithm.ALGORITHM.name
    pattern = f"cartpole-balance__{name}__1__*"
    whole, half = (next((tmp_path / folder).glob(pattern)) for folder in "ab")
    run("--resume", half, "--total-timesteps", 800)
    learned = [(folder / "params.msgpack").read_bytes() for folder in (whole, half)]
    assert learned[0] == learned[1]
    assert json.loads((half / "config.json").read_text())["algorithm"] == name
    with pytest.raises(Exception, match=rf"a run of {name}\.py, not of flowrl_jax\.py"):
        flowrl.load_policy(half)
    act, ours = algorithm.load_policy(half), numpy_policy.load(half)
    obs = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    np.testing.assert_allclose(act(obs), ours(obs), atol=1e-5)
    assert not np.array_equal(act(obs), act(obs, jax.random.key(0)))
    capsys.readouterr()
    run("--evaluate", half, "--eval-episodes", 2, "--engine", "dm_control")
    assert algorithm.KINDS["deterministic"] in capsys.readouterr().out


@pytest.mark.slow
@ALGORITHMS
def test_two_devices_train_one_run(algorithm, tmp_path):
    command = [sys.executable, str(ROOT / f"{algorithm.__name__}.py"), *TINY.split()]
    command += ["--num-devices", "2", "--total-timesteps", "400", "--runs-dir", str(tmp_path)]
    flags = f"--xla_force_host_platform_device_count=2 {COMPILE_QUICKLY}"
    two = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run(command, env=os.environ | two, check=True, timeout=300)
    assert algorithm.load_policy(next(tmp_path.iterdir()))(jnp.ones((3, 5))).shape == (3, 1)
