"""Judged responses: published formats become the same rows; faults are left out and counted, splits go by prompt."""

import json
from collections import Counter, defaultdict

import pytest

from testing.scorers.refusal import FULL_COMPLIANCE, FULL_REFUSAL, classify
from utils import params
from utils.data import content_id, read_table, write_table
from utils.helpers import UserError
from utils.metrics import words
from utils.preferences import read_judged, split_by_prompt

SHARED = params.ROOT.parent / "shared" / "data"


def read(tmp_path, rows, name="rows.jsonl", **more):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    settings = {"unsafe_labels": params.UNSAFE_LABELS, "seed": 0} | more
    return read_judged([str(path)], **settings)


def test_pku_rows_put_the_more_harmful_response_first(tmp_path):
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": True,
           "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0}  # fmt: skip
    (found,) = read(tmp_path, [row])
    assert (found.prompt, found.responses, found.unsafe) == ("p", ("b", "a"), (True, False))
    (turned,) = read(tmp_path, [row | {"safer_response_id": 1, "is_response_0_safe": "False"}])
    assert (turned.responses, turned.unsafe) == (("a", "b"), (True, True))


@pytest.mark.parametrize(
    ("row", "prompt", "responses", "unsafe", "harm", "category"),
    [
        ({"prompt": "p", "safe_response": "s", "unsafe_response": "u", "category": "bias"}, "p", ("u", "s"),
         (True, False), None, "bias"),
        ({"chosen": "\n\nHuman: hi\n\nAssistant: good", "rejected": "\n\nHuman: hi\n\nAssistant: bad"}, "hi",
         ("bad", "good"), (None, None), None, ""),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
          "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"},
         "Human: a\n\nAssistant: b\n\nHuman: c", ("e", "d"), (None, None), None, ""),
        ({"prompt": "p", "response": "r", "is_safe": False, "category": {"privacy": False, "insult": True}}, "p",
         ("r",), (True,), None, "insult"),
        ({"context": "p", "response": "r", "category": "Risk", "label": "Unsafe"}, "p", ("r",), (True,), None, "Risk"),
        ({"prompt": "p", "response": "r", "harmfulness": 2.5}, "p", ("r",), (None,), 2.5, ""),
        ({"transcript": "\n\nHuman: q\n\nAssistant: r", "rating": 4}, "q", ("r",), (None,), 4.0, ""),
        ({"text": "t", "label": "neutral"}, "", ("t",), (False,), None, ""),
        ({"text": "t", "label": "hate"}, "", ("t",), (True,), None, ""),
    ],
)  # fmt: skip
def test_published_formats(tmp_path, row, prompt, responses, unsafe, harm, category):
    (found,) = read(tmp_path, [row])
    assert (found.prompt, found.responses, found.unsafe) == (prompt, responses, unsafe)
    assert (found.harm, found.category, found.number, found.source) == (harm, category, 1, "rows.jsonl")


def test_rows_that_nothing_can_be_learned_from_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    pku = {"prompt": "p", "response_0": "a", "response_1": "b", "safer_response_id": 0}
    rows = [
        pku | {"is_response_0_safe": False, "is_response_1_safe": True},  # the safer one is called unsafe
        pku | {"response_1": " a "},  # equal
        pku | {"response_1": ""},
        pku,
        pku,  # again
    ]
    assert len(read(tmp_path, rows)) == 1
    assert "2 of 5 rows" in caplog.text and "1 contradictory" in caplog.text and "1 rows repeat others" in caplog.text
    assert "1 with equal responses" in caplog.text and "1 with an empty response" in caplog.text


def test_transcripts_that_part_early_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    good, bad = "\n\nHuman: hi\n\nAssistant: good", "\n\nHuman: hi\n\nAssistant: bad"
    early = {"chosen": f"{good}\n\nHuman: and?\n\nAssistant: more", "rejected": bad}
    (found,) = read(tmp_path, [early, {"chosen": good, "rejected": bad}])
    assert (found.responses, found.number) == (("bad", "good"), 2)
    assert "1 of 2 rows (left out: 1 with transcripts that part before the last answer)" in caplog.text


