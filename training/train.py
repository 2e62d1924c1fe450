"""Teaches a model to rewrite: supervised fine-tuning with QLoRA (default), LoRA, a prefix, or all weights.

    python training/train.py                                      # the embedded 135M model, on a laptop: minutes
    python training/train.py --lr 1e-4 --epochs 2 --seeds 0,1,2   # three adapters, mean and spread of the loss
    python training/train.py --prompt fill                        # write only what changes; see train_spotter.py
    python training/train.py --base_model meta-llama/Llama-2-7b-chat-hf --config recipes/sr_llm.yaml    # a CUDA box

Reads  datasets/content_moderation/train.csv, or any output of generate_data/annotate.py (rows with status ok or
       neutral), Alpaca JSON(L) or prompt-completion JSONL, whose prompts are put as they are
Writes models/adapter/: adapter_model.safetensors, adapter_config.json, the tokenizer, metrics.json, loss.png,
       audit.html, logs/ for TensorBoard, run.json
       (with --seeds: models/adapter/seed-0/ ... and the best seed's files in models/adapter/ itself)

The loss is taken on the completion only, in the model's own chat template, or that of --prompt_style alpaca, which the
folder's tokenizer then writes wherever the model is used. A seeded share of the rows is held out;
the checkpoint with the lowest validation loss is kept, and training stops early when it no longer falls. The folder
appears when it is complete. A run that was stopped (Ctrl+C saves first), killed or cut off by a full disk goes on
with --resume from its newest complete checkpoint in models/adapter.partial/, to the same weights.

On several GPUs torchrun starts a process for each, and --batch_size is the rows of one (README, "More than one GPU");
recipes/fsdp_qlora.yaml spreads a model that does not fit into one.

--safety_probe FILE (datasets/preference_pairs/test.csv, or your own) measures at each evaluation how much likelier
safe answers are than unsafe ones, and help than a refusal (utils/drift.py), and warns where that falls;
--stop_on_drift ends the run there, with the best checkpoint before, --keep_safest keeps that with the highest margin.
--keep_last keeps the last weights whatever the loss, --keep_all those of every evaluation too, in step-<n>/.

Before the first step the rows are audited as by training/audit.py; audit.html shows what was learned from.

Next: python training/merge.py
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import TrainConfig
from utils.helpers import TRAINER_NAMES, UserError, as_switch, parse_config, run_stage
from utils.loading import check_kind
from utils.models import resolve
from utils.processes import is_main
from utils.prompt_styles import check_style
from utils.prompts import CONTINUE, check_template
from utils.records import check_output_folder
from utils.supervision import load_rows

# names that the published scripts used -> ours
ALIASES = TRAINER_NAMES | {
    "input_data_path": "input",
    "data_path": "input",
    "test_size": "validation_share",
    "num_epochs": "epochs",
    "micro_batch_size": (None, "a step has --batch_size rows, a pass through the model at most --micro_batch_tokens"),
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "lora_target_modules": ("lora_targets", lambda value: re.sub(r"""[\[\]\s'"]""", "", value)),
    "bias": "lora_bias",
    "bnb_4bit_quant_type": "nf4_quant_type",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "use_nested_quant": "nf4_double_quant",
    "use_4bit": ("quantization", lambda value: "nf4" if as_switch(value) else "none"),
    "load_8bit": ("quantization", lambda value: "int8" if as_switch(value) else None),
    "task_type": (None, "this script trains causal language models"),
    "dataset_text_field": (None, "see --input_column and --output_column"),
    "add_eos_token": (None, "the chat template ends every turn"),
    "val_set_size": (None, "give a share with --validation_share, or a file with --validation"),
    "prompt_template_name": "prompt_style",
    # the train_eval.py of arXiv 2312.12736
    "train_path": "input",
    "save_state_path": "output",
    "load_state_path": "base_model",
    "model": "base_model",
    "epoch": "epochs",
    "max_step": "max_steps",
    "save_step": (None, "checkpoints are written at each evaluation, see --eval_steps"),
    "eval_step": "eval_steps",
    "warm_up_ep": ("warmup_ratio", lambda value: "0" if float(value) == 0 else value),
    "logs_dir": (None, "logs and checkpoints go to the output folder"),
    "checkpoint_dir": (None, "checkpoints go to <output>.partial/; --resume goes on from the newest"),
    "train": (None, "this script trains; testing/forgetting.py and testing/infer.py evaluate"),
    "save_state": (None, "what was trained is always saved"),
    "load_state": (None, "name the model to go on from with --base_model; an adapter is merged first (merge.py)"),
    "eval": (None, "testing/forgetting.py measures what is recalled, testing/probe_bias.py the bias"),
    "eval_path": (None, "testing/forgetting.py --input"),
    "eval_output_path": (None, "testing/forgetting.py --output"),
    "eval_em_rouge": (None, "testing/forgetting.py measures both"),
    "eval_ppl": (None, "testing/forgetting.py --signal likelihood"),
    "use_instr": (None, "see --prompt_style"),
    "self_correct": (None, "see recipes/interleave.py --strategies"),
    "replay": (None, "see recipes/interleave.py --strategies"),
    "freeze_tune": (None, "only --method full or an adapter is trained"),
    "unfreeze_last_mlp": (None, "choose modules with --lora_targets"),
}


def main(config: TrainConfig) -> None:
    from utils.drift import read_probe
    from utils.finetuning import check_settings, describe_runs, finetune, nothing_left_to_do, rewriting
    from utils.trainer import build_trainer, trainer_arguments

    if complete := nothing_left_to_do(config):
        if is_main():
            print(complete)
        return
    rows = load_rows(config)  # one split for all seeds
    check_output_folder(Path(config.output), config.overwrite)
    check_template(config.prompt)
    check_style(config.prompt_style)
    if config.safety_probe:
        read_probe(config.safety_probe)
    if config.prompt == CONTINUE:
        raise UserError(f"--prompt {CONTINUE} is for testing/infer.py: rows are learned as chats")
    check_settings(config, trainer_arguments)
    ref = resolve(config.base_model, revision=config.revision)
    check_kind(ref, encoder_decoder=False)
    default = "none" if config.method == "full" else params.QUANTIZATION
    runs = finetune(replace(config, quantization=config.quantization or default), ref, rows, rewriting(build_trainer))
    if is_main():
        print(describe_runs(runs))
        merge = f"python training/merge.py --adapter_model {config.output}"
        print(f"{config.method} weights: {config.output}" + (f"; next: {merge}" if config.method == "lora" else ""))


if __name__ == "__main__":
    run_stage(main, parse_config(TrainConfig, ALIASES))
