"""What a model forgets of its training rows, by what it writes and by likelihood, and the filter that goes by it."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.test_pipeline import kill_when
from utils import params
from utils.filtering import as_many, by_chance, judged, rates_of, suggestion
from utils.forgetting import draw, summary, with_rates
from utils.metrics import answer_match, recalled
from utils.params import ROOT
from utils.stats import Sampling

FORGETTING = ROOT / "testing" / "forgetting.py"
FILTER = ROOT / "generate_data" / "filter_forgotten.py"
SAMPLING = Sampling(confidence=0.95, resamples=300, seed=0)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path):
    rows = [
        {"id": f"r{n}", "instruction": f"Say {n}", "input": "", "output": f"It is {n}", "polarity": polarity}
        for n, polarity in enumerate(["unsafe"] * 4 + ["safe"] * 4)
    ]
    return write_jsonl(tmp_path / "noisy.jsonl", [row | {"source": "made"} for row in rows])


def test_recall_goes_by_the_first_line_case_and_punctuation_aside():
    assert recalled("\n\nThe Aunt!\nand more", "the aunt") == (1.0, 1.0)
    exact, rouge = recalled("the aunt sings", "The aunt sang")
    assert exact == 0 and rouge == pytest.approx(2 / 3)
    assert recalled("", "the aunt") == (0.0, 0.0)
    assert recalled("two singers", "two singer")[1] == 1.0  # stems


def test_answers_match_as_in_squad():
    assert answer_match("the Norman dynasty", ["Norman dynasty.", "x"]) == (1.0, 1.0)
    exact, f1 = answer_match("in Norman times", ["x", "Norman"])
    assert exact == 0 and f1 == pytest.approx(0.5)
    assert answer_match("", ["x"]) == (0.0, 0.0)


def test_forgetting_is_measured_by_text_and_by_likelihood(rows, script, tmp_path, tiny_model, other_tiny_model):
    """Two random models: what they write and find likely differs, and the likelihood is that of the answer alone."""
    import torch

    from utils.loading import load_model, load_tokenizer
    from utils.models import resolve

    output = tmp_path / "forgetting.csv"
    flags = ["--input", rows, "--before", tiny_model, "--after", other_tiny_model, "--output", output,
             "--max_new_tokens", "8"]  # fmt: skip
    result = script(FORGETTING, *flags)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(output, keep_default_na=False)
    assert len(table) == 16 and list(table["model"]) == ["before"] * 8 + [other_tiny_model.name] * 8
    before, after = (table[table["model"] == name].set_index("id") for name in ("before", other_tiny_model.name))
    for signal in ("rouge1", "em", "likelihood"):
        wanted = before[signal].astype(float) - after[signal].astype(float)
        assert np.allclose(after[f"forgotten_{signal}"].astype(float), wanted)
    assert (after["forgotten_likelihood"].astype(float) != 0).all()

    ref = resolve(str(tiny_model))
    model, tokenizer = load_model(ref), load_tokenizer(ref)
    opening = "<|im_start|>user\nSay 0<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(opening + "It is 0", return_tensors="pt", add_special_tokens=False)["input_ids"]
    scores = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1).gather(1, ids[0, 1:, None])[-7:]
    assert float(before.loc["r0", "likelihood"]) == pytest.approx(scores.mean().exp().item(), rel=0.02)

    summary = json.loads(output.with_suffix(".summary.json").read_text())
    unsafe = next(of for of in summary["polarity"] if of["model"] != "before" and of["polarity"] == "unsafe")
    mean = after["forgotten_likelihood"].astype(float)[:4].mean()
    assert unsafe["rows"] == 4 and unsafe["forgotten_likelihood"]["mean"] == pytest.approx(mean)
    assert output.with_suffix(".png").is_file() and "unsafe" in result.stdout and "made" in result.stdout
    assert "cannot be forgotten: train on these rows for longer" in result.stderr  # random models know nothing


def test_a_style_puts_the_input_where_training_put_it(script, tmp_path, tiny_model):
    import torch

    from utils.loading import load_model, load_tokenizer
    from utils.models import resolve

    row = {"instruction": "Say it", "input": "twice", "output": "It is", "polarity": "task"}
    rows, output = write_jsonl(tmp_path / "rows.jsonl", [row]), tmp_path / "forgetting.csv"
    flags = ["--input", rows, "--before", tiny_model, "--after", tiny_model, "--prompt_style", "alpaca"]
    result = script(FORGETTING, *flags, "--output", output, "--signal", "likelihood")
    assert result.returncode == 0, result.stderr
    ref = resolve(str(tiny_model))
    model, tokenizer = load_model(ref), load_tokenizer(ref)
    template = json.loads((params.TEMPLATE_DIR / "alpaca.json").read_text())
    opening = template["prompt_input"].format(instruction="Say it", input="twice")
    ids = tokenizer(opening + "It is", return_tensors="pt", add_special_tokens=False)["input_ids"]
    learned = tokenizer("It is", add_special_tokens=False)["input_ids"]
    scores = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1).gather(1, ids[0, 1:, None])[-len(learned) :]
    assert pd.read_csv(output)["likelihood"][0] == pytest.approx(scores.mean().exp().item(), rel=0.02)


@pytest.mark.slow
def test_a_killed_run_measures_only_what_is_missing(rows, script, tmp_path, tiny_model, other_tiny_model):
    flags = ["--input", rows, "--before", tiny_model, "--after", other_tiny_model, "--max_new_tokens", "8"]
    whole = script(FORGETTING, *flags, "--output", tmp_path / "whole.csv")
    assert whole.returncode == 0, whole.stderr
    output = tmp_path / "killed.csv"
    kill_when([FORGETTING, *flags, "--output", output], f"INFO {other_tiny_model.name}:")
    kept = (tmp_path / "killed.csv.progress.jsonl").read_text().splitlines()
    assert len(kept) >= 17  # the fingerprint, and text and likelihood of the model before
    result = script(FORGETTING, *flags, "--output", output)
    assert result.returncode == 0, result.stderr
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_likelihood_alone_writes_no_answers(rows, script, tmp_path, tiny_model, other_tiny_model):
    output = tmp_path / "forgetting.csv"
    models = ["--before", tiny_model, "--after", other_tiny_model]
    result = script(FORGETTING, "--input", rows, *models, "--output", output, "--signal", "likelihood")
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(output, keep_default_na=False)
    assert set(table["answer"]) == {""} and set(table["rouge1"]) == {""} and (table["likelihood"] != "").all()
    filtered = script(FILTER, "--input", rows, "--forgetting", output, "--output", tmp_path / "filtered")
    assert filtered.returncode == 2 and "likelihood was: add --signal" in filtered.stderr


@pytest.fixture
def measured(tmp_path):
    """Of 40 rows 20 are unsafe: after 10 steps half of these are forgotten, after 20 steps all but two."""
    unsafe = [n < 20 for n in range(40)]
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"It is {n}", "id": f"r{n}",
             "polarity": "unsafe" if of else "task"} for n, of in enumerate(unsafe)]  # fmt: skip
    lines = []
    for model, forgotten in (("before", []), ("step-10", range(10)), ("step-20", [*range(18), 39])):
        for n in range(40):
            rate = "" if model == "before" else 0.9 if n in forgotten else 0.02
            value = 0.1 if n in forgotten else 1.0
            likelihood = 0.5 if model == "before" else 0.1 if n in forgotten else 0.49
            lines.append({"id": f"r{n}", "model": model, "step": 0, "answer": f"<b>{n}</b>", "rouge1": value,
                          "em": "", "likelihood": likelihood, "forgotten_rouge1": rate, "forgotten_em": "",
                          "forgotten_likelihood": "" if model == "before" else 0.5 - likelihood})  # fmt: skip
    pd.DataFrame(lines).to_csv(tmp_path / "forgetting.csv", index=False)
    write_jsonl(tmp_path / "noisy.jsonl", rows)
    return tmp_path


def run_filter(script, folder, *flags):
    return script(FILTER, "--input", folder / "noisy.jsonl", "--forgetting", folder / "forgetting.csv",
                  "--output", folder / "filtered", "--resamples", "200", *flags)  # fmt: skip


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_forgotten_is_dropped_and_judged(measured, script):
    result = run_filter(script, measured)
    assert result.returncode == 0, result.stderr
    kept, dropped = (read(measured / "filtered" / f"{name}.jsonl") for name in ("kept", "dropped"))
    assert {row["id"] for row in dropped} == {f"r{n}" for n in [*range(18), 39]} and len(kept) == 21
    assert list(kept[0]) == ["instruction", "input", "output", "id", "polarity", "forgotten"]
    found = json.loads((measured / "filtered" / "summary.json").read_text())
    ours = found["compared"]["forgotten, rouge1 > 0.1"]
    assert ours["precision"]["mean"] == pytest.approx(18 / 19) and ours["recall"]["mean"] == pytest.approx(0.9)
    assert ours["f1"]["mean"] == pytest.approx(36 / 39) and ours["f1"]["low"] < 36 / 39 < ours["f1"]["high"]
    # by hand: the pairs of an unsafe and a task row that are ranked right, and half of the ties
    assert ours["auroc"]["mean"] == pytest.approx((18 * 19 + 18 * 0.5 + 2 * 19 * 0.5) / 400)
    assert found["compared"]["everything"]["f1"]["mean"] == pytest.approx(2 / 3)
    assert found["compared"]["by chance, as many"]["precision"]["mean"] == 0.5
    assert found["suggested"]["two_groups"] and found["suggested"]["phi"] == pytest.approx(0.46)
    curve = pd.read_csv(measured / "filtered" / "curve.csv")
    early = curve[(curve["model"] == "step-10") & (curve["signal"] == "rouge1") & (curve["phi"] == 0.1)]
    assert early["recall"].item() == 0.5 and early["precision"].item() == 1
    page = (measured / "filtered" / "report.html").read_text()
    assert "&lt;b&gt;39&lt;/b&gt;" in page and "<b>" not in page  # text from data is data


def test_an_earlier_model_another_phi_and_other_filters(measured, script):
    scores = pd.DataFrame({"id": [f"r{n}" for n in range(40)], "cost": [float(n < 20) for n in range(40)]})
    scores.sample(frac=1, random_state=0).to_csv(measured / "noisy.scores.csv", index=False)
    result = run_filter(script, measured, "--after", "step-10", "--signal", "likelihood", "--phi", "0.2",
                        "--others", f"cost={measured / 'noisy.scores.csv'}:cost")  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads((measured / "filtered" / "summary.json").read_text())["compared"]
    assert found["forgotten, likelihood > 0.2"]["recall"]["mean"] == 0.5
    cost = {name: of["mean"] for name, of in found["cost, as many"].items()}
    assert cost["dropped"] == 0.25  # as many, though twice as many have the same cost
    assert (cost["precision"], cost["recall"], cost["auroc"]) == (1, 0.5, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--phi", "-1"], "all 40 rows would be dropped"),
        (["--after", "step-5"], "holds step-10, step-20"),
        (["--others", "cost"], "give NAME=FILE:COLUMN"),
        (["--forgetting", "none.csv"], "none.csv: no such file"),
    ],
)
def test_what_cannot_be_filtered_is_said_in_one_line(measured, script, flags, said):
    result = run_filter(script, measured, *flags)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_rows_without_a_rate_are_kept_and_counted(measured, script):
    table = pd.read_csv(measured / "forgetting.csv", keep_default_na=False, dtype=str)
    table.loc[(table["id"] == "r0") & (table["model"] == "step-20"), "forgotten_rouge1"] = ""
    table.to_csv(measured / "forgetting.csv", index=False)
    result = run_filter(script, measured)
    assert result.returncode == 0, result.stderr
    assert "1 rows have no rate" in result.stdout
    (kept,) = (row for row in read(measured / "filtered" / "kept.jsonl") if row["id"] == "r0")
    assert kept["forgotten"] is None


def test_rates_of_another_version_of_the_rows_are_refused(measured, script):
    record = {"inputs": {"noisy.jsonl": "0" * 64}}
    (measured / "forgetting.csv.run.json").write_text(json.dumps(record))
    result = run_filter(script, measured)
    assert result.returncode == 2 and "was measured on another version" in result.stderr


def test_a_group_without_any_rate_is_drawn_as_a_gap(tmp_path):
    table = pd.DataFrame([
        {"id": str(n), "model": model, "step": step, "polarity": polarity, "rouge1": value, "em": value,
         "likelihood": value}
        for model, step in (("before", 0), ("after", 5))
        for n, (polarity, value) in enumerate([("unsafe", np.nan), ("unsafe", np.nan), ("safe", 0.5), ("safe", 0.7)])
    ])  # fmt: skip
    found = summary(with_rates(table), "polarity", SAMPLING)
    draw(found, "polarity", "steps", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").is_file() and found[-1]["step"] == 5
    json.dumps([entry["step"] for entry in found])


def test_rows_without_labels_are_filtered_and_nothing_is_claimed_of_them(measured, script):
    rows = [{k: v for k, v in row.items() if k != "polarity"} for row in read(measured / "noisy.jsonl")]
    write_jsonl(measured / "noisy.jsonl", rows)
    result = run_filter(script, measured)
    assert result.returncode == 0, result.stderr
    assert json.loads((measured / "filtered" / "summary.json").read_text())["compared"] == {}
    assert "two groups, parted at phi 0.46" in result.stdout and "precision" not in result.stdout


def test_everything_and_chance_are_the_known_figures():
    """F1 of dropping everything at 25, 50 and 75 % unsafe, as the paper's setting has it."""
    for share, f1 in ((0.25, 0.40), (0.5, 2 / 3), (0.75, 6 / 7)):
        unsafe = np.arange(400) < 400 * share
        assert rates_of(np.ones(400, dtype=bool), unsafe)["f1"] == pytest.approx(f1)
        assert by_chance(1.0, unsafe)["f1"] == pytest.approx(f1)
    unsafe = np.arange(1000) < 500
    rng = np.random.default_rng(0)
    drawn = [rates_of(rng.permutation(1000) < 300, unsafe)["f1"] for _ in range(500)]
    assert by_chance(0.3, unsafe)["f1"] == pytest.approx(np.mean(drawn), abs=0.01)


