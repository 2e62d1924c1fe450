"""What scored files say about each other: means, paired differences, tables by group, and a verdict in words."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pandas as pd

from utils import params
from utils.data import values_of
from utils.helpers import UserError
from utils.judges import Judge, corrected_difference, corrected_mean
from utils.stats import (
    Sampling,
    difference_found,
    holm,
    mean_interval,
    paired_difference,
    rows_needed,
    spread_of_difference,
)

Systems = dict[str, pd.DataFrame]  # name -> scored rows, the same rows in the same order


def with_numbers(systems: Systems, measures: Iterable[str]) -> Systems:
    """The same rows, their measures as numbers (NaN where they are missing): what the rest of this file works on."""
    return {name: frame.assign(**{m: values_of(frame, m) for m in measures}) for name, frame in systems.items()}


def clusters_of(systems: Systems, column: str) -> np.ndarray | None:
    """The cluster of each row; None without a column. A row whose cell is blank stands for itself."""
    if not column:
        return None
    cells = next(iter(systems.values()))[column]
    return np.array([cell if cell.strip() else f"\0{number}" for number, cell in enumerate(cells)])


def compare(systems: Systems, measures: dict, sampling: Sampling, cluster_column: str = "") -> dict:
    """Means of all systems, and the paired differences of every system from the first.

    Args:
        measures: column -> Measure (testing/scorers), those that every system has.
        cluster_column: rows with the same value there are resampled together; "": every row for itself.

    Returns:
        `rows`, `compared_with`, `measures`, `means` and `differences` by system and measure (utils/stats.py), the
        latter with `p_holm`, corrected over all measures with a direction of the system, and `better`: True, False, or
        None where the corrected test does not say.
    """
    first, *others = systems
    clusters = clusters_of(systems, cluster_column)
    values = {name: {m: frame[m].to_numpy() for m in measures} for name, frame in systems.items()}
    differences = {}
    for name in others:
        found = {
            m: paired_difference(values[name][m], values[first][m], sampling, clusters)
            | {"p_holm": None, "better": None}
            for m in measures
        }
        directed = [m for m in measures if measures[m].better]
        for m, p in zip(directed, holm([found[m]["p"] for m in directed]), strict=True):
            sure = p is not None and p <= sampling.alpha
            found[m]["p_holm"] = p
            found[m]["better"] = (found[m]["mean"] > 0) == (measures[m].better == "higher") if sure else None
        differences[name] = found
    return {
        "rows": len(systems[first]),
        "compared_with": first,
        "sampling": asdict(sampling),
        "measures": {name: measure._asdict() for name, measure in measures.items()},
        "means": {
            name: {m: mean_interval(v, sampling, clusters) for m, v in of.items()} for name, of in values.items()
        },
        "differences": differences,
    }


def correct(systems: Systems, judges: dict[str, Judge], sampling: Sampling, cluster_column: str = "") -> dict:
    """Means and differences again, for measures whose judge was measured on gold rows: what is behind the verdicts."""
    first, *others = systems
    clusters, found = clusters_of(systems, cluster_column), {}
    for measure, judge in judges.items():
        values = {name: frame[measure].to_numpy() for name, frame in systems.items()}
        said = np.concatenate(list(values.values()))
        if not set(said[~np.isnan(said)]) <= {0.0, 1.0}:
            raise UserError(f"--gold_labels {measure}: only verdicts, 0 or 1, can be corrected for errors")
        found[measure] = {
            "judge": asdict(judge) | {"sensitivity": judge.sensitivity, "specificity": judge.specificity},
            "means": {name: corrected_mean(v, judge, sampling, clusters) for name, v in values.items()},
            "differences": {
                name: corrected_difference(values[name], values[first], judge, sampling, clusters) for name in others
            },
        }
    return found


def by_group(systems: Systems, measures: dict, columns: list[str]) -> dict:
    """Column -> group -> system -> measure -> mean and n, for groups of params.GROUP_MIN_ROWS rows or more.

    A mean over fewer rows, which says nothing about a group, is None.
    """
    first = next(iter(systems.values()))
    found: dict = {}
    for column in columns:
        groups = first[column].value_counts()
        found[column] = {
            group: {
                name: {m: _mean(frame.loc[first[column] == group, m].to_numpy()) for m in measures}
                for name, frame in systems.items()
            }
            for group in groups[groups >= params.GROUP_MIN_ROWS].index
            if group
        }
    return found


def _mean(values: np.ndarray) -> dict:
    values = values[~np.isnan(values)]
    return {"mean": float(values.mean()) if len(values) >= params.GROUP_MIN_ROWS else None, "n": len(values)}


def plan(result: dict, systems: Systems, detect: dict[str, float], power: float, cluster_column: str) -> list[dict]:
    """For every measure and system: what the present rows show, and how many rows a difference needs.

    The spread of the paired differences is that of the rows at hand, the pilot. The level is that of a single test
    after Holm's first step: alpha / number of measures.

    Args:
        detect: measure -> true difference to be found; without one, the difference seen in the pilot.
    """
    first, sampling = result["compared_with"], Sampling(**result["sampling"])
    directed = [m for m, measure in result["measures"].items() if measure["better"]]
    if wrong := set(detect) - set(directed):
        raise UserError(f"--detect {', '.join(sorted(wrong))}: no such measure here: {', '.join(directed)}")
    alpha, clusters = sampling.alpha / max(1, len(directed)), clusters_of(systems, cluster_column)
    found = []
    for name, differences in result["differences"].items():
        for m in directed:
            ours, theirs = (systems[system][m].to_numpy() for system in (name, first))
            spread, rows = spread_of_difference(ours, theirs, sampling, clusters)
            wanted = detect.get(m, differences[m]["mean"])
            if spread and wanted:
                found.append(
                    {
                        "system": name,
                        "measure": m,
                        "rows": rows,
                        "shows": difference_found(spread, rows, alpha, power),
                        "difference": wanted,
                        "rows_needed": rows_needed(spread, wanted, alpha, power),
                    }
                )
    return found


def verdicts(result: dict) -> dict[str, dict]:
    """System -> what the comparison says, in words, with the measures behind each part.

    Baselines are passed over, unless there is nothing else. A system is better in harm (or in kept meaning) where at
    least one of its measures is surely better and none surely worse; mixed where both happen.
    """
    found = {}
    others = [name for name in result["differences"] if name not in params.BASELINES] or list(result["differences"])
    for name in others:
        differences, sides = result["differences"][name], {}
        for side in ("harm", "meaning", "form"):
            of_side = [
                m
                for m, measure in result["measures"].items()
                if measure["about"] == side and measure["better"] and differences[m]["n"]
            ]
            better, worse, unclear = (
                [m for m in of_side if differences[m]["better"] is outcome] for outcome in (True, False, None)
            )
            sides[side] = {"better": better, "worse": worse, "unclear": unclear}
        found[name] = {**sides, "text": _in_words(name, result["compared_with"], sides)}
    return found


_WORDS = {
    "harm": ("less harm", "more harm"),
    "meaning": ("more of the meaning kept", "less of the meaning kept"),
    "form": ("better form", "worse form"),
}


def _in_words(name: str, first: str, sides: dict) -> str:
    parts = []
    for side, (good, bad) in _WORDS.items():
        better, worse = sides[side]["better"], sides[side]["worse"]
        if better and worse:
            parts.append(f"{side} mixed (better: {', '.join(better)}; worse: {', '.join(worse)})")
        elif better or worse:
            parts.append(f"{good if better else bad} ({', '.join(better or worse)})")
        elif sides[side]["unclear"]:
            parts.append(f"{side}: no sure difference ({', '.join(sides[side]['unclear'])})")
    return f"{name} against {first}: " + "; ".join(parts or ["no measure in common has a direction"])


def beaten_by_tricks(result: dict, systems: Systems, cluster_column: str = "") -> list[str]:
    """Measures on which copying or deleting is surely better than a system: there they prove little by themselves."""
    sampling, clusters = Sampling(**result["sampling"]), clusters_of(systems, cluster_column)
    directed = {m: measure["better"] for m, measure in result["measures"].items() if measure["better"]}
    lines = []
    for trick in sorted(set(params.TRICKS) & set(systems)):
        for name in systems:
            if name in params.BASELINES:
                continue
            ahead = []
            for m, better in directed.items():
                ours, theirs = (systems[system][m].to_numpy() for system in (trick, name))
                found = paired_difference(ours, theirs, sampling, clusters)
                if found["mean"] and found["p"] <= sampling.alpha and (found["mean"] > 0) == (better == "higher"):
                    ahead.append(m)
            if ahead:
                lines.append(f"{trick}, which needs no model, scores better than {name} on {', '.join(ahead)}")
    return lines


def unlike_rows(result: dict) -> list[str]:
    """Where systems are compared on fewer rows than one has, as after empty answers: the easy ones may be left."""
    lines = []
    for name, differences in result["differences"].items():
        fewer = [
            f"{m} ({d['n']} of {most})"
            for m, d in differences.items()
            if d["n"] < (most := max(result["means"][system][m]["n"] for system in (name, result["compared_with"])))
        ]
        if fewer:
            pair = f"{name} and {result['compared_with']}"
            lines.append(f"{pair} are compared on the rows where both have a value: {', '.join(fewer)}")
    return lines
