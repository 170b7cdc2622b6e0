"""`flowrl_jax.update` beside the update of the authors' PyTorch code: how far weights are apart.

    git clone https://github.com/bytedance/FlowRL released
    pip install torch
    python benchmarks/released.py --released released     # writes benchmarks/released.csv
    taskset -c 0 python benchmarks/released.py --released released --speed   # released_speed.csv

The released `model/algo.py` runs as it is, on the CPU and not compiled. Both sides begin with the
same weights, and are given the same batches and the same random numbers: `UpdateNoise`'s, which
take the place of what PyTorch would draw. Sizes and settings are those of preset `paper` on
humanoid-run but for the solver, which is the released one (`--ode-solver midpoint`). The released
loss is `--w2-weighting batch_mean`; `per_sample` changes one line of it, the mean of the flow's
squared error, which is then taken of each transition. All is in float64: by Adam's first steps a
gradient that is nothing but rounding moves a weight as far as any other, so in float32 equal code
differs in single weights by whole steps. Figures are largest absolute differences over all weights
of a network, and `moved` is how far the furthest weight has come by then.

With --speed both are timed instead, in turn, in float32, the released code compiled as it asks for:
updates a second on as many cores as the process may use, from a batch in memory that is always the
same; either draws its own noise.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import importlib
import itertools
import os
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

CSV_PATH = Path(__file__).resolve().with_suffix(".csv")
SPEED_PATH = CSV_PATH.with_stem("released_speed")
sys.path.insert(0, str(CSV_PATH.parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

import flowrl_jax as flowrl
from benchmarks.precision import ACTIONS, OBS, cast, random_batch
from harness import machine
from reporting.tables import markdown_table

UPDATES = 4  # the policy is due on the first and the third
TURNS, IN_A_TURN = 10, 20  # of timing: turns of each side, and the updates in one
WEIGHTINGS, FLOW_STEPS = ("batch_mean", "per_sample"), (1, 5)
double = functools.partial(cast, old="float32", new="float64")
NETWORKS = {  # of LearnerState, and how the released code calls them
    "velocity_field": "policy",
    "critic": "critic",
    "behaviour_critic": "critic_buffer",
    "behaviour_value": "V_critic_buffer",
    "target_critic": "critic_target",
    "target_behaviour_critic": "critic_target_buffer",
}
# Our layers, theirs, and our parameters with theirs.
LAYERS = {"Dense": ("Linear", "kernel"), "LayerNorm": ("LayerNorm", "scale")}


def load(folder: Path, compiled: bool = False) -> types.ModuleType:
    """The released model/algo.py. Raises OSError or ImportError.

    compiled: as it asks for; else nothing is.
    """
    if not (folder / "model" / "algo.py").is_file():
        raise FileNotFoundError(f"{folder} has no model/algo.py: clone the released code there")
    os.environ["TORCHDYNAMO_DISABLE"] = str(int(not compiled))  # read as torch is imported
    sys.path.insert(0, str(folder.resolve()))
    algo = importlib.import_module("model.algo")
    algo.compile_model = compiled
    return algo


def weights(network, params: flowrl.Params) -> Iterator[tuple]:
    """(tensor of a released network, array of ours), for all of them.

    The k-th Linear of the released code, in the order of its definitions, is our Dense_k, and the
    k-th LayerNorm our LayerNorm_k; a critic's second head follows its first, where our arrays have
    an axis of heads.
    """
    tree = params["params"]
    is_critic = len(tree) == 1
    heads = [tree]
    if is_critic:
        (tree,) = tree.values()
        heads = [jax.tree.map(lambda leaf, head=head: leaf[head], tree) for head in (0, 1)]
    for ours, (theirs, matrix) in LAYERS.items():
        layers = [layer for layer in network.modules() if type(layer).__name__ == theirs]
        found = [head[f"{ours}_{k}"] for head in heads for k in range(len(layers) // len(heads))]
        for layer, arrays in zip(layers, found, strict=True):
            yield layer.weight, np.asarray(arrays[matrix]).T
            yield layer.bias, np.asarray(arrays["bias"])


@contextlib.contextmanager
def in_float64(torch: types.ModuleType) -> Iterator[None]:
    """What the released code makes or casts is of float64."""
    casts = {"FloatTensor": torch.DoubleTensor, "float32": torch.float64}
    with (
        mock.patch.multiple(torch, **casts),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        torch.set_default_dtype(torch.float64)
        yield


def params_of(learner: flowrl.LearnerState, name: str) -> flowrl.Params:
    """A network's parameters: a target is nothing else."""
    network = getattr(learner, name)
    return network if isinstance(network, dict) else network.params


