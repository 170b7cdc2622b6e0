"""What happens inside the networks of a run while it learns, or does not, from its checkpoints.

    python flowrl_jax.py --env-id humanoid-stand --preset cpu --total-timesteps 200000 \\
        --checkpoint-interval 10000 --keep-checkpoints 20
    python benchmarks/inside.py NAME RUN_FOLDER    # inside/NAME.csv, NAME.ages.csv and inside.png
    python benchmarks/inside.py                    # the picture alone

For `flowrl_jax.py` and `flowrl_hlgauss_jax.py`. Of each checkpoint, on BATCH transitions drawn
uniformly from the replay as it was then (the newest checkpoint has all of it, in order):

q, q_beta       mean min Q_phi(s, a) and min Q_beta(s, a)
earned          mean discounted return from (s, a) on, of whoever played there: HORIZON steps in the
                replay, of transitions that many before their episode's end
half            share of the replay's transitions that hold half of its reward: those with the most
early           share of the reward that came in the first EARLY steps of an episode
gradient_*      length of the gradient: of the critics' loss (2), and of -Q and W2 in (6) apart
rank            of Q_phi's last hidden layer (first head): how many singular values make up 99 % of
                their sum (Kumar et al., "Implicit under-parameterization", arXiv 2010.14498)
dormant_*       share of the hidden units behind a nonlinearity whose mean size is at most 2.5 % of
                their layer's (Sokar et al., "The dormant neuron phenomenon", arXiv 2302.12902), of
                Q_phi's first head and of the policy
action_std      spread of the policy's actions over x0, mean over states and dimensions

In NAME.ages.csv, of the newest checkpoint, the same by transitions' step in their episode, of
the later half of the replay: reward, earned (AHEAD steps), q, q_beta, and beside them

q_policy        mean min Q_phi(s, a_pi); q_random: of actions drawn uniformly
spread          standard deviation of min Q_phi over such actions at a state: what a choice matters
apart           mean |Q_1 - Q_2|: what the heads do not agree on
"""

import argparse
import csv
import functools
import importlib
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import flowrl_jax as flowrl
from benchmarks import inputs
from benchmarks.inputs import SAMPLED
from harness import checkpoints, runs
from harness.errors import RunError

FOLDER = Path(__file__).resolve().parent / "inside"
BATCH, HORIZON, DRAWS = 2_048, 500, 16  # transitions, steps, x0 for action_std
EARLY = 20  # control steps: how long a fall takes
AGES, AHEAD = (0, 3, 6, 10, 15, 20, 50, 200, 1_000), 100  # steps
ALGORITHMS = ("flowrl_jax", "flowrl_hlgauss_jax")
DORMANT, RANK = 0.025, 0.99


# ----------------------------------------------------------------------------------- from a folder
def learner_of(module: Any, arrays: dict[str, np.ndarray], sizes: tuple[int, int], args: Any):
    """The learner in a checkpoint's arrays."""
    own = {
        name.removeprefix("learner/"): array
        for name, array in arrays.items()
        if name.startswith("learner/")
    }
    init = functools.partial(module.init_learner, obs_size=sizes[0], action_size=sizes[1])
    like = jax.eval_shape(functools.partial(init, args=args), jax.random.key(0))
    return checkpoints.unflatten(like, own, lambda array, _: jnp.asarray(array))


def replay_of(arrays: dict[str, np.ndarray]) -> flowrl.Transition:
    """All that was stored, in order, (steps, ...)."""
    if "replay/size" not in arrays:
        raise RunError("its checkpoints have no replay; train with --checkpoint-replay")
    size, names = int(arrays["replay/size"]), flowrl.Transition.__dataclass_fields__
    data = {name: arrays[f"replay/data/{name}"] for name in names}
    if size == len(data["reward"]):
        raise RunError("its replay is full, the first transitions are gone; --buffer-size is more")
    return flowrl.Transition(**{name: array[:size] for name, array in data.items()})


def goes_on(replay: flowrl.Transition, num_envs: int) -> np.ndarray:
    """Whether the transition `num_envs` further begins where each ended, (steps,)."""
    same = (replay.obs[num_envs:] == replay.next_obs[:-num_envs]).all(axis=1)
    return np.append(same, np.zeros(num_envs, bool))


