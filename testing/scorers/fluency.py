"""fluency: how expected is the text to a language model? Perplexity under a base model that was not tuned here.

A model finds its own kind of text expected, copied phrases too: read it beside the source's. `fluency` does that: it
is 1 where the rewriting is at least as expected as its source, and the ratio of their perplexities where it is less
so. This ratio is this project's; ParaDetox uses a classifier of acceptable sentences in its place.
"""

import logging
from functools import lru_cache

import numpy as np
import pandas as pd

from testing.scorers import Measure
from utils import params
from utils.configs import ScoreConfig, names

logger = logging.getLogger(__name__)

MEASURES = {
    "log_perplexity": Measure(
        "nats a token under --fluency_model; e to the mean of it is a perplexity", "lower", "form"
    ),
    "fluency": Measure("1, or perplexity of the source / that of the rewriting where this is less", "higher", "form"),
}


@lru_cache(maxsize=1)
def _model(name: str):
    from utils.loading import load_base, load_tokenizer
    from utils.models import resolve

    ref = resolve(name)
    return load_base(ref).eval(), load_tokenizer(ref, side="right")


def nats_per_token(texts: list[str], name: str) -> np.ndarray:
    """Mean negative log-likelihood of a text's tokens, float [texts]; NaN for an empty text.

    A begin-of-text token goes before them, so that the first one counts too; longer texts are cut at
    params.FLUENCY_TOKENS tokens.
    """
    from utils.batches import by_length, padded
    from utils.likelihood import log_likelihoods
    from utils.loading import begin_token

    model, tokenizer = _model(name)
    begin = begin_token(tokenizer)
    different = list(dict.fromkeys(text for text in texts if text.strip()))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][: params.FLUENCY_TOKENS] for text in different]
    scores: dict[str, float] = {}
    for batch in by_length([len(row) + 1 for row in ids], params.FLUENCY_BATCH_TOKENS):
        totals = log_likelihoods(model, padded([([begin, *ids[n]], 1) for n in batch], model.device))
        for n, total in zip(batch, totals.tolist(), strict=True):
            scores[different[n]] = -total / len(ids[n])
    return np.array([scores.get(text, np.nan) for text in texts])


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing for an empty text."""
    name = config.fluency_model or params.BASE_MODEL
    texts = [*frame[config.output_column], *frame[config.input_column]]
    text, source = np.split(nats_per_token(texts, name), 2)
    return pd.DataFrame({"log_perplexity": text, "fluency": np.minimum(1, np.exp(source - text))}, index=frame.index)


def anchors(frame: pd.DataFrame, scores: pd.DataFrame, config: ScoreConfig) -> dict[str, float]:
    """Nats a token of the sources, `source`, and of the human rewritings, `reference`."""
    name, frame = config.fluency_model or params.BASE_MODEL, frame.head(params.ANCHOR_ROWS)
    columns = {"source": config.input_column, "reference": names(config.reference_columns)[0]}
    found = {anchor: nats_per_token(list(frame[c]), name) for anchor, c in columns.items() if c in frame}
    return {anchor: float(np.nanmean(nats)) for anchor, nats in found.items() if np.isfinite(nats).any()}
