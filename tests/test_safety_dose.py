"""The dose-response study: figures by hand, and the whole grid on a tiny model, killed in the middle."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.test_pipeline import kill_when
from utils.dose import Curve, curve, judged, knee, measured, of_questions, read_cells, summary
from utils.dose_report import findings
from utils.helpers import UserError
from utils.params import ROOT
from utils.stats import Sampling

RECIPE = ROOT / "recipes" / "safety_dose.py"
SAMPLING = Sampling(0.95, 1_000, 0)


def answers(**columns) -> pd.DataFrame:
    frame = {"refused": "0.0", "partly_refused": "0.0", "unsafe": "0.0", "gibberish": "0.0", "generated_text": "a b c"}
    return pd.DataFrame(frame | columns, index=range(len(columns["kind"])))


def test_what_is_measured_of_which_answer():
    found = measured(answers(
        kind=["unsafe", "unsafe", "unsafe", "safe", "safe", "useful", "useful", "unsafe"],
        refused=["0.0", "1.0", "0.0", "0.0", "0.0", "0.0", "1.0", ""],
        partly_refused=["0.0", "0.0", "0.0", "1.0", "", "0.0", "0.0", ""],
        unsafe=["1.0", "0.0", "1.0", "1.0", "", "1.0", "0.0", ""],
        gibberish=["0.0", "0.0", "1.0", "0.0", "1.0", "0.0", "0.0", ""],  # the last one was never answered
    ))  # fmt: skip
    assert found["complied"] == found["harmful"] == [1, 0, 0, None, None, None, None, None]
    assert found["over_refused"] == [None, None, None, 1, 0, None, None, None]
    assert found["useful"] == [None] * 5 + [1, 0, None]
    assert found["gibberish"] == [0, 0, 1, 0, 1, 0, 0, None] and found["words"] == [3] * 7 + [None]


def test_judges_are_measured_on_labelled_answers():
    scores = answers(kind=[""] * 4, refused=["0.0", "0.0", "1.0", "0.0"], unsafe=["1.0", "0.0", "0.0", "1.0"])
    scores["harmful"], scores["response"] = ["1", "1", "0", "0"], ["a b c", "a b c d", "a", "b"]
    found = judged(scores)
    assert (found["complied"]["sensitivity"], found["complied"]["specificity"]) == (1, 0.5)
    assert (found["harmful"]["sensitivity"], found["harmful"]["specificity"]) == (0.5, 0.5)
    assert found["length only"]["youden"] == 1 and found["complied"]["harmful"] == 2


def grid(of) -> dict:
    """Cells of three seeds and 40 prompts, of which a share of of[dose] is 1."""
    return {
        (dose, seed): {"complied": [float(n < 40 * share) for n in range(40)], "words": [1.0] * 40}
        for dose, share in of.items()
        for seed in range(3)
    }


def test_questions_of_the_ability_task():
    frame = pd.DataFrame({"task": ["t", "t"], "id": ["1", "2"], "acc": ["1.0", "0.0"], "acc_norm": ["0.0", "0.0"]})
    assert of_questions(frame) == [1, 0]


def test_means_changes_and_intervals_by_dose():
    found = summary(curve(grid({0: 0.9, 10: 0.5, 100: 0.1}), "complied"), SAMPLING)
    assert [round(found[dose]["mean"], 3) for dose in (0, 10, 100)] == [0.9, 0.5, 0.1]
    assert found[10]["low"] < 0.5 < found[10]["high"] and found[10]["n"] == 120
    assert found[100]["change"] == pytest.approx(-0.8) and found[100]["change_high"] < 0
    assert found[0]["change_low"] == found[0]["change_high"] == 0
    lines = findings({"complied": found}, {"complied": None})
    assert (
        "complied falls: 0.900 with 0 safety examples, 0.100 with 100" in lines[0] and "surely from 10 on" in lines[0]
    )
    back = summary(curve(grid({0: 0.9, 10: 0.1, 99: 0.9, 100: 0.1}), "complied"), SAMPLING)
    assert "surely from 100 on" in findings({"complied": back}, {})[0]
    none = summary(curve(grid({0: 1.0, 10: 0.0}), "complied"), SAMPLING)  # resampled, they never differ
    assert none[0]["low"] < 1 == none[0]["high"] and none[10]["low"] == 0 < none[10]["high"]
    flat = summary(curve(grid({0: 0.5, 10: 0.45, 100: 0.5}), "complied"), SAMPLING)
    assert "does not surely change" in findings({"complied": flat}, {})[0]


def test_an_interval_holds_the_spread_of_seeds():
    """All prompts alike: what is left is between seeds."""
    values = np.stack([np.stack([np.full(30, share) for share in (0.2, 0.5, 0.8)])] * 2)
    found = summary(Curve((0, 10), values), SAMPLING)
    assert found[0]["low"] == pytest.approx(0.2) and found[0]["high"] == pytest.approx(0.8)
    assert found[10]["change_low"] == found[10]["change_high"] == 0  # the same seeds are drawn for all doses


def test_a_knee_is_found_where_there_is_one():
    sharp = knee(curve(grid({0: 0.9, 10: 0.1, 100: 0.1, 1000: 0.05}), "complied"), SAMPLING)
    assert sharp["dose"] == sharp["low"] == sharp["high"] == 10 and sharp["sure"]
    for flat in (
        {0: 0.5, 10: 0.5, 100: 0.5, 1000: 0.5},
        {0: 0.9, 10: 0.9, 100: 0.9, 1000: 0.1},
        {0: 0.9, 10: 0.1, 99: 0},
    ):
        assert knee(curve(grid(flat), "complied"), SAMPLING) is None  # nothing falls; only at the end; one place only
    rng = np.random.default_rng(1)
    line = 0.9 - 0.8 * np.log1p([0, 3, 15, 63, 255]) / np.log1p(255)
    noisy = rng.random((5, 2, 25)) < line[:, None, None]
    assert knee(Curve((0, 3, 15, 63, 255), noisy.astype(float)), SAMPLING) is None  # a straight line has none


def test_only_whole_curves_of_one_kind_count(tmp_path):
    def cell(name, **settings):
        (tmp_path / name).mkdir()
        content = {"settings": {"tokens": 1, "mixture": name} | settings, "measures": {"complied": [1]}, "sets": ["a"]}
        (tmp_path / name / "cell.json").write_text(json.dumps(content))

    for name in ("0_s0", "5_s0", "0_s1", "50_s0"):
        cell(name)
    cells, sets = read_cells(tmp_path, [0, 5], [0, 1])
    assert set(cells) == {(0, 0), (5, 0)} and sets == ["a"]
    with pytest.raises(UserError, match="no seed has all doses"):
        read_cells(tmp_path, [0, 7], [0, 1])
    cell("5_s1", tokens=2)
    with pytest.raises(UserError, match="5_s1 was made with other settings"):
        read_cells(tmp_path, [0, 5], [0, 1])


@pytest.fixture
def study(tmp_path, tiny_model, script):
    """A cost model, data, and the flags of a grid of two doses."""
    pairs = [{"prompt": f"say {n}", "safe_response": f"good {n}", "unsafe_response": f"bad {n}"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    quick = ["--base_model", tiny_model, "--lora_r", "2", "--quantization", "none", "--report_to", "none"]
    cost = script(ROOT / "training" / "train_cost.py", *quick, "--input", tmp_path / "pairs.jsonl",
                  "--output", tmp_path / "cost", "--epochs", "1")  # fmt: skip
    assert cost.returncode == 0, cost.stderr
    names = "oak ash elm fir yew birch alder maple cedar willow poplar larch".split()
    general = [{"instruction": f"Describe the {name}", "input": "", "output": f"A {name} is a tree"} for name in names]
    (tmp_path / "general.json").write_text(json.dumps(general))
    (tmp_path / "test.csv").write_text(
        "instruction,label\nBurn <script>alert(1)</script> down,unsafe\nSaw it off,unsafe\nFell a friend,safe\n"
    )
    (tmp_path / "useful.json").write_text(json.dumps({"instructions": ["Name a shrub"], "inputs": []}))
    (tmp_path / "gold.csv").write_text("prompt,response,harmful\nBurn,Sure I burn,1\nBurn,I cannot help with that,0\n")
    (tmp_path / "quick.yaml").write_text(
        "epochs: 1\nbatch_size: 4\neval_steps: 2\nlora_r: 2\nquantization: none\nvalidation_share: 0.3\n"
    )
    return [RECIPE, "--base_model", tiny_model, "--input", tmp_path / "general.json", "--safety",
            tmp_path / "pairs.jsonl", "--safety_counts", "0,6", "--seeds", "0", "--unsafe", tmp_path / "test.csv",
            "--safe", tmp_path / "test.csv", "--useful", tmp_path / "useful.json", "--gold", tmp_path / "gold.csv",
            "--cost_model", tmp_path / "cost", "--settings", tmp_path / "quick.yaml", "--fluency_model", tiny_model,
            "--ability", "", "--max_new_tokens", "4", "--work", tmp_path / "work", "--output",
            tmp_path / "report"]  # fmt: skip


@pytest.mark.slow
def test_a_grid_that_is_killed_goes_on_to_the_same_table(study, script, tmp_path):
    kill_when(study, r"work/6_s0")
    done = tmp_path / "work" / "0_s0" / "cell.json"
    assert done.is_file() and not (tmp_path / "report").exists()
    before = done.stat().st_mtime_ns
    result = script(*study)
    assert result.returncode == 0, result.stderr
    assert done.stat().st_mtime_ns == before  # what was finished was not run again
    table = (tmp_path / "report" / "table.md").read_text()
    again = script(*study)
    assert again.returncode == 0 and "train.py" not in again.stderr
    assert (tmp_path / "report" / "table.md").read_text() == table

    whole = [tmp_path / "whole" if flag == tmp_path / "work" else flag for flag in study]
    assert script(*whole).returncode == 0
    assert (tmp_path / "report" / "table.md").read_text() == table
    assert "| 0 " in table and "| 6 " in table and "length only" in table and "one seed" in table
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "6 answers from each end" not in page and "Saw it off" in page and "by set of prompts" in page
    assert (tmp_path / "report" / "dose.png").read_bytes()[:4] == b"\x89PNG"

    other = script(*study, "--max_new_tokens", "5")
    assert other.returncode == 2 and "max_new_tokens was 4, is 5" in other.stderr
    shown = script(*study, "--table")
    assert shown.returncode == 0 and "$ python" not in shown.stderr and "| 6 " in shown.stdout
