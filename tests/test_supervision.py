"""What is trained on is what infer.py asks for, and a planted fault of each kind stops training and names its rows."""

import csv
import json
import re
import shutil

import pytest

from tests.tiny import CHATML
from utils import params
from utils.configs import RowsConfig
from utils.loading import load_tokenizer
from utils.models import resolve
from utils.params import ROOT
from utils.prompts import rewrite_messages
from utils.supervision import encode, encode_all, findings

AUDIT, TRAIN = ROOT / "training" / "audit.py", ROOT / "training" / "train.py"
GOOD = [(f"A bad thing number {n} happened.", f"Thing number {n} happened here.") for n in range(12)]


def write_pairs(path, pairs):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("biased_text", "debiased_text"), *pairs])
    return path


@pytest.fixture
def model_with(tiny_model, tmp_path):
    """The tiny model with another chat template."""

    def make(template):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


def audited(pairs, model, tmp_path, validation=None, **settings):
    ref = resolve(str(model))
    data = {"input": str(write_pairs(tmp_path / "pairs.csv", pairs))}
    if validation:
        data["validation"] = str(write_pairs(tmp_path / "validation.csv", validation))
    config = RowsConfig(**data, **{"validation_share": 0.01} | settings)
    from utils.supervision import load_rows

    examples, _ = encode_all(*load_rows(config), ref, load_tokenizer(ref, side="right"), config)
    return {finding.fault: finding for finding in findings(examples, config.allowed_faults())}


def test_good_rows_have_no_fault(tiny_model, tmp_path):
    found = audited(GOOD, tiny_model, tmp_path)
    assert not any(finding.rows for finding in found.values())


HELD_OUT = [("A held out thing.", "Another thing.")]


@pytest.mark.parametrize(
    "fault, bad, settings",
    [
        ("too long", ("long " * 300 + "end.", "Short and sweet."), {"max_length": 900}),
        ("cut off", ("A whole sentence ends here.", "A whole sentence ends the"), {}),
        ("duplicate", ("a BAD  thing number 3 happened.", "Thing number 3 happened here."), {}),
        ("contradiction", ("A bad thing number 3 happened.", "Something else."), {}),
        ("completion in prompt", ("Copied word for word.", "Copied word for word."), {}),
        ("leak", ("a held  out thing.", "Another thing."), {}),
    ],
)
def test_a_planted_row_is_found_and_named(tiny_model, tmp_path, fault, bad, settings):
    found = audited([*GOOD, bad], tiny_model, tmp_path, validation=HELD_OUT, **settings)
    assert found[fault].rows == ([4, 13] if fault == "contradiction" else [13])
    others = {name for name, finding in found.items() if finding.rows} - {fault}
    assert not others


