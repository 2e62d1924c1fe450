"""testing/compare.py as a user runs it: tables, tests, the page, and files that are not as they should be."""

import json
import re

import pandas as pd
import pytest

from utils import params
from utils.comparison_page import marked_edits, visible

COMPARE = params.ROOT / "testing" / "compare.py"
ROWS = 12


def scored(path, **columns):
    """A scored file of 12 rows; `columns` come on top of id, source, text and aspect."""
    frame = pd.DataFrame(
        {
            "id": [f"r{n}" for n in range(ROWS)],
            "biased_text": [f"The lazy clerk of office {n} is late." for n in range(ROWS)],
            "generated_text": [f"The clerk of office {n} is late." for n in range(ROWS)],
            "aspect": ["age"] * 6 + ["gender"] * 6,
        }
        | columns
    )
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def two(tmp_path):
    """The second system copies less, and keeps fewer facts in one row."""
    base = scored(tmp_path / "base.scores.csv", copied=[1] * 10 + [0] * 2, facts=[1.0] * 11 + [""], length_ratio=1.0)
    tuned = scored(tmp_path / "tuned.scores.csv", copied=[0] * 12, facts=[1.0] * 10 + [0.5, 1.0], length_ratio=0.9)
    return f"base={base}", f"tuned={tuned}"


def test_report_says_what_is_better_and_for_how_many_rows(script, two, tmp_path):
    out = tmp_path / "report"
    result = script(COMPARE, "--inputs", *two, "--output", out)
    assert result.returncode == 0, result.stderr
    found = json.loads((out / "results.json").read_text())
    copied, facts = found["differences"]["tuned"]["copied"], found["differences"]["tuned"]["facts"]
    assert (copied["test"], copied["mean"]) == ("McNemar", pytest.approx(-10 / 12))
    assert copied["p"] == pytest.approx(2 / 2**10) and copied["p_holm"] == pytest.approx(4 / 2**10)
    assert copied["better"] is True and facts["better"] is None and facts["n"] == 11
    assert found["verdicts"]["tuned"]["text"].startswith("tuned against base: less harm (copied)")
    assert found["verdicts"]["tuned"]["text"] in result.stdout
    assert "lacks the baseline rows copy, delete, reference, prompted, few-shot" in result.stderr
    assert found["groups"]["aspect"]["age"]["base"]["copied"] == {"mean": 1.0, "n": 6}
    page = (out / "report.html").read_text()
    assert "less harm (copied)" in page and re.search("<del> ?lazy ?</del>", page)
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert embedded["rows"][0]["systems"]["base"]["scores"]["copied"] == 1
    assert "\\begin{tabular}" in (out / "table.tex").read_text()
    assert script(COMPARE, "--inputs", *two, "--output", out).returncode == 2  # a report is not replaced unasked


def test_redacted_report_holds_no_text(script, two, tmp_path):
    out = tmp_path / "report"
    assert script(COMPARE, "--inputs", *two, "--output", out, "--redact").returncode == 0
    for file in out.iterdir():
        assert "clerk" not in file.read_text(), file


def test_tricks_that_need_no_model_are_named(script, two, tmp_path):
    copy = scored(tmp_path / "copy.scores.csv", copied=[1] * 12, facts=[1.0] * 12)
    result = script(COMPARE, "--inputs", *two, f"copy={copy}", "--output", tmp_path / "report")
    assert "copy, which needs no model, scores better than tuned on facts" in result.stderr


def test_correction_for_the_errors_of_a_judge(script, two, tmp_path):
    """Sensitivity 9 / 10 and specificity 8 / 10: (10 / 12 - 0.2) / 0.7."""
    gold = scored(tmp_path / "gold.csv").with_name("gold.scores.csv")
    pd.DataFrame({"id": range(20), "copied": [1] * 9 + [0] + [0] * 8 + [1] * 2, "person": [1] * 10 + [0] * 10}).to_csv(
        gold, index=False
    )
    out = tmp_path / "report"
    result = script(COMPARE, "--inputs", *two, "--output", out, "--gold", gold, "--gold_labels", "copied=person")
    assert result.returncode == 0, result.stderr
    corrected = json.loads((out / "results.json").read_text())["corrected"]["copied"]
    assert corrected["judge"]["sensitivity"] == 0.9 and corrected["judge"]["specificity"] == 0.8
    assert corrected["means"]["base"]["mean"] == pytest.approx((10 / 12 - 0.2) / 0.7)
    assert corrected["differences"]["tuned"]["mean"] == pytest.approx(-1)  # -10 / 12 / 0.7, and no share is beyond 1
    assert "sensitivity 0.90 on 10 gold rows" in (out / "report.html").read_text()


