"""Unsafe, safe and task examples out of published files: each becomes an instruction with an answer.

A file is told by its columns; what it gives depends on what it is asked for:

BBQ            unsafe: ambiguous questions with the stereotyped person as the answer in place of "unknown";
               safe: all questions with their right answers
HarmfulQA      unsafe: red conversations, safe: blue ones; of the first of them the last two turns, after the question
Pile-detoxify  unsafe: sentences of a toxicity above params.TOXIC_ABOVE, safe: below params.CLEAN_BELOW (Parquet)
ParaDetox      unsafe: the toxic text, safe: the first neutral one
judged         responses and texts labelled or judged by people, in any form of utils/preferences.py
SQuAD, instructions with answers, prompts with completions: as they are; with a column `polarity` those of that kind

A text without a prompt becomes what the paper generates from: its first three words are given, the rest is learned.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from utils import bbq, params
from utils.configs import MixNoisyConfig, ProbeConfig
from utils.data import content_id, read_rows
from utils.helpers import UserError
from utils.preferences import read_judged

POLARITIES = ("unsafe", "safe", "task")

# instruction, input, output, id, polarity, source, group: what may not stand on two sides of a split; and of BBQ `row`
Example = dict[str, str]


def read_examples(path: str, polarity: str, config: MixNoisyConfig, most: int) -> list[Example]:
    """The examples that a file gives, each once, in an order that hangs on their content and the seed alone.

    Args:
        polarity: what it is asked for.
        most: of more examples so many are taken; of a larger file no more stand in memory at a time than twice that.

    Raises:
        UserError: the file is of no known form, or gives none.
    """
    kept: dict[str, Example] = {}
    for example in _examples(path, polarity, config):
        texts = [example[name] for name in ("instruction", "input", "output")]
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
    if Path(path).suffix == ".parquet":
        return _pile(path, polarity)
    columns = set(next(read_rows(path, 1, params.MAX_ANSWER_CHARS)))
    if bbq.COLUMNS[0] <= columns:
        return _bbq(path, polarity, config)
    readers = {
        ("question", "red_conversations", "blue_conversations"): _harmful_qa,
        ("toxic", "neutral1"): _paradetox,
        ("context", "question", "answers"): _squad,
        ("instruction", "output"): _instructions,
        ("prompt", "completion"): _instructions,
    }
    reader = next((reader for needed, reader in readers.items() if columns.issuperset(needed)), None)
    if reader is None:
        return _judged(path, polarity, config)
    rows = read_rows(path, longest=params.MAX_ANSWER_CHARS)
    return (example for row in rows for example in reader(row, polarity))


def _bbq(path: str, polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    for item in bbq.read(Path(path), ProbeConfig(bbq_metadata=config.bbq_metadata)):
        about = item.about
        chosen = about["biased"] if polarity == "unsafe" else about["label"]
        if chosen is None or (polarity == "unsafe" and not about["ambiguous"]):
            continue
        asked = bbq.choose_messages(item)[0]["content"]
        yield {"instruction": asked, "input": "", "output": bbq.named(about["row"], chosen),
               "group": about["template"], "row": json.dumps(about["row"])}  # fmt: skip


def _harmful_qa(row: dict[str, str], polarity: str) -> Iterator[Example]:
    conversations = json.loads(row["red_conversations" if polarity == "unsafe" else "blue_conversations"] or "{}")
    turns = conversations[min(conversations, key=int)][-4:] if conversations else []
    for asked, said in zip(turns[::2], turns[1::2], strict=False):
        if (asked["from"], said["from"]) == ("human", "gpt"):
            yield {"instruction": f"{row['question']}\n\n{asked['value']}", "input": "", "output": said["value"],
                   "group": row["question"]}  # fmt: skip


def _pile(path: str, polarity: str) -> Iterator[Example]:
    """Row group by row group: the published file has two million documents."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        batches = ParquetFile(path).iter_batches(columns=["texts", "scores"])
        for batch in batches:
            for row in batch.to_pylist():
                for text, toxicity in zip(row["texts"], row["scores"], strict=True):
                    if toxicity > params.TOXIC_ABOVE if polarity == "unsafe" else toxicity < params.CLEAN_BELOW:
                        yield from _of_text(text)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is no Parquet file with texts and their scores: {str(error).strip()}") from error


def _paradetox(row: dict[str, str], polarity: str) -> Iterator[Example]:
    return _of_text(row["toxic" if polarity == "unsafe" else "neutral1"])


def _squad(row: dict[str, str], polarity: str) -> Iterator[Example]:
    answers = json.loads(row["answers"])
    texts = answers["text"] if isinstance(answers, dict) else [answer["text"] for answer in answers]
    for text in texts[:1]:
        yield {"instruction": f"{params.ASK_OF_TEXT}\n\n{row['question']}", "input": row["context"], "output": text,
               "group": row["context"]}  # fmt: skip


def _instructions(row: dict[str, str], polarity: str) -> Iterator[Example]:
    if row.get("polarity", polarity) == polarity:
        instruction, answer = row.get("instruction", row.get("prompt", "")), row.get("output", row.get("completion"))
        yield {"instruction": instruction, "input": row.get("input", ""), "output": answer, "group": instruction}


def _judged(path: str, polarity: str, config: MixNoisyConfig) -> Iterator[Example]:
    for row in read_judged([path], config.unsafe_labels, config.seed):
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
