"""README and docs/ say what is so: tables, line numbers, names of metrics and flags, links."""

import dataclasses
import functools
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import envs
import flowrl_jax as flowrl
import vector_env
from benchmarks import docs, protocol
from harness import contract

ROOT = Path(__file__).parents[1]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in docs.PAGES}
README, EVERYTHING = TEXTS["README.md"], "\n".join(TEXTS.values())
ALGORITHMS = docs.algorithms()


def section(name: str, heading: str) -> str:
    """What stands under a heading of second order."""
    (found,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXTS[name], re.M | re.S)
    return found


# --- what is generated ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "(line " in text])
def test_line_numbers_are_current(name):
    assert docs.with_line_numbers(TEXTS[name]) == TEXTS[name]


def test_equation_map_points_at_the_right_lines():
    source = (ROOT / "flowrl_jax.py").read_text().splitlines()
    pointers = re.findall(r"`(\w+)` \(line (\d+)\)", README)
    assert len(pointers) > 10
    for name, line in pointers:
        assert re.match(rf"(def|class) {name}\b", source[int(line) - 1]), f"{name}: not on {line}"


@pytest.mark.parametrize("name", docs.TABLES)
def test_each_table_stands_once_and_is_current(name, monkeypatch):
    monkeypatch.setattr(vector_env, "MIN_POOL", 1)  # the table of tasks makes each of them
    assert EVERYTHING.count(f"<!-- {name} -->") == 1
    (page,) = (text for text in TEXTS.values() if f"<!-- {name} -->" in text)
    assert docs.with_table(page, name, docs.TABLES[name]()) == page


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("foo", 2)])
def test_with_an_argument_no_page_is_written(argument, code, monkeypatch):
    monkeypatch.setattr(docs, "PAGES", [])  # else an error here would write them
    monkeypatch.setattr(docs, "TABLES", {"table": lambda: pytest.fail("it goes on")})
    monkeypatch.setattr(sys, "argv", ["docs.py", argument])
    with pytest.raises(SystemExit, match=str(code)):
        docs.main()


def test_the_picture_is_of_the_tables_tasks_and_minutes(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(docs.protocol, "draw", lambda *all_of_it: given.extend(all_of_it))
    docs.picture(tmp_path)
    curves, tasks, _, path = given
    assert path == tmp_path
    rows = re.findall(r"^\| (\w+-\w+) \|", docs.side_by_side(), re.M)
    assert len(rows) > 10
    assert list(tasks) == rows
    minutes, _ = curves["flowrl_hlgauss_jax.py"]["cheetah-run"][1]
    assert docs.MINUTES - 1.5 < minutes[-1] <= docs.MINUTES  # between evaluations 1.4


def test_edges_are_the_cells_that_a_little_time_changes(monkeypatch):
    returns = [np.array([10.0]), np.array([30.0])]
    none = [[] for _ in docs.SIDE_BY_SIDE][2:]
    by_minutes = {
        0.9: {"a-run": [returns, returns, *none], "b-run": [returns, [], *none]},
        0.99: {"a-run": [returns[:1], returns, *none], "b-run": [returns, [], *none]},
        1: {"a-run": [returns, returns, *none], "b-run": [returns, [], *none]},
        1.01: {"a-run": [[], returns, *none]},  # none of b-run has gone so far
    }
    monkeypatch.setattr(
        docs, "compared", lambda m=docs.MINUTES: by_minutes[round(m / docs.MINUTES, 2)]
    )
    cells = [re.split(r" *\| *", line)[1:-1] for line in docs.edges().splitlines()[2:]]
    name = next(iter(docs.SIDE_BY_SIDE.values()))
    assert cells == [
        ["a-run", name, "20 [10, 30] (2)", "10 (1)", "20 [10, 30] (2)", ""],
        ["b-run", name, *["20 [10, 30] (2)"] * 3, ""],
    ]


def test_over_all_tasks_one_seed_is_above_another_as_often_as_said(monkeypatch):
    one, other = list(docs.SIDE_BY_SIDE)[:2]
    ends = {one: {"a-run": [100, 300], "h1-run": [900, 900]}, other: {"a-run": [200, 0]}}
    ends[docs.WHERE_IT_ENDS[one]] = {"a-run": [900, 900], "h1-run": [50, 50]}  # not `one`'s there
    ends[other]["h1-run"] = [50, 0]  # equal is not above
    found = {
        variant: {task: [np.array([9e3, end]) for end in ends] for task, ends in tasks.items()}
        for variant, tasks in ends.items()
    }
    monkeypatch.setattr(docs.protocol, "after", lambda name, minutes: found)
    monkeypatch.setitem(docs.protocol.SETS, "reported", ("a-run", "h1-run"))
    lines = [line.strip("| ").split(" | ") for line in docs.over_all().splitlines()[2:]]
    # a-run 3 of 4 pairs, h1-run 2 of 4; the middle two of four are 50 and 100, and 0 and 50
    assert {line[1].split()[0] for line in lines} == {"0.075"}
    assert {line[2].split()[0] for line in lines} == {"0.025"}
    assert {line[3] for line in lines} == {"62"}
    assert lines[-1][0] == f"{docs.MINUTES:g}"


@pytest.mark.parametrize("variant", docs.WHERE_IT_ENDS)
@pytest.mark.parametrize("task", [*protocol.SETS["development"], *protocol.SETS["reported"]])
def test_the_preset_has_other_runs_where_an_episode_can_end_early(variant, task):
    ends_early = envs.load_task(task).terminated is not None
    assert (docs.variant_on(variant, task) != variant) == ends_early


PRESETS = [variant for variant, words in docs.SIDE_BY_SIDE.items() if "larger" not in words]


@pytest.mark.parametrize("variant", PRESETS)
def test_what_readme_calls_a_preset_was_run_with_it(variant):
    kept = docs.HERE.glob("*/*/*.json")
    paths = [path for path in kept if path.parent.name == docs.variant_on(variant, path.stem)]
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


@pytest.mark.parametrize("name", ALGORITHMS)
def test_flag_tables_have_every_field(name):
    told = set(re.findall(r"^\| `--([a-z0-9-]+)` \|", TEXTS["docs/flags.md"], re.M))
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(ALGORITHMS[name].args)}
    assert fields <= told


