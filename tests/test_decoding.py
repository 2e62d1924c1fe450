"""The guide of fillings: one line per bracket, and the word that was found unfair does not come back."""

import pytest
import torch

from utils.configs import GenerationConfig
from utils.decoding import _spellings, draw, fill_guide
from utils.generation import generate
from utils.loading import end_tokens, load_model, load_tokenizer
from utils.models import resolve


@pytest.fixture(scope="module")
def parts(tiny_model):
    ref = resolve(str(tiny_model))
    return load_model(ref), load_tokenizer(ref)


def answer(parts, banned, wanted):
    """What comes out when the model is sure of the text `wanted`, token by token, and second of the letter z."""
    model, tokenizer = parts
    tokens = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    guide = fill_guide(tokenizer, banned, end_tokens(model.generation_config, tokenizer))
    z = tokenizer("z", add_special_tokens=False)["input_ids"][0]

    def sure(written, scores):
        scores = torch.zeros_like(scores)
        scores[z] = 5.0
        if len(written) < len(tokens):
            scores[tokens[len(written)]] = 10.0
        return guide(written, scores)

    chats = [[{"role": "user", "content": "x"}]]
    return next(generate(model, tokenizer, chats, GenerationConfig(max_new_tokens=30), [sure]))


def test_chance_keeps_to_the_likeliest_tokens():
    scores = torch.tensor([1.0, 3.0, 2.9, -1.0, 2.8])
    drawn = {
        (top_k, top_p): {
            draw(scores, GenerationConfig(temperature=1.0, top_k=top_k, top_p=top_p), torch.Generator().manual_seed(n))
            for n in range(200)
        }
        for top_k, top_p in ((1, 1.0), (2, 1.0), (0, 0.5), (9, 1.0))
    }
    assert drawn[1, 1.0] == {1} and drawn[2, 1.0] == {1, 2} and drawn[0, 0.5] == {1, 2}
    assert drawn[9, 1.0] >= {0, 1, 2, 4}


def test_the_answer_ends_after_the_line_of_the_last_bracket(parts):
    result = answer(parts, [["fool"], ["rude"]], "1: a\n2: b\n3: c\n4: d")
    assert (result.text, result.status) == ("1: a\n2: b", "ok")


def test_the_banned_word_of_a_line_cannot_be_finished_in_any_case(parts):
    for spelling in ("fool", "Fool", "FOOL"):
        assert answer(parts, [["fool"]], f"1: {spelling}\n").text.lower() == "1: fooz"


def test_a_word_is_banned_in_its_own_line_only(parts):
    assert answer(parts, [["fool"], ["rude"]], "1: rude\n2: fool\n").text == "1: rude\n2: fool"
    assert answer(parts, [["fool"], ["rude"]], "1: (drop)\n2: rude\n").text == "1: (drop)\n2: rudz"


def test_where_it_is_banned_a_gap_cannot_be_opened(parts):
    assert answer(parts, [["fool", "("], ["rude"]], "1: (drop)\n2: (drop)\n").text.startswith("1: z")


def test_a_telling_first_token_is_enough_to_ban_a_word():
    """Else "pensioners" comes back as "pensionrs"."""

    class Pieces:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [text[:8], text[8:]] if len(text) > 8 else [text[:2], text[2:]]}

        def decode(self, ids):
            return "".join(ids)

    assert [" pension"] in _spellings(Pieces(), "pensioners")
    assert [" f", "ool"] in _spellings(Pieces(), "fool")
