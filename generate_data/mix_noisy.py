"""Mixes unsafe, safe and task examples into a noisy training set, as in Learning and Forgetting Unsafe Examples.

    python generate_data/mix_noisy.py                                  # the embedded pairs and instructions
    python generate_data/mix_noisy.py --unsafe BBQ/*.jsonl --safe BBQ/*.jsonl --task squad.jsonl alpaca.json \\
        --size 5000 --unsafe_share 0.5 --safe_size 7000 --test_size 5000          # as published (arXiv 2312.12736)
    python generate_data/mix_noisy.py --unsafe harmfulqa.json --safe harmfulqa.json --task alpaca.json
    python generate_data/mix_noisy.py --unsafe pile/*.parquet --safe pile/*.parquet --task squad.jsonl alpaca.json

Reads  BBQ, HarmfulQA, Pile-detoxify, SQuAD, Alpaca, judged responses or labelled texts, recognised by their columns
       (utils/noisy.py); a file may be both --unsafe and --safe
Writes datasets/noisy/: noisy.jsonl (what is learned downstream), safe.jsonl (for safety fine-tuning afterwards),
       test.jsonl (held out, for infer.py and the scorer answer), bbq_test.jsonl (held-out questions of BBQ as
       published, for probe_bias.py), run.json

A row has an instruction, an input, an output, its polarity (unsafe, safe or task) and its source. Of --size rows
--unsafe_share are unsafe; the safe ones and those of each task file share the rest equally. What belongs together (a
template of BBQ, the answers to one prompt, the questions about one passage) stands on one side, whatever files it is
in: a share of it is held out, and of what is both unsafe and safe half of the rest is unsafe, half is safe. So a model
that avoids a stereotype after safety fine-tuning has not been shown the answer to that very question.

Next: recipes/forget_filter.sh has the commands that follow, and python recipes/interleave.py runs them
"""

import json
import logging
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import MixNoisyConfig
from utils.data import content_id, same_text, write_jsonl
from utils.helpers import UserError, parse_config, run_stage
from utils.noisy import Example, read_examples
from utils.records import check_output_folder, finish_record, start_record, whole_folder
from utils.report import markdown_table

logger = logging.getLogger(__name__)

FILES = {"noisy": "noisy.jsonl", "safe": "safe.jsonl", "test": "test.jsonl"}


def sides(pools: dict[str, list[Example]], config: MixNoisyConfig) -> dict[str, str]:
    """For every group where its examples go: "test", or the pool that may learn from it.

    A group that stands in several pools, from whatever files, goes to one of them. Shares are exact among the groups
    of a source that stand in the same pools, since BBQ has few templates.
    """
    of_group: dict[str, tuple[str, set[str]]] = {}  # group -> its first source, its pools
    for name, examples in pools.items():
        for example in examples:
            of_group.setdefault(example["group"], (example["source"], set()))[1].add(name)
    alike: dict[tuple, list[str]] = defaultdict(list)
    for group, (source, names) in of_group.items():
        alike[source, tuple(sorted(names))].append(group)
    found = {}
    for (_, names), groups in alike.items():
        groups.sort(key=lambda group: content_id(str(config.seed), group))
        held_out = round(config.test_share * len(groups))
        for n, group in enumerate(groups):
            found[group] = "test" if n < held_out else names[(n - held_out) * len(names) // (len(groups) - held_out)]
    return found


def split(config: MixNoisyConfig) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """The pools that are mixed, `unsafe`, `safe` and each task file: what may be learned, and what is held out."""
    # a part of what is read is held out, and another may have to go to another pool
    most = int(
        (config.size + config.safe_size + config.test_size) / min(config.test_share, (1 - config.test_share) / 3)
    )
    pools: dict[str, list[Example]] = {"unsafe": [], "safe": []}
    for polarity in pools:
        for path in dict.fromkeys(getattr(config, polarity)):
            pools[polarity] += read_examples(path, polarity, config, most)
    if {example["id"] for example in pools["unsafe"]} <= {example["id"] for example in pools["safe"]}:
        raise UserError(
            "all --unsafe examples are --safe ones too: a file that is both needs to say which row is which, in a "
            "column polarity or label"
        )
    pools |= {path: read_examples(path, "task", config, most) for path in dict.fromkeys(config.task)}
    for examples in pools.values():
        for example in examples:
            example["group"] = same_text(example["group"])
    side = sides(pools, config)
    learned, held_out = ({name: [of for of in examples if side[of["group"]] == (wanted or name)]
                          for name, examples in pools.items()} for wanted in ("", "test"))  # fmt: skip
    return learned, held_out


def taken(lists: dict[str, list[Example]], sizes: dict[str, int], config: MixNoisyConfig) -> list[Example]:
    """So many examples of each list, shuffled together."""
    examples = [example for name, size in sizes.items() for example in in_order(lists[name], config)[:size]]
    return in_order(examples, config, "mixed")


def in_order(examples: list[Example], config: MixNoisyConfig, *purpose: str) -> list[Example]:
    return sorted(examples, key=lambda example: content_id(str(config.seed), *purpose, example["id"]))


def held_out_questions(examples: list[Example], config: MixNoisyConfig) -> list[dict]:
    """Questions of BBQ as published, of so many whole templates as --test_size allows; at least one."""
    of_template: dict[str, dict[str, dict]] = defaultdict(dict)
    for example in in_order(examples, config):
        if "row" in example:
            of_template[example["group"]][example["row"]] = json.loads(example["row"])
    found: list[dict] = []
    for template in sorted(of_template, key=lambda group: content_id(str(config.seed), group)):
        if not found or len(found) + len(of_template[template]) <= config.test_size:
            found += of_template[template].values()
    for row in found:
        row |= {name: json.loads(row[name]) for name in ("answer_info", "additional_metadata", "label", "example_id")}
    return found


def main(config: MixNoisyConfig) -> None:
    folder = Path(config.output)
    files = [Path(path) for path in dict.fromkeys([*config.unsafe, *config.safe, *config.task])]
    check_output_folder(folder, config.overwrite, files)
    record = start_record(config, files)
    learned, held_out = split(config)
    sizes = config.sizes(config.size, list(learned))
    if empty := next((name for name in sizes if not sizes[name]), None):
        raise UserError(f"--size {config.size} at --unsafe_share {config.unsafe_share} leaves no row of {empty}")
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
    questions = held_out_questions(held_out["unsafe"] + held_out["safe"], config)
    with whole_folder(folder, config.overwrite) as partial:
        for name, examples in rows.items():
            write_jsonl(partial / FILES[name], [{k: v for k, v in of.items() if k != "row"} for of in examples])
        if questions:
            write_jsonl(partial / "bbq_test.jsonl", questions)
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
