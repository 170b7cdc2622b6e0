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
    return tmp_path


def test_finished_runs_are_kept_and_their_means_told(kept):
    write_run(kept / "r", "walker-run", 1, [0, 100, 100, 100, 100, 200])
    write_run(kept / "r", "walker-run", 2, [0, 300, 300, 300, 300, 400])
    write_run(kept / "r", "hopper-hop", 1, [5], status="stopped")
    assert development.collect("a_variant", kept / "r") == ["walker-run__1", "walker-run__2"]
    row = development.table().splitlines()[-1]
    assert row == "| a_variant |  | 300, 220 (2) |  |  |"
    development.plot()
    assert (kept / "development" / "development.png").stat().st_size > 1_000


def test_runs_of_different_lengths_are_not_averaged(kept):
    write_run(kept / "r", "walker-run", 1, [1, 2])
    write_run(kept / "r", "walker-run", 2, [1])
    development.collect("a_variant", kept / "r")
    with pytest.raises(AssertionError, match="runs of one variant end at"):
        development.table()


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
