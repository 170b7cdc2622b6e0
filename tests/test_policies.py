"""The trained policies that anyone can play: what is kept of them, and that they play as stored."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import flax.serialization
import numpy as np
import pytest

import envs
import flowrl_jax as flowrl
import numpy_policy
from benchmarks import policies
from harness import command_line
from harness.errors import RunError

KEPT = Path(__file__).parents[1] / "policies"
FOLDERS = sorted(path for path in KEPT.iterdir() if path.is_dir())
STOPPED = "humanoid-run__flowrl_hlgauss_jax__gpu"  # a GPU's lease was over; of 512 wide networks


def stored(folder):
    """What was measured first on `native`: kind -> its row of evaluation.json."""
    rows = json.loads((folder / "evaluation.json").read_text())
    return {row["kind"]: row for row in rows[:2]}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_policy_is_small_and_whole(folder):
    stopped = folder.name == STOPPED
    assert sum(file.stat().st_size for file in folder.iterdir()) < (
        3_000_000 if stopped else 500_000
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["status"] == ("interrupted" if stopped else "finished")
    assert folder.name.split("__")[0] == config["args"]["env_id"]
    act = importlib.import_module(config["algorithm"]).load_policy(folder)
    size = envs.make(config["args"]["env_id"], 1, "native").observation_size
    obs = np.random.default_rng(0).standard_normal((7, size)).astype(np.float32)
    np.testing.assert_allclose(act(obs), numpy_policy.load(folder)(obs), atol=1e-5)
    for row in stored(folder).values():
        assert (row["engine"], row["episodes"]) == ("native", 100)
        assert row["mean"] == pytest.approx(np.mean(row["returns"]))


def test_all_of_them_are_light():
    assert sum(file.stat().st_size for file in KEPT.rglob("*") if file.is_file()) < 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cheetah-run", "walker-run"])
def test_it_plays_in_the_original_as_was_stored(name, tmp_path):
    """Without noise episode k is the same on both, but for rounding in a long fall or run."""
    folder = tmp_path / name
    shutil.copytree(KEPT / name, folder)
    expected = stored(folder)["deterministic"]
    flags = f"--evaluate {folder} --engine dm_control --eval-episodes 3".split()
    assert flowrl.main(command_line.parse_args(flowrl.ALGORITHM, "cpu", flags)) == 0
    rows = json.loads((folder / "evaluation.json").read_text())
    (row,) = (r for r in rows if r["engine"] == "dm_control" and r["kind"] == "deterministic")
    np.testing.assert_allclose(row["returns"], expected["returns"][:3], rtol=0.02)
    assert abs(row["mean"] - expected["mean"]) < 4 * expected["std"]


def test_only_a_finished_runs_policy_is_kept(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    config = json.loads((FOLDERS[0] / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"status": "stopped"}))
    with pytest.raises(RunError, match="stopped; only a finished run is kept"):
        policies.place(run, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr(sys, "argv", ["policies.py", str(run), "--out", str(tmp_path / "kept")])
    with pytest.raises(SystemExit, match="2"):
        policies.main()
    assert "error: " in capsys.readouterr().err


def test_a_kept_policy_is_not_kept_anew_from_itself():
    before = sorted(file.name for file in FOLDERS[0].iterdir())
    with pytest.raises(RunError, match="is where it would be kept"):
        policies.place(FOLDERS[0], KEPT)
    assert sorted(file.name for file in FOLDERS[0].iterdir()) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def refused(monkeypatch, capsys, *arguments) -> str:
    """What policies.py says of a command line that it does not take."""
    monkeypatch.setattr(sys, "argv", ["policies.py", *map(str, arguments)])
    with pytest.raises(SystemExit, match="2"):
        policies.main()
    return capsys.readouterr().err


BAD = {  # flags or a file of the run, what of it is left, and what is said
    "--eval-episodes": (None, "--eval-episodes: needs at least 2"),
    "policy.npz": (0, "policy.npz cannot be read"),
    "params.msgpack": (500, "params.msgpack cannot be read"),
    "config.json": (500, "config.json is damaged"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_leaves_what_was_kept(what, tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "run", tmp_path / "kept"
    shutil.copytree(FOLDERS[0], run)
    (out / FOLDERS[0].name).mkdir(parents=True)
    (out / FOLDERS[0].name / "evaluation.json").write_text("of before")
    size, said = BAD[what]
    if size is not None:
        (run / what).write_bytes((run / what).read_bytes()[:size])
    before = contents(tmp_path)
    flags = [what, 1] if size is None else []
    assert said in refused(monkeypatch, capsys, run, "--out", out, *flags)
    assert contents(tmp_path) == before
    if what == "policy.npz":
        (run / what).unlink()
        assert said in refused(monkeypatch, capsys, run, "--out", out)
        assert "in one folder" in refused(monkeypatch, capsys, *FOLDERS[:1] * 2, "--out", out)
    if size is None:
        assert "choose another with --out" in refused(monkeypatch, capsys, run, "--out", __file__)


@pytest.mark.parametrize("error", [RunError("it fails"), KeyboardInterrupt()])
def test_only_what_has_been_evaluated_takes_the_place(error, tmp_path, monkeypatch):
    def fail(folder, episodes):
        assert (folder / "policy.npz").exists()
        raise error

    monkeypatch.setattr(policies, "evaluate", fail)
    folder = policies.place(FOLDERS[0], tmp_path / "kept")
    with pytest.raises(type(error)):
        policies.keep(FOLDERS[0], folder, 2)
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text("of before")
    before = contents(tmp_path)
    with pytest.raises(type(error)):
        policies.keep(FOLDERS[0], folder, 2)
    assert contents(tmp_path) == before
    monkeypatch.setattr(policies, "evaluate", lambda folder, episodes: None)
    policies.keep(FOLDERS[0], folder, 2)
    names = {"config.json", "policy.npz", "params.msgpack"}
    assert {path.name for path in folder.iterdir()} == names
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
    assert list((tmp_path / "kept").iterdir()) == [folder]


def test_the_policys_network_alone_is_kept(tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(FOLDERS[0], run)
    params = flax.serialization.msgpack_restore((run / "params.msgpack").read_bytes())
    whole = flax.serialization.to_bytes(params | {"critic": {"w": np.zeros(100_000)}})
    (run / "params.msgpack").write_bytes(whole)
    monkeypatch.setattr(policies, "evaluate", lambda folder, episodes: None)
    folder = policies.place(run, tmp_path / "kept")
    policies.keep(run, folder, 2)
    assert folder.name == FOLDERS[0].name
    assert (folder / "params.msgpack").stat().st_size < 200_000
    assert not (folder / "evaluation.json").exists()  # it is measured anew
