"""Rewriting by a server: the same file as from a model in process, and nothing asked twice."""

import json

import pytest

from utils.data import read_table
from utils.params import ROOT
from utils.prompts import REWRITE_TEMPLATES

INFER = ROOT / "testing" / "infer.py"


@pytest.fixture
def ask(server, script, tmp_path):
    def run(texts, *flags):
        (tmp_path / "in.csv").write_text("text,n\n" + "".join(f"{text},0{i}\n" for i, text in enumerate(texts)))
        flags = ["--input", tmp_path / "in.csv", "--input_column", "text", "--output", tmp_path / "out.csv", *flags]
        return script(INFER, "--engine", "endpoint", *flags, env=server.env)

    return run


def test_rows_of_all_kinds_and_a_second_run_asks_nothing(ask, server, tmp_path):
    texts = [
        "A useless plan [plain]",
        "[refuse] a",
        "[filter] b",
        "[filter400] c",
        "[cut] d",
        "A useless plan [plain]",
    ]
    result = ask(texts, "--model", "some/rewriter", "--temperature", "0.5", "--max_new_tokens", "77")
    assert result.returncode == 0, result.stderr
    frame = read_table(tmp_path / "out.csv")
    assert list(frame["status"]) == ["ok", "refused", "filtered", "filtered", "truncated", "ok"]
    assert list(frame["generated_text"][:4]) == ["A plan [plain]", "", "", ""] and frame["generated_text"][5]
    assert list(frame["n"]) == [f"0{i}" for i in range(6)] and frame["id"].is_unique
    body = json.dumps(server.log[0])
    assert REWRITE_TEMPLATES["rewrite"] in body and "some/rewriter" in body and "response_format" not in body
    record = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert record["model"] == {"name": "some/rewriter"} and record["prompt"] == "rewrite"
    assert record["counts"] == {"ok": 2, "filtered": 2, "refused": 1, "truncated": 1}
    before = len(server.log)
    assert before == 5  # equal texts are asked once
    again = ask(texts, "--model", "some/rewriter", "--temperature", "0.5", "--max_new_tokens", "77")
    assert again.returncode == 2 and "is already there" in again.stderr
    more = ["--model", "some/rewriter", "--temperature", "0.5", "--max_new_tokens", "77", "--overwrite"]
    assert ask([*texts, "new [plain]"], *more).returncode == 0 and len(server.log) == before + 1


def test_what_fails_is_kept_as_failed_and_sets_the_exit_code(ask, server, tmp_path):
    result = ask(["one [plain]", "two [toolong]"])
    assert result.returncode == 1, result.stderr
    assert "1 requests failed, the last one: 400: maximum context length exceeded" in result.stderr
    assert "1 ok, 1 failed of 2 rows" in result.stdout
    assert list(read_table(tmp_path / "out.csv")["status"]) == ["ok", "failed"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base_model", "smollm2"], "name its model with --model, not --base_model"),
        (["--num_beams", "2"], "takes no --num_beams"),
        (["--max_prompt_tokens", "9"], "takes no --max_prompt_tokens"),
        (["--input_text", "x"], "--engine endpoint needs a file"),
        (["--engine", "transformers", "--model", "x"], "add --engine endpoint"),
        (["--prompt", "no"], "there are rewrite"),
        (["--prompt", "continue"], "takes no --prompt continue"),
        (["--engine", "transformers", "--prompt", "continue", "--shots", "2"], "has no turns before it"),
    ],
)
def test_settings_that_a_server_cannot_have(ask, server, flags, said):
    result = ask(["a"], *flags)
    assert result.returncode == 2 and said in result.stderr.splitlines()[-1]
    assert not server.log
