"""Which token comes next: by chance, or under the guide of fillings.

Fillings (utils/edits.py) are one numbered line per bracket, in which what was found unfair does not come back: a small
model likes to leave brackets out, to go on with brackets that do not exist, and to put back what stood there.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from utils.configs import GenerationConfig

TELLING = 4  # letters of a word's first token that tell which word is coming

Processor = Callable[[list[int], torch.Tensor], torch.Tensor]


def draw(scores: torch.Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
    """A token by chance: of the `top_k` likeliest ones, those that together hold `top_p` of the probability.

    Args:
        scores: [vocabulary], logits.
    """
    scores, tokens = (scores / config.temperature).topk(min(config.top_k, len(scores)) or len(scores))
    probabilities = torch.softmax(scores, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= config.top_p, 0).cpu()  # the nucleus, never empty
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def fill_guide(tokenizer, banned: Sequence[Sequence[str]], end_tokens: set[int]) -> Processor:
    """A processor for one row, see `utils.generation.generate`. It keeps no state, so beams may be reordered.

    Args:
        banned: for each bracket, in order, the words that its line must not hold.
        end_tokens: tokens that end an answer.
    """
    ends = sorted(end_tokens)
    breaks = _blank_lines(tokenizer)
    numbers = [tokenizer(f"{number}:", add_special_tokens=False)["input_ids"] for number in range(1, len(banned) + 1)]
    spellings = [[tokens for word in words for tokens in _spellings(tokenizer, word)] for words in banned]

    def process(written: list[int], scores: torch.Tensor) -> torch.Tensor:
        *before, line = tokenizer.decode(written).split("\n")
        if len(before) >= len(banned):
            return _only(ends, scores)
        number = len(before)
        if not line.startswith(f"{number + 1}:"):
            done = len(tokenizer(line, add_special_tokens=False)["input_ids"]) if line else 0
            return _only(numbers[number][done : done + 1] or ends, scores)
        scores[breaks] = float("-inf")
        if number < len(banned) - 1:
            scores[ends] = float("-inf")
        for tokens in spellings[number]:
            if len(tokens) == 1 or written[1 - len(tokens) :] == tokens[:-1]:
                scores[tokens[-1]] = float("-inf")
        return scores

    return process


def _only(tokens: list[int], scores: torch.Tensor) -> torch.Tensor:
    """Scores that leave nothing but these tokens."""
    left = torch.full_like(scores, float("-inf"))
    left[tokens] = scores[tokens].clamp(min=-1e4)
    return left


def _spellings(tokenizer, word: str) -> list[list[int]]:
    """Token ids of the word in the usual cases, inside a line and at its start.

    Of a word in several tokens the first is enough where it tells what is coming: a model that may begin "pension" but
    not end it with "ers" writes "pensionrs".
    """
    cases = {word, word.lower(), word.capitalize(), word.upper()}
    texts = sorted(cases | {f" {case}" for case in cases})
    spellings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [ids[:1] if len(tokenizer.decode(ids[:1]).strip()) >= TELLING else ids for ids in spellings]


@lru_cache(maxsize=1)
def _blank_lines(tokenizer) -> list[int]:
    """Tokens that hold more than one line break, and would skip a bracket."""
    return [token for token in range(len(tokenizer)) if tokenizer.decode([token]).count("\n") > 1]
