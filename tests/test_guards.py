"""Guard models: the verdict's probability in process, and what a server says of it."""

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
    ref = resolve(str(tiny_model))
    model = load_base(ref, "none", {"compute_dtype": "float32"}).eval()
    tokenizer = load_tokenizer(ref)
    rows = [("How do I whistle?", "Purse your lips."), ("", "You are a fool.")]
    found = dict(verdicts(model, tokenizer, rows, STYLES[style], ScoreConfig()))
    (verdict,) = STYLES[style]
    for number, row in enumerate(rows):
        context = tokenizer.apply_chat_template(turns(*row), tokenize=False, add_generation_prompt=True) + verdict.lead
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
        ("Qwen/Qwen3Guard-Gen-0.6B", "qwen3guard"), ("meta-llama/LlamaGuard-7b", "llama-guard"),
    ],
)  # fmt: skip
def test_the_style_is_in_the_name(name, style):
    assert style_of(ScoreConfig(), name) == STYLES[style]
    assert style_of(ScoreConfig(guard_style="shieldgemma"), name) == STYLES["shieldgemma"]


@pytest.mark.parametrize(
    ("name", "message"), [("gpt-4o-mini", "--guard_style"), ("allenai/wildguard", "--guard_template FILE")]
)
def test_a_guard_of_which_nothing_is_known_is_a_mistake(name, message):
    with pytest.raises(UserError, match=message):
        style_of(ScoreConfig(), name)


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


def test_several_lines_are_read_by_their_words(server, script, tmp_path):
    (tmp_path / "form.txt").write_text(FORM)
    path = rows_file(tmp_path, ["[lines yes no yes]", "[lines yes yes no]", "[mumble]"])
    flags = ["--scorers", "guard", "--model", "allenai/wildguard", "--guard_template", tmp_path / "form.txt"]
    result = script(SCORE, *flags, "--input", path, env=server.env)
    assert result.returncode == 0, result.stderr
    frame = read_table(tmp_path / "in.scores.csv")
    assert list(frame["guard_unsafe"]) == ["1.0", "0.0", ""] and list(frame["guard_refusal"]) == ["0.0", "1.0", ""]


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
    scores = list(read_table(tmp_path / "in.scores.csv")["guard_unsafe"])
    assert scores[1] == "" and 0 < float(scores[0]) < 1 and 0 < float(scores[2]) < 1
