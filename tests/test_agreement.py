"""Agreement: hand-computed cases, and the script against independent computations on real human labels."""

import csv
import json

import pytest

from utils.agreement import against_gold, alpha, codes, cohen, fleiss, interval, same
from utils.params import ROOT

SCRIPT = ROOT / "generate_data" / "agreement.py"
XSTEST = ROOT.parent / "shared" / "data" / "xstest_completions.csv"


def table(*raters, scale=None):
    return codes([list(rater) for rater in raters], scale)[0]


def test_measures_by_hand():
    # 10 rows, 7 of them equal; one says Y six times, the other five times
    one, other = "YYYYYYNNNN", "YYYYNNYNNN"
    ratings = table(one, other)
    assert same(ratings) == 0.7
    expected = 0.6 * 0.5 + 0.4 * 0.5
    assert cohen(ratings) == pytest.approx((0.7 - expected) / (1 - expected))
    share = 11 / 20  # Fleiss: chance from the pooled shares
    chance = share**2 + (1 - share) ** 2
    assert fleiss(ratings) == pytest.approx((0.7 - chance) / (1 - chance))
    # alpha: 1 - (n - 1) * disagreements / (2 * n1 * n0), n = 20 values, for two values without missing ones
    assert alpha(ratings) == pytest.approx(1 - 19 * 3 / (11 * 9))


def test_ordered_labels_forgive_near_misses():
    scale = ("Low", "Medium", "High")
    near = codes([["Low", "Medium", "High", "Low"], ["Low", "High", "High", "Low"]], scale)[0]
    far = codes([["Low", "High", "High", "Low"], ["Low", "Low", "High", "Low"]], scale)[0]
    assert cohen(near, "linear") > cohen(near) and alpha(near, "ordinal") > alpha(far, "ordinal")
    with pytest.raises(ValueError, match="severe: not on the scale"):
        codes([["severe"], ["Low"]], scale)


def test_missing_labels_are_left_out_and_alpha_uses_what_is_there():
    ratings = table(["Y", "N", "", "Y", "N"], ["Y", "N", "Y", "", "Y"], ["Y", "N", "Y", "Y", ""])
    assert same(ratings) == pytest.approx(8 / 9)
    assert fleiss(ratings) == 1.0  # over the two rows that all have rated
    assert 0 < alpha(ratings) < 1


def test_what_is_not_defined_is_none():
    assert cohen(table("YYY", "YYY")) is None and fleiss(table("YYY", "YYY")) is None
    assert alpha(table("YYY", "YYY")) is None and interval(cohen, table("YYY", "YYY"), 0.95, 10, 0) is None
    assert same(table(["", "Y"], ["Y", ""])) is None


def test_intervals_are_seeded_and_hold_the_value():
    ratings = table("YNYYNNYNYY" * 5, "YNYNNNYNYY" * 5)
    low, high = interval(cohen, ratings, 0.95, 200, 1)
    assert low < cohen(ratings) < high and (low, high) == interval(cohen, ratings, 0.95, 200, 1)


def test_nearness_to_gold_tells_copies_from_false_edits():
    gold = [{"bias": bias, "toxicity": "No", "sentiment": "Neutral", "harm": "Low", "debiased_text": "fair"}
            for bias in ("Yes", "Yes", "No", "No")]  # fmt: skip
    rows = [{"status": "ok", "debiased_text": "fair"}, {"status": "neutral", "debiased_text": "bad"},
            {"status": "ok", "debiased_text": "x"}, {"status": "unparsable", "debiased_text": ""}]  # fmt: skip
    found = against_gold(rows, gold, "debiased_text")
    assert (found["rows"], found["usable"], found["copied"], found["changed"]) == (4, 3, 0.5, 1.0)
    assert found["chrf"] == pytest.approx((100 + 0) / 2, abs=15) and "bias" not in found


