"""Trains a cost model: tells safe responses from unsafe ones, and which of two is worse (Safe RLHF's cost loss).

    python training/train_cost.py                                        # the embedded model and pairs: minutes
    python training/train_cost.py --input pku.jsonl diasafety.jsonl:0.2  # a mixture: all of one, a fifth of another
    python training/train_cost.py --objective binary --input sentences.csv          # text,label: a text classifier
    python training/train_cost.py --objective regression --input rated.jsonl        # harmfulness from 0 to 4
    python training/train_cost.py --base_model models/merged --input PKU-Alignment/PKU-SafeRLHF    # after train.py

Reads  judged responses: pairs, labelled responses, transcripts or texts; utils/preferences.py lists the formats
Writes models/cost/: the adapter with its head (or the model, with --method full), cost.json (how texts are put, and
       how a cost becomes a probability), metrics.json, loss.png, run.json
       (with --seeds: models/cost/seed-0/ ... and the best seed's files in models/cost/ itself)

A cost above 0 means unsafe, below 0 safe, and a larger one is worse. A seeded share of the prompts is held out, with
all that was said to them; the checkpoint with the lowest validation loss is kept, and on its costs of the held-out
rows a probability is fitted. Rows that contradict themselves, equal responses and rows over --max_length are left out
and counted. A run that was stopped or killed goes on with --resume, as train.py's does.

Next: python testing/evaluate_cost.py
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import CostConfig
from utils.helpers import TRAINER_NAMES, UserError, as_switch, parse_config, run_stage
from utils.loading import check_kind
from utils.models import resolve
from utils.preferences import Judged, read_judged, split_by_prompt
from utils.processes import is_main
from utils.records import check_output_folder

logger = logging.getLogger(__name__)

# names that the published scripts used -> ours
ALIASES = TRAINER_NAMES | {
    "train_datasets": "input",
    "eval_datasets": "validation",
    "model_name_or_path": "base_model",
    "model_name": "base_model",
    "normalizer_momentum": "normaliser_momentum",
    "normalizer_type": (
        "normaliser",
        {"RunningMeanStd": "running", "ExponentialMovingAverage": "ema"}.__getitem__,
    ),
    "normalize_score_during_training": ("normaliser", lambda value: "ema" if as_switch(value) else "none"),
    "lr_warmup_ratio": "warmup_ratio",
    "dataset_name": "input",
    "tokenizer_name": (None, "the tokenizer of the base is used"),
    "train_subset": "limit",
    "zero_stage": (None, 'several GPUs: torchrun (README, "More than one GPU")'),
    "need_eval": (None, "the validation rows are always evaluated"),
}


def load_rows(config: CostConfig) -> tuple[list[Judged], list[Judged]]:
    """(training rows, validation rows) that the objective can learn from. Raises UserError where there are too few."""
    rows = usable(read_judged(config.input, config.unsafe_labels, config.seed, config.limit), config.objective)
    if config.validation:
        held_out = usable(read_judged([config.validation], config.unsafe_labels, config.seed), config.objective)
        prompts = {row.group for row in held_out}
        train = [row for row in rows if row.group not in prompts]
        if len(train) < len(rows):
            logger.warning("%d training rows have a prompt of --validation and are left out", len(rows) - len(train))
        return train, held_out
    return split_by_prompt(rows, config.validation_share, config.seed)


def usable(rows: list[Judged], objective: str) -> list[Judged]:
    """Rows that hold what is learned: a harmfulness, a label, or (for safe_rlhf) a label or a second response."""
    if objective == "regression":
        found = [row for row in rows if row.harm is not None]
    else:
        found = [row for row in rows if set(row.unsafe) != {None} or (row.is_pair and objective == "safe_rlhf")]
    if not found:
        needed = {"regression": "a harmfulness", "binary": "a label"}.get(objective, "a label or a second response")
        raise UserError(f"--objective {objective}: none of {len(rows)} rows has {needed}")
    if len(found) < len(rows):
        logger.warning(
            "%d of %d rows do not hold what --objective %s needs", len(rows) - len(found), len(rows), objective
        )
    return found


def main(config: CostConfig) -> None:
    from utils.cost_task import COST
    from utils.cost_trainer import cost_arguments
    from utils.finetuning import check_settings, describe_runs, finetune, nothing_left_to_do
    from utils.loading import is_encoder, load_tokenizer

    if complete := nothing_left_to_do(config):
        if is_main():
            print(complete)
        return
    check_output_folder(Path(config.output), config.overwrite)
    rows = load_rows(config)  # one split for all seeds
    check_settings(config, cost_arguments)
    ref = resolve(config.base_model, revision=config.revision)
    check_kind(ref, encoder_decoder=False)
    encoder = is_encoder(load_tokenizer(ref, side="right", chat=False))
    if encoder and config.quantization not in (None, "none"):
        raise UserError(f"--quantization {config.quantization}: {ref.name} is an encoder, trained in 16 bits only")
    default = "none" if encoder or config.method == "full" else params.QUANTIZATION
    runs = finetune(replace(config, quantization=config.quantization or default), ref, rows, COST)
    if is_main():
        print(describe_runs(runs))
        then = f"python testing/evaluate_cost.py --cost_model {config.output}"
        if config.objective == "regression":
            then = f"python testing/score.py --scorers harmfulness --harmfulness_model {config.output} --input ..."
        print(f"the cost model is in {config.output}; next: {then}")


if __name__ == "__main__":
    run_stage(main, parse_config(CostConfig, ALIASES))
