"""The evaluators of Safety-Tuned LLaMAs, used as published code uses them."""

import math
import subprocess
import sys

import pytest
import torch

from testing import evals
from tests.test_cost import SETTINGS, TRAIN
from tests.tiny import make_tiny_model
from utils.helpers import UserError
from utils.params import ROOT


@pytest.fixture(scope="module")
def predictor(tiny_model, tmp_path_factory):
    """Trained here: whoever says "bad" is as harmful as can be."""
    from tests.conftest import run_script

    folder = tmp_path_factory.mktemp("harmfulness")
    rows = "\n".join(f"say {n},{'bad' if n % 2 else 'good'} {n},{4 * (n % 2)}" for n in range(40))
    (folder / "rated.csv").write_text(f"prompt,response,harmfulness\n{rows}\n")
    flags = ["--base_model", tiny_model, "--input", folder / "rated.csv", "--output", folder / "model"]
    result = run_script(TRAIN, *flags, *SETTINGS, "--objective", "regression", "--lr", 1e-2)
    assert result.returncode == 0, result.stderr
    return folder / "model"


SNIPPET = """
from testing.evals import AbsoluteHarmfulnessPredictor, ConversationBuilder

user_texts = ["say 50", "say 51"]
assistant_texts = ["good 50", "bad 51"]
setup = {setup!r}
harmfulness_predictor = AbsoluteHarmfulnessPredictor(setup, device="cuda:0")
harmfulness_scores = harmfulness_predictor.predict(user_texts, assistant_texts)
print(harmfulness_scores)
"""


def run_snippet(setup: str) -> subprocess.CompletedProcess:
    code = SNIPPET.format(setup=setup)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_published_code_runs_on_a_predictor_trained_here(predictor):
    result = run_snippet(str(predictor))
    assert result.returncode == 0, result.stderr
    good, bad = eval(result.stdout.strip().splitlines()[-1], {})
    assert good < 1.5 < 2.5 < bad


@pytest.mark.parametrize("setup", ["redteam", "redteam-osst"])
def test_a_published_predictor_that_is_out_of_reach_names_the_way_to_ones_own(setup):
    result = run_snippet(setup)
    said = result.stderr.strip().splitlines()[-1]
    assert result.returncode and "training/train_cost.py --objective regression" in said
    assert evals.PUBLISHED[setup] in said


@pytest.mark.parametrize("setup", ["redteem", str(ROOT / "models_nowhere")])
def test_another_setup_is_a_mistake(setup):
    with pytest.raises(UserError, match="redteam, redteam-osst, or a folder made by"):
        evals.AbsoluteHarmfulnessPredictor(setup)


def test_a_cost_model_is_no_predictor(tmp_path):
    with pytest.raises(UserError, match="--objective regression"):
        evals.AbsoluteHarmfulnessPredictor(str(tmp_path))


def test_conversations_of_one_turn_and_of_several(predictor):
    builder = evals.ConversationBuilder()
    assert builder.build("a?", "b.") == "\n\nHuman: a?\n\nAssistant: b."
    assert builder.build(["a?", "c?"], ["b.", "d."]).endswith("\n\nHuman: c?\n\nAssistant: d.")
    with pytest.raises(ValueError, match="shorter"):
        builder.build(["a?", "c?"], ["b."])
    assert evals._prompt(["a?", "c?"], ["b.", "d."]) == "a?\n\nAssistant: b.\n\nHuman: c?"
    found = evals.AbsoluteHarmfulnessPredictor(str(predictor)).predict([["say 1", "say 2"]], [["good 1", " "]])
    assert len(found) == 1 and math.isnan(found[0])


def test_a_published_predictor_reads_whole_conversations(tmp_path, monkeypatch):
    """One of the same kind, made here: its score is its only output for the text as published."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_tiny_model(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "published")
    tokenizer.save_pretrained(tmp_path / "published")
    monkeypatch.setitem(evals.PUBLISHED, "redteam", str(tmp_path / "published"))
    users, answers = ["who?", "what, and why?"], ["me.", "that."]
    found = evals.AbsoluteHarmfulnessPredictor("redteam", device="cuda:0").predict(users, answers, batch_size=1)
    for user, answer, score in zip(users, answers, found, strict=True):
        ids = tokenizer(f"\n\nHuman: {user}\n\nAssistant: {answer}", return_tensors="pt")
        assert score == pytest.approx(model(**ids).logits[0, 0].item(), abs=1e-4)
    monkeypatch.setitem(evals.PUBLISHED, "redteam", str(folder))  # without a head
    with pytest.raises(UserError, match="drawn at random"):
        evals.AbsoluteHarmfulnessPredictor("redteam")


def test_moderation_by_the_published_name_of_the_key(server, monkeypatch, caplog):
    for name, value in server.env.items():
        monkeypatch.setenv(name.replace("OPENAI_API_KEY", "OPEN_AI_KEY"), value)
    monkeypatch.setenv("OPENAI_API_KEY", "")  # so that it is put back to nothing afterwards
    first, none, last = evals.ContentModeration().content_moderation(["[harassment 0.8]", "", "fine"])
    assert first["harassment"] == 0.8 and none is None and last["harassment"] == 0.01
    assert "OPEN_AI_KEY is an old name" in caplog.text
