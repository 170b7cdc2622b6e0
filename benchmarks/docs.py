"""Puts the measured tables and the present line numbers into README.md and docs/.

    python benchmarks/docs.py

A table stands between `<!-- NAME -->` and the next empty line, or `<!-- end of NAME -->` where it
is several, in one of the pages; tests/test_docs.py compares what it can recompute.
"""

import argparse
import csv
import dataclasses
import importlib
import json
import pathlib
import re
import sys
import types
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import envs
import flowrl_jax as flowrl
from benchmarks import comparison, inputs, learning, protocol, released
from harness import command_line, contract
from tasks import h1

ROOT = HERE.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FALLEN, CLIMBING, SEAT = "pelvis below 0.2 m", "torso leans by 84 degrees", "pelvis below 0.5 m"
BALANCE = "pelvis below 0.8 m; robot or board on the floor; robot on the ball"
H1_ENDS = dict.fromkeys(("stand", "walk", "run", "hurdle", "maze"), FALLEN)
H1_ENDS |= dict.fromkeys(("stair", "slide"), CLIMBING)
H1_ENDS |= dict.fromkeys(("pole", "sit_simple", "sit_hard"), SEAT)
H1_ENDS |= dict.fromkeys(("balance_simple", "balance_hard"), BALANCE)
H1_ENDS |= dict.fromkeys(("crawl", "reach"), "never")


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV beside this file."""
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def markdown(header: str, lines: list[tuple]) -> str:
    """A Markdown table. header: the columns' names, separated by |."""
    columns = [name.strip() for name in header.split("|")]
    cells = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)


def algorithms() -> dict[str, contract.Algorithm]:
    """Those of the root, each in a file of its own, by its name; FlowRL first."""
    files = inputs.algorithm_names()
    names = sorted(files, key=lambda name: (name != flowrl.ALGORITHM.name, name))
    return {name: importlib.import_module(name).ALGORITHM for name in names}


