"""Reports of runs that are written here by hand, against numbers that are worked out here."""

import base64
import csv
import datetime
import html.parser
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import report
from harness import runs
from reporting import curves, measures, results, tables

ROOT = Path(report.__file__).parent
COLUMNS = ("eval/episodic_return_sampled", "eval/episodic_return_deterministic")
STAMP = "20261121-101010"


def write_run(
    runs_dir: Path,
    task: str,
    seed: int,
    returns=(10.0, 20.0, 30.0),
    *,
    status: str | None = "finished",
    seconds: bool = True,
    stamp: str = STAMP,
    error: str | None = None,
    commit: str = "abc",
    algorithm: str = "flowrl_jax",
    **args,
) -> Path:
    """A run folder with an evaluation every 100 steps and minute; without noise it gets 1 more."""
    folder = runs_dir / f"{task}__{algorithm}__{seed}__{stamp}"
    folder.mkdir(parents=True)
    args = {"env_id": task, "seed": seed, "preset": "cpu", "total_timesteps": 300} | args
    args = {"eval_interval": 100, "log_interval": 50, "num_threads": 0, "w2_coef": 0.1} | args
    command = ["flowrl_jax.py", "--env-id", task, "--seed", str(seed)]
    config = {"args": args, "git": {"commit": commit, "dirty": False}, "command": command}
    config |= {"started": "2026-11-21T10:00:00+0000", "ended": "2026-11-21T10:30:00+0000"}
    config |= {"hardware": {"devices": ["cpu: cpu"]}, "versions": {"jax": "0.10.2"}}
    config |= {"status": status} | ({"error": error} if error else {})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    lines = ["step,charts/SPS" + ",charts/seconds" * seconds + "," + ",".join(COLUMNS)]
    for k, value in enumerate(returns, start=1):
        clock = [f",{60 * k - 30}", f",{60 * k}"] if seconds else ["", ""]
        lines += [f"{100 * k - 50},7{clock[0]},,", f"{100 * k},7{clock[1]},{value},{value + 1}"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def only_run(folder: Path, **kwargs) -> results.Run:
    (run,) = results.find_runs([folder], **kwargs)
    return run


def rows_of(runs_dir: Path, steps=(), minutes=()) -> list[dict]:
    groups, _ = results.group_runs(results.find_runs([runs_dir]))
    return tables.result_rows(groups, list(steps), list(minutes))


# --- statistics -----------------------------------------------------------------------------------


def iqm_by_hand(values) -> float:
    """Sorted, a quarter of the count (rounded down) off either end, averaged."""
    values, cut = sorted(values), len(values) // 4
    kept = values[cut : len(values) - cut]
    return sum(kept) / len(kept)


def test_iqm_is_the_mean_of_the_middle():
    assert iqm_by_hand([1, 2, 3, 4, 1000]) == 3
    for values in ([1.0, 2, 3, 4, 1000], [5.0, 1, 9, 2, 8, 3, 7, 100], [4.0, 8.0], [6.0]):
        value, _, _ = measures.estimate("iqm", [np.array(values)])
        assert value == pytest.approx(iqm_by_hand(values))
    strata = [np.array([0.0, 0.1, 0.9]), np.array([0.2, 0.5, 0.6])]  # six runs, one off either end
    value, _, _ = measures.estimate("iqm", strata)
    assert value == pytest.approx((0.1 + 0.2 + 0.5 + 0.6) / 4)


def test_measures_over_tasks_by_hand():
    strata = [np.array([0.0, 0.2]), np.array([0.5, 0.7]), np.array([1.2, 1.4])]
    expected = {"mean": (0.1 + 0.6 + 1.3) / 3, "median": 0.6}
    expected["optimality_gap"] = ((1.0 + 0.8) / 2 + (0.5 + 0.3) / 2 + 0.0) / 3
    for measure, value in expected.items():
        assert measures.estimate(measure, strata)[0] == pytest.approx(value), measure


@pytest.mark.parametrize("measure", ["iqm", "mean", "median", "optimality_gap"])
def test_interval_is_that_of_every_way_to_draw_the_runs(measure):
    """27 ways for each of two tasks: the whole bootstrap distribution, stratified by task."""
    strata = [np.array([0.1, 0.25, 0.7]), np.array([0.8, 0.85, 1.3])]

    def by_hand(a, b) -> float:
        if measure == "iqm":
            return iqm_by_hand([*a, *b])
        if measure == "optimality_gap":
            return np.mean([np.mean([max(0.0, 1 - x) for x in task]) for task in (a, b)])
        return (sum(a) / 3 + sum(b) / 3) / 2  # the median of two tasks is their mean

    draws = [itertools.product(values, repeat=3) for values in strata]
    every = np.array([by_hand(a, b) for a, b in itertools.product(*map(list, draws))])
    assert every.size == 27**2
    _, low, high = measures.estimate(measure, strata)
    for bound, share in ((low, 0.025), (high, 0.975)):
        assert np.mean(every < bound - 1e-9) <= share + 0.006
        assert np.mean(every <= bound + 1e-9) >= share - 0.006


def test_interval_of_many_runs_is_the_normal_one():
    values = np.random.default_rng(1).normal(500.0, 80.0, 400)
    value, low, high = measures.estimate("mean", [values])
    error = 1.96 * values.std() / math.sqrt(values.size)
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((value - error, value + error), abs=0.06 * error)


def test_runs_are_not_drawn_across_tasks():
    """Tasks of 0 and 1,000 whose runs hardly differ: only drawing across them would spread."""
    strata = [np.array([0.0, 1.0, 2.0]), np.array([1000.0, 1001.0, 1002.0])]
    _, low, high = measures.estimate("mean", strata)
    assert 500 <= low <= high <= 502


def test_the_same_runs_give_the_same_interval_and_one_run_none():
    strata = [np.random.default_rng(5).normal(size=30)]  # so many that two seeds would differ
    assert measures.estimate("iqm", strata) == measures.estimate("iqm", strata)
    for strata in ([np.array([3.0])], [np.array([3.0]), np.array([1.0, 2.0])]):
        value, low, high = measures.estimate("mean", strata)
        assert math.isfinite(value)
        assert math.isnan(low)
        assert math.isnan(high)


def test_a_curve_takes_at_each_point_the_runs_that_are_there():
    values = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, np.nan], [8.0, 6.0, np.nan]])
    value, low, high = measures.curve("mean", [values])
    np.testing.assert_allclose(value, [4.0, 4.0, 3.0])
    assert np.isfinite(low[:2]).all()
    assert np.isnan([low[2], high[2]]).all()
    two_tasks = measures.curve("mean", [values, np.array([[np.nan, 0.0, 1.0]])])[0]
    np.testing.assert_allclose(two_tasks, [np.nan, 2.0, 2.0])


