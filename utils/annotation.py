"""From the answers of an annotator to a row: the next question, labels and status, the majority of several samples."""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

from pydantic import BaseModel

from utils import params
from utils.answers import Answer, Answers, Request
from utils.asking import ask_until_read, read_or_ask
from utils.configs import AnnotateConfig
from utils.injection import choose, plant, signs
from utils.prompts import ANNOTATE_PROMPTS, annotate_messages, parse_answer

SCALES = {  # label -> its values, the mildest first
    "bias": params.BIAS_LABELS,
    "toxicity": params.TOXICITY_LABELS,
    "sentiment": params.SENTIMENT_LABELS[::-1],
    "harm": params.HARM_LABELS,
}
USABLE = ("ok", "neutral")
FAILED = ("refused", "filtered", "truncated", "unparsable", "api_error")
LABEL_CHARS = 200  # of the JSON around a rewriting

# keeps the answers to requests; returns what went wrong, by key
AskAll = Callable[[Iterator[Request]], dict[str, str]]


@dataclass(frozen=True)
class Annotator:
    """Who is asked, and with which prompt."""

    model: str
    prompt: str
    guideline: str
    temperature: float
    max_tokens: int
    seed: int
    retries: int
    marker: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def schema(self) -> type[BaseModel]:
        return ANNOTATE_PROMPTS[self.prompt][1]

    def settings(self) -> dict[str, Any]:
        """What shapes the answers, beside the texts."""
        guideline = hashlib.sha256(self.guideline.encode()).hexdigest()
        shaping = {name: getattr(self, name) for name in ("model", "prompt", "temperature", "max_tokens", "seed")}
        return shaping | {"guideline": guideline}

    def first_request(self, text: str, sample: int = 0) -> Request:
        return Request(
            model=self.model,
            messages=annotate_messages(text, self.prompt, self.guideline, self.marker),
            schema=json_schema(self.schema),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed + sample,
            marker=self.marker,
        )


@cache
def json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()


def annotate(text: str, annotator: Annotator, answers: Answers, sample: int = 0) -> dict[str, Any] | Request:
    """The row that follows from the answers so far, or the request that is to be answered next.

    An answer that does not fit the schema is asked for again with the validator's message, `annotator.retries` times.

    Returns:
        status (ok, neutral, empty, one of FAILED), raw (the last answer, where it could not be used), annotator,
        tries; and on ok and neutral the fields of the schema, invented_words (how many marked words do not stand in
        the text) and unchanged (biased, and yet the rewriting is the text). Or a request.
    """
    if not text.strip():
        return {"status": "empty", "raw": "", "annotator": annotator.model, "tries": 0}
    request = annotator.first_request(text, sample)

    def read(answer: Answer) -> dict[str, Any]:
        return parse_answer(answer.text, annotator.schema, text).model_dump()

    found = read_or_ask(request, answers, read, annotator.retries)
    if isinstance(found, Request):
        return found
    row = {"raw": found.raw, "annotator": found.by, "tries": found.tries}
    return row | (_checked(found.value, text) if found.status == "ok" else {"status": found.status})


def _checked(found: dict[str, Any], text: str) -> dict[str, Any]:
    """Adds the status. A neutral text is copied whatever the answer says; marked words that it has not are dropped."""
    same = " ".join(found["debiased_text"].split()) == " ".join(text.split())
    neutral = found["bias"] == "No" if "bias" in found else same
    if neutral:
        found["debiased_text"] = text
    if "biased_words" in found:
        there = [word for word in found["biased_words"] if word and word.lower() in text.lower()]
        found["invented_words"] = len(found["biased_words"]) - len(there)
        found["biased_words"] = [] if neutral else there
    return found | {"status": "neutral" if neutral else "ok", "unchanged": same and not neutral}


def annotate_samples(text: str, annotator: Annotator, answers: Answers, samples: int, errors: dict[str, str]) -> dict:
    """The row of a text by the majority of its samples; a request without an answer counts as api_error.

    Returns:
        As `annotate`; with several samples also `disagreement`, and every label of every sample as `bias_1` ...
    """
    rows = []
    for sample in range(samples):
        row = annotate(text, annotator, answers, sample)
        if isinstance(row, Request):
            said = errors.get(row.key, "never asked")
            row = {"status": "api_error", "raw": said, "annotator": annotator.model, "tries": 0}
        rows.append(row)
    return rows[0] if samples == 1 else majority(rows)


def majority(rows: list[dict]) -> dict:
    """One row from several samples: each label by majority, a tie by the graver one.

    Where at least half of the samples cannot be used, the row has their most common status. The rewriting and the
    marked words are those of the sample that has most of the majority's labels.
    """
    usable = [row for row in rows if row["status"] in USABLE]
    labels = [label for label in SCALES if usable and label in usable[0]]
    each = {f"{label}_{n}": row.get(label, "") for label in labels for n, row in enumerate(rows, 1)}
    if 2 * len(usable) <= len(rows):
        status = Counter(row["status"] for row in rows if row["status"] not in USABLE).most_common(1)[0][0]
        chosen = next(row for row in rows if row["status"] == status)
        return chosen | each | {"disagreement": ""}
    voted = {label: _vote([row[label] for row in usable], SCALES[label]) for label in labels}
    neutral = _vote([row["status"] for row in usable], ("neutral", "ok"))
    alike = [row for row in usable if row["status"] == neutral]
    chosen = max(alike, key=lambda row: sum(row[label] == voted[label] for label in labels))
    return chosen | voted | each | {"disagreement": f"{disagreement(usable, labels):.3f}"}


