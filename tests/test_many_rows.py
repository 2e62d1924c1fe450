"""Memory does not grow with the rows: only the place of each answer is held. The million is in benchmarks/."""

import json
import os
import subprocess
import sys
import threading

import pytest

from tests.fault_server import Faults, FaultServer, annotation
from utils import params
from utils.annotation import Annotator
from utils.answers import Answer, Answers
from utils.params import ROOT

pytestmark = pytest.mark.slow


def peak_memory(tmp_path, rows):
    """Peak memory, in bytes, of annotating `rows` rows whose answers are all there but for ten."""
    output = tmp_path / f"{rows}.csv"
    who = Annotator(
        params.ANNOTATOR_MODEL, params.ANNOTATE_PROMPT, params.GUIDELINE_FILE.read_text(), params.ANNOTATE_TEMPERATURE,
        params.ANNOTATE_MAX_TOKENS, params.SEED, params.ANNOTATE_RETRIES,
    )  # fmt: skip
    answers = Answers(output.with_name(output.name + ".answers.jsonl"), who.settings())
    with open(tmp_path / "in.csv", "w") as file:
        file.write("text\n")
        for n in range(rows):
            text = f"useless clerk number {n} " + "was late again " * 20
            file.write(text + "\n")
            if n >= 10:
                said = json.dumps(annotation(text))
                answers.add(who.first_request(text).key, Answer(said, "stop", 1, 1, who.model, "s"))
    answers.close()
    with FaultServer(Faults()) as server:
        process = subprocess.Popen(
            [sys.executable, ROOT / "generate_data" / "annotate.py", "--input", tmp_path / "in.csv", "--input_column",
             "text", "--output", output], env=os.environ | server.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        readers = [threading.Thread(target=pipe.read) for pipe in (process.stdout, process.stderr)]
        for reader in readers:
            reader.start()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0 and server.count == 10
    assert sum(1 for _ in open(output)) == rows + 1
    return usage.ru_maxrss * 1024


def test_thirty_thousand_rows_take_little_more_than_a_thousand(tmp_path):
    few, many = peak_memory(tmp_path, 1_000), peak_memory(tmp_path, 31_000)
    # a row with its answer is 1,000 bytes of text, several thousand as Python objects
    assert (many - few) / 30_000 < 600
