"""benchmarks/comparison.py: the tables of who is ahead, on numbers small enough to see through."""

import dataclasses
import importlib
import json
import re

import numpy as np
import pytest

import envs
from benchmarks import comparison, protocol


def test_the_picture_is_of_the_tables_tasks_and_minutes(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(protocol, "draw", lambda *all_of_it: given.extend(all_of_it))
    comparison.picture(tmp_path)
    curves, tasks, _, path = given
    assert path == tmp_path
    rows = re.findall(r"^\| (\w+-\w+) \|", comparison.side_by_side(), re.M)
    assert len(rows) > 10
    assert list(tasks) == rows
    minutes, _ = curves["flowrl_hlgauss_jax.py"]["cheetah-run"][1]
    assert comparison.MINUTES - 1.5 < minutes[-1] <= comparison.MINUTES  # between evaluations 1.4


def test_edges_are_the_cells_that_a_little_time_changes(monkeypatch):
    returns = [np.array([10.0]), np.array([30.0])]
    none = [[] for _ in comparison.SIDE_BY_SIDE][2:]
    by_minutes = {
        0.9: {"a-run": [returns, returns, *none], "b-run": [returns, [], *none]},
        0.99: {"a-run": [returns[:1], returns, *none], "b-run": [returns, [], *none]},
        1: {"a-run": [returns, returns, *none], "b-run": [returns, [], *none]},
        1.01: {"a-run": [[], returns, *none]},  # none of b-run has gone so far
    }
    monkeypatch.setattr(
        comparison,
        "compared",
        lambda m=comparison.MINUTES: by_minutes[round(m / comparison.MINUTES, 2)],
    )
    cells = [re.split(r" *\| *", line)[1:-1] for line in comparison.edges().splitlines()[2:]]
    name = next(iter(comparison.SIDE_BY_SIDE.values()))
    assert cells == [
        ["a-run", name, "20 [10, 30] (2)", "10 (1)", "20 [10, 30] (2)", ""],
        ["b-run", name, *["20 [10, 30] (2)"] * 3, ""],
    ]


def test_over_all_tasks_one_seed_is_above_another_as_often_as_said(monkeypatch):
    one, other = list(comparison.SIDE_BY_SIDE)[:2]
    ends = {one: {"a-run": [100, 300], "h1-run": [900, 900]}, other: {"a-run": [200, 0]}}
    # Its a-run is not `one`'s, but its h1-run is.
    ends[comparison.WHERE_IT_ENDS[one]] = {"a-run": [900, 900], "h1-run": [50, 50]}
    ends[other]["h1-run"] = [50, 0]  # equal is not above
    found = {
        variant: {task: [np.array([9e3, end]) for end in ends] for task, ends in tasks.items()}
        for variant, tasks in ends.items()
    }
    monkeypatch.setattr(protocol, "after", lambda name, minutes: found)
    monkeypatch.setitem(protocol.SETS, "reported", ("a-run", "h1-run"))
    *lines, late = [
        line.strip("| ").split(" | ") for line in comparison.over_all().splitlines()[2:]
    ]
    # a-run 3 of 4 pairs, h1-run 2 of 4; the middle two of four are 50 and 100, and 0 and 50
    assert {line[1].split()[0] for line in lines} == {"0.075"}
    assert {line[2].split()[0] for line in lines} == {"0.025"}
    assert {line[3] for line in lines} == {"62"}
    assert lines[-1][0] == f"{comparison.MINUTES:g}"
    # the means with 9,000 before: 4,550 and 4,650, 4,525 twice; 4,600 and 4,500, 4,525 and 4,500
    assert late[0] == f"{comparison.MINUTES:g}, mean of the last {protocol.LAST}"
    assert [late[1].split()[0], late[2].split()[0], late[3]] == ["4.537", "4.513", "62"]


def test_over_all_tasks_counts_as_many_seeds_of_each_file(monkeypatch):
    one, other = list(comparison.SIDE_BY_SIDE)[:2]
    ends = {one: {"a-run": [100, 200, 900], "b-run": [100, 200]}}
    ends[other] = {"a-run": [150, 0, 0, 0], "b-run": [0, 300, 0, 0]}
    found = {
        variant: {task: [np.array([end]) for end in ends] for task, ends in tasks.items()}
        for variant, tasks in ends.items()
    }
    monkeypatch.setattr(protocol, "after", lambda name, minutes: found)
    monkeypatch.setitem(protocol.SETS, "reported", ("a-run", "b-run"))
    line = comparison.over_all().splitlines()[2].strip("| ").split(" | ")
    assert line[1:] == ["0.150 [0.100, 0.200] (2)", "0.075 [0.000, 0.225] (2)", "62"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([10, 20, 30], [1, 9, 9], "**ahead**"),
        ([1, 9, 9], [10, 20, 30], "**behind**"),
        ([10, 20, 30], [5, 10, 6], "neither"),  # 10 is in both
        ([10], [1, 2, 3], ""),
        ([], [], ""),
    ],
)
def test_who_is_ahead_is_who_has_an_interval_above_the_others(one, other, expected):
    runs = [[np.array([50.0, 0.0, end]) for end in ends] for ends in (one, other)]
    assert comparison.order(*runs) == expected
    assert comparison.order(*runs, 2) == expected  # halves of the same


