"""The copy bonus follows the source, passes removed words, and leaves the rest to the model."""

import re

import pytest
import torch

from utils.decoding import copy_bonus, keep_rates


class WordTokenizer:
    """One token per word: enough to follow by hand."""

    def __init__(self):
        self.ids = {}

    def __call__(self, text, add_special_tokens, return_offsets_mapping):
        found = list(re.finditer(r"\S+", text))
        ids = [self.ids.setdefault(match.group(), len(self.ids) + 1) for match in found]
        return {"input_ids": ids, "offset_mapping": [match.span() for match in found]}


def decode_greedily(source, pairs, strength, preferences=None):
    """Runs the processor with scores that prefer the given words, else are flat. Token 0 ends the text."""
    tokenizer = WordTokenizer()
    process = copy_bonus(tokenizer, source, keep_rates(pairs), strength, end_token=0)
    names = {0: "<end>"} | {i: word for word, i in tokenizer.ids.items()}
    written = []
    for _ in range(20):
        scores = torch.zeros(len(names) + 1)
        for word, value in (preferences or {}).items():
            scores[tokenizer.ids[word]] = value
        token = int(process(written, scores).argmax())
        if token == 0:
            break
        written.append(token)
    return " ".join(names[i] for i in written)


def test_keep_rates_are_smoothed_counts():
    rates = keep_rates([("damn nice", "nice"), ("damn cold", "cold"), ("damn", "damn")])
    # damn: kept once in three, prior 0.77 with weight 4 -> (1 + 3.08) / 7; nice: (1 + 3.08) / 5
    assert rates["damn"] == pytest.approx((1 + 3.08) / 7) and rates["nice"] == pytest.approx((1 + 3.08) / 5)


def test_it_copies_in_order_and_drops_what_rewriters_drop():
    kept = [("a old bus came", "a old bus came")] * 30
    pairs = kept + [(f"damn thing {n}", f"thing {n}") for n in range(30)]
    assert decode_greedily("a damn old bus came", pairs, strength=5.0) == "a old bus came"
    assert decode_greedily("a damn old bus came", [(s, s) for s, _ in pairs], strength=5.0) == "a damn old bus came"


def test_the_model_can_still_replace_a_word_and_the_copy_goes_on_after_it():
    """'slow' stands nowhere in the place of 'old' in the source, yet a sure model writes it, once."""
    tokenizer = WordTokenizer()
    source = "an old bus came late"
    process = copy_bonus(tokenizer, source, keep_rates([(source, source)] * 20), 3.0, end_token=0)
    an, old, bus, came, late = (tokenizer.ids[w] for w in source.split())
    slow = 6
    flat = torch.zeros(8)
    sure_of_slow = flat.clone()
    sure_of_slow[slow] = 20.0
    assert process([], flat.clone()).argmax() == an
    assert process([an], sure_of_slow).argmax() == slow
    after = process([an, slow], flat.clone())
    assert after[old] > after[bus] > after[7] and after[came] > after[7]
    assert process([an, slow, bus], flat.clone()).argmax() == came
    assert process([an, slow, bus, came, late], flat.clone()).argmax() == 0