def test_scores_are_shares_of_the_suites_own_scale():
    h1 = pytest.importorskip("tasks.h1")
    for name, bar in h1.TASKS.items():
        assert measures.full_score(f"h1-{name}") == bar
    assert measures.full_score("dog-run") == 1000
    assert [measures.suite(task) for task in ("dog-run", "h1-run", "brax:ant")] == [
        "dm_control",
        "HumanoidBench",
        None,
    ]


# --- reading --------------------------------------------------------------------------------------


def test_neither_jax_nor_what_trains_is_imported():
    code = "import sys, report; print({'jax', 'harness.runs'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_folder_of_runs_py_is_read_as_it_was_written(tmp_path):
    config = {"env_id": "dog-run", "seed": 4, "preset": "cpu", "total_timesteps": 200}
    with runs.Run.create(tmp_path, "dog-run", "flowrl_jax", 4, config) as run:
        run.log(100, {"charts/seconds": 30.0, "losses/q": 1.0})
        run.log(200, {"charts/seconds": 90.0, COLUMNS[0]: 12.5, COLUMNS[1]: 13.5})
    read = only_run(tmp_path)
    assert (read.task, read.seed, read.status, read.why) == ("dog-run", 4, "finished", "")
    assert read.step.tolist() == [200]
    assert read.minutes.tolist() == [1.5]
    assert (read.returns["sampled"][0], read.returns["deterministic"][0]) == (12.5, 13.5)
    with pytest.raises(ValueError, match="bad"), runs.Run.create(tmp_path, "a-b", "x", 1, config):
        raise ValueError("bad luck")
    failed = next(r for r in results.find_runs([tmp_path]) if r.status == "failed")
    assert failed.why == "no metrics.csv; failed at step 0: ValueError: bad luck"