def test_another_algorithm_gets_a_table_of_its_own(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Args(contract.RunArgs):
        entropy: float = 0.1  # of its own

    presets = {"paper": {}, "cpu": {"num_envs": 2}, "gpu": flowrl.PRESETS["gpu"]}
    texts = lambda kind: dict.fromkeys((f.name for f in dataclasses.fields(kind)), "said")  # noqa: E731
    monkeypatch.setattr(docs.command_line, "help_texts", texts)
    other = dataclasses.replace(flowrl.ALGORITHM, name="other", args=Args, presets=presets)
    found = {"flowrl_jax": flowrl.ALGORITHM, "other": other}
    monkeypatch.setattr(docs, "algorithms", lambda: found)
    table = docs.flags().split("## Algorithm: `other.py`\n")[1]
    assert "| `--entropy` | 0.1 | 0.1 | 0.1 | said |" in table
    assert "| `--num-envs` | 1 | 2 | 1,024 | said |" in table  # FlowRL's preset cpu has 8
    assert "--seed" not in table


# --- what is written ------------------------------------------------------------------------------


def test_readme_is_short():
    assert README.count("\n") <= 250


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_metric_is_explained(name):
    algorithm, env = ALGORITHMS[name], envs.make("cartpole-balance", 2, "native")
    sizes = dict(num_envs=2, hidden_size=8, batch_size=4, buffer_size=100, log_interval=4)
    args = dataclasses.replace(algorithm.args(), **sizes)
    state = jax.eval_shape(functools.partial(algorithm.init_state, env, args))
    chunk = functools.partial(algorithm.train_chunk, env=env, args=args)
    metrics = jax.eval_shape(chunk, state)[1]  # their names need no compiling
    names = {name for name in metrics if "/" in name}
    names |= {"charts/SPS", "charts/UPS", "charts/seconds"}
    for kind in algorithm.kinds:
        names |= {f"eval/episodic_return_{kind}", f"eval/episodic_return_{kind}_std"}
        names |= {f"eval/success_{kind}"}
    pages = "".join(text for page, text in TEXTS.items() if page != "README.md")
    for name in names:
        assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", pages, re.M), name


@pytest.mark.parametrize("preset", flowrl.PRESETS)
def test_presets_are_shown_as_they_are(preset):
    values = dataclasses.asdict(flowrl.Args()) | flowrl.PRESETS[preset]
    (row,) = re.findall(rf"^\| `{preset}` \|.*$", README, re.M)
    names = ("num_envs", "updates_per_step", "batch_size", "hidden_size", "buffer_size")
    names += ("target_tau", "total_timesteps")
    shown = [cell.strip() for cell in row.split("|")[2:9]]
    assert shown == [f"{values[name]:,}" for name in names]


def flags_of_program(name: str) -> set[str]:
    """The flags that a program's own --help lists at the beginning of a line."""
    command = ["bash"] if name.endswith(".sh") else [sys.executable]
    command += [str(ROOT / name), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  --([a-z][a-z-]+)", text, re.M))


@pytest.mark.parametrize(
    ("name", "heading"), [("benchmark.sh", "Tasks times seeds"), ("report.py", "Report")]
)
def test_every_flag_has_its_sentence(name, heading):
    told = set(re.findall(r"^\| `--([a-z-]+)` \|", section("docs/benchmark.md", heading), re.M))
    assert told == flags_of_program(name) - {"help"}


def test_flags_in_the_pages_exist():
    fields = {"help"}
    for algorithm in ALGORITHMS.values():
        fields |= {field.name for field in dataclasses.fields(algorithm.args)}
    for name in ("benchmark.sh", "report.py"):
        fields |= {flag.replace("-", "_") for flag in flags_of_program(name)}
    # Flags of others.
    others = r"python\s+benchmarks/[^`]*`|XLA_FLAGS=\S+|#SBATCH .*|gcloud .*command"
    own = re.sub(others + r'|"--partition=[^"]*"', "", EVERYTHING)
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", own))
    assert "w2-indicator" in flags
    for flag in flags:
        assert flag.removeprefix("no-").replace("-", "_") in fields, flag


# --- links ----------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead within the repository."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("name", [*TEXTS, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_readme_leads_to_every_page():
    reached = {link.partition("#")[0] for link in links(README)}
    assert {name for name in TEXTS if name != "README.md"} <= reached


def test_files_named_in_the_pages_exist():
    made = ("runs/", "results", "videos/", "report/", "wandb/", "jobs/", "curves/", "checkpoints/")
    metrics = ("losses/", "charts/", "eval/")
    for name in re.findall(r"`([\w./]+/[\w./]*)`", EVERYTHING):
        assert name.startswith((*made, *metrics)) or (ROOT / name).exists(), name
    for name in re.findall(r"python (\w[\w/]*\.py)", EVERYTHING):
        assert (ROOT / name).exists(), name


def test_gif_is_small():
    assert (ROOT / "docs/images/policies.gif").stat().st_size < 2_000_000


# --- what has to be the same everywhere -----------------------------------------------------------


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