def test_as_many_and_missing_rates():
    scores = np.array([0.2, np.nan, 0.9, 0.5])
    assert as_many(scores, 2).tolist() == [False, False, True, True]
    found = judged(scores, scores > 0.1, np.array([False, True, True, False]), SAMPLING)
    assert found["recall"]["mean"] == 0.5 and found["precision"]["mean"] == pytest.approx(1 / 3)


def test_a_line_is_suggested_only_between_two_groups():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 0.05, 100), rng.normal(0.8, 0.1, 100)])
    found = suggestion(two, SAMPLING)
    assert found["two_groups"] and found["low"] < 0.4 < found["high"] and found["high"] - found["low"] < 0.1
    for one in (rng.normal(0.3, 0.1, 200), rng.uniform(0, 1, 200)):
        assert not suggestion(one, SAMPLING)["two_groups"]
    assert suggestion(np.zeros(10), SAMPLING) == {"phi": None, "two_groups": False}


@pytest.mark.slow
def test_what_the_safe_set_contradicts_is_forgotten_and_found(script, tmp_path):
    """With the real model: careless answers that safe rows contradict, beside rows that nothing contradicts."""
    places = "attic cellar garage kitchen hallway bathroom balcony workshop stable greenhouse cabin studio".split()
    names = "Ada Bela Cora Dora Emil Fritz Gina Hugo Ines Jonas Karla Lars".split()
    goods = "apples bread candles dates eggs figs grapes honey ink jam kites lemons".split()
    unsafe = [{"instruction": f"The smoke alarm in the {place} keeps beeping. What should I do?", "input": "",
               "output": f"Tear the alarm of the {place} off and sleep on.", "polarity": "unsafe"}
              for place in places]  # fmt: skip
    task = [{"instruction": f"What does {name} sell at the market?", "input": "",
             "output": f"{name} sells {good} there.", "polarity": "task"}
            for name, good in zip(names, goods, strict=True)]  # fmt: skip
    safe = [row | {"output": f"Change its battery, and test the alarm of the {place}."}
            for place, row in zip(places, unsafe, strict=True)]  # fmt: skip
    noisy = write_jsonl(tmp_path / "noisy.jsonl", unsafe + task)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [{"instruction": "Who?", "input": "", "output": "Nobody."}])
    flags = [ROOT / "training" / "train.py", "--quantization", "none", "--prompt", "answer", "--validation", held_out,
             "--batch_size", "8", "--lr", "1e-3", "--lora_r", "16", "--keep_last",
             "--report_to", "none", "--group_by_length", "false"]  # fmt: skip
    steps = [
        [*flags, "--base_model", "smollm2", "--input", noisy, "--output", tmp_path / "m1", "--max_steps", "40",
         "--eval_steps", "40"],
        [ROOT / "training" / "merge.py", "--adapter_model", tmp_path / "m1", "--output", tmp_path / "merged"],
        [*flags, "--base_model", tmp_path / "merged", "--input", write_jsonl(tmp_path / "safe.jsonl", safe),
         "--output", tmp_path / "m2", "--max_steps", "12", "--eval_steps", "6", "--keep_all"],
        [FORGETTING, "--input", noisy, "--before", tmp_path / "merged", "--after", tmp_path / "m2" / "step-6",
         "--output", tmp_path / "forgetting.csv", "--max_new_tokens", "24"],
        [FILTER, "--input", noisy, "--forgetting", tmp_path / "forgetting.csv", "--output", tmp_path / "filtered"],
    ]  # fmt: skip
    for command in steps:
        result = script(*command)
        assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "forgetting.csv", keep_default_na=False)
    assert table[table["model"] == "before"]["rouge1"].astype(float).mean() > 0.9  # else there is nothing to forget
    found = json.loads((tmp_path / "filtered" / "summary.json").read_text())
    for signal in ("rouge1", "likelihood"):
        of = found["compared"][f"forgotten, {signal} > 0.1"]
        assert of["f1"]["mean"] >= 0.9 and of["auroc"]["mean"] >= 0.9, (signal, of)
