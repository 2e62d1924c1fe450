"""Spotting: what is learned, that it is found again, and the two steps spot and fill through the scripts."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import utils.spotter as spotter_module
from utils.data import read_table
from utils.edits import words_of
from utils.helpers import UserError
from utils.loading import load_base, load_tokenizer
from utils.models import resolve
from utils.params import ROOT
from utils.spotter import (
    Probe,
    Spotter,
    fit,
    fit_probes,
    layers_to_read,
    load_spotter,
    log_odds,
    spot,
    word_features,
)

TRAIN_SPOTTER, TRAIN = ROOT / "training" / "train_spotter.py", ROOT / "training" / "train.py"
INFER = ROOT / "testing" / "infer.py"


def test_layers_are_in_the_middle_and_exist():
    assert layers_to_read(30) == [15, 18, 21, 24]
    assert layers_to_read(2) == [1, 2] and layers_to_read(1) == [1]


def test_the_fitted_weights_take_raw_features():
    """Standardising is folded into them, so that a spotter is one weight per feature."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(5, [1.0, 20.0, 0.1], (200, 3)).astype(np.float32)
    y = x[:, 0] + 0.05 * x[:, 1] > 5.2
    probe = fit(x, y, strength=0.1)
    z = (x - x.mean(0)) / (x.std(0) + 1e-3)
    wanted = LogisticRegression(C=0.1, max_iter=1000).fit(z, y).decision_function(z)
    assert np.allclose(probe(x), wanted, atol=1e-3)


def test_with_one_kind_only_there_is_nothing_to_learn():
    x = np.ones((4, 2), dtype=np.float32)
    for labels in (np.ones(4, dtype=bool), np.zeros(4, dtype=bool)):
        assert fit(x, labels, strength=1)(x).tolist() == [0, 0, 0, 0]


def test_a_text_is_judged_by_its_tone_and_by_its_worst_word():
    word, tone = Probe(np.array([1.0, 0.0]), 0.0), Probe(np.array([0.0, 1.0]), 1.0)
    words, text = log_odds(word, tone, np.array([[1.0, 2.0], [5.0, 4.0]]))
    assert words.tolist() == [1, 5] and text == ((3 + 1) + 5) / 2


def test_tone_is_learned_from_the_mean_over_the_words():
    """The words that change look like any other here; only the mean of the second feature tells the texts apart."""
    rng = np.random.default_rng(0)
    features = [rng.normal([0, 3 * (n % 2)], 1, (6, 2)).astype(np.float32) for n in range(40)]
    labels = [np.array([n % 2 == 1] + [False] * 5) for n in range(40)]
    _, tone = fit_probes(features, labels)
    assert all((tone(text.mean(0)) > 0) == label.any() for text, label in zip(features, labels, strict=True))


