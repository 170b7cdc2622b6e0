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
    header = "env_id,preset,algorithm,ratio\nx,cpu,flowrl_jax,1\n"
    (tmp_path / "throughput_algorithms.csv").write_text(header)
    return tmp_path


def test_finished_runs_are_kept_and_their_means_told(kept, monkeypatch):
    monkeypatch.setattr(development, "STEPS", 60_000)
    write_run(kept / "r", "walker-run", 1, [0, 100, 100, 100, 100, 200])
    write_run(kept / "r", "walker-run", 2, [0, 300, 300, 300, 300, 400, 1000])
    write_run(kept / "r", "walker-run", 3, [1000] * 5)  # ended before
    write_run(kept / "r", "hopper-hop", 1, [5], status="stopped")
    names = ["walker-run__1", "walker-run__2", "walker-run__3"]
    assert development.collect("a_variant", kept / "r") == names
    row = development.table().splitlines()[-1]
    assert row == "| a_variant | 60,000 |  | 300, 220 (2) |  |  |"
    development.plot()
    assert (kept / "development" / "development.png").stat().st_size > 1_000


def test_at_equal_time_a_fast_algorithm_has_more_steps(kept, monkeypatch):
    monkeypatch.setattr(development, "STEPS", 40_000)
    (kept / "throughput_algorithms.csv").write_text(
        "env_id,preset,algorithm,ratio\nx,cpu,flowrl_jax,1\nx,cpu,sac_jax,1.7\ny,cpu,sac_jax,1.4\n"
        "y,gpu,sac_jax,9\n"
    )
    write_run(kept / "r", "walker-run", 1, [1, 2, 3, 4, 5, 6, 7])
    development.collect("sac_cpu", kept / "r")
    assert development.table().splitlines()[2:] == [
        "| sac_cpu | 40,000 |  | 4, 2 (1) |  |  |",
        "| sac_cpu | 60,000 |  | 6, 4 (1) |  |  |",
    ]


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
    assert "worth 0.50, Q_phi says 7.0 and Q_beta 3.0" in said
    assert late_start.summary("x", run[2:]) == "x: never flat"
