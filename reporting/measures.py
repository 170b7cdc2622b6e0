"""Measures over runs and tasks, with intervals: those of rliable (arXiv 2108.13264), by scipy.

rliable itself had its last release in 2024, and does not import beside pandas 3. Its interquartile
mean is `scipy.stats.trim_mean`, and its bootstrap over runs, stratified by task, is
`scipy.stats.bootstrap` with a sample a task.
"""

import numpy as np
import scipy.stats

RESAMPLES, CURVE_RESAMPLES, BOOTSTRAP_SEED = 10_000, 2_000, 0
SUITES = {"h1": "HumanoidBench"}  # domain -> suite; dm_control's tasks are all others
FULL_SCORE = dict.fromkeys(("h1-stand", "h1-balance_simple", "h1-balance_hard"), 800.0)
FULL_SCORE |= {"h1-sit_simple": 750.0, "h1-sit_hard": 750.0, "h1-maze": 1200.0, "h1-reach": 12000.0}


def _iqm(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean of all runs of all tasks: the mean without the lowest and highest 25 %."""
    return scipy.stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def _mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over tasks of the mean over a task's runs."""
    return np.mean([np.mean(values, axis=axis) for values in strata], axis=0)


def _median(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Median over tasks of the mean over a task's runs."""
    return np.median([np.mean(values, axis=axis) for values in strata], axis=0)


def _optimality_gap(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over tasks of how much scores fall short of 1."""
    return _mean(*(np.maximum(0.0, 1.0 - values) for values in strata), axis=axis)


MEASURES = {"mean": _mean, "iqm": _iqm, "median": _median, "optimality_gap": _optimality_gap}


def estimate(
    measure: str, strata: list[np.ndarray], resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A measure with its 95 % percentile interval from a stratified bootstrap.

    Runs are drawn anew within each task, never across. The same numbers give the same interval.

    Args:
      measure: a key of MEASURES. strata: an array a task, (..., runs); the others are points, for
        all of which the same runs are drawn.

    Returns:
      value, low, high: (...). low and high are NaN unless each task has two runs or more: one run
      says nothing of how much runs differ.
    """
    function = MEASURES[measure]
    value = function(*strata)
    if min(values.shape[-1] for values in strata) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    result = scipy.stats.bootstrap(
        strata,
        function,
        axis=-1,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // sum(values.size for values in strata)),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )
    return value, result.confidence_interval.low, result.confidence_interval.high


def curve(measure: str, strata: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`estimate` at every point of strata (runs, P), of the runs that have a number there.

    A point at which a task has none is NaN.
    """
    points = strata[0].shape[1]
    out = np.full((3, points), np.nan)
    present = np.isfinite(np.concatenate(strata))  # (all runs, P)
    splits = np.cumsum([len(values) for values in strata])[:-1]
    for pattern in np.unique(present, axis=1).T:
        masks = np.split(pattern, splits)
        if not all(mask.any() for mask in masks):
            continue
        here = (present == pattern[:, None]).all(axis=0)
        chosen = [v[mask][:, here].T for v, mask in zip(strata, masks, strict=True)]
        out[:, here] = estimate(measure, chosen, CURVE_RESAMPLES)
    return out[0], out[1], out[2]


def suite(task: str) -> str | None:
    """Whose task it is; None for other libraries', whose returns have no common scale."""
    return None if ":" in task else SUITES.get(task.split("-")[0], "dm_control")


def full_score(task: str) -> float:
    """What a return is divided by to be put together with other tasks'.

    dm_control's returns end at 1,000; HumanoidBench's are divided by the bar of success.
    """
    return FULL_SCORE.get(task, 700.0 if task.startswith("h1-") else 1000.0)
