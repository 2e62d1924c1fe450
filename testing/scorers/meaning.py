"""meaning: does the rewriting still say the same? Cosine of MiniLM sentence embeddings, source against rewriting.

A cosine means little by itself, so two anchors go with it: the mean cosine of shuffled (unrelated) pairs, and that of
the human references.
"""

import numpy as np
import pandas as pd

from testing.scorers import Measure
from utils import params
from utils.configs import ScoreConfig, names
from utils.embedded import sentence_vectors

MEASURES = {"meaning": Measure("cosine of source and rewriting, -1..1", "higher", "meaning")}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """One cosine per row, -1..1; missing for an empty rewriting."""
    cosine = pd.Series(_cosines(frame[config.input_column], frame[config.output_column]), index=frame.index)
    cosine[frame[config.output_column].str.strip() == ""] = np.nan
    return pd.DataFrame({"meaning": cosine})


def anchors(frame: pd.DataFrame, scores: pd.DataFrame, config: ScoreConfig) -> dict[str, float]:
    """Mean cosines of unrelated texts, `shuffled`, and of source and human rewriting, `reference`."""
    frame = frame.head(params.ANCHOR_ROWS)
    source = frame[config.input_column].to_numpy()
    other = np.random.default_rng(config.seed).permutation(len(frame))
    unrelated = source[other] != source
    found = {}
    if unrelated.any():
        rewriting = frame[config.output_column].to_numpy()[other]
        found["shuffled"] = float(_cosines(pd.Series(source[unrelated]), pd.Series(rewriting[unrelated])).mean())
    reference = names(config.reference_columns)[0]
    if reference in frame.columns:
        found["reference"] = float(_cosines(frame[config.input_column], frame[reference]).mean())
    return found


def _cosines(one: pd.Series, other: pd.Series) -> np.ndarray:
    return (sentence_vectors(one) * sentence_vectors(other)).sum(axis=1)