def fresh_agent(algo: types.ModuleType, args: flowrl.Args, obs_size=OBS, action_size=ACTIONS):
    """The released agent, on the CPU."""
    torch, ones = algo.torch, np.ones(action_size)
    space = types.SimpleNamespace(shape=(action_size,), low=-ones, high=ones)
    config = types.SimpleNamespace(
        gamma=args.gamma,
        tau=args.target_tau,
        quantile=args.expectile,
        lamda=args.w2_coef,
        hidden_size=args.hidden_size,
        lr=args.learning_rate,
        steps=args.flow_steps,
        target_update_interval=2,
        policy="Flow",
        epsilon=0.0,
        cuda=False,
        device=0,
    )
    with mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
        agent = algo.flowAC(obs_size, space, config)
    agent.policy.device = agent.device
    return agent


def released_agent(algo: types.ModuleType, learner: flowrl.LearnerState, args: flowrl.Args):
    """The released agent with our weights in all six networks, in float64."""
    with in_float64(algo.torch):
        agent = fresh_agent(algo, args)
    for ours, theirs in NETWORKS.items():
        network = getattr(agent, theirs)
        pairs = list(weights(network, params_of(learner, ours)))
        assert len(pairs) == len(list(network.parameters())), f"{theirs}: has other layers"
        for tensor, array in pairs:
            assert tensor.shape == array.shape, f"{theirs}: {tensor.shape}, ours {array.shape}"
            tensor.data = algo.torch.tensor(array)
    return agent


def memory_of(batch: flowrl.Transition) -> types.SimpleNamespace:
    """What the released agent draws from: always this batch."""
    fields = (batch.obs, batch.action, batch.reward, batch.next_obs, 1.0 - batch.terminated)
    arrays = tuple(np.array(array) for array in fields)  # copies: PyTorch wants to write
    return types.SimpleNamespace(sample=lambda batch_size: arrays)


def released_update(algo, agent, batch: flowrl.Transition, noise, updates: int, args) -> None:
    """One update of the released agent, whose draws are `noise`. updates: those before it."""
    torch = algo.torch
    given = lambda array: torch.tensor(np.asarray(array))  # noqa: E731
    sources = iter([noise.x0_next, noise.x0_policy])  # a rollout's x0: for (2), then for (6)
    draws = {
        "normal": lambda *_, **__: given(next(sources)),
        "randn_like": lambda *_, **__: given(noise.x0_flow),
        "rand": lambda *_, **__: given(noise.t),
    }
    mean = algo.F.mse_loss
    if args.w2_weighting == "per_sample":

        def mean(x, y, reduction=None, whole=algo.F.mse_loss):
            return ((x - y) ** 2).mean(-1, keepdim=True) if reduction else whole(x, y)

    with (
        in_float64(torch),
        mock.patch.multiple(torch, **draws),
        mock.patch.object(algo.F, "mse_loss", mean),
    ):
        agent.update_parameters(memory_of(batch), args.batch_size, updates)


def compare(algo: types.ModuleType, args: flowrl.Args) -> Iterator[dict[str, str | int]]:
    """Rows: after each update, of each network, the largest difference and the largest step."""
    start = learner = double(flowrl.init_learner(jax.random.key(0), OBS, ACTIONS, args))
    agent = released_agent(algo, learner, args)
    args = dataclasses.replace(args, compute_dtype="float64")
    update = jax.jit(functools.partial(flowrl.update, args=args))
    for k in range(UPDATES):
        batch, noise = double(random_batch(jax.random.key(1 + k), args))
        batch = batch.replace(terminated=jnp.arange(args.batch_size) % 10 == k)
        learner, _ = update(learner, batch, noise)
        released_update(algo, agent, batch, noise, k, args)
        for ours, theirs in NETWORKS.items():
            pairs = weights(getattr(agent, theirs), params_of(learner, ours))
            apart = max(np.abs(tensor.detach().numpy() - array).max() for tensor, array in pairs)
            before, now = (jax.tree.leaves(params_of(one, ours)) for one in (start, learner))
            moved = max(np.abs(a - b).max() for a, b in zip(before, now, strict=True))
            row = dict(weighting=args.w2_weighting, flow_steps=args.flow_steps, updates=k + 1)
            yield row | dict(network=ours, difference=f"{apart:.1e}", moved=f"{moved:.1e}")


