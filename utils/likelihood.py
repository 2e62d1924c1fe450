"""Log-likelihood of completions: computed only where there is something to learn, shared text only once, no padding.

The rows of a batch become one sequence: the tokens that all rows begin with (the instruction), then what follows in
each row. Every layer runs over that sequence once; only attention knows where a row begins, and lets its tokens see
the shared beginning and their own row. The output layer sees supervised positions only, some rows at a time.
"""

import contextlib
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from utils import lora

PACKED = "shared_prefix"  # name of our attention in the registry of transformers
# what a pass may differ by because of rounding; measured: 1e-6 and 0.05
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.int8: 0.6}
OUTPUT_ROWS = 128  # positions whose logits are in memory at once: with 50,000 tokens in the vocabulary 25 MB


def completion_loss(
    model, inputs: dict[str, torch.Tensor], num_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean negative log-likelihood of the supervised tokens; equal to the ordinary loss, and cheaper.

    Args:
        model: a causal LM with a plain output layer for which `supports` is None, alone or with a LoRA adapter.
        inputs: input_ids, attention_mask and labels, each [rows, tokens], padded on the right; labels are -100
            where nothing is learned.
        num_tokens: divisor; None for the number of supervised tokens here. Under gradient accumulation the Trainer
            gives the count over all micro-batches, so that the mean is over tokens.

    Returns:
        A scalar with gradient.
    """
    packed, hidden, output = _run_packed(model, inputs)
    supervised = packed.targets != -100
    total = _OutputLoss.apply(
        hidden[supervised].to(output.weight.dtype), output.weight, output.bias, packed.targets[supervised]
    )
    return total / (supervised.sum() if num_tokens is None else num_tokens)


def _run_packed(model, inputs: dict[str, torch.Tensor]):
    """The rows as one sequence, its last hidden states [tokens, hidden size], and the output layer."""
    causal = without_adapter(model)
    packed = pack(**{name: inputs[name] for name in ("input_ids", "attention_mask", "labels")})
    with attention_by(PACKED, causal), lora.one_product(model):
        hidden = causal.base_model(
            input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, rows=packed
        ).last_hidden_state[0]
    return packed, hidden, causal.get_output_embeddings()


@torch.inference_mode()
def log_likelihoods(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-likelihood of the supervised tokens of each row, in nats, float32 [rows].

    Args:
        model: any causal LM; one that `supports` does not take is run the ordinary way.
        inputs: as for `completion_loss`.
    """
    if supports(model) is not None:
        logits = model(**{n: inputs[n] for n in ("input_ids", "attention_mask")}, use_cache=False).logits[:, :-1]
        targets = inputs["labels"][:, 1:]
        scores = torch.log_softmax(logits.float(), dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        return (scores * (targets != -100)).sum(dim=1)
    packed, hidden, output = _run_packed(model, inputs)
    # the shared tokens are supervised in no row; which row a later token belongs to
    of_row = torch.repeat_interleave(torch.tensor(packed.lengths, device=hidden.device))
    of_row = torch.cat([of_row.new_zeros(packed.shared), of_row])
    places = (packed.targets != -100).nonzero()[:, 0]
    total = torch.zeros(len(packed.lengths), device=hidden.device)
    for some in places.split(OUTPUT_ROWS):
        scores = torch.log_softmax(output(hidden[some].to(output.weight.dtype)), dim=1, dtype=torch.float32)
        total.index_add_(0, of_row[some], scores.gather(1, packed.targets[some, None])[:, 0])
    return total


def supports(model) -> str | None:
    """Why the layers of a model cannot be run by our attention (here and in utils/cache.py); None if they can.

    The output layer is called by ourselves, so nothing may follow it, and the model must take its attention function
    from the registry of transformers.
    """
    causal = without_adapter(model)
    config = causal.config.get_text_config()
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
        return "prefix tuning adds positions of its own"
    if getattr(causal, "is_loaded_in_8bit", False):
        return "8-bit products are rounded by batch"
    if any(getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        return "its logits are scaled after the output layer"
    if not getattr(causal, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return None


def difference(model, inputs: dict[str, torch.Tensor]) -> float:
    """How far `completion_loss` is from the model's own loss: the larger relative difference of loss and gradients.

    Dropout is off for both. No gradient is left behind.
    """
    was_training = model.training
    model.eval()
    losses, gradients = [], []
    for loss_of in (lambda: model(**inputs, use_cache=False).loss, lambda: completion_loss(model, inputs)):
        loss = loss_of()
        loss.backward()
        found = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        losses.append(loss.item())
        gradients.append(torch.cat(found))
        model.zero_grad()
    model.train(was_training)
    by_loss = abs(losses[1] - losses[0]) / abs(losses[0])
    by_gradient = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    return max(by_loss, by_gradient.item())


def tolerance(dtype: torch.dtype) -> float:
    """How far a pass of ours may be from the ordinary one: relative, in loss, gradients or probabilities."""
    return TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])


def without_adapter(model):
    """The causal LM below a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class Packed:
    """Rows in one sequence: `shared` tokens that all begin with, then the rest of each row, `lengths` tokens long.

    `ids`, `positions` (in the row, from 0) and `targets` (the next token, -100 where nothing is learned) are [tokens].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    shared: int
    lengths: list[int]


def pack(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Packed:
    """Puts rows, each [rows, tokens] and padded on the right, into one sequence."""
    shared = shared_prefix(input_ids, attention_mask, labels)
    ends = attention_mask.sum(dim=1).tolist()
    next_token = F.pad(labels[:, 1:], (0, 1), value=-100)

    def join(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[0, :shared], *(row[shared:end] for row, end in zip(values, ends, strict=True))])

    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return Packed(join(input_ids), join(positions), join(next_token), shared, [end - shared for end in ends])


def shared_prefix(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> int:
    """How many leading tokens all rows have in common, before the last token that is still needed in every row.

    The first supervised token is predicted by the one before it, so that one stays out of the prefix. 0 for a single
    row: there is nothing to share.
    """
    if len(ids) == 1:
        return 0
    same = (ids == ids[:1]).all(dim=0) & (mask == 1).all(dim=0) & (labels == -100).all(dim=0)
    length = int(same.long().cumprod(dim=0).sum())
    return max(0, min(length - 1, ids.shape[1] - 2))


@contextlib.contextmanager
def attention_by(name: str, causal):
    """Within the block the model attends by a function of transformers' registry."""
    config = causal.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def refuse_extras(others: dict) -> None:
    """Raises NotImplementedError where a model wants more of attention than ours does: capped scores, sinks."""
    if wanted := [name for name in ("softcap", "s_aux") if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(wanted)}")


def _attend_by_row(
    module, query, key, value, attention_mask, scaling, dropout=0.0, rows=None, sliding_window=None, **others
):
    """Attention over a `Packed` sequence, in the signature of transformers' attention functions.

    Args:
        query: [1, heads, tokens, head size]; key and value: [1, key-value heads, tokens, head size].
        rows: the `Packed` batch, handed through the layers by name.

    Returns:
        [1, tokens, heads, head size], and None for the attention weights.

    Raises:
        NotImplementedError: the model wants more of attention than this, such as capped scores.
    """
    refuse_extras(others)
    _, heads, tokens, size = query.shape
    groups = key.shape[1]
    queries = query.view(groups, heads // groups, tokens, size)
    keys, values = key[0], value[0]
    # shared keys stand before those of a row, so that a row attends to one piece
    pieces = [(0, rows.shared)] if rows.shared else []
    start = rows.shared
    for length in rows.lengths:
        pieces.append((start, length))
        start += length
    attended = []
    for start, length in pieces:
        own = slice(start, start + length)
        before = rows.shared if start else 0
        k, v = (torch.cat([x[:, :before], x[:, own]], dim=1) if before else x[:, own] for x in (keys, values))
        scores = queries[:, :, own].reshape(groups, -1, size) @ k.transpose(1, 2)
        scores = scores.view(groups, -1, length, before + length) * scaling
        scores = scores + _causal_mask(length, before, sliding_window, scores.dtype, scores.device)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        weights = F.dropout(weights, p=dropout, training=module.training)
        attended.append((weights.view(groups, -1, before + length) @ v).view(groups, -1, length, size))
    output = torch.cat(attended, dim=2).view(1, heads, tokens, size)
    return output.transpose(1, 2), None


@lru_cache(maxsize=64)  # all layers of a pass ask for the same ones
def _causal_mask(length: int, before: int, window: int | None, dtype: torch.dtype, device: torch.device):
    """[length, before + length]: 0 where a token may look; minus infinity after it, and `window` or more before it."""
    hidden = torch.ones((length, before + length), dtype=torch.bool, device=device)
    hidden = hidden.triu(before + 1) | (hidden.tril(before - window) if window else False)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))


AttentionInterface.register(PACKED, _attend_by_row)


class _OutputLoss(torch.autograd.Function):
    """Summed cross entropy of an output layer, `OUTPUT_ROWS` positions at a time: logits are never all in memory.

    The gradient is found in the forward pass, where the probabilities are at hand (Wijmans et al. 2024, arXiv
    2411.09009, do the same in blocks of the vocabulary on a GPU). `torch.nn.functional.linear_cross_entropy` takes 15
    times as long on a CPU in bfloat16 (benchmarks/RESULTS.md).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if weight.requires_grad else None
        of_bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        pieces = (x.split(OUTPUT_ROWS) for x in (hidden, of_hidden, targets[:, None]))
        for rows, of_rows, wanted in zip(*pieces, strict=True):
            scores = torch.log_softmax(F.linear(rows, weight, bias), dim=1, dtype=torch.float32)
            total -= scores.gather(1, wanted).sum()
            if not any(ctx.needs_input_grad):
                continue
            scores.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=scores.dtype))
            of_logits = scores.to(rows.dtype)
            torch.mm(of_logits, weight, out=of_rows)
            if of_weight is not None:
                of_weight += of_logits.t() @ rows
            if of_bias is not None:
                of_bias += of_logits.sum(dim=0)
        ctx.gradients = (of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx, grad):
        return *(g if g is None else g.mul_(grad) for g in ctx.gradients), None
