"""Two real processes train one model: they are two, they meet the batches of one process, and one of them writes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from utils.checkpoints import by_step
from utils.params import ROOT

pytestmark = pytest.mark.slow
TRAIN = ROOT / "training" / "train.py"
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SETTINGS = ["--lora_r", 4, "--epochs", 3, "--eval_steps", 4, "--logging_steps", 1, "--patience", 0, "--lr", 0.01]
FULL = ["--method", "full"]
SETTINGS += ["--quantization", "none", "--compute_dtype", "float32", "--report_to", "none"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Rows of very different lengths, so that the two processes have different numbers of parts."""
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    rows = [
        f"A bad thing {i} {'and more ' * (i % 7)}.,A thing {i} {'and more ' * (i % 7)}.\n" for i in range(44)
    ]  # 40 to train: five full batches
    path.write_text("biased_text,debiased_text\n" + "".join(rows))
    return path


def start(command: list, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **settings,
    )  # fmt: skip


def run(command: list) -> tuple[int, str, str]:
    process = start(command)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def curve(folder) -> list[tuple[int, str, float]]:
    history = json.loads((folder / "metrics.json").read_text())["history"]
    return [(e["step"], name, e[name]) for e in history for name in ("loss", "eval_loss", "grad_norm") if name in e]


@pytest.mark.parametrize(
    "more", [[], ["--gradient_accumulation", 2], ["--method", "full", "--gradient_checkpointing"]]
)
def test_two_processes_have_the_loss_curve_of_one_with_the_same_global_batch(tiny_model, pairs, tmp_path, more):
    """By our loss, also where the mean is over several batches; and by the library's own."""
    flags = [TRAIN, "--base_model", tiny_model, "--input", pairs, *SETTINGS, "--micro_batch_tokens", 700, *more]
    one = run([sys.executable, *flags, "--output", tmp_path / "one", "--batch_size", 8])
    assert one[0] == 0, one[2]
    two = run([*TWO, *flags, "--output", tmp_path / "two", "--batch_size", 4])
    assert two[0] == 0, two[2]
    counts = [json.loads((tmp_path / name / "metrics.json").read_text())["processes"] for name in ("one", "two")]
    assert counts == [1, 2]
    wanted, found = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted] and len(wanted) > 15
    for (_, name, a), (_, _, b) in zip(wanted, found, strict=True):
        assert b == pytest.approx(a, rel=1e-4), name
    name = "model.safetensors" if "full" in more else "adapter_model.safetensors"
    a, b = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)
    assert two[1].count("seed 42: validation loss") == 1  # one of them speaks
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


@pytest.mark.parametrize("accepts", [True, False])
def test_models_that_are_not_told_the_number_of_tokens_have_the_same_curve(tiny_model, pairs, tmp_path, accepts):
    """An encoder-decoder, and a causal model that says that it takes no count."""
    from tests.test_seq2seq import make_base

    script, more, base = ROOT / "training" / "train_seq2seq.py", [], None
    if accepts:
        base = make_base("t5", tmp_path / "t5")
    else:
        script, more = ROOT / "tests" / "train_uncounted.py", ["--lora_r", 4]
        base = tiny_model
    settings = ["--epochs", 2, "--eval_steps", 4, "--logging_steps", 1, "--patience", 0, "--lr", 0.001]
    settings += ["--compute_dtype", "float32", "--report_to", "none", "--quantization", "none"]
    flags = [script, "--base_model", base, "--input", pairs, *settings, *more]
    for command, name, rows in (([sys.executable], "one", 8), (TWO, "two", 4)):
        code, _, err = run([*command, *flags, "--output", tmp_path / name, "--batch_size", rows])
        assert code == 0, err
    wanted, found = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted] and len(wanted) > 15
    for (_, name, a), (_, _, b) in zip(wanted, found, strict=True):
        assert b == pytest.approx(a, rel=1e-3), name


def test_two_processes_stop_together_and_go_on_to_the_same_weights(tiny_model, pairs, tmp_path):
    flags = [*TWO, TRAIN, "--base_model", tiny_model, "--input", pairs, *SETTINGS, "--batch_size", 4]
    flags += ["--lora_dropout", 0.1]
    assert run([*flags, "--output", tmp_path / "alone"])[0] == 0
    process = start([*flags, "--output", tmp_path / "stopped"])
    for line in process.stdout:
        if "'epoch': '1" in line:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl+C in a terminal does
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "is saved, --resume goes on from there" in err, err
    assert (tmp_path / "stopped.partial").is_dir() and not (tmp_path / "stopped").exists()
    alone = [sys.executable, *flags[len(TWO) :], "--resume", "--output", tmp_path / "stopped"]
    code, _, err = run(alone)
    assert code == 2 and "the processes changed" in err
    newest = by_step(tmp_path / "stopped.partial/checkpoints")[0]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(json.loads((newest / "complete.json").read_text()))
    code, _, err = run([*flags, "--resume", "--output", tmp_path / "stopped"])
    assert code == 0 and f"going on from {newest.name}" in err, err
    a, b = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("alone", "stopped"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_launcher_that_starts_one_process_for_two_is_noticed(tiny_model, pairs, tmp_path):
    accelerate = [shutil.which("accelerate", path=os.path.dirname(sys.executable)), "launch", "--cpu"]
    flags = [TRAIN, "--base_model", tiny_model, "--input", pairs, "--output", tmp_path / "out", *SETTINGS]
    code, _, err = run([*accelerate, "--num_processes", 2, *flags])
    assert code != 0 and "error: accelerate launch starts a single process on a CPU" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run([*accelerate, "--num_processes", 1, *flags])
    assert code == 0, err
