"""The Ray recipe on a real cluster on this machine, and its worker by itself."""

import importlib.util
import json

import pandas as pd
import pytest

from utils.data import read_table
from utils.params import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"
)
RECIPE = ROOT / "recipes" / "infer_ray.py"


@pytest.fixture
def worker(tiny_model):
    from recipes.infer_ray import RayConfig, Worker
    from utils.models import resolve

    config = RayConfig(input_column="text", max_new_tokens=3, max_prompt_tokens=500)
    return Worker(config, resolve(str(tiny_model)), "rewrite", threads=1)


def test_rows_that_cannot_be_answered_are_kept_with_a_reason(worker):
    batch = pd.DataFrame({"text": ["a row", None, 7, " ", "long " * 200, "x" * 30_000], "status": list("abcdef")})
    answered = worker(batch)
    assert list(answered["status"]) == ["truncated", "failed", "failed", "failed", "too_long", "failed"]
    assert list(answered["error"]) == ["", "no text", "not a text but int", "no text", "",
                                       "30,000 characters, at most 20,000"]  # fmt: skip
    assert list(answered["input_status"]) == list("abcdef") and answered["generated_text"][0]
    assert answered["id"].str.len().eq(12).all()
    odd = worker(pd.DataFrame({"text": [pd.NA, float("nan"), ["a"], "a row"], "id": [1, 2, 3, 4]}))
    assert list(odd["error"]) == ["no text", "no text", "not a text but list", ""] and list(odd["id"]) == [1, 2, 3, 4]


def test_a_row_that_the_model_fails_on_does_not_take_the_others_with_it(worker, monkeypatch):
    plain = worker.rewrite

    def rewrite(texts):
        if "poison" in texts.values():
            raise RuntimeError("out of\nmemory")
        return plain(texts)

    monkeypatch.setattr(worker, "rewrite", rewrite)
    answered = worker(pd.DataFrame({"text": ["one", "poison", "two"]}))
    assert list(answered["status"]) == ["truncated", "failed", "truncated"]
    assert list(answered["error"]) == ["", "RuntimeError: out of memory", ""]


@pytest.mark.slow
def test_all_formats_through_a_real_cluster(tiny_model, script, tmp_path):
    """CSV in and JSONL out, JSONL in and Parquet out, Parquet in and CSV out: each row once, cells untouched."""
    frame = pd.DataFrame(
        {"text": [f'Row {n}, "quoted"\nand NA' if n % 3 else "" for n in range(40)], "n": [f"0{n}" for n in range(40)]}
    )
    folder = tmp_path / "csv"
    folder.mkdir()
    frame[:25].to_csv(folder / "a.csv", index=False)
    frame[25:].assign(zip="00750").to_csv(folder / "b.csv", index=False)
    flags = ["--input_column", "text", "--base_model", tiny_model, "--max_new_tokens", 3, "--rows_at_once", 8]
    source = folder
    for kind in ("jsonl", "parquet", "csv"):
        output = tmp_path / f"out-{kind}"
        workers = 5 if kind == "jsonl" else 1  # more than there are CPUs
        command = [RECIPE, "--input", source, "--output", output, "--format", kind, "--workers", workers, *flags]
        result = script(*command, env={"PYTHONPATH": ""})  # the guard of the network keeps Ray from finding itself
        assert result.returncode == 1, result.stderr  # a third of the rows hold no text
        assert "26 truncated, 14 failed of 40 rows" in result.stdout
        assert json.loads((output / "run.json").read_text())["counts"] == {"truncated": 26, "failed": 14}
        files = sorted(path for path in output.iterdir() if path.name != "run.json")
        found = pd.concat(
            [pd.read_parquet(path) if kind == "parquet" else read_table(path) for path in files], ignore_index=True
        ).sort_values("n", key=lambda n: n.astype(int))
        assert list(found["text"]) == list(frame["text"]) and list(found["n"]) == list(frame["n"])
        assert set(found["error"]) == {"", "no text"} and found["generated_text"].ne("").sum() == 26
        assert set(found["zip"].dropna()) - {""} == {"00750"}
        source = output / f"*.{kind}" if kind != "csv" else output


def test_mistakes_are_one_line_and_the_input_is_never_replaced(tiny_model, script, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.csv").touch()
    (tmp_path / "b[1].csv").write_text("text\na\n")
    flags = ["--input_column", "text", "--base_model", tiny_model]
    for source, output, said in (
        (tmp_path / "nowhere", tmp_path / "x", "no .csv, .parquet or .jsonl file"),
        (tmp_path / "empty", tmp_path / "x", "a.csv is empty"),
        (tmp_path / "b[1].csv", tmp_path, "holds the input: name another folder"),
    ):
        result = script(RECIPE, "--input", source, "--output", output, "--overwrite", *flags)
        assert result.returncode == 2 and said in result.stderr.splitlines()[-1], result.stderr
    assert (tmp_path / "b[1].csv").read_text() == "text\na\n"


def test_what_is_missing_is_named(script, tmp_path):
    """Ray is hidden from the process."""
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')\n")
    result = script(RECIPE, "--input", "x.csv", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2 and "pip install -r requirements-ray.txt" in result.stderr.splitlines()[-1]
