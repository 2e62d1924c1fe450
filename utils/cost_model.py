"""A trained cost model: where it lies, and what it says of a response."""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import params
from utils.cost_metrics import probability
from utils.helpers import UserError
from utils.models import ModelRef, resolve, resolve_recorded, weight_shapes
from utils.preferences import Judged
from utils.records import RECORD_NAME, file_sha256, read_json

if TYPE_CHECKING:
    from utils.cost import JudgedIds

logger = logging.getLogger(__name__)

TRAINED_FILE = "trained_on.json"  # ids of rows, and hashes of prompts: none of them may be tested on
COST_FILE = "cost.json"  # what is to be known beside the weights: how texts are put, normaliser, calibration


@dataclass(frozen=True)
class CostModel:
    """Ready to be asked. `about` is the content of COST_FILE."""

    model: object
    tokenizer: object
    about: dict


def check(folder: str | Path, flag: str = "--cost_model", harmfulness: bool = False) -> dict:
    """What COST_FILE says; imports no torch.

    Raises:
        UserError: there is no cost model, or it says something else than is wanted: a cost, or a harmfulness.
    """
    path, maker = Path(folder), "python training/train_cost.py" + " --objective regression" * harmfulness
    if not (path / COST_FILE).is_file():
        raise UserError(f"{flag} {folder} is no cost model: {maker} makes one")
    about = read_json(path / COST_FILE)
    if (about["objective"] == "regression") != harmfulness:
        says, other = ("a cost", "cost") if harmfulness else ("a harmfulness from 0 to 4", "harmfulness")
        raise UserError(f"{flag} {folder} gives {says}: python testing/score.py --scorers {other} asks it")
    return about


def weights_hash(folder: str | Path) -> str:
    """What tells one cost model from another in the same place."""
    return ",".join(file_sha256(path) for path in sorted(Path(folder).glob("*.safetensors")))


@lru_cache(maxsize=1)
def load(folder: str) -> CostModel:
    """Loads a cost model in eval mode, on the base that it was trained on, in the same precision."""
    from utils.loading import load_base, load_tokenizer

    about, path = read_json(Path(folder) / COST_FILE), Path(folder)
    record = read_json(path / RECORD_NAME)
    if (path / "adapter_config.json").is_file():
        from peft import PeftModel

        base = resolve_recorded(record["model"], path)
        settings = record["config"]
        if about["encoder"]:  # whose head has layers of its own, which were trained in float32
            settings = settings | {"compute_dtype": "float32"}
        model = load_base(base, settings["quantization"], settings, labels=1)
        model = PeftModel.from_pretrained(model, path)
        tokenizer = load_tokenizer(ModelRef(base.name, base.path, base.revision, path), side="right", chat=False)
    else:
        base = resolve(str(path))
        if not any("score" in name or "classifier" in name for name in weight_shapes(path)):
            raise UserError(f"--cost_model {folder}: its weights hold no head, which would be drawn at random")
        model = load_base(base, settings={"compute_dtype": "float32"}, labels=1)  # as it was trained
        tokenizer = load_tokenizer(base, side="right", chat=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return CostModel(model.eval(), tokenizer, about)


def costs(prompts: list[str], responses: list[str], folder: str | Path) -> np.ndarray:
    """Cost of each response, float [responses]; NaN for an empty one. See `fit` for what is too long."""
    cost_model = load(str(folder))
    if not cost_model.about["saw_texts_alone"] and not all(prompts):
        _warn_of_texts_alone(str(folder))
    return costs_by(cost_model.model, cost_model.tokenizer, cost_model.about, prompts, responses)


def probabilities(costs: np.ndarray, prompts: list[str], about: dict) -> np.ndarray:
    """What the costs were worth on the rows held out in training, with a prompt or without; NaN where nobody knows."""
    found = np.full(len(costs), np.nan)
    bare = np.array([not prompt for prompt in prompts], dtype=bool)
    for name, which in (("calibration", ~bare), ("calibration_bare", bare)):
        if about.get(name):
            found[which] = probability(costs[which], about[name])
    return found


@lru_cache(maxsize=8)  # once a folder
def _warn_of_texts_alone(folder: str) -> None:
    logger.warning("%s saw no text without a prompt in training: costs of such texts are rough", folder)


def costs_by(model, tokenizer, about: dict, prompts: list[str], responses: list[str]) -> np.ndarray:
    """The same by a model in memory, which is to be in eval mode.

    Args:
        about: `form`, `max_length` and `normaliser`, as in COST_FILE.
    """
    import torch

    from utils import packing
    from utils.batches import by_length
    from utils.cost import Normaliser, collate, encode, head_of, token_costs
    from utils.loading import is_encoder

    rows = [
        Judged("", n, "", prompt, (response,), (None,))
        for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    found = np.full(len(rows), np.nan)
    examples = [encode(row, tokenizer, about["form"]) for row in rows if row.responses[0].strip()]
    if long := sum(len(example.input_ids) > about["max_length"] for example in examples):
        logger.warning(
            "%d of %d responses and their prompts are over %d tokens, and cut", long, len(rows), about["max_length"]
        )
    examples = [fit(example, about["max_length"], lead=int(is_encoder(tokenizer))) for example in examples]
    packed = model.device.type == "cpu" and head_of(model) is not None and packing.supports(model) is None
    normalise = Normaliser(**about["normaliser"])
    for batch in by_length([len(e.input_ids) for e in examples], params.COST_BATCH_TOKENS):
        inputs = {
            n: v.to(model.device) for n, v in collate([examples[i] for i in batch], tokenizer.pad_token_id).items()
        }
        with torch.inference_mode():
            last = torch.stack([c[-1] for c in token_costs(model, inputs, packed)])
        found[[examples[i].row.number for i in batch]] = normalise(last).cpu().numpy()
    return found


def fit(example: "JudgedIds", longest: int, lead: int = 0) -> "JudgedIds":
    """Cuts the prompt from its left, and if that is not enough the response before its end, where the cost is read.

    Args:
        lead: tokens at the beginning that stay: an encoder reads its cost there.
    """
    (ids,) = example.sequences
    if len(ids) <= longest:
        return example
    first, prompt, response = ids[:lead], ids[lead : example.begins], ids[example.begins :]
    if len(response) > longest - lead:
        response = [*response[: longest - lead - 1], response[-1]]
    prompt = prompt[len(prompt) - (longest - lead - len(response)) :]
    return replace(example, sequences=[first + prompt + response], begins=lead + len(prompt))
