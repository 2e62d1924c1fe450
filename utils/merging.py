"""Merging an adapter into its base, and measuring what that changes.

An adapter that was trained on 4-bit weights has learned to make up for their rounding. Merged into the 16-bit weights
it meets other ones; merged into the 4-bit weights written out it meets its own, rounded to 16 bits after the sum.
Which is closer to the model that was trained is measured, not assumed.
"""

from dataclasses import dataclass

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel

from utils.helpers import UserError
from utils.loading import load_base, load_model, make_room_for_tokens
from utils.lora import written_out
from utils.models import ModelRef, weight_shapes
from utils.supervision import Example

BASES = {"16-bit": "the 16-bit weights of the base", "nf4": "the 4-bit weights of the base, written out"}


@dataclass(frozen=True)
class Difference:
    """How far a merged model is from base and adapter, over the supervised tokens of some rows.

    `kl_mean` and `kl_max` are Kullback-Leibler divergences in nats from the adapter's distribution of the next token
    to the merged model's; `agreement` is the share of tokens where both find the same token likeliest. `loss_trained`
    and `loss_merged` are the negative log-likelihood of the tokens that are there, in nats a token.
    """

    kl_mean: float
    kl_max: float
    agreement: float
    loss_trained: float
    loss_merged: float
    tokens: int
    rows: int


def trained_model(ref: ModelRef):
    """Base and adapter as they were trained: the base quantised, the adapter on top. In eval mode."""
    return load_model(ref, training=True)  # so that 4-bit weights keep the layout that `_write_out` reads


def possible_bases(trained) -> list[str]:
    """What the adapter can be merged into: the 16-bit weights, and the 4-bit ones if it was trained on these."""
    has_4bit = any(isinstance(module, Linear4bit) for module in trained.modules())
    return list(BASES) if has_4bit else ["16-bit"]


def merge(ref: ModelRef, trained, base: str, dtype: torch.dtype):
    """Base plus adapter: summed in float32, then cast to `dtype`.

    Args:
        trained: from `trained_model`; its 4-bit weights are used where `base` is "nf4".
        base: one of BASES.

    Raises:
        UserError: the sum is not finite, or the adapter wants tokens whose embeddings it does not hold.
    """
    model = load_base(ref, "none", {"compute_dtype": "float32"})
    if base == "nf4":
        _write_out(trained.get_base_model(), model)
    make_room_for_tokens(ref, model)
    _untie(ref, model)
    merged = PeftModel.from_pretrained(model, ref.adapter).merge_and_unload().to(dtype)
    broken = [name for name, value in merged.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{ref.adapter} merged into {ref.name} is not finite in {str(dtype).removeprefix('torch.')} "
            f"({broken[0]}{' and others' if len(broken) > 1 else ''}): try --dtype float32, or train again"
        )
    return merged.eval()


def _write_out(quantised, model) -> None:
    """Puts the 4-bit weights of one model, written out, into the other, which is not quantised."""
    for name, module in quantised.named_modules():
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        if isinstance(base, Linear4bit) and not name.endswith("base_layer"):
            plain = model.get_submodule(name)
            plain.weight.data = written_out(base, plain.weight.dtype)


def _untie(ref: ModelRef, model) -> None:
    """Where input and output embeddings are one tensor and the adapter changes one of them, makes them two."""
    output = model.get_output_embeddings()
    shared = output is not None and output.weight is model.get_input_embeddings().weight
    if shared and any("lm_head" in name or "embed_tokens" in name for name in weight_shapes(ref.adapter)):
        output.weight = torch.nn.Parameter(output.weight.detach().clone())
        model.config.tie_word_embeddings = False


def bare(trained):
    """The base below the adapter, as a function of input_ids: what `trained` would be, had it learned nothing."""

    def run(**inputs):
        with trained.disable_adapter():
            return trained(**inputs)

    return run


@torch.inference_mode()
def difference(trained, merged, examples: list[Example]) -> Difference:
    """Compares two models on the supervised tokens of `examples`, given all tokens before them.

    `merged` may be a function of input_ids that returns what a model does.
    """
    divergences, agreed, losses = [], 0, [0.0, 0.0]
    for example in examples:
        supervised = [n - 1 for n, label in enumerate(example.labels) if label != -100 and n]
        ids = torch.tensor([example.input_ids], device=trained.device)
        ours, theirs = (
            torch.log_softmax(model(input_ids=ids).logits[0, supervised].float(), dim=-1)
            for model in (trained, merged)
        )
        wanted = ids[0, 1:][supervised, None]
        for n, scores in enumerate((ours, theirs)):
            losses[n] -= scores.gather(1, wanted).sum().item()
        divergences += (ours.exp() * (ours - theirs)).sum(dim=-1).tolist()
        agreed += int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
    tokens = len(divergences)
    means = sum(divergences) / tokens, max(divergences), agreed / tokens, *(loss / tokens for loss in losses)
    return Difference(*means, tokens, len(examples))
