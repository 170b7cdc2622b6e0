"""What the programs would launch on an NVIDIA H200, counted without one.

    pip install --no-deps --target .gpu/cuda -r requirements-h200.txt \
        nvidia-cusolver-cu12 nvidia-cublas-cu12 nvidia-cuda-nvcc-cu12
    PYTHONPATH=.gpu/cuda python benchmarks/accelerator_program.py [PROGRAM ...] [--env-id TASK]

XLA compiles for a device that is only described (h200.txtpb). The programs are update, learn,
physics, train and evaluate, with preset `gpu` on engine `mjx`; by default all. A row of
accelerator_program.csv is a nest of loops: how often it is run each time that what it stands in
is, and what it launches then, kernels and copies, without what stands inside it, and the bytes
that these read and write. Nothing runs, so there are no speeds, and XLA's choice of matrix products
may differ on a device that is there.
"""

import argparse
import collections
import csv
import dataclasses
import functools
import importlib
import math
import os
import pathlib
import re
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MUJOCO_GL", "disable")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import envs
import flowrl_jax as flowrl
from benchmarks import inputs

PROGRAMS = ("update", "learn", "physics", "train", "evaluate")
# What is no launch: names for memory, and what only holds other computations.
COSTLESS = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
COSTLESS |= {"partition-id", "while", "conditional", "call"}
SIZES = {"update": (67, 21), "learn": (67, 21)}  # humanoid-run's, without its environment


@dataclasses.dataclass(frozen=True)
class Nest:
    """A computation that is run as a whole: the program, the body of a loop, a branch."""

    path: str  # "0", "0.1": the second loop of the first
    what: str  # the name that JAX gave to what it is made of
    times: str  # a number, "host asks" where only the running program knows it, or "branch"
    kernels: int
    copies: int
    moved: int  # bytes that these read and write, at most: caches and parts that are read aside


def nests(text: str) -> list[Nest]:
    """What each nest of an optimised program's text launches, the program itself first."""
    computations, entry = _computations(text), re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)[1]
    found: list[Nest] = []

    def visit(name: str, path: str, what: str, times: str) -> None:
        ops = collections.Counter(op for op, _ in computations[name] if op not in COSTLESS)
        copies = sum(count for op, count in ops.items() if op.startswith("copy"))
        moved = _moved(computations[name])
        found.append(Nest(path, what, times, sum(ops.values()) - copies, copies, moved))
        for k, (inner, label, trips) in enumerate(_inner(computations[name])):
            visit(inner, f"{path}.{k}", label, trips)

    visit(entry, "0", "program", "1")
    return found


def _computations(text: str) -> dict[str, list[tuple[str, str]]]:
    """Name -> its operations, (kind, line)."""
    computations: dict[str, list[tuple[str, str]]] = {}
    name = None
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-<>]+) \(.*\) -> .* \{$", line)
        operation = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", line)
        if head:
            name = head[1]
            computations[name] = []
        elif line.startswith("}"):
            name = None
        elif name and operation:
            computations[name].append((operation[1], line))
    return computations


def _moved(operations: list[tuple[str, str]]) -> int:
    """Bytes of all results and operands of what is launched."""
    result = re.compile(r"%?([\w.\-]+) = (\(.*?\)|\S+) [\w\-]+\((.*?)\)(?:, |$)")
    found = [(kind, *result.search(line.strip()).groups()) for kind, line in operations]
    sizes = {name: _bytes(shape) for _, name, shape, _ in found}
    total = 0
    for kind, name, _, operands in found:
        if kind not in COSTLESS:
            read = re.findall(r"%([\w.\-]+)", operands)
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in read)
    return total


def _bytes(shape: str) -> int:
    """Of "f32[8,2]{1,0}", or of all in a tuple; a library's scratch, s8, is not counted."""
    parts = re.findall(r"(pred|[fsu]|bf)(\d*)\[([\d,]*)\]", shape)
    each = [
        int(bits or 8) // 8 * math.prod(map(int, dims.split(",") if dims else []))
        for kind, bits, dims in parts
        if (kind, bits) != ("s", "8")
    ]
    return sum(each)


def _inner(operations: list[tuple[str, str]]):
    """The loops and branches of a computation: (computation, what it is, how often)."""
    for kind, line in operations:
        label = (re.search(r'op_name="([^"]+)"', line) or ["", ""])[1]
        if kind == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            body = re.search(r"body=%?([\w.\-]+)", line)[1]
            yield body, label, trips[1] if trips else "host asks"
        elif kind == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", line)
            names = [x.strip().lstrip("%") for x in listed[1].split(",")] if listed else []
            names = names or re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            yield from ((name, label, "branch") for name in names)


