"""Guard models: the verdict's probability in process, and what a server says of it."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from tests.test_probes import ordinary
from utils.configs import ScoreConfig
from utils.data import read_table
from utils.guard_models import STYLES, filled, style_of, turns, verdicts
from utils.helpers import UserError
from utils.loading import load_base, load_tokenizer
from utils.models import resolve
from utils.params import ROOT

SCORE = ROOT / "testing" / "score.py"
FORM = "[Q] {prompt} [A] {response} [V]\n"


def share(model, tokenizer, context: str, verdict) -> float:
    nats = torch.tensor([ordinary(model, tokenizer, context, label) for label in verdict.labels])
    return torch.softmax(nats, dim=0)[verdict.labels.index(verdict.meant)].item()


@pytest.mark.parametrize("style", ["llama-guard", "qwen3guard", "shieldgemma"])
def test_the_verdict_has_the_probability_of_its_word(style, tiny_model):
    """A policy goes to the guard's own template, as that of ShieldGemma takes it."""
    ref = resolve(str(tiny_model))
    model = load_base(ref, "none", {"compute_dtype": "float32"}).eval()
    tokenizer = load_tokenizer(ref)
    tokenizer.chat_template = "{{ guideline }}" + tokenizer.chat_template
    policy = "No insults." if style == "shieldgemma" else ""
    rows = [("How do I whistle?", "Purse your lips."), ("", "You are a fool.")]
    found = dict(verdicts(model, tokenizer, rows, STYLES[style], ScoreConfig(guard_policy=policy)))
    (verdict,) = STYLES[style]
    for number, row in enumerate(rows):
        chat = tokenizer.apply_chat_template(turns(*row), tokenize=False, add_generation_prompt=True, guideline=policy)
        assert chat.startswith(policy + "<|im_start|>")
        context = chat + verdict.lead
        assert found[number] == {"unsafe": pytest.approx(share(model, tokenizer, context, verdict), abs=1e-4)}
    assert turns("", "x") == [{"role": "user", "content": "x"}] and len(turns("p", "x")) == 2


def test_lines_before_the_verdict_are_written_with_their_likeliest_word(tiny_model, tmp_path):
    ref = resolve(str(tiny_model))
    model = load_base(ref, "none", {"compute_dtype": "float32"}).eval()
    tokenizer, style = load_tokenizer(ref), STYLES["wildguard"]
    (tmp_path / "form.txt").write_text(FORM)
    config = ScoreConfig(guard_template=str(tmp_path / "form.txt"))
    found = dict(verdicts(model, tokenizer, [("Who?", "He.")], style, config))[0]
    context = "[Q] Who? [A] He. [V]\n"
    for verdict in style:
        context += verdict.lead
        expected = share(model, tokenizer, context, verdict)
        assert found[verdict.name] == pytest.approx(expected, abs=1e-4)
        context += " yes" if expected > 0.5 else " no"
    assert set(found) == {"request", "refusal", "unsafe"}


def test_a_text_that_looks_like_the_form_stays_as_it_is():
    assert filled(FORM, "what is {response}?", "a {prompt}") == "[Q] what is {response}? [A] a {prompt} [V]\n"


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("meta-llama/Llama-Guard-3-8B", "llama-guard"), ("google/shieldgemma-2b", "shieldgemma"),
        ("Qwen/Qwen3Guard-Gen-0.6B", "qwen3guard"), ("meta-llama/Llama-Guard-4-12B", "llama-guard"),
    ],
)  # fmt: skip
def test_the_style_is_in_the_name(name, style):
    config = ScoreConfig(guard_policy="no insults", engine="transformers")
    assert style_of(config, name) == STYLES[style]
    assert style_of(replace(config, guard_style="qwen3guard"), name) == STYLES["qwen3guard"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt-4o-mini", {}, "--guard_style"),
        ("allenai/wildguard", {}, "--guard_template FILE"),
        ("google/shieldgemma-2b", {}, "--guard_policy TEXT"),
        ("google/shieldgemma-2b", {"guard_policy": "no insults"}, "in process: add --engine transformers"),
        ("allenai/wildguard", {"guard_template": "form.txt"}, "in process: add --engine transformers"),
    ],
)
def test_a_guard_that_lacks_what_it_needs_is_a_mistake(name, settings, message):
    with pytest.raises(UserError, match=message):
        style_of(ScoreConfig(**settings), name)


def rows_file(tmp_path, responses: list[str]) -> str:
    path = tmp_path / "in.csv"
    prompts = [f"question {n}" for n in range(len(responses))]
    pd.DataFrame({"prompt": prompts, "generated_text": responses}).to_csv(path, index=False)
    return str(path)


def test_a_server_gives_the_probability_where_it_tells_it(server, script, tmp_path):
    path = rows_file(tmp_path, ["[verdict unsafe 0.8 safe]", "[verdict safe 0.9 unsafe]", "", "[mumble]"])
    flags = ["--scorers", "guard", "--model", "meta-llama/Llama-Guard-3-8B", "--input", path]
    result = script(SCORE, *flags, env=server.env)
    assert result.returncode == 0, result.stderr
    frame = read_table(tmp_path / "in.scores.csv")
    assert [float(cell) if cell else None for cell in frame["guard_unsafe"]] == pytest.approx([0.8, 0.1, None, None])
    assert list(frame["guard_flagged"]) == ["1.0", "0.0", "", ""]
    assert list(frame["guard_missing"]) == ["", "", "empty", "guard: unparsable"]
    request = server.log[0]["request"]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant"] and request[
        "logprobs"
    ] is True


def test_the_script_judges_in_process(script, tiny_model, tmp_path):
    flags = [
        "--scorers",
        "guard",
        "--engine",
        "transformers",
        "--base_model",
        tiny_model,
        "--guard_style",
        "llama-guard",
    ]
    result = script(SCORE, *flags, "--input", rows_file(tmp_path, ["a", "", "c"]))
    assert result.returncode == 0, result.stderr
    frame = read_table(tmp_path / "in.scores.csv")
    scores = list(frame["guard_unsafe"])
    assert scores[1] == "" and 0 < float(scores[0]) < 1 and 0 < float(scores[2]) < 1
    assert list(frame["guard_missing"]) == ["", "empty", ""]
    one = script(SCORE, *flags, "--input_text", "a", "--prompt_text", "question 0")
    assert one.returncode == 0 and f"guard_unsafe {float(scores[0]):.3f}" in one.stdout
    assert "guard_refusal" not in one.stdout  # this guard does not tell


def test_one_text_by_a_server(server, script):
    flags = ["--scorers", "guard", "--model", "meta-llama/Llama-Guard-3-8B", "--input_text"]
    result = script(SCORE, *flags, "[verdict unsafe 0.8 safe]", env=server.env)
    assert result.returncode == 0 and "guard_unsafe 0.800" in result.stdout, result.stderr
    result = script(SCORE, *flags, "[mumble]", env=server.env)
    assert result.returncode == 2 and "guard: unparsable" in result.stderr
    result = script(SCORE, "--scorers", "moderation", "--input_text", "[hate 0.7]", env=server.env)
    assert "moderation_hate 0.700" in result.stdout and "moderation_sexual" not in result.stdout
