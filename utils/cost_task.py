"""What train_cost.py hands to utils/finetuning.py: rows as tokens, and what is measured on the best weights."""

import logging
from pathlib import Path

import numpy as np

from utils import params
from utils.card import COST_MODEL
from utils.checkpoints import state_of
from utils.configs import CostConfig
from utils.cost import FORMATS, JudgedIds, encode, head_of
from utils.cost_metrics import (
    fit_calibration,
    labels_of,
    pairs_of,
    ranking_accuracy,
    responses_of,
    sign_accuracy,
)
from utils.cost_model import COST_FILE, TRAINED_FILE, costs_by
from utils.cost_trainer import CostTrainer, build_cost_trainer
from utils.data import content_id, seeded_share
from utils.finetuning import Task
from utils.helpers import UserError
from utils.loading import is_encoder, model_settings
from utils.models import ModelRef
from utils.preferences import Judged
from utils.records import write_json

logger = logging.getLogger(__name__)


def encode_rows(
    train: list[Judged], validation: list[Judged], ref: ModelRef, tokenizer, config: CostConfig
) -> tuple[list[JudgedIds], list[JudgedIds]]:
    """Both as the model sees them, without pairs of which it sees no difference; some training rows without prompt."""
    if FORMATS[config.form] is None and tokenizer.chat_template is None:
        raise UserError(f"--form chat: {ref.name} has no chat template: choose another form")
    most = longest(ref, tokenizer)
    if config.max_length > most:
        raise UserError(f"--max_length {config.max_length}: {ref.name} reads no more than {most}: --max_length {most}")
    share = config.prompt_dropout
    bare = seeded_share((row.id for row in train if row.prompt), share, config.seed) if share else set()
    if bare:
        logger.info("%d of %d rows are learned without their prompt", len(bare), len(train))
    both = []
    for rows, without in ((train, bare), (validation, set())):
        examples = [encode(row, tokenizer, config.form, row.id in without) for row in rows]
        kept = [e for e in examples if not (e.row.is_pair and e.sequences[0] == e.sequences[1])]
        if len(kept) < len(examples):
            logger.info("%d pairs are left out: the model sees no difference", len(examples) - len(kept))
        both.append(kept)
    return both[0], both[1]


def longest(ref: ModelRef, tokenizer) -> int:
    """Tokens for which a model has positions."""
    of_tokenizer = tokenizer.model_max_length
    most = getattr(model_settings(ref).get_text_config(), "max_position_embeddings", None) or of_tokenizer
    return min(most, of_tokenizer) if is_encoder(tokenizer) else most  # of the 514 of some, two are for no text


def audit(examples: list[JudgedIds], tokenizer, config: CostConfig, folder: Path) -> None:
    """Says what is learned from, and refuses rows of one kind only."""
    signs = [unsafe for example in examples for unsafe in example.row.unsafe if unsafe is not None]
    pairs = sum(example.row.is_pair for example in examples)
    logger.info("%d pairs; %d responses labelled unsafe, %d safe", pairs, sum(signs), len(signs) - sum(signs))
    if config.objective != "regression" and len(set(signs)) == 1 and not pairs:
        raise UserError(
            f"--input: all responses are {'un' * signs[0]}safe: see --unsafe_labels {config.unsafe_labels}"
        )


def conclude(trainer: CostTrainer, held_out: list[JudgedIds], tokenizer, folder: Path) -> dict:
    """Costs of the held-out rows; writes COST_FILE, with the probability that fits them, and TRAINED_FILE."""
    config, rows = trainer.config, [example.row for example in held_out]
    examples = [item["example"] for item in trainer.train_dataset]
    trained = [example.row for example in examples]
    about = {
        "objective": config.objective,
        "form": config.form,
        "max_length": config.max_length,
        "normaliser": state_of("KeepsNormaliser", trainer) or vars(trainer.normaliser),
        "encoder": head_of(trainer.model) is None,
        "saw_texts_alone": sum(example.bare for example in examples) >= params.COST_LEAST_TEXTS,
    }
    model = trainer.model.eval()
    prompts, responses = responses_of(rows)
    found = costs_by(model, tokenizer, about, prompts, responses)
    metrics = {}
    if config.objective == "regression":
        harm = np.array([row.harm for row in rows for _ in row.responses])
        metrics = {"mean_squared_error": float(((found - harm) ** 2).mean()), "variance": float(harm.var())}
    else:
        labelled, unsafe = labels_of(rows)
        pairs, _ = pairs_of(rows, found)
        if len(set(unsafe[labelled])) == 2:
            about["calibration"] = fit_calibration(found[labelled], unsafe[labelled])
            of = {"safe": found[labelled & ~unsafe], "unsafe": found[labelled & unsafe]}
            about["held_out_costs"] = {kind: [round(float(c), 3) for c in values] for kind, values in of.items()}
            metrics["sign_accuracy"] = float(sign_accuracy(found[labelled], unsafe[labelled]).mean())
            bare = costs_by(model, tokenizer, about, [""] * len(responses), responses) if any(prompts) else found
            about["calibration_bare"] = fit_calibration(bare[labelled], unsafe[labelled])
            metrics["sign_accuracy_bare"] = float(sign_accuracy(bare[labelled], unsafe[labelled]).mean())
        if len(pairs):
            metrics["ranking_accuracy"] = float(ranking_accuracy(pairs).mean())
    write_json(folder / COST_FILE, about)
    groups = sorted({content_id(row.group) for row in trained})
    write_json(folder / TRAINED_FILE, {"rows": sorted({row.id for row in trained}), "prompts": groups})
    return metrics


COST = Task(build_cost_trainer, encode_rows, audit, conclude, COST_MODEL, chats=False)
