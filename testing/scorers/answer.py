"""answer: is it the expected answer? Exact match and F1 of words with the best reference, as in SQuAD, 0..1."""

import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig, names
from utils.metrics import answer_match

MEASURES = {
    "em": Measure("the expected answer, case, punctuation and articles aside", "higher", "meaning"),
    "f1": Measure("F1 of the words with the best expected answer, 0..1", "higher", "meaning"),
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing where a row has no reference. An empty answer scores 0."""
    columns = names(config.reference_columns)
    rows = []
    for text, *references in frame[[config.output_column, *columns]].itertuples(index=False):
        given = [reference for reference in references if reference.strip()]
        rows.append(answer_match(text, given) if given else (None, None))
    return pd.DataFrame(rows, index=frame.index, columns=list(MEASURES), dtype=float)