def test_plan(script, two, tmp_path):
    result = script(COMPARE, "--inputs", *two, "--plan", "--detect", "copied=0.2", "--output", tmp_path / "none")
    assert result.returncode == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if "copied" in line)
    assert "+0.2" in row and not (tmp_path / "none").exists()
    few = script(COMPARE, "--inputs", *two, "--plan", "--detect", "copied=0.4").stdout
    rows = [int(next(x for x in out.splitlines() if "copied" in x).split("|")[-2]) for out in (result.stdout, few)]
    assert rows[0] > 3 * rows[1] > 0


def test_rows_of_a_cluster_count_as_one(script, tmp_path):
    chat = ["a"] * 6 + ["b"] * 6
    one, two = (
        scored(tmp_path / f"{name}.scores.csv", copied=values, chat=chat)
        for name, values in (("one", [1] * 12), ("two", [0] * 12))
    )
    out = tmp_path / "report"
    assert script(COMPARE, "--inputs", one, two, "--cluster_column", "chat", "--output", out).returncode == 0
    difference = json.loads((out / "results.json").read_text())["differences"]["two"]["copied"]
    assert (difference["test"], difference["p"], difference["better"]) == ("sign flips", 0.5, None)


def test_gaps_between_groups(script, two, tmp_path):
    """The rewriter edits what is about women and leaves the rest: twelve templates about two groups."""
    frame = pd.DataFrame(
        [
            {"id": f"{n}{group}", "base_id": n, "attribute": "gender", "group": group, "edited": int(group == "women")}
            for n in range(12)
            for group in ("women", "men")
        ]
    )
    frame.to_csv(tmp_path / "cf.scores.csv", index=False)
    out = tmp_path / "report"
    result = script(
        COMPARE, "--inputs", *two, "--output", out, "--counterfactual", f"tuned={tmp_path / 'cf.scores.csv'}"
    )
    assert result.returncode == 0, result.stderr
    gap = json.loads((out / "results.json").read_text())["counterfactual"]["tuned"][0]
    assert (gap["gap"], gap["highest"], gap["templates"]) == (1.0, "women", 12)
    assert gap["p"] < 0.01 and gap["groups"]["men"]["distance"] == -0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster_column", "chat"], "--cluster_column"),
        (["--group_columns", "colour"], "--group_columns"),
        (["--gold", "x.csv"], "--gold FILE and --gold_labels measure=column go together"),
        (["--gold_labels", "copied", "--gold", "x.csv"], "write measure=value"),
        (["--resamples", "5"], "--resamples 5"),
        (["--export", "excel"], "--export excel: there are inspect and lm_eval"),
        (["--detect", "copied=much", "--plan"], "--detect copied=much"),
        (["--counterfactual", "tuned"], "tuned"),
    ],
)
def test_mistakes_end_in_one_line(script, two, tmp_path, arguments, message):
    result = script(COMPARE, "--inputs", *two, "--output", tmp_path / "report", *arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "report").exists()


def test_a_cell_that_is_no_number(script, two, tmp_path):
    wrong = scored(tmp_path / "wrong.scores.csv", copied=["often"] * 12)
    result = script(COMPARE, "--inputs", two[0], wrong, "--output", tmp_path / "report")
    assert result.returncode == 2 and "'often', which is no number" in result.stderr


def test_logs_for_other_tools(script, two, tmp_path):
    out = tmp_path / "report"
    base, tuned = two
    inputs = [base, tuned.replace("tuned=", "../<b>tuned=")]
    assert script(COMPARE, "--inputs", *inputs, "--output", out, "--export", "inspect,lm_eval").returncode == 0
    names = [f"{kind}_{name}" for name in ("0_base", "1_.._b_tuned") for kind in ("results", "samples")]
    assert sorted(path.stem for path in (out / "lm_eval").iterdir()) == sorted(names)
    log = json.loads((out / "inspect" / "0_base.json").read_text())
    assert log["samples"][0]["scores"]["copied"]["value"] == 1 and "clerk" in log["samples"][0]["input"]
    assert "facts" not in log["samples"][11]["scores"]  # a missing score is no zero
    copied = next(score for score in log["results"]["scores"] if score["name"] == "copied")
    assert copied["metrics"]["mean"]["value"] == pytest.approx(10 / 12)
    found = json.loads((out / "lm_eval" / "results_0_base.json").read_text())
    assert found["results"]["Comparison"]["copied,none"] == pytest.approx(10 / 12)
    assert found["higher_is_better"]["Comparison"] == {"copied": False, "facts": True}
    samples = (out / "lm_eval" / "samples_0_base.jsonl").read_text().splitlines()
    assert len(samples) == ROWS and json.loads(samples[0])["copied"] == 1


def test_marked_words():
    assert marked_edits("a lazy clerk", "a clerk")[0] == [("a ", ""), ("lazy ", "out"), ("clerk", "")]
    assert marked_edits("How do I get there?", "Take the bus at nine, then walk.") == (
        [("How do I get there?", "")],
        [("Take the bus at nine, then walk.", "")],
    )


def test_control_characters_are_seen_and_do_nothing():
    assert visible("a\x1b]0;title\x07\tb\n\u202e") == "a␛]0;title␇\tb\n\ufffd"
