"""How much of what a model learned is forgotten in a later training? (arXiv 2312.12736, eq. 3)

A row's forgetting rate is what was recalled before minus what is recalled after, -1 to 1, by one of three signals:

rouge1       ROUGE-1 of the greedy answer with the learned one, as published
em           whether both are the same, case and punctuation aside
likelihood   exp of the mean log-likelihood of the learned answer's tokens, the probability of a typical one: nothing
             is generated, so it takes seconds in place of minutes
"""

import numpy as np
import pandas as pd

from utils import params
from utils.data import content_id, read_table, require_columns, with_ids
from utils.instruction_files import instructions_of
from utils.stats import Sampling, mean_interval

SIGNALS = ("rouge1", "em", "likelihood")
BEFORE = "before"
COLUMNS = ["id", "polarity", "source", "model", "step", "answer", *SIGNALS, *(f"forgotten_{s}" for s in SIGNALS)]


def read_learned(path: str, limit: int | None = None) -> pd.DataFrame:
    """The rows that a model was trained on, with `id`, `prompt` and `completion` beside their own columns."""
    frame = read_table(path, limit, params.MAX_ANSWER_CHARS)
    if {"instruction", "output"} <= set(frame):
        prompts = pd.Series(instructions_of(frame), index=frame.index, dtype=object)  # text columns hold plain text
        frame = frame.assign(prompt=prompts, completion=frame["output"])
    require_columns(frame, ["prompt", "completion"], path, "--input: instruction and output would do, too")
    if "id" not in frame:
        frame.insert(0, "id", [content_id(*both) for both in zip(frame["prompt"], frame["completion"], strict=True)])
    return with_ids(frame, "prompt")


def with_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds forgotten_<signal>: what was recalled before minus what this model recalls; NaN for the model before.

    Args:
        frame: columns id, model (BEFORE first) and the signals, NaN where one is missing; each id once for a model.
    """
    before = frame[frame["model"] == BEFORE].set_index("id")
    is_after = frame["model"] != BEFORE
    rates = {f"forgotten_{signal}": (frame["id"].map(before[signal]) - frame[signal]).where(is_after)
             for signal in SIGNALS}  # fmt: skip
    return frame.assign(**rates)


def summary(frame: pd.DataFrame, by: str, sampling: Sampling) -> list[dict]:
    """For each model and each value of a column: rows, and of each signal the mean, and the rate with its interval."""
    found = []
    for (model, value), rows in frame.groupby(["model", by], sort=False):
        entry = {"model": model, by: value, "step": int(rows["step"].iloc[0]), "rows": len(rows)}
        for signal in SIGNALS:
            values = rows[signal].to_numpy(dtype=float)
            rates = rows[f"forgotten_{signal}"].to_numpy(dtype=float)
            entry[signal] = mean_interval(values, sampling)
            entry[f"forgotten_{signal}"] = mean_interval(rates, sampling)
        found.append(entry)
    return found


def agreement(rows: pd.DataFrame) -> dict:
    """Spearman's correlation of the cheap signal with the published one, over the rows of one model after.

    None where one of them is missing or the same for all rows.
    """
    from scipy.stats import spearmanr

    rates = rows[["forgotten_rouge1", "forgotten_likelihood"]].astype(float).dropna()
    if len(rates) < 3 or (rates.nunique() < 2).any():
        return {"spearman": None, "rows": len(rates)}
    return {"spearman": float(spearmanr(*rates.to_numpy().T).statistic), "rows": len(rates)}


def draw(summaries: list[dict], by: str, along: str, path) -> None:
    """Forgetting rates against `step`, which `along` names, one panel for each signal that was measured."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    after = [entry for entry in summaries if entry["model"] != BEFORE]
    signals = [signal for signal in SIGNALS if any(entry[f"forgotten_{signal}"]["n"] for entry in after)]
    figure, axes = plt.subplots(1, len(signals), figsize=(4.5 * len(signals), 4), layout="constrained", squeeze=False)
    for axis, signal in zip(axes[0], signals, strict=True):
        for value in dict.fromkeys(entry[by] for entry in after):
            found = [entry for entry in after if entry[by] == value]
            rates = [entry[f"forgotten_{signal}"] for entry in found]
            means = np.array([rate["mean"] for rate in rates], dtype=float)  # NaN where nothing was measured
            low, high = (np.array([rate[end] for rate in rates], dtype=float) for end in ("low", "high"))
            errors = np.nan_to_num(np.maximum([means - low, high - means], 0))
            axis.errorbar([entry["step"] for entry in found], means, yerr=errors, marker="o", capsize=3, label=value)
        axis.set(xlabel=along, ylabel=f"forgetting rate, {signal}")
        axis.axhline(0, color="#999", linewidth=0.8)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