def test_runs_behind_links_are_found_once(tmp_path):
    made = write_run(tmp_path / "scratch", "dog-run", 1, [1.0])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(tmp_path / "scratch")
    (tmp_path / "results" / "again").symlink_to(made)
    (tmp_path / "results" / "round").symlink_to(tmp_path / "results")  # a circle
    (run,) = results.find_runs([tmp_path / "results", tmp_path / "scratch"])
    assert (run.task, run.status) == ("dog-run", "finished")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.json", "[]", "config.json: damaged"),
        ("config.json", '{"args": null}', "config.json: damaged"),
        ("config.json", '{"args": {"seed": "one"}}', "config.json: damaged"),
        ("config.json", '{"hardware": null}', "config.json: damaged"),
        ("config.json", '{"hardware": {"devices": [{"a": 1}]}}', "config.json: damaged"),
        ("config.json", '{"git": "abc"}', "config.json: damaged"),
        ("metrics.csv", "step,charts/seconds\ninf,1\n", "metrics.csv: cannot convert"),
    ],
)
def test_a_damaged_run_is_listed_and_the_others_are_shown(tmp_path, file, text, says):
    write_run(tmp_path, "dog-run", 1, [1.0])
    (write_run(tmp_path, "dog-run", 2, [2.0]) / file).write_text(text)
    groups, _ = results.group_runs(results.find_runs([tmp_path]))
    found = [run for group in groups for run in group.runs]
    assert [1.0] in [run.returns["sampled"].tolist() for run in found if run.status == "finished"]
    assert any(says in run.why for run in found)


def test_a_run_without_configuration_ends_where_it_got_to(tmp_path):
    (write_run(tmp_path, "dog-run", 1, [1.0, 2.0]) / "config.json").unlink()
    row, _ = rows_of(tmp_path)
    assert (row["at"], row["runs"], row["mean"]) == (200, 1, 2.0)


def test_collected_csv_files_are_runs_too():
    folder = ROOT / "benchmarks" / "learning"
    found = results.find_runs([folder])
    assert len(found) == len(list(folder.glob("*.csv")))
    last = {}
    for path in folder.glob("*.csv"):
        with path.open() as file:
            last[path] = [row[COLUMNS[0]] for row in csv.DictReader(file) if row[COLUMNS[0]]][-1]
    for run in found:
        assert run.returns["sampled"][-1] == float(last[run.folder])
        assert run.status == "finished"
    assert only_run(found[0].folder).task == found[0].task


def test_how_a_run_ended_is_told(tmp_path):
    write_run(tmp_path, "a-failed", 1, status="failed", error="FloatingPointError: not finite")
    write_run(tmp_path, "a-stopped", 1, status="interrupted")
    write_run(tmp_path, "a-running", 1, status="running")
    silent = write_run(tmp_path, "a-silent", 1, status="running")
    for file in (silent / "config.json", silent / "metrics.csv", silent):
        os.utime(file, (1000, 1000))
    (write_run(tmp_path, "a-empty", 1, status="running") / "metrics.csv").unlink()
    (write_run(tmp_path, "a-bare", 1) / "config.json").unlink()
    (write_run(tmp_path, "a-broken", 1) / "metrics.csv").write_text("step,x\n1,what\n")
    (tmp_path / f"a-nothing__flowrl_jax__3__{STAMP}").mkdir()
    told = {run.task: (run.status, run.why) for run in results.find_runs([tmp_path])}
    assert told["a-failed"] == ("failed", "failed at step 300: FloatingPointError: not finite")
    assert told["a-stopped"] == ("interrupted", "interrupted at step 300 by a signal")
    assert told["a-running"] == ("running", "still running, at step 300")
    assert told["a-silent"][0] == "killed"
    assert "killed at step 300: it never said that it ended" in told["a-silent"][1]
    assert told["a-empty"] == ("running", "no metrics.csv; still running, at step 0")
    assert told["a-bare"] == ("missing", "config.json: missing")
    assert told["a-broken"][1].startswith("metrics.csv: could not convert")
    assert told["a-nothing"] == ("missing", "config.json: missing; no metrics.csv")