def speeds(algo: types.ModuleType, args: flowrl.Args) -> dict[str, str | int]:
    """A row: updates a second of both, timed in turn."""
    batch, _ = random_batch(jax.random.key(1), args)

    def one(learner: flowrl.LearnerState, batch: flowrl.Transition, key: jax.Array):
        noise = flowrl.draw_update_noise(key, args.batch_size, ACTIONS)
        return flowrl.update(learner, batch, noise, args)[0]

    update = jax.jit(one, donate_argnums=0)
    learner = flowrl.init_learner(jax.random.key(0), OBS, ACTIONS, args)
    agent, memory, key = fresh_agent(algo, args), memory_of(batch), jax.random.key(2)
    rates = {"ours": [], "released": []}
    for turn in range(TURNS + 1):  # the first compiles
        begun = time.perf_counter()
        for _ in range(IN_A_TURN):
            learner = update(learner, batch, key)
        jax.block_until_ready(learner)
        middle = time.perf_counter()
        for k in range(IN_A_TURN):
            agent.update_parameters(memory, args.batch_size, k)
        end = time.perf_counter()
        if turn:
            rates["ours"].append(IN_A_TURN / (middle - begun))
            rates["released"].append(IN_A_TURN / (end - middle))
    ratios = np.array(rates["ours"]) / np.array(rates["released"])
    hardware = machine.hardware()
    row = dict(batch=args.batch_size, width=args.hidden_size, cores=hardware["cores"])
    row |= {name: f"{np.median(rate):.1f}" for name, rate in rates.items()}
    row |= {"ratio": f"{np.median(ratios):.2f}", "lowest": f"{ratios.min():.2f}"}
    row |= {"highest": f"{ratios.max():.2f}", "cpu": hardware["cpu"], "jax": jax.__version__}
    return row | {"torch": algo.torch.__version__}


def table() -> str:
    """docs/algorithm.md's: after UPDATES updates, by network, the settings side by side."""
    cells: dict[str, dict[str, str]] = {}
    with CSV_PATH.open() as file:
        for row in csv.DictReader(file):
            if int(row["updates"]) == UPDATES:
                setting = f"`{row['weighting']}`, N = {row['flow_steps']}"
                cells.setdefault(f"`{row['network']}`", {"moved": row["moved"]})
                cells[f"`{row['network']}`"][setting] = row["difference"]
    lines = [(network, *of_network.values()) for network, of_network in cells.items()]
    return markdown_table(["network", *next(iter(cells.values()))], lines)


def speed_table() -> str:
    """docs/throughput.md's."""
    with SPEED_PATH.open() as file:
        rows = list(csv.DictReader(file))
    lines = [
        (row["batch"], row["width"], row["cores"], row["ours"], row["released"])
        + (f"{row['ratio']} ({row['lowest']}-{row['highest']})", row["cpu"])
        for row in rows
    ]
    names = ["batch", "width", "cores", "`flowrl_jax.py`, updates/s", "released code, updates/s"]
    return markdown_table([*names, "ratio", "machine"], lines)


def compare_all(algo: types.ModuleType) -> Iterator[dict[str, str | int]]:
    """Rows of `compare`, of all settings."""
    jax.config.update("jax_enable_x64", True)
    wide = types.SimpleNamespace(**vars(jnp) | {"float32": jnp.float64})
    with mock.patch.object(flowrl, "jnp", wide):  # the networks hand float32 back
        for weighting, flow_steps in itertools.product(WEIGHTINGS, FLOW_STEPS):
            args = dict(ode_solver="midpoint", w2_weighting=weighting, flow_steps=flow_steps)
            yield from compare(algo, flowrl.Args(**args))


def speed_all(algo: types.ModuleType) -> Iterator[dict[str, str | int]]:
    """Rows of `speeds`, of the sizes of presets `paper` and `cpu`."""
    algo.torch.set_num_threads(len(os.sched_getaffinity(0)))
    for preset in ("paper", "cpu"):
        args = flowrl.Args(**flowrl.PRESETS[preset])
        yield speeds(
            algo, dataclasses.replace(args, ode_solver="midpoint", w2_weighting="batch_mean")
        )


def main() -> None:
    """Writes a CSV and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--released", type=Path, required=True, help="a clone of the released code")
    parser.add_argument(
        "--speed", action="store_true", help="time both instead; on an idle machine"
    )
    args = parser.parse_args()
    try:
        algo = load(args.released, compiled=args.speed)
    except (OSError, ImportError) as error:
        parser.error(f"--released: {error}")  # an ImportError says what pip has to install
    rows = []
    for row in speed_all(algo) if args.speed else compare_all(algo):
        print(*row.values(), flush=True)
        rows.append(row)
    with (SPEED_PATH if args.speed else CSV_PATH).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
