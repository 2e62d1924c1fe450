"""train -> merge -> infer -> score -> compare on a tiny random model: the files, the refusals, the restarts.

What the model says is noise; that it learns is shown with the real one in test_real_model.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file

from utils.data import read_table
from utils.params import ROOT

TRAIN, MERGE = ROOT / "training" / "train.py", ROOT / "training" / "merge.py"
INFER, SCORE, COMPARE = (ROOT / "testing" / f"{name}.py" for name in ("infer", "score", "compare"))
QUICK = ["--epochs", "1", "--batch_size", "4", "--eval_steps", "2", "--lora_r", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """An adapter and the merged model, made once."""
    from tests.conftest import run_script

    folder = tmp_path_factory.mktemp("run")
    pairs = folder / "pairs.csv"
    pairs.write_text("biased_text,debiased_text\n" + "".join(f"bad thing {i},thing {i}\n" for i in range(12)))
    result = run_script(TRAIN, "--base_model", tiny_model, "--input", pairs, "--output", folder / "adapter", *QUICK)
    assert result.returncode == 0, result.stderr
    result = run_script(MERGE, "--adapter_model", folder / "adapter", "--output", folder / "merged")
    assert result.returncode == 0, result.stderr
    return folder


def test_the_adapter_folder_describes_itself(trained, tiny_model):
    names = {p.name for p in (trained / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "metrics.json", "loss.png", "run.json"} <= names
    assert {"audit.html", "audit.json", "logs", "README.md"} <= names and "begun.json" not in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert "checkpoints" not in names and not (trained / "adapter.partial").exists()
    record = json.loads((trained / "adapter" / "run.json").read_text())
    assert record["model"]["name"] == str(tiny_model) and record["config"]["quantization"] == "nf4"
    assert record["metrics"]["rows"] == {"train": 11, "validation": 1, "too_long": 0}
    assert record["metrics"]["validation_loss"] < record["metrics"]["validation_loss_before"]
    assert (trained / "adapter" / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_the_merged_folder_loads_with_plain_transformers_and_is_base_plus_adapter(trained, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(trained / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapter = load_file(trained / "adapter" / "adapter_model.safetensors")
    settings = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    key = "model.layers.1.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{key}.lora_{side}.weight"].float() for side in "AB")
    report = json.loads((trained / "merged" / "merge_report.json").read_text())
    weight = base.get_submodule(key).weight
    if report["kept"] == "nf4":
        packed = quantize_4bit(weight.data.to(torch.bfloat16), quant_type="nf4", compress_statistics=True)
        weight = dequantize_4bit(*packed)
    wanted = weight.float() + settings["lora_alpha"] / settings["r"] * b @ a
    assert not torch.equal(merged.get_submodule(key).weight, base.get_submodule(key).weight)
    assert torch.allclose(merged.get_submodule(key).weight, wanted.to(torch.bfloat16).float(), rtol=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(trained / "merged")
    assert "<|im_start|>" in tokenizer.chat_template
    assert (trained / "merged" / "generation_config.json").is_file()


def test_merging_twice_does_nothing(trained, script):
    weights = trained / "merged" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    result = script(MERGE, "--adapter_model", trained / "adapter", "--output", trained / "merged")
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert weights.stat().st_mtime_ns == before


def test_infer_keeps_every_column_and_never_cuts_a_prompt(trained, script, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('note,my text\nNA,"one, ""two"""\n,' + "long " * 200 + "\nnan,three\n")
    output = tmp_path / "out.csv"
    flags = ["--input", source, "--input_column", "my text", "--output", output, "--max_new_tokens", "5"]
    result = script(INFER, "--base_model", trained / "merged", *flags, "--max_prompt_tokens", "900")
    assert result.returncode == 0, result.stderr
    frame = read_table(output)
    assert list(frame["note"]) == ["NA", "", "nan"] and frame["my text"][0] == 'one, "two"'
    assert list(frame["status"]) == ["truncated", "too_long", "truncated"] and frame["generated_text"][1] == ""
    assert "1 too_long" in result.stdout
    again = script(INFER, "--base_model", trained / "merged", *flags)
    assert again.returncode == 2 and "already there" in again.stderr


