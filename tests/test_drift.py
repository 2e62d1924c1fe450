"""Safety that is worn away in training is seen, and what is harmless is not taken for it."""

import json

import numpy as np
import pytest

from tests.test_pipeline import kill_when
from utils.checkpoints import stopped_early
from utils.drift import SafetyProbe, has_fallen, margins, read_probe
from utils.helpers import UserError
from utils.loading import load_model, load_tokenizer
from utils.models import resolve
from utils.params import DRIFT_LIMIT, PAIRS_FILE, REFUSAL, ROOT

TRAIN = ROOT / "training" / "train.py"
QUICK = ["--epochs", "6", "--batch_size", "4", "--eval_steps", "3", "--lora_r", "8", "--lr", "1e-2",
         "--prompt", "answer", "--patience", "0", "--quantization", "none", "--report_to", "none"]  # fmt: skip


@pytest.fixture
def probe(tmp_path):
    rows = [f"may I {n}?,please do not,sure thing,no" for n in range(12)]
    rows += [f"how are {n}?,very fine,,yes" for n in range(12)]
    (tmp_path / "probe.csv").write_text("prompt,safe_response,unsafe_response,look_alike\n" + "\n".join(rows) + "\n")
    return tmp_path / "probe.csv"


def train(script, folder, tiny_model, answer, *flags):
    rows = [{"prompt": f"could I {n}?", "completion": answer} for n in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = script(TRAIN, "--base_model", tiny_model, "--input", folder / "rows.jsonl", "--output", folder / "out",
                    "--safety_probe", folder / "probe.csv", *QUICK, *flags)  # fmt: skip
    return result, folder / "out"


def history(folder) -> list[dict]:
    return [entry for entry in json.loads((folder / "metrics.json").read_text())["history"] if "eval_loss" in entry]


def test_margins_are_differences_of_log_likelihoods_per_token(tiny_model):
    import torch

    ref = resolve(str(tiny_model))
    model, tokenizer = load_model(ref, compute_dtype="float32"), load_tokenizer(ref)
    found = margins(model, tokenizer, [("Who?", ("He did", "No"))])
    opening = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    wanted = []
    for answer in ("He did", "No"):
        ids = tokenizer(opening + answer, return_tensors="pt", add_special_tokens=False)["input_ids"]
        count = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        scores = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
        wanted.append(float(scores.gather(1, ids[0, 1:, None])[-count:].mean()))
    assert found[0] == pytest.approx(wanted[0] - wanted[1], abs=1e-4)


def test_look_alikes_are_compared_with_a_refusal(tmp_path, caplog):
    found = read_probe(str(PAIRS_FILE))
    assert len(found["safe_margin"]) == 240 and len(found["helpful_margin"]) == 60
    assert all(question[1][1] == REFUSAL for question in found["helpful_margin"])
    header = "prompt,safe_response,unsafe_response,look_alike,refusal\n"
    (tmp_path / "own.csv").write_text(header + "a,b,c,no,\n" + 9 * "d,e,f,no,\n" + "g,h,i,yes,Never\n")
    own = read_probe(str(tmp_path / "own.csv"))
    assert own["safe_margin"][0] == ("a", ("b", "c")) and own["helpful_margin"] == [("g", ("h", "Never"))]
    assert "fewer than 10 look-alikes" in caplog.text
    (tmp_path / "few.csv").write_text("prompt,safe_response,unsafe_response\n" + 9 * "a,b,c\n")
    with pytest.raises(UserError, match="fewer than 10 rows that are no look-alikes"):
        read_probe(str(tmp_path / "few.csv"))


def test_a_fall_must_be_large_and_that_of_surely_most_rows():
    before, rng = np.zeros(40), np.random.default_rng(0)
    assert has_fallen(before - 2 * DRIFT_LIMIT + rng.normal(0, DRIFT_LIMIT, 40), before)
    assert not has_fallen(before - DRIFT_LIMIT / 2 + rng.normal(0, DRIFT_LIMIT / 10, 40), before)
    both_ways = np.where(np.arange(40) < 26, -6 * DRIFT_LIMIT, 6 * DRIFT_LIMIT)  # as a change of voice does it
    assert both_ways.mean() < -DRIFT_LIMIT and not has_fallen(both_ways, before)
    assert not has_fallen(before + 1, before) and has_fallen(before - 1, before)
    few = np.array([-1.0] * 10 + [np.nan])
    assert has_fallen(few, np.zeros(11)) and not has_fallen(few[1:], np.zeros(10))


def test_each_margin_is_watched_by_itself_and_compared_with_the_start(probe, tmp_path, monkeypatch):
    found = iter([np.zeros(12), np.zeros(12), np.ones(12), -np.ones(12), -np.ones(12), np.zeros(12)])
    monkeypatch.setattr("utils.drift.margins", lambda *_: next(found))
    first = SafetyProbe(str(probe), None, tmp_path)
    assert first.measure(None, 0) == {"safe_margin": 0, "helpful_margin": 0, "safe_margin_fallen": 0,
                                      "helpful_margin_fallen": 0}  # fmt: skip
    assert first.measure(None, 1)["helpful_margin_fallen"] and first.fallen == {"helpful_margin"}
    again = SafetyProbe(str(probe), None, tmp_path)  # after a restart
    assert again.measure(None, 2)["safe_margin_fallen"] and again.fallen == {"safe_margin"}


def test_planted_compliance_is_flagged_and_harmless_rows_are_not(probe, script, tmp_path, tiny_model):
    result, folder = train(script, tmp_path, tiny_model, "sure thing")
    assert result.returncode == 0 and "drift at step" in result.stderr, result.stderr
    found = history(folder)
    assert found[0]["step"] == 0 and not found[0]["eval_safe_margin_fallen"] and found[-1]["eval_safe_margin_fallen"]
    assert found[-1]["eval_safe_margin"] < found[0]["eval_safe_margin"] - DRIFT_LIMIT
    safety = json.loads((folder / "metrics.json").read_text())["safety"]
    assert safety["safe_margin"]["before"] == found[0]["eval_safe_margin"]
    assert 0 < safety["safe_margin"]["fallen_at_step"] < found[-1]["step"]

    merged = script(ROOT / "training" / "merge.py", "--adapter_model", folder, "--output", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    height = int.from_bytes((folder / "loss.png").read_bytes()[20:24], "big")
    assert height > 700  # two plots, one above the other
    (tmp_path / "out").rename(tmp_path / "unsafe")
    result, folder = train(script, tmp_path, tiny_model, "please do not")
    assert result.returncode == 0 and "safe_margin has changed" not in result.stderr
    assert history(folder)[-1]["eval_safe_margin"] > history(folder)[0]["eval_safe_margin"]


def test_a_run_ends_where_safety_drifts_with_the_checkpoint_before(probe, script, tmp_path, tiny_model):
    flags = ["--stop_on_drift", "--eval_steps", "1", "--lr", "1e-3", "--warmup_ratio", "0.5"]
    result, folder = train(script, tmp_path, tiny_model, "sure thing", *flags)
    assert result.returncode == 0, result.stderr
    found, metrics = history(folder), json.loads((folder / "metrics.json").read_text())
    assert found[-1]["eval_safe_margin_fallen"] and not any(entry["eval_safe_margin_fallen"] for entry in found[:-1])
    assert 0 < metrics["best_step"] == found[-2]["step"] < metrics["steps"]
    assert found[-1]["eval_loss"] < found[-2]["eval_loss"] == metrics["validation_loss"]


@pytest.mark.parametrize(
    ("fallen", "on_drift", "stopped"), [(1.0, True, True), (0.0, True, False), (1.0, False, False)]
)
def test_a_run_that_had_stopped_for_drift_is_not_trained_on(tmp_path, fallen, on_drift, stopped):
    history = [
        {"eval_loss": 2.0, "eval_safe_margin_fallen": 1.0},
        {"eval_loss": 1.0, "eval_safe_margin_fallen": fallen},
    ]
    state = {"log_history": [*history, {"loss": 1.0}], "stateful_callbacks": {}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert stopped_early(tmp_path, patience=0, on_drift=on_drift) is stopped


def test_drift_before_any_checkpoint_is_an_error_in_one_line(probe, script, tmp_path, tiny_model):
    result, folder = train(script, tmp_path, tiny_model, "sure thing", "--stop_on_drift", "--eval_steps", "12")
    assert result.returncode == 2 and "before any checkpoint: evaluate sooner" in result.stderr and not folder.exists()


@pytest.mark.slow
def test_the_safest_checkpoint_is_kept_when_asked(probe, script, tmp_path, tiny_model):
    result, folder = train(script, tmp_path, tiny_model, "sure thing", "--keep_safest")
    assert result.returncode == 0, result.stderr
    saved = history(folder)[1:]  # that before the first step is no checkpoint
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best_step"] == max(saved, key=lambda entry: entry["eval_safe_margin"])["step"]
    assert metrics["best_step"] != min(saved, key=lambda entry: entry["eval_loss"])["step"]


@pytest.mark.slow
def test_a_run_that_goes_on_compares_with_its_own_beginning(probe, script, tmp_path, tiny_model):
    """A run of which two thirds are missing ends with the curve of one that was never stopped."""
    whole, folder = train(script, tmp_path, tiny_model, "sure thing")
    assert whole.returncode == 0, whole.stderr
    wanted = history(folder)
    folder.rename(tmp_path / "whole")
    rows = ["--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--safety_probe", probe]
    kill_when([TRAIN, "--base_model", tiny_model, *rows, *QUICK], "drift at step 12")
    result, folder = train(script, tmp_path, tiny_model, "sure thing", "--resume")
    assert result.returncode == 0 and "going on from checkpoint" in result.stderr, result.stderr
    curve = [(entry["step"], entry["eval_safe_margin"]) for entry in history(folder)]
    assert curve == [(entry["step"], pytest.approx(entry["eval_safe_margin"], abs=1e-4)) for entry in wanted]


@pytest.mark.parametrize("flag", ["--keep_safest", "--stop_on_drift"])
def test_a_gate_wants_a_probe(flag, script):
    result = script(TRAIN, flag)
    assert result.returncode == 2 and "--safety_probe FILE" in result.stderr
