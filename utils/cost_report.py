"""The figures of a cost model on rows that it was not trained on, beside simpler classifiers; tables and plots."""

from pathlib import Path

import numpy as np

from utils import params
from utils.cost_metrics import (
    calibration_error,
    labels_of,
    pairs_of,
    probability,
    ranking_accuracy,
    sign_accuracy,
)
from utils.preferences import Judged
from utils.report import markdown_table, with_ends
from utils.stats import Sampling, mean_interval, paired_difference

RAW = {"slope": 1.0, "intercept": 0.0}
SHOWN = ("ranking", "sign", "auroc", "average_precision", "f1", "brier", "calibration_error")


def figures(rows: list[Judged], costs: np.ndarray, calibration: dict | None, sampling: Sampling) -> dict[str, dict]:
    """Every measure with its interval, resampled by prompt: what was said to one prompt is no independent evidence.

    Args:
        costs: of all responses, row by row; above 0 means unsafe.
        calibration: of `fit_calibration`; None: costs are log-odds already.

    Returns:
        measure -> mean, low, high, n. Brier score and calibration error are of probabilities by Platt's scaling;
        `raw_...` of those that the sigmoid of the cost would be, `temperature_...` of a cost that was scaled before.
        The calibration error has no interval: of resampled rows it is larger. Left out is what the rows cannot tell:
        ranking without pairs, areas under curves where all are safe, or unsafe.
    """
    return accuracies(rows, costs, sampling) | _by_prompt(rows, costs, calibration, sampling)


def accuracies(rows: list[Judged], costs: np.ndarray, sampling: Sampling) -> dict[str, dict]:
    """Ranking accuracy of the pairs and sign accuracy of the labelled responses, where there are any."""
    labelled, unsafe, groups = _labelled(rows)
    pairs, prompts = pairs_of(rows, costs)
    found = {"ranking": mean_interval(ranking_accuracy(pairs), sampling, np.array(prompts))} if len(pairs) else {}
    if labelled.any():
        found["sign"] = mean_interval(sign_accuracy(costs[labelled], unsafe), sampling, groups)
    return found


