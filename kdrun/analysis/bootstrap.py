"""Intervals of a difference between two models that answered the same examples, from one or several seeds each.

Shapes: S seeds of ours, R seeds of theirs, E examples, M measures, B resamples. NaN: the example has no such value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
PIECE = 2_000_000  # drawn example numbers in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean difference with its 95 % interval and the two-sided p value of no difference."""

    difference: float
    low: float
    high: float
    p: float
    num_examples: int


def paired_bootstrap(
    ours_SEM: np.ndarray, theirs_REM: np.ndarray, *, same_seeds: bool, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Estimates of mean(ours) - mean(theirs), one a measure; a fixed seed, so that equal input gives equal output.

    Two levels. Examples, shared by all runs, are resampled with replacement. The noise of training is added to each
    resample where a side has several seeds: the standard error of the mean over seeds, times a draw from Student's t
    with as many degrees of freedom as the seeds allow. Seeds are not resampled one by one: of two seeds the resampled
    mean has half the variance that it should have, and no tails. In the simulations of tests/analysis/test_bootstrap.py
    nominal 95 % intervals then hold the truth in 72, 88 and 90 % of cases with 2, 3 and 5 seeds; these do in 96, 96 and
    98 %. Noise of examples within a seed is counted on both levels, so the interval errs on the wide side.

    Args:
        same_seeds: row i of both was trained with the same seed: the noise of training is that of their differences.
    """
    random = np.random.default_rng(0)
    difference_EM = _mean(ours_SEM, 0) - _mean(theirs_REM, 0)
    means_BM = _resampled_means(difference_EM, resamples, random)
    sides = [ours_SEM - theirs_REM] if same_seeds else [ours_SEM, theirs_REM]
    for side_SEM in sides:
        if (num_seeds := len(side_SEM)) > 1:
            error_M = _mean(side_SEM, 1).std(0, ddof=1) / np.sqrt(num_seeds)
            means_BM += error_M * random.standard_t(num_seeds - 1, (resamples, 1))
    low_M, high_M = np.quantile(means_BM, [0.025, 0.975], axis=0)
    # Both tails, so that p < 0.05 and an interval without zero say the same; +1: the data are a resample, too.
    tail_M = 2 * np.minimum((means_BM <= 0).sum(0), (means_BM >= 0).sum(0))
    p_M = np.minimum(1.0, (tail_M + 1) / (resamples + 1))
    mean_M, count_M = _mean(difference_EM, 0), np.isfinite(difference_EM).sum(0)
    columns = zip(mean_M, low_M, high_M, p_M, count_M, strict=True)
    return [Estimate(float(mean), float(low), float(high), float(p), int(n)) for mean, low, high, p, n in columns]


def _resampled_means(values_EM: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Means [B, M] over examples drawn with replacement, the same examples for every measure."""
    num_examples = len(values_EM)
    present_EM = np.isfinite(values_EM)
    filled_EM = np.where(present_EM, values_EM, 0.0)
    pieces, step = [], max(1, PIECE // num_examples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = random.integers(0, num_examples, (size, num_examples)) + np.arange(size)[:, None] * num_examples
        counts = np.bincount(drawn.ravel(), minlength=size * num_examples).reshape(size, num_examples).astype(float)
        pieces.append((counts @ filled_EM) / np.maximum(counts @ present_EM, 1))
    return np.concatenate(pieces)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is there; NaN where nothing is."""
    present = np.isfinite(values)
    count = present.sum(axis)
    total = np.where(present, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
