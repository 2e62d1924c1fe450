"""Answers one text, a file of texts, or lines from stdin with a base, adapter or merged model.

    python testing/infer.py --input_text "She is quick for her age."
    python testing/infer.py                                       # datasets/content_moderation/test.csv
    python testing/infer.py --input posts.csv --input_column text --base_model models/merged
    cat lines.txt | python testing/infer.py --input - --output answers.csv
    python testing/infer.py --copy_bonus 4 --num_beams 4          # edits instead of paraphrases (utils/decoding.py)
    python testing/infer.py --base_model smollm2 --shots 3        # few-shot prompted base
    python testing/infer.py --baseline delete                     # no model: what a rewriter must beat

Reads  a CSV, TSV, JSON or JSONL file with the texts in --input_column
Model  --base_model, or --adapter_model on its base; with neither: models/merged, else models/adapter, else the
       embedded base (it says which)
Writes datasets/results/<input>_<model>.csv: every input column, and id, generated_text, status
       and <output>.run.json

status is ok, truncated (the answer hit --max_new_tokens) or too_long (the prompt is over --max_prompt_tokens and was
left unanswered: nothing is cut silently). Finished rows are kept at once: the same command continues after a kill.

Next: python testing/score.py --input datasets/results/<input>_<model>.csv
"""

import logging
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import GenerationConfig, InferConfig
from utils.data import content_id, make_room, read_pairs, read_table, require_columns, row_keys, with_ids, write_table
from utils.helpers import UserError, as_switch, describe, parse_config, run_stage, set_seed
from utils.metrics import delete_words, removed_words
from utils.models import ModelRef, load_model, load_tokenizer, model_record, resolve
from utils.prompts import REWRITE_TEMPLATES, rewrite_messages
from utils.records import Progress, file_sha256, finish_record, start_record

logger = logging.getLogger(__name__)

ALIASES = {
    "input_csv": "input",
    "max_length": "max_new_tokens",
    "lora_weights": "adapter_model",
    "output_path": "output",
    "input_path": "input",
    "single_inference": (None, "give --input_text"),
    "prompt_dictionary": (None, "see --prompt"),
    "use_4bit": ("quantization", lambda value: "nf4" if as_switch(value) else "none"),
    "load_8bit": ("quantization", lambda value: "int8" if as_switch(value) else None),
    "bnb_4bit_quant_type": (None, "4-bit details are read from the run record of the adapter"),
    "bnb_4bit_compute_dtype": (None, "4-bit details are read from the run record of the adapter"),
    "use_nested_quant": (None, "4-bit details are read from the run record of the adapter"),
    "output_dir": (None, "answers go to datasets/results/, or to --output FILE.csv"),
    "auth_token": (None, "set HF_TOKEN"),
    "prompt_template_path": (None, "see --prompt"),
    "top_k": (None, "see --top_p"),
}


def choose_model(config: InferConfig) -> ModelRef:
    """The model asked for; else the newest result of training, else the embedded base."""
    if config.base_model or config.adapter_model:
        return resolve(config.base_model, config.adapter_model, config.revision)
    if params.MERGED_DIR.is_dir():
        merged = resolve(str(params.MERGED_DIR))
        adapter = params.ADAPTER_DIR / "adapter_model.safetensors"
        if adapter.is_file() and file_sha256(adapter) != merged.record.get("adapter_sha256"):
            logger.warning("%s was not made from the present %s: merge again", params.MERGED_DIR, params.ADAPTER_DIR)
        return merged
    if params.ADAPTER_DIR.is_dir():
        return resolve(None, params.ADAPTER_DIR)
    return resolve(None)


def read_input(config: InferConfig) -> pd.DataFrame:
    if config.input == "-":
        lines = [line.rstrip("\n") for line in sys.stdin]
        frame = pd.DataFrame({config.input_column: [line for line in lines if line.strip()]}).head(
            config.limit or None
        )
        if frame.empty:
            raise UserError("--input -: nothing came in on stdin")
    else:
        frame = read_table(config.input, config.limit)
        require_columns(frame, [config.input_column], config.input, "--input_column")
    return with_ids(make_room(frame, [config.output_column, "status"]), config.input_column)


def worked_examples(config: InferConfig) -> list[tuple[str, str]]:
    """Pairs for the prompt: short ones, biased and neutral, chosen by seed."""
    if not config.shots:
        return []
    import random

    short = [pair for pair in training_pairs(config) if len(pair[0]) < 200]
    if len(short) < config.shots:
        raise UserError(f"--shots {config.shots}: {config.train_file} has {len(short)} pairs under 200 characters")
    return random.Random(config.seed).sample(short, config.shots)


def baseline_answers(config: InferConfig, frame: pd.DataFrame) -> list[str]:
    """Rewritings that need no model."""
    sources = list(frame[config.input_column])
    if config.baseline == "copy":
        return sources
    if config.baseline == "reference":
        require_columns(frame, [params.REFERENCE_COLUMN], config.input, "--baseline reference")
        return list(frame[params.REFERENCE_COLUMN])
    unwanted = removed_words(training_pairs(config))
    return [delete_words(source, unwanted) for source in sources]


