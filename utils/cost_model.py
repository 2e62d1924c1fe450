"""A trained cost model: where it lies, and what it says of a response."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils import params
from utils.helpers import UserError
from utils.models import ModelRef, resolve, resolve_recorded, weight_shapes
from utils.preferences import Judged
from utils.records import RECORD_NAME, file_sha256, read_json

COST_FILE = "cost.json"  # what is to be known beside the weights: how texts are put, normaliser, calibration


@dataclass(frozen=True)
class CostModel:
    """Ready to be asked. `about` is the content of COST_FILE."""

    model: object
    tokenizer: object
    about: dict


def check(folder: str | Path, flag: str = "--cost_model", maker: str = "training/train_cost.py") -> dict:
    """What COST_FILE says. Raises UserError where there is no cost model; imports no torch."""
    path = Path(folder)
    if not (path / COST_FILE).is_file():
        raise UserError(f"{flag} {folder} is no cost model: python {maker} makes one")
    return read_json(path / COST_FILE)


def weights_hash(folder: str | Path) -> str:
    """What tells one cost model from another in the same place."""
    return ",".join(file_sha256(path) for path in sorted(Path(folder).glob("*.safetensors")))


@lru_cache(maxsize=1)
def load(folder: str) -> CostModel:
    """Loads a cost model in eval mode, on the base that it was trained on, in the same precision."""
    import torch

    from utils.loading import load_base, load_tokenizer

    about, path = check(folder), Path(folder)
    record = read_json(path / RECORD_NAME)
    if (path / "adapter_config.json").is_file():
        from peft import PeftModel

        base = resolve_recorded(record["model"], path)
        model = load_base(base, record["config"]["quantization"], record["config"], labels=1)
        model = PeftModel.from_pretrained(model, path)
        tokenizer = load_tokenizer(ModelRef(base.name, base.path, base.revision, path), side="right", chat=False)
    else:
        base = resolve(str(path))
        if not any("score" in name or "classifier" in name for name in weight_shapes(path)):
            raise UserError(f"--cost_model {folder}: its weights hold no head, which would be drawn at random")
        model, tokenizer = load_base(base, labels=1), load_tokenizer(base, side="right", chat=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return CostModel(model.to(torch.float32 if model.dtype == torch.float16 else model.dtype).eval(), tokenizer, about)


def costs(prompts: list[str], responses: list[str], folder: str | Path) -> np.ndarray:
    """Cost of each response, float [responses]; NaN for an empty one. Of a long text the first tokens are read."""
    cost_model = load(str(folder))
    return costs_by(cost_model.model, cost_model.tokenizer, cost_model.about, prompts, responses)


def costs_by(model, tokenizer, about: dict, prompts: list[str], responses: list[str]) -> np.ndarray:
    """The same by a model in memory, which is to be in eval mode.

    Args:
        about: `form`, `max_length` and `normaliser`, as in COST_FILE.
    """
    import torch

    from utils import packing
    from utils.batches import by_length
    from utils.cost import Normaliser, collate, encode, head_of, token_costs

    rows = [
        Judged("", n, "", prompt, (response,), (None,))
        for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    found = np.full(len(rows), np.nan)
    examples = [encode(row, tokenizer, about["form"]) for row in rows if row.responses[0].strip()]
    for example in examples:
        example.sequences[0] = cut(example.sequences[0], about["max_length"])
        example.begins = min(example.begins, len(example.sequences[0]) - 1)
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


def cut(ids: list[int], longest: int) -> list[int]:
    """The first tokens of a text, and its last one, the end, at which the cost is read."""
    return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
