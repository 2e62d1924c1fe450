"""Recipes are read by what they are for; what needs CUDA is checked as far as a CPU can."""

import os
import shlex
import subprocess

import pytest
import torch
import yaml

from utils import params
from utils.configs import CostConfig, TrainConfig
from utils.loading import load_base
from utils.models import resolve
from utils.params import ROOT

RECIPES = ROOT / "recipes"


def test_the_settings_of_the_paper_are_settings_of_train():
    settings = yaml.safe_load((RECIPES / "sr_llm.yaml").read_text())
    config = TrainConfig(**settings)
    assert (config.lora_r, config.lora_alpha, config.lr, config.optimizer) == (64, 16, 2e-4, "paged_adamw_32bit")


def test_the_settings_of_safety_tuned_llamas_are_settings_of_train():
    config = TrainConfig(**yaml.safe_load((RECIPES / "safety_tuned_llamas.yaml").read_text()))
    assert (config.prompt_style, config.quantization, config.train_on_inputs) == ("alpaca", "int8", True)
    assert (config.batch_size, config.lr) == (128, 3e-4)


def test_the_settings_of_forget_filter_are_settings_of_train():
    config = TrainConfig(**yaml.safe_load((RECIPES / "forget_filter.yaml").read_text()))
    assert (config.lr, config.batch_size, config.lora_r, config.keep_last) == (2e-4, 32, 8, True)


def test_all_rows_of_a_noisy_set_are_learned():
    config = TrainConfig(**yaml.safe_load((RECIPES / "noisy.yaml").read_text()))
    assert config.keep_last and config.validation_limit == 50
    assert config.allowed_faults() == set(params.NOISY_FAULTS.split(","))


@pytest.mark.parametrize(("name", "rank", "scale"), [("cost_gpt_neo", 8, 16), ("cost_llama2", 8, 32)])
def test_the_settings_of_the_cost_models_are_settings_of_train_cost(name, rank, scale):
    settings = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    config = CostConfig(**settings)
    assert (config.lora_r, config.lora_alpha, config.lr, config.epochs) == (rank, scale, 2e-5, 2)
    assert (config.objective, config.form, config.max_length) == ("safe_rlhf", "question", 512)


@pytest.mark.parametrize(
    ("recipe", "commands_least", "files_least"),
    [("demo.sh", 11, 21), ("cost_model.sh", 5, 6), ("forget_filter.sh", 11, 10)],
)
def test_a_recipe_reads_what_is_there_or_what_it_has_written(tmp_path, recipe, commands_least, files_least):
    """Its commands, as they would be typed; only their files are looked at."""
    (tmp_path / "python").write_text('#!/usr/bin/env bash\nprintf "%q " "$@" >> "$LOG"; echo >> "$LOG"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    subprocess.run(["bash", RECIPES / recipe], env=environment, check=True, stdout=subprocess.DEVNULL)
    commands = [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(commands) >= commands_least
    reading = {"--input", "--inputs", "--counterfactual"}
    reading |= {
        "--forgetting",
        "--before",
        "--adapter_model",
        "--base_model",
        "--spotter",
        "--toxicity_model",
        "--cost_model",
    }
    written, read = {"smollm2"}, 0
    for script, *arguments in commands:
        assert (ROOT / script).is_file()
        flag = ""
        for argument in arguments:
            if argument.startswith("--"):
                flag = argument
            elif flag in reading:
                path = argument.rpartition("=")[2]
                read += 1
                places = {path, path.replace(".scores", ""), os.path.dirname(path)}
                assert places & written or (ROOT / path).exists(), argument
        written.add(arguments[arguments.index("--output") + 1] if "--output" in arguments else "")
    assert read >= files_least


@pytest.fixture
def fsdp(monkeypatch):
    """The plugin that accelerate makes of the recipe, by its own launcher's environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.dataclasses import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = ["--config_file", str(RECIPES / "fsdp_qlora.yaml"), "training/train.py"]
    arguments, _, mixed = _validate_launch_command(launch_command_parser().parse_args(given))
    assert (arguments.use_fsdp, arguments.num_processes, arguments.mixed_precision) == (True, 2, "bf16") and mixed
    given = prepare_multi_gpu_env(arguments)
    # frozen and trained weights in one unit; one process reads the weights and hands them out, which needs a GPU
    assert given["FSDP_USE_ORIG_PARAMS"] == "false"
    assert given["FSDP_CPU_RAM_EFFICIENT_LOADING"] == given["FSDP_SYNC_MODULE_STATES"] == "true"
    for name, value in given.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES"):
        monkeypatch.setenv(name, "false")
    return FullyShardedDataParallelPlugin()


def test_the_fsdp_recipe_wraps_the_layers_of_a_4bit_model(fsdp, tiny_model):
    assert fsdp.state_dict_type.name == "FULL_STATE_DICT" and fsdp.sharding_strategy.name == "FULL_SHARD"
    model = load_base(resolve(str(tiny_model)), "nf4", {"compute_dtype": "bfloat16"}, training=True)
    fsdp.set_auto_wrap_policy(model)
    wrapped = fsdp.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {kind.__name__ for kind in wrapped} == {"LlamaDecoderLayer"}


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "float16"])
def test_4bit_weights_are_stored_in_the_one_type_that_fsdp_can_shard(tiny_model, compute_dtype):
    """Also where a CPU computes in float32 in place of float16."""
    model = load_base(resolve(str(tiny_model)), "nf4", {"compute_dtype": compute_dtype}, training=True)
    stored = {p.dtype for p in model.parameters()}
    assert len(stored) == 1 and stored.pop().is_floating_point
    assert torch.uint8 not in {p.dtype for p in model.parameters()}
