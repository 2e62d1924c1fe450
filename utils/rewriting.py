"""From texts to rewritings by a model: the whole text at once, or what a spotter puts into brackets."""

import random
from collections.abc import Iterator
from pathlib import Path

from utils.configs import InferConfig
from utils.data import read_rewritings
from utils.decoding import fill_guide
from utils.edits import DROP, edits_between, fill, mark, read_fillings, words_of, write_fillings
from utils.generation import generate, seed_of
from utils.helpers import UserError, set_seed
from utils.loading import end_tokens, load_model, load_tokenizer
from utils.metrics import contains
from utils.models import ModelRef
from utils.prompts import rewrite_messages
from utils.spotter import Spot, load_spotter, spot


def rewrite(config: InferConfig, ref: ModelRef, template: str, texts: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """Yields (name of a text, its answer) as soon as it is there, in no particular order.

    `texts` are the texts by name: with a temperature, chance is drawn by name.

    An answer has `text`, `status` (see utils.generation.Answer), `tokens`, and with a spotter `spotted`, the phrases
    that it put into brackets.
    """
    set_seed(config.seed)
    names, seeds = list(texts), [seed_of(config.seed, name) for name in texts]
    answers = (_spotted if template == "fill" else _whole)(config, ref, template, list(texts.values()), seeds)
    return ((names[i], answer) for i, answer in answers)


def _whole(config: InferConfig, ref: ModelRef, template: str, texts: list, seeds: list) -> Iterator[tuple[int, dict]]:
    examples = worked_examples(config, template)  # a wrong --train_file shows before the model is loaded
    chats = [rewrite_messages(text, template, examples) for text in texts]
    model, tokenizer = load_model(ref, config.quantization), load_tokenizer(ref)
    for answer in generate(model, tokenizer, chats, config, seeds=seeds):
        yield answer.index, {"text": answer.text, "status": answer.status, "tokens": answer.tokens}


def _spotted(
    config: InferConfig, ref: ModelRef, template: str, texts: list[str], seeds: list[int]
) -> Iterator[tuple[int, dict]]:
    """In two steps: the spotter puts brackets around what is unfair, the model writes what goes into them."""
    examples = worked_examples(config, template)
    tokenizer = load_tokenizer(ref)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    short = [i for i, length in enumerate(lengths) if length <= config.max_prompt_tokens]
    for i in set(range(len(texts))) - set(short):
        yield i, {"text": "", "status": "too_long", "tokens": 0}
    if not short:
        return
    spotter = load_spotter(Path(config.spotter))
    found = spot(spotter, [texts[i] for i in short], config.spot_threshold, config.spot_spread)
    spots = {i: spots for i, spots in zip(short, found, strict=True) if spots}
    for i in set(short) - set(spots):
        yield i, {"text": texts[i], "status": "ok", "tokens": 0, "spotted": []}
    if not spots:
        return
    model, asked = load_model(ref, config.quantization), list(spots)
    ends = end_tokens(model.generation_config, tokenizer)
    spans = {i: [spot.span for spot in spots[i]] for i in asked}
    chats = [rewrite_messages(mark(texts[i], spans[i]), template, examples) for i in asked]
    guides = [fill_guide(tokenizer, banned(texts[i], spots[i]), ends) for i in asked]
    for answer in generate(model, tokenizer, chats, config, guides, [seeds[i] for i in asked]):
        i = asked[answer.index]
        fillings = read_fillings(answer.text)
        for number, bracket in enumerate(spots[i], 1):  # spelled with other tokens than those that the guide forbids
            if contains(fillings.get(number, ""), bracket.worst):
                fillings[number] = ""
        text = "" if answer.status == "too_long" else fill(texts[i], spans[i], fillings)
        spotted = [texts[i][start:end] for start, end in spans[i]]
        yield i, {"text": text, "status": answer.status, "tokens": answer.tokens, "spotted": spotted}


def banned(text: str, spots: list[Spot]) -> list[list[str]]:
    """For each bracket the words that must not be put there: what was found unfair, and the sign that opens "(drop)"
    where no word of the text stands outside the brackets, since nothing would remain."""
    remains = words_of(fill(text, [spot.span for spot in spots], {}))
    return [[spot.worst] if remains else [spot.worst, DROP[0]] for spot in spots]


def worked_examples(config: InferConfig, template: str) -> list[tuple[str, str]]:
    """Pairs for the prompt: short ones, biased and neutral, chosen by seed."""
    if not config.shots:
        return []
    pairs = read_rewritings(config.train_file, config.input_column, config.reference_column)
    short = [pair for pair in pairs if len(pair[0]) < 200]
    if template == "fill":
        edited = [(source, edits_between(source, rewriting)) for source, rewriting in short]
        short = [(mark(s, [edit.span for edit in edits]), write_fillings(edits)) for s, edits in edited if edits]
    if len(short) < config.shots:
        raise UserError(f"--shots {config.shots}: {config.train_file} has {len(short)} pairs under 200 characters")
    return random.Random(config.seed).sample(short, config.shots)
