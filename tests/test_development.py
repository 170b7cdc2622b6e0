"""The protocol's runs: what is kept of them, their table, and what is read off a flat start."""

import json

import numpy as np
import pytest

from benchmarks import development, late_start

HEADER = "step,eval/episodic_return_sampled,losses/q,losses/q_behaviour\n"


def write_run(results, task, seed, returns, status="finished"):
    folder = results / "runs" / f"{task}__flowrl_jax__{seed}__20260101-000000"
    folder.mkdir(parents=True)
    config = {"status": status, "args": {"env_id": task, "seed": seed}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        f"{10_000 * k},{value},7.0,3.0\n{10_000 * k + 2_000},,7.0,3.0\n"  # not all evaluate
        for k, value in enumerate(returns, 1)
    ]
    (folder / "metrics.csv").write_text(HEADER + "".join(rows))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(development, "FOLDER", tmp_path / "development")
    (tmp_path / "development").mkdir()
    speeds = ["env_id,algorithm,num_envs,batch_size,steps/s"]
    speeds += ["x,sac_jax,8,128,170", "y,sac_jax,8,128,140", "x,flowrl_jax,64,512,50"]
    (tmp_path / "throughput_algorithms.csv").write_text("\n".join(speeds) + "\n")
    return tmp_path


def test_finished_runs_are_kept_and_their_means_told(kept, monkeypatch):
    monkeypatch.setattr(development, "STEPS", 60_000)
    write_run(kept / "r", "walker-run", 1, [0, 100, 100, 100, 100, 200])
    write_run(kept / "r", "walker-run", 2, [0, 300, 300, 300, 300, 400, 1000])
    write_run(kept / "r", "walker-run", 3, [1000] * 5)  # ended before
    write_run(kept / "r", "hopper-hop", 1, [5], status="stopped")
    names = ["walker-run__1", "walker-run__2", "walker-run__3"]
    assert development.collect("flowrl_8x128", kept / "r") == names
    (row,) = development.table().splitlines()[2:]
    assert row == "| 60,000 steps | flowrl_8x128 | 60,000 |  | 300, 220 (2) |  |  |"
    development.plot()
    assert (kept / "development" / "development.png").stat().st_size > 1_000


def test_after_equal_time_what_is_faster_has_more_steps(kept, monkeypatch):
    monkeypatch.setattr(development, "STEPS", 40_000)
    monkeypatch.setattr(development, "MINUTES", (7, 100))
    write_run(kept / "r", "walker-run", 1, [1, 2, 3, 4, 5, 6, 7])
    for variant in ("sac_8x128", "flowrl_64x512", "not_timed_9x9"):
        development.collect(variant, kept / "r")
    assert development.table().splitlines()[2:] == [
        "| 40,000 steps | sac_8x128 | 40,000 |  | 4, 2 (1) |  |  |",
        "| 7 minutes | flowrl_64x512 | 21,000 |  | 2, 2 (1) |  |  |",
        "| 7 minutes | sac_8x128 | 65,000 |  | 6, 4 (1) |  |  |",  # mean of two tasks
    ]  # and none has gone on for 100 minutes


def test_the_mean_curve_is_of_equal_steps():
    fine = np.array([10_000, 20_000, 30_000, 40_000]), np.array([1.0, 2.0, 3.0, 4.0])
    coarse = np.array([20_000, 40_000, 60_000]), np.array([4.0, 8.0, 100.0])
    steps, mean = development.mean_curve([fine, coarse])
    np.testing.assert_allclose(steps, [20, 40])
    np.testing.assert_allclose(mean, [3, 6])


def test_the_page_has_what_is_kept():
    assert development.table() in (development.FOLDER / "README.md").read_text()


def test_a_flat_start_ends_with_the_first_return(tmp_path):
    write_run(tmp_path, "humanoid-stand", 1, [4, 6, 50, 5])
    (path,) = tmp_path.glob("runs/*/metrics.csv")
    run = late_start.rows(path)
    np.testing.assert_allclose([row["value"] for row in run], [0.4, 0.6, 5.0, 0.5])
    assert [row["step"] for row in late_start.flat(run)] == [10_000, 20_000]
    said = late_start.summary("x", run)
    assert "flat to step 20,000" in said
    assert "worth 0.50, Q_phi says 7.0 (7.0 to 7.0) and Q_beta 3.0" in said
    assert late_start.summary("x", run[2:]) == "x: never flat"
