"""Are texts that differ only in the group they are about treated alike? Gaps between the groups of such a set."""

import numpy as np
import pandas as pd

from utils.stats import Sampling, holm, mean_interval

COLUMNS = ("base_id", "attribute", "group")  # those of generate_data/counterfactuals.py


def gaps(frame: pd.DataFrame, measures: list[str], sampling: Sampling) -> list[dict]:
    """For every attribute, kind of template (biased, neutral) and measure, how far the groups are apart.

    Each text is compared with the same text about the other groups: what counts is its value less the mean of its
    template over the groups. So a template that is hard for everyone says nothing.

    Args:
        frame: rows with `base_id` (the template), `attribute`, `group`, perhaps `kind`, and the measures as numbers.

    Returns:
        Per attribute, kind and measure: `gap`, the highest mean less the lowest, and which groups these are; `p`, how
        often groups shuffled within templates are as far apart, and `p_holm`, corrected over all of these; `groups`,
        name -> mean, and `low` and `high` of its distance from the others. Templates without a value for every group
        are left out, and so are a measure with fewer than two templates or groups.
    """
    found = []
    kinds = frame["kind"] if "kind" in frame else pd.Series("", index=frame.index)
    for (attribute, kind), some in frame.groupby([frame["attribute"], kinds], sort=False):
        for measure in measures:
            table = some.pivot_table(index="base_id", columns="group", values=measure, sort=False).dropna()
            if table.shape[0] < 2 or table.shape[1] < 2:
                continue
            values = table.to_numpy()
            apart = values - values.mean(axis=1, keepdims=True)
            means = values.mean(axis=0)
            found.append(
                {
                    "attribute": attribute,
                    "kind": kind,
                    "measure": measure,
                    "templates": len(table),
                    "gap": float(means.max() - means.min()),
                    "lowest": str(table.columns[means.argmin()]),
                    "highest": str(table.columns[means.argmax()]),
                    "p": _shuffled(values, sampling),
                    "groups": {
                        str(group): {"mean": float(mean), **_distance(apart[:, n], sampling)}
                        for n, (group, mean) in enumerate(zip(table.columns, means, strict=True))
                    },
                }
            )
    for gap, p in zip(found, holm([gap["p"] for gap in found]), strict=True):
        gap["p_holm"] = p
    return found


def _distance(values: np.ndarray, sampling: Sampling) -> dict:
    """Distance from the mean of all groups, with its interval over templates."""
    interval = mean_interval(values, sampling)
    return {"distance": interval["mean"], "low": interval["low"], "high": interval["high"]}


def _shuffled(values: np.ndarray, sampling: Sampling) -> float:
    """Share of shuffles of the groups within templates whose gap is at least the one seen ([templates, groups])."""

    def gap(of: np.ndarray) -> np.ndarray:
        means = of.mean(axis=-2)
        return means.max(axis=-1) - means.min(axis=-1)

    seen, rng = gap(values), np.random.default_rng(sampling.seed)
    count, batch, reached = 0, 500, 0
    while count < sampling.resamples:
        many = np.broadcast_to(values, (batch, *values.shape))
        reached += int((gap(rng.permuted(many, axis=2)) >= seen - 1e-12).sum())
        count += batch
    return (reached + 1) / (count + 1)
