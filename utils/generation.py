"""Answers to many prompts: the text that all prompts begin with runs once, the longest rows come first, and a row that
is finished makes room for the next one. Rewriting copies, so what comes next is guessed from the prompt and checked.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from tqdm import tqdm
from transformers import LogitsProcessorList

from utils import params
from utils.batches import by_length
from utils.cache import RowCache, begin, forward
from utils.configs import GenerationConfig
from utils.data import content_id
from utils.decoding import Processor, draw
from utils.int8 import is_quantised
from utils.loading import end_tokens
from utils.packing import supports, tolerance

logger = logging.getLogger(__name__)
Messages = list[dict[str, str]]

# what bends the answer of a model; some bring other values (BART: no three tokens twice, an end forced at the limit)
PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
         "length_penalty": 1.0, "early_stopping": False, "forced_eos_token_id": None}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer. `status`: ok, truncated (hit max_new_tokens) or too_long (the prompt was over the limit)."""

    index: int
    text: str
    status: str
    prompt_tokens: int
    tokens: int


def generate(
    model,
    tokenizer,
    chats: list[Messages] | list[str],
    config: GenerationConfig,
    processors: list[Processor] | None = None,
    seeds: list[int] | None = None,
) -> Iterator[Answer]:
    """Answers chats, in no particular order: use `Answer.index`.

    Of the model's own generation settings only its end tokens are used. With a temperature each row has a random
    generator of its own, so that an answer does not depend on the rows beside it (nor on those done before a kill);
    where the library generates, on CUDA and with beams, it does.

    Args:
        chats: one list of chat messages per row; or texts, to be continued as they stand.
        config: lengths, temperature, token budget.
        processors: per row, an object called with (generated token ids, scores [vocab]) that returns scores;
            or None. See utils/decoding.py.
        seeds: per row, of its random generator; None: drawn from the global one. See `seed_of`.
    """
    if seeds is None:
        seeds = [int(torch.randint(2**62, ())) for _ in chats]
    ids = [_prompt_ids(tokenizer, chat) for chat in chats]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # the largest first: memory trouble shows at once
    too_long = [i for i in order if len(ids[i]) > config.max_prompt_tokens]
    for i in too_long:
        yield Answer(i, "", "too_long", len(ids[i]), 0)
    order = order[len(too_long) :]
    with tqdm(total=len(ids), initial=len(too_long), unit="row", disable=len(ids) < 2) as bar:
        for i, tokens, finished in _write(model, tokenizer, order, ids, config, processors, seeds):
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            yield Answer(i, text, "ok" if finished else "truncated", len(ids[i]), len(tokens))
            bar.update()


def _prompt_ids(tokenizer, chat: Messages | str) -> list[int]:
    if isinstance(chat, str):  # a space at its end belongs to the word that follows
        return tokenizer(chat.rstrip())["input_ids"]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def seed_of(*names: object) -> int:
    """A seed for what has these names: the same wherever, and whenever, it comes to its turn."""
    return int(content_id(*map(str, names)), 16)


def _write(model, tokenizer, order, ids, config, processors, seeds) -> Iterator[tuple[int, list[int], bool]]:
    """Yields (row, new token ids without the end token, whether the answer ended by itself)."""
    if not order:
        return
    reason = _reason_for_the_library(model, config) or _mismatch(model, order, ids)
    if reason is None:
        yield from _write_rows(model, tokenizer, order, ids, config, processors, seeds)
        return
    logger.info("the library generates the answers: %s", reason)
    for batch in _batches(order, ids, config):
        rows = [processors[i] for i in batch] if processors else None
        yield from _write_by_library(model, tokenizer, batch, ids, config, rows)


def _reason_for_the_library(model, config: GenerationConfig) -> str | None:
    """Why our cache is not used; None if it is."""
    if config.num_beams > 1:
        return "beams share what is written"
    if model.device.type != "cpu":
        return "the device has fused kernels for it"
    return supports(model)