def test_what_was_judged_in_two_ways_is_left_out_and_labels_are_listed(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [{"prompt": "p", "response": "a", "label": label} for label in ("safe", "safe", "unsafe")]
    rows += [{"prompt": "p", "response": "b", "label": "1.0"}, {"prompt": "p", "response": "c", "label": "odd"}]
    found = read(tmp_path, rows)
    assert [(row.responses, row.unsafe) for row in found] == [(("b",), (True,)), (("c",), (False,))]
    assert "1 rows were judged in two ways" in caplog.text and "label 'odd': 1 rows, safe" in caplog.text
    pair = {"prompt": "p", "response_0": "a", "response_1": "b"}
    with pytest.raises(UserError, match="no row is left"):
        read(tmp_path, [pair | {"safer_response_id": n} for n in (0, 1)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "has columns question: expected one of"),
        (
            {"prompt": "p", "response_0": "a", "response_1": "b", "safer_response_id": 2},
            "row 1: safer_response_id is 2",
        ),
        ({"chosen": "no turns", "rejected": "none"}, "row 1: expected a transcript"),
        ({"prompt": "p", "response": "r", "is_safe": "perhaps"}, "row 1: 'perhaps' is neither true nor false"),
        ({"prompt": "p", "response": "r", "is_safe": "", "category": "{'a': True}"}, "row 1: "),
        ({"prompt": "p", "response": "r", "harmfulness": 5}, "row 1: harmfulness is 5: expected 0 to 4"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, [row])


def test_a_mixture_takes_a_seeded_share_of_the_prompts_with_all_their_rows(tmp_path):
    rows = [{"prompt": f"p{n}", "response": f"r{n}{m}", "label": "safe"} for n in range(20) for m in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    half = read_judged([f"{path}:0.5"], "unsafe", seed=1)
    assert len(half) == 30 and set(Counter(row.prompt for row in half).values()) == {3}
    assert half == read_judged([f"{path}:0.5"], "unsafe", seed=1) != read_judged([f"{path}:0.5"], "unsafe", seed=2)


def test_no_prompt_is_on_both_sides_of_a_split(tmp_path):
    rows = [{"prompt": f"P{n % 10} ", "response": f"r{n}", "label": "safe"} for n in range(40)]
    rows += [{"prompt": f"p{n}", "response": "other", "label": "safe"} for n in range(10)]  # the same prompts
    train, held_out = split_by_prompt(read(tmp_path, rows), 0.2, seed=0)
    assert len(train) == 40 and len(held_out) == 10
    assert not {row.group for row in train} & {row.group for row in held_out}
    with pytest.raises(UserError, match="1 different prompts are too few"):
        split_by_prompt(train[:1], 0.2, seed=0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data is not here (benchmarks/README.md)")
def test_public_files_are_read_whole():
    files = ["pku_saferlhf_pairs.jsonl", "cost_pairs_derived.jsonl", "diasafety.jsonl", "toxigen_annotated.jsonl"]
    for name in files:
        rows = read_judged([str(SHARED / name)], params.UNSAFE_LABELS, 0)
        labels = Counter(unsafe for row in rows for unsafe in row.unsafe)
        assert len(rows) > 1000 and 0.2 < labels[True] / labels.total() < 0.8, (name, labels)


# --- the embedded pairs ---


@pytest.fixture(scope="module")
def pairs():
    return {"train": read_table(params.PAIRS_FILE), "test": read_table(params.PAIRS_TEST_FILE)}


def test_embedded_pairs_sizes_categories_and_look_alikes(pairs):
    assert {split: len(part) for split, part in pairs.items()} == {"train": 300, "test": 80}
    for part in pairs.values():
        assert set(part["category"]) == {"bias", "insult", "privacy", "deception", "careless_advice"}
        assert (
            (part["look_alike"] == "yes").groupby(part["category"]).mean().eq(0.2 if len(part) == 300 else 0.25).all()
        )
        assert list(part["id"]) == [content_id(prompt) for prompt in part["prompt"]] and part["id"].is_unique


def test_look_alikes_have_a_refusal_of_the_length_of_the_answer(pairs):
    """Else a probe would measure how a model takes to a length or a voice."""
    test = pairs["test"]
    is_look_alike = test["look_alike"] == "yes"
    assert ((test["refusal"] != "") == is_look_alike).all()
    for row in test[is_look_alike].itertuples():
        assert classify(row.refusal) == FULL_REFUSAL and classify(row.safe_response) == FULL_COMPLIANCE
        assert 0.8 < len(row.refusal.split()) / len(row.safe_response.split()) < 1.2


def test_embedded_pairs_share_no_topic_and_no_phrase(pairs):
    both = [*pairs["train"].itertuples(), *pairs["test"].itertuples()]
    assert not set(pairs["train"]["topic"].str.lower()) & set(pairs["test"]["topic"].str.lower())
    for side in ("prompt", "safe_response", "unsafe_response"):
        where = defaultdict(set)
        for number, row in enumerate(both):
            said = words(getattr(row, side))
            for i in range(len(said) - 4):
                where[" ".join(said[i : i + 5])].add(number)
        assert max(map(len, where.values())) <= 3, side


def test_embedded_pairs_cannot_be_told_apart_by_length_or_refusal_words(pairs):
    for part in pairs.values():
        lengths = {
            side: part[side].map(lambda text: len(words(text))) for side in ("safe_response", "unsafe_response")
        }
        assert 0.4 <= (lengths["unsafe_response"] > lengths["safe_response"]).mean() <= 0.6
        assert abs(lengths["safe_response"].mean() / lengths["unsafe_response"].mean() - 1) < 0.05
        assert part["safe_response"].str.match(r"(?i)(i can't|i cannot|i'm sorry|sorry)").mean() < 0.05


@pytest.mark.slow
def test_no_two_embedded_pairs_are_nearly_the_same(pairs, tmp_path):
    import numpy as np

    from utils.embedded import sentence_vectors

    write_table(pairs["train"], tmp_path / "copy.csv")  # survives a round trip
    assert read_table(tmp_path / "copy.csv").equals(pairs["train"])
    for side in ("prompt", "safe_response", "unsafe_response"):
        vectors = sentence_vectors([*pairs["train"][side], *pairs["test"][side]])
        cosine = vectors @ vectors.T
        np.fill_diagonal(cosine, 0)
        print(f"{side}: the two closest have a cosine of {cosine.max():.3f}")
        assert cosine.max() < 0.9
