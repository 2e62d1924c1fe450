"""Teaches a model to rewrite: supervised fine-tuning with QLoRA (default), LoRA, a prefix, or all weights.

    python training/train.py                                      # the embedded 135M model, on a laptop: minutes
    python training/train.py --lr 1e-4 --epochs 2 --seeds 0,1,2   # three adapters, mean and spread of the loss
    python training/train.py --prompt fill                        # write only what changes; see train_spotter.py
    python training/train.py --base_model meta-llama/Llama-2-7b-chat-hf --config recipes/sr_llm.yaml    # a CUDA box

Reads  datasets/content_moderation/train.csv, or any output of generate_data/annotate.py (rows with status ok or
       neutral), Alpaca JSON(L) or prompt-completion JSONL
Writes models/adapter/: adapter_model.safetensors, adapter_config.json, the tokenizer, metrics.json, loss.png, run.json
       (with --seeds: models/adapter/seed-0/ ... and the best seed's files in models/adapter/ itself)

The loss is taken on the completion only, in the model's own chat template. A seeded share of the rows is held out;
the checkpoint with the lowest validation loss is kept, and training stops early when it no longer falls. The folder
appears when it is complete: a killed run leaves nothing under the final name and the next one starts clean.

Next: python training/merge.py
"""

import logging
import os
import random
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import TrainConfig
from utils.data import read_pairs
from utils.edits import edits_between, mark, write_fillings
from utils.helpers import UserError, as_switch, describe, parse_config, run_stage, set_seed
from utils.models import ModelRef, cpu_has_bf16, load_base, load_tokenizer, model_record, resolve
from utils.prompts import REWRITE_TEMPLATES, rewrite_messages
from utils.records import check_output_folder, finish_record, start_record, whole_folder, write_json

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
    "resume_from_checkpoint": (None, "a run that was cut off starts clean"),
}


def read_rows(path: str, config: TrainConfig, limit: int | None = None) -> list[dict]:
    rows = read_pairs(path, config.input_column, config.output_column, limit)
    if config.prompt != "fill":
        return rows
    if not all(row["templated"] for row in rows):
        raise UserError(f"--prompt fill needs pairs, and {path} holds none: see --input_column and --output_column")
    changed = [row for row in rows if edits_between(row["prompt"], row["completion"])]
    logger.info("%s: %d of %d rows change a word and are learned from", path, len(changed), len(rows))
    return changed


def load_rows(config: TrainConfig) -> tuple[list[dict], list[dict]]:
    """Training and validation rows. Rows with the same source text stay on one side."""
    rows = read_rows(config.input, config, config.limit)
    if config.validation:
        return rows, read_rows(config.validation, config)
    sources = sorted({row["prompt"] for row in rows})
    random.Random(config.seed).shuffle(sources)
    held_out = set(sources[: max(1, round(config.validation_share * len(sources)))])
    train = [row for row in rows if row["prompt"] not in held_out]
    if not train:
        raise UserError(f"{config.input}: {len(rows)} usable rows are too few to hold some out")
    return train, [row for row in rows if row["prompt"] in held_out]


def to_messages(row: dict, template: str) -> tuple[list[dict], list[dict]]:
    """Prompt and completion of a row as chat messages."""
    if not row["templated"]:
        prompt, completion = [{"role": "user", "content": row["prompt"]}], row["completion"]
    elif template == "fill":
        edits = edits_between(row["prompt"], row["completion"])
        prompt = rewrite_messages(mark(row["prompt"], [edit.span for edit in edits]), template)
        completion = write_fillings(edits)
    else:
        prompt, completion = rewrite_messages(row["prompt"], template), row["completion"]
    return prompt, [{"role": "assistant", "content": completion}]


def to_dataset(rows: list[dict], tokenizer, config: TrainConfig):
    """Rows as prompt and completion messages, without those that are too long. Returns (dataset, number dropped)."""
    from datasets import Dataset

    examples = []
    for row in rows:
        prompt, completion = to_messages(row, config.prompt)
        length = len(tokenizer.apply_chat_template(prompt + completion, return_dict=True)["input_ids"])
        if length <= config.max_length:
            examples.append({"prompt": prompt, "completion": completion})
    return Dataset.from_list(examples), len(rows) - len(examples)


def trainer_arguments(config: TrainConfig, folder: Path):
    """Our settings in the names of the library: the only place where the two meet."""
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        seed=config.seed,
        data_seed=config.seed,
        max_length=None,  # longer rows are dropped before, and counted
        completion_only_loss=not config.train_on_inputs,
        packing=config.packing,
        learning_rate=config.lr,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_ratio,  # below 1 the library reads a share
        weight_decay=config.weight_decay,
        optim=config.optimizer,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        bf16=config.compute_dtype == "bfloat16" and (cuda or cpu_has_bf16()),
        fp16=config.compute_dtype == "float16" and cuda,
        use_cpu=not cuda,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=config.logging_steps,
        report_to=config.report_to,
        disable_tqdm=None if sys.stderr.isatty() else True,
        dataloader_pin_memory=cuda,
    )


