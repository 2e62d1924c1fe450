"""How good is a cost model? Ranking, sign, areas under curves, calibration; pure functions of costs and labels."""

import numpy as np

from utils.preferences import Judged


def ranking_accuracy(pairs: np.ndarray) -> np.ndarray:
    """Whether the more harmful response of a pair costs more, float [pairs]; a tie counts half.

    Args:
        pairs: costs of (more harmful, safer), [pairs, 2].
    """
    return (np.sign(pairs[:, 0] - pairs[:, 1]) + 1) / 2


def sign_accuracy(costs: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Whether a cost is above 0 for an unsafe response and below for a safe one, float [responses]."""
    return ((costs > 0) == unsafe).astype(float)


def calibration_error(probabilities: np.ndarray, unsafe: np.ndarray, bins: int) -> float:
    """Expected calibration error: over bins with as many responses each, the mean gap of probability and share unsafe.

    Naeini et al. 2015, with quantile bins (Nguyen and O'Connor 2015), which leave none of them empty.
    """
    parts = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(probabilities)))
    gaps = [len(part) * abs(probabilities[part].mean() - unsafe[part].mean()) for part in parts]
    return float(sum(gaps) / len(probabilities))


def fit_calibration(costs: np.ndarray, unsafe: np.ndarray) -> dict[str, float]:
    """How a cost becomes a probability of being unsafe.

    Returns:
        `slope` and `intercept` of Platt's scaling, sigmoid(slope * cost + intercept), fitted to labels that are drawn
        in a little from 0 and 1, as Platt did, so that it stays finite where a cost tells all apart; and
        `temperature`, by which a cost is divided where only its scale is fitted. Both of lowest log loss.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.linear_model import LogisticRegression

    spread = costs.std() or 1.0
    many, few = unsafe.sum(), (~unsafe).sum()
    target = np.where(unsafe, (many + 1) / (many + 2), 1 / (few + 2))  # how much of a row is unsafe
    twice, labels = np.tile(costs / spread, 2)[:, None], np.repeat([True, False], len(costs))
    platt = LogisticRegression(C=1e6).fit(twice, labels, sample_weight=np.concatenate([target, 1 - target]))
    found = minimize_scalar(
        lambda log: log_loss(costs / np.exp(log), unsafe), bounds=(np.log(spread) - 6, np.log(spread) + 6)
    )
    return {
        "slope": float(platt.coef_[0, 0] / spread),
        "intercept": float(platt.intercept_[0]),
        "temperature": float(np.exp(found.x)),
    }


def log_loss(logits: np.ndarray, unsafe: np.ndarray) -> float:
    """Mean of -log p(label), p = sigmoid(logit)."""
    return float(np.logaddexp(0, np.where(unsafe, -logits, logits)).mean())


def probability(costs: np.ndarray, calibration: dict[str, float]) -> np.ndarray:
    """Of being unsafe, by Platt's scaling."""
    from scipy.special import expit

    return expit(calibration["slope"] * costs + calibration["intercept"])


def responses_of(rows: list[Judged]) -> tuple[list[str], list[str]]:
    """(prompts, responses) of all responses, row by row."""
    return [row.prompt for row in rows for _ in row.responses], [r for row in rows for r in row.responses]


def labels_of(rows: list[Judged]) -> tuple[np.ndarray, np.ndarray]:
    """For all responses, row by row: whether they are labelled, and whether they are unsafe, bool [responses]."""
    labels = [unsafe for row in rows for unsafe in row.unsafe]
    return np.array([u is not None for u in labels], dtype=bool), np.array([bool(u) for u in labels], dtype=bool)


def pairs_of(rows: list[Judged], costs: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Costs of (more harmful, safer) for the rows that are pairs, [pairs, 2], and the prompts they belong to."""
    first = np.cumsum([0, *(len(row.responses) for row in rows)])
    found = [(costs[at], costs[at + 1]) for row, at in zip(rows, first, strict=False) if row.is_pair]
    return np.array(found).reshape(-1, 2), [row.group for row in rows if row.is_pair]
