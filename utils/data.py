"""Readers and writers: any known format becomes one row shape, and text is read as text.

`NA`, `nan`, empty strings, quotes, new lines in cells and a byte-order mark survive a round trip.
"""

import csv
import hashlib
import itertools
import json
import logging
import sys
from pathlib import Path

import pandas as pd

from utils import params
from utils.helpers import UserError
from utils.records import whole_file

logger = logging.getLogger(__name__)

TRAINABLE_STATUS = ("ok", "neutral", "")


def read_table(path: str | Path, limit: int | None = None) -> pd.DataFrame:
    """Reads a CSV, TSV, JSON (list of objects) or JSONL file into a frame of strings.

    Raises:
        UserError: the file is missing, not UTF-8, empty, malformed, or has a cell too long to be a text.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file{_who_makes(path)}")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".json": _read_json, ".jsonl": _read_json}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown format {path.suffix!r}: give a .csv, .tsv, .json or .jsonl file")
    try:
        frame = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, e.g. iconv -f latin1 -t utf-8"
        ) from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if frame.empty:
        raise UserError(f"{path} has no rows")
    frame = frame.head(limit) if limit else frame
    _refuse_broken_cells(frame, path)
    return frame


def _who_makes(path: Path) -> str:
    """Which script writes the missing file, where that is one of ours."""
    makers = {"annotated": "generate_data/annotate.py", "results": "testing/infer.py", "adapter": "training/train.py"}
    if path.name.endswith(".scores.csv"):
        return ": python testing/score.py --input RESULTS.csv makes it"
    return next((f": python {maker} makes it" for folder, maker in makers.items() if folder in path.parts), "")


def _read_csv(path: Path) -> pd.DataFrame:
    """By the csv module, which says where a row is too short or too long; pandas fills up or shifts in silence."""
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = next(rows, [])
        body = [row for row in rows if row]
    if len(set(header)) < len(header):
        raise ValueError("two columns have the same name")
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise ValueError(
                f"row {number} has {len(row)} cells, the header {len(header)}: quote texts that hold commas"
            )
    return pd.DataFrame(body, columns=header, dtype=str)


def _read_json(path: Path) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".jsonl":
        rows = [_parse_line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        rows = json.loads(text or "[]")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects with named fields")

    def as_text(value: object) -> str:
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return pd.DataFrame([{k: as_text(v) for k, v in row.items()} for row in rows]).fillna("")


def _parse_line(number: int, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def _refuse_broken_cells(frame: pd.DataFrame, path: Path) -> None:
    for column in frame.columns:
        lengths = frame[column].str.len()
        if lengths.max() > params.MAX_CELL_CHARS:
            row = int(lengths.argmax())
            raise UserError(
                f"{path}, row {row + 1}, column {column!r}: {int(lengths.max()):,} characters, at most "
                f"{params.MAX_CELL_CHARS:,}: look for an unclosed quote, or split the text"
            )


def require_columns(frame: pd.DataFrame, columns: list[str], path: str | Path, flag: str) -> None:
    """Raises UserError naming the missing columns and the ones that are there."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)} (it has {', '.join(frame.columns)}): see {flag}")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes a CSV whole or not at all."""
    with whole_file(path) as partial:
        frame.to_csv(partial, index=False, encoding="utf-8", quoting=csv.QUOTE_ALL, lineterminator="\n")


def content_id(*texts: str) -> str:
    """A stable id: the same content has the same id in every file and on every machine."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:12]


def with_ids(frame: pd.DataFrame, text_column: str) -> pd.DataFrame:
    """Adds an `id` column where there is none, and makes ids unique where texts or ids repeat."""
    frame = frame.copy()
    if "id" not in frame.columns:
        frame.insert(0, "id", [content_id(text) for text in frame[text_column]])
    taken: set[str] = set()
    unique = []
    for row_id in frame["id"]:
        candidates = (row_id if n == 0 else f"{row_id}-{n}" for n in itertools.count())
        unique.append(next(c for c in candidates if c not in taken))
        taken.add(unique[-1])
    frame["id"] = unique
    return frame


def row_keys(frame: pd.DataFrame, text_column: str) -> list[str]:
    """What a finished row is remembered by: its id and its text, so that an edited text is not taken for done."""
    return [content_id(row_id, text) for row_id, text in zip(frame["id"], frame[text_column], strict=True)]


def make_room(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Renames input columns that a stage is about to write: `status` becomes `input_status`. Nothing is lost."""
    return frame.rename(columns={name: f"input_{name}" for name in columns if name in frame.columns})


def read_pairs(path: str | Path, source: str, target: str, limit: int | None = None) -> list[dict[str, str]]:
    """Training rows with `id`, `prompt` (the user's side), `completion` and `template`.

    Formats, told apart by their columns: pairs (`source`, `target`), Alpaca (instruction, input, output), and
    prompt-completion. Only a pairs row is put into the rewriting template; `template` says so.
    """
    frame = read_table(path, limit)
    total, columns = len(frame), set(frame.columns)
    if {source, target} <= columns:
        if "status" in columns:
            frame = frame[frame["status"].isin(TRAINABLE_STATUS)]
        sides = zip(frame[source], frame[target], strict=True)
        templated = True
    elif {"instruction", "output"} <= columns:
        inputs = frame["input"] if "input" in columns else [""] * len(frame)
        prompts = [f"{i}\n\n{x}" if x else i for i, x in zip(frame["instruction"], inputs, strict=True)]
        sides = zip(prompts, frame["output"], strict=True)
        templated = False
    elif {"prompt", "completion"} <= columns:
        sides = zip(frame["prompt"], frame["completion"], strict=True)
        templated = False
    else:
        hint = "; separate columns by commas" if len(columns) == 1 and ";" in frame.columns[0] else ""
        raise UserError(
            f"{path} has columns {', '.join(frame.columns)}: expected {source} and {target} (see --input_column, "
            f"and --output_column or --reference_column), or instruction and output, or prompt and completion{hint}"
        )
    rows = [
        {"id": content_id(prompt, completion), "prompt": prompt, "completion": completion, "templated": templated}
        for prompt, completion in sides
    ]
    usable = [row for row in rows if row["prompt"].strip() and row["completion"].strip()]
    if len(usable) < total:
        logger.info("%s: %d of %d rows are used, the others have no usable pair", path, len(usable), total)
    return usable


def read_rewritings(
    path: str | Path, source: str = params.INPUT_COLUMN, target: str = params.REFERENCE_COLUMN
) -> list[tuple[str, str]]:
    """(text, rewriting) of every usable row of a pairs file."""
    pairs = read_pairs(path, source, target)
    return [(pair["prompt"], pair["completion"]) for pair in pairs]
