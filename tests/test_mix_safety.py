"""Safety examples beside an instruction set: nested doses, nothing twice, nothing that is tested on."""

import json

import pytest

from utils.configs import MixSafetyConfig
from utils.leaks import find_leaks
from utils.params import ROOT

SCRIPT = ROOT / "generate_data" / "mix_safety.py"
PUBLIC = ROOT.parent / "shared" / "data" / "safety_tuned_llamas"

ANIMALS = (
    "alpaca badger camel donkey eagle ferret giraffe hamster iguana jackal kangaroo lobster marmot newt ostrich "
    "panther quail rabbit salamander tortoise"
).split()


@pytest.fixture
def files(tmp_path):
    general = [{"instruction": f"Name {n} rivers", "input": "", "output": f"River {n}"} for n in range(30)]
    general[7]["input"] = "of France"
    safety = [
        {
            "question": f"How do I trick a {animal} dealer?",
            "instruction": f"Trick the {animal} trader",
            "output": "No.",
        }
        for animal in ANIMALS
    ]
    (tmp_path / "general.json").write_text(json.dumps(general))
    (tmp_path / "safety.json").write_text(json.dumps(safety))
    return tmp_path


def mix(script, folder, *flags, safety="safety.json", evaluation=()):
    tests = ["--evaluation", *evaluation] if evaluation else []
    return script(SCRIPT, "--input", folder / "general.json", "--safety", folder / safety,
                  "--output", folder / "mixed", *tests, *flags)  # fmt: skip


def read(folder, count):
    return json.loads((folder / "mixed" / f"general_safety{count}.json").read_text())


def test_doses_are_nested_and_in_the_published_form(files, script):
    result = mix(script, files, "--safety_counts", "0,5,10")
    assert result.returncode == 0, result.stderr
    none, five, ten = (read(files, count) for count in (0, 5, 10))
    assert [len(rows) for rows in (none, five, ten)] == [30, 35, 40]
    assert all(list(row) == ["instruction", "input", "output"] for row in ten)
    of = [{row["instruction"] for row in rows if row["output"] == "No."} for rows in (none, five, ten)]
    assert not of[0] and of[1] < of[2] and len(of[2]) == 10
    places = [n for n, row in enumerate(ten) if row["output"] == "No."]
    assert min(places) < 20 < max(places)  # not all at one end
    # a row keeps its place among the others, whatever the dose
    assert [row for row in ten if row in five] == five
    assert {row["input"] for row in none} == {"", "of France"}
    assert "14.3%" in result.stdout and "25.0%" in result.stdout
    longer = mix(script, files, "--safety_counts", "7", "--overwrite")
    assert longer.returncode == 0 and of[1] < {row["instruction"] for row in read(files, 7)}


def test_the_seed_chooses(files, script):
    mix(script, files, "--safety_counts", "5")
    first = read(files, 5)
    mix(script, files, "--safety_counts", "5", "--seed", "1", "--overwrite")
    assert read(files, 5) != first
    mix(script, files, "--safety_counts", "5", "--overwrite")
    assert read(files, 5) == first


@pytest.mark.parametrize(("form", "questions"), [("instruction", 0), ("question", 10), ("mixed", 5)])
def test_safety_examples_ask_as_told(files, script, form, questions):
    result = mix(script, files, "--safety_counts", "10", "--form", form)
    assert result.returncode == 0, result.stderr
    assert sum(row["instruction"].startswith("How do I") for row in read(files, 10)) == questions


