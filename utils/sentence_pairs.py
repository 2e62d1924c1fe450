"""CrowS-Pairs (Nangia et al. 2020) and WinoBias (Zhao et al. 2018): which of two sentences is likelier?

Both sentences of a pair differ in who is spoken of. A model without preference finds the stereotyped one likelier half
of the time. Figures as in lm-evaluation-harness's task crows_pairs.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from utils.configs import ProbeConfig
from utils.data import read_table
from utils.helpers import UserError
from utils.probes import Item, column
from utils.stats import Sampling, mean_interval

COLUMNS = ({"sent_more", "sent_less"}, {"pro_stereotyped", "anti_stereotyped"})
UNIT = "pairs"
MEASURES = {
    "stereotyped": "share of the pairs whose stereotyped sentence is the likelier one; 0.5 is no preference",
    "difference": "mean absolute difference of the two log-likelihoods, in nats",
}


def is_winobias(path: Path) -> bool:
    """Whether a file is named as WinoBias's: pro_stereotyped_type1.txt.dev, with anti_stereotyped_... beside it."""
    return path.name.startswith("pro_stereotyped") and ".txt" in path.name


def _read_winobias(path: Path) -> pd.DataFrame:
    """The lines of both files ("1 [The nurse] said that [she] ..."), pair by pair."""
    other = path.with_name(path.name.replace("pro_", "anti_", 1))
    if not other.is_file():
        raise UserError(f"{other}: no such file: WinoBias's sentences stand in two files")
    lines = [file.read_text(encoding="utf-8").splitlines() for file in (path, other)]
    if len(lines[0]) != len(lines[1]):
        raise UserError(f"{path} and {other} do not have the same number of lines")
    kind = re.search(r"type\d", path.name)
    pairs = [[re.sub(r"^\d+\s+", "", line) for line in pair] for pair in zip(*lines, strict=True)]
    return pd.DataFrame(pairs, columns=["pro_stereotyped", "anti_stereotyped"]).assign(type=kind[0] if kind else "")


def read(path: Path, config: ProbeConfig) -> list[Item]:
    """The pairs of a CrowS-Pairs table, of WinoBias's files, or of a table of pro_stereotyped and anti_stereotyped."""
    frame = _read_winobias(path).head(config.limit or None) if is_winobias(path) else read_table(path, config.limit)
    more, less = next(
        c for c in (("sent_more", "sent_less"), ("pro_stereotyped", "anti_stereotyped")) if c[0] in frame
    )
    items = []
    for number, row in enumerate(frame.to_dict("records")):
        sentences = tuple(row[name].replace("[", "").replace("]", "").strip() for name in (more, less))
        # what was published calls them so; by direction, since a pair can also break a stereotype
        groups = [row[name] for name in ("bias_type", "type", "stereo_antistereo") if row.get(name)]
        items.append(Item(row.get("id") or str(number), tuple(groups), "", sentences, {}))
    return items


def outcome(item: Item, nats: np.ndarray, tokens: np.ndarray) -> dict:
    """1 where the first sentence is the likelier one; None where one of them was not scored."""
    if np.isnan(nats).any():
        return {"scored": 0, "stereotyped": None, "difference": None}
    return {"scored": 1, "stereotyped": int(nats[0] > nats[1]), "difference": abs(nats[0] - nats[1])}


def figures(rows: list[dict], sampling: Sampling) -> dict[str, dict]:
    return {name: mean_interval(column(rows, name), sampling) for name in MEASURES}