def test_faults_of_the_template_are_found(model_with, tmp_path):
    no_end = model_with(CHATML.replace("<|im_end|>", ""))
    assert len(audited(GOOD, no_end, tmp_path)["end lost"].rows) == 11
    shutil.rmtree(no_end)
    # what infer.py asks for is not how training rows begin
    other = model_with(CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}<think>\n"))
    assert len(audited(GOOD, other, tmp_path)["template mismatch"].rows) == 11
    shutil.rmtree(other)
    swallowed = model_with(
        "{% for m in messages if m['role'] != 'assistant' %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    assert len(audited(GOOD, swallowed, tmp_path)["nothing trained"].rows) == 11


def test_the_prompt_has_the_tokens_that_infer_writes(tiny_model):
    tokenizer = load_tokenizer(resolve(str(tiny_model)), side="right")
    row = {"number": 1, "prompt": "bad thing", "completion": "thing", "templated": True}
    asked = tokenizer.apply_chat_template(
        rewrite_messages("bad thing", "rewrite"), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    example = encode(row, tokenizer, "rewrite")
    assert example.input_ids[: len(asked)] == asked and set(example.labels[: len(asked)]) == {-100}
    assert tokenizer.decode(example.labels[len(asked) :]) == "thing<|im_end|>\n"
    assert encode(row, tokenizer, "rewrite", train_on_inputs=True).labels == example.input_ids


def test_a_completion_that_melts_into_the_prompt_is_kept_apart(model_with):
    """Without a boundary, prompt and completion can share a token; the prompt keeps those that it has alone."""
    from tokenizers import AddedToken

    model = model_with(
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(resolve(str(model)), side="right")
    tokenizer.add_tokens([AddedToken("gth", normalized=False)])
    example = encode(
        {"number": 1, "prompt": "bad thing", "completion": "thing", "templated": False}, tokenizer, "rewrite"
    )
    alone, melted = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("bad thing", "bad thingthing"))
    assert melted[: len(alone)] != alone and example.starts_as_prompt
    assert example.input_ids[: len(alone)] == alone and set(example.labels[: len(alone)]) == {-100}
    assert tokenizer.decode(example.labels[len(alone) :]) == "thing<|im_end|>"


def test_training_does_not_start_over_a_fault_and_can_be_told_to(tiny_model, script, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.csv", [*GOOD, *GOOD])
    flags = ["--base_model", tiny_model, "--input", pairs]
    quick = ["--epochs", 1, "--eval_steps", 2, "--lora_r", 4, "--report_to", "none"]
    result = script(TRAIN, *flags, "--output", tmp_path / "adapter", *quick)
    assert result.returncode == 2 and "duplicate" in result.stderr.splitlines()[-1]
    assert re.search(r"duplicate: 11 rows .*numbers 1[2-9], ", result.stderr) and "eval_loss" not in result.stdout
    assert not (tmp_path / "adapter").exists()
    allowed = script(TRAIN, *flags, "--output", tmp_path / "adapter", *quick, "--allow_faults", "duplicate")
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads((tmp_path / "adapter" / "audit.json").read_text())["rows"] == 22
    unknown = script(AUDIT, *flags, "--allow_faults", "typos")
    assert unknown.returncode == 2 and "there are nothing trained" in unknown.stderr


def test_the_audit_writes_a_page_with_trained_tokens_marked_and_text_as_text(tiny_model, script, tmp_path):
    hostile = ("A <script>alert(1)</script> thing & more.", "A <b>fair</b> thing {{ 7 * 7 }}.")
    pairs = write_pairs(tmp_path / "pairs.csv", [*GOOD, hostile, hostile])
    output = tmp_path / "audit"
    result = script(AUDIT, "--base_model", tiny_model, "--input", pairs, "--output", output, "--validation",
                    write_pairs(tmp_path / "v.csv", HELD_OUT))  # fmt: skip
    assert result.returncode == 1 and "STOP duplicate: 1 rows (7.1%, limit 5%), numbers 14" in result.stdout
    page = (output / "audit.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page
    marked = re.findall(r"<mark>(.*?)</mark>", page, flags=re.S)[1:]  # the first is the legend
    assert len(marked) == 14 and "A &lt;b&gt;fair&lt;/b&gt; thing {{ 7 * 7 }}.&lt;|im_end|&gt;\n" in marked
    assert not any("Rewrite the text" in piece for piece in marked)
    clean = script(AUDIT, "--base_model", tiny_model, "--input", write_pairs(pairs, GOOD), "--output", output,
                   "--overwrite")  # fmt: skip
    assert clean.returncode == 0, clean.stderr
    assert json.loads((output / "run.json").read_text())["counts"] == {"train": 11, "validation": 1}


def test_the_embedded_rows_pass(script, tmp_path):
    """With the embedded model's own template where it is there, else with the tiny one's."""
    for template in ("rewrite", "fill"):
        result = script(AUDIT, "--output", tmp_path / template, "--prompt", template)
        assert result.returncode == 0, result.stdout + result.stderr
    assert set(params.AUDIT_LIMITS) == {
        f["fault"] for f in json.loads((tmp_path / "fill/audit.json").read_text())["findings"]
    }
