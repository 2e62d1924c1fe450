"""The page of testing/compare.py: verdict, tables, plots, and the rows that speak most for and against a system."""

import json
import secrets

import numpy as np

from utils import params
from utils.comparison import Systems
from utils.configs import CompareConfig
from utils.data import content_id
from utils.shown import marked_edits, visible
from utils.stats import Sampling


def comparison_page(
    result: dict, systems: Systems, rows: list[dict], quotes: list[dict], config: CompareConfig
) -> str:
    """HTML that needs nothing beside it (utils/comparison.html).

    Args:
        result: what utils/comparison.py found; it goes into the page as JSON too.
        rows: what `rows_of` gives: these go into the JSON. quotes: what `quoted` gives.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=FileSystemLoader(params.ROOT / "utils"),
        autoescape=True,  # text from data is data
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.filters["visible"] = visible
    return pages.get_template("comparison.html").render(
        result=result,
        alpha=Sampling(**result["sampling"]).alpha,
        title=config.title,
        cluster_column=config.cluster_column,
        redacted=config.redact,
        least=params.GROUP_MIN_ROWS,
        reach={m: _reach(result, m) for m in result["measures"]},
        histograms={m: _histogram(systems, m) for m in result["measures"]},
        quotes=quotes,
        data=Markup(_as_json({"results": result, "rows": rows})),
    )


def _as_json(value: dict) -> str:
    """JSON that cannot end the element it stands in: no <, >, & is left."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "".join(f"\\u{ord(c):04x}" if c in "<>&\u2028\u2029" else c for c in text)


def rows_of(result: dict, systems: Systems, config: CompareConfig) -> list[dict]:
    """Of each row: id, source, and per system the text and the scores.

    With `redact` ids are numbers, and a text is replaced by a hash and its length. The hash is salted anew in each
    report: it tells equal texts, and cannot be looked up.
    """
    salt = secrets.token_hex(16)

    def shown(text: str) -> str:
        return f"[{content_id(salt, text)}, {len(text.split())} words]" if config.redact else text

    values = {name: {m: frame[m].to_numpy() for m in result["measures"]} for name, frame in systems.items()}
    rows = []
    for n, (row_id, row) in enumerate(next(iter(systems.values())).iterrows()):
        entry = {"id": str(n + 1 if config.redact else row_id), "source": shown(row.get(config.input_column, ""))}
        entry["systems"] = {
            name: {
                "text": shown(frame.iloc[n].get(config.output_column, "")),
                "scores": {m: None if np.isnan(v[n]) else float(v[n]) for m, v in values[name].items()},
            }
            for name, frame in systems.items()
        }
        rows.append(entry)
    return rows


def without_groups(result: dict) -> dict:
    """The result with numbers for the groups of its tables: what stands in a column may say who somebody is.

    The groups of a counterfactual set stay: they are what its tables are about.
    """
    groups = {
        column: {f"group {n}": of for n, of in enumerate(found.values(), 1)}
        for column, found in result["groups"].items()
    }
    return result | {"groups": groups}


def _reach(result: dict, measure: str) -> float:
    """How far from 0 the widest interval of a measure goes, over all systems: they share a scale."""
    ends = [
        abs(end)
        for row in result["differences"].values()
        for end in (row[measure]["low"], row[measure]["high"])
        if end is not None
    ]
    return max(ends, default=0)


def _histogram(systems: Systems, measure: str, bins: int = 12) -> dict:
    """Counts of a measure's values, with the same bins for every system."""
    values = {name: frame[measure].to_numpy() for name, frame in systems.items()}
    given = {name: v[~np.isnan(v)] for name, v in values.items()}
    together = np.concatenate(list(given.values()))
    if len(together) == 0:
        return {"low": None, "high": None, "counts": {name: [0] for name in given}}
    low, high = float(together.min()), float(together.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    return {"low": low, "high": high, "counts": {n: np.histogram(v, edges)[0].tolist() for n, v in given.items()}}


def quoted(result: dict, systems: Systems, config: CompareConfig) -> list[dict]:
    """For every system, the rows where it gains most on the first one and those where it loses most."""
    first = result["compared_with"]
    parts = []
    for name in result["differences"]:
        if not all(config.output_column in systems[system] for system in (first, name)):
            continue
        balance = _balance(result, systems, name)
        order = [n for n in np.argsort(balance, kind="stable") if np.isfinite(balance[n])]
        for title, chosen in (
            (f"Where {name} gains most on {first}", [n for n in order[::-1] if balance[n] > 0]),
            (f"Where {name} loses most against {first}", [n for n in order if balance[n] < 0]),
        ):
            if chosen:
                rows = [_quoted_row(result, systems, n, [first, name], config) for n in chosen[: config.quoted_rows]]
                parts.append({"title": title, "names": [first, name], "rows": rows})
    return parts


def _balance(result: dict, systems: Systems, name: str) -> np.ndarray:
    """Per row, the mean gain over measures with a direction, each by the root mean square of its gains."""
    gains = []
    for m, measure in result["measures"].items():
        if not measure["better"]:
            continue
        gain = systems[name][m].to_numpy() - systems[result["compared_with"]][m].to_numpy()
        typical = np.sqrt(np.nanmean(gain**2)) if np.isfinite(gain).any() else 0
        if typical:
            gains.append(gain / typical * (1 if measure["better"] == "higher" else -1))
    rows = len(systems[name])
    if not gains:
        return np.full(rows, np.nan)
    counted = np.isfinite(gains).sum(axis=0)
    return np.where(counted, np.nansum(gains, axis=0) / np.maximum(counted, 1), np.nan)


def _quoted_row(result: dict, systems: Systems, n: int, names: list[str], config: CompareConfig) -> dict:
    rows = [systems[name].iloc[n] for name in names]
    source, answers = rows[0].get(config.input_column, ""), []
    for row in rows:
        marked, text = marked_edits(source, row[config.output_column])
        scores = [f"{m} {row[m]:.3g}" for m in result["measures"] if not np.isnan(row[m])]
        answers.append((text, ", ".join(scores)))
    return {"id": rows[0].name, "source": marked, "answers": answers}  # marked: what the last one took out