@torch.inference_mode()
def _mismatch(model, order: list[int], ids: list[list[int]]) -> str | None:
    """Whether the cache gives other scores than the model's own forward pass, on the two shortest prompts."""
    few = [ids[i] for i in order[-2:]]
    wanted = [model(input_ids=torch.tensor([row], device=model.device)).logits[0, -1].float() for row in few]
    try:
        common = _shared(few)
        cache = begin(model, few[0][:common]).resized([], len(few), len(few[0]))
        states = forward(model, cache, list(range(len(few))), [row[common:] for row in few])
    except (NotImplementedError, TypeError) as error:
        return str(error)
    ends = torch.tensor([len(row) - common for row in few]).cumsum(0) - 1
    found = model.get_output_embeddings()(states[ends]).float()
    apart = (torch.softmax(found, dim=-1) - torch.softmax(torch.stack(wanted), dim=-1)).abs().sum(dim=-1).max().item()
    fits = apart <= tolerance(torch.int8 if is_quantised(model) else model.dtype)
    return None if fits else f"our cache does not fit this model (probabilities differ by {apart:.2g})"


def _shared(ids: list[list[int]]) -> int:
    """How many tokens all rows begin with; at least one of each row is left."""
    least = min(map(len, ids)) - 1
    first = ids[0]
    return next((n for n in range(least) if any(row[n] != first[n] for row in ids)), max(least, 0))


@dataclass
class _Row:
    """A row that is being written."""

    index: int
    prompt: list[int]
    pending: list[int]  # tokens whose keys are not in the cache yet
    guide: Processor | None = None
    seed: int | None = None  # where chance decides
    generator: torch.Generator | None = None
    guess: list[int] = field(default_factory=list)  # what may come after them
    written: list[int] = field(default_factory=list)
    trust: float = params.LOOKUP_TRUST  # how likely a guessed token is right, by experience with this row
    finished: bool = False
    places: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> where it was last followed
    known: int = 0

    def look_up(self) -> list[int]:
        """What came after the last tokens when they stood in the prompt or the answer before."""
        text = self.prompt + self.written
        size = params.LOOKUP_NGRAM
        for n in range(max(self.known, size), len(text)):
            self.places[tuple(text[n - size : n])] = n
        self.known = len(text)
        start = self.places.get(tuple(text[-size:]))
        count = min(int(self.trust / (1 - self.trust)), params.LOOKUP_MOST)  # as many as will be right in a row
        return text[start : start + count] if start else []

    def learn(self, right: int, wrong: int) -> None:
        """Adapts `trust` to how many guesses were right; without any it rises slowly, to try again."""
        for outcome in [1.0] * right + [0.0] * wrong:
            self.trust += params.LOOKUP_RATE * (outcome - self.trust)
        if not right + wrong:
            self.trust += params.LOOKUP_RATE / 20
        self.trust = min(self.trust, 0.95)


@torch.inference_mode()
def _write_rows(model, tokenizer, order, ids, config, processors, seeds) -> Iterator[tuple[int, list[int], bool]]:
    ends = end_tokens(model.generation_config, tokenizer)
    common = _shared([ids[i] for i in order])
    cache = begin(model, ids[order[0]][:common])
    chance = seeds if config.temperature > 0 else dict.fromkeys(order)
    waiting = [  # the longest is popped first
        _Row(i, ids[i], ids[i][common:], processors[i] if processors else None, chance[i]) for i in order[::-1]
    ]
    rows: list[_Row | None] = []  # by slot
    while waiting or any(row is not None for row in rows):
        writing = sum(row is not None for row in rows)
        if writing <= (0.75 if waiting else 0.5) * cache.slots:
            rows, cache = _refill(cache, rows, waiting, config)
        new = [slot for slot, row in enumerate(rows) if row and not row.written]
        for slots in (new, [slot for slot, row in enumerate(rows) if row and row.written]):
            if not slots:
                continue
            _step(model, cache, [rows[slot] for slot in slots], slots, config, ends)
        for slot, row in enumerate(rows):
            if row and row.finished:
                yield row.index, [t for t in row.written if t not in ends], row.written[-1] in ends
                rows[slot] = None


