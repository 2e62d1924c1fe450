"""Readers and writers: any known format becomes one row shape, and text is read as text.

`NA`, `nan`, empty strings, quotes, new lines in cells and a byte-order mark survive a round trip.
"""

import csv
import hashlib
import itertools
import json
import logging
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from utils import params
from utils.helpers import UserError
from utils.instruction_files import instructions_of, is_lists, rows_of_lists
from utils.prompt_styles import Instruction
from utils.records import whole_file

logger = logging.getLogger(__name__)

TRAINABLE_STATUS = ("ok", "neutral", "")


def read_table(path: str | Path, limit: int | None = None, longest: int = params.MAX_CELL_CHARS) -> pd.DataFrame:
    """Reads a CSV, TSV, JSON (list of objects, or utils/instruction_files.py) or JSONL file into a frame of strings.

    Args:
        longest: characters of a cell; what a model wrote may be longer than what a person types.

    Raises:
        UserError: the file is missing, not UTF-8, empty, malformed, or has a cell too long to be a text.
    """
    return pd.DataFrame(list(read_rows(path, limit, longest)), dtype=str).fillna("")


def read_rows(
    path: str | Path, limit: int | None = None, longest: int = params.MAX_CELL_CHARS
) -> Iterator[dict[str, str]]:
    """The rows of a file one by one, so that a large one need not fit into memory (a .json file has to).

    Raises:
        UserError: as `read_table`, once the row with the trouble is reached.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file{_who_makes(path)}")
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown format {path.suffix!r}: give a .csv, .tsv, .json or .jsonl file")
    number = 0
    try:
        for number, row in enumerate(itertools.islice(readers[path.suffix.lower()](path), limit), 1):
            _refuse_broken_cells(row, number, path, longest)
            yield row
    except UnicodeDecodeError as error:
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, e.g. iconv -f {encoding} -t utf-8"
        ) from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not number:
        raise UserError(f"{path} has no rows")


def _who_makes(path: Path) -> str:
    """Which script writes the missing file, where that is one of ours."""
    makers = {"annotated": "generate_data/annotate.py", "results": "testing/infer.py", "adapter": "training/train.py"}
    if path.name.endswith(".scores.csv"):
        return ": python testing/score.py --input RESULTS.csv makes it"
    return next((f": python {maker} makes it" for folder, maker in makers.items() if folder in path.parts), "")


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """By the csv module, which says where a row is too short or too long; pandas fills up or shifts in silence."""
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = next(rows, [])
        if len(header) == 1 and (found := next((mark for mark in ";\t" if mark in header[0]), None)):
            raise ValueError(f"its columns are separated by {found!r}: save it with commas, or with tabs as .tsv")
        if len(set(header)) < len(header):
            raise ValueError("two columns have the same name")
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) != len(header):
                raise ValueError(
                    f"row {number} has {len(row)} cells, the header {len(header)}: quote texts that hold commas"
                )
            yield dict(zip(header, row, strict=True))


def _json_rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        if path.suffix.lower() == ".jsonl":
            rows = (_parse_line(number, line) for number, line in enumerate(file, 1) if line.strip())
        else:
            rows = json.loads(file.read() or "[]")
            rows = rows_of_lists(rows) if is_lists(rows) else rows
        if not isinstance(rows, Iterator | list):
            raise ValueError("expected a list of objects with named fields")
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError("expected a list of objects with named fields")
            yield {name: as_text(value) for name, value in row.items()}


def as_text(value: object) -> str:
    """A value of a JSON or Hub row as a cell."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text.encode()  # half a character, as JSON can hold, could not be written again
    return text


def _parse_line(number: int, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def _refuse_broken_cells(row: dict[str, str], number: int, path: Path, longest: int) -> None:
    for column, cell in row.items():
        if len(cell) > longest:
            raise UserError(
                f"{path}, row {number}, column {column!r}: {len(cell):,} characters, at most {longest:,}: look for an "
                "unclosed quote, or split the text"
            )


def require_columns(present: Iterable[str], columns: list[str], path: str | Path, flag: str) -> None:
    """Raises UserError naming the missing columns and the ones that are there: those of a frame, or names."""
    present = list(present)
    missing = [c for c in columns if c not in present]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)} (it has {', '.join(present)}): see {flag}")


def values_of(frame: pd.DataFrame, measure: str) -> np.ndarray:
    """One number per row, NaN where it is missing. Raises UserError for a cell that is no number."""
    numbers = pd.to_numeric(frame[measure].replace("", None), errors="coerce")
    said = frame[measure].notna() & (frame[measure] != "")
    if (wrong := said & ~np.isfinite(numbers.astype(float))).any():
        raise UserError(f"column {measure} holds {frame[measure][wrong].iloc[0]!r}, which is no number")
    return numbers.to_numpy(dtype=float)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes a CSV whole or not at all."""
    with whole_file(path) as partial:
        frame.to_csv(partial, index=False, encoding="utf-8", quoting=csv.QUOTE_ALL, lineterminator="\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> Path:
    """Writes a row a line, in a folder that the caller makes whole (records.whole_folder) or works in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rows(rows: Iterable[list[str]], columns: list[str], path: Path) -> None:
    """The same from rows that come one by one, to a path that the caller makes whole (records.whole_file)."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def content_id(*texts: str) -> str:
    """A stable id: the same content has the same id in every file and on every machine."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:12]


