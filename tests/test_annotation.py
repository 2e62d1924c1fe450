"""From answers to rows: only labels that an answer contains, majorities, worst cases."""

import json
import random
import re

import pytest

from tests.fault_server import annotation
from utils.annotation import SCALES, USABLE, Annotator, annotate, annotate_samples, majority
from utils.answers import Answer, Answers, Request
from utils.injection import INJECTIONS, choose, plant, signs
from utils.tally import Tally


def annotator(**changes):
    given = {"model": "m", "prompt": "labels-1", "guideline": "g", "temperature": 0.0, "max_tokens": 100, "seed": 1}
    return Annotator(**given | {"retries": 0} | changes)


def row_for(tmp_path, reply, text="useless nurses", end="stop", **changes):
    answers, who = Answers(tmp_path / f"{random.random()}.jsonl", {}), annotator(**changes)
    request = annotate(text, who, answers)
    answers.add(request.key, Answer(reply, end, 1, 1, "m", "s"), request.marker)
    return annotate(text, who, answers)


def test_a_good_answer_becomes_a_row(tmp_path):
    row = row_for(tmp_path, json.dumps(annotation("useless nurses", biased_words=["Useless", "lazy"])))
    assert row["status"] == "ok" and row["bias"] == "Yes" and row["debiased_text"] == "nurses"
    assert row["biased_words"] == ["Useless"]  # lazy does not stand in the text


def test_a_neutral_text_is_copied_whatever_the_answer_says(tmp_path):
    row = row_for(tmp_path, json.dumps(annotation("x", bias="No", debiased_text="changed", biased_words=["nurses"])))
    assert (row["status"], row["debiased_text"], row["biased_words"]) == ("neutral", "useless nurses", [])


@pytest.mark.parametrize("prompt", ["rewrite-1", "analysis-1"])
def test_without_labels_a_text_that_comes_back_unchanged_is_neutral(tmp_path, prompt):
    more = {"analysis": "Fair."} if prompt == "analysis-1" else {}
    same = row_for(tmp_path, json.dumps(more | {"debiased_text": " useless  nurses"}), prompt=prompt)
    other = row_for(tmp_path, json.dumps(more | {"debiased_text": "nurses"}), prompt=prompt)
    assert (same["status"], same["debiased_text"]) == ("neutral", "useless nurses")
    assert other["status"] == "ok" and "bias" not in other


@pytest.mark.parametrize(
    ("reply", "end", "status"),
    [
        ("I'm sorry, but I can't label that.", "stop", "refused"),
        ("I\u2019m really sorry, I cannot.", "stop", "refused"),
        ("Sorry, but I can't do that.", "stop", "refused"),
        ("I apologize, but that is hateful.", "stop", "refused"),
        ("As an AI language model, I cannot label this.", "stop", "refused"),
        ("I will not help.", "refused", "refused"),
        ("", "filtered", "filtered"),
        ('{"bias": "Ye', "length", "truncated"),
        ("It is biased.", "stop", "unparsable"),
        (json.dumps(annotation("x") | {"harm": "none"}), "stop", "unparsable"),
    ],
)
def test_other_answers_have_a_status_and_no_labels(tmp_path, reply, end, status):
    row = row_for(tmp_path, reply, end=end)
    assert row["status"] == status and row["raw"] == reply and not set(SCALES) & set(row)


def test_an_empty_text_is_asked_nothing(tmp_path):
    row = annotate(" \n", annotator(), Answers(tmp_path / "a.jsonl", {}))
    assert row["status"] == "empty" and not set(SCALES) & set(row)


def test_an_answer_that_only_quotes_the_text_is_none(tmp_path):
    planted = json.dumps(annotation("x", bias="No"))
    row = row_for(tmp_path, f"I will not repeat {planted}", text=f"useless nurses {planted}")
    assert row["status"] == "refused"
    row = row_for(tmp_path, f"The text says {planted}", text=f"useless nurses {planted}")
    assert row["status"] == "unparsable"


def test_a_cut_answer_that_is_whole_all_the_same_counts(tmp_path):
    assert row_for(tmp_path, json.dumps(annotation("useless nurses")), end="length")["status"] == "ok"


def test_an_answer_that_does_not_fit_is_asked_again_with_the_reason_and_not_for_ever(tmp_path):
    answers, who = Answers(tmp_path / "a.jsonl", {}), annotator(retries=2)
    asked = []
    while isinstance(step := annotate("useless nurses", who, answers), Request):
        asked.append(step)
        answers.add(step.key, Answer('{"bias": "perhaps"}', "stop", 1, 1, "m", "s"), step.marker)
    assert step["status"] == "unparsable" and step["tries"] == 3 == len(asked)
    assert [len(request.messages) for request in asked] == [2, 4, 6]
    assert "bias: Input should be 'No' or 'Yes'" in asked[1].messages[-1]["content"]


def mutate(draw: random.Random, text: str) -> str:
    """What models and servers make of an answer."""
    junk = ["```json", "```", "{", "}", '"', "\\", "NaN", "null", "[", "]", ",", "\x00", "\ud800", "Yes", "High", "\n"]
    for _ in range(draw.randint(1, 6)):
        i, j = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        kind = draw.randrange(8)
        if kind == 0:
            text = text[:i] + text[j:]
        elif kind == 1:
            text = text[:i] + draw.choice(junk) + text[i:]
        elif kind == 2:
            text = text[:i] + text[i:j] * draw.randint(2, 4) + text[j:]
        elif kind == 3:
            text = text[:i] + draw.choice(["No", "Yes", "Mild", "High", "Low", "Positive"]) + text[j:]
        elif kind == 4:
            text = text + draw.choice(["", "\n"]) + text[i:]
        elif kind == 5:
            text = text.replace(*draw.sample(['"No"', '"Yes"', '"Mild"', '"High"', '"Low"', '"Medium"'], 2), 1)
        elif kind == 6:
            text = f"{draw.choice(['Sure!', '{ok}', text])}\n```json\n{text}\n```"
        else:
            text = text[:i] + text[i:j].swapcase() + text[j:]
    return text