def test_features_are_those_of_the_second_reading_and_do_not_depend_on_the_batch(tiny_model):
    from utils.prompts import spot_messages

    ref = resolve(str(tiny_model))
    tokenizer, model = load_tokenizer(ref), load_base(ref, "none", {"compute_dtype": "float32"}).eval()
    texts = ["one bad thing", "a much longer text with more words in it", "...", "x"]
    together = word_features(model, tokenizer, texts, [1, 2])
    assert [len(f) for f in together] == [3, 9, 0, 1] and together[0].shape[1] == 128
    for text, features in zip(texts, together, strict=True):
        assert np.allclose(word_features(model, tokenizer, [text], [1, 2])[0], features, atol=1e-5)
    # one token per byte here: "bad" are bytes 4 to 7 of the text that follows the prompt
    prompt = tokenizer.apply_chat_template(spot_messages(texts[0]), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt + texts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    start = ids.shape[1] - len(texts[0]) + 4
    wanted = torch.cat([states[1], states[2]], dim=-1)[0, start : start + 3].mean(0)
    assert np.allclose(together[0][1], wanted.numpy(), atol=1e-5)


@pytest.fixture
def by_hand(monkeypatch):
    """A spotter that reads what stands here: the suspicion of each word, and the tone of the text, as log-odds."""
    suspicion = {"bad": 2.0, "bold": -0.5}
    tone = {"a bad bold day": -6.0, "a bad bold lot": 6.0, "a dull lot": 9.0}

    def features(model, tokenizer, texts, layers):
        words = [[text[a:b] for a, b in words_of(text)] for text in texts]
        return [np.array([[suspicion.get(w, -5.0), tone[t]] for w in ws]) for t, ws in zip(texts, words, strict=True)]

    monkeypatch.setattr(spotter_module, "word_features", features)
    monkeypatch.setattr(spotter_module, "load_tokenizer", lambda ref: None)
    monkeypatch.setattr(spotter_module, "load_base", lambda ref, quantization: torch.nn.Identity())
    spotter = Spotter(Probe(np.array([1.0, 0.0]), 0.0), Probe(np.array([0.0, 1.0]), 0.0), [1], None, "none")

    def spotted(text, threshold, spread):
        (spots,) = spot(spotter, [text], threshold, spread)
        return [(text[s.start : s.end], s.worst) for s in spots]

    return spotted


def test_the_same_words_stay_in_a_fair_text_and_go_from_an_unfair_one(by_hand):
    assert by_hand("a bad bold day", 0.5, 0.5) == [] and by_hand("a bad bold lot", 0.5, 0.5) == [("bad", "bad")]
    assert by_hand("a bad bold day", 0, 0.5) == [("bad", "bad")] and by_hand("a bad bold lot", 1, 0.5) == []
    # once a text is unfair, words are changed on a weaker suspicion, and the worst one on any
    assert by_hand("a bad bold lot", 0.5, 0.3) == [("bad bold", "bad")]
    assert by_hand("a bad bold lot", 0.5, 1) == [("bad", "bad")]
    assert by_hand("a dull lot", 0.5, 0.5) == [("a dull lot", "a")]  # all alike, so all are the worst


def test_a_spotter_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    save_file({"weight": np.zeros(2), "bias": np.zeros(1)}, tmp_path / "spotter.safetensors")
    (tmp_path / "run.json").write_text('{"model": {"name": "smollm2"}, "layers": [1], "config": {}}')
    with pytest.raises(UserError, match="earlier version: train it again"):
        load_spotter(tmp_path)


def test_rows_without_words_are_left_out_and_a_file_of_unfair_texts_only_is_warned_about(tmp_path, caplog):
    from training.train_spotter import check, load_rows
    from utils.configs import SpotterConfig

    pairs = tmp_path / "pairs.csv"
    pairs.write_text("biased_text,debiased_text\n...,!!\n" + "".join(f"bad row {i},row {i}\n" for i in range(12)))
    rows, labels = load_rows(SpotterConfig(input=str(pairs)))
    assert len(rows) == len(labels) == 12
    check(str(pairs), rows, labels)
    assert "holds no fair text" in caplog.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """A spotter and an adapter that fills brackets, for a world in which only 'bad' is bad."""
    from tests.conftest import run_script

    folder = tmp_path_factory.mktemp("spot")
    pairs = folder / "pairs.csv"
    lines = [f"a bad thing {i},a thing {i}\na good thing {i},a good thing {i}\n" for i in range(60)]
    pairs.write_text("biased_text,debiased_text\n" + "".join(lines))
    common = ["--base_model", tiny_model, "--input", pairs]
    result = run_script(TRAIN_SPOTTER, *common, "--output", folder / "spotter")
    assert result.returncode == 0, result.stderr
    quick = ["--epochs", 1, "--eval_steps", 2, "--lora_r", 4]
    tuned = run_script(TRAIN, *common, "--prompt", "fill", "--output", folder / "adapter", *quick)
    assert tuned.returncode == 0, tuned.stderr
    assert "60 of 120 rows change a word" in tuned.stderr
    return folder, result.stdout


@pytest.mark.slow
def test_the_spotter_describes_itself(trained, tiny_model):
    folder, printed = trained
    metrics = json.loads((folder / "spotter" / "metrics.json").read_text())
    assert metrics["auc"] > 0.95 and metrics["text_auc"] > 0.95 and "probability above" in printed
    assert metrics["words"] == 480 and metrics["to_change"] == pytest.approx(60 / 480)
    record = json.loads((folder / "spotter" / "run.json").read_text())
    assert record["model"]["name"] == str(tiny_model) and record["layers"] == [1, 2]
    assert {p.name for p in (folder / "spotter").iterdir()} == {"spotter.safetensors", "metrics.json", "run.json"}


@pytest.mark.slow
def test_it_finds_the_words_again_and_the_worst_one_in_any_case(trained):
    spotter = load_spotter(trained[0] / "spotter")
    bad, good = spot(spotter, ["a bad thing 21", "a good thing 21"], threshold=0.3, spread=0.3)
    assert [("a bad thing 21"[s.start : s.end], s.worst) for s in bad] == [("bad", "bad")] and good == []
    assert spot(spotter, ["a bad thing"], threshold=0.9999, spread=0.3) == [[]]
    forced, worst_only = (spot(spotter, ["a bad thing"], 0, spread)[0] for spread in (0.3, 1))
    assert [s.worst for s in forced] == [s.worst for s in worst_only] == ["bad"]
    # in an unfair text a weaker suspicion is enough
    (alone,), (spread,) = (spot(spotter, ["a bad bold thing"], 0.3, low) for low in (0.3, 0.001))
    assert [s.worst for s in alone] == ["bad"] and [(s.start, s.end) for s in spread] == [(0, 16)]
    assert spot(spotter, ["...", ""], threshold=0, spread=0.3) == [[], []]


@pytest.mark.slow
def test_spot_and_fill_changes_what_was_spotted_and_nothing_else(trained, script, tmp_path):
    folder, _ = trained
    texts = tmp_path / "in.csv"
    texts.write_text("biased_text,spotted_words\na bad thing 30,mine\nthe good thing 30,mine\n,\n")
    output = tmp_path / "out.csv"
    flags = ["--adapter_model", folder / "adapter", "--spotter", folder / "spotter"]
    flags += ["--spot_threshold", 0.3, "--spot_spread", 0.3]
    result = script(INFER, "--input", texts, "--output", output, *flags, "--max_new_tokens", 8)
    assert result.returncode == 0, result.stderr
    frame = read_table(output)
    assert frame["spotted_words"].map(json.loads).tolist() == [["bad"], [], []]
    assert list(frame["input_spotted_words"]) == ["mine", "mine", ""]
    first, second, empty = frame["generated_text"]
    assert first.startswith("a ") and first.endswith(" thing 30") and "bad" not in first
    assert (second, empty) == ("the good thing 30", "")
    # the first text has 17 characters, so many tokens
    longer = ["--spot_threshold", 0, "--max_prompt_tokens", 20]
    texts.write_text("biased_text\nthe good thing 30\n" + "long " * 9 + "\n")
    result = script(INFER, "--input", texts, "--output", output, *flags, "--max_new_tokens", 8, "--overwrite", *longer)
    assert result.returncode == 0, result.stderr
    frame = read_table(output)
    assert list(frame["status"]) == ["too_long", "too_long"]  # the first fits, but not with the template around it
    assert json.loads(frame["spotted_words"][0]) != [] and json.loads(frame["spotted_words"][1]) == []


@pytest.mark.slow
def test_what_is_missing_or_contradicts_is_said_in_one_line(trained, script, tmp_path, pairs_csv):
    folder, _ = trained
    flags = ["--adapter_model", folder / "adapter", "--input", pairs_csv, "--output", tmp_path / "out.csv"]
    for extra, said in [
        (["--spotter", tmp_path / "none"], "training/train_spotter.py makes one"),
        (["--spotter", folder / "spotter", "--spot_threshold", 1.5], "between 0 and 1"),
    ]:
        result = script(INFER, *flags, *extra)
        assert result.returncode == 2 and said in result.stderr.splitlines()[-1]
    fair = tmp_path / "fair.csv"
    fair.write_text("biased_text,debiased_text\n" + "".join(f"row {i},row {i}\n" for i in range(9)))
    result = script(TRAIN_SPOTTER, "--input", fair, "--output", tmp_path / "s")
    assert result.returncode == 2 and "0 of 9 rows change some words" in result.stderr
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text('[{"instruction": "say hi", "output": "hi"}]')
    for stage in ([TRAIN_SPOTTER], [TRAIN, "--prompt", "fill"]):
        result = script(*stage, "--input", alpaca, "--output", tmp_path / "s")
        assert result.returncode == 2 and "pairs" in result.stderr, result.stderr
