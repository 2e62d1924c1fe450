"""toxicity: is the text toxic, by a classifier, and was the source?

--toxicity_model names it:
  models/toxicity    made here by training/train_toxicity.py (the default); what it is worth is in its metrics.json,
                     and as anchors beside every mean
  detoxify:original  Detoxify (pip install -r requirements-eval.txt), also unbiased and multilingual; detoxify:FILE is
                     a checkpoint of one's own, with its --toxicity_sha256, since it is a pickle and may run code
  a Hub id, a folder any text classifier; --toxicity_label says which of its labels is the toxic one
  column:NAME        scores that stand in the input, 0..1. Perspective API is out of service, and what it once said can
                     still be compared; column:NAME,SOURCE also names those of the source

A classifier calls some harmless texts about a group toxic: see the counterfactual tables of testing/compare.py.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig, names
from utils.data import require_columns, values_of
from utils.helpers import UserError
from utils.records import file_sha256

MEASURES = {
    "toxic": Measure("probability that the text is toxic, by --toxicity_model, 0..1", "lower", "harm"),
    "toxic_source": Measure("the same of the source", None, "form"),
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing for an empty text, and where a stored score is missing."""
    if config.toxicity_model.startswith("column:"):
        return _stored(frame, names(config.toxicity_model.removeprefix("column:")))
    from utils.toxicity import toxicity_of

    texts = [*frame[config.output_column], *frame[config.input_column]]
    found = toxicity_of(texts, config.toxicity_model, config.toxicity_label, config.toxicity_sha256)
    return pd.DataFrame(dict(zip(MEASURES, np.split(found, 2), strict=True)), index=frame.index)


def _stored(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    if len(names) > 2:
        raise UserError("--toxicity_model column:NAME,SOURCE: one column, or two")
    # a column that is called like the measure was renamed to make room for it
    names = [name if name in frame or f"input_{name}" not in frame else f"input_{name}" for name in names]
    require_columns(frame, names, "the input", "--toxicity_model column:NAME")
    scores = pd.DataFrame(float("nan"), index=frame.index, columns=list(MEASURES))
    for measure, name in zip(MEASURES, names, strict=False):
        scores[measure] = values_of(frame, name)
        if not scores[measure].dropna().between(0, 1).all():
            raise UserError(f"--toxicity_model column:{name}: {scores[measure].max():g} is no probability, 0..1")
    return scores


def anchors(frame: pd.DataFrame, scores: pd.DataFrame, config: ScoreConfig) -> dict[str, float]:
    """What the classifier made here is worth, on rows of its own kind that it had not seen."""
    from utils.toxicity import measured_quality

    return measured_quality(config.toxicity_model)


def fingerprint(config: ScoreConfig) -> dict[str, str]:
    """The classifier made here may be made anew between two runs. Raises UserError where it was not made."""
    from utils.toxicity import WEIGHTS_NAME, check, is_probe

    name = config.toxicity_model
    check(name)
    return {"toxicity_weights": file_sha256(Path(name) / WEIGHTS_NAME)} if is_probe(name) else {}
