"""Probes a model for social bias: BBQ, StereoSet, CrowS-Pairs, WinoBias, by the likelihood of given answers.

    python testing/probe_bias.py                                        # the embedded probes, on what was trained last
    python testing/probe_bias.py --base_model smollm2 --input crows_pairs.csv bbq/*.jsonl
    python testing/probe_bias.py --adapter_model models/adapter --input dev.json             # StereoSet
    python testing/probe_bias.py --base_model models/merged --input bbq/Age.jsonl --answers generation

Reads  files as they were published, told apart by their columns; for BBQ also its additional_metadata.csv
       (--bbq_metadata), without which the stereotyped person is read off the groups in the questions
Writes <output>/<input>_<model>.probe.csv: every item, the log-likelihood of each answer, and what it comes to;
       <output>/<input>_<model>.probe.json: the figures by group, each with n and a 95 % interval

What the figures mean is printed with them; formulas are in utils/bbq.py, utils/stereoset.py, utils/sentence_pairs.py.
A bias score of a model that guesses is near "no bias": read it beside the accuracy, or LMS. BBQ's questions are put as
plain text ("Q: ... A:"), as in lm-evaluation-harness; --chat puts them as a user's turn. --all_unknowns lets every
wording of "unknown" compete, as the harness does, since a model may prefer one wording to another. With --answers
generation the model is shown the three answers and writes one; what names none of them, or two, is counted as
unreadable and never as an answer. Models are 16-bit here as in every stage; --compute_dtype float32 is exact.

A run that was killed goes on with the same command, and files that are finished are not asked again; --overwrite
probes anew.

Next: the same with another --base_model or --adapter_model, before and after training
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import bbq, params
from utils.configs import GenerationConfig, ProbeConfig
from utils.data import read_table, write_table
from utils.helpers import UserError, describe, parse_config, run_stage
from utils.models import ModelRef, latest, model_record
from utils.probes import Item, by_group, probe_of
from utils.prompt_styles import style_record
from utils.records import Progress, changes, file_sha256, finish_record, read_json, start_record, write_json
from utils.report import markdown_table, with_ends
from utils.stats import Sampling

logger = logging.getLogger(__name__)

SHAPING = (
    "answers",
    "chat",
    "instruction",
    "all_unknowns",
    "quantization",
    "compute_dtype",
    "limit",
)  # settings of what is asked
SAID = ("nats", "tokens", "said")  # columns of the output that hold what the model said
Ask = Callable[[list[Item]], Iterator[tuple[int, dict]]]


def probe_files(config: ProbeConfig) -> dict[Path, ModuleType]:
    """The files to probe with, and which probe each of them holds."""
    paths = [Path(name) for name in config.input] or list(params.PROBE_FILES)
    if len({path.stem for path in paths}) < len(paths):
        raise UserError("--input: two files have the same name, and would write the same results: rename one")
    probes = {path: probe_of(path) for path in paths}
    for path, probe in probes.items():
        if probe is not bbq and (config.answers == "generation" or config.chat):
            flag = "--chat" if config.chat else "--answers generation"
            raise UserError(f"{flag}: {path} has nothing to answer, its sentences are compared")
    return probes


def asker(ref: ModelRef, config: ProbeConfig) -> Ask:
    """A function that gives numbers of items and what the model says of them. The model is loaded at the first one."""

    @cache
    def load():
        from utils.loading import load_model, load_tokenizer

        model = load_model(ref, config.quantization, compute_dtype=config.compute_dtype)
        chat = config.chat or config.answers == "generation"
        return model, load_tokenizer(ref, chat=chat, style=config.prompt_style)

    def by_likelihood(items: list[Item]) -> Iterator[tuple[int, dict]]:
        from utils.options import as_turn, option_likelihoods

        model, tokenizer = load()
        questions = [(item.context, item.options) for item in items]
        if config.chat:
            questions = [as_turn(question, tokenizer) for question in questions]
        for number, found in option_likelihoods(model, tokenizer, questions, special=not config.chat):
            yield number, {"nats": found.nats.round(5).tolist(), "tokens": found.tokens.tolist()}

    def by_generation(items: list[Item]) -> Iterator[tuple[int, dict]]:
        from utils.generation import generate

        model, tokenizer = load()
        most = params.PROBE_REASON_TOKENS if config.instruction else params.PROBE_ANSWER_TOKENS
        settings = GenerationConfig(max_new_tokens=most)
        chats = [bbq.choose_messages(item, config.instruction) for item in items]
        for answer in generate(model, tokenizer, chats, settings):
            yield answer.index, {"said": answer.text}

    return by_likelihood if config.answers == "likelihood" else by_generation


def outcomes(items: list[Item], said: list[dict], probe: ModuleType) -> list[dict]:
    """What each item comes to, from what the model said of it."""
    if "said" in said[0]:
        return [bbq.outcome_of_text(item, answer["said"]) for item, answer in zip(items, said, strict=True)]
    likelihoods = [(np.array(answer["nats"], dtype=float), np.array(answer["tokens"])) for answer in said]
    return [probe.outcome(item, *found) for item, found in zip(items, likelihoods, strict=True)]


def probe_one(
    path: Path, items: list[Item], probe: ModuleType, ref: ModelRef, ask: Ask, config: ProbeConfig
) -> list[dict]:
    """Probes with the items of a file, writes what came out, and prints the figures. Returns what each came to."""
    record = start_record(config, [path])
    output = Path(config.output) / f"{path.stem}_{ref.label}.probe.csv"
    settings = {name: getattr(config, name) for name in SHAPING} | {"input": file_sha256(path)}
    settings |= {"model": model_record(ref), "prompt_style": style_record(config.prompt_style)}
    if config.overwrite:
        output.unlink(missing_ok=True)  # so that a run that is killed now goes on without --overwrite
    said, progress = finished(output, settings), None
    if said is None:
        progress = Progress(output, settings, config.overwrite)
        missing = [n for n in range(len(items)) if str(n) not in progress.done]
        logger.info("%s: %d of %d items to ask (%s)", path, len(missing), len(items), describe(config))
        for number, answer in ask([items[n] for n in missing]) if missing else ():
            progress.add(str(missing[number]), **answer)
        said = [{k: v for k, v in progress.done[str(n)].items() if k != "id"} for n in range(len(items))]
    rows = outcomes(items, said, probe)

    found = figures(items, rows, probe, config)
    summary = output.with_suffix(".json")
    summary.unlink(missing_ok=True)  # it is whole only with its table
    finish_record(record, output, model=settings["model"], counts={probe.UNIT: len(items)})
    frame = pd.DataFrame([{"id": item.id, "groups": "; ".join(item.groups)} for item in items])
    kept = pd.DataFrame([{key: json.dumps(value) for key, value in answer.items()} for answer in said])
    write_table(pd.concat([frame, kept, pd.DataFrame(rows)], axis=1), output)
    write_json(summary, {"figures": found, "measures": probe.MEASURES, "settings": settings})
    if progress:
        progress.finish()
    scored = sum(row["scored"] for row in rows)
    print(f"{path}: {ref.label}, {scored} of {len(items)} {probe.UNIT} answered\n{table(found, probe)}")
    print("\n".join(f"{name}: {meaning}" for name, meaning in probe.MEASURES.items()) + "\n")
    return rows


def finished(output: Path, settings: dict) -> list[dict] | None:
    """What the model said of each item in an earlier run with the same settings; None where there was none."""
    summary = output.with_suffix(".json")
    if not (output.is_file() and summary.is_file()) or changes(read_json(summary)["settings"], settings):
        return None
    logger.info("%s: taken from an earlier run", output)
    frame = read_table(output, longest=params.MAX_ANSWER_CHARS)
    return [{name: json.loads(row[name]) for name in SAID if name in row} for row in frame.to_dict("records")]


def figures(items: list[Item], rows: list[dict], probe: ModuleType, config: ProbeConfig) -> dict[str, dict]:
    sampling = Sampling(params.CONFIDENCE, params.BOOTSTRAP_RESAMPLES, config.seed)
    return {name: probe.figures(of, sampling) for name, of in by_group(items, rows).items()}


def table(found: dict[str, dict], probe: ModuleType) -> str:
    lines = [[name, *(with_ends(of[measure]) for measure in probe.MEASURES)] for name, of in found.items()]
    return markdown_table(["group", *probe.MEASURES], lines)


def main(config: ProbeConfig) -> None:
    probes = probe_files(config)
    ref = latest(config.base_model, config.adapter_model, config.revision)
    ask = asker(ref, config)
    items = {path: probe.read(path, config) for path, probe in probes.items()}  # a mistake in the last one shows now
    rows = {path: probe_one(path, items[path], probe, ref, ask, config) for path, probe in probes.items()}
    of_bbq = [path for path, probe in probes.items() if probe is bbq]
    if len(of_bbq) > 1:  # it was published in one file for each category
        found = figures(
            sum((items[path] for path in of_bbq), []), sum((rows[path] for path in of_bbq), []), bbq, config
        )
        write_json(Path(config.output) / f"bbq_{ref.label}.probe.json", {"figures": found, "measures": bbq.MEASURES})
        print(f"BBQ, {len(of_bbq)} files\n{table(found, bbq)}")


if __name__ == "__main__":
    run_stage(main, parse_config(ProbeConfig))
