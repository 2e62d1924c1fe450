"""Intervals, tests and sample sizes, on cases that can be computed by hand."""

import numpy as np
import pytest

from utils.stats import (
    Sampling,
    difference_found,
    holm,
    mean_interval,
    paired_difference,
    rows_needed,
    spread_of_difference,
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


def test_nothing_seen_is_not_nothing_there():
    """0 of 20: up to 12 % by Jeffreys' interval (0.0 to 0.117); resampling zeros would say 0 to 0."""
    none = mean_interval(np.zeros(20), SAMPLING)
    assert (none["mean"], none["low"]) == (0, 0) and 0.09 < none["high"] < 0.15
    same = paired_difference(np.zeros(20), np.zeros(20), SAMPLING)
    assert same["mean"] == 0 and same["low"] < -0.02 and same["high"] > 0.02 and same["p"] == 1
    alone = mean_interval(np.array([0.4]), SAMPLING)
    assert (alone["mean"], alone["low"], alone["high"]) == (0.4, None, None)
    cluster = mean_interval(np.array([0.4, 0.6]), SAMPLING, np.array(["a", "a"]))
    assert (cluster["mean"], cluster["low"]) == (0.5, None)


def test_the_level_is_that_asked_for():
    """Of a mean of 400 normal values: half a width of 1.96 and 1.64 standard errors, 0.05."""
    values = np.random.default_rng(0).normal(size=400)
    values = (values - values.mean()) / values.std()
    for confidence, z in ((0.95, 1.96), (0.9, 1.645)):
        found = mean_interval(values, Sampling(confidence, 5000, 0))
        assert (found["high"] - found["low"]) / 2 == pytest.approx(z * 0.05, rel=0.05)


def test_rows_needed():
    """The textbook's 34 pairs for half a standard deviation at 5 % and 80 %."""
    assert rows_needed(spread=2.0, difference=-1.0, alpha=0.05, power=0.8) == 34
    assert difference_found(spread=2.0, rows=34, alpha=0.05, power=0.8) == pytest.approx(1.0, abs=0.02)
    assert rows_needed(spread=0.1, difference=5, alpha=0.05, power=0.8) == 3
    assert difference_found(spread=2.0, rows=3, alpha=0.05, power=0.8) is None


def test_clusters_make_a_plan_longer():
    """Rows that repeat four times say a fourth: the spread that a row counts with doubles."""
    values = np.random.default_rng(2).normal(size=100)
    alone, rows = spread_of_difference(np.repeat(values, 4), np.zeros(400), SAMPLING, None)
    together, _ = spread_of_difference(np.repeat(values, 4), np.zeros(400), SAMPLING, np.repeat(np.arange(100), 4))
    assert rows == 400 and alone == pytest.approx(values.std(), rel=0.05)
    assert together == pytest.approx(2 * alone, rel=0.05)


def test_clusters_of_single_rows_are_rows_and_clusters_that_all_agree_are_no_certainty():
    from utils.stats import Sampling, mean_interval

    sampling, ones = Sampling(0.95, 1000, 0), np.ones(6)
    alone = mean_interval(ones, sampling, np.arange(6))
    assert alone == mean_interval(ones, sampling)
    pairs = mean_interval(ones, sampling, np.array([0, 0, 1, 1, 2, 2]))
    assert pairs["low"] == mean_interval(np.ones(3), sampling)["low"] < alone["low"] and pairs["n"] == 6
