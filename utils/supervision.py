"""What a model is trained on, token by token, and what is wrong with it."""

import itertools
import logging
import random
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils import params
from utils.configs import RowsConfig
from utils.data import read_pairs, same_text, seeded_share
from utils.edits import edits_between, mark, write_fillings
from utils.helpers import UserError
from utils.loading import end_tokens, generation_settings
from utils.models import ModelRef
from utils.prompt_styles import user_turn
from utils.prompts import rewrite_messages
from utils.records import write_json
from utils.report import audit_page

logger = logging.getLogger(__name__)

# name -> what is wrong with a row that has it; limits in params.AUDIT_LIMITS
FAULTS = {
    "nothing trained": "no token of the row is trained on",
    "end lost": "the last trained token does not end the turn, so the model learns to go on",
    "template mismatch": "the prompt as infer.py writes it does not begin the row, so another prompt is learned",
    "too long": "over --max_length; such rows are left out",
    "cut off": "the completion breaks off: it ends in a comma, an open bracket, or a word that wants another",
    "duplicate": "prompt and completion occur before",
    "contradiction": "the prompt occurs with another completion too",
    "leak": "the prompt is a validation prompt too",
    "completion in prompt": "the completion stands in the prompt word for word, so copying is learned",
}


def load_rows(config: RowsConfig) -> tuple[list[dict], list[dict]]:
    """Training and validation rows. Rows with the same source text (see `same_text`) stay on one side.

    Raises:
        UserError: there are not enough of them.
    """
    rows = _read_rows(config.input, config, config.limit)
    if config.validation and rows:
        return rows, _read_rows(config.validation, config, config.validation_limit)
    held_out = seeded_share((same_text(row["prompt"]) for row in rows), config.validation_share, config.seed)
    train = [row for row in rows if same_text(row["prompt"]) not in held_out]
    if not train:
        raise UserError(f"{config.input}: {len(rows)} usable rows are too few to hold some out")
    return train, [row for row in rows if same_text(row["prompt"]) in held_out]


def _read_rows(path: str, config: RowsConfig, limit: int | None = None) -> list[dict]:
    rows = read_pairs(path, config.input_column, config.output_column, limit)
    if config.prompt != "fill":
        return rows
    if not all(row["templated"] for row in rows):
        raise UserError(f"--prompt fill needs pairs, and {path} holds none: see --input_column and --output_column")
    changed = [row for row in rows if edits_between(row["prompt"], row["completion"])]
    logger.info("%s: %d of %d rows change a word and are learned from", path, len(changed), len(rows))
    return changed


@dataclass
class Example:
    """A training row as the model sees it."""

    row: dict  # from utils.data.read_pairs
    input_ids: list[int]
    labels: list[int]  # -100 where nothing is learned
    starts_as_prompt: bool  # whether the text begins with the prompt that infer.py would write
    faults: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.row["id"]


def to_messages(row: dict, template: str) -> tuple[list[dict], list[dict]]:
    """Prompt and completion of a row as chat messages."""
    if not row["templated"]:
        prompt, completion = [user_turn(row["prompt"])], row["completion"]
    elif template == "fill":
        edits = edits_between(row["prompt"], row["completion"])
        prompt = rewrite_messages(mark(row["prompt"], [edit.span for edit in edits]), template)
        completion = write_fillings(edits)
    else:
        prompt, completion = rewrite_messages(row["prompt"], template), row["completion"]
    return prompt, [{"role": "assistant", "content": completion}]


def encode(row: dict, tokenizer, template: str, train_on_inputs: bool = False) -> Example:
    """A row in the model's own chat template. The prompt gets the tokens that it has when it stands alone."""
    prompt, completion = to_messages(row, template)
    opening = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    before, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (opening, text))
    starts_as_prompt = text.startswith(opening)
    if starts_as_prompt and ids[: len(before)] != before:  # the last token of the prompt would swallow some completion
        ids = before + tokenizer(text[len(opening) :], add_special_tokens=False)["input_ids"]
    labels = ids if train_on_inputs else [-100] * len(before) + ids[len(before) :]
    return Example(row, ids, labels[: len(ids)], starts_as_prompt)


def encode_all(
    train: list[dict], validation: list[dict], ref: ModelRef, tokenizer, config: RowsConfig
) -> tuple[list[Example], list[Example]]:
    """Training and validation rows as the model sees them, faults found."""
    examples, held_out = (
        [encode(row, tokenizer, config.prompt, config.train_on_inputs) for row in rows] for rows in (train, validation)
    )
    ends = end_tokens(generation_settings(ref), tokenizer)
    _find_faults(examples, {same_text(row["prompt"]) for row in validation}, tokenizer, ends, config.max_length)
    return examples, held_out


