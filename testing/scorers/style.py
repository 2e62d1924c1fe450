"""style: is the text evenly built, and does it sound like the trait wanted?

`sentence_entropy` is what is made here of the paper's CLEN, "content-length entropy normalisation": the paper says
that it measures the entropy of sentence lengths and prints no formula. Ours: with p the share of a text's words that
each of its k sentences has, -sum(p log p) / log(k), 0..1; 1 where all sentences are of one length.

`trait` is the probability of --trait_label by a text classifier, --trait_model (a Hub id or folder). Anchors are the
t-tests of the paper: `t` and `p` of the paired test of rewriting against source, and `t_half` and `p_half` of the
one-sample test against 0.5.
"""

import math
import re

import numpy as np
import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig
from utils.metrics import words

MEASURES = {
    "sentence_entropy": Measure("evenness of sentence lengths, 0..1; missing for a single sentence", None, "form"),
    "trait": Measure("probability of --trait_label by --trait_model, 0..1", None, "form"),
    "trait_source": Measure("the same of the source", None, "form"),
}


def sentence_entropy(text: str) -> float | None:
    """Entropy of the sentence lengths, in words, over its maximum; None with fewer than two sentences."""
    lengths = [len(words(sentence)) for sentence in re.split(r"(?<=[.!?])\s+|\n+", text)]
    lengths = [length for length in lengths if length]
    if len(lengths) < 2:
        return None
    total = sum(lengths)
    return -sum(n / total * math.log(n / total) for n in lengths) / math.log(len(lengths))


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    entropy = [sentence_entropy(text) for text in frame[config.output_column]]
    scores = pd.DataFrame({"sentence_entropy": entropy, "trait": None, "trait_source": None}, frame.index, dtype=float)
    if config.trait_model:
        from utils.classifier import probabilities

        texts = [*frame[config.output_column], *frame[config.input_column]]
        found = probabilities(texts, config.trait_model, config.trait_label)
        scores["trait"], scores["trait_source"] = np.split(found, 2)
    return scores


def anchors(frame: pd.DataFrame, scores: pd.DataFrame, config: ScoreConfig) -> dict[str, float]:
    """The t-tests; nothing without a trait, or with fewer than two rows."""
    from scipy.stats import ttest_1samp, ttest_rel

    both = scores[["trait", "trait_source"]].dropna()
    if len(both) < 2:
        return {}
    paired, alone = ttest_rel(both["trait"], both["trait_source"]), ttest_1samp(both["trait"], 0.5)
    found = {"t": paired.statistic, "p": paired.pvalue, "t_half": alone.statistic, "p_half": alone.pvalue}
    return {name: float(value) for name, value in found.items()}
