"""Decoding of fillings (utils/edits.py): as many lines as there are brackets, and what was found unfair stays out."""

from collections.abc import Callable, Sequence

import torch

Processor = Callable[[list[int], torch.Tensor], torch.Tensor]


def fill_guide(tokenizer, banned: Sequence[str], end_tokens: set[int]) -> Processor:
    """A processor for one row, see `utils.generation.generate`. It keeps no state, so beams may be reordered.

    A small model likes to put back what stood in the bracket, and to go on with brackets that do not exist.

    Args:
        banned: for each bracket, in order, the word that its line must not hold.
        end_tokens: tokens that end an answer.
    """
    sequences = [_spellings(tokenizer, word) for word in banned]

    def process(written: list[int], scores: torch.Tensor) -> torch.Tensor:
        line = tokenizer.decode(written).count("\n")
        if line >= len(sequences):
            only_ends = torch.full_like(scores, float("-inf"))
            only_ends[list(end_tokens)] = scores[list(end_tokens)]
            return only_ends
        for tokens in sequences[line]:
            if len(tokens) == 1 or written[1 - len(tokens) :] == tokens[:-1]:
                scores[tokens[-1]] = float("-inf")
        return scores

    return process


def _spellings(tokenizer, word: str) -> list[list[int]]:
    """Token ids of the word in the usual cases, inside a line and at its start."""
    cases = {word, word.lower(), word.capitalize(), word.upper()}
    texts = sorted(cases | {f" {case}" for case in cases})
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