def test_verdicts_are_of_all_seeds_at_each_of_the_times(monkeypatch):
    high, low = [np.array([0.0, 90.0])] * 2, [np.array([100.0, 10.0])] * 3
    none = [[]] * (len(comparison.SIDE_BY_SIDE) - 3)
    less = [np.array([0.0, 80.0])] * 2
    first, second, third, *rest = protocol.SETS["reported"]
    by_time = {factor: {first: [high, low, less, *none]} for factor in comparison.FACTORS}
    by_time[0.9] = {first: [low, high, [], *none]}
    for factor in comparison.FACTORS:
        by_time[factor] |= {second: [high, [], low[:1], *none], third: [high, [], [], *none]}
    monkeypatch.setattr(
        comparison,
        "compared",
        lambda m=comparison.MINUTES: by_time[round(m / comparison.MINUTES, 2)],
    )
    cells = [re.split(r" *\| *", line)[1:-1] for line in comparison.verdicts().splitlines()[2:]]
    # by the means of both evaluations 45 is below 55
    by_minutes = ["**behind**", *["**ahead**"] * 3]
    assert cells[0] == [first, "2 and 3", *by_minutes, "**behind**", "**ahead**", "**ahead** (2)"]
    assert cells[1] == [second, "2 and 0", *[""] * 6, "(1)"]
    assert cells[2] == [third, "2 and 0", *[""] * 7]
    assert cells[3:] == [[task, "0 and 0", *[""] * 7] for task in rest]


def test_an_order_is_of_the_measure_that_was_asked_for(monkeypatch):
    seeds = [60, 80, 160, 300, 300], [30, 30, 40, 40, 110]
    pair = [[np.array([float(end)]) for end in ends] for ends in seeds]
    assert comparison.order(*pair) == "**ahead**"
    assert comparison.order(*pair, measure="iqm") == "neither"
    none = [[]] * (len(comparison.SIDE_BY_SIDE) - 2)
    task = protocol.SETS["reported"][0]
    monkeypatch.setattr(comparison, "compared", lambda *minutes: {task: [*pair, *none]})
    cells = re.split(r" *\| *", comparison.verdicts().splitlines()[2])[1:-1]
    assert cells[-3:] == ["**ahead**", "neither", ""]


@pytest.mark.parametrize("variant", comparison.WHERE_IT_ENDS)
@pytest.mark.parametrize("task", [*protocol.SETS["development"], *protocol.SETS["reported"]])
def test_the_preset_has_other_runs_where_an_episode_can_end_early(variant, task):
    ends_early = envs.load_task(task).terminated is not None
    assert (comparison.variant_on(variant, task) != variant) == ends_early


PRESETS = [variant for variant, words in comparison.SIDE_BY_SIDE.items() if "larger" not in words]


@pytest.mark.parametrize("variant", PRESETS)
def test_what_readme_calls_a_preset_was_run_with_it(variant):
    kept = comparison.HERE.glob("*/*/*.json")
    paths = [path for path in kept if path.parent.name == comparison.variant_on(variant, path.stem)]
    assert paths
    for path in paths:
        config = json.loads(path.read_text())
        module = importlib.import_module(config["algorithm"])
        preset = dataclasses.asdict(module.Args(**module.PRESETS["cpu"]))
        learned_by = {"num_envs", "batch_size", "updates_per_step", "hidden_size", "target_tau"}
        learned_by |= {"learning_rate", "target_heads", "learning_rate_decay"} & preset.keys()
        ran = preset | config["args"]  # a flag newer than the run had today's default
        for args in (preset, ran):
            if args.get("target_heads") == "by_task":
                args["target_heads"] = "min" if path.stem.startswith("h1-") else "mean"
        assert {k: ran[k] for k in learned_by} == {k: preset[k] for k in learned_by}, path
