"""Answers one text, a file of texts, or lines from stdin with a base, adapter or merged model.

    python testing/infer.py --input_text "She is quick for her age."
    python testing/infer.py                                       # datasets/content_moderation/test.csv
    python testing/infer.py --input posts.csv --input_column text --base_model models/merged
    cat lines.txt | python testing/infer.py --input - --output answers.csv
    python testing/infer.py --engine endpoint --model my-adapter   # a server: OpenAI, vllm serve (recipes/vllm.md)
    python testing/infer.py --spot_threshold 0.4                  # change more; for a model trained with --prompt fill
    python testing/infer.py --base_model smollm2 --shots 3        # few-shot prompted base
    python testing/infer.py --baseline delete                     # no model: what a rewriter must beat
    python testing/infer.py --input I-CoNa.json --output I-CoNa_answers.json --prompt_style alpaca
    python testing/infer.py --cost_model models/cost --best_of 4 --temperature 0.7

Reads  a CSV, TSV, JSON or JSONL file with the texts in --input_column; or with instructions and inputs, which are
       put as they are: Alpaca rows, and the evaluation sets of Safety-Tuned LLaMAs as published
Model  --base_model, or --adapter_model on its base; with neither: models/merged, else models/adapter, else the
       embedded base (it says which)
       A model that was trained with --prompt fill also needs --spotter, made by training/train_spotter.py
       --engine endpoint or batch asks a server (OPENAI_BASE_URL, OPENAI_API_KEY); each answer is kept in
       <output>.answers.jsonl as it comes, and not paid for twice
Guard  --cost_model (of training/train_cost.py) adds the columns cost and flagged: yes above --cost_threshold. With
       --best_of N each text is written N times, and of the answers that keep the most facts the least costly is taken
Writes datasets/results/<input>_<model>.csv: every input column, and id, generated_text, status, with a spotter
       spotted_words (what it put into brackets), and <output>.run.json; --output FILE.json: parameters, inputs,
       instructions and outputs as lists, as Safety-Tuned LLaMAs published results

status is ok, truncated (the answer hit --max_new_tokens) or too_long (the prompt is over --max_prompt_tokens and was
left unanswered: nothing is cut silently); from a server also refused, filtered or failed. Finished rows are kept at
once: the same command continues after a kill.

Next: python testing/score.py --input datasets/results/<input>_<model>.csv
"""

import json
import logging
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import GenerationConfig, InferConfig
from utils.cost_model import check, weights_hash
from utils.data import (
    make_room,
    read_rewritings,
    read_table,
    require_columns,
    row_keys,
    with_ids,
    write_table,
)
from utils.helpers import UserError, as_switch, describe, parse_config, run_stage
from utils.instruction_files import instructions_of, write_lists
from utils.metrics import delete_words, removed_words
from utils.models import ModelRef, latest, model_record, spotter_weights
from utils.prompt_styles import check_style, style_record
from utils.prompts import ANSWER, check_template, template_of
from utils.records import Progress, check_output_file, file_sha256, finish_record, start_record

logger = logging.getLogger(__name__)

ALIASES = {
    "input_csv": "input",
    "max_length": "max_new_tokens",
    "lora_weights": "adapter_model",
    "output_path": "output",
    "input_path": "input",
    "single_inference": (None, "give --input_text"),
    "prompt_dictionary": (None, "see --prompt and --prompt_style"),
    "use_4bit": ("quantization", lambda value: "nf4" if as_switch(value) else "none"),
    "load_8bit": ("quantization", lambda value: "int8" if as_switch(value) else None),
    "bnb_4bit_quant_type": (None, "4-bit details are read from the run record of the adapter"),
    "bnb_4bit_compute_dtype": (None, "4-bit details are read from the run record of the adapter"),
    "use_nested_quant": (None, "4-bit details are read from the run record of the adapter"),
    "output_dir": (None, "answers go to datasets/results/, or to --output FILE.csv"),
    "auth_token": (None, "set HF_TOKEN"),
    "prompt_template_path": "prompt_style",
}


