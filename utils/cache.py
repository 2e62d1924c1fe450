"""Keys and values of rows that are being written: what all prompts begin with is run once, and slots are reused.

The new tokens of all rows go through the layers as one sequence without padding, whether a row has one of them or a
whole prompt. Only attention arranges them by row.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from utils.packing import attention_by, refuse_extras, without_adapter

CACHED = "row_cache"  # name of our attention in the registry of transformers

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclass
class RowCache:
    """Slots for rows, each with room for `capacity` tokens.

    Per layer, `layers` has keys and values, each [slots, key-value heads, capacity, head size], and `beginning` those
    of the tokens that all rows begin with, [key-value heads, tokens, head size]. A new slot holds these already.
    """

    slots: int = 0
    capacity: int = 0
    lengths: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # [slots], tokens held
    beginning: dict[int, Pair] = field(default_factory=dict)
    layers: dict[int, Pair] = field(default_factory=dict)

    def resized(self, keep: list[int], slots: int, capacity: int) -> "RowCache":
        """A cache of another size, in which the rows of the slots `keep` come first."""
        begun = next((keys.shape[1] for keys, _ in self.beginning.values()), 0)
        lengths = torch.full((slots,), begun)
        lengths[: len(keep)] = self.lengths[keep]
        longest = int(lengths.max())
        layers = {}
        for layer, beginning in self.beginning.items():
            pair = []
            for old, first in zip(self.layers.get(layer, (None, None)), beginning, strict=True):
                new = first.new_zeros(slots, first.shape[0], capacity, first.shape[2])
                new[len(keep) :, :, :begun] = first
                if keep:
                    new[: len(keep), :, :longest] = old[keep, :, :longest]
                pair.append(new)
            layers[layer] = tuple(pair)
        return RowCache(slots, capacity, lengths, self.beginning, layers)


@dataclass
class Step:
    """New tokens of some slots, one row after the other: what attention has to know about them.

    `slots` are the slots that attention looks at, in order, None for all. Of token t, `row[t]` is its row among these,
    `place[t]` its place among the new tokens of the row, and `at[t]` its place in the row. At most `most` are new in a
    row, and the longest row has `longest` tokens. `mask` is [rows, 1, most, longest], true where a token may look.
    """

    cache: RowCache
    slots: torch.Tensor | None
    row: torch.Tensor
    place: torch.Tensor
    at: torch.Tensor
    most: int
    longest: int
    mask: torch.Tensor


def begin(model, ids: list[int]) -> RowCache:
    """A cache without slots that holds the tokens that all rows will begin with."""
    cache = RowCache()
    run = ids or [0]  # any token tells the shapes
    _run(model, torch.tensor(run), torch.arange(len(run)), cache)
    cache.beginning = {n: (k[:, : len(ids)], v[:, : len(ids)]) for n, (k, v) in cache.beginning.items()}
    return cache


def forward(model, cache: RowCache, slots: list[int], new: list[list[int]]) -> torch.Tensor:
    """Runs new tokens through the layers, keeps their keys and values, and returns hidden states [tokens, features].

    `cache.lengths` is raised by the number of new tokens; a caller that takes some of them back lowers it.
    """
    counts = torch.tensor([len(tokens) for tokens in new])
    row = torch.repeat_interleave(torch.arange(len(slots)), counts)
    place = torch.cat([torch.arange(len(tokens)) for tokens in new])
    at = cache.lengths[slots][row] + place
    chosen = torch.tensor(slots)
    if 2 * len(slots) > cache.slots:  # to look at all slots is cheaper than to pick some out in every layer
        row, chosen = chosen[row], None
    most, longest = int(counts.max()), int(at.max()) + 1
    last = torch.zeros(cache.slots if chosen is None else len(slots), most, dtype=torch.long)
    last[row, place] = at
    mask = (torch.arange(longest) <= last[..., None])[:, None]
    ids = torch.tensor([token for tokens in new for token in tokens])
    states = _run(model, ids, at, Step(cache, chosen, row, place, at, most, longest, mask))
    cache.lengths[slots] += counts
    return states


def _run(model, ids: torch.Tensor, positions: torch.Tensor, step: Step | RowCache) -> torch.Tensor:
    causal = without_adapter(model)
    with attention_by(CACHED, causal):
        outputs = causal.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False, step=step)
    return outputs.last_hidden_state[0]


def _attend(module, query, key, value, attention_mask, scaling, dropout=0.0, step=None, sliding_window=None, **others):
    """Attention of new tokens to a `RowCache`, in the signature of transformers' attention functions.

    Args:
        query: [1, heads, tokens, head size]; key and value: [1, key-value heads, tokens, head size].
        step: a `Step`; or the `RowCache` itself, for the tokens that all rows begin with.

    Returns:
        [1, tokens, heads, head size], and None for the attention weights.

    Raises:
        NotImplementedError: the model wants more of attention than this, such as capped scores.
    """
    refuse_extras(others)
    if sliding_window:
        raise NotImplementedError("attention with a sliding window")
    layer = module.layer_idx
    _, heads, _, size = query.shape
    groups = key.shape[1]
    if isinstance(step, RowCache):
        step.beginning[layer] = key[0], value[0]
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2), None
    slot = step.row if step.slots is None else step.slots[step.row]
    pair = []
    for kept, new in zip(step.cache.layers[layer], (key, value), strict=True):
        kept[slot, :, step.at] = new[0].transpose(0, 1)
        rows = kept if step.slots is None else kept[step.slots]
        pair.append(rows[:, :, : step.longest])
    queries = query.new_zeros(len(pair[0]), step.most, heads, size)
    queries[step.row, step.place] = query[0].transpose(0, 1)
    # the heads of a group stand below one another, so that each key-value head is read once
    queries = queries.view(-1, step.most, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    mask = step.mask.repeat(1, 1, heads // groups, 1)
    attended = F.scaled_dot_product_attention(queries.flatten(2, 3), *pair, attn_mask=mask, scale=scaling)
    attended = attended.view(queries.shape).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return attended[step.row, step.place][None], None


AttentionInterface.register(CACHED, _attend)