def _refill(
    cache: RowCache, rows: list[_Row | None], waiting: list[_Row], config: GenerationConfig
) -> tuple[list[_Row | None], RowCache]:
    """Drops finished rows and takes as many of those that wait as the token budget admits. Returns rows and cache."""
    kept = [slot for slot, row in enumerate(rows) if row]
    rows = [rows[slot] for slot in kept]
    room = max(len(row.prompt) for row in rows + waiting[-1:]) + config.max_new_tokens + params.LOOKUP_MOST
    while waiting and (not rows or (len(rows) + 1) * room <= config.batch_tokens):
        row = waiting.pop()
        if row.seed is not None:
            row.generator = torch.Generator().manual_seed(row.seed)
        rows.append(row)
    return rows, cache.resized(kept, len(rows), room)


def _step(model, cache: RowCache, rows: list[_Row], slots: list[int], config: GenerationConfig, ends) -> None:
    """One pass: every row gets at least one token."""
    states = forward(model, cache, slots, [row.pending + row.guess for row in rows])
    wanted, start = [], 0  # the states after the last token that is certain, and after each guess
    for row in rows:
        first = start + len(row.pending) - 1
        start = first + 1 + len(row.guess)
        wanted += range(first, start)
    scores = model.get_output_embeddings()(states[wanted]).float()
    best = scores.argmax(dim=-1).tolist()
    at = 0
    for row, slot in zip(rows, slots, strict=True):
        mine = slice(at, at + 1 + len(row.guess))
        at = mine.stop
        if row.guide or row.generator:
            tokens = [_choose(row, scores[mine.start], config)]
        else:
            tokens = best[mine]
            wrong = (n for n, (guess, token) in enumerate(zip(row.guess, tokens, strict=False)) if guess != token)
            right = next(wrong, len(row.guess))
            tokens = tokens[: right + 1]
            cache.lengths[slot] -= len(row.guess) - right
            row.learn(right, wrong=right < len(row.guess))
        for token in tokens:
            row.written.append(token)
            row.finished = token in ends or len(row.written) == config.max_new_tokens
            if row.finished:
                break
        row.pending = row.written[-1:]
        row.guess = [] if row.guide or row.generator or row.finished else row.look_up()


def _choose(row: _Row, scores: torch.Tensor, config: GenerationConfig) -> int:
    """The next token of a row with a guide or with chance: scores [vocabulary] of the token to come."""
    if row.guide:
        scores = row.guide(row.written, scores)
    if not row.generator:
        return int(scores.argmax())
    return draw(scores, config, row.generator)


def _batches(order: list[int], ids: list[list[int]], config: GenerationConfig) -> Iterator[list[int]]:
    """Splits sorted rows so that (longest prompt + answer budget) x rows stays under the token budget."""
    lengths = [len(ids[i]) + config.max_new_tokens for i in order]
    for batch in by_length(lengths, config.batch_tokens // config.num_beams):
        yield [order[n] for n in batch]


@torch.inference_mode()
def _write_by_library(model, tokenizer, batch, ids, config, processors) -> Iterator[tuple[int, list[int], bool]]:
    """A batch by transformers' generate, for beams and for models that our cache does not fit."""
    padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
    # an encoder-decoder returns no prompt, but the token that its decoder starts with
    width = 1 if model.config.is_encoder_decoder else padded["input_ids"].shape[1]
    ends = end_tokens(model.generation_config, tokenizer)
    output = model.generate(
        **padded.to(model.device),
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        temperature=config.temperature if config.temperature > 0 else None,
        top_p=config.top_p if config.temperature > 0 else None,
        top_k=config.top_k if config.temperature > 0 else None,
        **PLAIN,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        num_beams=config.num_beams,
        logits_processor=LogitsProcessorList([_PerRow(processors, width)] if processors else []),
    )
    for i, row in zip(batch, output[:, width:].tolist(), strict=True):
        length = next((n for n, token in enumerate(row) if token in ends), None)
        yield i, row[:length], length is not None


class _PerRow:
    """Calls one processor per row of a batch; with beams, the beams of a row stand one after the other."""

    def __init__(self, processors: list, prompt_width: int):
        self.processors, self.prompt_width = processors, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[:, self.prompt_width :].tolist()
        beams = len(new) // len(self.processors)
        return torch.stack([self.processors[i // beams](new[i], scores[i]) for i in range(len(new))])
