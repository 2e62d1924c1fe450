"""How likely is each of several answers to a model? Nothing is generated, and what answers follow is run once.

For probes of bias, and for judges and guards whose verdict is one of a few words.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from utils import params
from utils.batches import Row, padded
from utils.likelihood import log_likelihoods, packed_log_likelihoods
from utils.loading import begin_token
from utils.packing import pack_tree, supports
from utils.prompt_styles import user_turn

# a text, and what may follow it, each with the space before it; where the text is "" the answers stand alone
Question = tuple[str, tuple[str, ...]]


class Likelihood(NamedTuple):
    """Of each answer to a question: its log-likelihood in nats, float [options], and its tokens, int [options]."""

    nats: np.ndarray
    tokens: np.ndarray


PADDED_COST = 4  # the ordinary way holds the logits of every token in memory


def option_likelihoods(
    model, tokenizer, questions: list[Question], special: bool = True
) -> Iterator[tuple[int, Likelihood]]:
    """Numbers of questions, and the likelihoods of their answers.

    Text and answer are encoded together, and the answer begins after as many tokens as the text has alone; an answer
    without a text follows the begin-of-text token (as in lm-evaluation-harness). NaN for all answers to a question
    where one is empty, or does not fit into the model's context. Questions about one text should stand together: it
    is run once for a batch of them.

    Args:
        model: a causal LM, alone or with an adapter, in eval mode.
        special: the tokenizer adds what it adds to any text; False where the texts hold special tokens already.
    """
    encoded = [_encode(tokenizer, question, special) for question in questions]
    ours = supports(model) is None
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    batch, left = [], params.OPTION_BATCH_TOKENS
    for number, rows in enumerate(encoded):
        size = max(len(ids) for ids, _ in rows)
        if size > longest or not all(option.strip() for option in questions[number][1]):
            yield number, Likelihood(np.full(len(rows), np.nan), _tokens(rows))
            continue
        cost = size + int(_tokens(rows).sum()) if ours else PADDED_COST * size * len(rows)
        if batch and cost > left:
            yield from _run(model, encoded, batch)
            batch, left = [], params.OPTION_BATCH_TOKENS
        batch.append(number)
        left -= cost
    if batch:
        yield from _run(model, encoded, batch)


def as_turn(question: Question, tokenizer) -> Question:
    """The question as a user's turn, the answers as what an assistant says."""
    context = tokenizer.apply_chat_template([user_turn(question[0])], tokenize=False, add_generation_prompt=True)
    return context, tuple(option.lstrip() for option in question[1])


def _encode(tokenizer, question: Question, special: bool) -> list[Row]:
    context, options = question
    if not context:
        return [
            ([begin_token(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]], 1) for text in options
        ]
    start = len(tokenizer(context, add_special_tokens=special)["input_ids"])
    whole = tokenizer([context + option for option in options], add_special_tokens=special)["input_ids"]
    # at least one token is the answer's, where its first letters have become one with the end of the text
    return [(ids, max(1, min(start, len(ids) - 1))) for ids in whole]


def _tokens(rows: list[Row]) -> np.ndarray:
    return np.array([len(ids) - start for ids, start in rows])


def _run(model, encoded: list[list[Row]], numbers: list[int]) -> Iterator[tuple[int, Likelihood]]:
    rows = [row for number in numbers for row in encoded[number]]
    nats = None
    if supports(model) is None:
        with contextlib.suppress(NotImplementedError):  # its attention wants more than ours gives
            nats = packed_log_likelihoods(model, pack_tree(*map(list, zip(*rows, strict=True)), device=model.device))
    if nats is None:
        nats = log_likelihoods(model, padded(rows, model.device))
    found = iter(nats.tolist())
    for number in numbers:
        yield number, Likelihood(np.array([next(found) for _ in encoded[number]]), _tokens(encoded[number]))
