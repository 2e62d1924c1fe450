"""Intervals, paired tests and sample sizes, by scipy and statsmodels.

Missing values are NaN and left out. `clusters` says which rows belong together (one conversation, one template): they
are resampled together, since rows of a cluster are no independent evidence. None: every row stands for itself.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How intervals are made: level, resamples, seed."""

    confidence: float
    resamples: int
    seed: int

    @property
    def alpha(self) -> float:
        return round(1 - self.confidence, 12)

    def interval(self, draws: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(draws, [self.alpha / 2, 1 - self.alpha / 2])
        return float(low), float(high)


def given(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Values that are there, and their clusters; None where every cluster is a single row."""
    there = ~np.isnan(values)
    clusters = None if clusters is None else clusters[there]
    if clusters is not None and len(set(clusters)) == len(clusters):
        clusters = None
    return values[there], clusters


def mean_interval(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None = None) -> dict:
    """Mean with an interval: of the bootstrap, or for yes-or-no values by Jeffreys' prior.

    Args:
        values: one number per row, shape [rows].

    Returns:
        `mean`, `low`, `high`, `n`; the mean None without values, the ends None where a single row (or cluster) says
        nothing about others.
    """
    values, clusters = given(values, clusters)
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    if clusters is not None and len(set(values)) == 1 and values[0] in (0.0, 1.0):  # resampled, they never differ
        of_clusters = np.full(len(set(clusters)), values[0])
        return mean_interval(of_clusters, sampling) | {"n": len(values)}
    found = _with_ends(values, share_draws(values, sampling, clusters), sampling)
    if clusters is None and len(set(values)) == 1 and found["mean"] in (0.0, 1.0):  # none or all: that end is open
        found["low" if found["mean"] == 0 else "high"] = found["mean"]
    return found


def _with_ends(values: np.ndarray, draws: np.ndarray | None, sampling: Sampling) -> dict:
    low, high = (None, None) if draws is None else sampling.interval(draws)
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}


def share_draws(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None) -> np.ndarray | None:
    """Means that the rows leave possible, [resamples]; None for a single one.

    Yes-or-no values by Jeffreys' prior: resampling 0 of 20 gives 0 every time, and would make it look certain.
    """
    if clusters is None and set(values) <= {0.0, 1.0}:
        rng, positives = np.random.default_rng(sampling.seed), values.sum()
        return rng.beta(positives + 0.5, len(values) - positives + 0.5, sampling.resamples)
    return _bootstrap(values, sampling, clusters)


def difference_draws(
    ours: np.ndarray, theirs: np.ndarray, sampling: Sampling, clusters: np.ndarray | None
) -> np.ndarray | None:
    """Means of ours - theirs, without missing values, that the rows leave possible, [resamples]."""
    values = ours - theirs
    if clusters is None and set(ours) | set(theirs) <= {0.0, 1.0}:
        counts = np.array([(values > 0).sum(), (values < 0).sum(), (values == 0).sum()])
        shares = np.random.default_rng(sampling.seed).dirichlet(counts + 0.5, sampling.resamples)
        return shares[:, 0] - shares[:, 1]
    return _bootstrap(values, sampling, clusters)


def _totals(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster, both [clusters]."""
    if clusters is None:
        return values, np.ones(len(values))
    _, of_row = np.unique(clusters, return_inverse=True)
    return np.bincount(of_row, weights=values), np.bincount(of_row).astype(float)


def _bootstrap(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None) -> np.ndarray | None:
    """Means of resampled clusters, [resamples]."""
    sums, counts = _totals(values, clusters)
    if len(sums) < 2:
        return None
    if np.all(values == values[0]):
        return np.full(sampling.resamples, values[0])
    return _cluster_draws([sums, counts], np.divide, sampling)


def _cluster_draws(totals: list[np.ndarray], score: Callable, sampling: Sampling) -> np.ndarray:
    from scipy.stats import bootstrap

    return bootstrap(
        tuple(totals),
        lambda *drawn, axis: score(*(values.sum(axis) for values in drawn)),
        paired=True,
        n_resamples=sampling.resamples,
        method="percentile",
        rng=sampling.seed,
        batch=1000,
    ).bootstrap_distribution


def cluster_interval(totals: list[np.ndarray], score: Callable, sampling: Sampling) -> dict:
    """A score of sums over all rows, with an interval by resampling clusters.

    Args:
        totals: several sums of each cluster, each [clusters].
        score: function of as many sums, which also takes arrays of them.

    Returns:
        `mean` (the score itself), `low`, `high`; all None where the score is not defined, the ends None for a single
        cluster. Draws for which it is not defined are left out.
    """
    from scipy.stats import DegenerateDataWarning

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # all draws alike: that is what the interval then says
        found = float(score(*(values.sum() for values in totals)))
        if not np.isfinite(found):
            return {"mean": None, "low": None, "high": None}
        draws = _cluster_draws(totals, score, sampling) if len(totals[0]) > 1 else np.array([])
    draws = draws[np.isfinite(draws)]
    low, high = sampling.interval(draws) if len(draws) else (None, None)
    return {"mean": found, "low": low, "high": high}


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, sampling: Sampling, clusters: np.ndarray | None = None
) -> dict:
    """Mean of ours - theirs over the rows where both have a value, with interval, effect size and p-value.

    Returns:
        `mean`, `low`, `high`, `n` of the difference, as for `mean_interval`; `effect`, the mean in standard deviations
        of the difference (Cohen's d_z; None where nothing varies); `p`, two-sided, and `test`, its name.
    """
    ours, theirs, clusters = paired(ours, theirs, clusters)
    values = ours - theirs
    if len(values) == 0:
        return dict.fromkeys(("mean", "low", "high", "effect", "p"), None) | {"n": 0, "test": ""}
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    p, test = _p_value(ours, theirs, clusters, sampling)
    return _with_ends(values, difference_draws(ours, theirs, sampling, clusters), sampling) | {
        "effect": float(values.mean()) / spread if spread else None,
        "p": p,
        "test": test,
    }


def paired(
    ours: np.ndarray, theirs: np.ndarray, clusters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The rows where both have a value."""
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    _, clusters = given(np.where(both, ours, np.nan), clusters)
    return ours[both], theirs[both], clusters


def _p_value(
    ours: np.ndarray, theirs: np.ndarray, clusters: np.ndarray | None, sampling: Sampling
) -> tuple[float, str]:
    """McNemar's exact test for yes-or-no measures; else, and for clusters, signs of differences flipped at random.

    McNemar's test is what flipping all signs gives for such differences.
    """
    from scipy.stats import permutation_test
    from statsmodels.stats.contingency_tables import mcnemar

    values = ours - theirs
    if clusters is None and set(ours) | set(theirs) <= {0.0, 1.0}:
        more, less = int((values > 0).sum()), int((values < 0).sum())
        return float(mcnemar([[0, more], [less, 0]], exact=True).pvalue), "McNemar"
    sums, _ = _totals(values, clusters)
    if len(sums) == 1 or not sums.any():  # one sign can be flipped either way; zeros have none
        return 1.0, "sign flips"
    found = permutation_test(
        (sums,), np.mean, permutation_type="samples", n_resamples=sampling.resamples, rng=sampling.seed, batch=1000
    )
    return float(found.pvalue), "sign flips"


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's correction (1979) for several measures; None stays None and does not count."""
    from statsmodels.stats.multitest import multipletests

    there = [p for p in p_values if p is not None]
    corrected = iter(multipletests(there, method="holm")[1] if there else [])
    return [None if p is None else float(next(corrected)) for p in p_values]


def spread_of_difference(
    ours: np.ndarray, theirs: np.ndarray, sampling: Sampling, clusters: np.ndarray | None
) -> tuple[float, int]:
    """Standard deviation of ours - theirs that a single row of a plan counts with, and the rows it was seen on.

    With clusters it is as much larger than that of the rows as resampling clusters says (the design effect).
    """
    ours, theirs, clusters = paired(ours, theirs, clusters)
    draws = _bootstrap(ours - theirs, sampling, clusters) if len(ours) else None
    return (0.0 if draws is None else float(np.std(draws) * np.sqrt(len(ours)))), len(ours)


def rows_needed(spread: float, difference: float, alpha: float, power: float) -> int:
    """How many paired rows show a difference in the mean, by the t-test's power (statsmodels).

    Args:
        spread: standard deviation of the difference between the two systems over rows, of a pilot; not 0.
        difference: the true difference that should be found, in the same unit; not 0.
        alpha: two-sided level. power: probability, 0..1, of finding it.
    """
    from statsmodels.stats.power import TTestPower

    effect = abs(difference) / spread
    if effect > 5:  # a handful of rows; the solver does not go so low
        return 3
    return int(np.ceil(TTestPower().solve_power(effect_size=effect, alpha=alpha, power=power)))


def difference_found(spread: float, rows: int, alpha: float, power: float) -> float | None:
    """The smallest true difference that so many rows show: the reverse of `rows_needed`. None for a handful."""
    from statsmodels.stats.power import TTestPower

    return spread * float(TTestPower().solve_power(nobs=rows, alpha=alpha, power=power)) if rows >= 5 else None


def rater_noise(values: np.ndarray) -> float | None:
    """Share of the variance of a single judgement that is the rater's and not the row's, 0..1.

    One minus the intraclass correlation ICC(2,1) (Shrout and Fleiss 1979): rows and raters drawn at random, so that
    raters who are stricter throughout count as noise too.

    Args:
        values: [rows, raters]; rows with a missing value are left out.

    Returns:
        None with fewer than two whole rows, or where nothing varies.
    """
    whole = values[~np.isnan(values).any(axis=1)]
    rows, raters = whole.shape
    if rows < 2 or raters < 2:
        return None
    mean, of_row, of_rater = whole.mean(), whole.mean(axis=1), whole.mean(axis=0)
    between_rows = raters * ((of_row - mean) ** 2).sum() / (rows - 1)
    between_raters = rows * ((of_rater - mean) ** 2).sum() / (raters - 1)
    left = ((whole - of_row[:, None] - of_rater + mean) ** 2).sum() / ((rows - 1) * (raters - 1))
    variances = max(0.0, (between_rows - left) / raters), max(0.0, (between_raters - left) / rows), left
    return None if sum(variances) == 0 else float(1 - variances[0] / sum(variances))
