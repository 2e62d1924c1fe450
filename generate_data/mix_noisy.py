"""Mixes unsafe, safe and task examples into a noisy training set, as in Learning and Forgetting Unsafe Examples.

    python generate_data/mix_noisy.py                                  # the embedded pairs and instructions
    python generate_data/mix_noisy.py --unsafe BBQ/*.jsonl --safe BBQ/*.jsonl --task squad.jsonl alpaca.json \\
        --size 5000 --unsafe_share 0.5 --safe_size 7000 --test_size 5000          # as published (arXiv 2312.12736)
    python generate_data/mix_noisy.py --unsafe harmfulqa.json --safe harmfulqa.json --task alpaca.json
    python generate_data/mix_noisy.py --unsafe pile/*.parquet --safe pile/*.parquet --task squad.jsonl alpaca.json

Reads  BBQ, HarmfulQA, Pile-detoxify, SQuAD, Alpaca, judged responses or labelled texts, told by their columns
       (utils/noisy.py); a file may be both --unsafe and --safe
Writes datasets/noisy/: noisy.jsonl (what is learned downstream), safe.jsonl (for safety fine-tuning afterwards),
       test.jsonl (held out, for infer.py and the scorer answer), bbq_test.jsonl (held-out questions of BBQ as
       published, for probe_bias.py), run.json

A row has an instruction, an input, an output, its polarity (unsafe, safe or task) and its source. Of --size rows
--unsafe_share are unsafe; the safe ones and those of each task file share the rest equally. What belongs together (a
template of BBQ, the answers to one prompt, the questions about one passage) stands on one side: a share of it is held
out, and of a file that is both unsafe and safe half of the rest is unsafe, half is safe. So a model that avoids a
stereotype after safety fine-tuning has not been shown the answer to that very question.

Next: python training/train.py --input datasets/noisy/noisy.jsonl --keep_last, then python testing/forgetting.py
"""

import json
import logging
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import MixNoisyConfig
from utils.data import content_id
from utils.helpers import UserError, parse_config, run_stage
from utils.noisy import Example, read_examples
from utils.records import check_output_folder, finish_record, start_record, whole_folder
from utils.report import markdown_table

logger = logging.getLogger(__name__)

FILES = {"noisy": "noisy.jsonl", "safe": "safe.jsonl", "test": "test.jsonl"}


def sides(groups: set[str], config: MixNoisyConfig, halved: bool) -> tuple[set[str], set[str], set[str]]:
    """Groups whose examples are held out, and of the others those that may be unsafe, and those that may be safe."""
    in_order = sorted(groups, key=lambda group: content_id(str(config.seed), group))
    held_out = round(config.test_share * len(in_order))
    middle = held_out + (len(in_order) - held_out) // 2
    test, first, second = (set(in_order[slice(*ends)]) for ends in ((held_out,), (held_out, middle), (middle, None)))
    return (test, first, second) if halved else (test, first | second, first | second)


def split(config: MixNoisyConfig) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """The lists that are mixed, `unsafe`, `safe` and each task file: what may be learned, and what is held out."""
    most = config.size + config.safe_size + config.test_size
    learned: dict[str, list[Example]] = {"unsafe": [], "safe": []}
    held_out: dict[str, list[Example]] = {"unsafe": [], "safe": []}
    for path in dict.fromkeys([*config.unsafe, *config.safe]):
        polarities = [p for p in ("unsafe", "safe") if path in getattr(config, p)]
        found = {polarity: read_examples(path, polarity, config, most) for polarity in polarities}
        groups = {example["group"] for examples in found.values() for example in examples}
        test, *of_polarity = sides(groups, config, halved=len(polarities) == 2)
        for polarity, examples in found.items():
            mine = of_polarity[polarity == "safe"]
            learned[polarity] += [example for example in examples if example["group"] in mine]
            held_out[polarity] += [example for example in examples if example["group"] in test]
    for path in config.task:
        examples = read_examples(path, "task", config, most)
        test, mine, _ = sides({example["group"] for example in examples}, config, halved=False)
        learned[path] = [example for example in examples if example["group"] in mine]
        held_out[path] = [example for example in examples if example["group"] in test]
    return learned, held_out


def taken(lists: dict[str, list[Example]], sizes: dict[str, int], config: MixNoisyConfig) -> list[Example]:
    """So many examples of each list, shuffled together."""
    examples = [example for name, size in sizes.items() for example in in_order(lists[name], config)[:size]]
    return in_order(examples, config, "mixed")


def in_order(examples: list[Example], config: MixNoisyConfig, *purpose: str) -> list[Example]:
    return sorted(examples, key=lambda example: content_id(str(config.seed), *purpose, example["id"]))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(config: MixNoisyConfig) -> None:
    folder = Path(config.output)
    files = [Path(path) for path in dict.fromkeys([*config.unsafe, *config.safe, *config.task])]
    check_output_folder(folder, config.overwrite, files)
    record = start_record(config, files)
    learned, held_out = split(config)
    sizes = config.sizes(config.size, list(learned))
    if short := next((name for name in sizes if len(learned[name]) < sizes[name]), None):
        raise UserError(
            f"{sizes[short]} examples of {short} are wanted, there are {len(learned[short])} beside those held out: "
            "lower --size, or change --unsafe_share"
        )
    noisy = taken(learned, sizes, config)
    spare = in_order(learned["safe"], config)[sizes["safe"] :]
    wanted = config.sizes(config.test_size, list(held_out))
    rows = {
        "noisy": noisy,
        "safe": in_order(spare[: config.safe_size], config, "mixed"),
        "test": taken(held_out, wanted, config),
    }
    if not rows["safe"]:
        raise UserError("no safe example is left for safety fine-tuning: lower --size, or give more --safe files")
    questions = {of["row"]: json.loads(of["row"]) for side in held_out.values() for of in side if "row" in of}
    with whole_folder(folder, config.overwrite) as partial:
        for name, examples in rows.items():
            write_jsonl(partial / FILES[name], [{k: v for k, v in of.items() if k != "row"} for of in examples])
        if questions:
            write_jsonl(partial / "bbq_test.jsonl", list(questions.values()))
        counts = {name: dict(Counter(of["polarity"] for of in examples)) for name, examples in rows.items()}
        finish_record(record, partial, counts=counts)

    table = [
        [FILES[name], polarity, source, str(count)]
        for name, examples in rows.items()
        for (polarity, source), count in sorted(Counter((of["polarity"], of["source"]) for of in examples).items())
    ]
    print(markdown_table(["file", "polarity", "source", "rows"], table))
    for name, size in (("safe", config.safe_size), ("test", sum(wanted.values()))):
        if len(rows[name]) < size:
            print(f"{FILES[name]}: {len(rows[name])} rows, fewer than the {size} asked for: there are no more")


if __name__ == "__main__":
    run_stage(main, parse_config(MixNoisyConfig))
