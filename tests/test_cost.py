"""The cost model: loss and metrics by hand, its sign from end to end, training and evaluation as a user runs them."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from utils import params
from utils.cost import Normaliser, collate, cost_loss, encode, hits, token_costs
from utils.cost_metrics import (
    calibration_error,
    fit_calibration,
    pairs_of,
    probability,
    ranking_accuracy,
    sign_accuracy,
)
from utils.cost_trainer import split_rows
from utils.loading import load_base, load_tokenizer
from utils.models import resolve
from utils.preferences import Judged
from utils.records import read_json

TRAIN, EVALUATE = params.ROOT / "training" / "train_cost.py", params.ROOT / "testing" / "evaluate_cost.py"


def softplus(x: float) -> float:
    """-log sigmoid(-x)"""
    return math.log1p(math.exp(x))


def row(prompt="p", responses=("worse", "better"), unsafe=(True, False), harm=None, number=1) -> Judged:
    return Judged("id", number, "file", prompt, tuple(responses), tuple(unsafe), harm)


def batch_of(rows, tokenizer, form="question"):
    return collate([encode(r, tokenizer, form) for r in rows], tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(resolve(str(tiny_model)), side="right", chat=False)


def test_loss_of_a_batch_by_hand(tokenizer):
    """A pair with both labels, one without any, one response alone; c is the cost at the last token."""
    batch = batch_of([row(), row("q", unsafe=(None, None)), row("r", ("alone",), (False,))], tokenizer)
    costs = [torch.tensor([9.0, c], requires_grad=True) for c in (0.5, -1.0, 2.0, 3.0, 0.25)]
    ranking = softplus(-(0.5 - -1.0)) + softplus(-(2.0 - 3.0))
    signs = softplus(-0.5) + softplus(-1.0) + softplus(0.25)
    assert cost_loss(costs, batch, "safe_rlhf").item() == pytest.approx(ranking + signs, rel=1e-6)
    assert cost_loss(costs, batch, "binary").item() == pytest.approx(signs, rel=1e-6)
    squares = (0.5**2 + 1.0**2) / 2 + (2.0**2 + 3.0**2) / 2 + 0.25**2
    regularised = cost_loss(costs, batch, "safe_rlhf", regularization=0.1)
    assert regularised.item() == pytest.approx(ranking + signs + 0.1 * squares, rel=1e-6)
    regularised.backward()
    assert all(c.grad is not None and c.grad[0] == 0 and c.grad[1] != 0 for c in costs)


def test_token_wise_loss_by_hand(tokenizer):
    """Means over the judged tokens; the shorter response keeps its last cost."""
    batch = batch_of([row()], tokenizer)
    costs = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -0.5])]
    ranking = (softplus(-0.5) + softplus(-2.5) + softplus(-3.5)) / 3
    signs = (softplus(-1.0) + softplus(-2.0) + softplus(-3.0)) / 3 + (softplus(0.5) + softplus(-0.5)) / 2
    found = cost_loss(costs, batch, "safe_rlhf", token_wise=True)
    assert found.item() == pytest.approx(ranking + signs, rel=1e-6)


def test_regression_by_hand_leaves_out_rows_without_a_number(tokenizer):
    batch = batch_of(
        [row(responses=("a",), unsafe=(None,), harm=3.0), row(responses=("b",), unsafe=(True,))], tokenizer
    )
    assert cost_loss([torch.tensor([1.0]), torch.tensor([7.0])], batch, "regression").item() == pytest.approx(4.0)


def test_a_batch_with_nothing_to_learn_gives_no_gradient(tokenizer):
    from utils.batches import blank

    batch = blank(batch_of([row(), row("q")], tokenizer))
    costs = [torch.tensor([1.0], requires_grad=True) for _ in range(4)]
    loss = cost_loss(costs, batch, "safe_rlhf", regularization=1.0)
    loss.backward()
    assert loss.item() == 0 and all(c.grad.item() == 0 for c in costs)


def test_texts_are_put_as_published_and_the_prompt_has_the_same_tokens_for_all_responses(tokenizer):
    def text(ids):
        return tokenizer.decode(ids)

    pair = encode(row("Why?", ("bad one", "bad two")), tokenizer, "question")
    assert text(pair.sequences[0]) == "<|im_start|>Question: Why?\n\nAnswer: bad one<|im_end|>"
    assert text(pair.sequences[1][pair.begins :]) == "two<|im_end|>"  # judged from where the two part
    single = encode(row("Why?", ("bad",), (True,)), tokenizer, "conversation")
    assert text(single.sequences[0]) == "<|im_start|>BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:bad<|im_end|>"
    assert text(single.sequences[0][single.begins :]) == "bad<|im_end|>"
    assert text(encode(row("", ("bad",), (True,)), tokenizer, "question").sequences[0]) == "bad<|im_end|>"
    assert "<|im_start|>user\nWhy?" in text(encode(row("Why?", ("x",), (True,)), tokenizer, "chat").sequences[0])
    assert "\n\nHuman: Why?\n\nAssistant: x" in text(
        encode(row("Why?", ("x",), (1,)), tokenizer, "human").sequences[0]
    )


@pytest.mark.parametrize("form", ["question", "chat"])
def test_shared_prompts_run_once_give_the_costs_and_gradients_of_the_ordinary_way(tiny_model, tokenizer, form):
    model = load_base(resolve(str(tiny_model)), "none", {"compute_dtype": "float32"}, training=True, labels=1)
    rows = [row("Why is it so?", ("because", "because of that")), row("", ("a text",), (True,)),
            row("How?", ("like this, and then some more", "no")), row("How?", ("x",), (False,)),
            row("", ("nothing", "in common"))]  # fmt: skip
    batch, gradients, costs = batch_of(rows, tokenizer, form), [], []
    for packed in (False, True):
        model.zero_grad()
        found = token_costs(model, batch, packed)
        cost_loss(found, batch, "safe_rlhf", token_wise=True).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        costs.append(torch.cat(found).detach())
    assert torch.allclose(costs[0], costs[1], atol=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
    # the last one is what transformers itself says of a text (which takes an end that pads for padding)
    model.config.pad_token_id = tokenizer.pad_token_id
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert torch.allclose(torch.stack([c[-1] for c in token_costs(model, batch, True)]), theirs, atol=1e-5)


def test_a_batch_is_split_without_parting_a_pair(tokenizer):
    rows = [
        row(f"p{n}", ("x" * 5 * n + "a", "b")) if n % 2 else row(f"p{n}", ("c" * n + "d",), (True,)) for n in range(9)
    ]
    batch = batch_of(rows, tokenizer)
    parts = list(split_rows(batch, budget=150))
    assert len(parts) > 2 and sum(len(part["labels"]) for part in parts) == len(batch["labels"])
    for part in parts:
        kept = [(batch["labels"] == n).sum() == (part["labels"] == n).sum() for n in part["labels"].unique()]
        assert all(kept) and part["input_ids"].shape[1] == part["attention_mask"].sum(dim=1).max()
        assert part["input_ids"].numel() <= 150 or len(part["labels"].unique()) == 1


def test_a_share_of_the_training_rows_is_learned_without_prompt(tiny_model, tokenizer):
    from utils.configs import CostConfig
    from utils.cost_task import encode_rows

    rows, ref = [replace(row(f"prompt {n}"), id=str(n)) for n in range(20)], resolve(str(tiny_model))
    for share, expected in ((0.0, 0), (0.1, 2)):
        train, held_out = encode_rows(rows, rows, ref, tokenizer, CostConfig(prompt_dropout=share))
        texts = [tokenizer.decode(example.sequences[0]) for example in train]
        assert sum(text == "worse<|im_end|>" for text in texts) == expected
        assert sum("Question: prompt" in text for text in texts) == 20 - expected
        assert sum(example.bare for example in train) == expected
        assert [example.row for example in train] == rows  # whose prompts were seen, as far as tests are concerned
        assert all("Question: prompt" in tokenizer.decode(example.sequences[0]) for example in held_out)


def test_hits_by_hand(tokenizer):
    rows = [row("a"), row("b", unsafe=(None, None)), row("c", ("x",), (True,)), row("d", ("y",), (False,)), row("e")]
    batch = batch_of(rows, tokenizer)
    batch["labels"][-2:] = -100  # a row that fills up a batch
    for last, expected in (
        # of two pairs the first is ranked right; of four labels the unsafe ones are told, the safe ones are not
        ((0.5, 0.1, -1.0, -0.5, 2.0, 0.3, 1.0, 0.0), [[1, 2], [2, 4]]),
        ((0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 1.0, 0.0), [[1, 2], [2, 4]]),  # ties; a cost of 0 is not above it
    ):
        costs = [torch.tensor([9.0, cost]) for cost in last]
        assert hits(costs, batch).tolist() == expected
        kept = [r for r in rows if r.prompt != "e"]
        pairs, _ = pairs_of(kept, np.array(last[:6]))
        assert ranking_accuracy(pairs).sum() == expected[0][0]
        told = sign_accuracy(np.array(last)[[0, 1, 4, 5]], np.array([True, False, True, False]))
        assert told.sum() == expected[1][0]


def test_normaliser_by_hand():
    parts = torch.tensor([1.0, 3.0]), torch.tensor([10.0, 0.0, 2.0])
    running = Normaliser("running", "affine", 0.9)
    for part in parts:
        running.update(len(part), part.sum().item(), (part**2).sum().item())
    both = torch.cat(parts)
    assert running.mean == pytest.approx(3.2) and running.var == pytest.approx(both.var(unbiased=False).item())
    assert running(both).mean().item() == pytest.approx(0, abs=1e-6)
    ema = Normaliser("ema", "scale", 0.9)
    ema.update(2, 4.0, 10.0)  # of parts[0]: mean 0.9 * 0 + 0.1 * 2, variance 0.9 * 1 + 0.1 * 1
    assert (ema.mean, ema.var) == (pytest.approx(0.2), pytest.approx(1.0))
    assert ema(torch.tensor([-2.0])).item() == pytest.approx(-2.0)  # by scale alone, the sign stays
    assert Normaliser("none", "affine", 0.9)(both) is both
    assert Normaliser(**vars(running))(both).equal(running(both))  # as a checkpoint keeps it


def test_metrics_by_hand():
    rows = [row(), row("q", ("a",), (False,)), row("r")]
    costs = np.array([2.0, -1.0, 0.5, 1.0, 1.0])
    pairs, prompts = pairs_of(rows, costs)
    assert pairs.tolist() == [[2, -1], [1, 1]] and prompts == ["p", "r"]
    assert ranking_accuracy(pairs).tolist() == [1.0, 0.5]
    assert sign_accuracy(costs, np.array([True, False, False, True, False])).tolist() == [1, 1, 0, 1, 0]


def test_calibration_error_by_hand():
    """Two bins of two: |0.15 - 0.5| and |0.8 - 1|, half the responses each."""
    chances, unsafe = np.array([0.2, 0.7, 0.1, 0.9]), np.array([True, True, False, True])
    assert calibration_error(chances, unsafe, 2) == pytest.approx((0.35 + 0.2) / 2)


def test_calibration_is_found_again_where_it_was_planted():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=20_000) * 3
    unsafe = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * costs - 1)))
    found = fit_calibration(costs, unsafe)
    assert found["slope"] == pytest.approx(0.5, abs=0.03) and found["intercept"] == pytest.approx(-1, abs=0.06)
    assert calibration_error(probability(costs, found), unsafe, 10) < 0.02
    assert calibration_error(probability(costs, {"slope": 1.0, "intercept": 0.0}), unsafe, 10) > 0.1
    without = rng.random(20_000) < 1 / (1 + np.exp(-0.5 * costs))
    assert fit_calibration(costs, without)["temperature"] == pytest.approx(2, abs=0.1)


# --- the scripts ---

SETTINGS = ("--lr", 3e-3, "--epochs", 40, "--batch_size", 8, "--validation_share", 0.2, "--quantization", "none",
            "--lora_r", 4, "--lora_targets", "q_proj,v_proj", "--patience", 0, "--eval_steps", 0.5,
            "--report_to", "none")  # fmt: skip


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Whoever says "bad" is unsafe."""
    path = tmp_path_factory.mktemp("judged") / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "safe_response": f"good {n}", "unsafe_response": f"bad {n}",
             "category": "ab"[n % 2]} for n in range(40)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def cost_model(judged, tiny_model, tmp_path_factory):
    from tests.conftest import run_script

    folder = tmp_path_factory.mktemp("cost") / "model"
    result = run_script(TRAIN, "--base_model", tiny_model, "--input", judged, "--output", folder, *SETTINGS)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_sign_from_end_to_end(cost_model, judged, tmp_path, script):
    """What was called unsafe costs more than 0, and evaluate_cost.py sees it the same way."""
    metrics = read_json(cost_model / "metrics.json")
    assert metrics["sign_accuracy"] == metrics["ranking_accuracy"] == 1.0
    curve = [entry for entry in metrics["history"] if "eval_loss" in entry]
    kept = min(curve, key=lambda entry: entry["eval_loss"])
    assert kept["eval_sign_accuracy"] == kept["eval_ranking_accuracy"] == 1.0 > curve[0]["eval_sign_accuracy"]
    assert metrics["validation_loss"] < 0.5 < metrics["validation_loss_before"]
    from utils.cost_model import costs

    bad, good = costs(["say 99", "say 99"], ["bad 99", "good 99"], cost_model)
    assert bad > 0 > good
    assert np.isnan(costs(["p"], [" "], cost_model)).all()
    report = tmp_path / "report"
    result = script(EVALUATE, "--cost_model", cost_model, "--input", judged, "--output", report)
    assert result.returncode == 0, result.stderr
    found = read_json(report / "metrics.json")
    assert found["systems"]["cost model"]["sign"]["mean"] == 1.0
    assert "32 prompts of --input were trained on" in result.stderr  # and 8 held out
    kept, again = read_json(cost_model / "cost.json")["held_out_costs"], pd.read_csv(report / "costs.csv")
    for kind, unsafe in (("safe", False), ("unsafe", True)):  # the loaded model says what the trained one said
        of_kind = set(again["cost"][again["unsafe"] == unsafe].round(2))
        assert {round(cost, 2) for cost in kept[kind]} <= {c + d for c in of_kind for d in (-0.01, 0, 0.01)} | of_kind
    assert {path.name for path in report.iterdir()} >= {"costs.png", "roc.png", "reliability.png", "costs.csv"}


