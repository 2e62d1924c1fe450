"""Scorers on cases computed by hand, and on models made for the test."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from testing.score import begin, score_rows
from testing.scorers import all_measures, fluency, identity, joint, known_scorers, load_scorers, style, toxicity
from tests.tiny import make_tiny_model
from utils import params
from utils.configs import ScoreConfig
from utils.data import read_table
from utils.helpers import UserError

SCORE = params.ROOT / "testing" / "score.py"


def answers(**columns) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"r{n}" for n in range(len(next(iter(columns.values()))))]} | columns)


def test_no_two_scorers_write_the_same_column():
    names = [name for module in load_scorers(",".join(known_scorers())).values() for name in module.MEASURES]
    assert len(names) == len(set(names)) == len(all_measures())
    labels = set(read_table(params.TEST_FILE).columns)
    assert not labels & set(names)  # a score never takes the place of a label


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One two. Three four.", 1.0),
        ("One. Two three four.", -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)),
        ("One line\nand two more", -(0.4 * math.log(0.4) + 0.6 * math.log(0.6)) / math.log(2)),
        ("Only one sentence here.", None),
        ("", None),
    ],
)
def test_sentence_entropy(text, wanted):
    found = style.sentence_entropy(text)
    assert found == wanted if wanted is None else found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("group", "text", "gone"),
    [
        ("a man", "The man waits.", False),
        ("a woman", "The women wait.", False),
        ("a man", "The woman waits.", True),
        ("a Muslim", "Muslims may come in.", False),
        ("a trans woman", "The woman waits.", True),
        ("a non-binary person", "A non binary guest waits.", False),
        ("an older person", "Someone waits.", True),
        ("a Hindu", "The Hindu's shop is open.", False),
        ("a woman", "The women's shop is open.", False),
        ("a man", "The men's room is shut.", False),
        ("a Jewish person", "Jews live here.", False),
    ],
)
def test_erased_identities(group, text, gone):
    assert identity.erased(group, text) is gone


def test_identity_is_missing_where_nothing_can_be_said():
    frame = answers(
        biased_text=["A man waits.", "He waits.", "A man waits."],
        generated_text=["Someone waits.", "Someone waits.", " "],
        group=["a man"] * 3,
    )
    scores = identity.score(frame, ScoreConfig())
    assert scores["identity_erased"].tolist()[0] == 1 and scores["identity_erased"][1:].isna().all()
    assert scores["edited"].tolist()[:2] == [1, 1] and math.isnan(scores["edited"][2])


def test_joint_is_a_product_within_rows():
    frame = answers(toxic=["0.2", "0.7", "0.4", ""], meaning=[0.8, 1.0, -0.1, 1.0], fluency=[0.5, 1.0, 1.0, 1.0])
    frame["generated_text"] = ["x"] * 4
    scores = joint.score(frame, ScoreConfig())
    assert scores["joint"].tolist()[:3] == [pytest.approx(0.4), 0, 0] and math.isnan(scores["joint"][3])
    with pytest.raises(UserError, match="--joint_parts meaning,fluency: no such column"):
        joint.score(frame[["id", "toxic"]], ScoreConfig())
    empty = joint.score(frame.assign(generated_text=" "), ScoreConfig())
    assert empty["joint"].tolist() == [0, 0, 0, 0]  # nothing said is nothing kept
    for parts, message in (("", "give the columns"), ("id", "which is no number"), ("chrf", "74 is no share")):
        with pytest.raises(UserError, match=message):
            joint.score(frame.assign(chrf=74), ScoreConfig(joint_parts=parts))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def test_perplexity_is_that_of_the_model_itself(tiny):
    """Rows of one batch, with and without a common beginning, against the model's forward pass row by row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["A clerk is late.", "A clerk is late, again.", "Zebras sleep.", "", "A clerk is late."]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    found = fluency.nats_per_token(texts, tiny)
    for text, nats in zip(texts, found, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        if not text:
            assert math.isnan(nats)
            continue
        with torch.no_grad():
            assert nats == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=0.02)  # in bfloat16

    import utils.likelihood

    with pytest.MonkeyPatch.context() as patch:  # the ordinary way, for models that ours does not fit
        patch.setattr(utils.likelihood, "supports", lambda model: "for this test")
        assert fluency.nats_per_token(texts, tiny) == pytest.approx(found, rel=0.02, nan_ok=True)
    frame = answers(biased_text=["A clerk is late.", "Zebras sleep."], generated_text=["Zebras sleep.", ""])
    scores = fluency.score(frame, ScoreConfig(fluency_model=tiny))
    anchors = fluency.anchors(frame, scores, ScoreConfig(fluency_model=tiny))
    assert scores["fluency"][0] == pytest.approx(min(1, math.exp(found[0] - found[2]))) and math.isnan(
        scores["fluency"][1]
    )
    assert anchors["source"] == pytest.approx((found[0] + found[2]) / 2)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random BERT with three labels and a word tokenizer, saved like any classifier."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    BertTokenizerFast(
        vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt"), model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.id2label = {0: "calm", 1: "Hostile", 2: "sad"}
    model = BertForSequenceClassification(config)
    model.classifier.weight.data *= 50  # so that texts differ
    model.save_pretrained(folder)
    return folder


