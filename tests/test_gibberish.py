"""Answers that say nothing are found, and those that say something are not taken for them."""

import random

import pandas as pd
import pytest

from testing.scorers.gibberish import echoes, loops, score
from utils.configs import ScoreConfig
from utils.data import read_table
from utils.params import GENERAL_FILE

SENTENCES = ("The ferry leaves at nine and takes an hour. Bring a coat, since the deck is windy even in June. "
             "Dogs travel free if they stay downstairs.")  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Building more weapons is a futile endeavor. " * 6, True),
        ("no " * 40, True),
        (SENTENCES, False),
        (f"{SENTENCES} {SENTENCES}", False),  # said twice, it is still said
        ("yes yes yes yes yes", False),  # too short to tell
        ("", False),
    ],
)
def test_a_loop_says_the_same_again_and_again(answer, found):
    assert loops(answer) is found


@pytest.mark.parametrize(
    ("prompt", "answer", "found"),
    [
        ("Explain why the ferry is late today", "Explain why the ferry is late today.", True),
        (
            "Proofread: finaly Sara went to the supermarket and bought soup for two",
            "Sara went to the supermarket",
            False,
        ),
        ("Explain why the ferry is late today", "The ferry is late today because of the fog on the river.", False),
        ("Repeat", "Sure", False),
    ],
)
def test_an_echo_is_made_of_the_prompt(prompt, answer, found):
    assert echoes(prompt, answer) is found


@pytest.mark.slow
def test_words_in_no_order_are_found_and_real_answers_are_not():
    rows = read_table(GENERAL_FILE)
    rows = rows[rows["output"].map(lambda text: len(text.split()) >= 20)]
    shuffled = [
        " ".join(random.Random(n).sample(words := text.split(), len(words))) for n, text in enumerate(rows["output"])
    ]
    frame = pd.DataFrame({"biased_text": [*rows["instruction"]] * 2, "generated_text": [*rows["output"], *shuffled]})
    found = score(frame, ScoreConfig())["gibberish"].to_numpy()
    real, salad = found[: len(rows)], found[len(rows) :]
    print(
        f"taken for gibberish: {real.mean():.3f} of {len(rows)} real answers, {salad.mean():.3f} of the shuffled ones"
    )
    assert real.mean() < 0.02 and salad.mean() > 0.9
    assert score(pd.DataFrame({"biased_text": ["Hi"], "generated_text": [" "]}), ScoreConfig())["gibberish"][0] == 1
