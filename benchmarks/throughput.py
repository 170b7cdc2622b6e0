"""How near to the limit environments, updates and the whole training loop are, on this machine.

    python benchmarks/throughput.py                    # the first three parts and the plot
    python benchmarks/throughput.py env --engines native --tasks cheetah-run
    python benchmarks/throughput.py plot

Contenders take turns, block by block, in one process: machines are noisy, ratios within a round
are less so. Each part writes throughput_{part}.csv beside this file; rows of other settings there
stay, and `throughput.png` shows all of them.

env     control steps a second of `env.step` (actions scaled, physics, fresh sensors, observation,
        reward, auto-reset) in one compiled loop, beside the bare engine from the same states with
        the same actions: `mujoco.rollout`, or `mjx.step` on the model that our engine has, with
        nothing of ours in it; and EnvPool, if it is installed (Python >= 3.12).
update  updates a second, beside the floor: operations that XLA counts in the compiled update, over
        the rate of a large matrix product of the same precision, measured in the same rounds.
loop    `train_chunk`, beside the sum of its parts: the environments alone and the updates alone.
algorithms  the training loop of each algorithm at the preset for this machine, beside FlowRL's.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import importlib
import os
import pathlib
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable

os.environ.setdefault("MUJOCO_GL", "disable")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np

import envs
import flowrl_jax as flowrl
import vector_env
from benchmarks import inputs
from harness import command_line, machine

try:
    import envpool
except ImportError:
    envpool = None

HERE = pathlib.Path(__file__).resolve().parent
TASKS = ("cheetah-run", "humanoid-run", "dog-run")
ALGORITHMS = ("flowrl_jax", "flowrl_hlgauss_jax", "sac_jax")
SIZES = {
    "cpu": ((8, 128), (64, 512)),
    "gpu": ((512, 2048), (1024, 8192)),
}  # environments and batch, of all algorithms; else as preset
PARTS = ("env", "update", "loop", "algorithms", "plot")
ENVPOOL = {"cheetah-run": "CheetahRun-v1", "humanoid-run": "HumanoidRun-v1"}
NUM_ENVS, BATCHES, WIDTHS = (1, 64, 1024, 4096), (256, 4096, 32768), (256, 512)
ENVPOOL_MAX = 1024  # environments: it takes 11 MB for each
OBS_SIZE, ACTION_SIZE = 67, 21  # the humanoid's
SHOWN = 1.3  # ratios up to which the plot goes
BLOCK = 0.5  # s, about how long a block is
TOO_LONG = 20.0  # s for one vector step or update: then it is left out, and the row says so
Timed = Callable[[int], float]  # number of steps -> s

LOOPS = {  # environments, updates and sizes of the whole loop, by the device it is meant for
    "cpu": {
        "cheetah-run, preset cpu": ("cheetah-run", "cpu", {}),
        "humanoid-run, preset cpu": ("humanoid-run", "cpu", {}),
        "humanoid-run, preset paper": ("humanoid-run", "paper", {}),
    },
    "gpu": {
        "humanoid-run, preset gpu": ("humanoid-run", "gpu", {}),
        "dog-run, preset gpu": ("dog-run", "gpu", {}),
        "humanoid-run, preset paper, native": ("humanoid-run", "paper", {"engine": "native"}),
    },
}


# ------------------------------------------------------------------------------------------ timing
def interleaved(
    contenders: dict[str, Timed], blocks: int, compiled: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds for one step of each contender, by block; each has blocks of about BLOCK seconds.

    The first call, which compiles, and the second, which sets the length of a block, do not count.
    A contender whose single step takes more than TOO_LONG gets no seconds. `compiled` is called
    between: it can wait until the machine is quiet.
    """
    lengths = {}
    for timed in contenders.values():
        timed(1)
    compiled()
    for name, timed in contenders.items():
        seconds = timed(1)
        seconds = timed(5) / 5 if seconds < BLOCK / 10 else seconds
        lengths[name] = max(1, round(BLOCK / seconds)) if seconds < TOO_LONG else 0
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(blocks):
        for name, length in lengths.items():
            if length:
                rates[name].append(contenders[name](length) / length)
    return rates


def repeated(step: Callable, state) -> Timed:
    """Times n calls of `step`, (state, i) -> state, in one compiled loop that donates `state`."""
    loop = jax.jit(
        lambda s, n: jax.lax.fori_loop(0, n, lambda i, s: step(s, i), s), donate_argnums=0
    )
    carried = [jax.tree.map(jnp.array, state)]

    def timed(length: int) -> float:
        start = time.perf_counter()
        carried[0] = jax.block_until_ready(loop(carried[0], length))
        return time.perf_counter() - start

    return timed


