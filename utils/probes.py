"""What probes of bias have in common: items with answers to choose from, and which file holds which probe.

A probe is a module with `read(path, config)`, which gives its items; `outcome(item, nats, tokens)`, what an item comes
to, as columns of a row, `scored` (0 or 1) among them; and `figures(rows, sampling)`, what many rows come to.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from utils.data import read_rows
from utils.helpers import UserError


class Item(NamedTuple):
    """A text, "" for none, and what may follow it, each with the space before it.

    `groups` are the names that it counts under, beside all; `about`, what its probe must know.
    """

    id: str
    groups: tuple[str, ...]
    context: str
    options: tuple[str, ...]
    about: dict[str, Any]


def probe_of(path: Path) -> ModuleType:
    """The probe that a file holds, by its columns.

    Raises:
        UserError: none that is known here.
    """
    from utils import bbq, sentence_pairs, stereoset

    if path.suffix.lower() == ".json" and _holds_stereoset(path):
        return stereoset
    if path.is_file() and sentence_pairs.is_winobias(path):
        return sentence_pairs
    columns = set(next(read_rows(path, 1)))
    for module in (bbq, sentence_pairs):
        if any(needed <= columns for needed in module.COLUMNS):
            return module
    raise UserError(
        f"{path} is no probe: it has the columns {', '.join(columns)}; BBQ, StereoSet, CrowS-Pairs and WinoBias are "
        "read as they were published"
    )


def _holds_stereoset(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False  # whoever reads it as a table says what is wrong
    return isinstance(content, dict) and isinstance(content.get("data"), dict)


def by_group(items: list[Item], values: list[Any]) -> dict[str, list[Any]]:
    """Values of items by the groups that these count under, the whole first; a group that is the whole is left out."""
    found: dict[str, list[Any]] = {"all": values}
    for item, value in zip(items, values, strict=True):
        for name in item.groups:
            found.setdefault(name, []).append(value)
    parts = sorted(name for name, of in found.items() if len(of) < len(items))
    return {name: found[name] for name in ("all", *parts)}


def column(rows: list[dict], name: str) -> np.ndarray:
    """A number of each row; NaN where it has none."""
    return np.array([np.nan if row[name] is None else float(row[name]) for row in rows])