def flag_rows(algorithm: contract.Algorithm) -> dict[str, tuple[str, ...]]:
    """Field -> its flag, its value in each preset, and the comment beside it."""
    kind, rows = algorithm.args, {}
    texts, types = command_line.help_texts(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        values = [preset.get(field.name, field.default) for preset in algorithm.presets.values()]
        shown = [f"{v:,}" if type(v) is int else f"{v}".lower() for v in values]
        meaning, choices = texts[field.name].replace("|", "\\|"), typing.get_args(types[field.name])
        meaning += f" ({', '.join(choices)})" if choices else ""
        flag = f"`--{field.name.replace('_', '-')}`"
        rows[field.name] = (flag, *(text or '""' for text in shown), meaning)
    return rows


def flags() -> str:
    """Every flag of FlowRL, grouped as in --help, and what other algorithms have of their own.

    That is their fields, and the flags of any run for which their presets have other values; where
    their flags extend FlowRL's, what is not as there.
    """
    found = algorithms()
    first, *others = found.values()
    shared, parts = flag_rows(first), []
    for title, names in command_line.sections(first.args).items():
        heading = f"Algorithm: `{first.name}.py`" if title == "algorithm" else title.capitalize()
        table = markdown(_flag_header(first), [shared[name] for name in names])
        parts.append(f"## {heading}\n\n{table}")
    run = {field.name for field in dataclasses.fields(contract.RunArgs)}
    for other in others:
        own = flag_rows(other)
        known = set(shared) if issubclass(other.args, first.args) else run
        rows = [row for name, row in own.items() if name not in known or row != shared[name]]
        table = markdown(_flag_header(other), rows)
        parts.append(f"## Algorithm: `{other.name}.py`\n\n{table}")
    return "\n\n".join(parts)


def _flag_header(algorithm: contract.Algorithm) -> str:
    return f"flag | {' | '.join(algorithm.presets)} | meaning"


def parity() -> str:
    """Largest differences of every task on every engine it was measured on."""
    by_task: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows("parity.csv"):
        by_task.setdefault(row["env_id"], {})[row["engine"]] = row
    lines = []
    for env_id in envs.task_ids():
        cells = [env_id]
        for engine in envs.ENGINES:
            row = by_task.get(env_id, {}).get(engine)
            cells += [row["max_abs_obs"], row["max_abs_reward"]] if row else ["", ""]
        lines.append(tuple(cells))
    pairs = (f"{engine}: observation | reward" for engine in envs.ENGINES)
    return markdown(f"env_id | {' | '.join(pairs)}", lines)


def parity_states() -> str:
    """How often states differ, beside C against itself."""
    names = ("env_id", "play", "engine", "states", "obs_median", "obs_99", "max_rel_obs")
    names += ("obs_far", "moved_99", "moved_max", "moved_far")
    lines = [tuple(row[name] for name in names) for row in rows("parity_states.csv")]
    header = "task | play | engine | states | median | 99% | largest | above 1e-3"
    return markdown(header + " | C moved: 99% | largest | above 1e-3", lines)


def h1_tasks() -> str:
    """HumanoidBench's tasks: sizes, thresholds, ends."""
    lines = []
    for name, success in h1.TASKS.items():
        env = envs.make(f"h1-{name}", 1, "native", num_threads=1)
        lines.append((env.env_id, env.observation_size, f"{success:,.0f}", H1_ENDS[name]))
    return markdown("env_id | observations | success: return from | ends when", lines)


def rate(text: str) -> str:
    """A rate as people read it."""
    return f"{float(text):,.0f}" if text else ""


def env_throughput() -> str:
    """`env.step` beside the bare engine, and EnvPool."""
    lines = []
    order = {engine: k for k, engine in enumerate(envs.ENGINES)}
    key = lambda row: (row["env_id"], order[row["engine"]], int(row["num_envs"]))  # noqa: E731
    for row in sorted(rows("throughput_env.csv"), key=key):
        rates = [rate(row[name]) for name in ("bare", "ours", "envpool")]
        ratios = [f"{row[k + 'ratio']} ({row[k + 'range']})" for k in ("", "envpool ")]
        ratios = [ratio if rates[i] else "" for ratio, i in zip(ratios, (1, 2), strict=True)]
        lines.append((row["env_id"], row["engine"], row["num_envs"], *rates, *ratios))
    header = "task | engine | environments | bare engine | ours | EnvPool"
    return markdown(header + " | ours / bare (range) | ours / EnvPool (range)", lines)


def update_throughput() -> str:
    """Updates a second beside the machine's matrix rate."""
    names = ("batch_size", "width", "dtype", "updates", "GFLOP an update", "GFLOP/s")
    names += ("GFLOP/s of a product", "ratio")
    lines = [tuple(row[name] for name in names) for row in rows("throughput_update.csv")]
    header = "batch | width | precision | updates/s | GFLOP an update | GFLOP/s"
    return markdown(header + " | GFLOP/s of a matrix product | share of it", lines)


def loop_throughput() -> str:
    """The training loop beside the sum of its parts."""
    names = ("run", "engine", "env ms", "updates ms", "loop ms", "steps/s", "updates/s", "ratio")
    lines = [tuple(row[name] for name in names) for row in rows("throughput_loop.csv")]
    header = "run | engine | environments, ms | updates, ms | loop, ms | steps/s | updates/s"
    return markdown(header + " | sum of the parts / loop", lines)


def start_up() -> str:
    """Seconds of each phase of a start."""
    names = ("env_id", "engine", "cache", "import", "make", "init", "trace", "compile")
    names += ("first chunk", "total")
    lines = [tuple(row[name] for name in names) for row in rows("compile_times.csv")]
    return markdown(" | ".join(names), lines)


def seeds() -> str:
    """Seeds an hour, in one program and in several."""
    names = ("way", "env_id", "seeds", "steps", "seconds", "seeds an hour")
    lines = [tuple(row[name] for name in names) for row in rows("seeds.csv")]
    return markdown(" | ".join(names), lines)


def overlap() -> str:
    """Physics and updates at once, beside one after the other."""
    names = ("env_id", "num_envs", "updates_per_step", "batch_size", "width", "env, ms")
    names += ("updates, ms", "as it is, ms", "overlapped, ms", "as it is / overlapped")
    lines = [tuple(row[name] for name in names) for row in rows("async_collect.csv")]
    header = "task | environments | updates a step | batch | width | environments, ms | updates, ms"
    return markdown(header + " | as it is, ms | overlapped, ms | as it is / overlapped", lines)


def checkpoint_cost() -> str:
    """Size and seconds of a checkpoint."""
    names = ("preset", "replay", "transitions", "MiB", "save, s", "check and read, s")
    lines = [tuple(row[name] for name in names) for row in rows("checkpoint_cost.csv")]
    return markdown(" | ".join(names), lines)


LAUNCHED = {  # in the chunk of accelerator_program.csv, by path
    "0.0": "a step of all environments",
    "0.0.0": "- a substep of physics",
    "0.0.0.0": "- - a solver iteration",
    "0.0.0.0.0": "- - - a line-search step",
    "0.0.1": "- drawing batches and noise",
    "0.0.3": "- around the updates",
    "0.0.3.0": "- - two updates, one with a policy step",
}


def launches() -> str:
    """What a training step launches on a GPU, by nest of loops."""
    found = {
        r["path"]: r
        for r in rows("accelerator_program.csv")
        if (r["algorithm"], r["program"]) == ("flowrl_jax", "train")
    }
    lines = []
    for path, what in LAUNCHED.items():
        row = found[path]
        often = {"branch": "1", "host asks": "as it takes"}.get(row["times"], row["times"])
        often = "0 or 1" if path == "0.0.3" else often  # whether it is time to learn
        lines.append((what, often, row["kernels"], row["copies"]))
    return markdown("part | times | kernels | copies", lines)


def precision() -> str:
    """Errors of gradients by precision."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows("precision.csv"):
        key = (row["precision"], row["after updates"])
        table.setdefault(key, {})[row["gradient of"]] = row["relative error"]
    names = list(next(iter(table.values())))
    lines = [(*key, *(cells[name] for name in names)) for key, cells in sorted(table.items())]
    return markdown(f"precision | after updates | {' | '.join(names)}", lines)


def development() -> str:
    """What was chosen by: the variants of the development tasks after MINUTES."""
    found, tasks = protocol.after("development", comparison.MINUTES), protocol.SETS["development"]
    cells = {name: [protocol.cell(of[task]) for task in tasks] for name, of in found.items()}
    shown = [number for number in range(len(tasks)) if any(row[number] for row in cells.values())]
    lines = [(name, *(row[i] for i in shown)) for name, row in cells.items() if any(row)]
    return markdown(" | ".join(["variant", *(tasks[i] for i in shown)]), lines)


def reported() -> str:
    """The tasks to report: the protocol's whole table."""
    return protocol.table("reported")


def ages() -> str:
    """What a humanoid's critic says while its return is flat, by step in the episode."""
    lines = []
    for row in rows("tried/run_64.ages.csv"):
        names = ("reward", "earned", "q", "q_policy", "q_random", "spread", "apart")
        cells = (f"{float(row[name]):.3f}" for name in names)
        lines.append((f"{row['from']} to {int(row['to']) - 1}", *cells))
    return markdown(
        "step | reward | earned | Q(s, a) | Q(s, a_pi) | Q, random a | its spread | heads apart",
        lines,
    )


def heads_of(args: dict) -> str:
    """Which heads a run's targets took; `by_task` as what it is on the run's task."""
    heads = args.get("target_heads", "min")
    if heads != "by_task":
        return heads
    return "min" if envs.load_task(args["env_id"]).terminated else "mean"


def policies() -> str:
    """The policies that anyone can play, and what they return."""
    lines = []
    for folder in sorted(path for path in (ROOT / "policies").iterdir() if path.is_dir()):
        config = json.loads((folder / "config.json").read_text())
        first = json.loads((folder / "evaluation.json").read_text())[:2]  # the two kinds
        cells = [f"{row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for row in first]
        args = config["args"]
        run, curve = types.SimpleNamespace(**args), folder / "metrics.csv"
        steps = contract.num_chunks(run) * contract.steps_per_chunk(run)
        if curve.exists():  # kept where a run was stopped
            steps = int(list(csv.DictReader(curve.open()))[-1]["step"])
        step, left = args["learning_rate"], args.get("learning_rate_decay", 1.0)
        sizes = f"{args['num_envs']}, {args['batch_size']}, {step}"
        sizes += "" if left == 1.0 else f" to {step * left:.1g}"
        sizes += f", {heads_of(args)}"
        lines.append((f"`policies/{folder.name}`", config["algorithm"], sizes))
        lines[-1] += (str(args["seed"]), f"{steps:,}", *cells)
    header = (
        "folder | algorithm | environments, batch, step, heads | seed | steps | sampled x0 | x0 = 0"
    )
    return markdown(header, lines)


def speed() -> str:
    """README's short table: the whole loop, and the fastest that a task was stepped."""
    loops = [
        (f"training, {row['run']}", row["engine"], rate(row["steps/s"]), rate(row["updates/s"]))
        + (row["hardware"],)
        for row in rows("throughput_loop.csv")
    ]
    fastest: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows("throughput_env.csv"):
        best = fastest.setdefault((row["env_id"], row["hardware"]), row)
        if float(row["ours"] or 0) > float(best["ours"] or 0):
            fastest[row["env_id"], row["hardware"]] = row
    alone = [
        (f"environments alone, {row['env_id']}, {int(row['num_envs']):,} at once", row["engine"])
        + (rate(row["ours"]), "", row["hardware"])
        for row in fastest.values()
    ]
    header = "what | engine | environment steps/s | updates/s | machine"
    return markdown(header, loops + alone)


def with_line_numbers(text: str) -> str:
    """Corrects every "`name` (line 123)" to where `name` is defined in flowrl_jax.py.

    And "`sac_jax.name` (line 123)" to where it is in sac_jax.py, or another algorithm's file.
    """

    def number(match: re.Match) -> str:
        module, name = match[1].rpartition(".")[::2]
        source = (ROOT / f"{module or 'flowrl_jax'}.py").read_text().splitlines()
        pattern = re.compile(rf"(def|class) {name}\b")
        found = [i for i, text in enumerate(source, 1) if pattern.match(text)]
        assert found, f"{match[1]}: there is no such function or class, a page has"
        return f"`{match[1]}`{match[2]}(line {found[0]})"

    return re.sub(r"`([\w.]+)`(\s)\(line \d+\)", number, text)


TABLES = {
    "speed": speed,
    "flags": flags,
    "tasks": envs.task_table,
    "parity": parity,
    "parity states": parity_states,
    "h1": h1_tasks,
    "learning": learning.table,
    "env throughput": env_throughput,
    "update throughput": update_throughput,
    "loop throughput": loop_throughput,
    "start-up": start_up,
    "overlap": overlap,
    "seeds": seeds,
    "checkpoint cost": checkpoint_cost,
    "launches": launches,
    "precision": precision,
    "policies": policies,
    "development": development,
    "reported": reported,
    "side by side": comparison.side_by_side,
    "edges": comparison.edges,
    "verdicts": comparison.verdicts,
    "over all": comparison.over_all,
    "ages": ages,
    "released": released.table,
    "released speed": released.speed_table,
}


def with_table(text: str, name: str, table: str) -> str:
    """The page with `table` after its marker."""
    end = f"\n\n<!-- end of {name} -->"
    last = f"(?={end})" if end in text else r"(?=\n\n|\n?\Z)"
    pattern = re.compile(rf"(<!-- {name} -->\n+).+?{last}", re.S)
    text, count = pattern.subn(lambda m: m[1] + table, text)
    assert count == 1, f"nothing stands behind <!-- {name} -->"
    return text


def main() -> None:
    """Rewrites the pages."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    texts = {page: page.read_text() for page in PAGES}
    for name, table in TABLES.items():
        found = [page for page, text in texts.items() for _ in re.findall(f"<!-- {name} -->", text)]
        assert len(found) == 1, f"<!-- {name} --> has to stand once in README.md and docs/"
        texts[found[0]] = with_table(texts[found[0]], name, table())
    texts = {page: with_line_numbers(text) for page, text in texts.items()}
    for page, text in texts.items():
        page.write_text(text)
    comparison.picture(ROOT / "docs" / "images" / "learning.png")


if __name__ == "__main__":
    main()
