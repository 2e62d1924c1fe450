"""Metrics on cases computed by hand."""

import pytest

from utils.metrics import (
    bleu,
    chrf,
    delete_words,
    facts,
    facts_kept,
    is_copy,
    length_ratio,
    phrases_left,
    removed_words,
    rouge_l,
)


def test_overlap_takes_the_best_reference():
    assert chrf("the cat sat", ["a dog", "the cat sat"]) == pytest.approx(100)
    assert bleu("the cat sat on it", ["nothing", "the cat sat on it"]) == pytest.approx(100)
    # words: the cat | reference: the big cat -> precision 2/2, recall 2/3, F 0.8
    assert rouge_l("the cat", ["the big cat", "no"]) == pytest.approx(80)


def test_chrf_by_hand():
    """'ab' against 'ac': order 1 has precision and recall 1/2, order 2 has 0; no higher order exists.

    sacrebleu averages precision and recall over the orders that exist: 1/4 each, and F of equal values is the value.
    """
    assert chrf("ab", ["ac"]) == pytest.approx(25)


def test_facts_of_a_sentence():
    found = facts("On Monday 3 May, Ms Okafor didn't let the two Polish tenants in at 9.30.")
    assert dict(found) == {
        ("number", "3"): 1,
        ("number", "9.30"): 1,
        ("number", "two"): 1,
        ("date", "monday"): 1,
        ("name", "Ms"): 1,
        ("name", "Okafor"): 1,
        ("name", "May"): 1,  # also a verb: known by its capital
        ("negation", "not"): 1,
        ("identity", "polish"): 1,
        ("identity", "tenants"): 1,
    }


@pytest.mark.parametrize(
    "source, rewriting, kept",
    [
        ("Ask Ann, she is 30.", "Ask Ann, she is 30.", 1.0),
        ("Ask Ann, she is 30.", "Ask her, she is 30.", 0.5),
        ("We had 5 complaints and no reply.", "We had 5 complaints and never a reply.", 1.0),
        ("We had 5 complaints and no reply.", "We had 5 complaints and a reply.", 0.5),
        ("These Germans queue.", "The German visitors queue.", 1.0),
        ("The women left.", "They left.", 0.0),
        ("The man left.", "Many left early.", 0.0),
        ("So said a mum.", "So said a mumbler.", 0.0),
        ("These Jews sang.", "These jewels rang.", 0.0),
        ("I saw Dr. Khan.", "I saw Dr. Khan's car.", 1.0),
        ("I saw Dr. Khan.", "I saw Dr. Who.", 0.5),
        ("Nothing here to lose", "Empty", 0.0),
        ("all lower case words", "anything", None),
    ],
)
def test_facts_kept(source, rewriting, kept):
    assert facts_kept(source, rewriting) == kept


def test_deleting_the_group_or_inverting_the_meaning_does_not_look_good():
    source = "The 4 Muslim tenants did not pay on Friday."
    assert facts_kept(source, "The 4 tenants did not pay on Friday.") < 1
    assert facts_kept(source, "The 4 Muslim tenants did pay on Friday.") < 1


def test_edits():
    assert is_copy("So RUDE, really!", "so rude really")
    assert not is_copy("so rude", "so kind")
    assert length_ratio("one two three four", "one two") == 0.5
    assert phrases_left(["lazy", "dead weight"], "They are lazy. Overweight deadlines.") == 0.5
    assert phrases_left(["old"], "the bold golden fold") == 0
    assert phrases_left([], "anything") is None


def test_removed_words_are_those_that_rewriters_remove():
    pairs = [(f"you damn fool number {n}", f"you number {n}") for n in range(4)] + [("a fool", "a fool")]
    # damn: 4 sources, 0 rewritings -> 4/1 reaches the ratio; fool: 5 sources, 1 rewriting -> 5/2 does not
    assert removed_words(pairs) == {"damn"}
    assert delete_words("you DAMN, fool", {"damn"}) == "you fool"