def read_input(config: InferConfig) -> tuple[pd.DataFrame, list[str], InferConfig]:
    """The rows, what is put before the model of each, and the settings, in which a file of instructions, which a user
    would say as they are, has its column."""
    written = [config.output_column, "status", "spotted_words", *(("cost", "flagged") if config.cost_model else ())]
    if config.input == "-":
        lines = [line.rstrip("\n") for line in sys.stdin]
        frame = pd.DataFrame({config.input_column: [line for line in lines if line.strip()]}).head(
            config.limit or None
        )
        if frame.empty:
            raise UserError("--input -: nothing came in on stdin")
    else:
        frame = read_table(config.input, config.limit)
    if config.input_column == params.INPUT_COLUMN not in frame and "instruction" in frame:
        texts = instructions_of(frame)
        frame = make_room(frame, ["prompt"]).assign(prompt=[str(text) for text in texts])
        config = replace(config, input_column="prompt", prompt=config.prompt or (None if config.baseline else ANSWER))
    else:
        require_columns(frame, [config.input_column], config.input, "--input_column")
        texts = list(frame[config.input_column])
    return with_ids(make_room(frame, written), config.input_column), texts, config


def baseline_answers(config: InferConfig, frame: pd.DataFrame) -> list[str]:
    """Rewritings that need no model."""
    sources = list(frame[config.input_column])
    if config.baseline == "copy":
        return sources
    if config.baseline == "reference":
        require_columns(frame, [config.reference_column], config.input, "--reference_column")
        return list(frame[config.reference_column])
    unwanted = removed_words(read_rewritings(config.train_file, config.input_column, config.reference_column))
    logger.info("deleting %d words learned from %s", len(unwanted), config.train_file)
    return [delete_words(source, unwanted) for source in sources]


def main(config: InferConfig) -> int:
    if config.cost_model:
        check(config.cost_model)
    if config.input_text is not None:
        print(answer_one(config))
        return 0
    check_style(config.prompt_style)
    frame, texts, config = read_input(config)
    name = "stdin" if config.input == "-" else Path(config.input).stem
    record = start_record(config, [] if config.input == "-" else [Path(config.input)])
    shots = f"_{config.shots}shot" if config.shots else ""
    keys = row_keys(frame, config.input_column)
    if config.baseline:
        output = output_path(config, f"{name}_{config.baseline}")
        answers = [{"text": text, "status": "ok"} for text in baseline_answers(config, frame)]
        progress = Progress(output, {"baseline": config.baseline}, config.overwrite)
        details = {"baseline": config.baseline}
    elif config.engine != "transformers":
        output = output_path(config, f"{name}_{Path(config.model).name}" + shots, config.overwrite)
        template = config.prompt or "rewrite"
        check_template(template)
        from utils.rewriting import rewrite_by_server

        found, details = rewrite_by_server(config, template, dict(zip(keys, texts, strict=True)), output)
        details |= {"model": {"name": config.model}, "prompt": template}
        answers, progress = [found[key] for key in keys], None
    else:
        ref = latest(config.base_model, config.adapter_model, config.revision)
        template = template_of(ref.record, config.prompt)
        output = output_path(config, f"{name}_{ref.label}" + shots)
        details = {"model": model_record(ref), "adapter": str(ref.adapter or ""), "prompt": template}
        if config.prompt_style:
            details["prompt_style"] = style_record(config.prompt_style)
        if config.shots:
            details["train_file"] = file_sha256(Path(config.train_file))
        if template == "fill":
            details["spotter"] = spotter_record(config)
        if config.best_of > 1:
            details["chosen_by"] = weights_hash(config.cost_model)
        shaping = [field.name for field in fields(GenerationConfig)]
        shaping += ["quantization", "shots", "seed", "best_of"]
        fingerprint = details | {key: getattr(config, key) for key in shaping} | {"column": config.input_column}
        progress = Progress(output, fingerprint, config.overwrite)
        logger.info(
            "%s answers %d rows, %d already done (%s)", ref.label, len(frame), len(progress.done), describe(config)
        )
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in progress.done}
        if missing:
            for key, answer in rewriter(config, ref, template)(missing):
                progress.add(key, **answer)
        answers = [progress.done[key] for key in keys]

    frame[config.output_column] = [answer["text"] for answer in answers]
    frame["status"] = [answer["status"] for answer in answers]
    if any("spotted" in answer for answer in answers):
        frame["spotted_words"] = [json.dumps(a.get("spotted", []), ensure_ascii=False) for a in answers]
    counts = Counter(frame["status"])
    if config.cost_model:
        from utils.guard import mark_costly

        frame[["cost", "flagged"]] = mark_costly(
            list(frame[config.output_column]), config.cost_model, config.cost_threshold
        )
        details["flagged"] = int((frame["flagged"] == "yes").sum())
    finish_record(record, output, **details, counts=dict(counts))  # before the table: no table is without its record
    if output.suffix.lower() == ".json":
        write_lists(output, texts, list(frame[config.output_column]), parameters(config, details))
    else:
        write_table(frame, output)
    if progress:
        progress.finish()
    return report(output, counts)


