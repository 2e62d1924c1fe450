"""Log-likelihood of completions: computed only where there is something to learn, and shared text only once."""

import torch
import torch.nn.functional as F


def completion_loss(
    model, inputs: dict[str, torch.Tensor], num_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean negative log-likelihood of the supervised tokens; equal to the ordinary loss, and cheaper.

    Two things are not computed twice or in vain. The tokens that all rows begin with (the instruction) are run once,
    with batch size one; gradients flow back through their keys and values. The output layer is applied to supervised
    positions only, so the full logits are never in memory.

    Args:
        model: a causal LM, plain or with a LoRA adapter (not prompt learning, which adds positions of its own).
        inputs: input_ids, attention_mask and labels, each [rows, tokens], padded on the right; labels are -100
            where nothing is learned.
        num_tokens: divisor; None for the number of supervised tokens here. Under gradient accumulation the Trainer
            gives the count over all micro-batches, so that the mean is over tokens.

    Returns:
        A scalar with gradient.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = causal.base_model
    ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
    shared = 0 if getattr(backbone, "gradient_checkpointing", False) else shared_prefix(ids, mask, labels)
    cache = None
    if shared:
        cache = backbone(input_ids=ids[:1, :shared], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(ids))
    hidden = backbone(
        input_ids=ids[:, shared:],
        attention_mask=mask,
        position_ids=torch.arange(shared, ids.shape[1], device=ids.device).expand(len(ids), -1),
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    targets = labels[:, shared + 1 :]
    supervised = targets != -100
    logits = causal.get_output_embeddings()(hidden[:, :-1][supervised])
    total = F.cross_entropy(logits.float(), targets[supervised], reduction="sum")
    return total / (supervised.sum() if num_tokens is None else num_tokens)


def supports(model) -> bool:
    """Whether `completion_loss` equals the model's own loss: no scaling or capping between output layer and loss."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config.get_text_config()
    changed = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return causal.get_output_embeddings() is not None and not any(getattr(config, name, None) for name in changed)


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
