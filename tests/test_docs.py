"""README and docs/ say what is so: tables, line numbers, names of metrics and flags, links."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import envs
import flowrl_hlgauss_jax as hlgauss
import flowrl_jax as flowrl
import vector_env
from benchmarks import docs
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


@pytest.mark.parametrize(
    ("env_id", "heads"),
    [("quadruped-run", "mean"), ("h1-stand", "min"), ("lqr-lqr_2_1", "min"), ("h1-run", "min")],
)
def test_heads_by_task_are_those_that_training_takes(env_id, heads):
    args = dict(env_id=env_id, target_heads="by_task")
    assert docs.heads_of(args) == heads
    env = envs.make(env_id, 1, "native", num_threads=1)
    assert hlgauss.for_task(hlgauss.Args(**args), env).target_heads == heads
    assert docs.heads_of(args | {"target_heads": "mean_to_min"}) == "mean_to_min"
    assert docs.heads_of({"env_id": env_id}) == "min"  # of a file without the flag


# --- what is written ------------------------------------------------------------------------------


def test_readme_is_short():
    assert README.count("\n") <= 250


def test_readme_says_first_what_the_verdicts_after_15_minutes_are():
    lines = re.findall(r"^\| (\S+) \| \d+ and \d+ \|(.*)\|$", TEXTS["docs/results.md"], re.M)
    verdict = {task: cells.split("|")[2].strip(" *") for task, cells in lines}
    ahead = {task for task in verdict if verdict[task] == "ahead"}
    first = r"on (\w+) of ten tasks[^(]*\(([^)]*)\), behind on none, and on (\w+) the seeds"
    ((how_many, names, rest),) = re.findall(first, section("README.md", "Does it learn"))
    numbers = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert len(verdict) == 10
    assert "behind" not in verdict.values()
    assert {name for name in verdict if name in names} == ahead
    assert numbers.index(how_many) == len(ahead)
    assert numbers.index(rest) == list(verdict.values()).count("neither")


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
