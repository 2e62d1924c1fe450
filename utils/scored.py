"""Scored files: read by name, brought to the same rows, and asked whether the same judge scored them."""

from pathlib import Path

from utils import params
from utils.comparison import Systems
from utils.configs import CompareConfig
from utils.data import read_table, require_columns
from utils.helpers import UserError
from utils.records import read_json, record_path


def file_of(item: str) -> tuple[str, Path]:
    """Name and path of FILE or NAME=FILE."""
    name, equals, path = item.partition("=")
    if not equals or Path(item).is_file():
        return Path(item).name.removesuffix(".scores.csv"), Path(item)
    return name, Path(path)


def read_named(items: list[str], flag: str) -> Systems:
    """Scored files by name, rows by id."""
    systems: Systems = {}
    for name, path in map(file_of, items):
        if name in systems:
            raise UserError(f"{flag}: two files are called {name}: write NAME=FILE")
        frame = read_table(path, longest=params.MAX_ANSWER_CHARS)
        require_columns(frame, ["id"], path, "testing/score.py")
        if (twice := frame["id"][frame["id"].duplicated()]).any():
            raise UserError(f"{path}: the id {twice.iloc[0]} stands there twice, so rows cannot be matched")
        systems[name] = frame.set_index("id")
    return systems


def on_same_rows(systems: Systems, config: CompareConfig) -> Systems:
    """The rows that all systems have, in one order."""
    if len(systems) < 2:
        raise UserError("--inputs: give two or more .scores.csv files (testing/score.py makes them)")
    shared = next(iter(systems.values())).index
    for frame in systems.values():
        shared = shared[shared.isin(frame.index)]
    shared = shared[: config.limit]
    if shared.empty:
        raise UserError("--inputs: the files have no row in common")
    systems = {name: frame.loc[shared] for name, frame in systems.items()}
    texts = [frame[config.input_column] for frame in systems.values() if config.input_column in frame]
    if any(not other.equals(texts[0]) for other in texts):
        raise UserError("--inputs: the same id stands for different texts: these files are not about the same rows")
    return systems


def judged_differently(items: list[str]) -> list[str]:
    """Warnings for settings of score.py that differ between the files, by the records beside them."""
    scored_with: dict[str, set] = {}
    for _, path in map(file_of, items):
        record = record_path(path)
        config = read_json(record)["config"] if record.is_file() else {}
        for key in params.JUDGES:
            if key in config:
                scored_with.setdefault(key, set()).add(str(config[key]))
    return [f"the files were scored with different --{key}" for key, values in scored_with.items() if len(values) > 1]