def earned(replay: flowrl.Transition, num_envs: int, gamma: float, horizon: int) -> np.ndarray:
    """Discounted return over so many steps from each transition on; nan where they are not there.

    (steps,).
    """
    reward, continues = np.asarray(replay.reward, np.float64), goes_on(replay, num_envs)
    total, there = np.zeros(len(reward)), np.ones(len(reward), bool)
    for k in range(horizon):  # the reward k steps on, where there are so many
        ahead = min(k * num_envs, len(reward))
        kept = slice(0, len(reward) - ahead)
        total[kept] += np.where(there[kept], gamma**k * reward[ahead:], 0.0)
        there[kept] &= continues[ahead:]
        there[len(reward) - ahead :] = False
    return np.where(there, total, np.nan)


def age(replay: flowrl.Transition, num_envs: int) -> np.ndarray:
    """Which step of its episode each transition is, 0 the first, (steps,)."""
    continues = goes_on(replay, num_envs).reshape(-1, num_envs)
    ages = np.zeros(continues.shape, int)
    for t in range(1, len(ages)):
        ages[t] = np.where(continues[t - 1], ages[t - 1] + 1, 0)
    return ages.ravel()


def half(reward: np.ndarray) -> float:
    """The smallest share of transitions that have half of all reward, (steps,), from 0 up."""
    total = np.cumsum(np.sort(reward.astype(np.float64))[::-1])
    return (1 + np.searchsorted(total, total[-1] / 2)) / len(reward)


# ------------------------------------------------------------------------------------ the measures
def normed(module: nn.Module, params: Any, *inputs: Array) -> list[Array]:
    """What each LayerNorm of a network gives, in order, (B, H) each."""
    of_norms = {"capture_intermediates": lambda layer, _: isinstance(layer, nn.LayerNorm)}
    _, seen = module.apply(params, *inputs, **of_norms, mutable=["intermediates"])
    layers = seen["intermediates"]
    return [layers[name]["__call__"][0] for name in sorted(layers)]


def rank(features: Array) -> Array:
    """(B, H) -> how many singular values make up RANK of their sum."""
    values = jnp.linalg.svd(features, compute_uv=False)
    return 1 + jnp.sum(jnp.cumsum(values) < RANK * jnp.sum(values))


def dormant(layers: list[Array]) -> Array:
    """Share of units, of (B, H) each, that hardly ever answer."""
    sizes = [jnp.mean(jnp.abs(layer), axis=0) for layer in layers]
    return jnp.mean(jnp.concatenate([size <= DORMANT * jnp.mean(size) for size in sizes]))


class Critics(NamedTuple):
    """What the two files' learners have of critics, under the same names."""

    phi: Any
    beta: Any
    target_phi: Any
    q: Callable  # (params, s, a, args) -> (2, B)
    seen: Callable  # observations as the networks see them
    num_logits: int  # of a head's distribution; 0: a value


def critics_of(module: Any, learner: Any, args: Any) -> Critics:
    """Of `flowrl_hlgauss_jax.py`, whose critics are one network, or of `flowrl_jax.py`."""
    if hasattr(learner, "critics"):
        both, target = learner.critics.params, module.of_phi(learner.target_critics)
        seen = functools.partial(module.normalise, learner.velocity_field.params)
        heads = module.of_phi(both), module.of_beta(both), target
        return Critics(*heads, module.head_values, seen, args.num_bins)
    phi, beta = learner.critic.params, learner.behaviour_critic.params
    return Critics(phi, beta, learner.target_critic, flowrl.twin_q, lambda obs: obs, 0)


