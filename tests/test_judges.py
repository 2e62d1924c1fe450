"""Shares behind the verdicts of a judge that errs, on cases that can be computed by hand."""

import numpy as np
import pytest

from utils.helpers import UserError
from utils.judges import Judge, corrected_difference, corrected_mean, measure_judge
from utils.stats import Sampling

SAMPLING = Sampling(confidence=0.95, resamples=2000, seed=0)


def test_the_judge_is_measured_on_gold_rows():
    judged, gold = np.array([1, 1, 0, 0, 0, 1, np.nan]), np.array([1, 1, 1, 0, 0, 0, 1.0])
    assert measure_judge(judged, gold) == Judge(2, 3, 2, 3)
    with pytest.raises(UserError, match="one label only"):
        measure_judge(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    with pytest.raises(UserError, match="no better than chance"):
        measure_judge(np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    with pytest.raises(UserError, match="0.5"):
        measure_judge(np.array([1.0, 0.5]), np.array([1.0, 0.0]))


def test_shares_behind_an_imperfect_judge():
    """Rogan and Gladen: (0.45 - 0.2) / 0.7 with a sensitivity of 0.9 and a specificity of 0.8."""
    judge = Judge(true_positives=90, positives=100, true_negatives=80, negatives=100)
    found = corrected_mean(np.array([1.0] * 45 + [0.0] * 55 + [np.nan]), judge, SAMPLING)
    assert (found["mean"], found["n"]) == (pytest.approx(0.25 / 0.7), 100)
    ours, theirs = np.array([1.0] * 60 + [0.0] * 40), np.array([1.0] * 46 + [0.0] * 54)
    assert corrected_difference(ours, theirs, judge, SAMPLING)["mean"] == pytest.approx(0.14 / 0.7)


def test_few_gold_rows_widen_the_interval():
    few, many = Judge(9, 10, 8, 10), Judge(9000, 10000, 8000, 10000)
    values = np.array([1.0] * 200 + [0.0] * 200)

    def width(judge: Judge, propagate: bool = True) -> float:
        found = corrected_mean(values, judge, SAMPLING, propagate=propagate)
        return found["high"] - found["low"]

    assert width(few) > 2 * width(few, propagate=False)
    assert width(many) == pytest.approx(width(many, propagate=False), rel=0.1)


def test_shares_stay_shares():
    judge = Judge(9, 10, 8, 10)
    none, all_of_them = (corrected_mean(np.full(50, value), judge, SAMPLING) for value in (0.0, 1.0))
    assert (none["mean"], none["low"], all_of_them["mean"], all_of_them["high"]) == (0, 0, 1, 1)


def test_a_judge_that_may_be_guessing_leaves_everything_possible():
    ours, theirs = np.array([1.0] * 60 + [0.0] * 40), np.array([1.0] * 20 + [0.0] * 80)
    found = corrected_difference(ours, theirs, Judge(12, 20, 12, 20), SAMPLING)
    assert (found["low"], found["high"]) == (-1, 1)


def test_the_interval_holds_the_mean():
    """A judge without an error on five gold rows of each kind, and rows enough that only these are uncertain."""
    ours, theirs = np.repeat([1.0, 0.0], 5000), np.repeat([1.0, 0.0], [2500, 7500])
    found = corrected_difference(ours, theirs, Judge(5, 5, 5, 5), SAMPLING)
    assert found["low"] <= found["mean"] == 0.25 <= found["high"] < 1


def test_an_interval_of_a_difference_by_hand():
    """A perfect judge, known well, leaves that of the difference itself: 0.1 +- 1.96 * sqrt(0.3 - 0.01) / 20."""
    ours = np.repeat([1.0, 0.0, 0.0], [80, 40, 280])
    theirs = np.repeat([0.0, 1.0, 0.0], [80, 40, 280])
    judge = Judge(10**6, 10**6, 10**6, 10**6)
    found = corrected_difference(ours, theirs, judge, SAMPLING)
    half = 1.96 * np.sqrt(0.3 - 0.01) / 20
    assert [found["low"], found["high"]] == pytest.approx([0.1 - half, 0.1 + half], abs=0.006)
    wider = corrected_difference(ours, theirs, judge, SAMPLING, clusters=np.repeat(np.arange(100), 4))
    assert wider["high"] - wider["low"] > 1.7 * (found["high"] - found["low"])


def test_without_values_there_is_no_share():
    nothing, judge = np.array([np.nan, np.nan]), Judge(9, 10, 8, 10)
    assert corrected_mean(nothing, judge, SAMPLING) == {"mean": None, "low": None, "high": None, "n": 0}
    assert corrected_difference(nothing, nothing, judge, SAMPLING)["n"] == 0
