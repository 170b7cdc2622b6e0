"""benchmarks/released.py, as far as it goes without PyTorch and the released code."""

import csv
import itertools
import sys

import jax
import numpy as np
import pytest

import flowrl_jax as flowrl
from benchmarks import released
from reporting.tables import markdown_table


class Linear:
    """A stand-in for PyTorch's, as LayerNorm below: `weights` goes by the name of the class."""

    def __init__(self, name):
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"


class LayerNorm(Linear):
    pass


def network(heads):
    """The released order: a head's layers, then the next head's."""
    layers = []
    for head in range(heads):
        layers += [
            kind(f"{kind.__name__}{head}{k}") for k in range(4) for kind in (Linear, LayerNorm)
        ]
        layers.append(Linear(f"Linear{head}4"))
    layers.insert(0, object())  # the network itself
    return type("Network", (), {"modules": lambda self: iter(layers)})()


@pytest.mark.parametrize("name", ["critic", "behaviour_value"])
def test_each_weight_is_paired_with_its_own(name):
    args = flowrl.Args(hidden_size=8)
    learner = flowrl.init_learner(jax.random.key(0), 3, 2, args)
    key = iter(jax.random.split(jax.random.key(1), 100))
    params = released.params_of(learner, name)
    params = jax.tree.map(lambda leaf: jax.random.normal(next(key), leaf.shape), params)
    heads = 2 if name == "critic" else 1
    pairs = dict(released.weights(network(heads), params))
    assert len(pairs) == heads * 2 * (5 + 4)
    tree = params["params"] if heads == 1 else params["params"]["VmapValueNetwork_0"]
    for head, k in itertools.product(range(heads), range(5)):
        of_head = jax.tree.map(lambda leaf, head=head: leaf[head] if heads == 2 else leaf, tree)
        np.testing.assert_array_equal(
            pairs[f"Linear{head}{k}.weight"], of_head[f"Dense_{k}"]["kernel"].T
        )
        np.testing.assert_array_equal(pairs[f"Linear{head}{k}.bias"], of_head[f"Dense_{k}"]["bias"])
        if k < 4:
            norm = of_head[f"LayerNorm_{k}"]
            np.testing.assert_array_equal(pairs[f"LayerNorm{head}{k}.weight"], norm["scale"])
            np.testing.assert_array_equal(pairs[f"LayerNorm{head}{k}.bias"], norm["bias"])


def test_the_kept_comparison_is_whole_and_says_the_same_update():
    with released.CSV_PATH.open() as file:
        rows = list(csv.DictReader(file))
    settings = [(row["weighting"], int(row["flow_steps"]), int(row["updates"])) for row in rows]
    each = itertools.product(released.WEIGHTINGS, released.FLOW_STEPS, range(1, 5))
    assert sorted(settings) == sorted(list(each) * len(released.NETWORKS))
    assert {row["network"] for row in rows} == set(released.NETWORKS)
    for row in rows:
        assert float(row["difference"]) < 1e-11 < 1e-4 < float(row["moved"])


def test_the_page_has_the_last_update_of_each_setting(monkeypatch, tmp_path):
    kept = tmp_path / "released.csv"
    lines = ["weighting,flow_steps,updates,network,difference,moved"]
    lines += [f"a,1,{k},critic,{k}e-13,{k}e-4" for k in (3, 4)] + ["b,5,4,critic,7e-13,4e-4"]
    kept.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(released, "CSV_PATH", kept)
    names = ["network", "moved", "`a`, N = 1", "`b`, N = 5"]
    assert released.table() == markdown_table(names, [("`critic`", "4e-4", "4e-13", "7e-13")])


def test_the_page_has_the_speeds_with_their_spread(monkeypatch, tmp_path):
    kept = tmp_path / "released_speed.csv"
    header = "batch,width,cores,ours,released,ratio,lowest,highest,cpu,jax,torch"
    kept.write_text(f"{header}\n256,512,1,11,8,1.4,1.3,1.5,a CPU,0.1,2.1\n")
    monkeypatch.setattr(released, "SPEED_PATH", kept)
    header, _, line = released.speed_table().splitlines()
    assert line == "| 256 | 512 | 1 | 11 | 8 | 1.4 (1.3-1.5) | a CPU |"
    assert header.count("|") == line.count("|")


@pytest.mark.parametrize("files", [[], ["model/algo.py"]])
def test_what_is_missing_is_told_in_one_line(files, tmp_path, monkeypatch, capsys):
    for file in files:  # imports what is not there
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("import no_such_torch\n")
    monkeypatch.setattr(sys, "argv", ["released.py", "--released", str(tmp_path)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(released, "CSV_PATH", tmp_path / "released.csv")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    with pytest.raises(SystemExit, match="2"):
        released.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: --released: " in said
    assert ("no_such_torch" in said) if files else ("has no model/algo.py" in said)
    assert not (tmp_path / "released.csv").exists()
