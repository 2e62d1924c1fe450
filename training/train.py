"""Teaches a model to rewrite: supervised fine-tuning with QLoRA (default), LoRA, a prefix, or all weights.

    python training/train.py                                      # the embedded 135M model, on a laptop: minutes
    python training/train.py --lr 1e-4 --epochs 2 --seeds 0,1,2   # three adapters, mean and spread of the loss
    python training/train.py --prompt fill                        # write only what changes; see train_spotter.py
    python training/train.py --base_model meta-llama/Llama-2-7b-chat-hf --config recipes/sr_llm.yaml    # a CUDA box

Reads  datasets/content_moderation/train.csv, or any output of generate_data/annotate.py (rows with status ok or
       neutral), Alpaca JSON(L) or prompt-completion JSONL
Writes models/adapter/: adapter_model.safetensors, adapter_config.json, the tokenizer, metrics.json, loss.png,
       audit.html, logs/ for TensorBoard, run.json
       (with --seeds: models/adapter/seed-0/ ... and the best seed's files in models/adapter/ itself)

The loss is taken on the completion only, in the model's own chat template. A seeded share of the rows is held out;
the checkpoint with the lowest validation loss is kept, and training stops early when it no longer falls. The folder
appears when it is complete. A run that was stopped (Ctrl+C saves first), killed or cut off by a full disk goes on
with --resume from its newest complete checkpoint in models/adapter.partial/, to the same weights.

Before the first step the rows are audited as by training/audit.py; audit.html shows what was learned from.

Next: python training/merge.py
"""

import logging
import os
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import TrainConfig
from utils.helpers import UserError, as_switch, describe, parse_config, run_stage, set_seed
from utils.loading import load_tokenizer
from utils.models import ModelRef, model_record, resolve
from utils.prompts import check_template
from utils.records import (
    RECORD_NAME,
    check_output_folder,
    finish_record,
    read_json,
    start_record,
    unfinished,
    whole_folder,
    write_json,
)
from utils.supervision import Example, encode_all, findings, load_rows, write_audit

logger = logging.getLogger(__name__)


# names that the published scripts used -> ours
ALIASES = {
    "input_data_path": "input",
    "data_path": "input",
    "output_dir": "output",
    "test_size": "validation_share",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_scheduler",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "optim": "optimizer",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "save_steps": "eval_steps",
    "lora_target_modules": "lora_targets",
    "bias": "lora_bias",
    "bnb_4bit_quant_type": "nf4_quant_type",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "use_nested_quant": "nf4_double_quant",
    "use_4bit": ("quantization", lambda value: "nf4" if as_switch(value) else "none"),
    "load_8bit": ("quantization", lambda value: "int8" if as_switch(value) else None),
    "fp16": ("compute_dtype", lambda value: "float16" if as_switch(value) else None),
    "bf16": ("compute_dtype", lambda value: "bfloat16" if as_switch(value) else None),
    "task_type": (None, "this script trains causal language models"),
    "dataset_text_field": (None, "see --input_column and --output_column"),
    "remove_unused_columns": (None, "rows hold only what is trained on"),
    "logging_dir": (None, "logs go to the output folder"),
    "add_eos_token": (None, "the chat template ends every turn"),
    "val_set_size": (None, "give a share with --validation_share, or a file with --validation"),
    "prompt_template_name": (None, "see --prompt"),
    "resume_from_checkpoint": (None, "add --resume: it finds the newest checkpoint"),
}


def to_dataset(examples: list[Example], max_length: int):
    """What the trainer takes, without the rows that are too long."""
    from datasets import Dataset

    kept = [example for example in examples if len(example.input_ids) <= max_length]
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in kept])


def check(config: TrainConfig) -> None:
    """Everything that can be wrong with the settings, before a model is loaded."""
    import torch

    from utils.trainer import trainer_arguments

    check_template(config.prompt)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.cuda.device_count() > 1:
        raise UserError("training runs in one process on one device so far: set CUDA_VISIBLE_DEVICES=0, no launcher")
    try:
        trainer_arguments(config, Path(config.output))  # the library knows its optimisers, schedules and trackers
    except (ValueError, ImportError) as error:
        raise UserError(f"--optimizer, --lr_scheduler or --report_to: {' '.join(str(error).split())}") from error


def audit(examples: list[Example], tokenizer, config: TrainConfig, folder: Path) -> None:
    """Writes what training/audit.py writes. Raises UserError where a fault is above its limit."""
    found = findings(examples, config.allowed_faults())
    write_audit(folder, examples, found, tokenizer, config.seed)
    for finding in found:
        if finding.rows:
            logger.warning("%s", finding) if finding.blocks else logger.info("%s", finding)
    if blocking := [finding.fault for finding in found if finding.blocks]:
        raise UserError(
            f"{config.input}: {', '.join(blocking)} in too many rows (numbers above; python training/audit.py shows "
            f"them): mend them, or add --allow_faults {','.join(blocking)}"
        )


