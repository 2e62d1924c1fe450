"""Scorers: one module each.

MEASURES                          column -> Measure
score(frame, config)              the columns, of some rows or all; and where it knows, `missing`: why a row has none
ask(frame, config, answers)       in its place, or where a server is asked: all rows; what was answered is kept in
                                  that file; a column `missing` says why a row has no number
anchors(frame, scores, config)    optional: what goes beside the means, by name
verdict(row)                      optional: in a word, what they mean for a text
fingerprint(config)               optional: what else must be the same for an interrupted run to go on
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

from utils.configs import names
from utils.helpers import UserError


class Measure(NamedTuple):
    """What a column of scores says. `better` is the preferred direction, None where there is none."""

    meaning: str
    better: Literal["higher", "lower"] | None
    about: Literal["harm", "meaning", "form"]  # a verdict needs less harm and kept meaning


def load_scorers(given: str, flag: str = "--scorers") -> dict[str, ModuleType]:
    """Scorer modules by name, from names joined by commas. Raises UserError for one that does not exist."""
    wanted = names(given)
    if not wanted or set(wanted) - set(known_scorers()):
        raise UserError(f"{flag} {given}: there are {', '.join(known_scorers())}")
    return {name: importlib.import_module(f"testing.scorers.{name}") for name in wanted}


def known_scorers() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def all_measures() -> dict[str, Measure]:
    """The measures of every scorer, by column."""
    modules = load_scorers(",".join(known_scorers())).values()
    return {name: measure for module in modules for name, measure in module.MEASURES.items()}
