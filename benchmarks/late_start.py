"""What is learned while a humanoid's return is flat: its values against its returns, its spread.

    python benchmarks/late_start.py    # writes late_start.png from the CSVs of RUNS
    python benchmarks/late_start.py metrics.csv ...    # a line for each of these instead

The value of the policy that played is estimated by its return: with rewards spread evenly over an
episode of T steps it is return / T / (1 - gamma), far from the episode's end. Q is min Q on batches
of the replay, which hold random and old states too: that it is right does not follow from equality.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import inputs
from benchmarks.inputs import SAMPLED
from harness.errors import RunError

DEVELOPMENT = HERE / "development"
RUNS = {  # title -> metrics.csv
    "flowrl_jax": HERE / "learning" / "humanoid-stand__1.csv",
    "flowrl_jax, again": DEVELOPMENT / "flowrl_8x128" / "humanoid-stand__1.csv",
    "flowrl_hlgauss_jax, 8 x 128": DEVELOPMENT / "flowrl_hlgauss_8x128" / "humanoid-stand__1.csv",
}
BEHAVIOUR = "losses/q_behaviour"
LENGTH, GAMMA = 1_000, 0.99  # steps of an episode; of both runs


def rows(path: Path) -> list[dict[str, float]]:
    """The rows of a run's CSV that hold an evaluation, with `value` as the docstring has it.

    Raises RunError if it has none, or cannot be read.
    """
    found = inputs.evaluations(path, "step", "losses/q")
    for row in found:
        row["value"] = row[SAMPLED] / LENGTH / (1.0 - GAMMA)
    return found


def flat(run: list[dict[str, float]], below: float = 10.0) -> list[dict[str, float]]:
    """The evaluations before the first return of `below` or more."""
    rising = next((k for k, row in enumerate(run) if row[SAMPLED] >= below), len(run))
    return run[:rising]


def summary(title: str, run: list[dict[str, float]]) -> str:
    """How long it was flat, and what it believed meanwhile, in a line."""
    part = flat(run)
    if not part:
        return f"{title}: never flat"
    worth, q = ([row[name] for row in part] for name in ("value", "losses/q"))
    beta = [row[BEHAVIOUR] for row in part if BEHAVIOUR in row]  # SAC has none
    return (
        f"{title}: flat to step {part[-1]['step']:,.0f}; meanwhile the policy is worth"
        f" {median(worth):.2f} and Q_phi says {median(q):.1f} ({min(q):.1f} to {max(q):.1f})"
        + (f", Q_beta {median(beta):.1f}" if beta else "")
        + " (medians)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each run, and draws those of RUNS unless others were named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", metavar="CSV", help="a run's metrics.csv")
    paths = parser.parse_args(arguments).paths
    try:
        lines = [summary(path, rows(Path(path))) for path in paths]
    except RunError as error:
        parser.error(f"CSV: {error}")
    for line in lines:
        print(line)
    if paths:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shape = {"figsize": (4.4 * len(RUNS), 5.4), "sharex": "col", "sharey": "row", "squeeze": False}
    figure, axes = plt.subplots(2, len(RUNS), **shape)
    for column, (title, path) in zip(axes.T, RUNS.items(), strict=True):
        run = rows(path)
        print(summary(title, run))
        steps = [row["step"] / 1000 for row in run]
        for label, name in (
            ("value of the policy, by its return", "value"),
            ("Q_phi on the batch", "losses/q"),
            ("Q_beta on the batch", BEHAVIOUR),
        ):
            column[0].plot(steps, [row[name] for row in run], label=label)
        for label in ("charts/action_std", "charts/action_saturation", "losses/policy_flow"):
            column[1].plot(steps, [row[label] for row in run], label=label)
        column[0].set(title=f"humanoid-stand, {title}", yscale="log", ylim=(0.1, 100))
        column[1].set(xlabel="thousand environment steps", ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "late_start.png", dpi=100)


if __name__ == "__main__":
    main()