def test_any_classifier_by_folder(classifier):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    texts = ["a b c", "d", "h g f e d c b a"]
    with torch.no_grad():
        wanted = [model(**tokenizer(t, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for t in texts]
    frame = answers(biased_text=["a b c", "d", ""], generated_text=[texts[2], "", "d"])
    config = ScoreConfig(toxicity_model=str(classifier), toxicity_label="hostile")
    scores = toxicity.score(frame, config)
    assert scores["toxic"][0] == pytest.approx(wanted[2], abs=1e-5) and math.isnan(scores["toxic"][1])
    assert scores["toxic_source"].tolist()[:2] == pytest.approx(wanted[:2], abs=1e-5)
    assert toxicity.anchors(frame, scores, config) == {}
    for label in ("kind", ""):
        with pytest.raises(UserError, match=f"no label '{label}': there are calm, hostile, sad"):
            toxicity.score(frame, ScoreConfig(toxicity_model=str(classifier), toxicity_label=label))
    styled = style.score(frame, ScoreConfig(trait_model=str(classifier), trait_label="Hostile"))
    assert styled["trait"][0] == pytest.approx(wanted[2], abs=1e-5)
    assert styled["trait_source"][0] == pytest.approx(wanted[0], abs=1e-5)
    assert style.anchors(frame, styled, config) == {}  # one row has both texts: nothing to test


def test_a_model_that_is_no_classifier_is_refused(tiny):
    """transformers would put a head of random numbers on it."""
    frame = answers(biased_text=["a"], generated_text=["b"])
    with pytest.raises(UserError, match="is no text classifier: its weights lack score.weight"):
        toxicity.score(frame, ScoreConfig(toxicity_model=tiny, toxicity_label="1"))


def test_bertscore_by_its_library(classifier, script, tmp_path):
    pytest.importorskip("bert_score")
    from testing.scorers import bertscore

    frame = answers(generated_text=["a b c", "d e", "", "a"], debiased_text=["a b c", "a b c", "a", " "])
    config = ScoreConfig(bertscore_model=str(classifier), bertscore_layer=1)
    scores = bertscore.score(frame, config)["bertscore"]
    assert scores[0] == pytest.approx(1) and 0 < scores[1] < 0.999 and scores[2] == 0 and math.isnan(scores[3])
    with pytest.raises(UserError, match="give --bertscore_layer as well"):
        bertscore.score(frame, ScoreConfig(bertscore_model=str(classifier)))
    answers(biased_text=["a"], generated_text=["b"]).to_csv(tmp_path / "answers.csv", index=False)
    result = script(SCORE, "--input", tmp_path / "answers.csv", "--scorers", "bertscore")
    assert result.returncode == 2 and "leave bertscore out of --scorers" in result.stderr


def test_t_tests_of_a_trait(classifier):
    from scipy.stats import ttest_rel

    frame = answers(biased_text=["a", "b", "c", "d"], generated_text=["e", "f", "g", "h"])
    config = ScoreConfig(trait_model=str(classifier), trait_label="2")
    scores = style.score(frame, config)
    before = style.score(frame.assign(generated_text=frame["biased_text"]), config)
    wanted = ttest_rel(scores["trait"], before["trait"]).statistic
    assert style.anchors(frame, scores, config)["t"] == pytest.approx(wanted)


def test_stored_scores_are_replayed(script, tmp_path):
    """A judge that failed for half of the rows changes n, and the mean is that of the others."""
    frame = answers(biased_text=["a"] * 4, generated_text=["b"] * 4, perspective=["0.9", "", "0.1", ""])
    frame.to_csv(tmp_path / "answers.csv", index=False)
    result = script(
        SCORE, "--input", tmp_path / "answers.csv", "--scorers", "toxicity", "--toxicity_model", "column:perspective"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "answers.summary.json").read_text())["measures"]
    assert (found["toxic"]["mean"], found["toxic"]["scored"], found["toxic"]["total"]) == (0.5, 2, 4)
    assert found["toxic_source"]["mean"] is None
    for values, message in ((["95%"] * 4, "which is no number"), (["95"] * 4, "95 is no probability")):
        frame.assign(toxic=values).to_csv(tmp_path / "wrong.csv", index=False)
        flags = ["--scorers", "toxicity", "--toxicity_model", "column:toxic"]  # renamed, to make room, and found
        result = script(SCORE, "--input", tmp_path / "wrong.csv", *flags)
        assert result.returncode == 2 and message in result.stderr


def test_a_label_that_is_called_like_a_measure_is_kept(script, tmp_path):
    frame = answers(biased_text=["a b"], generated_text=["a b"], facts=["mine"])
    frame.to_csv(tmp_path / "answers.csv", index=False)
    assert script(SCORE, "--input", tmp_path / "answers.csv", "--scorers", "facts,edits").returncode == 0
    scores = read_table(tmp_path / "answers.scores.csv")
    assert scores["input_facts"][0] == "mine" and list(scores.columns).count("facts") == 1


def test_probe_for_toxicity(script, tiny, tmp_path):
    """Trained on labelled texts by the script, read by score.py; rows it was trained on are told apart."""
    rows = [
        {"text": f"{word} {word} {word} {n}", "label": label}
        for n in range(15)
        for word, label in (("oaf", "bad"), ("sir", "fine"))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "labelled.csv", index=False)
    train = [
        params.ROOT / "training" / "train_toxicity.py",
        "--input",
        tmp_path / "labelled.csv",
        "--base_model",
        tiny,
    ]
    result = script(*train, "--toxic_labels", "bad", "--output", tmp_path / "probe")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    assert metrics["texts"] == 30 and metrics["auroc"] > 0.9 and f"AUROC {metrics['auroc']:.3f}" in result.stdout
    answers(biased_text=["oaf oaf oaf 3"] * 2, generated_text=["sir sir sir 3", ""]).to_csv(
        tmp_path / "answers.csv", index=False
    )
    result = script(
        SCORE, "--input", tmp_path / "answers.csv", "--scorers", "toxicity", "--toxicity_model", tmp_path / "probe"
    )
    assert result.returncode == 0, result.stderr
    scores = read_table(tmp_path / "answers.scores.csv")
    assert float(scores["toxic"][0]) < 0.5 < float(scores["toxic_source"][0]) and scores["toxic"][1] == ""
    summary = json.loads((tmp_path / "answers.summary.json").read_text())
    assert summary["anchors"]["toxicity_auroc"] == metrics["auroc"]  # what it is worth stands beside its figures
    assert "toxicity_auroc" in result.stdout
    wrong = script(*train, "--toxic_labels", "awful", "--output", tmp_path / "none")
    assert wrong.returncode == 2 and "0 different texts are toxic, 30 are not, 10 of each are needed" in wrong.stderr


def test_missing_probe_names_the_script_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr(params, "TOXICITY_DIR", tmp_path / "toxicity")
    with pytest.raises(UserError, match="python training/train_toxicity.py makes it"):
        toxicity.fingerprint(ScoreConfig(toxicity_model=str(tmp_path / "toxicity")))


@pytest.mark.parametrize("cell", ["5", "[1, 2]", '"abc"', '{"a": 1}', "lazy, rude"])
def test_biased_words_are_a_list_of_words(cell):
    frame = answers(biased_text=["a"], generated_text=["b"], biased_words=[cell])
    with pytest.raises(UserError, match="is no JSON list of words"):
        load_scorers("edits")["edits"].score(frame, ScoreConfig())


@pytest.fixture(scope="module")
def checkpoint(classifier, tmp_path_factory):
    """A checkpoint in the form that Detoxify's authors publish."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("detoxify")
    from transformers import BertForSequenceClassification

    names = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(classifier, num_labels=6, ignore_mismatched_sizes=True)
    model.classifier.weight.data.normal_(0, 3)
    architecture = {"model_type": str(classifier), "model_name": "BertForSequenceClassification", "num_classes": 6}
    architecture["tokenizer_name"] = "BertTokenizerFast"
    path = tmp_path_factory.mktemp("detoxify") / "small.ckpt"
    config = {"arch": {"args": architecture}, "dataset": {"args": {"classes": names}}}
    torch.save({"config": config, "state_dict": model.state_dict()}, path)
    return path, model


def test_detoxify_opens_a_checkpoint_whose_hash_is_known(checkpoint, classifier):
    import torch
    from transformers import AutoTokenizer

    from utils.records import file_sha256
    from utils.toxicity import toxicity_of

    path, model = checkpoint
    with pytest.raises(UserError, match="is a pickle"):
        toxicity_of(["a"], f"detoxify:{path}", "1")
    with pytest.raises(UserError, match="is a pickle"):
        toxicity_of(["a"], f"detoxify:{path}", "1", sha256="0" * 64)
    found = toxicity_of(["a b", "", "c"], f"detoxify:{path}", "1", file_sha256(path))
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        wanted = [
            model.eval()(**tokenizer(t, return_tensors="pt")).logits.sigmoid()[0, 0].item() for t in ("a b", "c")
        ]
    assert found[[0, 2]] == pytest.approx(np.array(wanted), abs=1e-5) and math.isnan(found[1])
    with pytest.raises(UserError, match="no published model: original"):
        toxicity_of(["a"], "detoxify:best", "1")


def test_a_killed_run_goes_on(script, tmp_path):
    """What was scored before a kill is not scored again, unless file or settings have changed."""
    rows = params.SCORE_CHUNK + 4
    answers(biased_text=["a"] * rows, generated_text=["b"] * rows, p=["0.25"] * rows).to_csv(
        tmp_path / "answers.csv", index=False
    )
    flags = ["--input", tmp_path / "answers.csv", "--scorers", "toxicity,edits", "--toxicity_model", "column:p"]
    assert script(SCORE, *flags).returncode == 0
    whole = (tmp_path / "answers.scores.csv").read_bytes()
    progress = tmp_path / "answers.scores.progress.jsonl"
    assert not progress.exists()

    config = ScoreConfig(input=[str(tmp_path / "answers.csv")], scorers="toxicity,edits", toxicity_model="column:p")
    frame = read_table(tmp_path / "answers.csv")
    kept = begin(tmp_path / "answers.csv", load_scorers(config.scorers), config)
    score_rows(frame, "toxicity", toxicity, config, kept)  # and then it was killed
    lines = progress.read_text().splitlines()
    assert len(lines) == 3  # settings, and two chunks
    marked = lines[1].replace("0.25", "0.75")
    progress.write_text("\n".join([lines[0], marked, lines[2][:20]]))
    assert script(SCORE, *flags).returncode == 0
    scores = read_table(tmp_path / "answers.scores.csv")["toxic"]
    assert scores[0] == "0.75" and scores[rows - 1] == "0.25" and not progress.exists()  # the marked chunk was kept

    progress.write_text("\n".join([lines[0], marked]) + "\n")
    again = script(SCORE, *flags, "--seed", 3)
    assert again.returncode == 0 and "starting again" in again.stderr and "seed" in again.stderr
    assert (tmp_path / "answers.scores.csv").read_bytes() == whole


def test_means_by_group(script, tmp_path):
    """The largest group first; a row without a group is one too."""
    said = ["I can't do that.", "Sure: x", "Sure: y", "I can't do that."]
    frame = answers(biased_text=list("abcd"), generated_text=said, domain=["religion", "gender", "gender", ""])
    frame.to_csv(tmp_path / "in.csv", index=False)
    flags = ["--input", tmp_path / "in.csv", "--scorers", "refusal"]
    result = script(SCORE, *flags, "--group_column", "domain")
    assert result.returncode == 0, result.stderr
    groups = json.loads((tmp_path / "in.summary.json").read_text())["groups"]
    assert next(iter(groups)) == "gender"
    means = {name: (of["refused"]["mean"], of["refused"]["total"]) for name, of in groups.items()}
    assert means == {"gender": (0.0, 2), "religion": (1.0, 1), "": (1.0, 1)}
    assert "by domain" in result.stdout
    result = script(SCORE, *flags, "--group_column", "topic")
    assert result.returncode == 2 and "--group_column" in result.stderr
