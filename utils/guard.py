"""What a cost model says of rewritings: which of several to take, and which to look at."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd

from utils.cost_model import costs
from utils.metrics import facts_kept
from utils.rewriting import Rewriter


def best_of(rewrite: Rewriter, count: int, cost_model: str) -> Rewriter:
    """A rewriter that writes every text `count` times, by chance, and takes the best one: see `choose`."""

    def rewrite_and_choose(texts: dict[str, str]) -> Iterator[tuple[str, dict]]:
        copies = {
            name if n == 0 else f"{name} {n}": (name, text) for name, text in texts.items() for n in range(count)
        }
        written = defaultdict(list)
        for key, answer in rewrite({key: text for key, (_, text) in copies.items()}):
            name, text = copies[key]
            written[name].append(answer)
            if len(written[name]) == count:
                yield name, choose(text, written.pop(name), cost_model)

    return rewrite_and_choose


def choose(source: str, answers: list[dict], cost_model: str) -> dict:
    """Of complete answers those that keep the most facts of the source, and of these the least costly one."""
    complete = [a for a in answers if a["status"] == "ok" and a["text"].strip()]
    if not complete:
        return answers[0]
    different = list({a["text"]: a for a in complete}.values())
    kept = [share if (share := facts_kept(source, a["text"])) is not None else 1.0 for a in different]
    faithful = [a for a, share in zip(different, kept, strict=True) if share == max(kept)]
    if len(faithful) == 1:
        return faithful[0]
    return faithful[int(np.argmin(costs([""] * len(faithful), [a["text"] for a in faithful], cost_model)))]


def mark_costly(texts: list[str], cost_model: str, threshold: float) -> pd.DataFrame:
    """Columns `cost` and `flagged` (yes above the threshold, else no) for every text, judged by itself."""
    found = costs([""] * len(texts), texts, cost_model)
    flagged = np.where(np.isnan(found), "", np.where(found > threshold, "yes", "no"))
    return pd.DataFrame({"cost": found.round(4), "flagged": flagged})
