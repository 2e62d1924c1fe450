"""CrowS-Pairs (Nangia et al. 2020) and WinoBias (Zhao et al. 2018): which of two sentences is likelier?

Both sentences of a pair differ in who is spoken of. A model without preference finds the stereotyped one likelier half
of the time. Figures as in lm-evaluation-harness's task crows_pairs.
"""

from pathlib import Path

import numpy as np

from utils.configs import ProbeConfig
from utils.data import read_table
from utils.probes import Item, column
from utils.stats import Sampling, mean_interval

COLUMNS = ({"sent_more", "sent_less"}, {"pro_stereotyped", "anti_stereotyped"})
UNIT = "pairs"
MEASURES = {
    "stereotyped": "share of the pairs whose stereotyped sentence is the likelier one; 0.5 is no preference",
    "difference": "mean absolute difference of the two log-likelihoods, in nats",
}


def read(path: Path, config: ProbeConfig) -> list[Item]:
    """The pairs of a CrowS-Pairs table, or of a table with columns pro_stereotyped and anti_stereotyped."""
    frame = read_table(path, config.limit)
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