def test_what_a_kill_or_a_resume_leaves_in_the_csv(tmp_path):
    folder = write_run(tmp_path, "a-b", 1)
    with (folder / "metrics.csv").open("a") as file:
        file.write("200,7,5,77,78\n350,7,10,,\n400,7,60,88,89\n500,7,9,9")  # 200 again; a cut row
    run = only_run(folder)
    assert run.step.tolist() == [100, 200, 300, 400]
    assert run.returns["sampled"].tolist() == [10, 77, 30, 88]
    assert run.reached == 400


def test_a_clock_that_begins_anew_goes_on():
    seconds = np.array([10.0, 20.0, 5.0, 15.0, 2.0])
    np.testing.assert_allclose(results._increasing(seconds), [10, 20, 25, 35, 37])


def test_runs_csv_of_benchmark_sh_tells_of_jobs_without_a_folder(tmp_path):
    kept = write_run(tmp_path / "runs", "a-b", 1, status="running")
    header = "task,seed,attempt,exit_code,started,seconds,folder,error\n"
    soon = datetime.datetime.now().astimezone().isoformat()
    ledger = f'a-b,1,1,137,{soon},60,runs/{kept.name},"gone"\n'
    ledger += (
        'a-b,2,1,1,,,"","first"\na-b,2,2,2,,,"","--gamma: too large"\na-b,3,,,,,,not started\n'
    )
    (tmp_path / "runs.csv").write_text(header + 'a-b,1,1,1,,,"","no"\n' + ledger)
    told = {run.seed: (run.status, run.why) for run in results.find_runs([tmp_path])}
    assert told == {
        1: ("killed", "killed at step 300, exit code 137"),
        2: ("missing", "no run folder: exit code 2: --gamma: too large"),
        3: ("missing", "no run folder: not started"),
    }
    (tmp_path / "runs.csv").write_text(header + ledger.replace(soon, "2026-01-01T00:00:00+00:00"))
    assert results.find_runs([tmp_path])[0].status == "running"  # written to since: resumed


# --- what is put together -------------------------------------------------------------------------


def test_different_settings_are_different_rows(tmp_path):
    write_run(tmp_path, "a-b", 1, [1, 2, 100])
    write_run(
        tmp_path, "a-b", 2, [1, 2, 200], num_threads=8, total_timesteps=299, checkpoint_replay=False
    )
    write_run(tmp_path, "a-b", 3, [1, 2, 900], w2_coef=1.0)
    write_run(tmp_path, "a-b", 4, [1, 2, 5000], preset="paper")
    found = {(r["settings"], r["seeds"]): r["mean"] for r in rows_of(tmp_path, [300])[::2]}
    assert found == {
        ("flowrl_jax cpu, --w2-coef 0.1", "1 2"): 150,
        ("flowrl_jax cpu, --w2-coef 1.0", "3"): 900,
        ("flowrl_jax paper", "4"): 5000,
    }


def test_algorithms_are_kept_apart(tmp_path):
    """Task, seed and flags the same; config.json names the algorithm, or the folder alone does."""
    for task in ("dog-run", "dog-walk"):
        write_run(tmp_path / "f", task, 1, [1, 2, 100])
        other = write_run(tmp_path / "s", task, 1, [1, 2, 700], algorithm="sac_jax")
    config = json.loads((other / "config.json").read_text()) | {"algorithm": "sac_jax"}
    (other / "config.json").write_text(json.dumps(config))
    groups, replaced = results.group_runs(results.find_runs([tmp_path]))
    rows = tables.result_rows(groups, [300], [])
    found = {(row["task"], row["settings"]): row["mean"] for row in rows[::2]}
    means = {"flowrl_jax cpu": 100, "sac_jax cpu": 700}
    assert not replaced
    assert found == {(t, n): m for t in ("dog-run", "dog-walk") for n, m in means.items()}
    assert {label for label, _ in results.by_suite(groups)} == set(means)
    # A job of one that never began is missing, though the other's run of task and seed is there.
    jobs = "task,seed,attempt,exit_code,folder,error\ndog-run,2,,,,not started\n"
    (tmp_path / "s" / "runs.csv").write_text(jobs)
    write_run(tmp_path / "f", "dog-run", 2)
    runs_found = results.find_runs([tmp_path / "f", tmp_path / "s"])
    assert [run.status for run in runs_found if run.seed == 2] == ["finished", "missing"]