def ratio(above: list[float], below: list[float]) -> dict[str, str]:
    """Median and range of above / below, block by block; empty without blocks."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=False))
    if not ratios:
        return {"ratio": "", "range": ""}
    return {
        "ratio": f"{statistics.median(ratios):.3f}",
        "range": f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
    }


def number(value: float) -> str:
    """Four digits, or nothing for what was not measured."""
    return f"{value:.4g}" if value == value else ""


def median(values: list[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else float("nan")


# ---------------------------------------------------------------------------------------- env (a)
def ours(env: envs.VectorEnv, state: vector_env.EnvState, actions: jax.Array) -> Timed:
    """`env.step` with actions (T, N, A), over and over."""
    return repeated(lambda s, i: env.step(s, actions[i % len(actions)]), state)


def bare_native(env: envs.VectorEnv, state: vector_env.EnvState, actions: jax.Array) -> Timed:
    """`mujoco.rollout` from `state` on; its results are allocated and touched beforehand."""
    model, kind = env.task.model, mujoco.mjtState.mjSTATE_FULLPHYSICS
    substeps = round(env.control_timestep / model.opt.timestep)
    threads = env._engine._num_threads
    datas = [mujoco.MjData(model) for _ in range(threads)]
    pool = mujoco.rollout.Rollout(nthread=threads)
    physics = [np.asarray(x) for x in (state.physics.qpos, state.physics.qvel, state.physics.act)]
    initial = np.zeros((env.num_envs, mujoco.mj_stateSize(model, kind)))
    initial[:, 1 : 1 + model.nq + model.nv + model.na] = np.concatenate(physics, axis=1)
    warmstart = np.asarray(state.physics.warmstart, float)
    every = env._ctrl_middle + env._ctrl_half_range * np.asarray(actions, float)  # (T, N, A)
    current = [initial, warmstart]

    def timed(length: int) -> float:
        ctrl = np.repeat(every[np.arange(length) % len(every)].swapaxes(0, 1), substeps, axis=1)
        sizes = (initial.shape[1], model.nsensordata)
        states, sensors = (np.ones((*ctrl.shape[:2], size)) for size in sizes)
        outputs = {"state": states, "sensordata": sensors}
        start = time.perf_counter()
        pool.rollout(model, datas, current[0], ctrl, initial_warmstart=current[1], **outputs)
        seconds = time.perf_counter() - start
        current[0] = states[:, -1].copy()
        return seconds

    return timed


def bare_mjx(env: envs.VectorEnv, state: vector_env.EnvState, actions: jax.Array) -> Timed:
    """`jax.vmap(mjx.step)` on the model that our engine has, and MJX as it is installed.

    On `mjx` with the contacts that our engine has, without the functions of ours that replace
    MJX's, and with dm_control's iterations of the line search.
    """
    from engines.mjx import import_mjx, with_contacts

    mjx, engine, task = import_mjx(), env._engine, env.task
    model, data = engine._model, engine._data
    if env.engine == "mjx":
        plain = with_contacts(task.model, task.mjx_floor, task.mjx_obstacles)
        plain.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
        model, data = mjx.put_model(plain, impl="jax"), mjx.make_data(plain, impl="jax")
    physics = state.physics

    def load(qpos: jax.Array, qvel: jax.Array, act: jax.Array, warmstart: jax.Array):
        return data.replace(qpos=qpos, qvel=qvel, act=act, qacc_warmstart=warmstart)

    batch = jax.vmap(load)(physics.qpos, physics.qvel, physics.act, physics.warmstart)
    ctrl = env._ctrl_middle + env._ctrl_half_range * actions

    def step(batch, i):
        batch = batch.replace(ctrl=ctrl[i % len(ctrl)])
        substep = jax.vmap(functools.partial(mjx.step, model))
        return jax.lax.fori_loop(0, engine._num_substeps, lambda _, b: substep(b), batch)

    return repeated(step, batch)


def bare_envpool(env: envs.VectorEnv, actions: jax.Array) -> Timed:
    """EnvPool's own task, from its own resets."""
    threads = env._engine._num_threads
    sizes = {"num_envs": env.num_envs, "num_threads": min(threads, env.num_envs)}
    pool = envpool.make(ENVPOOL[env.env_id], "gymnasium", **sizes, seed=0)
    pool.reset()
    every = np.asarray(actions, float)

    def timed(length: int) -> float:
        start = time.perf_counter()
        for i in range(length):
            pool.step(every[i % len(every)])
        return time.perf_counter() - start

    return timed


