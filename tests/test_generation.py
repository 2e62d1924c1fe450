"""Batches keep to their token budget, rows to their processors, and no prompt is cut."""

import pytest
import torch

from utils.configs import GenerationConfig
from utils.generation import _batches, _PerRow, generate
from utils.loading import load_model, load_tokenizer
from utils.models import resolve


def test_batches_are_longest_first_and_within_the_budget():
    ids = [[0] * n for n in (50, 40, 30, 5, 5, 5)]
    config = GenerationConfig(max_new_tokens=10, batch_tokens=120)
    batches = list(_batches([0, 1, 2, 3, 4, 5], ids, config))
    assert batches == [[0, 1], [2, 3, 4], [5]]  # 60 x 2, 40 x 3, the rest
    halved = list(
        _batches([0, 1, 2, 3, 4, 5], ids, GenerationConfig(max_new_tokens=10, batch_tokens=120, num_beams=2))
    )
    assert halved == [[0], [1], [2], [3, 4, 5]]  # beams count; a row that is over the budget alone still runs
    assert max(len(batch) for batch in halved) * 15 * 2 <= 120


def test_each_row_and_each_of_its_beams_meets_its_own_processor():
    seen = []

    def processor(name):
        def process(written, scores):
            seen.append((name, written))
            return scores + name

        return process

    per_row = _PerRow([processor(1), processor(2)], prompt_width=1)
    scores = per_row(torch.tensor([[9, 5], [9, 6], [9, 7], [9, 8]]), torch.zeros(4, 3))
    assert seen == [(1, [5]), (1, [6]), (2, [7]), (2, [8])]
    assert scores[:, 0].tolist() == [1, 1, 2, 2]


@pytest.fixture(scope="module")
def parts(tiny_model):
    ref = resolve(str(tiny_model))
    return load_model(ref), load_tokenizer(ref)


def chat(text):
    return [{"role": "user", "content": text}]


def test_every_row_is_answered_once_and_long_prompts_are_left_alone(parts):
    texts = ["a", "much longer than the others " * 8, "bb", "over the limit " * 100]
    config = GenerationConfig(max_new_tokens=4, max_prompt_tokens=400, batch_tokens=400)
    answers = {a.index: a for a in generate(*parts, [chat(text) for text in texts], config)}
    assert sorted(answers) == [0, 1, 2, 3]
    assert answers[3].status == "too_long" and answers[3].text == "" and answers[3].prompt_tokens > 400
    assert all(answers[i].tokens <= 4 for i in range(3))


def test_a_processor_decides_what_is_written_also_with_beams(parts):
    model, tokenizer = parts
    wanted = tokenizer("yes", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]

    def say_yes(written, scores):
        forced = torch.full_like(scores, -1e9)
        forced[wanted[min(len(written), len(wanted) - 1)]] = 0
        return forced

    for beams in (1, 2):
        config = GenerationConfig(max_new_tokens=8, num_beams=beams)
        answers = list(generate(model, tokenizer, [chat("a"), chat("bcd")], config, [say_yes, say_yes]))
        assert [(a.text, a.status) for a in answers] == [("yes", "ok")] * 2
