"""Which training rows to drop for what was forgotten of them: how right that is, and where to draw the line.

A row is dropped where its forgetting rate is above phi (arXiv 2312.12736, algorithm 1). Where it is known which rows
are unsafe, dropping is judged as finding them, beside dropping everything and dropping as many by chance.
"""

import numpy as np

from utils import params
from utils.stats import Sampling


def rates_of(dropped: np.ndarray, unsafe: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of dropping as finding the unsafe rows, 0..1, and the share dropped. bool [rows]."""
    hit = (dropped & unsafe).sum()
    precision, recall = hit / max(dropped.sum(), 1), hit / max(unsafe.sum(), 1)
    return {"precision": float(precision), "recall": float(recall),
            "f1": float(2 * hit / max(dropped.sum() + unsafe.sum(), 1)), "dropped": float(dropped.mean())}  # fmt: skip


def judged(scores: np.ndarray, dropped: np.ndarray, unsafe: np.ndarray, sampling: Sampling) -> dict:
    """`rates_of`, and the area under the ROC curve of the scores, with intervals over rows.

    Args:
        scores: float [rows], the higher the more likely to be dropped; NaN comes last.
        dropped: bool [rows].
        unsafe: bool [rows], both kinds there.

    Returns:
        measure -> `mean`, `low`, `high`.
    """
    from sklearn.metrics import roc_auc_score

    ranked = np.nan_to_num(scores, nan=-np.inf).clip(-1e9, 1e9)

    def measures(rows: np.ndarray) -> dict[str, float]:
        found = rates_of(dropped[rows], unsafe[rows])
        both = 0 < unsafe[rows].sum() < len(rows)
        return found | {"auroc": float(roc_auc_score(unsafe[rows], ranked[rows])) if both else np.nan}

    rng = np.random.default_rng(sampling.seed)
    draws = [measures(rng.integers(len(scores), size=len(scores))) for _ in range(sampling.resamples)]
    found = {}
    for name, mean in measures(np.arange(len(scores))).items():
        values = np.array([draw[name] for draw in draws])
        low, high = sampling.interval(values[~np.isnan(values)])
        found[name] = {"mean": mean, "low": low, "high": high, "n": len(scores)}
    return found


def as_many(scores: np.ndarray, dropped: int) -> np.ndarray:
    """Which rows another filter drops, if it drops as many: those with the highest scores, NaN last. bool [rows].

    Of equal scores, as a guard gives them, the first rows are taken: a noisy set is shuffled.
    """
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    found = np.zeros(len(scores), dtype=bool)
    found[order[:dropped]] = True
    return found


def by_chance(share_dropped: float, unsafe: np.ndarray) -> dict[str, float]:
    """What dropping so many rows by chance comes to on average."""
    precision = float(unsafe.mean())
    f1 = 2 * precision * share_dropped / (precision + share_dropped) if share_dropped else 0.0
    return {"precision": precision, "recall": share_dropped, "f1": f1, "dropped": share_dropped}


def suggestion(scores: np.ndarray, sampling: Sampling) -> dict:
    """Where to draw the line when nobody knows which rows are unsafe: between the two groups that k-means finds.

    Returns:
        `phi`, halfway between the groups, with its interval `low` and `high` over rows; `explained`, the share of the
        variance that lies between them, and its lower end `explained_low`; and `two_groups`: whether that is surely
        more than of values that are spread evenly (params.TWO_GROUPS). Without that a suggestion is none.
    """
    there = scores[~np.isnan(scores)]
    if len(there) < 3 or np.ptp(there) == 0:
        return {"phi": None, "two_groups": False}
    rng = np.random.default_rng(sampling.seed)
    draws = np.array([_cut(there[rng.integers(len(there), size=len(there))]) for _ in range(sampling.resamples)])
    phi, explained = _cut(there)
    low, high = sampling.interval(draws[:, 0])
    explained_low = sampling.interval(draws[:, 1])[0]
    return {"phi": phi, "low": low, "high": high, "explained": explained, "explained_low": explained_low,
            "two_groups": bool(explained_low > params.TWO_GROUPS)}  # fmt: skip


def _cut(values: np.ndarray) -> tuple[float, float]:
    """Halfway between two groups, and the share of the variance between them."""
    from sklearn.cluster import KMeans

    total = ((values - values.mean()) ** 2).sum()
    if total == 0:
        return float(values[0]), 0.0
    ends = np.array([[values.min()], [values.max()]])
    found = KMeans(2, init=ends, n_init=1).fit(values[:, None])
    return float(found.cluster_centers_.mean()), float(1 - found.inertia_ / total)
