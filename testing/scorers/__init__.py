"""Scorers: one module each, with COLUMNS (measure -> meaning), HIGHER_IS_BETTER, and score(frame, config)."""

import importlib
from pathlib import Path
from types import ModuleType

from utils.helpers import UserError


def load_scorers(names: str) -> dict[str, ModuleType]:
    """Scorer modules by name, from names joined by commas."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or set(wanted) - set(known):
        raise UserError(f"--scorers {names}: there are {', '.join(known)}")
    return {name: importlib.import_module(f"testing.scorers.{name}") for name in wanted}
