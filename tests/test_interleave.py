"""Noisy and safe sessions in turns: each model is made once, and a run that was killed goes on."""

import json

import pytest

from tests.test_mix_noisy import bbq_rows, write
from tests.test_pipeline import kill_when
from utils.interleaving import table_of
from utils.params import ROOT

RECIPE = ROOT / "recipes" / "interleave.py"
MIX = ROOT / "generate_data" / "mix_noisy.py"


@pytest.fixture
def study(script, tmp_path, tiny_model):
    bbq = write(tmp_path / "bbq.jsonl", bbq_rows(20))
    tasks = [{"instruction": f"Do {n}", "input": "", "output": f"Done {n}"} for n in range(20)]
    task = write(tmp_path / "tasks.jsonl", tasks)
    result = script(MIX, "--unsafe", bbq, "--safe", bbq, "--task", task, "--output", tmp_path / "noisy",
                    "--size", "24", "--test_size", "12", "--safe_size", "16")  # fmt: skip
    assert result.returncode == 0, result.stderr
    settings = "quantization: none\nlora_r: 4\nbatch_size: 4\nlr: 0.01\neval_steps: 3\nallow_faults: " \
               "cut off,duplicate,completion in prompt,leak,contradiction\n"  # fmt: skip
    (tmp_path / "quick.yaml").write_text(settings)
    return [RECIPE, "--data", tmp_path / "noisy", "--base_model", tiny_model, "--rounds", "1", "--noisy_steps", "6",
            "--safe_steps", "3", "--signal", "likelihood", "--phi", "0", "--settings", tmp_path / "quick.yaml",
            "--strategies", "forget_filter", "--work", tmp_path / "work", "--output", tmp_path / "report"]  # fmt: skip


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_repeats_nothing(study, script, tmp_path):
    kill_when(study, "work/n/merged")  # between two sessions
    kill_when(study, r"training .*work/f/filtered")  # inside one, of rows that were filtered
    work = tmp_path / "work"
    made = {path: path.stat().st_mtime_ns for path in [*work.glob("*/merged/run.json"), work / "f" / "forgetting.csv"]}
    assert {path.parts[-3] for path in made} >= {"n", "ns"} and not (work / "f" / "merged").exists()
    result = script(*study)
    assert result.returncode == 0, result.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in made.items())
    state = json.loads((work / "state.json").read_text())
    assert set(state["models"]) == {"base", "f", "fs"}  # n and ns are only made to see what is forgotten
    assert set(state["models"]["f"]["f1"]) == {"tasks"} and "mean" in state["models"]["f"]["harm"]
    table = (tmp_path / "report" / "table.md").read_text()
    assert table in result.stdout and table.count("forget_filter") == 3
    assert (tmp_path / "report" / "sessions.png").read_bytes()[:4] == b"\x89PNG"
    kept = (work / "f" / "filtered" / "kept.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 24  # and these were learned
    record = json.loads((work / "f" / "adapter" / "run.json").read_text())
    metrics = json.loads((work / "f" / "adapter" / "metrics.json").read_text())
    assert record["config"]["input"].endswith("kept.jsonl") and metrics["steps"] == 6

    again = script(*study)
    assert again.returncode == 0 and "$ python" not in again.stderr
    assert (tmp_path / "report" / "table.md").read_text() == table
    other = script(*study, "--phi", "0.3")
    assert other.returncode == 2 and "phi was 0.0, is 0.3" in other.stderr


@pytest.mark.parametrize("name", ["noisy", "safe", "test"])
def test_a_missing_input_names_the_step_that_makes_it(name, study, script, tmp_path):
    (tmp_path / "noisy" / f"{name}.jsonl").unlink()
    result = script(*study)
    said = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and f"{name}.jsonl" in said and "python generate_data/mix_noisy.py makes it" in said


def test_what_is_unknown_or_not_there_is_said_in_one_line(study, script):
    result = script(*study, "--strategies", "none,magic")
    assert result.returncode == 2 and "there are none, replay" in result.stderr
    result = script(*study, "--table")
    assert result.returncode == 2 and "holds no finished session yet" in result.stderr


def test_the_table_has_the_base_first_and_a_column_for_each_task():
    harm, f1 = ({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9},) * 2
    lines = [{"strategy": name, "session": session, "model": "n", "harm": harm, "f1": {"squad": f1}}
             for name in ("none", "replay") for session in (0, 1)]  # fmt: skip
    table = table_of(lines).splitlines()
    assert "F1 squad" in table[0] and [line.split("|")[2].strip() for line in table[2:]] == ["0", "0", "1", "1"]
