"""Flags, --config and published names."""

import pytest

from training.train import ALIASES
from utils import params
from utils.configs import TrainConfig
from utils.helpers import parse_config
from utils.params import ROOT


def parse(*argv):
    return parse_config(TrainConfig, ALIASES, list(argv))


def test_precedence_is_params_then_yaml_then_flags(tmp_path):
    settings = tmp_path / "run.yaml"
    settings.write_text("lr: 1e-4\nepochs: 2\ngradient_checkpointing: true\n")
    config = parse("--config", str(settings), "--epochs", "5")
    assert config.lr == 1e-4 and config.epochs == 5.0 and config.gradient_checkpointing is True
    assert config.batch_size == params.BATCH_SIZE


def test_published_names_are_understood():
    config = parse("--learning_rate", "2e-4", "--use_4bit", "False", "--num_train_epochs", "1", "--test_size", "0.3")
    assert (config.lr, config.quantization, config.epochs, config.validation_share) == (2e-4, "none", 1.0, 0.3)
    assert parse("--max-seq-length=512").max_length == 512
    assert parse("--use_4bit").quantization == "nf4"
    both = parse("--use_4bit", "True", "--load_8bit", "False", "--fp16", "True", "--bf16", "False")
    assert (both.quantization, both.compute_dtype) == ("nf4", "float16")


def test_the_published_command_of_learning_and_forgetting_is_understood(caplog):
    argv = "--logs_dir logs --save_state_path out --batch_size 4 --warm_up_ep 0 --epoch 20 --train 1 "
    argv += "--train_path rows --gradient_accumulation_steps 4 --eval_path test --save_step 300 --eval_step 50 "
    argv += "--load_state 1 --load_state_path models/m1 --eval_em_rouge 1 --use_instr 1"
    config = parse(*argv.split())
    assert (config.input, config.output, config.base_model, config.epochs) == ("rows", "out", "models/m1", 20)
    assert (config.gradient_accumulation, config.eval_steps, config.warmup_ratio) == (4, 50, 0)
    assert "--eval_path has no effect: testing/forgetting.py --input" in caplog.text


def test_names_of_the_library_are_understood():
    argv = "--output_dir out --learning_rate 0.5 --optim sgd --save_steps 7 --logging_dir logs --bf16 false --tf32 1"
    config = parse(*argv.split())
    assert (config.output, config.lr, config.optimizer, config.eval_steps) == ("out", 0.5, "sgd", 7)
    assert config.compute_dtype == TrainConfig.compute_dtype


@pytest.mark.parametrize("name", ["train", "train_cost", "train_seq2seq"])
def test_wherever_the_library_trains_its_names_are_understood(name, script):
    result = script(ROOT / "training" / f"{name}.py", "--learning_rate", 0, "--optim", "sgd", "--tf32", "yes")
    assert result.returncode == 2 and "--lr 0.0: give a value above 0" in result.stderr.splitlines()[-1]


def test_published_names_work_in_yaml_too(tmp_path):
    settings = tmp_path / "old.yaml"
    settings.write_text("learning_rate: 0.001\nload_8bit: true\n")
    config = parse("--config", str(settings))
    assert (config.lr, config.quantization) == (0.001, "int8")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--lora_modules", "all"], "unrecognized arguments"),
        (["--lr", "fast"], "invalid float"),
        (["--lr", "1e-4", "--learning_rate", "2e-4"], "disagrees"),
        (["--use_4bit", "perhaps"], "not a value that can be read"),
        (["--quantization", "nf5"], "invalid choice"),
        (["--validation_share", "1.5"], "--validation_share 1.5"),
        (["--limit", "0"], "--limit 0"),
        (["--seeds", "0,0"], "--seeds 0,0"),
        (["--method", "full", "--quantization", "nf4"], "--method full"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml"),
    ],
)
def test_a_mistake_ends_with_code_2_and_says_what(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said and said.startswith("error: ") and said.endswith("(see --help)")


@pytest.mark.parametrize(
    "text", ["learning: 1", "lr: quick", "- lr", "lr: [1", "quantization: nf5", "method: fulll", "epochs: [1, 2]"]
)
def test_a_wrong_config_file_is_an_error(text, tmp_path, capsys):
    settings = tmp_path / "run.yaml"
    settings.write_text(text)
    with pytest.raises(SystemExit) as end:
        parse("--config", str(settings))
    assert end.value.code == 2
    if text == "learning: 1":
        assert f"--config {settings}: there is no setting learning" in capsys.readouterr().err


def test_the_recipe_of_the_paper_is_readable():
    config = parse("--config", str(params.ROOT / "recipes" / "sr_llm.yaml"))
    assert (config.lora_r, config.lora_alpha, config.lora_dropout, config.lr) == (64, 16, 0.2, 2e-4)
    assert config.optimizer == "paged_adamw_32bit" and config.patience == 3


def test_a_script_works_from_any_folder(script, tmp_path):
    result = script(params.ROOT / "training" / "train.py", "--input", "missing.csv", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == "error: missing.csv: no such file"


def test_infer_does_not_write_over_its_input(script, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("biased_text\na text\n")
    flags = ["--baseline", "copy", "--input", source, "--output", source, "--overwrite"]
    result = script(ROOT / "testing" / "infer.py", *flags)
    assert result.returncode == 2 and "is an input" in result.stderr
    assert source.read_text() == "biased_text\na text\n"
