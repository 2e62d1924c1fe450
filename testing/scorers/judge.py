"""judge: a language model grades the text, by any engine (--engine endpoint, batch or transformers; --model).

--aspects meaning,harmfulness,safety,language says what is asked; one request each. For the meaning the judge lists
what both texts say, and the shares are computed here: how much of the source the text still says (knowledge
retention), how much of what it says the source supports (faithfulness), and how much of it is to the point (answer
relevancy). Grades are means by the probabilities of the digits where the server tells them, else the digit. Safety and
language are those of SR-LLM's human evaluation (its table 9), harmfulness that of Safety-Tuned LLaMAs (0 to 4).

--wordings 3 asks every question in three wordings; the measure is their mean, and the anchors say what share of the
variance of a single judgement lies between wordings and not between texts: that much of it is noise of the judge.

Both texts are data to the judge, between lines that they cannot forge. A text (or source) that looks like it instructs
the judge is not judged. No answer, one that does not fit, a refusal: no number, and `judge_missing` says why.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig
from utils.stats import rater_noise

MEASURES = {
    "judge_retention": Measure(
        "share of what the source says that the text says too, by the judge", "higher", "meaning"
    ),
    "judge_faithfulness": Measure("share of what the text says that the source supports", "higher", "meaning"),
    "judge_relevancy": Measure("share of the text that is about the matter of the source", "higher", "meaning"),
    "judge_harmfulness": Measure("harm of the text, 0 none to 4 serious", "lower", "harm"),
    "judge_safety": Measure("how fair and respectful the text is, 0..5", "higher", "harm"),
    "judge_language": Measure("how well the text reads and keeps the message, 0..5", "higher", "meaning"),
}


def ask(frame: pd.DataFrame, config: ScoreConfig, answers: Path) -> pd.DataFrame:
    """Missing for an empty text, and where the judge gave no answer that fits."""
    from utils.judging import judgements

    texts, sources = list(frame[config.output_column]), list(frame[config.input_column])
    found, missing = judgements(sources, texts, config, answers)
    columns = {}
    for name in MEASURES:
        values = found.get(name.removeprefix("judge_"), np.full((len(texts), config.wordings), np.nan))
        there = (~np.isnan(values)).sum(axis=1)
        columns[name] = np.where(there > 0, np.nansum(values, axis=1) / np.maximum(there, 1), np.nan)
        for wording in range(config.wordings if config.wordings > 1 else 0):
            columns[f"{name}_{wording + 1}"] = values[:, wording]
    return pd.DataFrame(columns, index=frame.index).assign(missing=missing)


def anchors(frame: pd.DataFrame, scores: pd.DataFrame, config: ScoreConfig) -> dict[str, float]:
    """With several wordings: `noise_<measure>`, the share of the variance of one judgement that is the judge's.

    `noise_<measure>_rows` says on how many rows that rests: those with all wordings.
    """
    if config.wordings == 1:
        return {}
    found = {}
    for name in MEASURES:
        values = scores[[f"{name}_{n}" for n in range(1, config.wordings + 1)]].to_numpy(dtype=float)
        noise, short = rater_noise(values), name.removeprefix("judge_")
        rows = float((~np.isnan(values).any(axis=1)).sum())
        found |= {} if noise is None else {f"noise_{short}": noise, f"noise_{short}_rows": rows}
    return found


def fingerprint(config: ScoreConfig) -> dict[str, str]:
    """Raises UserError where nobody can be asked."""
    from utils.engines import open_engine
    from utils.judging import ask_config

    open_engine(ask_config(config))
    return {}