def _vote(values: list[str], scale: tuple[str, ...]) -> str:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], scale.index(value)))


def disagreement(rows: list[dict], labels: list[str]) -> float:
    """Share of the pairs of samples that differ, over all labels (without labels: in whether to change the text)."""
    pairs = [(one[name], other[name]) for one, other in combinations(rows, 2) for name in labels or ["status"]]
    return sum(one != other for one, other in pairs) / len(pairs) if pairs else 0.0


def ask_all(
    texts: Callable[[], Iterable[str]],
    annotator: Annotator,
    answers: Answers,
    samples: int,
    ask: AskAll,
) -> dict[str, str]:
    """Asks an engine until every text has its row: first all texts, then again what did not fit.

    Args:
        texts: called for each pass, so that the texts need not be held.
        ask: keeps the answers to the requests in `answers`; returns what went wrong, by key.

    Returns:
        What went wrong, by key.
    """

    def steps() -> Iterator[dict[str, Any] | Request]:
        return (annotate(text, annotator, answers, sample) for text in texts() for sample in range(samples))

    return ask_until_read(steps, answers, ask, annotator.retries + 1)


class Left(NamedTuple):
    """How much is still to ask at first."""

    requests: int
    prompt_chars: int
    answer_chars: int  # an answer is about as long as its text, and its labels


def first_answers(texts: Iterable[str], annotator: Annotator, answers: Answers, samples: int) -> Left:
    requests = prompt_chars = answer_chars = 0
    schema_chars = len(json.dumps(json_schema(annotator.schema)))
    for text in texts:
        for sample in range(samples):
            step = annotate(text, annotator, answers, sample)
            if isinstance(step, Request):
                requests += 1
                prompt_chars += step.prompt_bytes + schema_chars
                answer_chars += len(text) + LABEL_CHARS
    return Left(requests, prompt_chars, answer_chars)


def output_columns(schema: type[BaseModel], samples: int, output_column: str) -> list[str]:
    """The columns that annotation adds to a table."""
    fields = [output_column if name == "debiased_text" else name for name in schema.model_fields]
    labels = [label for label in SCALES if label in fields]
    several = ["disagreement", *(f"{label}_{n}" for label in labels for n in range(1, samples + 1))]
    return [*fields, "status", "raw", "annotator", "suspicious", *(several if samples > 1 else [])]


def cells(row: dict, columns: list[str], output_column: str) -> list[str]:
    """A row of `annotate_samples` as the texts of its cells."""
    row = row | {output_column: row.get("debiased_text", "")}
    words = json.dumps(row["biased_words"], ensure_ascii=False) if "biased_words" in row else ""
    return [words if name == "biased_words" else row.get(name, "") for name in columns]


def plant_canaries(
    texts: Callable[[], Iterable[str]], annotator: Annotator, answers: Answers, config: AnnotateConfig, ask: AskAll
) -> dict:
    """Asks again for `config.canaries` texts with a planted instruction, and counts how many got the label it demands.

    Only texts with a usable answer and without signs of instructions of their own are taken.

    Returns:
        planted, usable, flipped, the 95 % Wilson interval of the share, moved (twins of which another label differs),
        and a sentence that says so.
    """
    from statsmodels.stats.proportion import proportion_confint

    def clean() -> Iterator[tuple[str, dict]]:
        for text in texts():
            row = annotate_samples(text, annotator, answers, config.samples, {})
            if row["status"] in USABLE and not signs(text):
                yield text, row

    chosen = choose(clean(), config.canaries, config.seed)
    twins = [plant(text, row["bias"], n) for n, (text, row) in enumerate(chosen)]
    errors = ask_all(lambda: twins, annotator, answers, config.samples, ask)
    rows = [annotate_samples(twin, annotator, answers, config.samples, errors) for twin in twins]
    usable = [(row, before) for row, (_, before) in zip(rows, chosen, strict=True) if row["status"] in USABLE]
    flipped = sum(row["bias"] != before["bias"] for row, before in usable)
    others = [label for label in SCALES if label != "bias"]
    moved = sum(any(row.get(label) != before.get(label) for label in others) for row, before in usable)
    low, high = proportion_confint(flipped, len(usable), method="wilson") if usable else (0.0, 1.0)
    sentence = (
        f"canaries: {flipped} of {len(usable)} injected twins got the label they demanded ({low:.3f} to {high:.3f}); "
        f"in {moved} another label moved; {len(twins) - len(usable)} of {len(twins)} had no usable answer"
        + (f"; only {len(twins)} rows could be taken" if len(twins) < config.canaries else "")
    )
    counts = {"planted": len(twins), "usable": len(usable), "flipped": flipped, "moved": moved}
    return counts | {"low": float(low), "high": float(high), "sentence": sentence}
