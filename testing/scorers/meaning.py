"""meaning: does the rewriting still say the same? Cosine of MiniLM sentence embeddings, source against rewriting.

A cosine means little by itself, so two anchors go with it: the mean cosine of shuffled (unrelated) pairs, and that of
the human references.
"""

from functools import lru_cache

import numpy as np
import pandas as pd

from testing.scorers import Measure
from utils import embedded
from utils.configs import ScoreConfig

MEASURES = {"meaning": Measure("cosine of source and rewriting, -1..1", "higher", "meaning")}


@lru_cache(maxsize=1)
def _encoder():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(embedded.fetch("minilm")), device="cpu")


def embed(texts: pd.Series) -> np.ndarray:
    """Unit vectors, float32 [texts, 384]."""
    return _encoder().encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def score(frame: pd.DataFrame, config: ScoreConfig) -> tuple[pd.DataFrame, dict[str, float]]:
    """One cosine per row, -1..1; missing for an empty rewriting. Anchors: `shuffled`, `reference`."""
    source, rewriting = embed(frame[config.input_column]), embed(frame[config.output_column])
    cosine = pd.Series((source * rewriting).sum(axis=1), index=frame.index)
    cosine[frame[config.output_column].str.strip() == ""] = np.nan
    other = np.random.default_rng(config.seed).permutation(len(frame))
    unrelated = frame[config.input_column].to_numpy()[other] != frame[config.input_column].to_numpy()
    anchors = {}
    if unrelated.any():
        anchors["shuffled"] = float((source * rewriting[other]).sum(axis=1)[unrelated].mean())
    reference = config.reference_columns.split(",")[0]
    if reference in frame.columns:
        anchors["reference"] = float((source * embed(frame[reference])).sum(axis=1).mean())
    return pd.DataFrame({"meaning": cosine}), anchors
