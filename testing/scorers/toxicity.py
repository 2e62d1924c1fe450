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

import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig
from utils.data import require_columns

MEASURES = {
    "toxic": Measure("probability that the text is toxic, by --toxicity_model, 0..1", "lower", "harm"),
    "toxic_source": Measure("the same of the source", None, "form"),
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> tuple[pd.DataFrame, dict[str, float]]:
    """Missing for an empty text, and where a stored score is missing."""
    if config.toxicity_model.startswith("column:"):
        names = config.toxicity_model.removeprefix("column:").split(",")
        require_columns(frame, names, "the input", "--toxicity_model column:NAME")
        stored = [pd.to_numeric(frame[name].replace("", None), errors="coerce") for name in names[:2]]
        scores = dict(zip(MEASURES, stored, strict=False))
        return pd.DataFrame({"toxic_source": float("nan")} | scores, index=frame.index)[list(MEASURES)], {}
    from utils.toxicity import measured_quality, toxicity_of

    texts = [list(frame[column]) for column in (config.output_column, config.input_column)]
    both = toxicity_of(texts[0] + texts[1], config.toxicity_model, config.toxicity_label, config.toxicity_sha256)
    values = dict(zip(MEASURES, (both[: len(frame)], both[len(frame) :]), strict=True))
    return pd.DataFrame(values, index=frame.index), measured_quality(config.toxicity_model)
