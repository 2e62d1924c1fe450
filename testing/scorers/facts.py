"""facts: which share of the source's numbers, names, dates, negations and identity terms does the rewriting keep?"""

import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig
from utils.metrics import facts_kept

MEASURES = {
    "facts": Measure(
        "share of the source's facts kept, 0..1; missing where the source holds none", "higher", "meaning"
    )
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """The human reference loses some too (a gendered job title, say): compare with the reference row of the table."""
    pairs = zip(frame[config.input_column], frame[config.output_column], strict=True)
    return pd.DataFrame({"facts": [facts_kept(s, t) for s, t in pairs]}, index=frame.index, dtype=float)