def adapter_config(config: TrainConfig):
    """LoRA or prefix settings for PEFT; None when all weights are trained."""
    from peft import LoraConfig, PrefixTuningConfig

    if config.method == "full":
        return None
    if config.method == "prefix":
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.prefix_tokens)
    targets = config.lora_targets if config.lora_targets == "all-linear" else config.lora_targets.split(",")
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias=config.lora_bias,
        target_modules=targets,
    )


def build_trainer(config: TrainConfig, ref: ModelRef, train, validation, tokenizer, folder: Path):
    """SFTTrainer with our loss, which applies the output layer to supervised tokens only."""
    from transformers import EarlyStoppingCallback
    from trl import SFTTrainer

    from utils.likelihood import completion_loss, supports

    # all weights are trained in float32: a step of 1e-5 is lost in 16 bits
    settings = vars(config) | ({"compute_dtype": "float32"} if config.method == "full" else {})
    base = load_base(ref, config.quantization, settings, training=True)
    # prompt learning adds positions of its own, CUDA has a fused kernel, packing needs position ids
    own_loss = base.device.type == "cpu" and config.method != "prefix" and not config.packing and supports(base)

    class Trainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if not own_loss or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return completion_loss(model, inputs, num_items_in_batch)

    trainer = Trainer(
        model=base,
        args=trainer_arguments(config, folder),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=adapter_config(config),
        callbacks=[EarlyStoppingCallback(config.patience)] if config.patience else None,
    )
    if trainer.args.fp16:
        # the library keeps adapters of quantised models in bf16, which a float16 scaler cannot unscale
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def train_one(config: TrainConfig, ref: ModelRef, train_rows: list, validation_rows: list, folder: Path) -> dict:
    """Trains one seed into `folder` and returns its metrics."""
    from utils.report import adapter_card, plot_losses

    folder.mkdir(exist_ok=True)
    record = start_record(config, [Path(config.input), *([Path(config.validation)] if config.validation else [])])
    set_seed(config.seed)
    tokenizer = load_tokenizer(ref, side="right")
    train, dropped = to_dataset(train_rows, tokenizer, config)
    # of like length beside one another, so that little of a validation batch is padding
    by_length = sorted(validation_rows, key=lambda row: len(row["prompt"]) + len(row["completion"]))
    validation, dropped_validation = to_dataset(by_length, tokenizer, config)
    if not len(train) or not len(validation):
        raise UserError(f"no rows left within --max_length {config.max_length}")
    logger.info(
        "%d training rows, %d validation rows, %d too long", len(train), len(validation), dropped + dropped_validation
    )

    trainer = build_trainer(config, ref, train, validation, tokenizer, folder / "checkpoints")
    before = trainer.evaluate()["eval_loss"]
    outcome = trainer.train()
    metrics = {
        "validation_loss_before": before,
        "validation_loss": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "train_seconds": outcome.metrics["train_runtime"],
        "rows": {"train": len(train), "validation": len(validation), "too_long": dropped + dropped_validation},
    }
    trainer.save_model(folder)
    tokenizer.save_pretrained(folder)
    history = trainer.state.log_history
    write_json(folder / "metrics.json", metrics | {"history": history})
    plot_losses(history, folder / "loss.png")
    shutil.rmtree(folder / "checkpoints")
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    finish_record(record, folder, model=model_record(ref), prompt=config.prompt, metrics=metrics)
    (folder / "README.md").write_text(adapter_card(record), encoding="utf-8")
    return metrics


def check(config: TrainConfig) -> None:
    """Everything that can be wrong with the settings, before a model is loaded."""
    import torch

    if config.prompt not in REWRITE_TEMPLATES:
        raise UserError(f"--prompt {config.prompt}: there are {', '.join(REWRITE_TEMPLATES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.cuda.device_count() > 1:
        raise UserError("training runs in one process on one device so far: set CUDA_VISIBLE_DEVICES=0, no launcher")
    try:
        trainer_arguments(config, Path(config.output))  # the library knows its optimisers, schedules and trackers
    except (ValueError, ImportError) as error:
        raise UserError(f"--optimizer, --lr_scheduler or --report_to: {' '.join(str(error).split())}") from error


def main(config: TrainConfig) -> None:
    output = Path(config.output)
    rows = load_rows(config)  # one split for all seeds
    check_output_folder(output, config.overwrite)
    check(config)
    ref = resolve(config.base_model, revision=config.revision)
    default = "none" if config.method == "full" else params.QUANTIZATION
    config = replace(config, quantization=config.quantization or default)
    logger.info("training %s on %s (%s)", ref.name, config.input, describe(config))

    seeds = config.seed_list()
    with whole_folder(output, config.overwrite) as folder:
        runs = {}
        for seed in seeds:
            target = folder if len(seeds) == 1 else folder / f"seed-{seed}"
            runs[seed] = train_one(replace(config, seed=seed), ref, *rows, target)
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
    for seed, run in runs.items():
        print(
            f"seed {seed}: validation loss {run['validation_loss_before']:.3f} -> {run['validation_loss']:.3f} "
            f"in {run['steps']} steps, {run['train_seconds']:.0f} s"
        )
    print(f"{config.method} weights are in {output}; next: python training/merge.py --adapter_model {output}")


if __name__ == "__main__":
    run_stage(main, parse_config(TrainConfig, ALIASES))
