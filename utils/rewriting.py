"""From texts to rewritings by a model: the whole text at once, or what a spotter puts into brackets."""

import logging
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from utils.answers import Answers, Request
from utils.configs import InferConfig
from utils.data import read_rewritings
from utils.decoding import fill_guide
from utils.edits import DROP, edits_between, fill, mark, read_fillings, words_of, write_fillings
from utils.engines import open_budget, open_engine
from utils.generation import generate, seed_of
from utils.helpers import UserError, set_seed
from utils.loading import end_tokens, load_model, load_tokenizer
from utils.metrics import contains
from utils.models import ModelRef
from utils.prompts import CONTINUE, rewrite_messages
from utils.spotter import Spot, load_spotter, spot

logger = logging.getLogger(__name__)

# texts by name -> (name, answer) as soon as an answer is there, in no particular order
Rewriter = Callable[[dict[str, str]], Iterator[tuple[str, dict]]]


def make_rewriter(config: InferConfig, ref: ModelRef, template: str, at_once: bool = False) -> Rewriter:
    """A function that rewrites texts. What it needs is loaded once: now, or when a text is there that needs it.

    An answer has `text`, `status` (see utils.generation.Answer), `tokens`, and with a spotter `spotted`, the phrases
    that it put into brackets. With a temperature, chance is drawn by the name of a text.
    """
    load = cache(partial(_load, config, ref, template))
    examples = worked_examples(config, template)
    write, needed = (_whole, ("tokenizer", "model"))
    if template == "fill":
        write, needed = _spotted, (*needed, "spotter")
    for what in needed if at_once else ():
        load(what)

    def rewrite(texts: dict[str, str]) -> Iterator[tuple[str, dict]]:
        set_seed(config.seed)
        names, seeds = list(texts), [seed_of(config.seed, name) for name in texts]
        for i, answer in write(config, load, template, examples, list(texts.values()), seeds):
            yield names[i], answer

    return rewrite


def _load(config: InferConfig, ref: ModelRef, template: str, what: str):
    if what == "model":
        return load_model(ref, config.quantization)
    if what == "tokenizer":
        return load_tokenizer(ref, chat=template != CONTINUE, style=config.prompt_style)
    return load_spotter(Path(config.spotter))


def _whole(config: InferConfig, load, template: str, examples, texts: list, seeds: list) -> Iterator[tuple[int, dict]]:
    chats = texts if template == CONTINUE else [rewrite_messages(text, template, examples) for text in texts]
    for answer in generate(load("model"), load("tokenizer"), chats, config, seeds=seeds):
        yield answer.index, {"text": answer.text, "status": answer.status, "tokens": answer.tokens}


def _spotted(
    config: InferConfig, load, template: str, examples, texts: list, seeds: list
) -> Iterator[tuple[int, dict]]:
    """In two steps: the spotter puts brackets around what is unfair, the model writes what goes into them."""
    tokenizer = load("tokenizer")
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    short = [i for i, length in enumerate(lengths) if length <= config.max_prompt_tokens]
    for i in set(range(len(texts))) - set(short):
        yield i, {"text": "", "status": "too_long", "tokens": 0}
    if not short:
        return
    found = spot(load("spotter"), [texts[i] for i in short], config.spot_threshold, config.spot_spread)
    spots = {i: spots for i, spots in zip(short, found, strict=True) if spots}
    for i in set(short) - set(spots):
        yield i, {"text": texts[i], "status": "ok", "tokens": 0, "spotted": []}
    if not spots:
        return
    model, asked = load("model"), list(spots)
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


def rewrite_by_server(config: InferConfig, template: str, texts: dict[str, str], output: Path) -> tuple[dict, dict]:
    """Answers of a server by name of the text, as of a rewriter, and what is to be kept of it in the record.

    Every answer is kept in `<output>.answers.jsonl` as it comes, and is never asked for again. Further statuses:
    refused, filtered and failed, whose text is empty. Equal texts are asked once.
    """
    examples = worked_examples(config, template)
    settings = {"model": config.model, "prompt": template, "shots": config.shots, "temperature": config.temperature}
    settings |= {"max_new_tokens": config.max_new_tokens, "seed": config.seed}
    answers = Answers(output.with_name(output.name + ".answers.jsonl"), settings, config.overwrite)
    budget = open_budget(config, answers)
    requests = {
        name: Request(
            model=config.model,
            messages=rewrite_messages(str(text), template, examples),
            temperature=config.temperature,
            max_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        for name, text in texts.items()
    }
    left = len({request.key for request in requests.values() if request.key not in answers})
    errors = open_engine(config)(iter(requests.values()), answers, budget, left)
    found = {}
    for name, request in requests.items():
        answer = answers.get(request.key)
        status = _STATUS[answer.end] if answer else "failed"
        text = answer.text.strip() if status in ("ok", "truncated") else ""
        found[name] = {"text": text, "status": status, "tokens": answer.tokens_out if answer else 0}
    answers.close()
    record = {"servers": sorted(answers.servers), "models": sorted(answers.models), "usd": budget.spent()}
    if errors:
        logger.warning("%d requests failed, the last one: %s", len(errors), next(reversed(errors.values())))
    return found, record


_STATUS = {"stop": "ok", "length": "truncated", "refused": "refused", "filtered": "filtered"}


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
