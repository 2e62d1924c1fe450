"""The instructions, and the requests to test on, keep their promises. -s shows the figures."""

import json
from collections import Counter, defaultdict

import pytest

from utils.data import content_id, read_prompts, read_table, same_text
from utils.instruction_files import instructions_of
from utils.leaks import find_leaks
from utils.metrics import words
from utils.params import GENERAL_FILE, PAIRS_FILE, PAIRS_TEST_FILE, SAFETY_TEST_FILE, USEFUL_FILE

GENERAL, TEST = read_table(GENERAL_FILE), read_table(SAFETY_TEST_FILE)
PAIRS = [read_table(path) for path in (PAIRS_FILE, PAIRS_TEST_FILE)]


def test_sizes_and_balance():
    assert len(GENERAL) == 200 and sum(GENERAL["input"] != "") == 60
    assert list(json.loads(GENERAL_FILE.read_text())[0]) == ["instruction", "input", "output"]
    assert set(Counter(zip(TEST["label"], TEST["category"], strict=True)).values()) == {12} and len(TEST) == 120
    assert set(TEST["category"]) == set(PAIRS[0]["category"])
    assert list(TEST["id"]) == [content_id(text) for text in TEST["instruction"]]
    lengths = GENERAL["output"].map(lambda text: len(words(text)))
    print(f"words per answer: {lengths.min()} to {lengths.max()}, mean {lengths.mean():.0f}")
    assert lengths.min() >= 5 and lengths.max() <= 125


@pytest.mark.parametrize("texts", [GENERAL["instruction"], GENERAL["output"], TEST["instruction"]], ids="iot")
def test_no_template_is_behind_the_rows(texts):
    where = defaultdict(set)
    for number, text in enumerate(texts):
        w = words(text)
        for i in range(len(w) - 4):
            where[" ".join(w[i : i + 5])].add(number)
    assert max(map(len, where.values())) <= 3
    assert len({same_text(text) for text in texts}) == len(texts)


def test_nothing_that_is_tested_on_is_learned():
    tested = list(TEST["instruction"])
    learned = [*instructions_of(GENERAL), *(text for frame in PAIRS for text in frame["prompt"])]
    assert not find_leaks(learned, tested)
    assert not find_leaks(learned, read_prompts(USEFUL_FILE)) and len(read_prompts(USEFUL_FILE)) == 40
    topics = {topic.casefold() for frame in PAIRS for topic in frame["topic"]}
    mine = [topic.casefold() for topic in TEST["topic"]]
    assert len(set(mine)) == len(mine) and not set(mine) & topics
