"""`--track`: what goes to Weights & Biases, and what is said where it cannot go."""

import csv
import dataclasses
import json
import math
import os
import sys
import time
import types

import pytest

import flowrl_jax as flowrl
from harness import runs, tracking
from harness.errors import RunError


class Wandb(types.ModuleType):
    """Stands in for the package: notes what it was told. `logged_in`: whether it has an API key."""

    class Error(Exception):
        pass

    def __init__(self, logged_in=True, refuses=None):
        super().__init__("wandb")
        self.logged_in, self.refuses, self.started = logged_in, refuses, []

    def login(self, prompt):
        assert not prompt, "nobody may be there to answer"
        return self.logged_in

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        if self.refuses:
            raise self.Error(self.refuses)
        run = types.SimpleNamespace(options=options, rows=[], codes=[], id=f"id{len(self.started)}")
        run.log = lambda metrics, step: run.rows.append((step, metrics))
        run.finish = lambda exit_code: run.codes.append(exit_code)
        self.started.append(run)
        return run


def use(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return package


def make_run(runs_dir, seed=1, **config):
    config = {"track": True, "gamma": 0.9} | config
    return runs.Run.create(runs_dir, "cartpole-balance", "flowrl_jax", seed, config)


def test_rows_go_there_too(tmp_path, monkeypatch):
    package = use(monkeypatch, Wandb())
    pair = [make_run(tmp_path, seed) for seed in (1, 2)]
    for k, run in enumerate(pair):
        run.log(10, {"charts/a": 1.5 + k})
        run.log(20, {"charts/a": 2.5 + k, "losses/b": math.inf})
    pair[0].finish("finished")
    pair[1].finish("failed", "why")
    first, second = package.started
    assert first.rows == [(10, {"charts/a": 1.5}), (20, {"charts/a": 2.5, "losses/b": math.inf})]
    assert second.rows[0] == (10, {"charts/a": 2.5})
    assert (first.codes, second.codes) == ([0], [1])
    assert first.options["config"]["gamma"] == 0.9
    assert first.options["project"] == "flowrl_jax", "the algorithm's name"
    assert (first.options["name"], first.options["dir"]) == (pair[0].folder.name, pair[0].folder)
    assert first.options["reinit"] == "create_new", "two seeds are two runs at once"
    assert json.loads((pair[1].folder / "config.json").read_text())["wandb"] == "id1"
    # What is always there is there with it.
    with (pair[0].folder / "metrics.csv").open(newline="") as file:
        assert [row["charts/a"] for row in csv.DictReader(file)] == ["1.5", "2.5"]
    assert list(pair[0].folder.glob("events.out.tfevents.*"))


def test_without_the_flag_it_is_not_imported(tmp_path, monkeypatch):
    package = use(monkeypatch, Wandb())
    with make_run(tmp_path, track=False) as run:
        run.log(1, {"a": 1.0})
    assert not package.started


@pytest.mark.parametrize(
    ("package", "says"),
    [(None, "pip install wandb"), (Wandb(logged_in=False), "wandb login")],
)
def test_what_is_missing_is_one_line_and_makes_nothing(package, says, tmp_path, monkeypatch):
    use(monkeypatch, package)
    monkeypatch.chdir(tmp_path)
    args = dataclasses.replace(flowrl.Args(), env_id="cartpole-balance", track=True, num_threads=1)
    args = dataclasses.replace(args, hidden_size=8, batch_size=4, buffer_size=64, num_envs=1)
    with pytest.raises(RunError, match="--track") as error:
        flowrl.main(args)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_offline_needs_no_login(monkeypatch):
    use(monkeypatch, Wandb(logged_in=False))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check()


def test_a_server_that_refuses_ends_the_run_as_failed(tmp_path, monkeypatch):
    use(monkeypatch, Wandb(refuses="no such host\nand more"))
    with pytest.raises(RunError, match=r"--track.*no such host.*WANDB_MODE=offline"):
        make_run(tmp_path)
    (folder,) = tmp_path.iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["status"] == "failed"
    assert "--track" in config["error"]


def test_a_tracker_that_fails_fails_no_run(tmp_path, monkeypatch, capsys):
    def gone(metrics, step):
        raise ConnectionError("the service is gone")

    package = use(monkeypatch, Wandb())
    with make_run(tmp_path) as run:
        package.started[0].log = gone
        run.log(10, {"a": 1.0})
        run.log(20, {"a": 2.0})
    assert json.loads((run.folder / "config.json").read_text())["status"] == "finished"
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("--track: ")
    assert "going on without: ConnectionError: the service is gone" in told


def test_a_resume_goes_on_with_the_same_and_gives_it_all_rows(tmp_path, monkeypatch):
    """What was logged before a kill may never have reached it."""
    package = use(monkeypatch, Wandb())
    first = make_run(tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"a": step / 10})
    first.finish("interrupted")
    with runs.Run.reopen(first.folder, 20, {}) as again:
        again.log(30, {"a": 4.0})
    assert package.started[1].rows == [(10, {"a": 1.0}), (20, {"a": 2.0}), (30, {"a": 4.0})]
    assert package.started[1].options["id"] == "id0"


def test_offline_run_is_on_disk(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="optional: pip install -r requirements-optional.txt")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with make_run(tmp_path) as run:
        run.log(10, {"charts/a_name_to_find": 1.5})
        run.log(20, {"charts/a_name_to_find": 2.5})
    (record,) = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # its own process writes it, a little later
    while b"charts/a_name_to_find" not in record.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert os.listdir(tmp_path) == [run.folder.name]