def copy_processors(config: InferConfig, tokenizer, texts: list[str]) -> list | None:
    """One decoding processor per text that prefers its words; None with --copy_bonus 0."""
    if not config.copy_bonus:
        return None
    from utils.decoding import copy_bonus, keep_rates

    rates = keep_rates(training_pairs(config))
    return [copy_bonus(tokenizer, text, rates, config.copy_bonus, tokenizer.eos_token_id) for text in texts]


def training_pairs(config: InferConfig) -> list[tuple[str, str]]:
    pairs = read_pairs(config.train_file, params.INPUT_COLUMN, params.REFERENCE_COLUMN)
    return [(pair["prompt"], pair["completion"]) for pair in pairs]


def answer_missing(
    config: InferConfig, ref: ModelRef, template: str, rows: list[tuple[str, str]], progress: Progress
) -> None:
    """Generates what is missing; each batch is kept as soon as it is done."""
    from utils.generation import generate

    set_seed(config.seed)
    examples = worked_examples(config)  # a wrong --train_file shows before the model is loaded
    tokenizer, model = load_tokenizer(ref), load_model(ref, config.quantization)
    chats = [rewrite_messages(text, template, examples) for _, text in rows]
    texts = [text for _, text in rows]
    unwanted = texts if config.must_change else None
    for answer in generate(model, tokenizer, chats, config, copy_processors(config, tokenizer, texts), unwanted):
        progress.add(rows[answer.index][0], text=answer.text, status=answer.status, tokens=answer.tokens)


def main(config: InferConfig) -> None:
    if config.input_text is not None:
        print(answer_one(config))
        return
    frame = read_input(config)
    name = "stdin" if config.input == "-" else Path(config.input).stem
    record = start_record(config, [] if config.input == "-" else [Path(config.input)])
    texts = list(frame[config.input_column])
    keys = row_keys(frame, config.input_column)
    if config.baseline:
        output = output_path(config, f"{name}_{config.baseline}")
        answers = [{"text": text, "status": "ok"} for text in baseline_answers(config, frame)]
        progress = Progress(output, {"baseline": config.baseline}, config.overwrite)
        details = {"baseline": config.baseline}
    else:
        ref = choose_model(config)
        template = choose_template(config, ref)
        output = output_path(config, f"{name}_{ref.label}" + (f"_{config.shots}shot" if config.shots else ""))
        details = {"model": model_record(ref), "adapter": str(ref.adapter or ""), "prompt": template}
        if config.shots or config.copy_bonus:
            details["train_file"] = content_id(*map(str, training_pairs(config)))
        shaping = [
            *(f.name for f in fields(GenerationConfig)),
            "quantization",
            "shots",
            "copy_bonus",
            "must_change",
            "seed",
        ]
        fingerprint = details | {key: getattr(config, key) for key in shaping} | {"column": config.input_column}
        progress = Progress(output, fingerprint, config.overwrite)
        logger.info(
            "%s answers %d rows, %d already done (%s)", ref.label, len(frame), len(progress.done), describe(config)
        )
        missing = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in progress.done]
        if missing:
            answer_missing(config, ref, template, missing, progress)
        answers = [progress.done[key] for key in keys]

    frame[config.output_column] = [answer["text"] for answer in answers]
    frame["status"] = [answer["status"] for answer in answers]
    write_table(frame, output)
    counts = Counter(frame["status"])
    finish_record(record, output, **details, counts=dict(counts))
    progress.finish()
    print(f"{output}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()) + f" of {len(frame)} rows")


def answer_one(config: InferConfig) -> str:
    from utils.generation import generate

    if config.baseline:
        raise UserError("--baseline needs a file: leave --input_text out")
    ref = choose_model(config)
    logger.info("%s answers", ref.label)
    set_seed(config.seed)
    chat = rewrite_messages(config.input_text, choose_template(config, ref), worked_examples(config))
    tokenizer = load_tokenizer(ref)
    processors = copy_processors(config, tokenizer, [config.input_text])
    unwanted = [config.input_text] if config.must_change else None
    answer = next(generate(load_model(ref, config.quantization), tokenizer, [chat], config, processors, unwanted))
    if answer.status == "too_long":
        raise UserError(f"--input_text has {answer.prompt_tokens} tokens: raise --max_prompt_tokens")
    if answer.status == "truncated":
        logger.warning("the answer was cut off at --max_new_tokens %d", config.max_new_tokens)
    return answer.text


def choose_template(config: InferConfig, ref: ModelRef) -> str:
    template = config.prompt or ref.record.get("prompt") or "rewrite"
    if template not in REWRITE_TEMPLATES:
        raise UserError(f"--prompt {template}: there are {', '.join(REWRITE_TEMPLATES)}")
    return template


def output_path(config: InferConfig, stem: str) -> Path:
    return Path(config.output) if config.output else params.RESULTS_DIR / f"{stem}.csv"


if __name__ == "__main__":
    run_stage(main, parse_config(InferConfig, ALIASES))
