"""What happens between the spotter and the model, with both scripted: order, bans, damaged and missing answers."""

from types import SimpleNamespace

import pytest

from utils import rewriting
from utils.configs import InferConfig
from utils.generation import Answer
from utils.models import ModelRef
from utils.rewriting import make_rewriter, worked_examples
from utils.spotter import Spot

TEXTS = ["a dumb row", "fair", "long " * 9, "lazy cooks and rude men", "hidden"]
SPOTS = {"a dumb row": ["dumb"], "lazy cooks and rude men": ["lazy", "rude"], "hidden": ["hidden"]}


class Words:
    """A tokenizer of one token per word."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": text.split()}


def spots(texts):
    return [[Spot(t.index(w), t.index(w) + len(w), w) for w in SPOTS.get(t, [])] for t in texts]


@pytest.fixture
def seen(monkeypatch):
    """Replaces what needs a model. Answers come in another order than the questions."""
    calls = {}

    def scripted_spot(spotter, texts, threshold, spread):
        calls["spot"] = (texts, threshold, spread)
        return spots(texts)

    def scripted_answers(model, tokenizer, chats, config, guides, seeds):
        calls["prompts"] = [chat[-1]["content"] for chat in chats]
        calls["guides"] = guides
        yield Answer(2, "", "too_long", 999, 0)
        yield Answer(1, "1: Lazy, lazy\n2: polite", "truncated", 9, 9)
        yield Answer(0, "1: odd", "ok", 9, 3)

    monkeypatch.setattr(rewriting, "spot", scripted_spot)
    monkeypatch.setattr(rewriting, "generate", scripted_answers)
    monkeypatch.setattr(rewriting, "load_spotter", lambda folder: calls.setdefault("folder", folder))
    monkeypatch.setattr(rewriting, "load_tokenizer", lambda ref, **how: Words())
    monkeypatch.setattr(rewriting, "load_model", lambda ref, quantization: SimpleNamespace(generation_config=None))
    monkeypatch.setattr(rewriting, "end_tokens", lambda settings, tokenizer: {0})
    monkeypatch.setattr(rewriting, "fill_guide", lambda tokenizer, banned, ends: banned)
    return calls


def test_each_text_gets_its_own_fillings_and_only_those(seen):
    config = InferConfig(spotter="here", spot_threshold=0.4, spot_spread=0.2, max_prompt_tokens=8)
    answers = dict(make_rewriter(config, ModelRef("m", "m"), "fill")(dict(enumerate(TEXTS))))
    assert str(seen["folder"]) == "here"
    assert seen["spot"] == ([TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[4]], 0.4, 0.2)
    assert seen["prompts"] == ["a [1: dumb] row", "[1: lazy] cooks and [2: rude] men", "[1: hidden]"]
    # where no word stands outside the brackets, "(drop)" may not be opened: nothing would remain
    assert seen["guides"] == [[["dumb"]], [["lazy"], ["rude"]], [["hidden", "("]]]
    assert answers == {
        0: {"text": "a odd row", "status": "ok", "tokens": 3, "spotted": ["dumb"]},
        1: {"text": "fair", "status": "ok", "tokens": 0, "spotted": []},
        2: {"text": "", "status": "too_long", "tokens": 0},
        # the banned word came back by another spelling: dropped all the same
        3: {"text": "cooks and polite men", "status": "truncated", "tokens": 9, "spotted": ["lazy", "rude"]},
        4: {"text": "", "status": "too_long", "tokens": 0, "spotted": ["hidden"]},
    }


def test_no_model_is_loaded_for_fair_texts(seen):
    answers = dict(make_rewriter(InferConfig(), ModelRef("m", "m"), "fill")({0: "fair", 1: "fine"}))
    assert [answers[i]["text"] for i in (0, 1)] == ["fair", "fine"] and "prompts" not in seen


def test_worked_examples_look_like_the_task(tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("biased_text,debiased_text\na dumb row,a row\nfair,fair\n")
    config = InferConfig(shots=1, train_file=str(pairs))
    assert worked_examples(config, "fill") == [("a [1: dumb] row", "1: (drop)")]
    assert set(worked_examples(InferConfig(shots=2, train_file=str(pairs)), "rewrite")) == {
        ("a dumb row", "a row"),
        ("fair", "fair"),
    }
    assert worked_examples(InferConfig(train_file=str(pairs)), "fill") == []
