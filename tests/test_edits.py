"""A rewriting survives the way through brackets and fillings; damaged answers do no harm outside the brackets."""

import pytest

from utils.data import read_table
from utils.edits import changed_words, edits_between, fill, join_words, mark, read_fillings, words_of, write_fillings
from utils.metrics import is_copy
from utils.params import TEST_FILE, TRAIN_FILE


def round_trip(source, rewriting):
    edits = edits_between(source, rewriting)
    return fill(source, [edit.span for edit in edits], read_fillings(write_fillings(edits)))


@pytest.mark.parametrize(
    "source, rewriting, marked, fillings",
    [
        ("These fakers again.", "These drivers again.", "These [1: fakers] again.", "1: drivers"),
        ("Useless lazy cooks, all.", "Cooks, all.", "[1: Useless lazy] cooks, all.", "1: (drop)"),
        ("Two dumb rows of it", "Two rows of it", "Two [1: dumb] rows of it", "1: (drop)"),
        ("He came late", "He came a bit late", "He [1: came] late", "1: came a bit"),
        ("came late", "He came late", "[1: came] late", "1: He came"),
        ("a b c d e f g", "a X c d e f Y", "a [1: b] c d e f [2: g]", "1: X\n2: Y"),
        # one word between two edits: one edit
        ("a b c d", "a X c Y", "a [1: b c d]", "1: X c Y"),
        ("Men over 50, fat", "Men over 50", "Men over 50[1: , fat]", "1: (drop)"),
    ],
)
def test_edits_by_hand(source, rewriting, marked, fillings):
    edits = edits_between(source, rewriting)
    assert write_fillings(edits) == fillings
    assert mark(source, [edit.span for edit in edits]) == marked
    assert round_trip(source, rewriting) == rewriting


def test_the_same_words_need_no_edit():
    assert edits_between("it's all fine.", "It's  all, fine!") == []  # case and punctuation are not unfair
    assert fill("It's all fine.", [], {}) == "It's all fine."
    assert edits_between("", "something") == [] and edits_between("...", "...") == []


def test_every_embedded_rewriting_survives_the_round_trip():
    total = 0
    for path in (TRAIN_FILE, TEST_FILE):
        for row in read_table(path).itertuples():
            again = round_trip(row.biased_text, row.debiased_text)
            assert is_copy(row.debiased_text, again)  # but for case, punctuation and spacing
            assert row.biased_text[0].islower() or not again[0].islower()
            assert bool(edits_between(row.biased_text, row.debiased_text)) == (row.bias == "Yes"), row.biased_text
            total += 1
    assert total == 540


def test_dropped_spans_take_one_space_along():
    def drop(source, phrase):
        start = source.index(phrase)
        return fill(source, [(start, start + len(phrase))], {1: ""})

    assert drop("a dumb row", "dumb") == "a row"
    assert drop("dumb row", "dumb") == "row"
    assert drop("a row, dumb", ", dumb") == "a row"
    assert drop("line\n\ndumb row", "dumb") == "line\n\nrow"
    assert drop("a dumb\nrow", "dumb") == "a\nrow"
    assert drop("a dumb.", "dumb") == "a."
    assert drop("row", "row") == ""
    assert drop("out there, fools.", "fools") == "out there."


def test_signs_do_not_meet():
    assert fill("a dumb. Row", [(2, 6)], {1: "good idea."}) == "a good idea. Row"
    assert fill("a dumb row?", [(2, 10)], {1: "strange row?"}) == "a strange row?"
    assert fill("a dumb row", [(2, 6)], {1: "good,"}) == "a good, row"
    assert fill("the dumps, then", [(4, 9)], {1: "U.S."}) == "the U.S., then"
    assert fill("it (dumb) is", [(4, 8)], {1: "really?"}) == "it (really?) is"
    assert fill("dumb", [(0, 4)], {1: "odd."}) == "odd."


def test_a_dropped_word_of_address_takes_its_comma_along():
    assert fill("Idiots, go home.", [(0, 6)], {}) == "Go home."
    assert fill("Listen. Idiots, go home.", [(8, 14)], {}) == "Listen. go home."
    assert fill("Note: dumb, slow", [(6, 10)], {}) == "Note:, slow"
    assert fill("costs 5 dumb .5 x", [(8, 12)], {}) == "costs 5 .5 x"
    assert fill("stop dumb :) ok", [(5, 9)], {}) == "stop :) ok"


def test_an_answer_is_read_as_far_as_it_makes_sense():
    spans = [(0, 1), (2, 3), (4, 5)]
    answer = "Sure, here it is:\n2: two\n 1 : no\n2: again\n7: seven\n3: 3: (drop)"
    assert read_fillings(answer) == {2: "two", 7: "seven", 3: "3: (drop)"}
    assert fill("a b c d", spans[:2], read_fillings(answer)) == "two c d"  # 1 is missing, so it is dropped
    assert read_fillings("1: [2: two] men\n2: [2: cut") == {1: "two men", 2: "cut"}
    assert read_fillings("") == {} and read_fillings("1: (Drop).\n2: drop") == {1: "", 2: ""}


def test_text_that_looks_like_marks_is_only_text():
    source = "see [1: below] and 2: this dumb thing"
    start = source.index("dumb")
    assert fill(source, [(start, start + 4)], {1: "odd"}) == "see [1: below] and 2: this odd thing"


def test_words_are_joined_over_one_word_that_was_not_chosen():
    def joined(text, *chosen):
        spans = join_words(text, [text[a:b] in chosen for a, b in words_of(text)])
        return [text[a:b] for a, b in spans]

    text = "they are all the same, always"
    assert joined(text, "all", "same", "always") == ["all the same, always"]
    assert joined(text, "they", "the") == ["they", "the"]
    assert joined("fools.\n\nStupid", "fools", "Stupid") == ["fools", "Stupid"]
    assert words_of("don't mother-in-law 7.5 ...") == [(0, 5), (6, 19), (20, 21), (22, 23)]


def test_labels_are_the_words_that_the_rewriting_changes():
    assert changed_words("a dumb row of it", "a row of it") == [False, True, False, False, False]
    assert not any(changed_words("a row", "a row"))
    assert changed_words("...", "!") == []
