"""Annotation and rewriting by a real server with the real model: `transformers serve` on this machine."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from utils.data import read_table
from utils.embedded import fetch
from utils.params import PILOT_FILE, ROOT

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "generate_data" / "annotate.py"
PORT = 8917
QUICK = ["--input", PILOT_FILE, "--max_tokens", 60, "--retries", 0, "--max_failed", 1, "--max_concurrency", 2]


@pytest.fixture(scope="module")
def model():
    """The folder of the served model, which is also its name."""
    folder = str(fetch("smollm2"))
    command = [Path(sys.executable).parent / "transformers", "serve", folder, "--device", "cpu", "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", str(PORT)]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            assert process.poll() is None, "transformers serve ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.5)
        yield folder
    finally:
        process.kill()
        process.wait()


def env():
    return {"OPENAI_BASE_URL": f"http://127.0.0.1:{PORT}/v1"}


def test_a_run_begun_in_process_goes_on_with_the_server(model, script, tmp_path):
    output = tmp_path / "out.csv"
    first = script(SCRIPT, *QUICK, "--limit", 2, "--engine", "transformers", "--base_model", model, "--output", output)
    assert first.returncode == 0, first.stderr
    second = script(SCRIPT, *QUICK, "--limit", 4, "--model", model, "--output", output, "--overwrite", env=env())
    assert second.returncode == 0, second.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.csv.answers.jsonl").read_text().splitlines()]
    answers = [line for line in lines if "key" in line]
    assert [answer["server"] for answer in answers] == ["in process"] * 2 + [f"127.0.0.1:{PORT}"] * 2
    assert all(answer["text"] and answer["tokens_in"] > 500 for answer in answers)
    frame = read_table(output)
    assert set(frame["annotator"]) == {"smollm2"} and len(frame) == 4
    # this server ignores the schema and answers with status 200
    usable = frame["status"].isin(["ok", "neutral"])
    assert (frame["bias"].ne("") == usable).all() and set(frame["raw"][~usable]) != {""}


def test_rewritings_of_a_server_are_those_of_the_model_in_process(model, script, tmp_path):
    """Up to the rounding of 16-bit products, which now and then turns a greedy answer."""
    flags = [ROOT / "testing" / "infer.py", "--limit", 6, "--max_new_tokens", 12]
    here = script(*flags, "--base_model", model, "--output", tmp_path / "here.csv")
    there = script(*flags, "--engine", "endpoint", "--model", model, "--output", tmp_path / "there.csv", env=env())
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    a, b = read_table(tmp_path / "here.csv"), read_table(tmp_path / "there.csv")
    assert list(a.columns) == list(b.columns) and list(a["status"]) == list(b["status"])
    assert (a["generated_text"] == b["generated_text"]).sum() >= 4, (list(a.generated_text), list(b.generated_text))


def test_another_name_than_the_served_one_is_one_line(model, script, tmp_path):
    result = script(SCRIPT, *QUICK, "--limit", 1, "--model", "another", "--output", tmp_path / "o.csv", env=env())
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
