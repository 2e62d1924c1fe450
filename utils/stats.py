"""Intervals, paired tests, judge error and sample sizes, by scipy and statsmodels.

Missing values are NaN and left out. `clusters` says which rows belong together (one conversation, one template): they
are resampled together, since rows of a cluster are no independent evidence. None: every row stands for itself.
"""

from dataclasses import dataclass

import numpy as np

from utils.helpers import UserError


@dataclass(frozen=True)
class Sampling:
    """How intervals are made: level, bootstrap resamples, seed."""

    confidence: float
    resamples: int
    seed: int

    def interval(self, draws: np.ndarray) -> tuple[float, float]:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)


def _totals(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster, both [clusters]."""
    if clusters is None:
        return values, np.ones(len(values))
    _, of_row = np.unique(clusters, return_inverse=True)
    return np.bincount(of_row, weights=values), np.bincount(of_row).astype(float)


def mean_interval(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None = None) -> dict:
    """Mean with a percentile bootstrap interval.

    Args:
        values: one number per row, shape [rows].

    Returns:
        `mean`, `low`, `high`, `n`; all but `n` None without values, and low = mean = high where nothing varies.
    """
    given = ~np.isnan(values)
    values, clusters = values[given], clusters if clusters is None else clusters[given]
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(values.mean())
    low, high = sampling.interval(_bootstrap(values, sampling, clusters))
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def _bootstrap(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None) -> np.ndarray:
    """Means of resampled clusters, [resamples]."""
    from scipy.stats import bootstrap

    sums, counts = _totals(values, clusters)
    if len(sums) == 1 or np.all(values == values[0]):
        return np.full(sampling.resamples, values.mean())
    return bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        n_resamples=sampling.resamples,
        method="percentile",
        rng=sampling.seed,
        batch=1000,
    ).bootstrap_distribution


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, sampling: Sampling, clusters: np.ndarray | None = None
) -> dict:
    """Mean of ours - theirs over the rows where both have a value, with interval, effect size and p-value.

    Returns:
        `mean`, `low`, `high`, `n` of the difference; `effect`, the mean in standard deviations of the difference
        (Cohen's d_z; None where nothing varies); `p`, two-sided, and `test`, its name.
    """
    difference = ours - theirs
    found = mean_interval(difference, sampling, clusters)
    both = ~np.isnan(difference)
    values = difference[both]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    found["effect"] = found["mean"] / spread if spread else None
    found["p"], found["test"] = _p_value(values, None if clusters is None else clusters[both], sampling)
    return found


def _p_value(values: np.ndarray, clusters: np.ndarray | None, sampling: Sampling) -> tuple[float | None, str]:
    """McNemar's exact test where the difference is of two yes-or-no measures; else signs are flipped at random.

    McNemar's test is what flipping all signs gives for such differences; only its exact form is used.
    """
    from scipy.stats import permutation_test
    from statsmodels.stats.contingency_tables import mcnemar

    if len(values) == 0:
        return None, ""
    if clusters is None and set(values) <= {-1.0, 0.0, 1.0}:
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

    given = [p for p in p_values if p is not None]
    corrected = iter(multipletests(given, method="holm")[1] if given else [])
    return [None if p is None else float(next(corrected)) for p in p_values]


@dataclass(frozen=True)
class Judge:
    """How often a yes-or-no judge was right on rows with a human label, the gold set."""

    true_positives: int
    positives: int
    true_negatives: int
    negatives: int

    @property
    def sensitivity(self) -> float:
        return self.true_positives / self.positives

    @property
    def specificity(self) -> float:
        return self.true_negatives / self.negatives

    def draws(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sensitivities and specificities that the gold set leaves possible (Jeffreys' prior), both [count]."""
        return (
            rng.beta(right + 0.5, total - right + 0.5, count)
            for right, total in ((self.true_positives, self.positives), (self.true_negatives, self.negatives))
        )


def measure_judge(judged: np.ndarray, gold: np.ndarray) -> Judge:
    """Compares verdicts with human labels, both 0 or 1 per row (NaN: left out).

    Raises:
        UserError: one of the two labels is missing, or the judge is no better than chance, so that nothing is known.
    """
    both = ~np.isnan(judged) & ~np.isnan(gold)
    judged, gold = judged[both], gold[both]
    if wrong := (set(judged) | set(gold)) - {0.0, 1.0}:
        raise UserError(f"a judge says 0 or 1, and so do its gold rows; there is {min(wrong):g}")
    judge = Judge(
        int((judged[gold == 1] == 1).sum()), int((gold == 1).sum()),
        int((judged[gold == 0] == 0).sum()), int((gold == 0).sum()),
    )  # fmt: skip
    if not judge.positives or not judge.negatives:
        raise UserError("the gold rows hold one label only: sensitivity and specificity need both")
    if judge.sensitivity + judge.specificity <= 1:
        raise UserError(
            f"on the gold rows the judge is no better than chance (sensitivity {judge.sensitivity:.2f}, specificity "
            f"{judge.specificity:.2f})"
        )
    return judge


def corrected_mean(
    values: np.ndarray,
    judge: Judge,
    sampling: Sampling,
    clusters: np.ndarray | None = None,
    propagate: bool = True,
) -> dict:
    """The share of true positives behind the verdicts of an imperfect judge, 0..1.

    (share + specificity - 1) / (sensitivity + specificity - 1) (Rogan and Gladen 1978). The interval holds the error
    of the rows and that of the gold set, from which sensitivity and specificity are known.

    Args:
        values: verdicts, 0 or 1, [rows].
        propagate: False takes sensitivity and specificity as known, as others do: benchmarks/bench_coverage.py.
    """
    values, clusters = _given(values, clusters)
    draws = _share_draws(values, sampling, clusters)
    sensitivity, specificity = _accuracy(judge, sampling, propagate)
    low, high = sampling.interval(np.clip((draws + specificity - 1) / _youden(sensitivity, specificity), 0, 1))
    mean = (values.mean() + judge.specificity - 1) / (judge.sensitivity + judge.specificity - 1)
    return {"mean": float(np.clip(mean, 0, 1)), "low": low, "high": high, "n": len(values)}


def corrected_difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    judge: Judge,
    sampling: Sampling,
    clusters: np.ndarray | None = None,
    propagate: bool = True,
) -> dict:
    """The difference of two such shares on the same rows, judged alike: difference / (sensitivity + specificity - 1).

    It rests on the judge being as good with one system as with the other: take gold rows from both.
    """
    values, clusters = _given(ours - theirs, clusters)
    draws = _difference_draws(values, sampling, clusters)
    low, high = sampling.interval(np.clip(draws / _youden(*_accuracy(judge, sampling, propagate)), -1, 1))
    mean = values.mean() / (judge.sensitivity + judge.specificity - 1)
    return {"mean": float(np.clip(mean, -1, 1)), "low": low, "high": high, "n": len(values)}


def _given(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    given = ~np.isnan(values)
    return values[given], None if clusters is None else clusters[given]


def _accuracy(judge: Judge, sampling: Sampling, propagate: bool) -> tuple[np.ndarray, np.ndarray]:
    if not propagate:
        return np.array([judge.sensitivity]), np.array([judge.specificity])
    return tuple(judge.draws(sampling.resamples, np.random.default_rng(sampling.seed + 1)))


def _youden(sensitivity: np.ndarray, specificity: np.ndarray) -> np.ndarray:
    """Sensitivity + specificity - 1; a draw at or below chance leaves everything possible."""
    return np.maximum(sensitivity + specificity - 1, 1e-9)


def _share_draws(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None) -> np.ndarray:
    """Shares that the rows leave possible, [resamples]; Jeffreys' prior keeps few positives from looking certain."""
    if clusters is not None:
        return _bootstrap(values, sampling, clusters)
    positives = values.sum()
    rng = np.random.default_rng(sampling.seed)
    return rng.beta(positives + 0.5, len(values) - positives + 0.5, sampling.resamples)


def _difference_draws(values: np.ndarray, sampling: Sampling, clusters: np.ndarray | None) -> np.ndarray:
    """Differences of paired shares that the rows leave possible, [resamples]."""
    if clusters is not None:
        return _bootstrap(values, sampling, clusters)
    counts = [(values > 0).sum(), (values < 0).sum(), (values == 0).sum()]
    shares = np.random.default_rng(sampling.seed).dirichlet(np.array(counts) + 0.5, sampling.resamples)
    return shares[:, 0] - shares[:, 1]


def rows_needed(spread: float, difference: float, alpha: float, power: float) -> int:
    """How many paired rows show a difference in the mean, by the t-test's power (statsmodels).

    Args:
        spread: standard deviation of the difference between the two systems over rows, of a pilot.
        difference: the true difference that should be found, in the same unit.
        alpha: two-sided level. power: probability, 0..1, of finding it.
    """
    from statsmodels.stats.power import TTestPower

    if spread == 0:
        return 2
    return int(np.ceil(TTestPower().solve_power(effect_size=abs(difference) / spread, alpha=alpha, power=power)))


def difference_found(spread: float, rows: int, alpha: float, power: float) -> float:
    """The smallest true difference that so many rows show; the reverse of `rows_needed`."""
    from statsmodels.stats.power import TTestPower

    return spread * float(TTestPower().solve_power(nobs=rows, alpha=alpha, power=power))
