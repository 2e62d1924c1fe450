"""testing/compare.py as a user runs it: tables, tests, the page, and files that are not as they should be."""

import json
import re
import shutil

import pandas as pd
import pytest

from utils import params
from utils.shown import marked_edits, visible

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


def test_no_folder_is_replaced_but_an_earlier_report(script, two, tmp_path):
    """--overwrite replaces a folder as a whole: notes, and the very files that are compared, must not go with it."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("mine")
    result = script(COMPARE, "--inputs", *two, "--output", notes, "--overwrite")
    assert result.returncode == 2 and "was not written by this script" in result.stderr
    out = tmp_path / "report"
    assert script(COMPARE, "--inputs", *two, "--output", out).returncode == 0
    assert script(COMPARE, "--inputs", *two, "--output", out, "--overwrite").returncode == 0
    inside = [f"{name}={out / 'mine'}-{name}.scores.csv" for name in ("base", "tuned")]
    for item, copy in zip(two, inside, strict=True):
        shutil.copy(item.partition("=")[2], copy.partition("=")[2])
    result = script(COMPARE, "--inputs", *inside, "--output", out, "--overwrite")
    assert result.returncode == 2 and "holds the input" in result.stderr
    assert (notes / "thesis.txt").read_text() == "mine" and len(list(out.glob("mine-*"))) == 2
    result = script(COMPARE, "--inputs", *two, "--output", ".")
    assert result.returncode == 2 and "name a folder" in result.stderr


def test_redacted_report_holds_no_text_id_group_or_path(script, tmp_path):
    """The word stands in texts, ids, groups and the path; only what a column is called, and the systems, are left."""
    folder = tmp_path / "secretive"
    folder.mkdir()
    ids, aspect = [f"secret-{n}" for n in range(ROWS)], ["secret aspect"] * ROWS
    texts = [f"secret {n}" for n in range(ROWS)]
    columns = {"id": ids, "aspect": aspect, "generated_text": texts}
    files = [scored(folder / f"{name}.scores.csv", copied=n, **columns) for n, name in enumerate(("base", "tuned"))]
    out = tmp_path / "report"
    flags = ["--output", out, "--redact", "--export", "inspect,lm_eval"]
    result = script(COMPARE, "--inputs", *files, *flags)
    assert result.returncode == 0, result.stderr
    written = [file for file in out.rglob("*") if file.is_file()]
    assert len(written) == 11
    for file in written:
        assert "secret" not in file.read_text() and "clerk" not in file.read_text(), file
    rows = json.loads((out / "inspect" / "0_base.json").read_text())["samples"]
    assert rows[0]["id"] == "1" and "group 1" in (out / "results.json").read_text()
    again = script(COMPARE, "--inputs", *files, *flags, "--overwrite")
    assert again.returncode == 0
    assert json.loads((out / "inspect" / "0_base.json").read_text())["samples"][0]["input"] != rows[0]["input"]  # salt


def test_rows_at_either_end(script, tmp_path):
    """Quoted as gains are the rows that became better, as losses those that became worse."""
    texts = {"generated_text": [f"answer {n}" for n in range(ROWS)]}
    base = scored(tmp_path / "base.scores.csv", copied=[1] * 6 + [0] * 6, **texts)
    tuned = scored(tmp_path / "tuned.scores.csv", copied=[0] * 8 + [1] * 4, **texts)
    out = tmp_path / "report"
    assert script(COMPARE, "--inputs", base, tuned, "--output", out, "--quoted_rows", "20").returncode == 0
    gains, losses = (out / "report.html").read_text().split("gains most on")[1].split("loses most against")
    shown = [set(re.findall(r"<small>(r\d+)</small>", part)) for part in (gains, losses)]
    assert shown == [{f"r{n}" for n in range(6)}, {f"r{n}" for n in range(8, 12)}]


def test_groups_of_a_few_rows_are_left_out(script, two, tmp_path):
    few = ["age"] * 8 + ["gender"] * 4
    files = []
    for item in two:
        frame = pd.read_csv(item.partition("=")[2]).assign(aspect=few)
        frame["facts"] = frame["facts"].where(frame.index < 4)
        files.append(tmp_path / f"few-{len(files)}.scores.csv")
        frame.to_csv(files[-1], index=False)
    out = tmp_path / "report"
    assert script(COMPARE, "--inputs", *files, "--output", out).returncode == 0
    groups = json.loads((out / "results.json").read_text())["groups"]["aspect"]
    assert set(groups) == {"age"} and groups["age"]["few-0"]["facts"] == {"mean": None, "n": 4}


def test_empty_answers_and_other_judges_are_pointed_at(script, two, tmp_path):
    base = two[0].partition("=")[2]
    tuned = scored(tmp_path / "half.scores.csv", copied=[0] * 6 + [""] * 6, facts=1.0, length_ratio=1.0)
    for path, model in ((base, "one"), (tuned, "other")):
        record = {"config": {"toxicity_model": model}}
        (tmp_path / f"{path}.run.json").write_text(json.dumps(record))
    result = script(COMPARE, "--inputs", base, tuned, "--output", tmp_path / "report")
    assert "compared on the rows where both have a value: copied (6 of 12)" in result.stderr
    assert "scored with different --toxicity_model" in result.stderr
    assert "0 (n 6)" in (tmp_path / "report" / "table.md").read_text()


def test_columns_of_ones_own(script, tmp_path):
    frames = [scored(tmp_path / f"{n}.csv", copied=[n] * ROWS) for n in (0, 1)]
    files = []
    for n, path in enumerate(frames):
        files.append(tmp_path / f"{n}.scores.csv")
        pd.read_csv(path).rename(columns={"biased_text": "prompt", "generated_text": "answer"}).to_csv(
            files[-1], index=False
        )
    out = tmp_path / "report"
    flags = ["--output", out, "--input_column", "prompt", "--output_column", "answer"]
    assert script(COMPARE, "--inputs", *files, *flags).returncode == 0
    assert "The clerk of office 3" in (out / "report.html").read_text()
    assert (
        script(COMPARE, "--inputs", *files, "--output", tmp_path / "plain").returncode == 0
    )  # no texts, no traceback


def test_tricks_that_need_no_model_are_named(script, two, tmp_path):
    copy = scored(tmp_path / "copy.scores.csv", copied=[1] * ROWS, facts=[1.0] * ROWS)
    poor = scored(tmp_path / "poor.scores.csv", copied=[0] * ROWS, facts=[0.5, 0.75] * 6)
    result = script(COMPARE, "--inputs", *two, poor, f"copy={copy}", "--output", tmp_path / "report")
    assert "copy, which needs no model, scores better than poor on facts\n" in result.stderr
    assert "better than tuned" not in result.stderr  # ahead by one row of twelve: that may be chance


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
    assert "copied, corrected for the judge's errors: base 0.905, tuned 0" in result.stdout
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
    assert "tuned, sure gaps between groups: edited by gender (1)" in result.stdout
    assert gap["p"] < 0.01 and gap["p_holm"] == gap["p"] and gap["groups"]["men"]["distance"] == -0.5


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
        (["--detect", "copied=0.1"], "add --plan"),
        (["--detect", "copied=inf", "--plan"], "--detect copied=inf"),
        (["--detect", "kindness=0.1", "--plan"], "--detect kindness: no such measure here: "),
        (["--gold_labels", "facts=aspect", "--gold", "GOLD"], "which is no number"),
    ],
)
def test_mistakes_end_in_one_line(script, two, tmp_path, arguments, message):
    arguments = [two[0].partition("=")[2] if argument == "GOLD" else argument for argument in arguments]
    result = script(COMPARE, "--inputs", *two, "--output", tmp_path / "report", *arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"copied": ["often"] * ROWS}, "'often', which is no number"),
        ({"copied": ["inf"] * ROWS}, "'inf', which is no number"),
        ({"copied": 1, "id": ["r1"] * ROWS}, "the id r1 stands there twice"),
    ],
)
def test_files_that_cannot_be_compared(script, two, tmp_path, columns, message):
    wrong = scored(tmp_path / "wrong.scores.csv", **columns)
    result = script(COMPARE, "--inputs", two[0], wrong, "--output", tmp_path / "report")
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_a_system_without_any_value(script, two, tmp_path):
    empty = scored(tmp_path / "empty.scores.csv", copied="", facts=1.0, length_ratio=1.0)
    out = tmp_path / "report"
    result = script(COMPARE, "--inputs", two[0], empty, "--output", out)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "results.json").read_text())["differences"]["empty"]["copied"]["mean"] is None
    assert "copied" not in result.stdout.split("against base: ")[1]  # no verdict on what was not measured
    assert "& -- &" in (out / "table.tex").read_text()
    gold = scored(tmp_path / "gold.scores.csv", copied=[1] * 6 + [0] * 6, person=[1] * 5 + [0] * 7)
    flags = ["--gold", gold, "--gold_labels", "copied=person", "--output", tmp_path / "corrected"]
    assert script(COMPARE, "--inputs", two[0], empty, *flags).returncode == 0


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
