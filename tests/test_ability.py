"""Ability by lm-evaluation-harness: tasks of one's own, its own on local data, and before against after."""

import json

import pandas as pd
import pytest

from testing.ability import questions
from utils.params import ABILITY_DIR, ROOT
from utils.records import read_json

SCRIPT = ROOT / "testing" / "ability.py"


@pytest.fixture
def ability(script, tiny_model, tmp_path):
    def run(name, *flags, env=None):
        return script(SCRIPT, "--base_model", tiny_model, "--output", tmp_path / name, *flags, env=env)

    return run


def test_everyday_questions_before_and_after(ability, other_tiny_model, tmp_path):
    result = ability("before")
    assert result.returncode == 0, result.stderr
    frame = pd.read_csv(tmp_path / "before.csv")
    assert list(frame["task"].unique()) == ["everyday"] and len(frame) == 40 and set(frame["acc"]) <= {0, 1}
    found = read_json(tmp_path / "before.json")
    mean = found["figures"]["everyday"]["acc"]
    assert mean["mean"] == pytest.approx(frame["acc"].mean()) and mean["n"] == 40 and mean["low"] < mean["mean"]
    after = ability("after", "--base_model", other_tiny_model, "--before", tmp_path / "before.csv")
    assert after.returncode == 0, after.stderr
    difference = pd.read_csv(tmp_path / "after.csv")["acc"].mean() - frame["acc"].mean()
    assert f"{difference:+.3f} (" in after.stdout
    again = ability("before")
    assert again.returncode == 2 and "already there" in again.stderr


@pytest.mark.slow  # the harness takes seconds to look through its tasks
def test_a_task_of_the_harness_on_local_data(ability, tmp_path):
    """BoolQ's own prompt, without a network."""
    rows = [{"passage": f"It is {n}.", "question": "is it so", "label": n % 2, "idx": n} for n in range(6)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = ability("boolq", "--tasks", "boolq,everyday", "--data", f"boolq={tmp_path / 'boolq.jsonl'}", "--limit", 4)
    assert result.returncode == 0, result.stderr
    frame = pd.read_csv(tmp_path / "boolq.csv")
    assert frame["task"].value_counts().to_dict() == {"boolq": 4, "everyday": 4}


@pytest.mark.slow
def test_a_task_of_ones_own_in_a_folder_given_as_it_lies(script, tiny_model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.jsonl").write_text("".join(f'{{"q": "Q{n}", "a": {n % 2}}}\n' for n in range(5)))
    (tmp_path / "mine" / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: ["no", "yes"]\ndoc_to_target: a\n'
        "metric_list: [{metric: acc}]\n"
    )
    flags = ["--base_model", tiny_model, "--task_folder", "mine", "--tasks", "mine", "--output", "out"]
    result = script(SCRIPT, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(pd.read_csv(tmp_path / "out.csv")) == 5
    again = script(SCRIPT, *flags[:-1], "chat", "--chat", "--before", "out.csv", cwd=tmp_path)
    assert again.returncode == 2 and "made with another --chat" in again.stderr


def test_answers_read_in_several_ways_are_one_question():
    read = {"doc_id": 0, "doc_hash": "ab" * 8, "metrics": ["exact_match", "parts"], "parts": (1, 2)}
    samples = [read | {"filter": "strict", "exact_match": 0.0}, read | {"filter": "flexible", "exact_match": 1.0}]
    (row,) = questions("gsm8k", samples)
    assert row == {"task": "gsm8k", "id": "0-abababab", "exact_match,strict": 0.0, "exact_match,flexible": 1.0}
    assert questions("t", [read | {"filter": "none", "metrics": ["parts"]}]) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "nothing"], "neither the harness nor"),
        (["--tasks", "piqa"], "without a network give --data TASK=FILE"),
        (["--data", "piqa=x.jsonl"], "not among --tasks everyday"),
        (["--data", "everyday=x.jsonl", "--num_fewshot", "2"], "might be the question itself"),
        (["--tasks", "piqa", "--data", "piqa=nowhere.jsonl"], "no such file"),
        (["--before", "nowhere.csv"], "run this script on the model before"),
    ],
)
def test_a_mistake_is_one_line(flags, message, ability, tmp_path):
    result = ability("x", *flags)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "x.csv").exists()


def test_a_missing_harness_names_its_requirements(script, tiny_model, tmp_path):
    (tmp_path / "run.py").write_text(
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'lm_eval' else find(name, *more)\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--base_model', {str(tiny_model)!r}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = script(tmp_path / "run.py")
    assert result.returncode == 2 and "pip install -r requirements-eval.txt" in result.stderr


def test_the_questions_have_one_right_answer_each():
    rows = [json.loads(line) for line in (ABILITY_DIR / "everyday.jsonl").read_text().splitlines()]
    assert all(len(set(row["choices"])) == 3 and row["label"] in range(3) for row in rows)
    assert len({row["question"] for row in rows}) == len(rows) == 40
    assert {row["label"] for row in rows} == {0, 1, 2}
