"""Every task as dm_control tests its own: random play, and the statistics of resets."""

import jax
import numpy as np
import pytest
import scipy.stats

import envs
import vector_env
from tasks.resets import episode_rows, load_original, read_rows

N = 4
# The hand's touch sensors: random play does not grasp.
UNTOUCHED = {"manipulator": range(24, 29), "stacker": range(24, 29)}
LONG = ("dog-stand", "dog-walk", "dog-trot", "humanoid_CMU-stand", "humanoid_CMU-walk")
FAST = ("ball_in_cup-catch", "cartpole-swingup", "finger-turn_hard", "hopper-hop")
FAST += ("swimmer-swimmer6", "walker-walk")


def slow(env_id: str):
    marks = [] if env_id in FAST else [pytest.mark.slow]
    marks = [pytest.mark.long] if env_id in LONG else marks  # as others with the same body
    return pytest.param(env_id, marks=marks)


PARTS = 5  # of an episode: the first of them is played a second time


def play(env: envs.VectorEnv, steps: int):
    """Random actions in [-1, 1] in parts from a reset: where it starts and what is seen.

    Returns obs (N, O), then for each part its leaves (steps / PARTS, N, ...); then the first
    part played again from the same key, as (obs, part); then the start of another key.
    """

    def step(state, key):
        shape = (env.num_envs, env.action_size)
        state = env.step(state, jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))
        seen = (state.next_obs, state.reward, state.terminated, state.truncated)
        return state, (*seen, state.nonfinite_count)

    @jax.jit
    def part(state, keys):
        return jax.lax.scan(step, state, keys)

    reset = jax.jit(env.reset)
    keys = jax.random.split(jax.random.key(1), (PARTS, steps // PARTS))
    start, seen = reset(jax.random.key(0)), []
    state = start
    for some in keys:
        state, found = part(state, some)
        seen.append(jax.tree.map(np.asarray, found))
    same = reset(jax.random.key(0))
    again = jax.tree.map(np.asarray, part(same, keys[0])[1])
    other = reset(jax.random.key(1))
    return np.asarray(start.obs), seen, (np.asarray(same.obs), again), np.asarray(other.obs)


# The tasks of dm_control; HumanoidBench's are in test_h1.py.
IDS = [env_id for env_id in envs.task_ids() if not env_id.startswith("h1-")]


@pytest.mark.parametrize("env_id", map(slow, IDS))
def test_an_episode_of_random_play(env_id):
    env = envs.make(env_id, N, "native")
    original = load_original(envs.load_task(env_id), 0)
    assert env.episode_length == original._step_limit
    assert env.ends_early == env_id.startswith("lqr-")
    assert env.control_timestep == original.control_timestep()
    steps = PARTS * (env.episode_length // PARTS + 1)
    first, parts, (again, part_again), other = play(env, steps)
    obs, reward, terminated, truncated, nonfinite = map(np.concatenate, zip(*parts, strict=True))
    for a, b in zip((first, *parts[0]), (again, *part_again), strict=True):
        np.testing.assert_array_equal(a, b)  # one seed, the same numbers
    assert not np.array_equal(first, other)  # another key, another start
    assert len(np.unique(first, axis=0)) > 1, "environments start apart"
    assert np.isfinite(obs).all()
    assert (reward <= 1).all()
    assert (reward >= 0).all() or env_id.startswith("lqr-")  # a cost has no bound
    assert nonfinite[-1].sum() == 0
    assert not terminated.any()
    ends = np.zeros(steps, bool)
    ends[env.episode_length - 1] = True
    np.testing.assert_array_equal(truncated, np.tile(ends[:, None], (1, N)))
    constant = set(np.flatnonzero(obs.reshape(-1, obs.shape[-1]).std(axis=0) == 0))
    assert constant <= set(UNTOUCHED.get(env_id.split("-")[0], ())), "elements that never change"


def states_of(env: envs.VectorEnv, count: int) -> np.ndarray:
    """(at least `count`, D): initial states that resets draw from, each a different one."""
    state = env.reset(jax.random.key(0))
    for index in range(1, -(-count // vector_env.REFRESH) + 1):
        state = env.refresh(state, index)
    pool = state.pool
    leaves = [pool.qpos, pool.qvel, pool.act, *pool.episode.values()]
    return np.concatenate([np.reshape(leaf, (env.num_envs, -1)) for leaf in leaves], axis=1)


def states_of_dm_control(env_id: str, count: int) -> np.ndarray:
    """(count, D): the same of dm_control's environment."""
    original = load_original(envs.load_task(env_id), 123)
    physics = original.physics
    rows = episode_rows(physics.model.ptr, envs.load_task(env_id).episode)
    result = []
    for _ in range(count):
        original.reset()
        changed = read_rows(physics.model.ptr, rows).values()
        leaves = (physics.data.qpos, physics.data.qvel, physics.data.act, *changed)
        result.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    return np.array(result)


STARTS = {  # tasks that start alike, but for their rewards, are here once; quadruped-escape's
    # heights are in test_quadruped.py
    "acrobot-swingup",
    "ball_in_cup-catch",
    "cartpole-balance",
    "cartpole-swingup",
    "cartpole-three_poles",
    "cheetah-run",
    "dog-run",
    "dog-fetch",
    "finger-spin",
    "finger-turn_hard",
    "fish-upright",
    "fish-swim",
    "hopper-hop",
    "humanoid-run",
    "humanoid_CMU-run",
    "lqr-lqr_6_2",
    "manipulator-bring_ball",
    "manipulator-insert_peg",
    "pendulum-swingup",
    "point_mass-hard",
    "quadruped-run",
    "quadruped-fetch",
    "reacher-easy",
    "stacker-stack_2",
    "swimmer-swimmer6",
    "walker-run",
}


@pytest.mark.slow
@pytest.mark.parametrize("env_id", sorted(STARTS))
def test_a_thousand_resets_are_distributed_as_dm_controls(env_id):
    count = 1000
    ours = states_of(envs.make(env_id, count, "native", seed=7), count)
    theirs = states_of_dm_control(env_id, count)
    assert ours.shape == theirs.shape
    for i in range(ours.shape[1]):
        if np.ptp(theirs[:, i]) < 1e-6:  # the same at every reset
            np.testing.assert_allclose(ours[:, i], theirs[:, i], rtol=1e-6, atol=1e-6)
        else:
            p = scipy.stats.ks_2samp(ours[:, i], theirs[:, i].astype(np.float32)).pvalue
            assert p > 1e-5, f"coordinate {i}: p = {p:.1e}"