def test_adapter_and_merged_model_answer_alike(trained, script, tmp_path):
    result = script(
        MERGE, "--adapter_model", trained / "adapter", "--output", tmp_path / "merged", "--base_weights", "16-bit"
    )
    assert result.returncode == 0, result.stderr
    flags = ["--input_text", "bad thing", "--max_new_tokens", "8", "--quantization", "none"]
    merged = script(INFER, "--base_model", tmp_path / "merged", *flags)
    adapter = script(INFER, "--adapter_model", trained / "adapter", *flags)
    assert merged.returncode == adapter.returncode == 0, adapter.stderr
    assert merged.stdout == adapter.stdout


def test_stdin(trained, script, tmp_path):
    output = tmp_path / "o.csv"
    result = script(INFER, "--base_model", trained / "merged", "--input", "-", "--output", output,
                    "--max_new_tokens", "3", stdin="first\n\nsecond\n")  # fmt: skip
    assert result.returncode == 0 and list(read_table(output)["biased_text"]) == ["first", "second"]
    empty = script(INFER, "--base_model", trained / "merged", "--input", "-", "--output", tmp_path / "e.csv", stdin="")
    assert empty.returncode == 2 and "nothing came in" in empty.stderr


def kill_when(arguments, said: str) -> None:
    """Runs a script and kills it, and what it has started, as soon as its stderr has said something that matches."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_MININTERVAL": "0"},
        start_new_session=True,
    )
    heard = ""
    while not re.search(said, heard):
        piece = process.stderr.read(1)
        assert piece, f"ended before it said {said}: {heard}"
        heard += piece
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_a_killed_inference_continues(trained, script, tmp_path):
    """Killed when the first batches are done; the next run answers only what is missing."""
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("biased_text\n" + "".join(f"text number {n}\n" for n in range(40)))
    flags = [INFER, "--base_model", trained / "merged", "--input", source, "--output", output]
    flags += ["--max_new_tokens", "40", "--batch_tokens", "200"]
    kill_when(flags, r"[1-9]\d*/40")
    assert not output.exists()
    finished = (tmp_path / "out.csv.progress.jsonl").read_bytes().count(b"\n") - 1
    assert 0 < finished < 40
    result = script(*flags)
    assert result.returncode == 0 and f"{finished} already done" in result.stderr
    assert len(read_table(output)) == 40 and not (tmp_path / "out.csv.progress.jsonl").exists()


@pytest.mark.slow
def test_a_killed_training_leaves_no_final_name_and_the_next_run_starts_clean(tiny_model, pairs_csv, script, tmp_path):
    output = tmp_path / "adapter"
    flags = [TRAIN, "--base_model", tiny_model, "--input", pairs_csv, "--output", output, *QUICK]
    kill_when(flags, "training rows")
    assert not output.exists() and (tmp_path / "adapter.partial").exists()
    assert script(*flags).returncode == 0
    assert (output / "run.json").exists() and not (tmp_path / "adapter.partial").exists()
    full = script(*flags)
    assert full.returncode == 2 and "--overwrite" in full.stderr


@pytest.mark.slow
def test_training_stops_when_it_gets_worse_and_keeps_its_best_checkpoint(tiny_model, pairs_csv, script, tmp_path):
    """A learning rate far too high: the loss falls once or not at all, then explodes."""
    from utils.likelihood import completion_loss
    from utils.loading import load_model, load_tokenizer
    from utils.models import resolve
    from utils.prompts import rewrite_messages

    held_out = tmp_path / "held_out.csv"
    held_out.write_text("biased_text,debiased_text\nbad thing 77,thing 77\n")
    output = tmp_path / "adapter"
    result = script(TRAIN, "--base_model", tiny_model, "--input", pairs_csv, "--validation", held_out,
                    "--output", output, *QUICK, "--epochs", 40, "--eval_steps", 1, "--lr", 3, "--warmup_ratio", 0,
                    "--lr_scheduler", "constant", "--patience", 2, "--quantization", "none",
                    "--compute_dtype", "float32")  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = json.loads((output / "metrics.json").read_text())
    losses = {e["step"]: e["eval_loss"] for e in metrics["history"] if "eval_loss" in e and e["step"]}
    best = min(losses, key=losses.get)
    assert metrics["validation_loss"] == losses[best] and metrics["best_step"] == best
    assert metrics["steps"] == best + 2 < 40 * 3  # two evaluations without a better loss
    assert losses[metrics["steps"]] > losses[best]

    ref = resolve(None, output)
    tokenizer = load_tokenizer(ref, side="right")
    prompt = rewrite_messages("bad thing 77", "rewrite")
    opening = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(opening + "thing 77<|im_end|>\n", return_tensors="pt")["input_ids"]
    labels = ids.clone()
    labels[:, : len(tokenizer(opening)["input_ids"])] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.inference_mode():
        assert completion_loss(load_model(ref), batch).item() == pytest.approx(losses[best], rel=1e-3)


@pytest.mark.slow
def test_seeds_give_one_adapter_each_and_the_best_one_on_top(tiny_model, pairs_csv, script, tmp_path):
    output = tmp_path / "adapter"
    result = script(
        TRAIN, "--base_model", tiny_model, "--input", pairs_csv, "--output", output, *QUICK, "--seeds", "0,1"
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((output / "seeds.json").read_text())
    best = output / f"seed-{summary['best_seed']}"
    assert (best / "adapter_model.safetensors").read_bytes() == (output / "adapter_model.safetensors").read_bytes()
    records = [json.loads((output / name / "run.json").read_text()) for name in ("seed-0", "seed-1")]
    assert records[1]["config"]["seed"] == 1 and records[0]["held_out"] == records[1]["held_out"]  # one split for all
    from training.merge import rows_to_compare_on
    from utils.configs import MergeConfig
    from utils.models import resolve

    compared = rows_to_compare_on(MergeConfig(), resolve(None, output / "seed-1"))
    assert [example.row["id"] for example in compared] == records[1]["held_out"]


@pytest.mark.slow
@pytest.mark.parametrize("method, quantization", [("prefix", "none"), ("full", "none"), ("lora", "int8")])
def test_other_methods_train_and_answer(tiny_model, pairs_csv, script, tmp_path, method, quantization):
    output = tmp_path / "out"
    result = script(TRAIN, "--base_model", tiny_model, "--input", pairs_csv, "--output", output, *QUICK,
                    "--method", method, "--quantization", quantization)  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((output / "run.json").read_text())["config"]
    assert (record["method"], record["quantization"]) == (method, quantization)
    if method == "full":
        assert not (output / "adapter_config.json").exists()
    else:
        settings = json.loads((output / "adapter_config.json").read_text())
        assert settings["peft_type"] == {"prefix": "PREFIX_TUNING", "lora": "LORA"}[method]
    which = "--base_model" if method == "full" else "--adapter_model"
    answer = script(INFER, which, output, "--input_text", "bad", "--max_new_tokens", "3")
    assert answer.returncode == 0, answer.stderr


def test_baselines_scores_and_comparison(script, tmp_path):
    """No model at all: copy, delete and reference through the same files and scorers."""
    pairs = tmp_path / "train.csv"
    pairs.write_text("biased_text,debiased_text\n" + "".join(f"damn row {n},row {n}\n" for n in range(5)))
    test = tmp_path / "test.csv"
    test.write_text(
        "biased_text,debiased_text,bias,biased_words\n"
        '"The damn 3 nurses, Ann said","The 3 nurses, Ann said",Yes,"[""damn""]"\n'
        "A fair line,A fair line,No,[]\n"
    )
    for baseline in ("copy", "delete", "reference"):
        output = tmp_path / f"{baseline}.csv"
        flags = ["--baseline", baseline, "--input", test, "--output", output, "--train_file", pairs]
        assert script(INFER, *flags).returncode == 0
    answers = [tmp_path / f"{baseline}.csv" for baseline in ("copy", "delete", "reference")]
    result = script(SCORE, "--scorers", "overlap,facts,edits", "--input", *answers)
    assert result.returncode == 0, result.stderr
    again = script(SCORE, "--scorers", "facts", "--input", *tmp_path.glob("reference*.csv"))  # shells give these too
    assert again.returncode == 0 and again.stdout.count("2 rows") == 1 and "chrf" not in again.stdout
    assert script(SCORE, "--scorers", "overlap,facts,edits", "--input", answers[2]).returncode == 0
    deleted = read_table(tmp_path / "delete.scores.csv")
    assert deleted["generated_text"][0] == "The 3 nurses, Ann said"
    assert list(deleted["biased_words_left"]) == ["0.0", ""] and list(deleted["changed"]) == ["", "0.0"]
    assert list(read_table(tmp_path / "copy.scores.csv")["copied"]) == ["1.0", ""]
    summary = json.loads((tmp_path / "delete.summary.json").read_text())["measures"]
    assert (summary["copied"]["scored"], summary["copied"]["total"]) == (1, 2)
    inputs = [f"{name}={tmp_path / name}.scores.csv" for name in ("copy", "delete", "reference")]
    result = script(COMPARE, "--inputs", *inputs, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["differences"]["delete"]["biased_words_left"]["mean"] == -1
    facts = found["differences"]["delete"]["facts"]
    assert [facts[key] for key in ("mean", "n", "p")] == [0, 1, 1]
    one = script(COMPARE, "--inputs", *inputs, "--output", tmp_path / "one", "--limit", 1)
    assert one.returncode == 0 and json.loads((tmp_path / "one" / "results.json").read_text())["rows"] == 1
    assert "few-shot" in result.stderr  # the rows that a complete table needs are named
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "report.html", "table.md", "table.tex", "results.json", "run.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([TRAIN, "--optimizer", "wish"], "wish"),
        ([TRAIN, "--input", "missing.csv"], "missing.csv: no such file"),
        ([TRAIN, "--input_column", "nothing"], "see --input_column"),
        ([TRAIN, "--prompt", "nothing"], "--prompt nothing"),
        ([TRAIN, "--base_model", "/nowhere"], "no such folder"),
        ([MERGE, "--adapter_model", "/nowhere"], "python training/train.py makes one"),
        ([INFER, "--input", "missing.csv"], "missing.csv: no such file"),
        ([INFER, "--input_column", "nothing"], "has no column nothing"),
        ([INFER, "--base_model", "org/model"], "the Hub is not reached"),
        ([INFER, "--baseline", "copy", "--input_text", "x"], "--baseline needs a file"),
        ([SCORE, "--input", "missing.csv"], "missing.csv: no such file"),
        ([SCORE, "--scorers", "kindness"], "--scorers kindness"),
        ([SCORE, "--input", "a.scores.csv"], "only scores are given"),
        ([SCORE, "--input", "a.csv", "a.jsonl"], "would write the same scores"),
        ([COMPARE], "two or more"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(arguments, message, script, tmp_path):
    output = [] if "--output" in arguments or arguments[0] == SCORE else ["--output", tmp_path / "out"]
    result = script(*arguments, *output)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert message in last and last.startswith(("error:",)) and "Traceback" not in result.stderr
    assert "Loading weights" not in result.stderr


@pytest.mark.parametrize("inputs_too", [False, True])
def test_rows_over_the_limit_are_dropped_and_counted_and_the_prompt_is_not_learned(tiny_model, tmp_path, inputs_too):
    from utils.configs import TrainConfig
    from utils.finetuning import finetune, rewriting
    from utils.loading import load_tokenizer
    from utils.models import resolve
    from utils.trainer import build_trainer

    ref = resolve(str(tiny_model))
    config = TrainConfig(
        output=str(tmp_path / "out"), max_length=600, quantization="none", train_on_inputs=inputs_too,
        report_to="none", max_steps=1, lora_r=2,
    )  # fmt: skip
    rows = [("bad thing", "thing"), *((f"{'x' * 500} {n}", f"x {n}") for n in range(2))]
    rows = [
        {"id": str(n), "number": n, "prompt": prompt, "completion": completion, "templated": True}
        for n, (prompt, completion) in enumerate(rows)
    ]
    built = []

    def build(*arguments):
        built.append(build_trainer(*arguments))
        return built[0]

    runs = finetune(replace(config, allow_faults="too long,leak"), ref, (rows, rows[:1]), rewriting(build))
    assert runs[42]["rows"] == {"train": 1, "validation": 1, "too_long": 2}
    labels = built[0].data_collator([built[0].train_dataset[0]])["labels"][0].tolist()  # what the loss sees
    learned = load_tokenizer(ref).decode([token for token in labels if token != -100])
    assert learned.startswith("<|im_start|>system" if inputs_too else "thing<|im_end|>")


def test_baselines_and_scores_with_columns_of_ones_own(script, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text("text,fair,bias\n" + "".join(f"damn row {n},row {n},yes\n" for n in range(5)))
    columns = ["--input_column", "text", "--reference_column", "fair", "--train_file", mine]
    output = tmp_path / "delete.csv"
    result = script(INFER, "--baseline", "delete", "--input", mine, *columns, "--output", output)
    assert result.returncode == 0 and "deleting 1 words learned from" in result.stderr, result.stderr
    assert list(read_table(output)["generated_text"]) == [f"row {n}" for n in range(5)]
    result = script(SCORE, "--input", output, "--input_column", "text", "--scorers", "edits")
    assert result.returncode == 2 and "column bias holds yes: write Yes or No" in result.stderr
