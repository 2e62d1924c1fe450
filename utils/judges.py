"""What is behind the verdicts of a judge that errs: shares and differences, by what gold rows say of the judge."""

from dataclasses import dataclass

import numpy as np

from utils.helpers import UserError
from utils.stats import Sampling, difference_draws, given, paired, share_draws


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

    @property
    def youden(self) -> float:
        """Sensitivity + specificity - 1: 1 for a perfect judge, 0 for one that guesses."""
        return self.sensitivity + self.specificity - 1

    def draws(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sensitivities and specificities that the gold set leaves possible (Jeffreys' prior), both [count]."""
        right, total = (self.true_positives, self.true_negatives), (self.positives, self.negatives)
        return tuple(rng.beta(r + 0.5, n - r + 0.5, count) for r, n in zip(right, total, strict=True))


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
    if judge.youden <= 0:
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

    Returns:
        `mean`, `low`, `high`, `n`, as `utils.stats.mean_interval`.
    """
    values, clusters = given(values, clusters)
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    sensitivity, specificity = _accuracy(judge, sampling, propagate)
    draws = share_draws(values, sampling, clusters)
    mean = (values.mean() + judge.specificity - 1) / judge.youden
    found = None if draws is None else _divided(draws + specificity - 1, sensitivity + specificity - 1, low=0)
    return _within(mean, found, sampling, least=0, n=len(values))


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
    ours, theirs, clusters = paired(ours, theirs, clusters)
    if len(ours) == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    draws = difference_draws(ours, theirs, sampling, clusters)
    youden = np.add(*_accuracy(judge, sampling, propagate)) - 1
    found = None if draws is None else _divided(draws, youden, low=-1)
    return _within((ours - theirs).mean() / judge.youden, found, sampling, least=-1, n=len(ours))


def _accuracy(judge: Judge, sampling: Sampling, propagate: bool) -> tuple[np.ndarray, np.ndarray]:
    if not propagate:
        return np.full(sampling.resamples, judge.sensitivity), np.full(sampling.resamples, judge.specificity)
    return judge.draws(sampling.resamples, np.random.default_rng(sampling.seed + 1))


def _divided(draws: np.ndarray, youden: np.ndarray, low: float) -> np.ndarray:
    """draws / youden, within low..1. Where the judge may be no better than chance everything is possible: such draws
    go to both ends in turn."""
    ends = np.where(np.arange(len(draws)) % 2, 1.0, low)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(youden > 0, np.clip(draws / youden, low, 1), ends)


def _within(mean: float, draws: np.ndarray | None, sampling: Sampling, least: float, n: int) -> dict:
    """The mean within its bounds, and an interval that holds it: at the bounds draws lie to one side of it."""
    mean = float(np.clip(mean, least, 1))
    low, high = (None, None) if draws is None else sampling.interval(draws)
    return {
        "mean": mean,
        "low": low if low is None else min(low, mean),
        "high": high if high is None else max(high, mean),
        "n": n,
    }
