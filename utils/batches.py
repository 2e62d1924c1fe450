"""Batches of training rows: split into parts that fit into memory, counted, emptied."""

from collections.abc import Iterator

import torch

from utils.packing import shared_prefix

Batch = dict[str, torch.Tensor]
Row = tuple[list[int], int]  # tokens, and where the supervised ones begin


def split_batch(inputs: Batch, budget: int, padded: bool = True) -> Iterator[Batch]:
    """Splits a batch into parts of at most `budget` tokens, rows of like length together, and cuts off padding.

    Args:
        inputs: tensors [rows, tokens], padded on the right, among them attention_mask and labels.
        budget: tokens of a part. A single row may be longer, and is a part of its own.
        padded: padding counts, and so do tokens that all rows share: the ordinary pass computes them, ours does not.
    """
    if "attention_mask" not in inputs:  # rows that the library has packed already
        yield inputs
        return
    lengths = inputs["attention_mask"].sum(dim=1)
    shared = 0 if padded else shared_prefix(inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
    part: list[int] = []
    cost = shared
    for row in lengths.argsort(descending=True, stable=True).tolist():
        # a shorter row is padded to the longest, which came first
        more = int(lengths[part[0] if padded and part else row]) - shared
        if part and cost + more > budget:
            yield _take(inputs, part, lengths)
            part, cost = [], shared
            more = int(lengths[row]) - shared
        part.append(row)
        cost += more
    yield _take(inputs, part, lengths)


def by_length(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Numbers of rows of like length, the longest first, in batches of at most `budget` padded tokens."""
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def padded(rows: list[Row], device: torch.device) -> Batch:
    """input_ids, attention_mask and labels, each [rows, tokens], padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens, _ in rows], batch_first=True)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for n, (tokens, start) in enumerate(rows):
        mask[n, : len(tokens)] = 1
        labels[n, start : len(tokens)] = ids[n, start : len(tokens)]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def _take(inputs: Batch, rows: list[int], lengths: torch.Tensor) -> Batch:
    width = int(lengths[rows].max())
    return {name: value[rows, :width] for name, value in inputs.items()}


def blank(inputs: Batch) -> Batch:
    """The same rows with nothing to learn."""
    return inputs | {"labels": torch.full_like(inputs["labels"], -100)}


def supervised_tokens(inputs: Batch) -> torch.Tensor:
    """How many tokens are learned; the first of a row has nothing before it that could predict it."""
    return (inputs["labels"][:, 1:] != -100).sum()
