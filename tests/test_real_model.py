"""The main job on the real embedded model. `smoke` runs in the fast tier too: one path from data to comparison."""

import json

import pytest
import torch
import torch.nn.functional as F

from utils.data import read_table
from utils.params import ROOT, TEST_FILE, TRAIN_FILE

pytestmark = pytest.mark.slow

TRAIN_SPOTTER = ROOT / "training" / "train_spotter.py"
TRAIN, MERGE = ROOT / "training" / "train.py", ROOT / "training" / "merge.py"
INFER, SCORE, COMPARE = (ROOT / "testing" / f"{name}.py" for name in ("infer", "score", "compare"))


@pytest.mark.smoke
def test_it_learns_to_rewrite(script, tmp_path):
    """A hundred rows, one pass: nearer to the human rewriting than the base by prompt alone, and bold enough."""
    adapter, merged, spotter = tmp_path / "adapter", tmp_path / "merged", tmp_path / "spotter"
    result = script(TRAIN_SPOTTER, "--limit", 120, "--output", spotter)
    assert result.returncode == 0, result.stderr
    found = json.loads((spotter / "metrics.json").read_text())
    assert found["auc"] > 0.8 and found["text_auc"] > 0.8  # by cross-validation; 0.5 is guessing
    tuning = ("--prompt", "fill", "--limit", 80, "--epochs", 1, "--batch_size", 4, "--eval_steps", 0.5)
    result = script(TRAIN, *tuning, "--output", adapter)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics["validation_loss"] < 0.9 * metrics["validation_loss_before"]
    assert metrics["ordinary_loss_because"] is None  # our loss was checked on the real model, and used
    assert script(MERGE, "--adapter_model", adapter, "--output", merged).returncode == 0
    report = json.loads((merged / "merge_report.json").read_text())
    assert report[report["kept"]]["kl_mean"] < 0.03 and report[report["kept"]]["agreement"] > 0.9
    scores = {}
    for name, base in (("prompted", "smollm2"), ("tuned", merged)):
        output = tmp_path / f"{name}.csv"
        result = script(INFER, "--input", TEST_FILE, "--limit", 16, "--base_model", base, "--spotter", spotter,
                        "--max_new_tokens", 128, "--output", output)  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert script(SCORE, "--input", output).returncode == 0
        scores[name] = json.loads((tmp_path / f"{name}.summary.json").read_text())
        assert scores[name]["anchors"]["meaning_shuffled"] < 0.3 < scores[name]["anchors"]["meaning_reference"]
    mean = {name: {m: s["mean"] for m, s in score["measures"].items()} for name, score in scores.items()}
    assert mean["tuned"]["chrf"] > mean["prompted"]["chrf"] + 5
    assert mean["tuned"]["facts"] >= mean["prompted"]["facts"]
    assert mean["tuned"]["biased_words_left"] < 0.5 and mean["tuned"]["copied"] < 0.2  # copying would give 1 and 1
    inputs = [f"{name}={tmp_path / name}.scores.csv" for name in scores]
    result = script(COMPARE, "--inputs", *inputs, "--output", tmp_path / "report")
    assert result.returncode == 0 and "16 rows" in result.stdout


def test_gradients_before_and_after_an_evaluation_agree_with_the_float_twin():
    """The bitsandbytes trap on the real weights: NF4 with bf16 compute, a real batch, a real eval pass between."""
    from bitsandbytes.nn import Linear4bit
    from bitsandbytes.nn.modules import has_avx512bf16

    from tests.fourbit import float_twin, gradients, with_lora
    from utils.loading import keep_trainable_layout, load_base, load_tokenizer
    from utils.models import resolve
    from utils.prompts import rewrite_messages

    ref = resolve("smollm2")
    tokenizer = load_tokenizer(ref, side="right")

    def chat(row):
        turns = [*rewrite_messages(row.biased_text, "rewrite"), {"role": "assistant", "content": row.debiased_text}]
        return tokenizer.apply_chat_template(turns, tokenize=False)

    batch = tokenizer([chat(row) for row in read_table(TRAIN_FILE, 4).itertuples()], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :90] = -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    quantised = with_lora(load_base(ref, "nf4", training=True))
    wanted = gradients(float_twin(quantised, ref), inputs)

    def cosine_after(evaluation: bool) -> float:
        if evaluation:
            quantised.eval()
            with torch.no_grad():
                quantised(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cosine_similarity(gradients(quantised, inputs), wanted, dim=0).item()

    before, after = cosine_after(evaluation=False), cosine_after(evaluation=True)
    for module in quantised.modules():  # what the library does by itself on this CPU
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = has_avx512bf16()
    library = cosine_after(evaluation=True)
    keep_trainable_layout(quantised)
    repaired = cosine_after(evaluation=False)
    print("cosine of all LoRA gradients with the float twin")
    print(f"before an evaluation {before:.4f}, after it {after:.4f}, repaired after repacking {repaired:.4f}")
    print(f"without the switch, after an evaluation {library:.4f} (this CPU repacks: {has_avx512bf16()})")
    assert min(before, after, repaired) > 0.99


def test_the_embedded_annotator_gives_labels_or_says_that_it_did_not(script, tmp_path):
    output = tmp_path / "pilot.csv"
    result = script(ROOT / "generate_data" / "annotate.py", "--engine", "transformers", "--limit", 2, "--retries", 0,
                    "--max_tokens", 200, "--max_failed", 1, "--output", output)  # fmt: skip
    assert result.returncode == 0 and "weak annotator" in result.stderr, result.stderr
    frame = read_table(output)
    assert set(frame["status"]) <= {"ok", "neutral", "unparsable", "truncated"}
    assert set(frame["annotator"]) == {"smollm2"}
    usable = frame["status"].isin(["ok", "neutral"])
    assert (frame["bias"].ne("") == usable).all()


def test_batched_answers_equal_single_ones():
    """Greedy answers do not depend on the batch they were made in; in float32, where rounding cannot flip a token."""
    from utils.configs import GenerationConfig
    from utils.generation import generate
    from utils.loading import load_base, load_tokenizer
    from utils.models import resolve
    from utils.prompts import rewrite_messages

    ref = resolve("smollm2")
    tokenizer, model = load_tokenizer(ref), load_base(ref, "none", {"compute_dtype": "float32"}).eval()
    chats = [rewrite_messages(text, "rewrite") for text in read_table(TEST_FILE, 5)["biased_text"]]
    config = GenerationConfig(max_new_tokens=20)
    together = {answer.index: answer.text for answer in generate(model, tokenizer, chats, config)}
    alone = [next(generate(model, tokenizer, [chat], config)).text for chat in chats]
    assert [together[i] for i in range(5)] == alone
