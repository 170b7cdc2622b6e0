"""benchmarks/released_training.py: its loop, around a stand-in for the released agent."""

import csv
import sys
import types

import dm_env
import numpy as np
import pytest
from dm_env import specs

import flowrl_jax as flowrl
from benchmarks import inputs, released, released_training

LENGTH, FALL = 7, 5  # steps of an episode by time; of every second one, which ends in a fall


class Env:
    """One number for an observation, the step in the episode, which is the reward as well."""

    def __init__(self):
        self.episodes, self.steps = 0, 0

    def action_spec(self):
        return specs.BoundedArray((2,), np.float64, [-1.0, -1.0], [1.0, 1.0])

    def reset(self):
        self.episodes, self.steps = self.episodes + 1, 0
        return dm_env.restart({"now": np.float64(0.0), "then": np.zeros(2)})

    def step(self, action):
        self.steps += 1
        observation = {"now": np.float64(self.steps), "then": np.ones(2)}
        if self.episodes % 2 == 0 and self.steps == FALL:
            return dm_env.termination(float(self.steps), observation)
        last = dm_env.truncation if self.steps == LENGTH else dm_env.transition
        return last(float(self.steps), observation)


class Agent:
    """Remembers what it is asked for. Its actions are 0.5."""

    def __init__(self):
        self.updates, self.evaluated = [], 0

    def select_action(self, obs, evaluate=False):
        assert obs.shape == (3,)
        self.evaluated += evaluate
        return np.full(2, 0.5, np.float32)

    def update_parameters(self, memory, batch_size, updates):
        self.updates.append((batch_size, updates, len(memory.pushed)))


@pytest.fixture
def trained(monkeypatch, tmp_path):
    agent, sizes = Agent(), []
    memory = types.SimpleNamespace(pushed=[])
    memory.push = lambda *transition: memory.pushed.append(transition)
    monkeypatch.setattr(released_training.suite, "load", lambda *_, **__: Env())
    fresh = lambda algo, args, *found: sizes.append(found) or agent  # noqa: E731
    monkeypatch.setattr(released, "fresh_agent", fresh)
    settings = flowrl.Args(
        env_id="a-run",
        total_timesteps=30,
        learning_starts=10,
        batch_size=3,
        eval_interval=15,
        eval_episodes=2,
    )
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,charts/seconds,{inputs.SAMPLED}\n")
    released_training.train(None, memory, settings, path)
    return agent, memory.pushed, sizes, path


def test_actions_are_uniform_before_the_first_update_and_the_policy_s_after(trained):
    agent, pushed, sizes, _ = trained
    actions = np.array([transition[1] for transition in pushed])
    assert sizes == [(3, 2)]
    assert len(actions) == 30
    assert np.all(actions[10:] == 0.5)
    assert len(np.unique(actions[:10])) == 20
    assert np.abs(actions).max() <= 1
    assert agent.updates == [(3, k, 10 + k) for k in range(20)]  # before the step's own transition


def test_only_a_fall_ends_a_value(trained):
    _, pushed, _, _ = trained
    rewards = [transition[2] for transition in pushed]
    expected = [*range(1, LENGTH + 1), *range(1, FALL + 1)] * 3
    assert rewards == expected[:30]
    for obs, _, reward, next_obs, _ in pushed:
        assert next_obs[0] == reward == obs[0] + 1
    ends = [k for k, transition in enumerate(pushed) if transition[4] == 0.0]
    assert ends == [11, 23]  # of the second and the fourth episode


def test_evaluations_are_of_whole_episodes_and_read_by_the_protocol_s_tools(trained):
    agent, _, _, path = trained
    rows = inputs.evaluations(path, "step", "charts/seconds")
    whole, fallen = LENGTH * (LENGTH + 1) / 2, FALL * (FALL + 1) / 2
    assert [row["step"] for row in rows] == [15, 30]
    assert [row[inputs.SAMPLED] for row in rows] == [(whole + fallen) / 2] * 2
    assert agent.evaluated == 2 * (LENGTH + FALL)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--released nowhere --env-id cheetah-run", "has no model/algo.py"),
        ("--released nowhere --env-id h1-run", "dm_control has no task"),
        ("--released nowhere --env-id cheetah-run --batch-size 0", "needs a whole number"),
    ],
)
def test_bad_input_is_told_in_one_line(flags, said, monkeypatch, tmp_path, capsys):
    argv = ["released_training.py", *flags.split(), "--runs-dir", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="2"):
        released_training.main()
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_its_rows_are_csv(trained):
    with trained[3].open() as file:
        assert all(None not in row for row in csv.DictReader(file))
