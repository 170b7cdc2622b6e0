"""benchmarks/parity.py: how states are chosen and counted. What it finds is in test_tasks.py."""

import csv
import sys

import numpy as np
import pytest

import envs
from benchmarks import parity

BALL = "manipulator-insert_ball"


def ball_to_target(recorded):
    """Distance of the ball from its target before each step, m."""
    task = envs.load_task(BALL)
    x, z = (int(task.model.joint(f"ball_{axis}").qposadr[0]) for axis in "xz")
    target = recorded["episode"]["body_pos"][:, 0]  # the first of the episode's bodies
    return np.linalg.norm(recorded["qpos"][:, [x, z]] - target[:, [0, 2]], axis=1)


def test_the_table_has_no_tie_and_in_touch_nothing_else():
    starts = ball_to_target(parity.record_steps(BALL, 200, "native"))[:: parity.PLAYS["uniform"]]
    assert starts.min() == pytest.approx(parity.LIFT, rel=1e-3), (
        "raised, and there was one to raise"
    )
    tied = parity.record_steps(BALL, 5, "native", play="in_touch")
    assert ball_to_target(tied).max() < 1e-6
    assert len(np.unique(tied["qpos"][:, 0])) == 5, "each from a reset of its own"


def test_smooth_actions_wander_and_starts_alternate():
    recorded = parity.record_steps("walker-walk", 100, "native", play="smooth")
    steps = np.diff(recorded["action"], axis=0)
    assert 0 < np.abs(steps).max() <= 2 * parity.WANDER
    uniform = parity.record_steps("walker-walk", 100, "native")["action"]
    assert np.abs(np.diff(uniform, axis=0)).max() > 1.5
    half = parity.PLAYS["smooth"]
    assert np.abs(recorded["qpos"][0]).max() > 0.1, "a reset"
    assert not recorded["qpos"][half].any(), "the model's own pose"


def test_counting():
    found, by_state = parity.count("cartpole-balance", "native", 20, "smooth")
    assert (found.states, len(by_state)) == (20, 20)
    assert found.max_rel_obs == by_state.max() < 1e-6
    assert (found.obs_far, found.moved_far, found.ends_that_differ) == (0, 0, 0)
    assert found.moved_max > found.max_rel_obs, "C moved by 1e-6 is further away than rounding"


def test_a_state_that_is_not_finite_is_counted(monkeypatch):
    broken = (np.array([0.0, np.nan, 2e-3]), np.zeros(3), 0)
    monkeypatch.setattr(parity, "differences", lambda env, recorded: broken)
    found, _ = parity.count("cartpole-balance", "native", 3, "smooth")
    assert found.obs_far == 2


def test_a_row_replaces_its_like_and_no_other(tmp_path):
    path, key = tmp_path / "rows.csv", ("engine", "env_id")
    for value, engine in ((1, "mjx"), (2, "native"), (3, "mjx")):
        parity.write(path, {"env_id": "a", "engine": engine, "value": value}, key)
    with path.open() as file:
        rows = [(row["engine"], row["value"]) for row in csv.DictReader(file)]
    assert rows == [("mjx", "3"), ("native", "2")]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--env-ids cheeta-run", "--env-ids: unknown task 'cheeta-run'; did you mean cheetah-run"),
        ("--engine mjx --env-ids lqr-lqr_2_1 point_mass-hard", "--engine: point_mass-hard: mjx"),
        ("--states 0", "--states: needs a whole number"),
    ],
)
def test_what_cannot_be_compared_is_told_at_once(flags, said, monkeypatch, capsys):
    monkeypatch.setattr(parity, "measure", lambda *_: pytest.fail("it measures"))
    monkeypatch.setattr(sys, "argv", ["parity.py", *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        parity.main()
    assert said in capsys.readouterr().err