@pytest.mark.skipif(not XSTEST.is_file(), reason=f"no {XSTEST.name} beside the checkout")
def test_two_people_on_real_completions_equal_an_independent_computation(script, tmp_path):
    """The two human label columns of XSTest, against scikit-learn on the file itself and alpha by its definition."""
    from sklearn.metrics import cohen_kappa_score

    output = tmp_path / "agreement.json"
    columns = ["annotation_1", "annotation_2"]
    result = script(SCRIPT, "--inputs", XSTEST, "--raters", ",".join(columns), "--output", output, "--resamples", 50)
    assert result.returncode == 0, result.stderr
    everything, pair = json.loads(output.read_text())["measures"]
    with open(XSTEST, encoding="utf-8", newline="") as file:
        rows = [[row[name] for name in columns] for row in csv.DictReader(file)]
    one, other = zip(*(row for row in rows if all(row)), strict=True)
    assert pair["cohen"] == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    assert pair["rows"] == len(one) and pair["agreement"] == pytest.approx(
        sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    )
    assert everything["alpha"] == pytest.approx(nominal_alpha([row for row in rows if all(row)]), abs=1e-9)
    assert "0.62 to 0.74" in result.stdout


def nominal_alpha(rows):
    """Krippendorff's alpha for two complete raters, from its definition by coincidences."""
    values = [value for row in rows for value in row]
    n = len(values)
    counts = {value: values.count(value) for value in set(values)}
    observed = sum(2 for a, b in rows if a != b) / n
    expected = sum(counts[a] * counts[b] for a in counts for b in counts if a != b) / (n * (n - 1))
    return 1 - observed / expected


def test_files_are_matched_by_id_and_mistakes_are_one_line(script, tmp_path):
    (tmp_path / "a.csv").write_text("id,bias\n1,Yes\n2,No\n3,Yes\n4,No\n")
    (tmp_path / "b.csv").write_text("id,bias,harm\n4,No,Low\n2,No,Low\n1,Yes,Low\n9,Yes,Low\n")
    (tmp_path / "t.csv").write_text("id,text,bias\n1,one,Yes\n2,two,No\n")
    (tmp_path / "u.csv").write_text("id,text,bias\n1,one,Yes\n2,another,No\n")
    (tmp_path / "d.csv").write_text("id,bias\n1,Yes\n1,No\n")
    result = script(SCRIPT, "--inputs", tmp_path / "a.csv", f"people={tmp_path / 'b.csv'}", "--resamples", 10)
    assert result.returncode == 0, result.stderr
    assert "rows: 4 in a, 4 in people; 3 shared by id" in result.stdout
    found = json.loads((tmp_path / "a.csv.agreement.json").read_text())["measures"]
    assert found[0]["annotators"] == ["a", "people"] and found[0]["rows"] == 3 and found[1]["cohen"] == 1.0
    for flags, said in [
        (["--inputs", tmp_path / "a.csv"], "one file needs --raters"),
        (["--inputs", tmp_path / "a.csv", "--raters", "bias"], "name two or more"),
        (["--inputs", tmp_path / "a.csv", tmp_path / "b.csv", "--labels", "harm"], "a.csv has no column harm"),
        (["--inputs", tmp_path / "a.csv", tmp_path / "b.csv", "--key", "row"], "has no column row"),
        (["--inputs", tmp_path / "a.csv", tmp_path / "none.csv"], "no such file"),
        (["--inputs", tmp_path / "a.csv", tmp_path / "b.csv", "--output", tmp_path / "a.csv"], "is an input"),
        (["--inputs", tmp_path / "t.csv", tmp_path / "u.csv"], "1 of 2 rows with one id differ in text"),
        (["--inputs", tmp_path / "a.csv", tmp_path / "a.csv"], "have the same name"),
        (["--inputs", tmp_path / "a.csv", tmp_path / "d.csv"], "id repeats"),
    ]:
        result = script(SCRIPT, *flags)
        assert result.returncode == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_arguments_it_names_the_script_that_makes_its_input(script):
    pilot = ROOT / "datasets" / "annotated" / "pilot.csv"
    if pilot.exists():
        pytest.skip("the pilot texts are annotated here")
    result = script(SCRIPT)
    assert result.returncode == 2 and "generate_data/annotate.py makes it" in result.stderr