def measure_env(env_id: str, engine: str, num_envs: int, blocks: int) -> dict[str, str]:
    """Control steps a second, ours and bare."""
    row = {"env_id": env_id, "engine": engine, "num_envs": str(num_envs)}
    env = envs.make(env_id, num_envs, engine)
    state = env.reset(jax.random.key(0))
    shape = (min(64, -(-65536 // num_envs)), num_envs, env.action_size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0)
    bare = bare_native if engine == "native" else bare_mjx
    contenders = {"bare": bare(env, state, actions), "ours": ours(env, state, actions)}
    if envpool and engine == "native" and env_id in ENVPOOL and num_envs <= ENVPOOL_MAX:
        contenders["envpool"] = bare_envpool(env, actions)
    seconds = interleaved(contenders, blocks) | {}
    for name in ("bare", "ours", "envpool"):
        row[name] = number(num_envs / median(seconds.get(name, [])))
    row |= ratio(seconds["bare"], seconds["ours"])
    against = ratio(seconds.get("envpool", []), seconds["ours"])
    row |= {f"envpool {name}": value for name, value in against.items()}
    row["note"] = "" if seconds["ours"] else f"one vector step took over {TOO_LONG:g} s"
    return row


# ------------------------------------------------------------------------------------- update (b)
def example_batch(args: flowrl.Args) -> tuple[flowrl.Transition, flowrl.UpdateNoise]:
    """Numbers of the right sizes; nothing depends on which."""
    key, size = jax.random.key(0), args.batch_size
    obs = jax.random.normal(key, (size, OBS_SIZE))
    action = jax.random.uniform(key, (size, ACTION_SIZE), minval=-1.0)
    no = jnp.zeros(size, bool)
    batch = flowrl.Transition(obs, action, jnp.ones(size), obs, no)
    return batch, flowrl.draw_update_noise(key, size, ACTION_SIZE)


def operations(learner: flowrl.LearnerState, args: flowrl.Args) -> float:
    """Floating-point operations of one update by XLA's count, mean of an even and an odd one."""
    counts = []
    for due in (1, 0):
        one = jax.jit(functools.partial(flowrl.update, args=args, due=due))
        compiled = one.lower(learner, *example_batch(args)).compile()
        counts.append(compiled.cost_analysis()["flops"])
    return sum(counts) / 2


def matrix_product(dtype: str, precision: str = "highest", size: int = 2048) -> Timed:
    """A product of two square matrices, over and over; 2 size^3 operations each."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
    return repeated(lambda x, i: jnp.matmul(x, a, precision=precision), a)


def measure_update(
    batch_size: int,
    width: int,
    dtype: str,
    blocks: int,
    precision: str = "highest",
    compiled: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Updates a second, and the share of the machine's matrix rate that this is."""
    sizes = {"batch_size": batch_size, "hidden_size": width, "compute_dtype": dtype}
    args = flowrl.Args(**sizes, updates_per_step=2, matmul_precision=precision)
    learner = flowrl.init_learner(jax.random.key(0), OBS_SIZE, ACTION_SIZE, args)
    batch, noise = example_batch(args)
    flops = operations(learner, args)

    def pair(learner, _):  # one with a policy step and one without
        for due in (1, 0):
            learner, _ = flowrl.update(learner, batch, noise, args, due)
        return learner

    contenders = {"update": repeated(pair, learner), "product": matrix_product(dtype, precision)}
    seconds = interleaved(contenders, blocks, compiled)
    update = [s / 2 for s in seconds["update"]]
    floor = [flops * s / (2 * 2048**3) for s in seconds["product"]]
    return {
        "batch_size": str(batch_size),
        "width": str(width),
        "dtype": dtype,
        "updates": number(1 / median(update)),
        "GFLOP an update": number(flops / 1e9),
        "GFLOP/s": number(flops / median(update) / 1e9),
        "GFLOP/s of a product": number(2 * 2048**3 / median(seconds["product"]) / 1e9),
        **ratio(floor, update),
    }


# --------------------------------------------------------------------------------------- loop (c)
def with_full_replay(module: types.ModuleType, env_id: str, preset: str, flags: dict):
    """An algorithm's environments, arguments and first state, as if its replay were full.

    So that updates draw from all of it, which is of 262,144 transitions at most.
    """
    args = module.Args(**module.PRESETS[preset] | flags | dict(env_id=env_id, preset=preset))
    args = dataclasses.replace(args, learning_starts=0, buffer_size=min(args.buffer_size, 262_144))
    env = envs.make(env_id, args.num_envs, args.engine)
    state = module.init_state(env, args)
    rows = jnp.array(len(state.replay.data.reward), jnp.int32)
    return env, args, state.replace(replay=state.replay.replace(size=rows))


def measure_loop(
    name: str,
    env_id: str,
    preset: str,
    flags: dict,
    blocks: int,
    compiled: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """The training loop beside the environments alone plus the updates alone."""
    env, args, state = with_full_replay(flowrl, env_id, preset, flags)
    actions = jax.random.uniform(
        jax.random.key(1), (64, args.num_envs, env.action_size), minval=-1.0
    )

    def learn(carry, i):
        key = jax.random.fold_in(jax.random.key(2), i)
        learner, ring = carry
        return flowrl.learn(learner, *flowrl.draw_batches(key, ring, args), args)[0], ring

    contenders = {
        "env": ours(env, state.env, actions),
        "learn": repeated(learn, (state.learner, state.replay)),
        "loop": repeated(lambda s, _: flowrl.train_step(s, env, args)[0], state),
    }
    seconds = interleaved(contenders, blocks, compiled)
    parts = [a + b for a, b in zip(seconds["env"], seconds["learn"], strict=True)]
    per_step = {key: f"{1e3 * median(value):.3g}" for key, value in seconds.items()}
    return {
        "run": name,
        "engine": env.engine,
        "env ms": per_step["env"],
        "updates ms": per_step["learn"],
        "loop ms": per_step["loop"],
        "steps/s": number(args.num_envs / median(seconds["loop"])),
        "updates/s": number(args.updates_per_step / median(seconds["loop"])),
        **ratio(parts, seconds["loop"]),
    }


def training_loop(
    name: str, env_id: str, preset: str, size: tuple[int, int] | None = None
) -> tuple[Timed, flowrl.Args]:
    """An algorithm's `train_step` on a full replay, n times, and its arguments.

    size: environments and batch; None: the preset's.
    """
    module = importlib.import_module(name)
    flags = dict(zip(("num_envs", "batch_size"), size, strict=True)) if size else {}
    env, args, state = with_full_replay(module, env_id, preset, flags)
    return repeated(lambda s, _: module.train_step(s, env=env, args=args)[0], state), args


def measure_algorithms(env_id: str, preset: str, blocks: int) -> list[dict[str, str]]:
    """All training loops in turns, at all sizes; the ratio is of updates a second, to the first."""
    contenders, sizes = {}, {}
    for name in ALGORITHMS:
        for size in SIZES.get(preset, (None,)):
            contenders[name, size], sizes[name, size] = training_loop(name, env_id, preset, size)
    seconds = interleaved(contenders, blocks)
    first = seconds[next(iter(contenders))]
    return [
        {
            "env_id": env_id,
            "preset": preset,
            "algorithm": key[0],
            "num_envs": str(args.num_envs),
            "batch_size": str(args.batch_size),
            "updates/s": number(args.updates_per_step / median(seconds[key])),
            "steps/s": number(args.num_envs / median(seconds[key])),
            **ratio(first, seconds[key]),
        }
        for key, args in sizes.items()
    ]


# -------------------------------------------------------------------------------------------- main
def hardware() -> str:
    """The accelerator, or the processor's name and how many cores this process may use."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {len(os.sched_getaffinity(0))} cores"
    return platform.processor() or platform.machine()


def conditions(program: str = "benchmarks/throughput.py") -> dict[str, str]:
    """What belongs to every row: where, with what, how."""
    pool = envpool.__version__ if envpool else "absent"
    return {
        "hardware": hardware(),
        "load at start": f"{os.getloadavg()[0]:.1f}",  # of other programs: 0 on a quiet machine
        "versions": f"python {platform.python_version()}, mujoco {mujoco.__version__}, "
        f"jax {jax.__version__}, envpool {pool}",
        "command": " ".join(["python", program, *sys.argv[1:]]),
    }


def write(name: str, keys: tuple[str, ...], row: dict[str, str]) -> None:
    """Puts a row into {name}.csv, in the place of one with the same `keys` and hardware."""
    path = HERE / f"{name}.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    keys = (*keys, "hardware")
    rows = [r for r in rows if any(r[k] != row[k] for k in keys)] + [row]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row, restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(
        *[f"{k} {v}" for k, v in row.items() if k not in conditions() and v], sep="  ", flush=True
    )


def plot() -> None:
    """Draws throughput.png from the three CSVs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = {
        "env": ("env.step / bare engine", lambda r: f"{r['env_id']} {r['engine']} {r['num_envs']}"),
        "update": (
            "update: share of the matrix rate",
            lambda r: f"batch {r['batch_size']} width {r['width']} {r['dtype']}",
        ),
        "loop": ("parts / whole loop", lambda r: r["run"]),
    }
    figure, axes = plt.subplots(1, 3, figsize=(15, 7), layout="constrained")
    for axis, (part, (title, label)) in zip(axes, parts.items(), strict=True):
        path = HERE / f"throughput_{part}.csv"
        rows = [r for r in csv.DictReader(path.open()) if r["ratio"]] if path.exists() else []
        rows.sort(key=lambda r: (r.get("engine") != "native", r.get("env_id", "")))  # else as it is
        several = len({r["hardware"] for r in rows}) > 1
        labels = [label(r) + (f" ({r['hardware'].split(',')[0]})" if several else "") for r in rows]
        axis.barh(labels, [float(r["ratio"]) for r in rows], color="#4878a8")
        for place, r in enumerate(rows):
            low, high = map(float, r["range"].split("-"))
            axis.plot([low, high], [place, place], color="black", linewidth=1)
            if (
                float(r["ratio"]) > SHOWN
            ):  # MJX alone is slow where its line search never ends early
                axis.text(SHOWN, place, f"{r['ratio']} ", ha="right", va="center", color="white")
        axis.axvline(0.85 if part == "update" else 0.9, color="#c44", linestyle="--", label="aim")
        axis.set(title=title, xlim=(0, SHOWN))
        axis.invert_yaxis()
        axis.legend(loc="lower right")
    figure.savefig(HERE / "throughput.png", dpi=100)


def main() -> None:
    """Measures the parts that were asked for."""
    parser = argparse.ArgumentParser(description="throughput on this machine")
    parser.add_argument("parts", nargs="*", default=[], metavar="|".join(PARTS))
    engines = [envs.choose_engine("auto")]
    parser.add_argument("--engines", nargs="+", choices=envs.ENGINES, default=engines)
    parser.add_argument("--tasks", nargs="+", type=inputs.task, default=TASKS)
    parser.add_argument("--num-envs", nargs="+", type=inputs.positive, default=NUM_ENVS)
    parser.add_argument("--batch-sizes", nargs="+", type=inputs.positive, default=BATCHES)
    parser.add_argument("--widths", nargs="+", type=inputs.positive, default=WIDTHS)
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=["float32"])
    parser.add_argument("--blocks", type=inputs.positive, default=9)
    args = parser.parse_args()
    wanted = args.parts or ["env", "update", "loop", "plot"]
    unknown = set(wanted) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(PARTS)}")
    if "env" in wanted:
        inputs.check_engines(parser, "--engines", args.engines, args.tasks)
    machine.enable_compilation_cache()
    common = conditions()
    if "env" in wanted:
        if envpool is None:
            print("EnvPool is not installed here (Python >= 3.12: pip install envpool==1.2.7)")
        for engine in args.engines:
            for env_id in args.tasks:
                for num_envs in args.num_envs:
                    row = measure_env(env_id, engine, num_envs, args.blocks)
                    write("throughput_env", ("env_id", "engine", "num_envs"), row | common)
                    jax.clear_caches()
    if "update" in wanted:
        for dtype in args.dtypes:
            for width in args.widths:
                for batch_size in args.batch_sizes:
                    row = measure_update(batch_size, width, dtype, args.blocks)
                    write("throughput_update", ("batch_size", "width", "dtype"), row | common)
    if "loop" in wanted:
        for name, (env_id, preset, flags) in LOOPS[command_line.preset_for_this_machine()].items():
            row = measure_loop(name, env_id, preset, flags, args.blocks)
            write("throughput_loop", ("run",), row | common)
    if "algorithms" in wanted:
        preset = command_line.preset_for_this_machine()
        for env_id in args.tasks:
            for row in measure_algorithms(env_id, preset, args.blocks):
                keys = ("env_id", "preset", "algorithm", "num_envs", "batch_size")
                write("throughput_algorithms", keys, row | common)
    if "plot" in wanted:
        plot()


if __name__ == "__main__":
    main()
