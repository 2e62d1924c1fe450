"""Intervals, tests and corrections, on cases that can be computed by hand."""

import numpy as np
import pytest

from utils.helpers import UserError
from utils.stats import (
    Judge,
    Sampling,
    corrected_difference,
    corrected_mean,
    difference_found,
    holm,
    mean_interval,
    measure_judge,
    paired_difference,
    rows_needed,
)

SAMPLING = Sampling(confidence=0.95, resamples=2000, seed=0)


def test_missing_values_are_left_out():
    found = mean_interval(np.array([1.0, np.nan, 3.0]), SAMPLING)
    assert (found["mean"], found["n"]) == (2.0, 2)
    assert mean_interval(np.array([np.nan]), SAMPLING) == {"mean": None, "low": None, "high": None, "n": 0}
    same = mean_interval(np.array([2.0, 2.0]), SAMPLING)
    assert (same["low"], same["high"]) == (2.0, 2.0)


def test_rows_of_a_cluster_are_no_new_evidence():
    values = np.random.default_rng(1).normal(size=40)
    once = mean_interval(values, SAMPLING)
    thrice = mean_interval(np.repeat(values, 3), SAMPLING, clusters=np.repeat(np.arange(40), 3))
    alone = mean_interval(np.repeat(values, 3), SAMPLING)
    assert (thrice["low"], thrice["high"]) == pytest.approx((once["low"], once["high"]))
    assert alone["high"] - alone["low"] < 0.7 * (thrice["high"] - thrice["low"])


def test_yes_or_no_measures_by_mcnemar():
    """8 rows against 2: 2 * (1 + 10 + 45) / 2 ** 10."""
    ours = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 5)
    theirs = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 5)
    found = paired_difference(ours, theirs, SAMPLING)
    assert (found["test"], found["p"]) == ("McNemar", pytest.approx(0.109375))
    assert found["mean"] == pytest.approx(6 / 15)


def test_other_measures_by_flipping_signs():
    """Of the 8 ways to give 1, 2 and 4 a sign only one reaches their mean: 1 / 8 on either side."""
    found = paired_difference(np.array([1.0, 2.5, 4.0]), np.array([0.0, 0.0, 0.0]), SAMPLING)
    assert (found["test"], found["p"]) == ("sign flips", pytest.approx(0.25))
    assert found["effect"] == pytest.approx(2.5 / 1.5)


def test_clustered_rows_flip_together():
    difference, clusters = np.array([1.0, 1.0, 2.5, 4.0]), np.array(["a", "a", "b", "c"])
    found = paired_difference(difference, np.zeros(4), SAMPLING, clusters)
    assert found["p"] == pytest.approx(0.25)  # three clusters
    yes_or_no = paired_difference(np.array([1.0, 1.0, 1.0]), np.zeros(3), SAMPLING, np.array(["a", "a", "b"]))
    assert (yes_or_no["test"], yes_or_no["p"]) == ("sign flips", pytest.approx(0.5))


def test_rows_that_one_side_lacks_are_not_compared():
    found = paired_difference(np.array([1.0, np.nan, 3.0]), np.array([0.5, 9.0, np.nan]), SAMPLING)
    assert (found["n"], found["mean"]) == (1, 0.5)
    nothing = paired_difference(np.array([np.nan]), np.array([1.0]), SAMPLING)
    assert (nothing["mean"], nothing["p"], nothing["effect"]) == (None, None, None)


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([None]) == [None]


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


def test_rows_needed():
    """The textbook's 34 pairs for half a standard deviation at 5 % and 80 %."""
    assert rows_needed(spread=2.0, difference=-1.0, alpha=0.05, power=0.8) == 34
    assert difference_found(spread=2.0, rows=34, alpha=0.05, power=0.8) == pytest.approx(1.0, abs=0.02)