def parameters(config: InferConfig, details: dict) -> dict:
    """How the answers came about, for results in the published form."""
    model = {"model": details.get("model", {}).get("name"), "lora_weights": details.get("adapter", "")}
    style = {"prompt_template": config.prompt_style, "load_8bit": config.quantization == "int8"}
    return model | style | {field.name: getattr(config, field.name) for field in fields(GenerationConfig)}


def rewriter(config: InferConfig, ref: ModelRef, template: str):
    from utils.rewriting import make_rewriter

    if config.best_of == 1:
        return make_rewriter(config, ref, template)
    from utils.guard import best_of

    return best_of(make_rewriter(config, ref, template), config.best_of, config.cost_model)


def report(output: Path, counts: Counter) -> int:
    """Says how many rows have which status. Returns the exit code: 1 where too many failed."""
    rows = counts.total()
    print(f"{output}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()) + f" of {rows} rows")
    return 1 if counts["failed"] > params.MAX_FAILED * rows else 0


def answer_one(config: InferConfig) -> str:
    if config.baseline or config.engine != "transformers":
        flag = "--baseline" if config.baseline else f"--engine {config.engine}"
        raise UserError(f"{flag} needs a file: leave --input_text out")
    ref = latest(config.base_model, config.adapter_model, config.revision)
    template = template_of(ref.record, config.prompt)
    logger.info("%s answers", ref.label)
    if template == "fill":
        spotter_record(config)  # a missing spotter shows before anything is loaded
    _, answer = next(rewriter(config, ref, template)({"--input_text": config.input_text}))
    if answer["status"] == "too_long":
        raise UserError(f"--input_text is longer than --max_prompt_tokens {config.max_prompt_tokens}")
    if answer["status"] == "truncated":
        logger.warning("the answer was cut off at --max_new_tokens %d", config.max_new_tokens)
    if "spotted" in answer:
        logger.info("changed: %s", "; ".join(answer["spotted"]) or "nothing, the text was found fair")
    if config.cost_model:
        from utils.guard import mark_costly

        row = mark_costly([answer["text"]], config.cost_model, config.cost_threshold).iloc[0]
        logger.info("cost %.3f, flagged: %s", row["cost"], row["flagged"])
    return answer["text"]


def spotter_record(config: InferConfig) -> dict:
    """Which spotter marks the texts, and from where on. Raises UserError where there is none."""
    weights = spotter_weights(config.spotter)
    return {"sha256": file_sha256(weights), "threshold": config.spot_threshold, "spread": config.spot_spread}


def output_path(config: InferConfig, stem: str, overwrite: bool = True) -> Path:
    """Where the answers go. An earlier output is a matter of Progress, where there is one."""
    path = Path(config.output) if config.output else params.RESULTS_DIR / f"{stem}.csv"
    check_output_file(path, [config.input], overwrite)
    return path


if __name__ == "__main__":
    run_stage(main, parse_config(InferConfig, ALIASES))