def test_a_flag_of_the_command_line_is_named_even_where_all_have_it(tmp_path):
    folder = write_run(tmp_path, "a-b", 1)
    config = json.loads((folder / "config.json").read_text())
    config["command"] += ["--w2-coef", "0.1", "--num-threads=2"]
    (folder / "config.json").write_text(json.dumps(config))
    assert rows_of(tmp_path, [300])[0]["settings"] == "flowrl_jax cpu, --w2-coef 0.1"


def test_devices_are_not_averaged_and_other_differences_are_noted(tmp_path):
    write_run(tmp_path, "a-b", 1)
    write_run(tmp_path, "a-b", 2, commit="def")
    other = write_run(tmp_path, "a-b", 3)
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace("cpu: cpu", "gpu: H200"))
    rows = rows_of(tmp_path, [300])
    assert [(row["seeds"], row["notes"]) for row in rows[::2]] == [
        ("1 2", "2 different git commits: abc, def"),
        ("3", ""),
    ]


def test_a_seed_counts_once(tmp_path):
    write_run(tmp_path, "a-b", 1, [1, 2, 10], stamp="20261121-000001")
    later = write_run(tmp_path, "a-b", 1, [1, 2, 30], stamp="20261121-000002")
    config = (later / "config.json").read_text().replace("T10:00:00", "T10:10:00")
    (later / "config.json").write_text(config)
    last = write_run(tmp_path, "a-b", 1, stamp="20261121-000003", status="failed")
    config = (last / "config.json").read_text().replace("T10:00:00", "T10:20:00")
    (last / "config.json").write_text(config)
    groups, replaced = results.group_runs(results.find_runs([tmp_path]))
    assert [run.folder.name for run in groups[0].runs] == [later.name]
    assert len(replaced) == 2
    assert all(note.startswith("replaced by a-b__flowrl_jax__1") for _, _, note in replaced)
    assert len(tables.run_table(groups, replaced)) == 3


def test_a_seed_that_other_tasks_have_is_missing(tmp_path):
    write_run(tmp_path, "a-b", 1)
    write_run(tmp_path, "a-b", 2)
    write_run(tmp_path, "c-d", 2)
    row = rows_of(tmp_path, [300])[-1]
    assert (row["task"], row["runs"], row["of"]) == ("c-d", 1, 2)
    assert row["missing"] == ["seed 1: no run folder, while other tasks have this seed"]


# --- numbers and reasons --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "at", "expected"),
    [
        ("step", 100, 10),
        ("step", 199, 10),
        ("step", 200, 20),
        ("step", 399, 30),  # as a longer run's would be
        ("step", 400, "ended at step 300"),
        ("step", 99, "first evaluation at 100 environment steps"),
        ("minutes", 1, 10),
        ("minutes", 2.5, 20),
        ("minutes", 0.5, "first evaluation at 1 minutes"),
        ("minutes", 9, "ended at step 300 after 3 minutes"),
    ],
)
def test_a_point_takes_the_nearest_evaluation_before_it(tmp_path, axis, at, expected):
    run = only_run(write_run(tmp_path, "a-b", 1))
    value, reason = results.value_at(run, "sampled", axis, at)
    if isinstance(expected, str):
        assert math.isnan(value)
        assert reason == expected
    else:
        assert (value, reason) == (expected, "")
        assert results.value_at(run, "deterministic", axis, at)[0] == expected + 1


def test_a_run_that_fell_short_says_why(tmp_path):
    write_run(tmp_path, "a-b", 1, [10, 20], status="failed", error="ValueError: no")
    write_run(tmp_path, "a-b", 2)
    write_run(tmp_path, "a-b", 3, [50])
    rows = {row["at"]: row for row in rows_of(tmp_path, [100, 300])[::2]}
    assert rows[100]["runs"] == 3
    assert (rows[300]["runs"], rows[300]["of"], rows[300]["mean"]) == (1, 3, 30)
    assert rows[300]["missing"] == [
        "seed 1: failed at step 200: ValueError: no",
        "seed 3: ended at step 100",
    ]


