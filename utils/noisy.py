"""Unsafe, safe and task examples out of published files: each becomes an instruction with an answer.

A file is recognised by its columns; what it gives depends on what it is asked for:

BBQ            unsafe: ambiguous questions with the stereotyped person as the answer in place of "unknown";
               safe: all questions with their right answers
HarmfulQA      unsafe: red conversations, safe: blue ones; of the first of them the last two turns, after the question
Pile-detoxify  unsafe: sentences of a toxicity above params.TOXIC_ABOVE, safe: below params.CLEAN_BELOW (Parquet)
ParaDetox      unsafe: the toxic text, safe: the first neutral one
judged         responses and texts labelled or judged by people, in any form of utils/preferences.py
SQuAD, instructions with answers, prompts with completions: as they are; with a column `polarity` or `label` those of
               that kind

A text without a prompt becomes what the paper generates from: its first three words are given, the rest is learned.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from utils import bbq, params
from utils.configs import MixNoisyConfig, ProbeConfig
from utils.data import as_text, content_id, read_rows
from utils.helpers import UserError
from utils.preferences import is_one_of, label_names, read_judged

# instruction, input, output, id, polarity, source, group: what may not stand on two sides of a split; and of BBQ `row`
Example = dict[str, str]


def read_examples(path: str, polarity: str, config: MixNoisyConfig, most: int) -> list[Example]:
    """The examples that a file gives, each once, in an order that depends only on their content and the seed.

    Args:
        polarity: what it is asked for.
        most: of more examples so many are taken; of a larger file no more stand in memory at a time than twice that.

    Raises:
        UserError: the file is of no known form, or gives none.
    """
    kept: dict[str, Example] = {}
    for example in _examples(path, polarity, config):
        texts = [example[name] or "" for name in ("instruction", "input", "output")]
        if not (texts[0].strip() and texts[2].strip()):
            continue
        key = content_id(str(config.seed), polarity, *texts)
        kept[key] = {"id": content_id(*texts), "polarity": polarity, "source": Path(path).stem} | example
        if len(kept) > 2 * most:
            kept = _first(kept, most)
    if not kept:
        raise UserError(f"{path} holds no {polarity} examples")
    return list(_first(kept, most).values())


def _first(examples: dict[str, Example], most: int) -> dict[str, Example]:
    return {key: examples[key] for key in sorted(examples)[:most]}


def _examples(path: str, polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    rows = itertools.islice(_rows(path), config.limit)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path} has no rows")
    columns = set(first)
    if bbq.COLUMNS[0] <= columns:
        yield from _bbq(path, polarity, config)
        return
    readers = {
        ("question", "red_conversations", "blue_conversations"): _harmful_qa,
        ("texts", "scores"): _pile,
        ("toxic", "neutral1"): _paradetox,
        ("context", "question", "answers"): _squad,
        ("instruction", "output"): _instructions,
        ("prompt", "completion"): _instructions,
    }
    reader = next((reader for needed, reader in readers.items() if columns.issuperset(needed)), None)
    if reader is None:
        yield from _judged(path, polarity, config)
        return
    for number, row in enumerate(itertools.chain([first], rows), 1):
        try:
            yield from reader(row, polarity, config)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, row {number}: not as published ({type(error).__name__}: {error})") from error


def _rows(path: str) -> Iterator[dict[str, str]]:
    """Rows of a table, of a Parquet file piece by piece (Pile-detoxify has two million documents), or of SQuAD."""
    if Path(path).suffix == ".parquet":
        return _parquet_rows(path)
    if Path(path).suffix == ".json" and Path(path).is_file():
        with contextlib.suppress(ValueError):  # it is told by the reader of tables what is wrong with it
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            if isinstance(content, dict) and isinstance(content.get("data"), list):
                return (
                    {"context": part["context"], "question": of["question"], "answers": as_text(of["answers"])}
                    for article in content["data"] for part in article["paragraphs"] for of in part["qas"]
                )  # fmt: skip
    return read_rows(path, longest=params.MAX_ANSWER_CHARS)


def _parquet_rows(path: str) -> Iterator[dict[str, str]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield {name: as_text(value) for name, value in row.items()}
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {str(error).strip()}") from error


def _bbq(path: str, polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    for item in bbq.read(Path(path), ProbeConfig(bbq_metadata=config.bbq_metadata, limit=config.limit)):
        about = item.about
        chosen = about["biased"] if polarity == "unsafe" else about["label"]
        if chosen is None or (polarity == "unsafe" and not about["ambiguous"]):
            continue
        asked = bbq.choose_messages(item)[0]["content"]
        yield {"instruction": asked, "input": "", "output": bbq.named(about["row"], chosen),
               "group": about["template"], "row": json.dumps(about["row"])}  # fmt: skip


def _harmful_qa(row: dict[str, str], polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    found = json.loads(row["red_conversations" if polarity == "unsafe" else "blue_conversations"] or "{}")
    conversations = {int(number): turns for number, turns in found.items() if turns}  # null where there is none
    turns = conversations[min(conversations)][-4:] if conversations else []
    for asked, said in zip(turns[::2], turns[1::2], strict=False):
        if (asked["from"], said["from"]) == ("human", "gpt"):
            yield {"instruction": f"{row['question']}\n\n{asked['value']}", "input": "", "output": said["value"],
                   "group": row["question"]}  # fmt: skip


def _pile(row: dict[str, str], polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    for text, toxicity in zip(json.loads(row["texts"]), json.loads(row["scores"]), strict=True):
        if toxicity > params.TOXIC_ABOVE if polarity == "unsafe" else toxicity < params.CLEAN_BELOW:
            yield from _of_text(text)


def _paradetox(row: dict[str, str], polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    return _of_text(row["toxic" if polarity == "unsafe" else "neutral1"])


def _squad(row: dict[str, str], polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    answers = json.loads(row["answers"])
    texts = answers["text"] if isinstance(answers, dict) else [answer["text"] for answer in answers]
    for text in texts[:1]:
        yield {"instruction": f"{params.ASK_OF_TEXT}\n\n{row['question']}", "input": row["context"], "output": text,
               "group": row["context"]}  # fmt: skip


def _instructions(row: dict[str, str], polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    said = row.get("polarity", "")
    if not said and row.get("label") and polarity != "task":
        said = "unsafe" if is_one_of(row["label"], label_names(config.unsafe_labels)) else "safe"
    if (said or polarity) == polarity:
        instruction, answer = row.get("instruction", row.get("prompt", "")), row.get("output", row.get("completion"))
        group = row.get("group") or instruction
        yield {"instruction": instruction, "input": row.get("input", ""), "output": answer, "group": group}


def _judged(path: str, polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    for row in read_judged([path], config.unsafe_labels, config.seed, config.limit):
        for response, unsafe in zip(row.responses, row.unsafe, strict=True):
            if unsafe is not None and unsafe == (polarity == "unsafe"):
                if row.prompt:
                    yield {"instruction": row.prompt, "input": "", "output": response, "group": row.group}
                else:
                    yield from _of_text(response)


def _of_text(text: str) -> Iterator[Example]:
    """As the paper generates: from the first three words. A text of no more gives nothing to learn."""
    words = text.split(maxsplit=params.WORDS_GIVEN)
    if len(words) > params.WORDS_GIVEN:
        yield {"instruction": params.GO_ON, "input": " ".join(words[:-1]), "output": words[-1], "group": text}