def program(what: str, args: flowrl.Args, algorithm=flowrl):
    """A jitted function of `PROGRAMS`, and the shapes of its arguments. algorithm: its module."""
    if what in SIZES:
        return _learning(what, *SIZES[what], args, algorithm)
    count = 2 * args.eval_episodes if what == "evaluate" else args.num_envs
    args = dataclasses.replace(args, num_envs=count)
    env = envs.make(args.env_id, count, "mjx", seed=1, num_threads=1)
    state = jax.eval_shape(functools.partial(algorithm.init_state, env, args))
    if what == "train":
        chunk = functools.partial(algorithm.train_chunk, env=env, args=args)
        return jax.jit(chunk, donate_argnums=0), (state,)
    if what == "physics":
        action = jax.ShapeDtypeStruct((count, env.action_size), jnp.float32)
        return jax.jit(env.step), (state.env, action)
    evaluate = functools.partial(algorithm.POLICY.evaluate, env=env, args=args)
    return jax.jit(evaluate), (state.learner, state.env, state.key)


def _learning(what: str, obs_size: int, action_size: int, args: flowrl.Args, algorithm):
    """One update, or all of a step, of a kind of FlowRL."""
    leading = (args.updates_per_step, args.batch_size)[what == "update" :]
    init = functools.partial(algorithm.init_learner, jax.random.key(0), obs_size, action_size, args)
    obs, action, one = (jnp.zeros(n) for n in (obs_size, action_size, 1))
    batch = flowrl.Transition(obs, action, jnp.zeros(()), obs, jnp.zeros((), bool))
    noise = flowrl.UpdateNoise(action, action, action, one)
    shape = lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype)  # noqa: E731
    given = jax.tree.map(shape, (batch, noise))
    function = functools.partial(flowrl.learn, args=args, update=algorithm.update)
    if what == "update":
        function = functools.partial(algorithm.update, args=args)
    return jax.jit(function, donate_argnums=0), (jax.eval_shape(init), *given)


def compiled(function, shapes):
    """The program for one H200, and the seconds that it took."""
    described = (HERE / "h200.txtpb").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=described, topology="1x1x1"
    )
    sharding = NamedSharding(Mesh(np.array(topology.devices[:1]), ("d",)), P())
    on_it = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    start = time.perf_counter()
    result = function.lower(*jax.tree.map(on_it, shapes)).compile()
    return result, time.perf_counter() - start


def rows(what: str, args: flowrl.Args, algorithm=flowrl) -> list[dict[str, str]]:
    """The rows of one program."""
    result, seconds = compiled(*program(what, args, algorithm))
    memory = result.memory_analysis()
    kinds = ("argument", "alias", "temp")
    mib = {k: f"{getattr(memory, f'{k}_size_in_bytes') / 2**20:.0f}" for k in kinds}
    same = {"algorithm": algorithm.__name__, "program": what}
    same |= {"env_id": "" if what in SIZES else args.env_id}
    same |= {"compute_dtype": args.compute_dtype, "matmul_precision": args.matmul_precision}
    total = {f"{kind}, MiB": size for kind, size in mib.items()}
    total |= {"compile, s": f"{seconds:.0f}", "jax": jax.__version__}
    found = [same | dataclasses.asdict(nest) for nest in nests(result.as_text())]
    found[0] |= total
    return [{name: str(value) for name, value in row.items()} for row in found]


def main() -> None:
    """Compiles, prints, and adds to accelerator_program.csv, in place of rows of the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", help=f"{', '.join(PROGRAMS)}; else all")
    parser.add_argument("--env-id", type=inputs.task, default="humanoid-run")
    dtypes, algorithms = ("float32", "bfloat16"), ("flowrl_jax", "flowrl_hlgauss_jax")
    parser.add_argument("--compute-dtype", choices=dtypes, default="float32")
    parser.add_argument("--algorithm", choices=algorithms, default="flowrl_jax")
    chosen = parser.parse_args()
    if unknown := set(chosen.programs) - set(PROGRAMS):
        parser.error(f"programs: {', '.join(sorted(unknown))} is not one of {', '.join(PROGRAMS)}")
    algorithm = importlib.import_module(chosen.algorithm)
    settings = flowrl.PRESETS["gpu"] | {"compute_dtype": chosen.compute_dtype}  # for both
    args = algorithm.Args(**settings, env_id=chosen.env_id, preset="gpu")
    path = HERE / "accelerator_program.csv"
    for what in chosen.programs or PROGRAMS:
        new = rows(what, args, algorithm)
        for row in new:
            print(*row.values(), sep=" | ", flush=True)
        names = ("algorithm", "program", "env_id", "compute_dtype", "matmul_precision")
        kept = list(csv.DictReader(path.open())) if path.exists() else []
        kept = [row for row in kept if any(row[name] != new[0][name] for name in names)]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(new[0]), restval="")
            writer.writeheader()
            writer.writerows(kept + new)


if __name__ == "__main__":
    main()