def test_runs_without_a_clock_have_no_wall_clock(tmp_path):
    write_run(tmp_path, "a-b", 1, seconds=False)
    row = rows_of(tmp_path, [], [1.0])[0]
    assert "iqm" not in row
    assert row["missing"] == ["seed 1: no charts/seconds in its metrics.csv: an older run"]


def test_scores_over_tasks_by_hand(tmp_path):
    for seed, (dog, cat) in enumerate([(100, 900), (300, 500), (200, 700)], start=1):
        write_run(tmp_path, "dog-run", seed, [0, 0, dog])
        write_run(tmp_path, "cat-run", seed, [0, 0, cat])
        write_run(tmp_path, "h1-run", seed, [0, 0, 70])
    write_run(tmp_path, "h1-maze", 1, [0, 0, 600])
    groups, _ = results.group_runs(results.find_runs([tmp_path]))
    rows = {row["task"]: row for row in tables.aggregate_rows(groups, [], [])[::2]}
    dm = rows["dm_control, 2 tasks"]
    assert dm["iqm"] == pytest.approx((0.2 + 0.3 + 0.5 + 0.7) / 4)
    assert dm["mean"] == pytest.approx((0.2 + 0.7) / 2)
    assert dm["optimality_gap"] == pytest.approx((0.8 + 0.3) / 2)
    assert (dm["runs"], dm["of"]) == (6, 6)
    h1 = rows["HumanoidBench, 2 tasks"]
    assert h1["mean"] == pytest.approx((0.1 + 0.5) / 2)
    assert (h1["runs"], h1["of"]) == (4, 6)
    assert math.isnan(h1["mean_low"])  # one run of the maze
    assert dm["missing"] == []
    assert h1["missing"] == ["every run counts alike in the IQM (h1-maze 1, h1-run 3)"]
    late = tables.aggregate_rows(groups, [1000], [])[0]
    assert "iqm" not in late
    assert late["missing"] == ["no number for cat-run, dog-run"]


# --- references -----------------------------------------------------------------------------------


def test_published_figures_say_what_they_are():
    rows = tables.read_references(ROOT / "benchmarks" / "reference.csv")
    for row in rows:
        assert float(row["value"]) > 0
        assert row["statistic"] in ("mean", "IQM")
        assert row["evaluation"]
        assert row["source"]
        assert bool(row["at"]) != bool(row["minutes"])
    found = {(row["task"], row["method"]): (row["value"], row["statistic"]) for row in rows}
    assert found["dog-run", "FlowRL A"] == ("367", "mean")
    assert found["dog-run", "FlowRL B"] == ("450", "IQM")
    assert found["h1-reach", "FlashSAC"] == ("4836", "mean")
    assert ("h1-stand", "FlowRL B") not in found
    tasks = {row["task"] for row in rows if ":" not in row["task"]}
    assert len(tasks) == 15
    known = (ROOT / "docs" / "tasks.md").read_text()
    for task in tasks:
        assert f"| {task} |" in known, task


# --- the whole report -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report of everything at once: folder, and what it was made of."""
    base = tmp_path_factory.mktemp("report")
    for seed, last in enumerate([100, 200, 300, 400, 1000], start=1):
        write_run(base / "runs", "dog-run", seed, [10, 50, last])
        write_run(base / "runs", "dog-walk", seed, [20, 60, last - 50])
    error = "ValueError: <script>alert('x')</script> | a pipe"
    failed = write_run(base / "runs", "dog-run", 6, [10], status="failed", error=error)
    write_run(base / "runs", "dog-run", 1, [9, 9, 9], w2_coef=1.0, stamp="20261121-111111")
    (failed / "videos").mkdir()
    (failed / "videos" / "early.mp4").write_bytes(b"not a film, but embedded as it is")
    page, out = base / "pages" / "report.html", base / "out"
    code = report.main([str(base / "runs"), "--out", str(out), "--html", str(page)])
    assert code == 0
    return out, page


