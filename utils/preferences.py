"""Prompts with responses that people judged: any published format becomes one row shape.

A row holds one response or two. Of two, the first is the more harmful one, as people said; each may also be labelled
safe or unsafe. Formats are told apart by their columns:

    prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, safer_response_id   PKU-SafeRLHF
    prompt, safe_response, unsafe_response                              datasets/preference_pairs/
    chosen, rejected                                                    HH-RLHF transcripts: a preference, no labels
    prompt, response, is_safe                                           BeaverTails
    prompt (or context), response, label                                DiaSafety and other labelled answers
    prompt, response, harmfulness                                       a number from 0 to 4
    transcript, rating                                                  Anthropic's red-team attempts: 0 to 4
    text, label (or harmfulness)                                        sentences: their prompt is empty
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import params
from utils.configs import file_and_share, names
from utils.data import as_text, content_id, read_rows, same_text, seeded_share
from utils.helpers import UserError

logger = logging.getLogger(__name__)

_SPEAKER = "\n\nAssistant:"


@dataclass(frozen=True)
class Judged:
    """A prompt with one response, or with two of which the first is the more harmful one."""

    id: str
    number: int  # in its file, from 1
    source: str  # name of the file
    prompt: str  # "" where only a text is judged
    responses: tuple[str, ...]
    unsafe: tuple[bool | None, ...]  # None: nobody said
    harm: float | None = None  # 0 to 4, of a single response
    category: str = ""

    @property
    def is_pair(self) -> bool:
        return len(self.responses) == 2

    @property
    def group(self) -> str:
        """Rows with the same prompt (or, without one, the same text) stay on one side of a split."""
        return same_text(self.prompt or self.responses[0])


def read_judged(inputs: list[str], unsafe_labels: str, seed: int, limit: int | None = None) -> list[Judged]:
    """The rows of several files, without those that cannot be learned from, which are counted in the log.

    Left out are rows whose labels contradict each other (the response called safer is labelled unsafe, the other one
    safe), pairs of equal responses, empty responses, transcripts that part before the last answer, repetitions, and
    what was judged in two ways.

    Args:
        inputs: FILE, FILE:0.5 for a seeded half of its prompts, or the id of a Hub data set, also ID@PART (its part
            `train` by default).
        unsafe_labels: labels that mean unsafe, joined by commas.
        limit: rows of each file.

    Raises:
        UserError: a file cannot be read, is of no known format, or says something else than it may.
    """
    rows: list[Judged] = []
    said: Counter = Counter()
    unsafe = label_names(unsafe_labels)
    for given in inputs:
        name, share = file_and_share(given)
        found, left_out = [], Counter()
        for row in _parse(name, unsafe, limit, said):
            reason = row if isinstance(row, str) else fault(row)
            left_out[reason] += 1
            if reason is None:
                found.append(row)
        groups = seeded_share((row.group for row in found), share, seed)
        kept = [row for row in found if row.group in groups]
        reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if reason)
        logger.info(
            "%s: %d of %d rows%s", name, len(kept), left_out.total(), f" (left out: {reasons})" if reasons else ""
        )
        rows += kept
    for label, number in said.most_common(params.LABELS_NAMED):
        logger.info("label %r: %d rows, %s", label, number, "unsafe" if is_one_of(label, unsafe) else "safe")
    return _without_repetitions(rows)


def _without_repetitions(rows: list[Judged]) -> list[Judged]:
    """Each row once, and none of those that people judged in two ways. Raises UserError where nothing is left."""
    judged = defaultdict(set)
    for row in rows:
        judged[row.prompt, frozenset(row.responses)].add((row.responses, row.unsafe, row.harm))
    different = list({(row.prompt, row.responses): row for row in rows}.values())
    agreed = [row for row in different if len(judged[row.prompt, frozenset(row.responses)]) == 1]
    if len(different) < len(rows):
        logger.info("%d rows repeat others and are left out", len(rows) - len(different))
    if len(agreed) < len(different):
        logger.info("%d rows were judged in two ways and are left out", len(different) - len(agreed))
    if not agreed:
        raise UserError("--input: no row is left to use")
    return agreed


def fault(row: Judged) -> str | None:
    """Why nothing can be learned from a row; None if something can."""
    if not all(response.strip() for response in row.responses):
        return "with an empty response"
    if row.is_pair and row.responses[0].split() == row.responses[1].split():
        return "with equal responses"
    if row.unsafe == (False, True):
        return "contradictory: the safer response is labelled unsafe, the other one safe"
    return None


class _Unusable(Exception):
    """A row that is well formed, but says nothing of two responses to one prompt."""


def _parse(name: str, unsafe: set[str], limit: int | None, said: Counter) -> Iterator[Judged | str]:
    """The rows of a file, and of those that are unusable why."""
    parse = None
    for number, cells in enumerate(_cells(name, limit), 1):
        parse = parse or _format_of(set(cells), name)
        try:
            prompt, responses, labels, harm = parse(cells, unsafe)
            category = _category(cells)
        except ValueError as error:
            raise UserError(f"{name}, row {number}: {error}") from error
        except _Unusable as reason:
            yield str(reason)
            continue
        if parse is _answer and cells.get("label", "").strip():
            said[cells["label"].strip()] += 1
        source = Path(name).name
        yield Judged(content_id(prompt, *responses), number, source, prompt, responses, labels, harm, category)


def _cells(name: str, limit: int | None) -> Iterator[dict[str, str]]:
    hub_id, _, part = name.partition("@")
    if Path(name).is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or Path(name).suffix in (".csv", ".jsonl"):
        yield from read_rows(name, limit, params.MAX_ANSWER_CHARS)
        return
    from datasets import load_dataset

    try:
        rows = load_dataset(hub_id, split=part or "train", streaming=True)
        for row in rows if limit is None else rows.take(limit):
            yield {column: as_text(value) for column, value in row.items()}
    except (OSError, ValueError) as error:  # no network, no such data set, no such part
        reason = str(error).splitlines()[0]
        raise UserError(f"--input {name}: no such file, and no data set that can be read ({reason})") from error


def _format_of(columns: set[str], name: str):
    formats = (
        ({"prompt", "response_0", "response_1", "safer_response_id"}, _ranked),
        ({"prompt", "safe_response", "unsafe_response"}, _safe_and_unsafe),
        ({"chosen", "rejected"}, _transcripts),
        ({"transcript", "rating"}, _rated_transcript),
        ({"response", "is_safe"}, _answer),
        ({"response", "label"}, _answer),
        ({"response", "harmfulness"}, _answer),
        ({"text", "label"}, _answer),
        ({"text", "harmfulness"}, _answer),
    )
    for wanted, parse in formats:
        if wanted <= columns:
            return parse
    known = "; ".join(", ".join(sorted(wanted)) for wanted, _ in formats)
    raise UserError(f"{name} has columns {', '.join(sorted(columns))}: expected one of: {known}")


def _ranked(cells: dict[str, str], unsafe: set[str]):
    first = 1 - _number(cells, "safer_response_id", 0, 1)  # the more harmful one goes first
    order = (int(first), 1 - int(first))
    labels = tuple(_not(_truth(cells.get(f"is_response_{n}_safe", ""))) for n in order)
    return cells["prompt"], tuple(cells[f"response_{n}"] for n in order), labels, None


def _safe_and_unsafe(cells: dict[str, str], unsafe: set[str]):
    return cells["prompt"], (cells["unsafe_response"], cells["safe_response"]), (True, False), None


def _transcripts(cells: dict[str, str], unsafe: set[str]):
    (prompt, worse), (other, better) = (_last_answer(cells[name]) for name in ("rejected", "chosen"))
    if prompt != other:
        raise _Unusable("with transcripts that part before the last answer")  # there are some in HH-RLHF
    return prompt, (worse, better), (None, None), None


def _rated_transcript(cells: dict[str, str], unsafe: set[str]):
    prompt, response = _last_answer(cells["transcript"])
    return prompt, (response,), (None,), _number(cells, "rating", 0, 4)


def _last_answer(transcript: str) -> tuple[str, str]:
    """A transcript as (what came before the last answer, the last answer); of one turn without the name of a side."""
    said, mark, answer = transcript.rpartition(_SPEAKER)
    if not mark:
        raise ValueError("expected a transcript with turns 'Human:' and 'Assistant:'")
    prompt = said.strip()
    if _SPEAKER not in said:
        prompt = prompt.removeprefix("Human:").strip()
    return prompt, answer.strip()


def _answer(cells: dict[str, str], unsafe: set[str]):
    response = cells.get("response", cells.get("text", ""))
    prompt = cells.get("prompt", cells.get("context", ""))
    harm = _number(cells, "harmfulness", 0, 4) if cells.get("harmfulness") else None
    if cells.get("is_safe"):
        label = _not(_truth(cells["is_safe"]))
    else:
        label = is_one_of(cells["label"], unsafe) if cells.get("label", "").strip() else None
    return prompt, (response,), (label,), harm


def label_names(joined: str) -> set[str]:
    """Labels joined by commas, as `is_one_of` compares them."""
    return {label.casefold() for label in names(joined)}


def is_one_of(label: str, labels: set[str]) -> bool:
    """Case, blanks, and the form of a whole number (1 or 1.0) aside."""
    return label.strip().casefold().removesuffix(".0") in labels


def _truth(text: str) -> bool | None:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": None}
    if text.strip().casefold() not in known:
        raise ValueError(f"{text!r} is neither true nor false")
    return known[text.strip().casefold()]


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _number(cells: dict[str, str], name: str, low: float, high: float) -> float:
    try:
        value = float(cells[name])
    except ValueError as error:
        raise ValueError(f"{name} is {cells[name]!r}, no number") from error
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}: expected {low:g} to {high:g}")
    return value


def _category(cells: dict[str, str]) -> str:
    """The category of harm; of several that are true or false (BeaverTails), the first that is true."""
    said = cells.get("category", "")
    if said.startswith("{"):
        return next((name for name, holds in json.loads(said).items() if holds), "")
    return said


def split_by_prompt(rows: list[Judged], share: float, seed: int) -> tuple[list[Judged], list[Judged]]:
    """(training rows, validation rows); no prompt is on both sides. Raises UserError where a side would be empty."""
    groups = {row.group for row in rows}
    held_out = seeded_share(groups, share, seed)
    train = [row for row in rows if row.group not in held_out]
    if not train:
        raise UserError(f"--input: {len(groups)} different prompts are too few to hold some out")
    return train, [row for row in rows if row.group in held_out]
