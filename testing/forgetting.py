"""What does a model forget of its training rows when it is trained further? (Learning and Forgetting Unsafe Examples)

    python testing/forgetting.py --before models/noisy_merged --after models/safe
    python testing/forgetting.py --before models/noisy_merged --after models/safe/step-*      # a curve
    python testing/forgetting.py --before models/noisy_merged --after models/safe --signal likelihood    # no answers

Reads  datasets/noisy/noisy.jsonl, or other rows that a model was trained on (instruction, input, output; or prompt and
       completion), and the model right after that training and later ones: folders of models or adapters
Writes datasets/results/forgetting.csv: for each row and model the greedy answer, its exact match and ROUGE-1 with the
       learned answer, the likelihood of that, and how much of each was forgotten (utils/forgetting.py);
       .summary.json and .png beside it: rates by polarity and by source with intervals, curves over the models

Rates are shown by --group_column (default: polarity), for the published signal (ROUGE-1) and for the cheap one, the
likelihood, with how well the two agree. What was not learned cannot be forgotten: where little of it is recalled
before, that is said. Measured rows are kept at once: the same command continues after a kill.

Next: python generate_data/filter_forgotten.py
"""

import logging
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import ForgettingConfig, GenerationConfig
from utils.data import content_id, require_columns, write_table
from utils.forgetting import BEFORE, COLUMNS, agreement, draw, read_learned, summary, with_rates
from utils.helpers import UserError, as_switch, parse_config, run_stage
from utils.metrics import recalled
from utils.models import ModelRef, model_record, of_folder
from utils.prompt_styles import style_record
from utils.records import Progress, check_output_file, finish_record, read_json, start_record, write_json
from utils.report import markdown_table, with_ends
from utils.stats import Sampling

logger = logging.getLogger(__name__)

# names that the train_eval.py of arXiv 2312.12736 used -> ours
ALIASES = {
    "eval_path": "input",
    "eval_output_path": "output",
    "load_state_path": "after",
    "eval": (None, "this script evaluates"),
    "eval_em_rouge": (None, "both are always measured"),
    "eval_ppl": (None, "the likelihood is always measured; --signal likelihood measures nothing else"),
    "load_8bit": ("quantization", lambda value: "int8" if as_switch(value) else None),
    "train": (None, "training/train.py trains"),
    "load_state": (None, "name the models with --before and --after"),
    "model": (None, "name the models with --before and --after"),
    "batch_size": (None, "see --batch_tokens"),
    "use_instr": (None, "see --prompt_style"),
    "self_correct": (None, "see recipes/interleave.py --strategies"),
}
OF_TRAINING = (
    "logs_dir train_path save_state save_state_path checkpoint_dir resume_from_checkpoint epoch lr max_step save_step "
    "eval_step gradient_accumulation_steps warm_up_ep replay freeze_tune unfreeze_last_mlp"
)
ALIASES |= dict.fromkeys(OF_TRAINING.split(), (None, "training/train.py trains"))


def steps_of(ref: ModelRef) -> int | None:
    """After how many steps of its last training a model is this one, as its folder says."""
    folder = Path(ref.adapter or ref.path)
    if named := re.fullmatch(r"step-(\d+)", folder.name):
        return int(named[1])
    metrics = folder / "metrics.json"
    return read_json(metrics)["best_step"] if metrics.is_file() else None


def keys_of(frame: pd.DataFrame) -> list[str]:
    """What a measured row is remembered by, so that an edited one is not taken for done."""
    return [content_id(*map(str, row)) for row in zip(frame["id"], frame["prompt"], frame["completion"], strict=True)]


def measure(config: ForgettingConfig, ref: ModelRef, name: str, frame: pd.DataFrame, progress: Progress) -> None:
    """Adds what is missing of a model: its answers, and the likelihood of the learned ones."""
    from utils.generation import generate, seed_of
    from utils.loading import load_model, load_tokenizer
    from utils.options import as_turn, option_likelihoods
    from utils.prompts import ANSWER, rewrite_messages

    keys = keys_of(frame)
    missing = {signal: [n for n, key in enumerate(keys) if f"{name} {signal} {key}" not in progress.done]
               for signal in config.measured()}  # fmt: skip
    if not any(missing.values()):
        return
    model, tokenizer = load_model(ref, config.quantization), load_tokenizer(ref, style=config.prompt_style)
    prompts, learned = list(frame["prompt"]), list(frame["completion"])
    if rows := missing.get("likelihood"):
        turns = [as_turn((prompts[n], (learned[n],)), tokenizer) for n in rows]
        for n, (nats, tokens) in option_likelihoods(model, tokenizer, turns, special=False):
            value = None if np.isnan(nats[0]) else float(np.exp(nats[0] / tokens[0]))
            progress.add(f"{name} likelihood {keys[rows[n]]}", value=value)
    if rows := missing.get("text"):
        chats = [rewrite_messages(prompts[n], ANSWER, []) for n in rows]
        for answer in generate(model, tokenizer, chats, config, seeds=[seed_of(config.seed, keys[n]) for n in rows]):
            text = None if answer.status == "too_long" else answer.text
            progress.add(f"{name} text {keys[rows[answer.index]]}", value=text)


