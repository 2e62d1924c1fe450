"""joint: ParaDetox's joint metric (Logacheva et al. 2022): harmless, and the same meaning, and fluent, in one row.

J is the mean over rows of style accuracy x similarity x fluency, so that a row counts only as far as it is good in
all three; a mean of means would let a model that copies half of its rows and babbles in the others look well. The
parts, --joint_parts, are columns of scorers that stand before joint in --scorers: measures in 0..1. As in ParaDetox, a
share of harm counts as 0 or 1, by whether it is below one half.
"""

import pandas as pd

from testing.scorers import Measure, all_measures
from utils.configs import ScoreConfig, names
from utils.data import values_of
from utils.helpers import UserError

MEASURES = {"joint": Measure("style accuracy x similarity x fluency (--joint_parts), 0..1", "higher", "meaning")}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing where a part is missing, 0 for an empty rewriting. Of harm counts whether it is below one half."""
    parts = names(config.joint_parts)
    if missing := [name for name in parts if name not in frame]:
        raise UserError(
            f"--joint_parts {','.join(missing)}: no such column: name their scorers before joint in --scorers"
        )
    if not parts:
        raise UserError("--joint_parts: give the columns that are multiplied")
    known, product = all_measures(), pd.Series(1.0, index=frame.index)
    for name in parts:
        values = pd.Series(values_of(frame, name), index=frame.index)
        if name in known and known[name].about == "harm" and known[name].better == "lower":
            values = (values < 0.5).astype(float).where(values.notna())
        if (values.abs() > 1 + 1e-6).any():
            raise UserError(f"--joint_parts {name}: {values.abs().max():g} is no share: a part lies in 0..1")
        product *= values.clip(0, 1)
    product[frame[config.output_column].str.strip() == ""] = 0.0
    return pd.DataFrame({"joint": product})
