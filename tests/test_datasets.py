"""The embedded data keeps its promises: sizes, labels, facts, no template behind it. -s shows the figures."""

import json
import re
from collections import Counter, defaultdict

import pandas as pd
import pytest

from generate_data.counterfactuals import fill
from utils import params
from utils.data import content_id, read_table
from utils.metrics import contains, facts_kept, words

FILES = {"train": params.TRAIN_FILE, "test": params.TEST_FILE, "gold": params.GOLD_FILE}
LABELS = {
    "bias": params.BIAS_LABELS,
    "toxicity": params.TOXICITY_LABELS,
    "sentiment": params.SENTIMENT_LABELS,
    "harm": params.HARM_LABELS,
}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.concat([read_table(path).assign(split=split) for split, path in FILES.items()], ignore_index=True)


def test_sizes_aspects_and_neutral_rows(rows):
    sizes = Counter(rows["split"])
    assert sizes["train"] >= 400 and sizes["test"] == 120 and sizes["gold"] == 40
    assert rows.groupby("split")["aspect"].nunique().min() >= 12
    for split, part in rows.groupby("split"):
        share = (part["bias"] == "No").mean()
        print(f"{split}: {len(part)} rows, {share:.1%} neutral")
        assert 0.18 <= share <= 0.22


def test_every_class_of_every_label_in_every_split(rows):
    for (split, part), (label, classes) in ((s, item) for s in rows.groupby("split") for item in LABELS.items()):
        assert set(part[label]) == set(classes), (split, label)


def test_pilot_holds_the_texts_of_gold_without_labels():
    pilot, gold = read_table(params.PILOT_FILE), read_table(params.GOLD_FILE)
    assert list(pilot.columns) == ["id", "biased_text"]
    assert pilot.equals(gold[["id", "biased_text"]])


def test_ids_are_hashes_of_the_text(rows):
    assert list(rows["id"]) == [content_id(text) for text in rows["biased_text"]] and rows["id"].is_unique


def test_biased_words_stand_in_the_source_and_not_in_the_rewriting(rows):
    for _, row in rows.iterrows():
        marked = json.loads(row["biased_words"])
        if row["bias"] == "No":
            assert row["debiased_text"] == row["biased_text"] and not marked
        else:
            assert marked and row["target"] and row["debiased_text"] != row["biased_text"], row["id"]
            assert all(contains(row["biased_text"], w) and not contains(row["debiased_text"], w) for w in marked), row[
                "id"
            ]


def test_rewritings_keep_numbers_and_most_facts(rows):
    biased = rows[rows["bias"] == "Yes"]
    for _, row in biased.iterrows():
        digits = [Counter(re.findall(r"\d+", row[side])) for side in ("biased_text", "debiased_text")]
        assert digits[0] == digits[1], row["id"]
    kept = [facts_kept(s, t) for s, t in zip(biased["biased_text"], biased["debiased_text"], strict=True)]
    kept = [share for share in kept if share is not None]
    print(f"facts kept by the human rewritings: {sum(kept) / len(kept):.3f} over {len(kept)} rows")
    assert sum(kept) / len(kept) > 0.85


@pytest.mark.parametrize("side", ["biased_text", "debiased_text"])
def test_no_five_words_stand_in_more_than_three_rows(rows, side):
    """Sides are counted apart; a neutral row is its own rewriting and counts on the biased side only."""
    texts = rows[side] if side == "biased_text" else rows[rows["bias"] == "Yes"][side]
    where = defaultdict(set)
    for number, text in enumerate(texts):
        w = words(text)
        for i in range(len(w) - 4):
            where[" ".join(w[i : i + 5])].add(number)
    most = max(where.items(), key=lambda item: len(item[1]))
    print(f"{side}: the commonest 5 words stand in {len(most[1])} rows: {most[0]!r}")
    assert len(most[1]) <= 3


def test_train_and_test_differ_in_topic_and_form_per_aspect(rows):
    for aspect, part in rows.groupby("aspect"):
        for what in ("topic", "form"):
            train, test = (set(part[part["split"] == split][what].str.lower()) for split in ("train", "test"))
            assert train and test and not train & test, (aspect, what)


def test_length_from_a_clause_to_a_paragraph(rows):
    lengths = rows["biased_text"].map(lambda text: len(words(text)))
    print(f"words per text: {lengths.min()} to {lengths.max()}, median {lengths.median():.0f}")
    assert lengths.min() <= 8 and lengths.max() >= 80 and (lengths > 60).mean() > 0.05


def test_counterfactual_file_is_what_its_script_makes():
    templates = read_table(params.TEMPLATE_FILE)
    assert len(templates) == 40 and Counter(templates["kind"]) == {"biased": 20, "neutral": 20}
    assert fill(templates).equals(read_table(params.COUNTERFACTUAL_FILE))


@pytest.mark.slow
@pytest.mark.smoke
def test_no_two_texts_are_nearly_the_same(rows):
    from sentence_transformers import SentenceTransformer

    from utils import embedded

    encoder = SentenceTransformer(str(embedded.fetch("minilm")), device="cpu")
    vectors = encoder.encode(list(rows["biased_text"]), normalize_embeddings=True, show_progress_bar=False)
    cosine = vectors @ vectors.T
    cosine[range(len(rows)), range(len(rows))] = 0
    a, b = divmod(int(cosine.argmax()), len(rows))
    print(f"closest pair: cosine {cosine.max():.3f} ({rows['split'][a]}, {rows['split'][b]})")
    assert cosine.max() < 0.9