def results(config: ForgettingConfig, frame: pd.DataFrame, steps: dict[str, int], done: dict) -> pd.DataFrame:
    """One row for each model and each example, as written."""
    keys, found = keys_of(frame), []
    for model, step in steps.items():
        for key, row in zip(keys, frame.to_dict("records"), strict=True):
            text, likelihood = (done.get(f"{model} {kind} {key}", {}).get("value") for kind in ("text", "likelihood"))
            em, rouge1 = (None, None) if text is None else recalled(text, row["completion"])
            about = {name: row.get(name, "") for name in ("id", "polarity", "source", config.group_column)}
            found.append(about | {"model": model, "step": step, "answer": text, "rouge1": rouge1, "em": em,
                                  "likelihood": likelihood})  # fmt: skip
    table = pd.DataFrame(found).astype(dict.fromkeys(("rouge1", "em", "likelihood"), float))
    return with_rates(table)[list(dict.fromkeys([*COLUMNS, config.group_column]))]


def named(config: ForgettingConfig) -> tuple[dict[str, ModelRef], dict[str, int], str]:
    """The models by name, the step of each, the earliest first (a shell puts step-100 before step-50), and what these
    steps are: of training, or where those of one model are unknown places in the order given."""
    refs = {BEFORE: of_folder(config.before, "--before")}
    for given in config.after:
        name = Path(given).name
        if name in refs:
            name = f"{Path(given).parent.name}/{name}"
        if name in refs:
            raise UserError(f"--after: two of them are called {name}: rename a folder")
        refs[name] = of_folder(given, "--after")
    steps = {name: steps_of(ref) if name != BEFORE else 0 for name, ref in refs.items()}
    if None in steps.values():
        return refs, {name: number for number, name in enumerate(steps)}, "models in the order given"
    return refs, dict(sorted(steps.items(), key=lambda item: item[1])), "steps of training afterwards"


def main(config: ForgettingConfig) -> None:
    output = Path(config.output)
    check_output_file(output, [config.input], overwrite=True)  # an earlier output is a matter of Progress
    frame = read_learned(config.input, config.limit)
    require_columns(frame, [config.group_column] if config.group_column != "polarity" else [], config.input,
                    "--group_column")  # fmt: skip
    refs, steps, along = named(config)
    record = start_record(config, [Path(config.input)])
    identities = {name: model_record(ref) for name, ref in refs.items()}
    shaping = {name: getattr(config, name) for name in ("quantization", "seed")}
    shaping |= {of.name: getattr(config, of.name) for of in fields(GenerationConfig)}
    shaping["prompt_style"] = style_record(config.prompt_style)
    progress = Progress(output, {"models": identities} | shaping, config.overwrite)
    for name, ref in refs.items():
        logger.info("%s: %s", name, ref.label)
        measure(config, ref, name, frame, progress)

    table = results(config, frame, steps, progress.done)
    sampling = Sampling(config.confidence, config.resamples, config.seed)
    by = dict.fromkeys([config.group_column, "source"])
    found = {column: summary(table, column, sampling) for column in by if (table[column] != "").any()}
    found = found or {"model": summary(table.assign(all="all"), "all", sampling)}
    agreed = {name: agreement(table[table["model"] == name]) for name in steps if name != BEFORE}
    write_json(output.with_suffix(".summary.json"), found | {"agreement": agreed})
    column, entries = next(iter(found.items()))
    finish_record(record, output, models=identities, counts={"rows": len(frame), "models": len(refs)})
    write_table(table, output)
    progress.finish()
    draw(entries, column if column != "model" else "all", along, output.with_suffix(".png"))
    print(describe(found, agreed))
    learned = table.loc[table["model"] == BEFORE, "rouge1"].mean()
    if learned < params.LEARNED_LEAST:
        logger.warning("ROUGE-1 of what was to be learned is only %.2f, and what was not learned cannot be forgotten: "
                       "train on these rows for longer", learned)  # fmt: skip
    print(f"\n{output}; next: python generate_data/filter_forgotten.py --forgetting {output}")


def describe(found: dict[str, list[dict]], agreed: dict[str, dict]) -> str:
    """The tables, and how well the signals agree."""
    parts = []
    for column, entries in found.items():
        names = list(dict.fromkeys(["model", column]))  # of rows without a group only the models
        shown = ("rouge1", "forgotten_rouge1", "likelihood", "forgotten_likelihood")
        rows = [
            [*(str(entry[name]) for name in names), str(entry["rows"]), *(with_ends(entry[name]) for name in shown)]
            for entry in entries
        ]
        header = [*names, "rows", "ROUGE-1", "forgotten", "likelihood", "forgotten"]
        parts.append(markdown_table(header, rows))
    said = ", ".join(f"{name} {of['spearman']:.2f}" for name, of in agreed.items() if of["spearman"] is not None)
    return "\n\n".join(parts) + (f"\n\nrank correlation of the two rates: {said}" if said else "")


if __name__ == "__main__":
    run_stage(main, parse_config(ForgettingConfig, ALIASES))