def test_results_csv_holds_the_numbers(whole):
    with (whole[0] / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(r for r in rows if r["task"] == "dog-run" and r["settings"].endswith("0.1"))
    assert (row["evaluation"], row["axis"], row["at"]) == ("sampled", "step", "300")
    assert (row["runs"], row["of"], row["seeds"]) == ("5", "6", "1 2 3 4 5")
    assert float(row["iqm"]) == 300  # without 100 and 1,000
    assert float(row["mean"]) == 400
    assert 100 <= float(row["iqm_low"]) < 300 < float(row["iqm_high"]) <= 1000
    assert row["missing"].startswith("seed 6: failed at step 100: ValueError: <script>")
    walk = next(r for r in rows if r["task"] == "dog-walk" and r["evaluation"] == "no noise")
    assert float(walk["iqm"]) == 251
    assert "seed 6: no run folder" in walk["missing"]


def test_results_md_shows_all_runs_and_the_published(whole):
    text = (whole[0] / "results.md").read_text()
    assert re.search(
        r"^\| dog-run \| flowrl_jax cpu, --w2-coef 0.1 \| 300 steps \| 5/6 \| 300 \[", text, re.M
    )
    assert re.search(
        r"^\| dog-run \| flowrl_jax cpu, --w2-coef 1.0 \| 300 steps \| 1/1 \| 9.00 \|", text, re.M
    )
    assert re.search(r"^\| dog-run \| 6 \|.*failed.*\\\| a pipe \|$", text, re.M)
    assert re.search(r"^\| dog-walk \| 6 \|.*missing", text, re.M)
    assert re.search(r"^\| dog-run \| FlowRL B \| 1000000 \| 450 \| IQM \| not stated", text, re.M)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert "curves/dog-run__step.png" in pictures
    assert "curves/all_of_dm_control__minutes.png" in pictures
    for name in pictures:
        assert (whole[0] / name).read_bytes().startswith(b"\x89PNG")


class Page(html.parser.HTMLParser):
    """What a page would load, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.text, self.tags = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "srcset", "poster", "data", "xlink:href", "action")
        self.loads += [value for name, value in attrs if name in names]

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_all_that_it_shows(whole):
    source = whole[1].read_text()
    page = Page(source)
    assert "script" not in page.tags
    assert all(load.startswith(("#", "data:")) for load in page.loads), page.loads
    assert not re.search(r"@import|url\((?!#)", source)
    (video,) = (load for load in page.loads if load.startswith("data:video"))
    data = base64.b64decode(video.removeprefix("data:video/mp4;base64,"))
    assert data == b"not a film, but embedded as it is"
    words = " ".join(page.text.split())
    for part in ("2 of 13 runs", "300 [", "5/6", "<script>alert('x')</script> | a pipe"):
        assert part in words, part
    assert "no run folder, while other tasks have this seed" in words
    drawn = re.findall(r"<svg.*?</svg>", source, re.S)
    assert len(drawn) == 2 * 3  # two tasks and their suite, by steps and by wall-clock
    for picture in drawn:
        assert not re.findall(r"#[0-9a-f]{6}\b", picture)  # a colour that no theme changes
    links = {load[1:] for load in page.loads if load.startswith("#") and not load.startswith("#D")}
    anchors = {name for name in links if f'id="{name}"' not in source}
    assert not anchors


def test_a_curve_is_drawn_through_the_numbers(tmp_path):
    for seed, last in ((1, 100), (2, 300)):
        write_run(tmp_path, "dog-run", seed, [10, 50, last])
    write_run(tmp_path, "dog-run", 3, [70], status="failed")
    groups, _ = results.group_runs(results.find_runs([tmp_path]))
    reference = [
        {"method": "Other", "value": "450", "at": "1000", "minutes": "", "task": "dog-run"}
    ]
    (axes,) = curves.task_figure(groups, "step", reference).axes
    lines = {line.get_label(): line for line in axes.lines}
    line = lines["sampled, 3 runs"]
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.2, 0.3])  # thousands
    np.testing.assert_allclose(line.get_ydata(), [30, 50, 200])
    np.testing.assert_allclose(lines["no noise"].get_ydata(), [31, 51, 201])
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [(float(x.get_xdata()[0]), float(x.get_ydata()[0])) for x in crosses] == [(0.1, 70)]
    assert "Other 450" in [text.get_text() for text in axes.texts]
    assert not curves.task_figure(groups, "minutes", reference).axes[0].texts
    (axes,) = curves.task_figure(groups, "minutes", []).axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [1, 2, 3])


def test_many_settings_leave_the_curves_their_place(tmp_path):
    flags = {f"some_longer_flag_{k}": k for k in range(6)}
    for seed in range(1, 9):
        write_run(tmp_path, "dog-run", seed, [10, 50], **{n: v + seed for n, v in flags.items()})
    groups, _ = results.group_runs(results.find_runs([tmp_path]))
    figure = curves.task_figure(groups, "step", [])
    figure.savefig(tmp_path / "figure.png")
    (legend,), (axes,) = figure.legends, figure.axes
    assert len(legend.get_texts()) == len(groups) + 1  # and what is dashed
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert (box.max <= figure.bbox.max).all()
    assert box.y0 >= axes.get_window_extent().y1
    assert axes.get_window_extent().height > 1.5 * figure.dpi


def test_names_of_published_figures_do_not_overlap(tmp_path):
    write_run(tmp_path, "dog-stand", 1, [10, 50, 900])
    groups, _ = results.group_runs(results.find_runs([tmp_path]))
    references = tables.read_references(ROOT / "benchmarks" / "reference.csv")
    references = [row for row in references if row["task"] == "dog-stand"]
    figure = curves.task_figure(groups, "step", references)
    figure.savefig(tmp_path / "figure.png")
    boxes = sorted(
        (text.get_window_extent().y0, text.get_window_extent().y1) for text in figure.axes[0].texts
    )
    assert len(boxes) == 6
    for (_, top), (bottom, _) in itertools.pairwise(boxes):
        assert top <= bottom + 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "PATH"),
        (["nowhere"], "nowhere: no such file or folder"),
        ([str(ROOT / "benchmarks" / "bandit.csv")], "or a CSV file with a JSON beside it)"),
        ([str(ROOT / "README.md")], "README.md: no run in it"),
        ([".", "--html", "results.md"], "--html: results.md does not end in .html"),
        (["."], "no run in it"),
        ([".", "--steps", "none"], "--steps: needs a number above 0, got 'none'"),
        ([".", "--minutes", "-1"], "--minutes"),
        ([".", "--reference", "nowhere.csv"], "--reference: nowhere.csv: No such file"),
        ([".", "--reference", os.devnull], f"--reference: {os.devnull}: there is no row in it"),
        ([".", "--unknown"], "--unknown"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, says):
    command = [sys.executable, str(ROOT / "report.py"), *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr
    assert not list(tmp_path.iterdir())


# --- in a browser ---------------------------------------------------------------------------------

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
MEASURE = """<!doctype html><iframe src="report.html" style="width:%dpx;height:900px;border:0">
</iframe><script>
onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  if (%d) page.querySelector("#theme-dark").checked = true;
  const svgs = [...page.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
  const result = {
    width: page.documentElement.scrollWidth,
    visible: svgs.filter(box => box.width > 200 && box.height > 100).length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("data:")),
    back: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.querySelector("svg text")).fill,
  };
  document.body.dataset.result = JSON.stringify(result);
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_page_in_a_browser(whole, tmp_path, width, dark):
    shutil.copy(whole[1], tmp_path / "report.html")
    (tmp_path / "measure.html").write_text(MEASURE % (width, dark))
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--allow-file-access-from-files"]
        command += ["--window-size=1300,1000", "--dump-dom", (tmp_path / "measure.html").as_uri()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r'data-result="(.*?)"', ended.stdout)
    assert found, ended.stderr[-2000:]
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result["width"] <= width  # nothing sticks out
    assert result["visible"] == 3
    assert result["loaded"] == []
    brightness = {
        name: sum(map(int, re.findall(r"\d+", result[name])[:3])) for name in ("back", "ink")
    }
    assert (brightness["back"] < brightness["ink"]) == dark
