"""Puts the measured tables and the present line numbers into README.md.

    python benchmarks/readme.py

A table stands between `<!-- NAME -->` and the next empty line; tests/test_readme.py compares what
it can recompute.
"""

import csv
import dataclasses
import inspect
import pathlib
import re
import sys
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import envs
import flowrl_jax as flowrl
from benchmarks import learning
from tasks import h1

README = HERE.parent / "README.md"
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


def flags() -> str:
    """Every flag: its values in each preset, and the comment beside its field."""
    comments = dict(re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(flowrl.Args), re.M))
    lines, types = [], typing.get_type_hints(flowrl.Args)
    for field in dataclasses.fields(flowrl.Args):
        values = [preset.get(field.name, field.default) for preset in flowrl.PRESETS.values()]
        shown = [f"{v:,}" if type(v) is int else f"{v}".lower() for v in values]
        shown = [text or '""' for text in shown]
        meaning = comments[field.name].replace("|", "\\|")
        choices = typing.get_args(types[field.name])
        meaning += f" ({', '.join(choices)})" if choices else ""
        lines.append((f"`--{field.name.replace('_', '-')}`", *shown, meaning))
    return markdown(f"flag | {' | '.join(flowrl.PRESETS)} | meaning", lines)


def parity() -> str:
    """Largest differences and speed of every task on every engine it was measured on."""
    by_task: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows("parity.csv"):
        by_task.setdefault(row["env_id"], {})[row["engine"]] = row
    lines = []
    for env_id in envs.task_ids():
        cells = [env_id]
        for engine in ("native", "mjx", "warp"):
            row = by_task.get(env_id, {}).get(engine)
            cells += [row["max_abs_obs"], row["max_abs_reward"]] if row else ["", ""]
            rate = row and row.get("steps_per_second")
            cells.append(f"{float(rate):,.0f}" if rate else "")
        lines.append(tuple(cells))
    header = "env_id | native: observation | reward | steps/s"
    header += " | mjx: observation | reward | steps/s | warp: observation | reward | steps/s"
    return markdown(header, lines)


def h1_tasks() -> str:
    """HumanoidBench's tasks: sizes, thresholds, ends, and the speed of each engine."""
    rates = {(row["env_id"], row["engine"]): row["steps_per_second"] for row in rows("parity.csv")}
    lines = []
    for name, success in h1.TASKS.items():
        env = envs.make(f"h1-{name}", 1, "native", num_threads=1)
        speeds = [rates.get((env.env_id, engine)) for engine in envs.ENGINES]
        speeds = [f"{float(rate):,.0f}" if rate else "" for rate in speeds]
        cells = (env.env_id, env.observation_size, f"{success:,.0f}", H1_ENDS[name])
        lines.append((*cells, *speeds))
    header = "env_id | observations | success: return from | ends when"
    return markdown(header + " | native: steps/s | mjx: steps/s | warp: steps/s", lines)


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


def short_runs() -> str:
    """A short run on every task."""
    names = ("env_id", "steps", "updates", "nonfinite_losses", "nonfinite_states", "critic loss")
    lines = []
    for row in rows("short_runs.csv"):
        cells = [row.get(name, "") for name in names]
        cells[-1] = f"{float(cells[-1]):.2g}" if cells[-1] else ""
        lines.append((*cells, row["exit code"]))
    header = "env_id | steps | updates | non-finite losses | non-finite states | critic loss | exit"
    return markdown(header, lines)


def line_numbers(text: str) -> str:
    """Corrects every "`name` (line 123)" to where `name` is defined in flowrl_jax.py."""
    source = (HERE.parent / "flowrl_jax.py").read_text().splitlines()

    def number(match: re.Match) -> str:
        pattern = re.compile(rf"(def|class) {match[1]}\b")
        return f"`{match[1]}` (line {next(i for i, s in enumerate(source, 1) if pattern.match(s))})"

    return re.sub(r"`(\w+)` \(line \d+\)", number, text)


def main() -> None:
    """Rewrites README.md."""
    text = README.read_text()
    tables = {
        "flags": flags,
        "tasks": envs.task_table,
        "parity": parity,
        "h1": h1_tasks,
        "learning": learning.table,
        "env throughput": env_throughput,
        "update throughput": update_throughput,
        "loop throughput": loop_throughput,
        "start-up": start_up,
        "overlap": overlap,
        "seeds": seeds,
        "checkpoint cost": checkpoint_cost,
        "short runs": short_runs,
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(?=\n\n)"
        text, count = re.subn(pattern, lambda m, t=table: m[1] + t(), text, flags=re.S)
        assert count == 1, f"README.md needs one <!-- {name} -->"
    README.write_text(line_numbers(text))


if __name__ == "__main__":
    main()
