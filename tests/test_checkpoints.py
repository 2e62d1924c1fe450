"""A run that was stopped goes on from its newest complete checkpoint, to the same weights as one that was not."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.checkpoints import MARKER, damage, mark_complete, newest_usable
from utils.configs import TrainConfig
from utils.params import ROOT
from utils.records import file_sha256

TRAIN = ROOT / "training" / "train.py"
SETTINGS = ["--lora_r", 4, "--batch_size", 4, "--epochs", 6, "--eval_steps", 3, "--quantization", "none"]
SETTINGS += ["--compute_dtype", "float32", "--lora_dropout", 0.1, "--patience", 0, "--report_to", "none"]


def make_checkpoint(folder, step, best=None):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"w" * step)
    best_path = str(folder / f"checkpoint-{best}") if best else None
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best_path}))
    mark_complete(checkpoint)
    return checkpoint


def test_the_newest_complete_checkpoint_is_found_by_number(tmp_path):
    make_checkpoint(tmp_path, 9)
    newest = make_checkpoint(tmp_path, 10)
    assert newest_usable(tmp_path) == newest and newest_usable(tmp_path / "nowhere") is None


@pytest.mark.parametrize("how", ["delete", "cut", "change", "empty"])
@pytest.mark.parametrize("name", ["weights", "trainer_state.json", MARKER])
def test_a_damaged_file_makes_its_checkpoint_unusable(tmp_path, how, name, caplog):
    older, newest = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 10)
    path = newest / name
    content = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "change": b"?" + content[1:], "empty": b""}[how])
    assert damage(newest) is not None
    assert newest_usable(tmp_path) == older and not newest.exists()
    assert "checkpoint-10 cannot be used" in caplog.text


def test_a_checkpoint_whose_best_one_is_damaged_is_not_used(tmp_path):
    best = make_checkpoint(tmp_path, 5, best=5)
    newest = make_checkpoint(tmp_path, 15, best=5)
    assert newest_usable(tmp_path) == newest
    (best / "weights").unlink()
    assert "checkpoint-5, is damaged: weights is missing" in damage(newest)
    assert newest_usable(tmp_path) is None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    path.write_text("biased_text,debiased_text\n" + "".join(f"A bad thing {i}.,A thing {i}.\n" for i in range(20)))
    return path


@pytest.fixture(scope="module")
def undisturbed(tiny_model, pairs, tmp_path_factory):
    """The weights of a run that nothing disturbs."""
    from tests.conftest import run_script

    output = tmp_path_factory.mktemp("undisturbed") / "adapter"
    result = run_script(TRAIN, "--base_model", tiny_model, "--input", pairs, "--output", output, *SETTINGS)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture
def flags(tiny_model, pairs, tmp_path):
    return [TRAIN, "--base_model", tiny_model, "--input", pairs, "--output", tmp_path / "adapter", *SETTINGS]


def stop_when(flags, said: str, number: int) -> tuple[int, str]:
    """Sends a signal as soon as stdout has a line with `said`. Returns the exit code and what stderr said."""
    process = subprocess.Popen(
        [sys.executable, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if said in line:
            process.send_signal(number)
            break
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


@pytest.fixture
def stopped(flags, tmp_path):
    """The folder of a run that was killed after some checkpoints."""
    code, _ = stop_when(flags, "'epoch': '4", signal.SIGKILL)
    assert code == -signal.SIGKILL
    return tmp_path / "adapter.partial"


def assert_same_result(output, undisturbed):
    assert file_sha256(output / "adapter_model.safetensors") == file_sha256(undisturbed / "adapter_model.safetensors")
    found, wanted = (json.loads((folder / "metrics.json").read_text()) for folder in (output, undisturbed))
    for name in ("validation_loss", "validation_loss_before", "best_step", "steps"):
        assert found[name] == wanted[name], name
    assert not (output / "checkpoints").exists() and not (output / "begun.json").exists()


def test_rows_that_also_validate_are_one_file():
    """All of them are learned, and a complete run is known again."""
    assert TrainConfig(input="rows.jsonl", validation="rows.jsonl").files() == [Path("rows.jsonl")]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(flags, stopped, undisturbed, script, tmp_path):
    output = tmp_path / "adapter"
    assert stopped.exists() and not output.exists()
    refused = script(*flags)
    assert refused.returncode == 2 and "add --resume to go on, or --overwrite" in refused.stderr
    changed = script(*flags, "--resume", "--lr", "0.01", "--seed", "7")
    last = changed.stderr.splitlines()[-1]
    assert changed.returncode == 2 and "--lr was 0.0003, is 0.01" in last and "--seed was 42, is 7" in last
    result = script(*flags, "--resume")
    assert result.returncode == 0 and "going on from checkpoint-" in result.stderr, result.stderr
    assert_same_result(output, undisturbed)
    again = script(*flags, "--resume")
    assert again.returncode == 0 and "nothing to go on with" in again.stdout
    other = script(*flags, "--resume", "--lr", "0.01")
    assert other.returncode == 2 and "is complete, with other settings (--lr was 0.0003, is 0.01)" in other.stderr


@pytest.mark.slow
def test_changed_data_and_another_base_are_refused(flags, stopped, pairs, tiny_model, script, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(pairs.read_text().replace("A thing 3.", "That thing 3."))
    result = script(*flags, "--resume", "--input", other)
    assert result.returncode == 2 and "the data changed" in result.stderr
    base = shutil.copytree(tiny_model, tmp_path / "base")
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    result = script(*flags, "--resume", "--base_model", base)
    assert result.returncode == 2 and "the model changed" in result.stderr


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_skipped(flags, stopped, undisturbed, script, tmp_path):
    newest = max((stopped / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])
    result = script(*flags, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"{newest.name} cannot be used: optimizer.pt has" in result.stderr
    assert_same_result(tmp_path / "adapter", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(flags, undisturbed, script, tmp_path, number):
    code, said = stop_when(flags, "'epoch': '1", number)
    assert code == 130, said
    assert "is saved, --resume goes on from there" in said.splitlines()[-1]
    result = script(*flags, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_result(tmp_path / "adapter", undisturbed)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_no_broken_checkpoint(flags, undisturbed, script, tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the middle of the optimiser's state."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    result = subprocess.run(
        [sys.executable, *map(str, flags)], capture_output=True, text=True, preexec_fn=limit, env=os.environ
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "--resume" in last and "Traceback" not in result.stderr
    assert not (tmp_path / "adapter").exists()
    assert newest_usable(tmp_path / "adapter.partial" / "checkpoints") is None
    result = script(*flags, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_result(tmp_path / "adapter", undisturbed)


@pytest.mark.slow
def test_a_run_that_had_stopped_by_itself_is_not_trained_further(tiny_model, pairs, script, tmp_path):
    """Killed when it had run out of patience, before its result had its name. A rate far too high, so that it does."""
    settings = [*SETTINGS, "--lr", 3, "--warmup_ratio", 0, "--lr_scheduler", "constant", "--eval_steps", 1]
    settings += ["--patience", 1, "--epochs", 40]
    flags = [TRAIN, "--base_model", tiny_model, "--input", pairs, *settings, "--output"]
    assert script(*flags, tmp_path / "alone").returncode == 0
    code, _ = stop_when([*flags, tmp_path / "killed"], "train_runtime", signal.SIGKILL)
    if code == -signal.SIGKILL and (tmp_path / "killed.partial" / "checkpoints").exists():
        result = script(*flags, tmp_path / "killed", "--resume")
        assert result.returncode == 0, result.stderr
    assert_same_result(tmp_path / "killed", tmp_path / "alone")


@pytest.mark.slow
def test_finished_seeds_are_kept_and_belong_to_their_settings(tiny_model, pairs, script, tmp_path):
    """Killed between two seeds, when no checkpoint is there."""
    flags = [
        TRAIN,
        "--base_model",
        tiny_model,
        "--input",
        pairs,
        *SETTINGS,
        "--seeds",
        "0,1",
        "--output",
        tmp_path / "a",
    ]
    code, _ = stop_when(flags, "train_runtime", signal.SIGKILL)
    shutil.rmtree(tmp_path / "a.partial" / "seed-0" / "checkpoints", ignore_errors=True)
    seed = tmp_path / "a.partial" / "seed-0"
    seed.mkdir(exist_ok=True)
    (seed / "metrics.json").write_text(
        '{"validation_loss": 1, "validation_loss_before": 2, "steps": 3, "train_seconds": 4}'
    )
    assert code == -signal.SIGKILL
    refused = script(*flags)
    assert refused.returncode == 2 and "add --resume" in refused.stderr.splitlines()[-1] and seed.exists()
    changed = script(*flags, "--resume", "--lr", "0.05")
    assert changed.returncode == 2 and "--lr was 0.0003, is 0.05" in changed.stderr.splitlines()[-1]
    result = script(*flags, "--resume")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "a" / "seeds.json").read_text())["runs"]["0"]["steps"] == 3


@pytest.mark.slow
def test_the_last_weights_and_those_of_every_evaluation_are_kept(tiny_model, pairs, script, tmp_path):
    """Validated by rows that training takes it away from, so that the last weights are the worst; also killed."""
    other = tmp_path / "other.csv"
    other.write_text("biased_text,debiased_text\n" + "".join(f"QUX {i},ZZZ WWW {i}\n" for i in range(4)))
    flags = [TRAIN, "--base_model", tiny_model, "--input", pairs, *SETTINGS, "--lr", 0.01, "--validation", other]
    flags += ["--keep_last", "--keep_all", "--output"]
    assert script(*flags, tmp_path / "all").returncode == 0
    code, _ = stop_when([*flags, tmp_path / "killed"], "'epoch': '4", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert script(*flags, tmp_path / "killed", "--resume").returncode == 0
    weights = {}
    for name in ("all", "killed"):
        folder = tmp_path / name
        metrics = json.loads((folder / "metrics.json").read_text())
        losses = {entry["step"]: entry["eval_loss"] for entry in metrics["history"] if "eval_loss" in entry}
        assert metrics["best_step"] == metrics["steps"] == max(losses) != min(losses, key=losses.get)
        steps = {int(kept.name.removeprefix("step-")): kept for kept in folder.glob("step-*")}
        assert set(steps) == set(losses) - {0}
        weights[name] = {step: file_sha256(kept / "adapter_model.safetensors") for step, kept in steps.items()}
        assert weights[name][max(losses)] == file_sha256(folder / "adapter_model.safetensors")
        assert not {"optimizer.pt", "training_args.bin", MARKER} & {path.name for path in steps[3].iterdir()}
    assert weights["all"] == weights["killed"] and len(set(weights["all"].values())) == len(steps)
    answer = script(ROOT / "testing" / "infer.py", "--adapter_model", tmp_path / "all" / "step-3", "--input_text", "A")
    assert answer.returncode == 0, answer.stderr  # it knows its base and its prompt
