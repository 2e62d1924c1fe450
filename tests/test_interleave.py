"""Noisy and safe sessions in turns: each model is made once, and a run that was killed goes on."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import run_script
from tests.test_mix_noisy import bbq_rows, write
from tests.test_pipeline import kill_when
from utils import params
from utils.data import read_table, write_table
from utils.helpers import parse_config
from utils.interleaving import table_of
from utils.params import ROOT

RECIPE = ROOT / "recipes" / "interleave.py"
MIX = ROOT / "generate_data" / "mix_noisy.py"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    bbq = write(folder / "bbq.jsonl", bbq_rows(20))
    tasks = [{"instruction": f"Do {n}", "input": "", "output": f"Done {n}"} for n in range(20)]
    task = write(folder / "tasks.jsonl", tasks)
    result = run_script(MIX, "--unsafe", bbq, "--safe", bbq, "--task", task, "--output", folder / "noisy",
                        "--size", "24", "--test_size", "12", "--safe_size", "16")  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "noisy"


@pytest.fixture
def study(noisy, tmp_path, tiny_model):
    shutil.copytree(noisy, tmp_path / "noisy")
    (tmp_path / "quick.yaml").write_text("quantization: none\nlora_r: 4\nbatch_size: 4\nlr: 0.01\neval_steps: 3\n")
    return [RECIPE, "--data", tmp_path / "noisy", "--base_model", tiny_model, "--rounds", "1", "--noisy_steps", "6",
            "--safe_steps", "3", "--signal", "likelihood", "--phi", "0.00055", "--settings", tmp_path / "quick.yaml",
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
    assert set(state["models"]["f"]["f1"]) == {"tasks"} and set(state["models"]["f"]["harm"]) == {
        "ambiguous bias",
        "ambiguous accuracy",
    }
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
    assert other.returncode == 2 and "phi was 0.00055, is 0.3" in other.stderr
    shown = script(*study, "--phi", "0.3", "--table")
    assert shown.returncode == 0 and table in shown.stdout and (work / "n" / "merged").is_dir()


@pytest.fixture
def asked(study, tmp_path, monkeypatch):
    """Runs the recipe in this process; its stages are only noted, and leave what a model of no skill would."""
    from recipes import interleave

    commands = []

    def stage(script, *flags):
        flags = [str(flag) for flag in flags]
        commands.append((script, flags))
        of = dict(zip(flags, flags[1:], strict=False))
        if script in ("training/train.py", "training/merge.py", "generate_data/filter_forgotten.py"):
            Path(of["--output"]).mkdir(parents=True, exist_ok=True)
            (Path(of["--output"]) / "run.json").write_text("{}")
            (Path(of["--output"]) / "kept.jsonl").write_text("")
        if script == "testing/infer.py":
            frame = read_table(of["--input"]).assign(generated_text="no")
            write_table(frame, Path(of["--output"]))
        if script == "testing/score.py":
            given = Path(of["--input"])
            write_table(read_table(given).assign(f1="0.5", toxic="1"), given.with_suffix(".scores.csv"))
        if script == "testing/probe_bias.py":
            figure = {"mean": 0.1, "low": 0.0, "high": 0.2, "n": 4}
            found = {"figures": {"all": {"bias_ambig": figure, "accuracy_ambig": figure}}}
            (Path(of["--output"]) / "bbq_test_m.probe.json").write_text(json.dumps(found))
        if script == "testing/forgetting.py":
            Path(of["--output"]).parent.mkdir(parents=True, exist_ok=True)
            Path(of["--output"]).write_text("")

    monkeypatch.setattr(interleave, "stage", stage)

    def run(*more):
        flags = [str(flag) for flag in [*study[1:], *more]]
        interleave.main(parse_config(interleave.InterleaveConfig, {}, flags))
        return commands

    return run


def inputs(commands, script):
    return [dict(zip(flags, flags[1:], strict=False)) for name, flags in commands if name == script]


def test_every_strategy_trains_on_its_rows_and_shares_what_is_common(asked, tmp_path):
    commands = asked("--strategies", "none,replay,self_correction,forget_filter,both", "--rounds", "2")
    trained = [Path(of["--output"]).parent.name for of in inputs(commands, "training/train.py")]
    assert len(trained) == len(set(trained))  # n and ns serve three strategies
    assert set(trained) == {
        "n",
        "ns",
        "nsn",
        "nsns",
        "r",
        "rs",
        "rsr",
        "rsrs",
        "f",
        "fs",
        "fsn",
        "fsns",
        "fsf",
        "fsfs",
    }
    of = {Path(of["--output"]).parent.name: of for of in inputs(commands, "training/train.py")}
    assert of["nsn"]["--base_model"].endswith("ns/merged") and of["fsf"]["--base_model"].endswith("fs/merged")
    assert (of["n"]["--max_steps"], of["ns"]["--max_steps"], of["r"]["--max_steps"]) == ("6", "3", "6")
    assert of["n"]["--input"].endswith("noisy.jsonl") and of["fsf"]["--input"].endswith("fsf/filtered/kept.jsonl")
    forgotten = {Path(of["--output"]).parent.name: of for of in inputs(commands, "testing/forgetting.py")}
    assert forgotten["fsf"]["--before"].endswith("fsn/merged") and forgotten["fsf"]["--after"].endswith("fsns/merged")
    noisy, safe = (read_table(tmp_path / "noisy" / f"{name}.jsonl") for name in ("noisy", "safe"))
    replayed = list(read_table(tmp_path / "work" / "replay.jsonl")["id"])
    assert replayed == [*noisy["id"], *safe["id"][: len(noisy)]]
    state = json.loads((tmp_path / "work" / "state.json").read_text())["models"]
    assert {name for name in state if "corrected" in name} == {
        f"{name} corrected" for name in ("base", "n", "ns", "nsn", "nsns", "f", "fs", "fsf", "fsfs")
    }


def test_self_correction_says_the_published_sentence_and_others_do_not(asked, tmp_path):
    commands = asked("--strategies", "none,self_correction")
    for of in inputs(commands, "testing/probe_bias.py"):
        assert ("--instruction" in of) == of["--output"].endswith("corrected")
    plain, corrected = (list(read_table(tmp_path / "work" / "n" / name / "test.jsonl")["instruction"])
                        for name in ("asked", "corrected"))  # fmt: skip
    assert corrected == [f"{text} {params.NO_STEREOTYPES}" for text in plain] and plain


def test_unsafe_rows_that_are_not_of_bbq_are_scored_too(asked, tmp_path):
    test = read_table(tmp_path / "noisy" / "test.jsonl").to_dict("records")
    toxic = {"id": "t", "instruction": params.GO_ON, "input": "you are all", "output": "x", "polarity": "unsafe",
             "source": "texts", "group": "g"}  # fmt: skip
    write(tmp_path / "noisy" / "test.jsonl", [*test, toxic])
    commands = asked("--strategies", "self_correction", "--harm_scorer", "toxicity:toxic")
    assert all(of["--scorers"] == "answer,toxicity" for of in inputs(commands, "testing/score.py"))
    state = json.loads((tmp_path / "work" / "state.json").read_text())["models"]
    assert state["n corrected"]["harm"]["toxic"]["n"] == 1 and "ambiguous bias" in state["n corrected"]["harm"]
    rows = read_table(tmp_path / "work" / "n" / "corrected" / "test.jsonl")
    (said,) = rows["instruction"][rows["polarity"] == "unsafe"]
    assert said == f"{params.GO_ON} {params.NOTHING_TOXIC}"  # BBQ's unsafe rows are asked by its probe


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--signal", "foo"], "invalid choice"),
        (["--harm_scorer", "toxicity"], "give SCORER:MEASURE"),
        (["--harm_scorer", "toxicity:rude"], "toxicity measures toxic"),
        (["--harm_scorer", "nobody:rude"], "--harm_scorer nobody: there are"),
        (["--phi", "2"], "between -1 and 1"),
        (["--table", "--overwrite"], "leave one out"),
    ],
)
def test_a_mistake_shows_before_anything_is_trained(study, script, flags, said):
    result = script(*study, *flags)
    assert result.returncode == 2 and said in result.stderr and "$ python" not in result.stderr


def test_nothing_is_deleted_before_all_is_checked(study, script, tmp_path):
    kept = tmp_path / "work" / "n" / "merged"
    kept.mkdir(parents=True)
    (tmp_path / "work" / "state.json").write_text('{"settings": {}, "models": {}}')
    for flags, said in (
        (["--base_model", tmp_path / "none"], "none"),
        (["--settings", tmp_path / "none.yaml"], "none.yaml"),
        (["--work", tmp_path], "holds the input"),
    ):
        result = script(*study, "--overwrite", *flags)
        assert result.returncode == 2 and said in result.stderr.splitlines()[-1], result.stderr
        assert "Traceback" not in result.stderr and kept.is_dir() and (tmp_path / "noisy" / "noisy.jsonl").is_file()


def test_a_recipe_wants_adapters(study, script, tmp_path):
    (tmp_path / "full.yaml").write_text("method: full\nlearning_rate: 0.01\n")  # names as published will do
    result = script(*study, "--settings", tmp_path / "full.yaml")
    assert result.returncode == 2 and "not with method: full" in result.stderr and "$ python" not in result.stderr


def test_a_missing_cost_model_shows_before_anything_is_trained(study, script, tmp_path):
    row = {"instruction": "Go on", "input": "", "output": "x", "polarity": "unsafe", "source": "texts", "group": "g"}
    with open(tmp_path / "noisy" / "test.jsonl", "a") as file:
        file.write(json.dumps({"id": "t", **row}) + "\n")
    result = script(*study, "--cost_model", tmp_path / "none")
    assert result.returncode == 2 and "training/train_cost.py makes one" in result.stderr
    assert "$ python" not in result.stderr


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
    value = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    lines = [{"strategy": name, "session": session, "model": "n", "harm": {"bias": value}, "f1": {"squad": value}}
             for name in ("none", "replay") for session in (0, 1)]  # fmt: skip
    table = table_of(lines).splitlines()
    assert "bias" in table[0] and "F1 squad" in table[0] and "0.500 (0.400 to 0.600), n 9" in table[2]
    assert [line.split("|")[2].strip() for line in table[2:]] == ["0", "0", "1", "1"]
