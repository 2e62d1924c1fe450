"""Batches keep to their token budget, rows to their processors, and no prompt is cut."""

import copy

import pytest
import torch

from utils import cache, generation
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


def test_a_text_is_continued_where_it_ends(parts):
    """Without a turn around it; the space at its end goes with what follows."""
    model, tokenizer = parts
    config = GenerationConfig(max_new_tokens=6)
    found = {a.index: a for a in generate(model, tokenizer, ["The nurse said ", "The nurse said"], config)}
    ids = tokenizer("The nurse said", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert found[0].text == found[1].text == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert found[0].prompt_tokens == ids["input_ids"].shape[1]


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


TEXTS = [
    "a",
    "bb bb bb",
    "the quick brown fox, the quick brown fox, the quick",
    "x" * 60,
    "",
    "one two three " * 5,
] * 3


@pytest.fixture(scope="module")
def precise(tiny_model):
    from utils.loading import load_base

    ref = resolve(str(tiny_model))
    return load_base(ref, "none", {"compute_dtype": "float32"}).eval(), load_tokenizer(ref)


def texts_of(answers):
    return [(a.text, a.status, a.tokens) for a in sorted(answers, key=lambda a: a.index)]


def by_library(precise, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_reason_for_the_library", lambda model, config: "the test says so")
        return texts_of(generate(*precise, [chat(t) for t in TEXTS], GenerationConfig(**settings)))


@pytest.mark.parametrize("batch_tokens", [100, 700, 12_000])
def test_answers_are_those_of_the_library_whatever_the_slots(precise, monkeypatch, batch_tokens):
    """From one slot, where every row waits for the one before, to all rows at once."""
    wanted = by_library(precise, monkeypatch, max_new_tokens=25)
    found = generate(
        *precise, [chat(t) for t in TEXTS], GenerationConfig(max_new_tokens=25, batch_tokens=batch_tokens)
    )
    assert texts_of(found) == wanted


def test_rows_that_end_make_room_for_others(precise, monkeypatch):
    """Rows end at different times, by a guide; the cache is compacted and filled again on the way."""
    model, tokenizer = precise
    sizes = []
    resized = cache.RowCache.resized
    monkeypatch.setattr(
        cache.RowCache,
        "resized",
        lambda self, keep, slots, c: sizes.append((len(keep), slots)) or resized(self, keep, slots, c),
    )

    def stop_after(count):
        def process(written, scores):
            scores[tokenizer.eos_token_id] = 1e9 if len(written) >= count else -1e9
            return scores

        return process

    guides = [stop_after(n % 5 + 1) for n in range(len(TEXTS))]
    config = GenerationConfig(max_new_tokens=8, batch_tokens=600)
    answers = sorted(generate(model, tokenizer, [chat(t) for t in TEXTS], config, guides), key=lambda a: a.index)
    assert [a.tokens for a in answers] == [n % 5 + 1 for n in range(len(TEXTS))]
    assert {a.status for a in answers} == {"ok"}
    assert any(keep and slots > keep for keep, slots in sizes)  # some rows stayed, some came
    assert sizes[0][0] == 0 and len(sizes) > 3


def test_guesses_come_from_the_prompt_and_experience():
    """What came after the last two tokens, where they stood before."""
    row = generation._Row(0, [5, 6, 7, 8, 9, 5, 6], [])
    assert row.look_up() == [7, 8]  # two in three guesses are trusted to be right at first
    row.learn(right=20, wrong=0)
    assert row.look_up() == [7, 8, 9, 5, 6]
    row.learn(right=0, wrong=9)
    assert row.look_up() == []
    for _ in range(50):
        row.learn(0, 0)
    assert len(row.look_up()) == 1  # tried again
    row.written = [1]
    assert row.look_up() == []  # never seen before
    row.written = [1, 8, 9]
    assert row.look_up()[:1] == [5]


def test_nothing_to_answer(precise):
    config = GenerationConfig(max_prompt_tokens=1)
    assert [a.status for a in generate(*precise, [chat("a")], config)] == ["too_long"]
    assert list(generate(*precise, [], config)) == []


def test_prompts_that_share_nothing(precise, monkeypatch):
    model, tokenizer = precise
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    texts = [chat("abc"), chat("xyz")]
    found = texts_of(generate(model, tokenizer, texts, GenerationConfig(max_new_tokens=5)))
    monkeypatch.setattr(generation, "_reason_for_the_library", lambda model, config: "the test says so")
    assert texts_of(generate(model, tokenizer, texts, GenerationConfig(max_new_tokens=5))) == found


def test_guessing_saves_passes_and_changes_nothing(precise, monkeypatch):
    model, tokenizer = precise
    passes = []
    plain = cache.forward
    monkeypatch.setattr(generation, "forward", lambda *a: passes.append(a[3]) or plain(*a))
    config = GenerationConfig(max_new_tokens=60)
    chats = [chat(t) for t in TEXTS]
    found = texts_of(generate(model, tokenizer, chats, config))
    with_guesses = len(passes)
    assert any(len(new) > 1 for step in passes[2:] for new in step)
    passes.clear()
    monkeypatch.setattr(generation._Row, "look_up", lambda self: [])
    assert texts_of(generate(model, tokenizer, chats, config)) == found
    assert with_guesses < len(passes)  # a random model soon repeats itself


def test_chance_is_the_rows_own_and_the_nucleus_is_kept(precise):
    torch.manual_seed(3)
    config = GenerationConfig(max_new_tokens=12, temperature=1.0)
    chats = [chat("same")] * 4
    first = [a.text for a in sorted(generate(*precise, chats, config), key=lambda a: a.index)]
    assert len(set(first)) == 4
    torch.manual_seed(3)
    narrow = GenerationConfig(max_new_tokens=12, temperature=1.0, batch_tokens=50)  # one row at a time
    assert [a.text for a in sorted(generate(*precise, chats, narrow), key=lambda a: a.index)] == first
    greedy = GenerationConfig(max_new_tokens=12)
    only = GenerationConfig(max_new_tokens=12, temperature=1.0, top_p=1e-6)  # the likeliest token alone
    assert [a.text for a in generate(*precise, chats[:1], only)] == [
        a.text for a in generate(*precise, chats[:1], greedy)
    ]


def test_a_sampled_answer_depends_on_its_seed_alone(precise):
    """Not on the rows beside it: what is left after a kill gets the answers that it would have had."""
    config = GenerationConfig(max_new_tokens=12, temperature=1.0)
    chats, seeds = [chat(t) for t in TEXTS], [generation.seed_of(7, n) for n in range(len(TEXTS))]
    whole = texts_of(generate(*precise, chats, config, seeds=seeds))
    rest = texts_of(generate(*precise, chats[5:], config, seeds=seeds[5:]))
    assert rest == whole[5:] and len(set(seeds)) == len(TEXTS)


def test_a_model_that_the_cache_does_not_fit_is_left_to_the_library(precise, monkeypatch, caplog):
    import logging

    wanted = by_library(precise, monkeypatch, max_new_tokens=10)
    plain = cache.begin
    # as if the shared tokens had not been read
    monkeypatch.setattr(generation, "begin", lambda model, ids: plain(model, [7] * len(ids)))
    with caplog.at_level(logging.INFO):
        found = texts_of(generate(*precise, [chat(t) for t in TEXTS], GenerationConfig(max_new_tokens=10)))
    assert "our cache does not fit this model" in caplog.text and found == wanted
