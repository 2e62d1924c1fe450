"""Batched generation: longest prompts first, in batches of a token budget; answers come as soon as a batch is done."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import LogitsProcessorList

from utils.configs import GenerationConfig
from utils.decoding import Processor
from utils.loading import end_tokens

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]


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
    chats: list[Messages],
    config: GenerationConfig,
    processors: list[Processor] | None = None,
) -> Iterator[Answer]:
    """Answers chats, in no particular order: use `Answer.index`.

    Args:
        chats: one list of chat messages per row.
        config: lengths, temperature, token budget.
        processors: per row, an object called with (generated token ids, scores [vocab]) that returns scores;
            or None. See utils/decoding.py.
    """
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    order = sorted(
        range(len(ids)), key=lambda i: -len(ids[i])
    )  # the largest batch first: memory trouble shows at once
    too_long = [i for i in order if len(ids[i]) > config.max_prompt_tokens]
    for i in too_long:
        yield Answer(i, "", "too_long", len(ids[i]), 0)
    with tqdm(total=len(ids), initial=len(too_long), unit="row", disable=len(ids) < 2) as bar:
        for batch in _batches([i for i in order if i not in set(too_long)], ids, config):
            rows = [processors[i] for i in batch] if processors else None
            for i, (tokens, finished) in _generate_batch(model, tokenizer, batch, ids, config, rows):
                text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                yield Answer(i, text, "ok" if finished else "truncated", len(ids[i]), len(tokens))
            bar.update(len(batch))


def _batches(order: list[int], ids: list[list[int]], config: GenerationConfig) -> Iterator[list[int]]:
    """Splits sorted rows so that (longest prompt + answer budget) x rows stays under the token budget."""
    batch: list[int] = []
    for i in order:
        widest = len(ids[batch[0]] if batch else ids[i]) + config.max_new_tokens
        if batch and widest * (len(batch) + 1) * config.num_beams > config.batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _generate_batch(model, tokenizer, batch, ids, config, processors) -> Iterator[tuple[int, tuple[list[int], bool]]]:
    """Yields (row, (new token ids without the end token, whether the answer ended by itself))."""
    padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt")
    width = padded["input_ids"].shape[1]
    ends = end_tokens(model.generation_config, tokenizer)
    output = model.generate(
        **padded.to(model.device),
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        temperature=config.temperature if config.temperature > 0 else None,
        top_p=config.top_p if config.temperature > 0 else None,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        num_beams=config.num_beams,
        logits_processor=LogitsProcessorList([_PerRow(processors, width)] if processors else []),
    )
    for i, row in zip(batch, output[:, width:].tolist(), strict=True):
        length = next((n for n, token in enumerate(row) if token in ends), None)
        yield i, (row[:length], length is not None)


class _PerRow:
    """Calls one processor per row of a batch; with beams, the beams of a row stand one after the other."""

    def __init__(self, processors: list, prompt_width: int):
        self.processors, self.prompt_width = processors, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[:, self.prompt_width :].tolist()
        beams = len(new) // len(self.processors)
        return torch.stack([self.processors[i // beams](new[i], scores[i]) for i in range(len(new))])