def with_ids(frame: pd.DataFrame, text_column: str) -> pd.DataFrame:
    """Adds an `id` column where there is none, and makes ids unique where texts or ids repeat."""
    frame = frame.copy()
    if "id" not in frame.columns:
        frame.insert(0, "id", [content_id(text) for text in frame[text_column]])
    frame["id"] = list(unique(frame["id"]))
    return frame


def unique(ids: Iterable[str]) -> Iterator[str]:
    """Each id, with -1, -2 ... after it where it came before."""
    counts: dict[str, int] = {}  # id -> how often it was given
    for row_id in ids:
        new, n = row_id, counts.get(row_id, 0)
        while new in counts:
            new, n = f"{row_id}-{n}", n + 1
        counts[row_id] = max(n, 1)
        counts.setdefault(new, 1)
        yield new


def same_text(text: str) -> str:
    """Equal for texts that differ in case and white space only."""
    return " ".join(text.casefold().split())


def seeded_share(groups: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the different groups, at least one; the same for the same seed, in whatever order they come."""
    different = sorted(set(groups))
    random.Random(seed).shuffle(different)
    return set(different[: max(1, round(share * len(different)))])


def row_keys(frame: pd.DataFrame, text_column: str) -> list[str]:
    """What a finished row is remembered by: its id and its text, so that an edited text is not taken for done."""
    return [content_id(row_id, text) for row_id, text in zip(frame["id"], frame[text_column], strict=True)]


def make_room(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Renames input columns that a stage is about to write: `status` becomes `input_status`. Nothing is lost."""
    names = list(frame.columns)
    return frame.rename(columns=dict(zip(names, room_for(names, columns), strict=True)))


def room_for(names: list[str], columns: list[str]) -> list[str]:
    """What input columns are called beside those that a stage writes; no two names are the same."""
    taken = {*columns, *(name for name in names if name not in columns)}
    new_names = []
    for name in names:
        new = name
        while name in columns and new in taken:
            new = f"input_{new}"
        taken.add(new)
        new_names.append(new)
    return new_names


def read_pairs(path: str | Path, source: str, target: str, limit: int | None = None) -> list[dict[str, str]]:
    """Training rows with `id`, `number` (in the file, from 1), `prompt` (the user's side), `completion`, `templated`.

    Formats, told apart by their columns: pairs (`source`, `target`), Alpaca (instruction, input, output), and
    prompt-completion. Only a pairs row is put into the rewriting template; `templated` says so.
    """
    frame = read_table(path, limit)
    total, columns = len(frame), set(frame.columns)
    if {source, target} <= columns:
        if "status" in columns:
            frame = frame[frame["status"].isin(TRAINABLE_STATUS)]
        sides = zip(frame[source], frame[target], strict=True)
        templated = True
    elif {"instruction", "output"} <= columns:
        sides = zip(instructions_of(frame), frame["output"], strict=True)
        templated = False
    elif {"prompt", "completion"} <= columns:
        sides = zip(frame["prompt"], frame["completion"], strict=True)
        templated = False
    else:
        raise UserError(
            f"{path} has columns {', '.join(frame.columns)}: expected {source} and {target} (see --input_column, "
            f"and --output_column or --reference_column), or instruction and output, or prompt and completion"
        )
    rows = [
        {"id": content_id(*pair), "number": n + 1, "prompt": pair[0], "completion": pair[1], "templated": templated}
        for n, pair in zip(frame.index, sides, strict=True)
    ]
    usable = [row for row in rows if row["prompt"].strip() and row["completion"].strip()]
    if len(usable) < total:
        logger.info("%s: %d of %d rows are used, the others have no usable pair", path, len(usable), total)
    return usable


def read_prompts(path: str | Path, label: str = "") -> list[Instruction]:
    """What a model is asked in an evaluation: instructions, with inputs where there are any, or prompts.

    Args:
        label: of a file with a column `label`, only the rows that have this one.
    """
    frame = read_table(path)
    if label and "label" in frame:
        frame = frame[frame["label"] == label]
    if "instruction" in frame:
        return instructions_of(frame)
    require_columns(frame, ["prompt"], path, "what can be asked: instruction or prompt")
    return [Instruction(text) for text in frame["prompt"]]


def read_rewritings(
    path: str | Path, source: str = params.INPUT_COLUMN, target: str = params.REFERENCE_COLUMN
) -> list[tuple[str, str]]:
    """(text, rewriting) of every usable row of a pairs file."""
    pairs = read_pairs(path, source, target)
    return [(pair["prompt"], pair["completion"]) for pair in pairs]