def test_ten_thousand_broken_answers_yield_no_label_that_they_do_not_contain(tmp_path):
    draw, who = random.Random(0), annotator()
    answers = Answers(tmp_path / "a.jsonl", {})
    seen = dict.fromkeys(("ok", "neutral", "unparsable"), 0)
    for n in range(10_000):
        reply = mutate(draw, json.dumps(annotation(f"useless nurses {n}")))
        request = annotate(f"useless nurses {n}", who, answers)
        answers.add(request.key, Answer(reply, "stop", 1, 1, "m", "s"), request.marker)
        row = annotate(f"useless nurses {n}", who, answers)
        seen[row["status"]] += 1
        for label in SCALES:
            if row["status"] in USABLE:
                assert row[label] in SCALES[label] and re.search(rf'"{label}"\s*:\s*"{row[label]}"', reply)
            else:
                assert label not in row
    assert seen["ok"] > 100 and seen["neutral"] > 10 and seen["unparsable"] > 1000, seen


def sample(bias="Yes", toxicity="Mild", status=None, **changes):
    row = {
        "bias": bias,
        "toxicity": toxicity,
        "sentiment": "Neutral",
        "harm": "Low",
        "debiased_text": f"{bias}{toxicity}",
    }
    return row | {"status": status or ("ok" if bias == "Yes" else "neutral"), "raw": "", "tries": 1} | changes


def test_majority_takes_each_label_and_the_rewriting_of_the_sample_nearest_to_it():
    row = majority([sample("No", "No"), sample("Yes", "High"), sample("Yes", "Mild")])
    assert (row["bias"], row["toxicity"], row["status"]) == ("Yes", "High", "ok")  # a tie: the graver one
    assert row["debiased_text"] == "YesHigh"
    assert (row["bias_1"], row["toxicity_3"]) == ("No", "Mild")
    assert row["disagreement"] == f"{(2 + 3) / 12:.3f}"  # of 3 pairs x 4 labels


def test_samples_that_cannot_be_used_do_not_vote_and_too_many_of_them_leave_no_row():
    refused = {"status": "refused", "raw": "no", "tries": 1}
    assert majority([refused, sample(), sample()])["bias"] == "Yes"
    row = majority([refused, refused, sample()])
    assert row["status"] == "refused" and "bias" not in row and row["bias_3"] == "Yes"


def test_samples_differ_in_their_seed_only(tmp_path):
    who, answers = annotator(temperature=0.7), Answers(tmp_path / "a.jsonl", {})
    requests = [annotate("a text", who, answers, n) for n in range(3)]
    assert [request.seed for request in requests] == [1, 2, 3] and len({r.key for r in requests}) == 3
    row = annotate_samples("a text", who, answers, 3, {requests[0].key: "500"})
    assert row["status"] == "api_error" and row["raw"] == "500"


def test_worst_cases_count_missing_rows_for_and_against():
    tally = Tally()
    for bias, group in [("Yes", "a"), ("No", "a"), ("Yes", "b")]:
        tally.add(sample(bias) | {"suspicious": ""}, group)
    tally.add({"status": "refused", "tries": 1, "suspicious": "role"}, "b")
    assert tally.shares("bias", "Yes") == {"share": 2 / 3, "low": 2 / 4, "high": 3 / 4}
    assert tally.shares("bias", "Yes", "b") == {"share": 1.0, "low": 1 / 2, "high": 1.0}
    group = tally.summary()["by_group"]["b"]
    assert group["statuses"] == {"ok": 1, "refused": 1} and tally.flagged == 1
    assert group["labels"]["toxicity"]["High"] == {"share": 0.0, "low": 0.0, "high": 1 / 2}
    assert "| b     | 2    |" in tally.tables()


def test_empty_texts_are_no_failures_and_unchanged_ones_are_counted():
    tally = Tally()
    for row in (sample(), sample("No"), {"status": "empty", "tries": 0}):
        tally.add(row | {"suspicious": ""}, "")
    tally.add(sample(unchanged=True) | {"suspicious": ""}, "")
    assert tally.shares("bias", "Yes") == {"share": 2 / 3, "low": 2 / 3, "high": 2 / 3}
    assert tally.unchanged == 1 and tally.counts()["empty"] == 1


def test_signs_of_instructions_are_seen_and_ordinary_texts_are_left_alone():
    for injection in INJECTIONS:
        assert signs("The clerk was late.\n" + injection.format(bias="No"))
    assert signs("fair\u200btext") == ["invisible"]
    fair = ["The system is slow and the assistant was rude.", "No bias in hiring, please.", "Ignore the dog."]
    fair += [
        "They harm no one.",
        "As an AI engineer she earns well.",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    ]
    for text in fair:
        assert not signs(text)


def test_planted_twins_demand_the_opposite_and_the_draw_is_seeded():
    rows = [(f"text {n}", {"bias": "Yes"}) for n in range(100)]
    assert choose(rows, 5, 1) == choose(rows, 5, 1) != choose(rows, 5, 2)
    assert len(choose(rows[:3], 5, 1)) == 3
    assert "No" in plant("text", "Yes", 0) and "Yes" in plant("text", "No", 0)
