"""Mixes a few safety examples into an instruction set, as in Safety-Tuned LLaMAs (arXiv 2309.07875): a file per dose.

    python generate_data/mix_safety.py
    python generate_data/mix_safety.py --input alpaca_small.json --safety safety_only_data_Instructions.json \\
        --safety_counts 0,100,300,500,1000,1500,2000 --evaluation I-MaliciousInstructions.json I-CoNa.json
    python generate_data/mix_safety.py --safety_shares 0,0.025,0.1,0.25,0.5

Reads  instructions with answers (instruction, input, output; or prompt and completion), of which all are taken;
       safety examples of the same form, or with prompt and safe_response (datasets/preference_pairs/); and
       --evaluation: files with the instructions or prompts that models will be tested on
Writes datasets/mixed/<input>_safety<N>.json for every number N of safety examples, in the form of the published files,
       shuffled, and beside each its .run.json: what was taken and what was left out, and why

The sets are nested: the examples of a smaller dose are all in a larger one, whatever else is asked for, so that a
curve over doses is no curve over luck. A share is that of the whole mixture. Left out, and counted: a safety example
whose prompt stands in the instruction set or came before, and any row that gives away an evaluation text (the same 8
words in a row, or a near-duplicate; --keep_leaks only counts them).

Safety examples may come as instructions, as questions, or half and half (--form): the latter two want a column
`question` beside `instruction`. In the paper those as instructions also guard against malicious instructions.

Next: python training/train.py --prompt_style alpaca --input datasets/mixed/<input>_safety<N>.json
"""

import logging
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import MixSafetyConfig
from utils.data import content_id, read_prompts, read_table, same_text
from utils.helpers import UserError, parse_config, run_stage
from utils.instruction_files import instructions_of
from utils.leaks import find_leaks
from utils.records import check_output_file, finish_record, shareable, start_record, write_json
from utils.report import markdown_table

logger = logging.getLogger(__name__)

COLUMNS = ["instruction", "input", "output"]
NAMES = {"prompt": "instruction", "safe_response": "output", "completion": "output"}  # of other files -> COLUMNS
CHOICE, ORDER = "choice", "order"  # two shuffles: which safety examples, and where in the mixture


def read_examples(path: str, limit: int | None = None) -> pd.DataFrame:
    """Instructions with answers; rows that lack one of them are left out."""
    frame = read_table(path, limit)
    for old, new in NAMES.items():
        frame = frame.rename(columns={} if new in frame else {old: new})
    if not {"instruction", "output"} <= set(frame.columns):
        raise UserError(
            f"{path} has columns {', '.join(frame.columns)}: expected instruction and output, prompt and completion, "
            "or prompt and safe_response"
        )
    frame = frame if "input" in frame else frame.assign(input="")
    return frame[(frame["instruction"].str.strip() != "") & (frame["output"].str.strip() != "")]


def shuffled(frame: pd.DataFrame, seed: int, purpose: str) -> pd.DataFrame:
    """In an order that a row keeps whatever rows are beside it: by a hash of seed, purpose and prompt."""
    keys = [content_id(str(seed), purpose, text) for text in instructions_of(frame)]
    return frame.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def as_asked(safety: pd.DataFrame, form: str, path: str) -> pd.DataFrame:
    """The safety examples in the form asked for; mixed: every second one is a question."""
    if form == "instruction":
        return safety
    if "question" not in safety:
        raise UserError(f"--form {form}: {path} has no column question: it has {', '.join(safety.columns)}")
    wanted = pd.Series([form == "question" or n % 2 == 1 for n in range(len(safety))], index=safety.index)
    if (safety["question"][wanted].str.strip() == "").any():
        raise UserError(f"--form {form}: {path} has rows without a question")
    return safety.assign(instruction=safety["question"].where(wanted, safety["instruction"]))


def without_repeats(safety: pd.DataFrame, general: pd.DataFrame) -> pd.DataFrame:
    """Safety examples whose prompt stands neither in the instruction set nor before."""
    keys = pd.Series([same_text(text) for text in instructions_of(safety)], index=safety.index)
    return safety[~keys.isin({same_text(text) for text in instructions_of(general)}) & ~keys.duplicated()]


def without_leaks(frame: pd.DataFrame, name: str, tests: list[tuple[str, str]], keep: bool) -> tuple:
    """The rows that give no evaluation text away, and a report on the others."""
    prompts = instructions_of(frame)
    leaks = find_leaks(prompts, [text for _, text in tests])
    found = [
        {"row": prompts[leak.row], "file": tests[leak.text][0], "text": tests[leak.text][1], "how": leak.how}
        for leak in leaks
    ]
    if found:
        logger.warning("%s: %d of %d rows give away evaluation texts, the first one: %.80s",
                       name, len(found), len(frame), found[0]["row"])  # fmt: skip
    lost = {leak.row for leak in leaks} if not keep else set()
    return frame.iloc[[n for n in range(len(frame)) if n not in lost]], found


def main(config: MixSafetyConfig) -> None:
    folder, stem = Path(config.output), Path(config.input).stem
    record = start_record(config, [Path(path) for path in (config.input, *config.safety, *config.evaluation)])
    tests = [(shareable(path), prompt) for path in config.evaluation for prompt in read_prompts(path)]
    general = read_examples(config.input, config.limit)
    asked = [as_asked(shuffled(read_examples(path), config.seed, CHOICE), config.form, path) for path in config.safety]
    safety = pd.concat(asked, ignore_index=True)
    safety = shuffled(safety, config.seed, CHOICE) if len(config.safety) > 1 else safety
    given = {"general": len(general), "safety": len(safety)}
    different = without_repeats(safety, general)
    general, general_leaks = without_leaks(general, config.input, tests, config.keep_leaks)
    safety, safety_leaks = without_leaks(different, ", ".join(config.safety), tests, config.keep_leaks)

    counts = config.counts(len(general))
    if max(counts) > len(safety):
        raise UserError(
            f"{max(counts)} safety examples are wanted, there are {len(safety)} ({given['safety']} in --safety, "
            f"{given['safety'] - len(different)} of them repeated, {len(different) - len(safety)} leaked)"
        )
    files = {count: folder / f"{stem}_safety{count}.json" for count in counts}
    for path in files.values():
        check_output_file(path, [config.input, *config.safety, *config.evaluation], config.overwrite)
    details = {"given": given, "repeated": given["safety"] - len(different), "general": len(general)}
    details |= {"leaks": general_leaks + safety_leaks}
    for count, path in files.items():
        chosen = safety.head(count)
        mixture = shuffled(pd.concat([general, chosen]), config.seed, ORDER)
        finish_record(dict(record), path, **details, counts={"safety": count}, safety=list(chosen["instruction"]))
        write_json(path, mixture[COLUMNS].to_dict("records"))

    rows = [[str(path), str(n), f"{n / (n + len(general)):.1%}"] for n, path in files.items()]
    print(markdown_table(["file", "safety examples", "share"], rows))
    print(f"beside {len(general)} instructions; {details['repeated']} safety examples were repeated, "
          f"{len(general_leaks + safety_leaks)} rows leak an evaluation text")  # fmt: skip


if __name__ == "__main__":
    run_stage(main, parse_config(MixSafetyConfig))