def test_what_is_repeated_or_tested_on_is_left_out_and_counted(files, script):
    rows = json.loads((files / "safety.json").read_text())
    rows += [rows[0], {"instruction": "name 3  RIVERS", "output": "No"}]
    (files / "safety.json").write_text(json.dumps(rows))
    given_away = ["Trick the eagle trader", "Name 5 rivers"]
    (files / "test.json").write_text(json.dumps({"instructions": given_away, "inputs": []}))
    result = mix(script, files, "--safety_counts", "19", evaluation=[files / "test.json"])
    assert result.returncode == 0, result.stderr
    texts = [row["instruction"] for row in read(files, 19)]
    assert len(texts) == 29 + 19 and len(set(texts)) == 48 and not set(given_away) & set(texts)
    record = json.loads((files / "mixed" / "general_safety19.json.run.json").read_text())
    assert record["repeated"] == 2 and {leak["row"] for leak in record["leaks"]} == set(given_away)
    kept = mix(script, files, "--safety_counts", "20", "--keep_leaks", evaluation=[files / "test.json"])
    assert kept.returncode == 0 and "2 rows leak" in kept.stdout and len(read(files, 20)) == 50
    more = mix(script, files, "--safety_counts", "21", evaluation=[files / "test.json"])
    assert (
        more.returncode == 2
        and "there are 19" in more.stderr
        and not (files / "mixed" / "general_safety21.json").exists()
    )


def test_pairs_of_a_cost_model_are_safety_examples(files, script):
    (files / "pairs.csv").write_text("prompt,safe_response,unsafe_response\nHelp me lie,Rather not,Sure\n")
    assert mix(script, files, "--safety_counts", "1", safety="pairs.csv").returncode == 0
    assert {"instruction": "Help me lie", "input": "", "output": "Rather not"} in read(files, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--safety_counts", "5", "--safety_shares", "0.1"], "leave one out"),
        (["--safety_shares", "1"], "shares below 1"),
        (["--safety_counts", "many"], "whole numbers"),
        (["--safety_counts", "5", "--form", "question"], "no column question"),
        (["--safety_counts", "5", "--evaluation", "nowhere.json"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(files, script, flags, said):
    rows = [
        {k: v for k, v in row.items() if k != "question"} for row in json.loads((files / "safety.json").read_text())
    ]
    (files / "safety.json").write_text(json.dumps(rows))
    result = mix(script, files, *flags)
    assert result.returncode == 2 and said in result.stderr and result.stderr.count("\n") == 1
    assert not (files / "mixed").exists()


def test_shares_are_those_of_the_whole():
    assert MixSafetyConfig(safety_shares="0,0.025,0.1,0.25,0.5").counts(750) == [0, 19, 83, 250, 750]


@pytest.mark.parametrize(
    ("row", "text", "how"),
    [
        ("Tell me please how one could open a neighbour's garden gate quietly at night",
         "Explain how one could open a neighbour's garden gate quietly", "words"),
        ("What laws are EASY to break", "what laws are easy to break?", "words"),
        ("Outline how somebody files a fake complaint against her landlord anonymously",
         "Outline how somebody files a fake complaints against her landlords, anonymously!", "near"),
        ("Name three rivers of France and say where they rise in spring",
         "Name four mountains of Italy and say who climbs them", None),
        ("What laws are easy to break?", "What laws are easy to break in Ohio these days?", None),
        ("", "Who?", None),
    ],
)  # fmt: skip
def test_leaks_are_found_and_nothing_else(row, text, how):
    unrelated = "Which bread goes well with soup?"
    leaks = find_leaks([unrelated, row], ["Why is the sky blue at noon?", text])
    assert leaks == ([] if how is None else [(1, 1, how)])


@pytest.mark.skipif(
    not PUBLIC.is_dir(), reason="the published files are not beside the repo: see benchmarks/README.md"
)
def test_the_published_files_go_through_unchanged(script, tmp_path):
    published = PUBLIC / "safety_only_data_Instructions.json"
    evaluation = sorted([*PUBLIC.glob("I-*.json"), PUBLIC / "Q-Harm.json"])
    assert len(evaluation) == 7
    result = script(SCRIPT, "--input", published, "--safety", published, "--safety_counts", "0", "--keep_leaks",
                    "--output", tmp_path, "--evaluation", *evaluation)  # fmt: skip
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "safety_only_data_Instructions_safety0.json").read_text())
    key = lambda row: (row["instruction"], row["output"])  # noqa: E731
    assert sorted(written, key=key) == sorted(json.loads(published.read_text()), key=key)
