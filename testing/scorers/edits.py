"""edits: what was changed, and should it have been?

Copies are counted among biased rows and changes among neutral ones, never pooled: a model that copies everything and
one that rewrites everything would meet in the middle. A row is biased if its `bias` label is Yes and neutral if it is
No; without that column all rows are biased. An empty rewriting is broken, and neither a good edit nor a bad one.
"""

import json

import pandas as pd

from testing.scorers import Measure
from utils import params
from utils.configs import ScoreConfig
from utils.helpers import UserError
from utils.metrics import is_copy, length_ratio, phrases_left

MEASURES = {
    "biased_words_left": Measure(
        "share of the annotated biased words still there, 0..1; biased rows only", "lower", "harm"
    ),
    "copied": Measure("1 if a biased row came back unchanged", "lower", "harm"),
    "changed": Measure("1 if a neutral row came back changed", "lower", "meaning"),
    "length_ratio": Measure("words of the rewriting per word of the source", None, "form"),
    "broken": Measure("1 if the rewriting is empty or has run away", "lower", "form"),
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Run-away: more than params.RUNAWAY_RATIO times as long as the source, and at least ten words longer."""
    labels = set(frame.get("bias", pd.Series(dtype=str))) - {"Yes", "No", ""}
    if labels:
        raise UserError(f"column bias holds {', '.join(sorted(labels)[:3])}: write Yes or No, or leave the column out")
    rows = []
    for _, row in frame.iterrows():
        source, text = row[config.input_column], row[config.output_column]
        label, empty = row.get("bias", "Yes"), not text.strip()
        biased, neutral = (label == name and not empty for name in ("Yes", "No"))
        phrases = _phrases(row)
        ratio = length_ratio(source, text)
        ran_away = ratio > params.RUNAWAY_RATIO and len(text.split()) > len(source.split()) + 10
        rows.append(
            {
                "biased_words_left": phrases_left(phrases, text) if biased else None,
                "copied": float(is_copy(source, text)) if biased else None,
                "changed": float(not is_copy(source, text)) if neutral else None,
                "length_ratio": ratio,
                "broken": float(empty or ran_away),
            }
        )
    return pd.DataFrame(rows, index=frame.index, dtype=float)


def _phrases(row: pd.Series) -> list[str]:
    cell = row.get(params.BIASED_WORDS_COLUMN) or "[]"
    try:
        phrases = json.loads(cell)
    except ValueError:
        phrases = None
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise UserError(f"row {row['id']}: {params.BIASED_WORDS_COLUMN} {cell!r} is no JSON list of words")
    return phrases
