"""The protocol's runs: what is kept of them, their table, and what is read off a flat start."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import late_start, protocol
from harness.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
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
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    speeds = ["env_id,algorithm,num_envs,batch_size,steps/s"]
    speeds += ["walker-run,sac_jax,8,128,170", "y,sac_jax,8,128,140", "x,flowrl_jax,64,512,50"]
    speeds += ["cheetah-run,sac_jax,1,1,200"]
    (tmp_path / "throughput_algorithms.csv").write_text("\n".join(speeds) + "\n")
    ratios = ["env_id,algorithm,num_envs,batch_size,steps/s,ratio"]
    ratios += ["cheetah-run,sac_jax,1,1,50,1.000", "dog-walk,sac_jax,1,1,25,0.500"]
    (tmp_path / "task_speed.csv").write_text("\n".join(ratios) + "\n")
    return tmp_path


def test_finished_runs_are_kept_and_their_means_told(kept, monkeypatch):
    monkeypatch.setattr(protocol, "STEPS", 60_000)
    write_run(kept / "r", "walker-run", 1, [0, 100, 100, 100, 100, 200])
    write_run(kept / "r", "walker-run", 2, [0, 300, 300, 300, 300, 400, 1000])
    write_run(kept / "r", "walker-run", 3, [1000] * 5)  # ended before
    write_run(kept / "r", "hopper-hop", 1, [5], status="stopped")
    names = ["walker-run__1", "walker-run__2", "walker-run__3"]
    assert protocol.collect("flowrl_8x128", kept / "r") == names
    (row,) = protocol.table("development").splitlines()[2:]
    assert row == "| 60,000 steps | walker-run | 300 [200, 400], 220 (2) |"
    protocol.plot("development")
    assert (kept / "development" / "curves.png").stat().st_size > 1_000


def test_after_equal_time_what_is_faster_has_more_steps(kept, monkeypatch):
    monkeypatch.setattr(protocol, "STEPS", 40_000)
    monkeypatch.setattr(protocol, "MINUTES", {"development": (6, 7, 100)})
    write_run(kept / "r", "walker-run", 1, [1, 2, 3, 4, 5, 6, 7])
    variants = ("flowrl_64x512", "flowrl_64x512_mean", "not_timed_9x9", "sac_8x128")
    for variant in variants:
        protocol.collect(variant, kept / "r")
    assert protocol.rows("development") == [
        ["40,000 steps", "walker-run", "4, 2 (1)", "4, 2 (1)", "4, 2 (1)", "4, 2 (1)", ""],
        ["6 minutes", "walker-run", "1, 1 (1)", "1, 1 (1)", "", "6, 4 (1)", ""],  # 18,000; 61,200
        ["7 minutes", "walker-run", "2, 2 (1)", "2, 2 (1)", "", "7, 5 (1)", ""],  # 21,000; 71,400
    ]  # and none has gone on for 100 minutes


def test_a_task_not_timed_takes_the_mean_of_those_that_were(kept):
    speeds = protocol.Speeds(kept)
    assert speeds.of("sac_8x128", "walker-run") == 60 * 170
    assert speeds.of("sac_8x128", "walker-walk") == 60 * 170  # the same robot
    assert speeds.of("sac_8x128", "dog-walk") == 60 * 155
    assert speeds.of("sac_1x256", "dog-walk") is None


def test_a_task_timed_on_another_machine_is_as_much_slower_than_the_cheetah_here(kept):
    speeds = protocol.Speeds(kept)
    assert speeds.of("sac_1x1", "cheetah-run") == 60 * 200
    assert speeds.of("sac_1x1", "dog-walk") == 60 * 100  # there 25 beside 50
    assert speeds.of("sac_1x1", "dog-run") == 60 * 100  # the same robot
    assert speeds.of("sac_1x1", "hopper-hop") == 60 * 200


def test_over_all_tasks_there_is_an_iqm_only_of_who_ran_them_all(kept, monkeypatch):
    monkeypatch.setattr(protocol, "STEPS", 10_000)
    for number, task in enumerate(protocol.SETS["reported"]):
        for seed in (1, 2):
            write_run(kept / "all", task, seed, [100 * number])
            if number:
                write_run(kept / "some", task, seed, [500])
    protocol.collect("all_8x128", kept / "all")
    protocol.collect("some_8x128", kept / "some")
    protocol.collect("uneven_8x128", kept / "all")
    (kept / "reported" / "uneven_8x128" / "dog-walk__2.csv").unlink()
    protocol.collect("single_8x128", kept / "all")
    for path in (kept / "reported" / "single_8x128").glob("*__2.csv"):
        path.unlink()
    write_run(kept / "third", "dog-walk", 3, [9_000])  # no other task has a third
    protocol.collect("zmore_8x128", kept / "all")
    protocol.collect("zmore_8x128", kept / "third")
    *tasks, over_all = protocol.rows("reported")
    assert len(tasks) == len(protocol.SETS["reported"])
    # twice 0, 100, ... 900 without the lowest five and the highest five: 200, 300 ... 700
    expected = np.mean([0.2] + [0.3, 0.4, 0.5, 0.6] * 2 + [0.7])
    assert over_all == [
        "10,000 steps",
        "**IQM / 1,000**",
        f"{expected:.3f} [{expected:.3f}, {expected:.3f}] (2)",  # both seeds alike
        "",
        "",
        "",
        f"{expected:.3f} [{expected:.3f}, {expected:.3f}] (2)",  # without the third
        "",
    ]
    assert tasks[0][-1] == "FlowRL A 573, FlowRL B 869, SAC 274"  # as the reference table has it
    protocol.plot("reported")


def test_of_more_variants_than_tasks_each_has_a_row(kept, monkeypatch):
    monkeypatch.setattr(protocol, "STEPS", 20_000)
    monkeypatch.setattr(protocol, "MINUTES", {"development": (6,)})
    write_run(kept / "a", "humanoid-stand", 1, [1, 2, 3, 4, 5, 6, 7])
    write_run(kept / "b", "walker-run", 1, [9, 8])
    for letter in "vwxyz":
        protocol.collect(letter, kept / "a")
    protocol.collect("sac_8x128", kept / "a")
    protocol.collect("z", kept / "b")
    assert protocol.table("development").splitlines() == [
        "| after | variant | walker-run | humanoid-stand |",
        "|---|---|---|---|",
        "| 20,000 steps | sac_8x128 |  | 2, 2 (1) |",
        *(f"| 20,000 steps | {letter} |  | 2, 2 (1) |" for letter in "vwxy"),
        "| 20,000 steps | z | 8, 8 (1) | 2, 2 (1) |",
        "| 6 minutes | sac_8x128 |  | 5, 3 (1) |",  # 155 a second
        "|  | published |  | FlowRL A 478, FlowRL B 931, SAC 353 |",
    ]


def test_runs_of_other_tasks_are_turned_away(kept):
    write_run(kept / "r", "cartpole-swingup", 1, [1])
    with pytest.raises(RunError, match="cartpole-swingup is no task of PROTOCOL"):
        protocol.collect("flowrl_8x128", kept / "r")
    write_run(kept / "s", "humanoid-stand", 1, [1])
    with pytest.raises(RunError, match=r"humanoid-stand is no task .* for w2_coef=0"):
        protocol.collect("w2_coef=0", kept / "s")


BROKEN = {  # of the last of several runs -> what is said of it
    "config.json": ("not json", "config.json is damaged"),
    "metrics.csv": (HEADER, "has no evaluation"),
}


@pytest.mark.parametrize("file", BROKEN)
def test_where_one_run_cannot_be_kept_none_is(file, kept):
    for seed in (1, 2):
        write_run(kept / "r", "walker-run", seed, [1])
    content, said = BROKEN[file]
    (*_, last) = sorted(kept.glob(f"r/runs/*/{file}"))
    last.write_text(content)
    with pytest.raises(RunError, match=said):
        protocol.collect("flowrl_8x128", kept / "r")
    last.unlink()
    if file == "metrics.csv":
        with pytest.raises(RunError, match="No such file"):
            protocol.collect("flowrl_8x128", kept / "r")
    assert not (kept / "development").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["v"], "RESULTS: is missing"),
        (["v", "nothere"], "RESULTS: .* has no runs"),
        (["v", __file__], "RESULTS: .* has no runs"),
        (["../v", "nothere"], "VARIANT: "),
    ],
)
def test_a_bad_command_line_writes_nothing(arguments, said, kept, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "curves", lambda name: pytest.fail("tables are made"))
    before = sorted(kept.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        protocol.main(arguments)
    assert re.search(f"error: {said}", capsys.readouterr().err)
    assert sorted(kept.rglob("*")) == before


def test_a_variant_without_a_cell_has_no_column(kept, monkeypatch):
    monkeypatch.setattr(protocol, "STEPS", 40_000)
    write_run(kept / "long", "walker-run", 1, [1, 2, 3, 4])
    write_run(kept / "short", "walker-run", 1, [5, 6])
    protocol.collect("a_1x1", kept / "short")
    protocol.collect("b_1x1", kept / "long")
    assert protocol.table("development").splitlines() == [
        "| after | task | b_1x1 |",
        "|---|---|---|",
        "| 40,000 steps | walker-run | 4, 2 (1) |",
    ]


def test_ablations_stand_beside_what_they_change(kept, monkeypatch):
    monkeypatch.setattr(protocol, "STEPS", 20_000)
    write_run(kept / "r", "walker-run", 1, [1, 2, 3])
    write_run(kept / "r", "walker-run", 2, [1, 6, 3])
    write_run(kept / "r", "humanoid-stand", 1, [7, 7, 7])  # of which there are no ablations
    protocol.collect(protocol.CHANGED, kept / "r")
    assert not protocol.curves("ablations")
    write_run(kept / "s", "walker-run", 1, [5, 6])
    for change in ("w2_coef=0", "w2_coef=1"):
        protocol.collect(change, kept / "s")
    assert protocol.table("ablations").splitlines() == [
        "| after | variant | walker-run |",
        "|---|---|---|",
        f"| 20,000 steps | {protocol.CHANGED} | 4 [2, 6], 2 (2) |",
        "| 20,000 steps | w2_coef=0 | 6, 6 (1) |",
        "| 20,000 steps | w2_coef=1 | 6, 6 (1) |",
    ]


def test_the_mean_curve_is_of_equal_steps():
    fine = np.array([10_000, 20_000, 30_000, 40_000]), np.array([1.0, 2.0, 3.0, 4.0])
    coarse = np.array([20_000, 40_000, 60_000]), np.array([4.0, 8.0, 100.0])
    steps, mean = protocol.mean_curve([fine, coarse])
    np.testing.assert_allclose(steps, [20_000, 40_000])
    np.testing.assert_allclose(mean, [3, 6])


def test_curves_over_minutes_end_where_asked():
    curve = np.array([300, 600, 900]), np.array([1.0, 2.0, 3.0])
    found = {"fast": {"walker-run": {1: curve}}, "slow": {"walker-run": {1: curve}}}
    speeds = {"fast": 300.0, "slow": 100.0}  # steps a minute
    found = protocol.over(found, lambda variant, task: speeds[variant], end=3)
    np.testing.assert_allclose(found["fast"]["walker-run"][1], [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_allclose(found["slow"]["walker-run"][1], [[3], [1]])


def test_the_pages_have_what_is_kept():
    for name in protocol.SETS:
        if protocol.curves(name):
            page = (protocol.FOLDER / name / "README.md").read_text()
            assert protocol.table(name) in page


@pytest.mark.parametrize("name", protocol.SETS)
def test_the_first_run_of_a_set_finds_its_page(name, kept, monkeypatch):
    page = (ROOT / "benchmarks" / name / "README.md").read_text()
    for one in protocol.SETS:
        (kept / one).mkdir()
    (kept / name / "README.md").write_text(page)
    monkeypatch.setattr(protocol, "STEPS", 10_000)
    monkeypatch.setattr(protocol, "SHORTER", {"authors": 10_000})
    task = protocol.SETS[name][0]
    write_run(kept / "r", task, 1, [123])
    variants = {"ablations": "w2_coef=0", "authors": "released_jax"}
    protocol.main([variants.get(name, "flowrl_8x128"), str(kept / "r")])
    again = (kept / name / "README.md").read_text()
    assert "123, 123 (1)" in again
    assert "No run has finished" not in again
    assert again[: again.index("<!--")] == page[: page.index("<!--")]
    assert (kept / name / "curves.png").exists()


def test_a_flat_start_ends_with_the_first_return(tmp_path):
    write_run(tmp_path, "humanoid-stand", 1, [4, 6, 50, 5])
    (path,) = tmp_path.glob("runs/*/metrics.csv")
    run = late_start.rows(path)
    np.testing.assert_allclose([row["value"] for row in run], [0.4, 0.6, 5.0, 0.5])
    assert [row["step"] for row in late_start.flat(run)] == [10_000, 20_000]
    said = late_start.summary("x", run)
    assert "flat to step 20,000" in said
    assert "worth 0.50 and Q_phi says 7.0 (7.0 to 7.0), Q_beta 3.0 (medians)" in said
    sac = [{k: v for k, v in row.items() if k != late_start.BEHAVIOUR} for row in run]
    assert late_start.summary("x", sac) == said.replace(", Q_beta 3.0", "")
    assert late_start.summary("x", run[2:]) == "x: never flat"