def train_one(config: TrainConfig, ref: ModelRef, examples: list, held_out: list, tokenizer, folder: Path) -> dict:
    """Trains one seed into `folder`, from its newest checkpoint if there is one, and returns its metrics."""
    from utils.card import write_card
    from utils.checkpoints import newest_usable, stopped_early
    from utils.report import plot_losses
    from utils.trainer import build_trainer

    folder.mkdir(exist_ok=True)
    record = start_record(config, config.files())
    set_seed(config.seed)
    # of like length beside one another, so that little of a validation batch is padding
    by_length = sorted(held_out, key=lambda example: len(example.input_ids))
    train, validation = (to_dataset(rows, config.max_length) for rows in (examples, by_length))
    if not len(train) or not len(validation):
        raise UserError(f"no rows left within --max_length {config.max_length}")
    dropped = len(examples) + len(held_out) - len(train) - len(validation)
    logger.info("%d training rows, %d validation rows, %d too long", len(train), len(validation), dropped)

    checkpoint = newest_usable(folder / "checkpoints")
    trainer = build_trainer(config, ref, train, validation, tokenizer, folder)
    trainer.args.eval_on_start = checkpoint is None  # a run that goes on has that loss in its history
    if checkpoint:
        logger.info("going on from %s", checkpoint.name)
    if checkpoint and stopped_early(checkpoint, config.patience):
        trainer.load_best_of(checkpoint)
        seconds = 0.0
    else:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = outcome.metrics["train_runtime"]
    state = trainer.state
    metrics = {
        "validation_loss_before": next(e["eval_loss"] for e in state.log_history if "eval_loss" in e),
        "validation_loss": state.best_metric,
        "best_step": state.best_global_step,
        "steps": state.global_step,
        "train_seconds": seconds,  # of this part, where the run was resumed
        "rows": {"train": len(train), "validation": len(validation), "too_long": dropped},
        "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        "ordinary_loss_because": trainer.ordinary_because,
    }
    trainer.save_model(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "metrics.json", metrics | {"history": state.log_history})
    plot_losses(state.log_history, folder / "loss.png")
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    ids = [example.row["id"] for example in held_out]
    finish_record(record, folder, model=model_record(ref), prompt=config.prompt, metrics=metrics, held_out=ids)
    write_card(folder, record, "Rewrites biased text", "finetune" if config.method == "full" else "adapter")
    shutil.rmtree(folder / "checkpoints")
    return metrics


def main(config: TrainConfig) -> None:
    from utils.checkpoints import BEGUN, disk_errors, same_run

    output = Path(config.output).resolve()
    if config.resume and (output / RECORD_NAME).is_file() and not unfinished(output).exists():
        print(f"{config.output} is complete: nothing to go on with")
        return
    rows = load_rows(config)  # one split for all seeds
    check_output_folder(output, config.overwrite)
    check(config)
    ref = resolve(config.base_model, revision=config.revision)
    default = "none" if config.method == "full" else params.QUANTIZATION
    config = replace(config, quantization=config.quantization or default)
    this_run = same_run(config, ref, unfinished(output))
    logger.info("training %s on %s (%s)", ref.name, config.input, describe(config))
    tokenizer = load_tokenizer(ref, side="right")
    examples, held_out = encode_all(*rows, ref, tokenizer, config)

    seeds = config.seed_list()
    with whole_folder(output, config.overwrite, config.resume) as folder:
        write_json(folder / BEGUN, this_run)
        audit(examples, tokenizer, config, folder)
        runs = {}
        for seed in seeds:
            target = folder if len(seeds) == 1 else folder / f"seed-{seed}"
            if (target / "metrics.json").is_file() and not (target / "checkpoints").exists():  # done before a stop
                runs[seed] = read_json(target / "metrics.json")
                continue
            with disk_errors(target):
                runs[seed] = train_one(replace(config, seed=seed), ref, examples, held_out, tokenizer, target)
        if len(seeds) > 1:
            losses = [run["validation_loss"] for run in runs.values()]
            best = min(runs, key=lambda seed: runs[seed]["validation_loss"])
            shutil.copytree(folder / f"seed-{best}", folder, dirs_exist_ok=True)
            summary = {
                "mean": statistics.mean(losses),
                "stdev": statistics.stdev(losses),
                "best_seed": best,
                "runs": runs,
            }
            write_json(folder / "seeds.json", summary)
            print(f"validation loss {summary['mean']:.3f} +- {summary['stdev']:.3f} over seeds {config.seeds}")
        (folder / BEGUN).unlink()
    for seed, run in runs.items():
        print(
            f"seed {seed}: validation loss {run['validation_loss_before']:.3f} -> {run['validation_loss']:.3f} "
            f"in {run['steps']} steps, {run['train_seconds']:.0f} s"
        )
    print(f"{config.method} weights: {config.output}; next: python training/merge.py --adapter_model {config.output}")


if __name__ == "__main__":
    run_stage(main, parse_config(TrainConfig, ALIASES))
