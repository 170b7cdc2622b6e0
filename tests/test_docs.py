"""The README says what is so: line numbers, the table of tasks, the names of metrics and flags."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import envs
import flowrl_jax as flowrl
from benchmarks import readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SOURCE = (ROOT / "flowrl_jax.py").read_text().splitlines()


def test_equation_map_points_at_the_right_lines():
    pointers = re.findall(r"`(\w+)` \(line (\d+)\)", README)
    assert len(pointers) > 10
    for name, line in pointers:
        assert re.match(rf"(def|class) {name}\b", SOURCE[int(line) - 1]), f"{name}: not on {line}"


def test_task_table_is_the_one_that_envs_prints():
    assert envs.task_table() in README


def test_flag_table_is_made_of_the_fields():
    assert readme.flags() in README
    assert readme.flags().count("\n") == 1 + len(dataclasses.fields(flowrl.Args))


def test_every_metric_is_explained():
    env = envs.make("cartpole-balance", 2, "native")
    args = dataclasses.replace(
        flowrl.Args(), num_envs=2, hidden_size=8, batch_size=4, buffer_size=100, log_interval=4
    )
    state = flowrl.init_state(env, args)
    _, metrics = flowrl.train_chunk(state, env, args)
    names = {name for name in metrics if "/" in name}
    names |= {"charts/SPS", "charts/UPS", "charts/seconds", "eval/episodic_return_sampled"}
    for name in names:
        assert f"`{name}`" in README, name


@pytest.mark.parametrize("preset", flowrl.PRESETS)
def test_presets_are_shown_as_they_are(preset):
    values = dataclasses.asdict(flowrl.Args()) | flowrl.PRESETS[preset]
    (row,) = re.findall(rf"^\| `{preset}` \|.*$", README, re.M)
    names = ("num_envs", "updates_per_step", "batch_size", "hidden_size", "buffer_size")
    names += ("target_tau",)
    shown = [cell.strip() for cell in row.split("|")[2:8]]
    assert shown == [f"{values[name]:,}" for name in names]


def flags_of_program(name: str) -> set[str]:
    """The flags that a program's own --help lists at the beginning of a line."""
    command = ["bash"] if name.endswith(".sh") else [sys.executable]
    command += [str(ROOT / name), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  --([a-z][a-z-]+)", text, re.M))


@pytest.mark.parametrize(
    ("name", "heading"), [("benchmark.sh", "Benchmarks"), ("report.py", "Report")]
)
def test_every_flag_has_its_sentence(name, heading):
    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", README, re.M | re.S)
    told = set(re.findall(r"^\| `--([a-z-]+)` \|", section, re.M))
    assert told == flags_of_program(name) - {"help"}


def test_flags_in_the_readme_exist():
    fields = {field.name for field in dataclasses.fields(flowrl.Args)} | {"help"}
    for name in ("benchmark.sh", "report.py"):
        fields |= {flag.replace("-", "_") for flag in flags_of_program(name)}
    # Flags of others.
    others = r"throughput\.py.* --blocks|XLA_FLAGS=\S+|#SBATCH .*|gcloud .*command"
    own = re.sub(others + r'|"--partition=[^"]*"', "", README)
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", own))
    assert "w2-indicator" in flags
    for flag in flags:
        assert flag.removeprefix("no-").replace("-", "_") in fields, flag


def test_pre_commit_runs_the_ruff_that_is_pinned():
    (pinned,) = re.findall(r"^ruff==(.*)$", (ROOT / "requirements.txt").read_text(), re.M)
    (hook,) = re.findall(r"^ +rev: v(.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    assert hook == pinned


def test_versions_and_paper_are_the_same_everywhere():
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version}" in citation
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for text in (citation, README, flowrl.__doc__):
        assert "2506.12811" in text
    names = re.findall(r"family-names: (\w+), given-names: (\w+)", citation)
    (authors,) = re.findall(r"author  = \{(.*?)\}", README, re.S)
    assert [" ".join(one.split()) for one in authors.split(" and")] == [
        f"{family}, {given}" for family, given in names
    ]