@functools.partial(jax.jit, static_argnames=("module", "args"))
def measured(module: Any, learner: Any, batch: flowrl.Transition, key: Array, args: Any):
    """All of the docstring but what comes from the replay's order, () each."""
    theta = learner.velocity_field.params
    noise = flowrl.draw_update_noise(key, *batch.action.shape)
    critics = critics_of(module, learner, args)
    phi, q_of, num_logits = critics.phi, critics.q, critics.num_logits
    batch = batch.replace(obs=critics.seen(batch.obs), next_obs=critics.seen(batch.next_obs))
    a_next = flowrl.policy_action(theta, batch.next_obs, noise.x0_next, args)
    q_next = q_of(critics.target_phi, batch.next_obs, a_next, args).min(axis=0)
    y = flowrl.td_target(batch, q_next, args.gamma)
    q_beta = q_of(critics.beta, batch.obs, batch.action, args).min(axis=0)

    def critic_loss(params: Any) -> Array:
        if num_logits:
            return module.critic_loss(params, batch, y, y, args)[1][0]
        return flowrl.critic_loss(params, batch, y, args)[0]

    def of_policy(name: str) -> Array:
        def part(theta: Any) -> Array:
            _, metrics = flowrl.policy_loss(theta, phi, batch, q_beta, noise, args, q_of)
            return metrics[f"losses/policy_{name}"]

        return optax.global_norm(jax.grad(part)(theta))

    x0 = flowrl.source_noise(key, (DRAWS, *batch.action.shape))
    actions = jax.vmap(lambda x0: flowrl.policy_action(theta, batch.obs, x0, args))(x0)
    head = {"params": jax.tree.map(lambda x: x[0], next(iter(phi["params"].values())))}
    sizes = (args.hidden_size, args.compute_dtype)
    inputs = jnp.concatenate([batch.obs, batch.action], axis=-1)
    of_q = normed(flowrl.ValueNetwork(*sizes, num_logits), head, inputs)
    field, t = flowrl.VelocityField(batch.action.shape[-1], *sizes), jnp.zeros((len(inputs), 1))
    of_theta = normed(field, {"params": theta["params"]}, batch.obs, noise.x0_policy, t)
    gelu = functools.partial(nn.gelu, approximate=False)
    whole = learner.critics.params if num_logits else phi
    return {
        "q": jnp.mean(q_of(phi, batch.obs, batch.action, args).min(axis=0)),
        "q_beta": jnp.mean(q_beta),
        "gradient_critic": optax.global_norm(jax.grad(critic_loss)(whole)),
        "gradient_q": of_policy("q"),
        "gradient_w2": of_policy("w2"),
        "rank": rank(of_q[-1]),
        "dormant_critic": dormant([gelu(layer) for layer in of_q[1:3]]),
        "dormant_policy": dormant([nn.elu(layer) for layer in of_theta]),
        "action_std": jnp.mean(jnp.std(actions, axis=0)),
    }


@functools.partial(jax.jit, static_argnames=("module", "args"))
def valued(module: Any, learner: Any, batch: flowrl.Transition, key: Array, args: Any):
    """What is in NAME.ages.csv, but reward and earned, () each."""
    x0_key, action_key = jax.random.split(key)
    critics = critics_of(module, learner, args)
    obs, shape = critics.seen(batch.obs), batch.action.shape

    def heads(params: Any, action: Array) -> Array:
        return critics.q(params, obs, action, args)

    x0 = flowrl.source_noise(x0_key, shape)
    chosen = flowrl.policy_action(learner.velocity_field.params, obs, x0, args)
    others = jax.random.uniform(action_key, (DRAWS, *shape), minval=-1.0)
    of_others = jax.vmap(lambda action: heads(critics.phi, action).min(axis=0))(others)
    q = heads(critics.phi, batch.action)
    return {
        "q": jnp.mean(q.min(axis=0)),
        "q_policy": jnp.mean(heads(critics.phi, chosen).min(axis=0)),
        "q_random": jnp.mean(of_others),
        "spread": jnp.mean(jnp.std(of_others, axis=0)),
        "apart": jnp.mean(jnp.abs(q[0] - q[1])),
        "q_beta": jnp.mean(heads(critics.beta, batch.action).min(axis=0)),
    }


def by_age(module: Any, learner: Any, replay: flowrl.Transition, args: Any) -> list[dict]:
    """A row for each range of AGES that the later half of the replay has."""
    ages, random, rows = age(replay, args.num_envs), np.random.default_rng(0), []
    ahead = earned(replay, args.num_envs, args.gamma, AHEAD)
    late = np.arange(len(ages)) >= len(ages) // 2
    for low, high in itertools.pairwise(AGES):
        there = np.flatnonzero((ages >= low) & (ages < high) & late & np.isfinite(ahead))
        if len(there) == 0:
            continue
        chosen = random.choice(there, BATCH)
        batch = jax.tree.map(lambda x: jnp.asarray(x[chosen]), replay)  # noqa: B023
        row = {"from": low, "to": high, "reward": float(batch.reward.mean())}
        row["earned"] = float(ahead[chosen].mean())
        numbers = valued(module, learner, batch, jax.random.key(low), args)
        rows.append(row | {name: float(value) for name, value in numbers.items()})
    return rows


