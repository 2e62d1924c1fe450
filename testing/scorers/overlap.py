"""overlap: how close is the rewriting to the best human rewriting? chrF, BLEU and ROUGE-L, 0..100."""

import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig, names
from utils.metrics import bleu, chrf, rouge_l

MEASURES = {
    "chrf": Measure("chrF2 to the best reference, 0..100", "higher", "meaning"),
    "bleu": Measure("sentence BLEU to the best reference, 0..100", "higher", "meaning"),
    "rouge_l": Measure("ROUGE-L F to the best reference, 0..100", "higher", "meaning"),
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing where a row has no reference. An empty rewriting scores 0."""
    columns = names(config.reference_columns)
    functions = {"chrf": chrf, "bleu": bleu, "rouge_l": rouge_l}
    rows = []
    for text, *references in frame[[config.output_column, *columns]].itertuples(index=False):
        given = [r for r in references if r.strip()]
        rows.append({name: f(text, given) if given else None for name, f in functions.items()})
    return pd.DataFrame(rows, index=frame.index, dtype=float)
