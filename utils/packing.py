"""Rows of a batch in one sequence: what they begin with is run once, and nothing is padded.

Tokens that several rows begin with (an instruction, a prompt) come first, then what follows in each row. Every layer
runs over that sequence once; only attention knows where a row begins, and lets its tokens see what the row shares with
others and its own tokens.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from utils import lora

PACKED = "shared_prefix"  # name of our attention in the registry of transformers
WORTH_SHARING = 8  # tokens saved: a piece of its own costs about as much
# what a pass may differ by because of rounding; measured: 1e-6 and 0.05
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.int8: 0.6}


def run_packed(model, packed: "Packed") -> torch.Tensor:
    """The last hidden states of rows that are one sequence, [tokens, hidden size]."""
    causal = without_adapter(model)
    with attention_by(PACKED, causal), lora.one_product(model):
        return causal.base_model(
            input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, rows=packed
        ).last_hidden_state[0]


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


def difference(model, ordinary: Callable[[], torch.Tensor], ours: Callable[[], torch.Tensor]) -> float:
    """How far our way to a loss is from the ordinary one: the larger relative difference of loss and gradients.

    Dropout is off for both. No gradient is left behind.
    """
    was_training = model.training
    model.eval()
    losses, gradients = [], []
    for loss_of in (ordinary, ours):
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


class Piece(NamedTuple):
    """Tokens that attend to one another and to those `before` them; of one row, or shared by several."""

    tokens: slice
    before: tuple[slice, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Rows in one sequence, piece by piece: what rows share stands before what follows it.

    `ids`, `positions` (in the row, from 0) and `targets` (the next token, -100 where nothing is learned) are [tokens].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    pieces: list[Piece]

    def own(self) -> list[slice]:
        """For each row its tokens that it does not share."""
        return [piece.tokens for piece in sorted(self.pieces, key=lambda p: p.rows) if len(piece.rows) == 1]


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, sizes: list[int] | None = None
) -> Packed:
    """Puts rows, each [rows, tokens] and padded on the right, into one sequence.

    Args:
        sizes: how many rows each group holds, one after the other; None: all are one group.
    """
    next_token = F.pad(labels[:, 1:], (0, 1), value=-100)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    ends, pieces, cuts, first, place = attention_mask.sum(dim=1).tolist(), [], [], 0, 0
    for size in sizes or [len(input_ids)]:
        shared = shared_prefix(*(x[first : first + size] for x in (input_ids, attention_mask, labels)))
        before = (slice(place, place + shared),) if shared else ()
        pieces += [Piece(tokens, (), tuple(range(first, first + size))) for tokens in before]
        cuts += [(first, slice(0, shared))]
        place += shared
        for row in range(first, first + size):
            pieces.append(Piece(slice(place, place + ends[row] - shared), before, (row,)))
            cuts.append((row, slice(shared, ends[row])))
            place += ends[row] - shared
        first += size
    ids, positions, targets = (
        torch.cat([values[row, cut] for row, cut in cuts]) for values in (input_ids, positions, next_token)
    )
    return Packed(ids, positions, targets, pieces)


def pack_tree(rows: list[list[int]], starts: list[int], device: torch.device | str = "cpu") -> Packed:
    """Puts rows into one sequence in which what any of them begin with stands once, as the branches of a tree.

    Supervised tokens are shared as well: what they add to the loss is that of each of the rows. The last token of a
    row is left out: it predicts nothing, and nothing looks back at it.

    Args:
        rows: tokens of each row.
        starts: where its supervised tokens begin, 1 or more.
    """
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    pieces: list[Piece] = []

    def target(row: int, place: int) -> int:
        return rows[row][place + 1] if place + 1 >= starts[row] else -100

    def grow(members: list[int], depth: int, before: tuple[slice, ...]) -> None:
        """Adds the tokens of some rows from place `depth` on."""
        first, common, ends = members[0], depth, [len(rows[row]) - 1 for row in members]
        while common < min(ends) and len({(rows[row][common], target(row, common)) for row in members}) == 1:
            common += 1
        if len(members) == 1 or (common - depth) * (len(members) - 1) >= WORTH_SHARING:
            tokens = slice(len(ids), len(ids) + common - depth)
            ids.extend(rows[first][depth:common])
            positions.extend(range(depth, common))
            targets.extend(target(first, place) for place in range(depth, common))
            pieces.append(Piece(tokens, before, tuple(members)))
            before, depth = (*before, tokens), common
        branches = defaultdict(list)
        for row, end in zip(members, ends, strict=True):
            if depth < end:
                branches[(rows[row][common], target(row, common)) if common < end else (row,)].append(row)
        for branch in branches.values():
            grow(branch, depth, before)

    grow(list(range(len(rows))), 0, ())
    return Packed(*(torch.tensor(values, device=device) for values in (ids, positions, targets)), pieces)


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
    attended = []
    for own, shared, _ in rows.pieces:
        length, before = own.stop - own.start, sum(tokens.stop - tokens.start for tokens in shared)
        # shared keys stand before those of a row, so that a row attends to one block
        k, v = (torch.cat([x[:, t] for t in (*shared, own)], dim=1) if before else x[:, own] for x in (keys, values))
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
