"""Intervals and paired differences, by scipy's bootstrap."""

import numpy as np


def mean_interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, float | None]:
    """Mean with a percentile bootstrap interval.

    Args:
        values: one number per row, shape [n], none missing.
        confidence: level, e.g. 0.95.

    Returns:
        `mean`, `low`, `high`; all None without values, and low = mean = high where every value is the same.
    """
    from scipy.stats import bootstrap

    if len(values) == 0:
        return {"mean": None, "low": None, "high": None}
    mean = float(np.mean(values))
    if len(values) == 1 or np.all(values == values[0]):
        return {"mean": mean, "low": mean, "high": mean}
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=seed,
        batch=1000,
    ).confidence_interval
    return {"mean": mean, "low": float(interval.low), "high": float(interval.high)}


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, confidence: float, resamples: int, seed: int
) -> dict[str, float | int | None]:
    """Mean of ours - theirs over the rows where both have a value (NaN is missing), with a bootstrap interval.

    Returns:
        `mean`, `low`, `high` of the difference, and `n`, the number of paired rows.
    """
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    difference = ours[both] - theirs[both]
    return {**mean_interval(difference, confidence, resamples, seed), "n": int(both.sum())}