def measure(folder: Path) -> tuple[list[dict], list[dict]]:
    """A row for each checkpoint of a run, and the rows of its newest by age.

    Raises:
      RunError: the run is of another algorithm, or has not left what is needed.
    """
    algorithm = runs.read_config(folder)["algorithm"]
    if algorithm not in ALGORITHMS:
        raise RunError(f"a run of {algorithm}; only {' and '.join(ALGORITHMS)} are measured")
    module = importlib.import_module(algorithm)
    args = runs.read_args(module.ALGORITHM, folder)
    found = folder / "checkpoints"
    steps = checkpoints.steps(found)
    if not steps:
        raise RunError(
            "it has no checkpoints; train with --checkpoint-interval and --keep-checkpoints"
        )
    evaluated = {
        int(row["step"]): row[SAMPLED] for row in inputs.evaluations(folder / "metrics.csv", "step")
    }
    replay = replay_of(checkpoints.at(found, steps[-1]).load())
    returns = earned(replay, args.num_envs, args.gamma, HORIZON)
    early = np.where(age(replay, args.num_envs) < EARLY, replay.reward, 0.0)
    rows = []
    for step in steps:
        random = np.random.default_rng(step)
        chosen = random.integers(step, size=BATCH)
        batch = jax.tree.map(lambda x: jnp.asarray(x[chosen]), replay)  # noqa: B023
        sizes = (replay.obs.shape[1], replay.action.shape[1])
        learner = learner_of(module, checkpoints.at(found, step).load(), sizes, args)
        numbers = measured(module, learner, batch, jax.random.key(step), args)
        followed = returns[: max(1, step - HORIZON * args.num_envs)]
        row = {"step": step} | {name: float(value) for name, value in numbers.items()}
        row["earned"] = float(np.nanmean(followed)) if np.isfinite(followed).any() else np.nan
        row["half"] = half(replay.reward[:step])
        row["early"] = early[:step].sum() / replay.reward[:step].sum()
        row["return"] = evaluated.get(step, np.nan)
        rows.append(row)
        print(*(f"{name} {value:.4g}" for name, value in row.items()), sep="  ", flush=True)
    return rows, by_age(module, learner, replay, args)


def write(path: Path, rows: list[dict]) -> None:
    """A CSV of six digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


# -------------------------------------------------------------------------------------------- main
PANELS = {  # title -> measures, and whether on a logarithmic scale
    "return, sampled x0": (("return",), False),
    "values": (("q", "q_beta", "earned"), True),
    "length of the gradient": (("gradient_critic", "gradient_q", "gradient_w2"), True),
    "rank of Q_phi's last layer": (("rank",), False),
    "share of dormant units": (("dormant_critic", "dormant_policy"), False),
    "share of the reward in an episode's first steps": (("early",), False),
    "share of transitions with half of the reward": (("half",), True),
    "spread of actions over x0": (("action_std",), False),
}


def plot() -> None:
    """Two rows of panels for each run's CSV of the folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    paths = sorted(path for path in FOLDER.glob("*.csv") if ".ages" not in path.name)
    wide = (len(PANELS) + 1) // 2
    shape = {"figsize": (3.2 * wide, 5 * len(paths)), "squeeze": False, "sharex": True}
    figure, axes = plt.subplots(2 * len(paths), wide, **shape)
    for path, panels in zip(paths, axes.reshape(len(paths), -1), strict=True):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        steps = [int(row["step"]) / 1000 for row in rows]
        for panel, (title, (names, logarithmic)) in zip(panels, PANELS.items(), strict=False):
            for name in names:
                panel.plot(steps, [float(row[name]) for row in rows], label=name)
            panel.set_title(title, fontsize=9)
            if logarithmic:
                panel.set_yscale("log")
            if len(names) > 1:
                panel.legend(fontsize=7)
        for panel in panels[len(PANELS) :]:
            panel.set_axis_off()
        for panel in panels[wide:]:
            panel.set_xlabel("thousand environment steps")
        panels[0].set_ylabel(path.stem.replace("_jax_", "_jax\n"), fontsize=8)
    figure.tight_layout()
    figure.savefig(FOLDER.parent / "inside.png", dpi=90)


def main(arguments: list[str] | None = None) -> int:
    """Measures a run, and draws all. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the CSVs that are written")
    parser.add_argument("folder", nargs="?", metavar="RUN_FOLDER", type=Path)
    chosen = parser.parse_args(arguments)
    name, folder = chosen.name, chosen.folder
    if name is not None:
        if folder is None:
            parser.error("RUN_FOLDER: is missing; name NAME and RUN_FOLDER, or neither")
        if not re.fullmatch(r"\w[\w.=+-]*", name):
            parser.error(f"NAME: {name!r} is no name for a file, such as humanoid-stand")
        try:
            rows, ages = measure(folder)
        except (RunError, checkpoints.DamagedError) as error:
            print(f"error: RUN_FOLDER: {error}", file=sys.stderr)
            return 2
        FOLDER.mkdir(exist_ok=True)
        write(FOLDER / f"{name}.csv", rows)
        write(FOLDER / f"{name}.ages.csv", ages)
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