def _labelled(rows: list[Judged]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which responses are labelled, bool [responses]; of those whether they are unsafe, and their prompts."""
    labelled, unsafe = labels_of(rows)
    groups = np.array([row.group for row in rows for _ in row.responses])
    return labelled, unsafe[labelled], groups[labelled]


def _by_prompt(rows: list[Judged], costs: np.ndarray, calibration: dict | None, sampling: Sampling) -> dict:
    """Measures that are no means of rows, by a bootstrap over prompts."""
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    labelled, unsafe, groups = _labelled(rows)
    costs, found = costs[labelled], {}
    if not labelled.any():
        return found
    scalings = {"": calibration or RAW, "raw_": RAW}
    if calibration:
        scalings["temperature_"] = {"slope": 1 / calibration["temperature"], "intercept": 0.0}
    measures = {}
    for name, scaling in scalings.items():
        chances = probability(costs, scaling)
        found[f"{name}brier"] = mean_interval((chances - unsafe) ** 2, sampling, groups)
        error = calibration_error(chances, unsafe, params.COST_BINS)
        found[f"{name}calibration_error"] = {"mean": error, "low": None, "high": None, "n": len(costs)}
    if len(set(unsafe)) == 2:
        measures = {
            "auroc": lambda at: roc_auc_score(unsafe[at], costs[at]),
            "average_precision": lambda at: average_precision_score(unsafe[at], costs[at]),
            "f1": lambda at: f1_score(unsafe[at], costs[at] > 0),
        }
    of_group = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups)]
    rng, draws = np.random.default_rng(sampling.seed), {name: [] for name in measures}
    for _ in range(params.COST_RESAMPLES if measures and len(of_group) > 1 else 0):
        at = np.concatenate([of_group[n] for n in rng.integers(len(of_group), size=len(of_group))])
        if len(set(unsafe[at])) == 2:
            for name, measure in measures.items():
                draws[name].append(measure(at))
    for name, measure in measures.items():
        low, high = sampling.interval(np.array(draws[name])) if draws[name] else (None, None)
        found[name] = {"mean": float(measure(np.arange(len(costs)))), "low": low, "high": high, "n": len(costs)}
    return found


def differences(rows: list[Judged], ours: np.ndarray, theirs: np.ndarray, sampling: Sampling) -> dict[str, dict]:
    """Ours minus theirs in ranking and sign accuracy, paired by row, intervals by prompt."""
    labelled, unsafe, groups = _labelled(rows)
    (mine, prompts), (others, _) = pairs_of(rows, ours), pairs_of(rows, theirs)
    found = {}
    if len(mine):
        found["ranking"] = paired_difference(
            ranking_accuracy(mine), ranking_accuracy(others), sampling, np.array(prompts)
        )
    if labelled.any():
        signs = (sign_accuracy(costs[labelled], unsafe) for costs in (ours, theirs))
        found["sign"] = paired_difference(*signs, sampling, groups)
    return found


def by_category(rows: list[Judged], costs: np.ndarray, sampling: Sampling) -> dict[str, dict]:
    """Ranking and sign accuracy of every category."""
    first = np.cumsum([0, *(len(row.responses) for row in rows)])
    found = {}
    for category in sorted({row.category for row in rows} - {""}):
        numbers = [n for n, row in enumerate(rows) if row.category == category]
        mine = [rows[n] for n in numbers]
        of_mine = np.concatenate([costs[first[n] : first[n + 1]] for n in numbers])
        found[category] = accuracies(mine, of_mine, sampling)
    return found


def thresholds(costs: np.ndarray, unsafe: np.ndarray, calibration: dict) -> list[dict[str, float]]:
    """What would be flagged at several probabilities of being unsafe: cost, share, precision, recall, false alarms."""
    found = []
    chances = probability(costs, calibration)
    for wanted in params.COST_THRESHOLDS:
        flagged = chances >= wanted
        slope = calibration["slope"]
        found.append(
            {
                "probability": wanted,
                "cost": float((np.log(wanted / (1 - wanted)) - calibration["intercept"]) / slope) if slope else None,
                "flagged": float(flagged.mean()),
                "precision": float(unsafe[flagged].mean()) if flagged.any() else None,
                "recall": float(flagged[unsafe].mean()),
                "false_alarms": float(flagged[~unsafe].mean()),
            }
        )
    return found


def tables(result: dict) -> str:
    """Markdown: all systems, differences, categories, thresholds."""
    systems = result["systems"]
    shown = [name for name in SHOWN if any(name in of for of in systems.values())]
    parts = [
        markdown_table(
            ["system", *shown], [[name, *(with_ends(of.get(m)) for m in shown)] for name, of in systems.items()]
        )
    ]
    ours = next(iter(systems.values()))
    if "raw_brier" in ours:
        parts.append(
            "Brier score and calibration error of the cost model: "
            + "; ".join(
                f"{how} {with_ends(ours[f'{name}brier'])} and {with_ends(ours[f'{name}calibration_error'])}"
                for name, how in (("raw_", "as it is"), ("temperature_", "by temperature"), ("", "by Platt's scaling"))
                if f"{name}brier" in ours
            )
        )
    kinds = [m for m in ("ranking", "sign") if any(m in of for of in result["differences"].values())]
    rows = [[name, *(with_ends(of.get(m), "+.3f") for m in kinds)] for name, of in result["differences"].items()]
    parts += [markdown_table(["cost model minus", *kinds], rows)] if rows else []
    if result["categories"]:
        rows = [
            [name, *(with_ends(of.get(m)) for m in ("ranking", "sign")), *(_n(of.get(m)) for m in ("ranking", "sign"))]
            for name, of in result["categories"].items()
        ]
        parts.append(markdown_table(["category", "ranking", "sign", "pairs", "responses"], rows))
    if result["thresholds"]:
        names = list(result["thresholds"][0])
        rows = [["-" if row[n] is None else f"{row[n]:.3g}" for n in names] for row in result["thresholds"]]
        parts.append(markdown_table(names, rows))
    return "\n\n".join(parts) + "\n"


def _n(value: dict | None) -> str:
    return str(value["n"]) if value else "-"


def verdict(result: dict, prompts: int) -> str:
    """In a sentence, whether the model is worth more than the best of the simpler classifiers.

    Args:
        prompts: how many different ones there are.
    """
    if not result["differences"]:
        return "No simpler classifier was compared."
    if prompts < params.COST_LEAST_PROMPTS:
        return f"{prompts} prompts are too few for a verdict."
    lines = []
    for measure in ("ranking", "sign"):
        of = {name: d[measure] for name, d in result["differences"].items() if measure in d}
        if not of:
            continue
        name, d = min(of.items(), key=lambda item: item[1]["mean"])
        if d["low"] > 0:
            said = "the cost model beats"
        elif d["high"] < 0:
            said = "the cost model is worse than"
        else:
            said = "the cost model is not surely better than"
        lines.append(f"{measure} accuracy: {said} {name} ({with_ends(d, '+.3f')})")
    return "\n".join(lines)


def plot(rows: list[Judged], costs: np.ndarray, calibration: dict | None, others: dict, folder: Path) -> None:
    """costs.png (histograms), roc.png (all systems) and reliability.png (before and after calibration)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import roc_curve

    labelled, unsafe = labels_of(rows)
    unsafe, found = unsafe[labelled], costs[labelled]

    def draw(name: str, xlabel: str, ylabel: str, lines) -> None:
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        lines(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend()
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)

    def histograms(axes) -> None:
        bins = np.linspace(found.min(), found.max(), 41)
        for label, which in (("safe", ~unsafe), ("unsafe", unsafe)):
            axes.hist(found[which], bins, alpha=0.6, label=f"{label} (n {which.sum()})")
        axes.axvline(0, color="black", linewidth=1)

    def curves(axes) -> None:
        for name, scores in {"cost model": costs, **others}.items():
            false, true, _ = roc_curve(unsafe, scores[labelled])
            axes.plot(false, true, label=name, linewidth=2 if name == "cost model" else 1)
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":")

    def reliability(axes) -> None:
        for name, fitted in (("sigmoid of the cost", RAW), ("calibrated", calibration)):
            if fitted:
                share, said = calibration_curve(
                    unsafe, probability(found, fitted), n_bins=params.COST_BINS, strategy="quantile"
                )
                axes.plot(said, share, marker=".", label=name)
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":")

    draw("costs.png", "cost", "responses", histograms)
    draw("roc.png", "false alarms", "unsafe responses found", curves)
    draw("reliability.png", "said probability of being unsafe", "share that is", reliability)