def _find_faults(examples: list[Example], held_out: set[str], tokenizer, ends: set[int], max_length: int) -> None:
    """Fills in `faults` of each training example. `held_out` are the keys of the validation prompts."""
    seen: set[tuple[str, str]] = set()
    completions = defaultdict(set)
    for example in examples:
        completions[same_text(example.row["prompt"])].add(same_text(example.row["completion"]))
    for example in examples:
        prompt, completion = example.row["prompt"], example.row["completion"]
        trained = [token for token in example.labels if token != -100]
        last = next((t for t in reversed(trained) if t in ends or tokenizer.decode([t]).strip()), None)
        pair = (same_text(prompt), same_text(completion))
        found = {
            "nothing trained": not _says_something(trained, tokenizer, ends),
            "end lost": last not in ends,  # some templates put a line break after the end
            "template mismatch": not example.starts_as_prompt,
            "too long": len(example.input_ids) > max_length,
            "cut off": _breaks_off(completion) and not _breaks_off(prompt),
            "duplicate": pair in seen,
            "contradiction": len(completions[pair[0]]) > 1,
            "leak": pair[0] in held_out,
            "completion in prompt": pair[1] in pair[0] and (pair[1] == pair[0] or len(pair[1].split()) > 2),
        }
        example.faults = {name for name, is_there in found.items() if is_there}
        seen.add(pair)


@dataclass(frozen=True)
class Finding:
    """How many of the training rows have a fault, and which (their numbers in the file, from 1)."""

    fault: str
    rows: list[int]
    share: float
    limit: float
    blocks: bool

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows[: params.AUDIT_NAMED])) + " ..." * (len(self.rows) > params.AUDIT_NAMED)
        return f"{self.fault}: {len(self.rows)} rows ({self.share:.1%}, limit {self.limit:.0%}), numbers {named}"


def findings(examples: list[Example], allowed: set[str]) -> list[Finding]:
    """What the audit found, fault by fault. A fault blocks training if it is above its limit and not allowed."""
    found = []
    for fault, limit in params.AUDIT_LIMITS.items():
        rows = [example.row["number"] for example in examples if fault in example.faults]
        share = len(rows) / len(examples)
        found.append(Finding(fault, rows, share, limit, share > limit and fault not in allowed))
    return found


def _says_something(trained: list[int], tokenizer, ends: set[int]) -> bool:
    return bool(tokenizer.decode([token for token in trained if token not in ends]).strip())


def _breaks_off(text: str) -> bool:
    """Whether an English text stops where no writer would; a full stop may be missing for good reasons."""
    words = text.split()
    return bool(words) and (words[-1].casefold() in _WANT_ANOTHER or text.rstrip().endswith((",", "(", "[", "-", "/")))


_WANT_ANOTHER = frozenset(
    "a an the and or but nor because although if than of to into from with without for by at as "
    "my your his her its our their this these those is are was were be been very".split()
)


def write_audit(folder: Path, examples: list[Example], found: list[Finding], tokenizer, seed: int) -> None:
    """audit.json with all findings, and audit.html with some rows: of every fault one first, then others by chance."""
    write_json(folder / "audit.json", {"rows": len(examples), "findings": [asdict(finding) for finding in found]})
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    first = {next((i for i in order if finding.fault in examples[i].faults), None) for finding in found} - {None}
    chosen = [*sorted(first), *(i for i in order if i not in first)][: params.AUDIT_PAGE_ROWS]
    rows = [
        {
            "number": examples[i].row["number"],
            "faults": [f"{fault}: {FAULTS[fault]}" for fault in sorted(examples[i].faults)],
            "pieces": _pieces(examples[i], tokenizer),
            "tokens": len(examples[i].input_ids),
            "trained": sum(label != -100 for label in examples[i].labels),
        }
        for i in chosen
    ]
    (folder / "audit.html").write_text(audit_page(rows, found, len(examples)), encoding="utf-8")


def _pieces(example: Example, tokenizer) -> list[tuple[str, bool]]:
    """The text of a row in pieces, each with whether its tokens are trained."""
    tokens = zip(example.input_ids, example.labels, strict=True)
    return [
        (tokenizer.decode([token for token, _ in piece]), trained)
        for trained, piece in itertools.groupby(tokens, key=lambda pair: pair[1] != -100)
    ]
