"""How far annotators agree, by the measures of the field: functions of scikit-learn, statsmodels and krippendorff."""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from utils.annotation import SCALES, USABLE

MISSING = ""


def codes(ratings: list[list[str]], scale: tuple[str, ...] | None = None) -> tuple[np.ndarray, list[str]]:
    """Ratings as numbers.

    Args:
        ratings: one list of labels per annotator, all of the same rows; "" is missing.
        scale: the values in their order; else those that occur, sorted. Values outside the scale raise ValueError.

    Returns:
        array [annotators, rows] with NaN where missing, and the values by code.
    """
    values = list(scale) if scale else sorted({label for rater in ratings for label in rater} - {MISSING})
    unknown = {label for rater in ratings for label in rater} - {MISSING, *values}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: not on the scale {', '.join(values)}")
    place = {value: float(code) for code, value in enumerate(values)} | {MISSING: np.nan}
    return np.array([[place[label] for label in rater] for rater in ratings]), values


def cohen(table: np.ndarray, weights: str | None = None) -> float | None:
    """Cohen's kappa of two annotators.

    Args:
        table: array [2, rows]; rows with NaN are left out.
        weights: None, or "linear" for ordered values.

    Returns:
        None where it is not defined: no rows, or one value only.
    """
    from sklearn.metrics import cohen_kappa_score

    one, other = table[:, ~np.isnan(table).any(axis=0)].astype(int)
    if len(one) == 0 or len(set(one) | set(other)) < 2:
        return None
    return float(cohen_kappa_score(one, other, weights=weights))


def fleiss(table: np.ndarray) -> float | None:
    """Fleiss' kappa of two or more annotators, over the rows that all of them rated: array [annotators, rows]."""
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    complete = table[:, ~np.isnan(table).any(axis=0)].astype(int)
    if complete.shape[1] == 0 or len(np.unique(complete)) < 2:
        return None
    counts, _ = aggregate_raters(complete.T)
    return float(fleiss_kappa(counts))


def alpha(table: np.ndarray, level: str = "nominal") -> float | None:
    """Krippendorff's alpha of two or more annotators; missing ratings are allowed: array [annotators, rows].

    Args:
        level: "nominal", or "ordinal" for ordered values.
    """
    import krippendorff

    if len(np.unique(table[~np.isnan(table)])) < 2 or (~np.isnan(table)).sum(axis=0).max(initial=0) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement=level))


def same(table: np.ndarray) -> float | None:
    """Share of the pairs of ratings of one row that agree: array [annotators, rows]."""
    pairs = [(table[i], table[j]) for i, j in combinations(range(len(table)), 2)]
    both = sum(int((~np.isnan(a) & ~np.isnan(b)).sum()) for a, b in pairs)
    return sum(int((a == b).sum()) for a, b in pairs) / both if both else None


def interval(
    measure: Callable[[np.ndarray], float | None], table: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a measure, over rows. None where the measure is not defined."""
    if measure(table) is None:
        return None
    draw = np.random.default_rng(seed)
    rows = table.shape[1]
    values = [measure(table[:, draw.integers(rows, size=rows)]) for _ in range(resamples)]
    defined = [value for value in values if value is not None]
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def against_gold(
    rows: list[dict[str, str]], gold: list[dict[str, str]], output_column: str
) -> dict[str, float | None]:
    """How near annotated rows come to rows annotated by people.

    Args:
        rows: annotated rows with status, the labels that were asked for, and `output_column`.
        gold: the gold row of each, with bias, toxicity, sentiment, harm and debiased_text.

    Returns:
        rows, usable; kappa of the decision to change a text, and of each label; among biased rows the share that came
        back unchanged and chrF to the gold rewriting; among fair rows the share that was changed.
    """
    from utils.metrics import chrf

    pairs = [(row, truth) for row, truth in zip(rows, gold, strict=True) if row["status"] in USABLE]
    measures: dict[str, float | None] = {"rows": len(rows), "usable": len(pairs)}
    decided = [["Yes" if row["status"] == "ok" else "No" for row, _ in pairs], [truth["bias"] for _, truth in pairs]]
    measures["change"] = cohen(codes(decided, SCALES["bias"])[0])
    for label, scale in SCALES.items():
        if pairs and label in pairs[0][0]:
            table, _ = codes([[row[label] for row, _ in pairs], [truth[label] for _, truth in pairs]], scale)
            measures[label] = cohen(table)
    biased = [(row, truth) for row, truth in pairs if truth["bias"] == "Yes"]
    fair = [row for row, truth in pairs if truth["bias"] == "No"]
    measures["copied"] = _mean([row["status"] == "neutral" for row, _ in biased])
    measures["chrf"] = _mean([chrf(row[output_column], [truth["debiased_text"]]) for row, truth in biased])
    measures["changed"] = _mean([row["status"] == "ok" for row in fair])
    return measures


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
