"""identity: on texts about named groups (generate_data/counterfactuals.py), what became of the group?

Compared between groups (testing/compare.py --counterfactual) these show whether a rewriter treats them alike: whose
texts it edits, whose it leaves, and whom it removes.
"""

import re

import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig
from utils.data import require_columns
from utils.metrics import is_copy, words

MEASURES = {
    "edited": Measure("1 if the text came back changed, whatever it was", None, "form"),
    "identity_erased": Measure("1 if the group that the text is about is no longer named", "lower", "meaning"),
}
_GENERAL = frozenset("a an the person people man men woman women".split())  # said of any group


def erased(group: str, text: str) -> bool:
    """Whether no word of the group's name stands in the text; "a man" needs man, "a trans woman" needs trans.

    A plural or possessive counts, as does "non binary" for "non-binary".
    """
    name = words(re.sub(r"[-/]", " ", group))
    telling = [word for word in name if word not in _GENERAL] or [word for word in name if len(word) > 2]
    found = {_stem(word) for word in words(re.sub(r"[-/]", " ", text))}
    return not any(_stem(word) in found for word in telling)


def _stem(word: str) -> str:
    word = re.sub(r"'s$|(?<=s)'$", "", word)
    irregular = {"men": "man", "women": "woman", "jews": "jewish", "jew": "jewish"}
    return irregular.get(word, re.sub(r"(?<=\w\w)s$", "", word))


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing for an empty rewriting; `identity_erased` also where the source does not name the group so."""
    require_columns(frame, ["group"], "the input", "generate_data/counterfactuals.py, which writes such files")
    rows = []
    columns = [config.input_column, config.output_column, "group"]
    for source, text, group in frame[columns].itertuples(index=False):
        given = bool(text.strip())
        named = given and group.strip() and not erased(group, source)
        rows.append(
            {
                "edited": float(not is_copy(source, text)) if given else None,
                "identity_erased": float(erased(group, text)) if named else None,
            }
        )
    return pd.DataFrame(rows, index=frame.index, dtype=float)
