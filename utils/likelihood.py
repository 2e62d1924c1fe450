"""Log-likelihood of completions: computed only where there is something to learn, shared text only once, no padding.

The rows of a batch run as one sequence (utils/packing.py), and the output layer sees supervised positions only, some
rows at a time.
"""

import contextlib

import torch
import torch.nn.functional as F

from utils.packing import Packed, pack, run_packed, supports, without_adapter

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
    packed = pack(**{name: inputs[name] for name in ("input_ids", "attention_mask", "labels")})
    hidden, output = _run(model, packed)
    supervised = packed.targets != -100
    total = _OutputLoss.apply(
        hidden[supervised].to(output.weight.dtype), output.weight, output.bias, packed.targets[supervised]
    )
    return total / (supervised.sum() if num_tokens is None else num_tokens)


def _run(model, packed: Packed):
    """The last hidden states of rows that are one sequence, [tokens, hidden size], and the output layer."""
    return run_packed(model, packed), without_adapter(model).get_output_embeddings()


@torch.inference_mode()
def log_likelihoods(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-likelihood of the supervised tokens of each row, in nats, float32 [rows].

    Args:
        model: any causal LM; one that `supports` does not take is run the ordinary way.
        inputs: as for `completion_loss`.
    """
    if supports(model) is None:
        with contextlib.suppress(NotImplementedError):  # its attention wants more than ours gives
            packed = pack(**{n: inputs[n] for n in ("input_ids", "attention_mask", "labels")})
            return packed_log_likelihoods(model, packed)
    logits = model(**{n: inputs[n] for n in ("input_ids", "attention_mask")}, use_cache=False).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    scores = torch.log_softmax(logits.float(), dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return (scores * (targets != -100)).sum(dim=1)


@torch.inference_mode()
def packed_log_likelihoods(model, packed: Packed) -> torch.Tensor:
    """The same of rows that are one sequence already, by a model that `supports` takes."""
    hidden, output = _run(model, packed)
    of_token = torch.zeros(len(packed.ids), device=hidden.device)
    places = (packed.targets != -100).nonzero()[:, 0]
    for some in places.split(OUTPUT_ROWS):
        scores = torch.log_softmax(output(hidden[some].to(output.weight.dtype)), dim=1, dtype=torch.float32)
        of_token[some] = scores.gather(1, packed.targets[some, None])[:, 0]
    total = torch.zeros(1 + max(row for piece in packed.pieces for row in piece.rows), device=hidden.device)
    for piece in packed.pieces:
        total[list(piece.rows)] += of_token[piece.tokens].sum()
    return total


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