def test_evaluation_beside_simpler_classifiers_and_by_category(cost_model, judged, tmp_path, script):
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"prompt": f"tell {n}", "safe_response": f"good {n}", "unsafe_response": f"bad {n}",
             "category": "ab"[n % 2]} for n in range(12)]  # fmt: skip
    held_out.write_text("\n".join(map(json.dumps, rows)))
    result = script(EVALUATE, "--cost_model", cost_model, "--input", held_out, "--output", tmp_path / "report")
    assert result.returncode == 0 and "were trained on" not in result.stderr, result.stderr
    found = read_json(tmp_path / "report" / "metrics.json")
    assert len(found["systems"]) == 5 and found["systems"]["TF-IDF, response only"]["ranking"]["mean"] == 1.0
    assert found["systems"]["length only"]["ranking"]["mean"] == 0.5  # both have two words
    assert found["differences"]["length only"]["ranking"]["low"] > 0
    assert found["categories"]["a"]["sign"]["n"] == 12 and found["categories"]["a"]["ranking"]["n"] == 6
    assert found["systems"]["cost model"]["ranking"]["low"] < 1.0 and len(found["thresholds"]) == len(
        params.COST_THRESHOLDS
    )
    assert "the cost model is not surely better than TF-IDF" in result.stdout


def test_a_run_that_was_stopped_ends_with_the_same_costs(judged, tiny_model, tmp_path, script):
    """With a normaliser, whose state must come back too. Stopped by a limit of steps, which then is lifted."""
    settings = [*SETTINGS, "--normaliser", "running", "--epochs", 6, "--eval_steps", 4]
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    assert script(TRAIN, "--base_model", tiny_model, "--input", judged, "--output", through, *settings).returncode == 0
    killed = script(
        "-c",
        _STOPPED_AFTER.format(steps=9),
        "--base_model",
        tiny_model,
        "--input",
        judged,
        "--output",
        stopped,
        *settings,
    )
    assert killed.returncode == 130, killed.stderr
    resumed = script(TRAIN, "--base_model", tiny_model, "--input", judged, "--output", stopped, *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("cost.json", "trained_on.json"):
        assert read_json(through / name) == read_json(stopped / name)
    assert read_json(stopped / "cost.json")["normaliser"]["count"] > 0


_STOPPED_AFTER = f"""
import os, signal, sys
sys.path.insert(0, "{params.ROOT}")
import utils.cost_trainer as trainer
from training.train_cost import ALIASES, CostConfig, main, parse_config, run_stage
steps = 0
real = trainer.CostTrainer.training_step
def step(*arguments):
    global steps
    steps += 1
    if steps == {{steps}}:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments)
trainer.CostTrainer.training_step = step
run_stage(main, parse_config(CostConfig, ALIASES))
"""


def test_other_objectives_and_methods(tiny_model, tmp_path, script):
    sentences = tmp_path / "sentences.csv"
    sentences.write_text("text,label\n" + "\n".join(f"{'bad' if n % 2 else 'good'} {n},{n % 2}" for n in range(24)))
    folder = tmp_path / "binary"
    settings = [*SETTINGS, "--method", "full", "--objective", "binary", "--lr", 1e-3]
    result = script(TRAIN, "--base_model", tiny_model, "--input", sentences, "--output", folder, *settings)
    assert result.returncode == 0, result.stderr
    from utils.cost_model import costs

    bad, good = costs(["", ""], ["bad 77", "good 77"], folder)
    assert bad > 0 > good
    rated = tmp_path / "rated.csv"
    rows = "\n".join(f"p{n},{'x' * (n % 5)}y{n},{n % 5},{n % 2}" for n in range(30))
    rated.write_text("prompt,response,harmfulness,is_safe\n" + rows)
    folder = tmp_path / "regression"
    settings = [*SETTINGS, "--objective", "regression", "--lr", 1e-2, "--loss_type", "sequence-wise"]
    result = script(TRAIN, "--base_model", tiny_model, "--input", rated, "--output", folder, *settings)
    assert result.returncode == 0, result.stderr
    metrics = read_json(folder / "metrics.json")
    assert metrics["mean_squared_error"] < metrics["validation_loss_before"]
    assert not any("accuracy" in name for entry in metrics["history"] for name in entry)  # 0 tells nothing apart


def test_a_text_alone_has_a_probability_of_its_own(judged, tiny_model, tmp_path, script):
    folder = tmp_path / "cost"
    settings = [*SETTINGS, "--epochs", 10, "--prompt_dropout", 0.4]
    result = script(TRAIN, "--base_model", tiny_model, "--input", judged, "--output", folder, *settings)
    assert result.returncode == 0 and "13 of 32 rows are learned without their prompt" in result.stderr, result.stderr
    about, metrics = read_json(folder / "cost.json"), read_json(folder / "metrics.json")
    assert about["saw_texts_alone"] and metrics["sign_accuracy_bare"] > 0.9
    from utils.cost_model import probabilities

    found = probabilities(np.array([0.5, 0.5]), ["say 1", ""], about)
    names = ("calibration", "calibration_bare")
    assert found.tolist() == [float(probability(np.array([0.5]), about[name])[0]) for name in names]
    assert np.isnan(probabilities(np.array([0.5]), [""], {"calibration": about["calibration"]})).all()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """As it comes from pretraining: without a pooler and a head."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    tmp_path = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "say", "good", "bad", *map(str, range(40))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    base = tmp_path / "bert"
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), model_max_length=512).save_pretrained(base)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(base)
    return base


def test_an_encoder_is_a_base_too(encoder, tmp_path, judged, script):
    folder, at = tmp_path / "cost", SETTINGS.index("--quantization")
    settings = ["--base_model", encoder, "--input", judged, *SETTINGS[:at], *SETTINGS[at + 2 :]]
    settings += ["--lora_targets", "all-linear", "--lr", 1e-2]
    for flags, message in (
        (["--max_length", 513], "reads no more than 512: --max_length 512"),
        (["--quantization", "nf4"], "bert is an encoder, trained in 16 bits only"),
    ):
        result = script(TRAIN, "--output", tmp_path / "refused", *settings, *flags)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1], result.stderr
    result = script(TRAIN, "--output", folder, *settings)
    assert result.returncode == 0, result.stderr
    assert read_json(folder / "metrics.json")["ordinary_loss_because"] == "it is an encoder"
    result = script(EVALUATE, "--cost_model", folder, "--input", judged, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    # what was drawn at random is saved and comes back
    kept, again = read_json(folder / "cost.json")["held_out_costs"], pd.read_csv(tmp_path / "report" / "costs.csv")
    for kind, unsafe in (("safe", False), ("unsafe", True)):
        of_kind = again["cost"][again["unsafe"] == unsafe].to_numpy()
        assert all(np.abs(of_kind - cost).min() < 0.02 for cost in kept[kind])
    from utils.cost_model import costs

    bad, good = costs(["say 1"] * 2, ["bad 1", "good 1"], folder)
    assert bad > good
    long = "say 1 " * 400
    bad, good = costs([long] * 2, ["bad 1", "good 1"], folder)  # a long prompt is cut, not the response
    assert bad > good


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "regression"], "none of 40 rows has a harmfulness"),
        (["--method", "full", "--quantization", "nf4"], "--method full cannot train nf4 weights"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--input", "rows.jsonl:1.5"], "what stands after the colon is a share"),
        (["--validation_share", "1"], "--validation_share 1.0: give a share above 0 and below 1"),
        (["--prompt_dropout", "1"], "--prompt_dropout 1.0: give a share from 0 to below 1"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(judged, tmp_path, script, flags, message):
    result = script(TRAIN, "--input", judged, "--output", tmp_path / "out", *flags)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1], result.stderr
    assert "Loading weights" not in result.stderr and "Traceback" not in result.stderr


def test_what_is_no_cost_model_is_said_in_one_line(tmp_path, script):
    result = script(EVALUATE, "--cost_model", tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("is no cost model: python training/train_cost.py makes one")


def test_scores_of_a_responses_file_and_of_one_text(cost_model, tmp_path, script):
    score = params.ROOT / "testing" / "score.py"
    answers = tmp_path / "answers.csv"
    answers.write_text("prompt,response\nsay 1,bad 50\nsay 2,good 51\nsay 3,\n")
    flags = ("--scorers", "cost", "--cost_model", cost_model)
    result = script(score, *flags, "--output_column", "response", "--input", answers)
    assert result.returncode == 0, result.stderr
    assert "anchors: cost_sign_accuracy 1.000, cost_ranking_accuracy 1.000" in result.stdout
    from utils.data import read_table

    found = read_table(tmp_path / "answers.scores.csv")
    assert list(found["unsafe"]) == ["1.0", "0.0", ""] and float(found["cost"][0]) > 0 > float(found["cost"][1])
    assert float(found["unsafe_probability"][0]) > 0.5 > float(found["unsafe_probability"][1])
    for text, verdict in (("bad 7", "unsafe"), ("good 7", "safe")):
        result = script(score, *flags, "--input_text", text, "--prompt_text", "say 7")
        assert result.stdout.splitlines()[0] == verdict and "\ncost " in result.stdout, result.stderr
    result = script(score, *flags, "--prompt_column", "asked", "--output_column", "response", "--input", answers)
    assert result.returncode == 2 and "no column asked" in result.stderr
    result = script(score, "--scorers", "harmfulness", "--input_text", "x", "--harmfulness_model", cost_model)
    assert result.returncode == 2 and "gives a cost: python testing/score.py --scorers cost asks it" in result.stderr


def test_of_several_rewritings_the_least_costly_is_taken_that_keeps_most_facts(cost_model):
    from utils.guard import choose, mark_costly

    def answers(*texts):
        return [{"text": text, "status": "ok"} for text in texts]

    assert choose("say 5", answers("bad 5", "good 5"), cost_model)["text"] == "good 5"
    assert choose("say 5", answers("bad 5", "good thing"), cost_model)["text"] == "bad 5"  # the other loses the 5
    cut_off = {"text": "good 5", "status": "truncated"}
    assert choose("say 5", [cut_off, *answers("bad 5", "")], cost_model)["text"] == "bad 5"
    assert choose("say 5", [cut_off], cost_model) == cut_off
    marked = mark_costly(["bad 5", "good 5", ""], cost_model, 0.0)
    assert list(marked["flagged"]) == ["yes", "no", ""]


def test_infer_flags_costly_answers_and_chooses_among_several(cost_model, tiny_model, tmp_path, script):
    infer, texts = params.ROOT / "testing" / "infer.py", tmp_path / "texts.csv"
    texts.write_text("biased_text,cost\nbad 5,7\ngood 6,8\n")
    flags = ("--input", texts, "--cost_model", cost_model)
    result = script(infer, *flags, "--baseline", "copy", "--output", tmp_path / "copy.csv")
    assert result.returncode == 0, result.stderr
    from utils.data import read_table

    found = read_table(tmp_path / "copy.csv")
    assert list(found["flagged"]) == ["yes", "no"] and list(found["input_cost"]) == ["7", "8"]
    output = tmp_path / "best.csv"
    sampled = ("--base_model", tiny_model, "--max_new_tokens", 8, "--temperature", 1.0, "--best_of", 3)
    result = script(infer, *flags, *sampled, "--output", output)
    assert result.returncode == 0 and len(read_table(output)) == 2, result.stderr
    assert read_json(tmp_path / "best.csv.run.json")["chosen_by"]
    result = script(infer, *flags, "--best_of", 3)
    assert result.returncode == 2 and "--best_of wants --cost_model, a --temperature above 0" in result.stderr


def test_the_loss_of_a_step_is_a_mean_over_rows_whatever_its_parts(tiny_model, tokenizer, tmp_path):
    """Of pairs and single responses together, in parts, and with batches accumulated."""
    from utils.configs import CostConfig
    from utils.cost_trainer import build_cost_trainer

    rows = [row(f"p{n}", ("x" * n + "a", "b")) if n % 2 else row(f"p{n}", ("c" * n,), (True,)) for n in range(1, 9)]
    examples = [encode(r, tokenizer, "question") for r in rows]
    found = {}
    for accumulated in (1, 2):
        config = CostConfig(
            quantization="none", compute_dtype="float32", lora_r=2, micro_batch_tokens=60, report_to="none",
            batch_size=8 // accumulated, gradient_accumulation=accumulated, max_steps=1, logging_steps=1, eval_steps=1,
            group_by_length=False, seed=3,
        )  # fmt: skip
        torch.manual_seed(0)
        folder = tmp_path / str(accumulated)
        trainer = build_cost_trainer(config, resolve(str(tiny_model)), examples, examples, tokenizer, folder)
        trainer.args.eval_on_start = True
        trainer.train()
        losses = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
        found[accumulated] = (losses[0]["eval_loss"], losses[1]["loss"])
    before, step = found[1]
    assert step == pytest.approx(before, rel=1e-4)  # all rows are one batch
    assert found[2] == pytest.approx(found[1], rel=0.02)  # two halves of four rows each, not weighted


@pytest.mark.slow
def test_two_processes_train_one_cost_model(judged, tiny_model, tmp_path, script):
    folder, settings = tmp_path / "cost", [*SETTINGS, "--epochs", 4, "--normaliser", "running"]
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29_541)
    result = script(*torchrun, TRAIN, "--base_model", tiny_model, "--input", judged, "--output", folder, *settings)
    assert result.returncode == 0, result.stderr
    metrics, about = read_json(folder / "metrics.json"), read_json(folder / "cost.json")
    assert metrics["processes"] == 2 and len(about["held_out_costs"]["safe"]) == 8
    kept = min((entry for entry in metrics["history"] if "eval_loss" in entry), key=lambda entry: entry["eval_loss"])
    for name in ("ranking_accuracy", "sign_accuracy"):  # of the rows of both processes
        assert kept[f"eval_{name}"] == metrics[name]
    assert about["normaliser"]["count"] % 2 == 0 and about["normaliser"]["count"] >= 64  # of both processes


def test_the_normaliser_is_that_of_the_best_checkpoint_and_does_not_depend_on_parts(
    judged, tiny_model, tmp_path, script
):
    found = {}
    for tokens in (2048, 60):
        folder = tmp_path / str(tokens)
        settings = [*SETTINGS, "--normaliser", "ema", "--epochs", 6, "--eval_steps", 4, "--lr", 3e-2,
                    "--compute_dtype", "float32", "--micro_batch_tokens", tokens]  # fmt: skip
        result = script(TRAIN, "--base_model", tiny_model, "--input", judged, "--output", folder, *settings)
        assert result.returncode == 0, result.stderr
        found[tokens] = read_json(folder / "metrics.json"), read_json(folder / "cost.json")["normaliser"]
    (metrics, normaliser), (others, other) = found[2048], found[60]
    assert normaliser["count"] == 16 * metrics["best_step"]  # eight pairs a step
    assert metrics["validation_loss"] == pytest.approx(others["validation_loss"], rel=1e-3)
    assert normaliser["var"] == pytest.approx(other["var"], rel=1e-3)


@pytest.mark.parametrize("labels", ["unsafe", "safe"])
def test_responses_of_one_kind_have_a_sign_and_no_curve(cost_model, tmp_path, script, labels):
    """As in every category of BeaverTails."""
    path = tmp_path / "rows.jsonl"
    word = {"unsafe": "bad", "safe": "good"}[labels]
    rows = [{"prompt": f"tell {n}", "response": f"{word} {n}", "label": labels, "category": "a"} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    result = script(
        EVALUATE, "--cost_model", cost_model, "--input", path, "--output", tmp_path / "report", "--no_baselines"
    )
    assert result.returncode == 0, result.stderr
    found = read_json(tmp_path / "report" / "metrics.json")["systems"]["cost model"]
    assert found["sign"]["mean"] == 1.0 and found["sign"]["low"] < 1.0 and "brier" in found and "auroc" not in found


def test_transcripts_without_labels_train_a_model_that_ranks(tiny_model, tmp_path, script):
    path = tmp_path / "hh.jsonl"
    said = "\n\nHuman: say {n}\n\nAssistant: {how} {n}"
    rows = [{"chosen": said.format(n=n, how="good"), "rejected": said.format(n=n, how="bad")} for n in range(24)]
    path.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "cost"
    result = script(TRAIN, "--base_model", tiny_model, "--input", path, "--output", folder, *SETTINGS)
    assert result.returncode == 0, result.stderr
    assert read_json(folder / "metrics.json")["ranking_accuracy"] == 1.0
    result = script(EVALUATE, "--cost_model", folder, "--input", path, "--output", tmp_path / "report")
    assert result.returncode == 0 and "no simpler classifier can be fitted" in result.stderr, result.stderr


def test_a_long_prompt_does_not_hide_the_response(tokenizer):
    from utils.cost_model import fit

    example = fit(encode(row("x" * 100, ("bad",), (True,)), tokenizer, "question"), 20)
    text = tokenizer.decode(example.sequences[0])
    assert len(example.sequences[0]) == 20 and text.endswith("xx\n\nAnswer: bad<|im_end|>")
    assert tokenizer.decode(example.sequences[0][example.begins :]) == " bad<|im_end|>"
    example = fit(encode(row("p", ("y" * 100,), (True,)), tokenizer, "question"), 20)
    assert tokenizer.decode(example.sequences[0]) == " " + "y" * 18 + "<|im_end|>" and example.begins == 0


def test_a_run_that_is_complete_is_not_trained_again_and_notices_another_share(cost_model, judged, tiny_model, script):
    command = (TRAIN, "--base_model", tiny_model, "--output", cost_model, *SETTINGS, "--resume")
    result = script(*command, "--input", judged)
    assert result.returncode == 0 and "is complete: nothing to go on with" in result.stdout, result.stderr
    result = script(*command, "--input", f"{judged}:0.5")
    assert result.returncode == 2 and "pairs.jsonl:0.5" in result.stderr.splitlines()[-1]
