"""SFTTrainer that computes only what is learned from, in parts that fit into memory, and stops at a loss of NaN."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from utils import likelihood, processes
from utils.batches import Batch, blank, split_batch, supervised_tokens
from utils.checkpoints import CompleteCheckpoints, StopOnSignal, Stopwatch
from utils.configs import FinetuneConfig, TrainConfig
from utils.helpers import UserError
from utils.loading import cpu_has_bf16, load_base
from utils.memory import estimate
from utils.models import ModelRef
from utils.supervision import Example

logger = logging.getLogger(__name__)


class CompletionTrainer(SFTTrainer):
    """Trains with `likelihood.completion_loss` where that is the ordinary loss, and with SFTTrainer's own elsewhere.

    A batch of the data loader is one batch for the optimiser (times gradient accumulation). It goes through the model
    in parts of at most `micro_batch_tokens` tokens; the loss stays the mean over all its supervised tokens.
    """

    def __init__(self, *arguments, micro_batch_tokens: int, **named):
        super().__init__(*arguments, **named)
        self.micro_batch_tokens = micro_batch_tokens
        self.ordinary_because = _reason_for_the_ordinary_loss(self.model, self.args)
        self.checked = False
        if self.ordinary_because:
            logger.info("the ordinary loss of the library is used: %s", self.ordinary_because)

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size  # the rows of all processes together
        return _ByEpoch(sampler, lambda: self.args.data_seed + int(self.state.epoch or 0))

    def training_step(self, model, inputs: Batch, num_items_in_batch=None) -> torch.Tensor:
        if not self.ordinary_because and not self.checked:
            self._check_loss(self._prepare_inputs(inputs))
        if num_items_in_batch is None:  # of models that do not say that they take one; a sum of means would be wrong
            num_items_in_batch = supervised_tokens(inputs)
        step = super().training_step
        # gradients are averaged once, after all parts
        with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
            loss = sum(step(model, part, num_items_in_batch) for part in self._parts(inputs))
        if isinstance(model, DistributedDataParallel) and self.accelerator.sync_gradients:
            processes.average_gradients(model)
        if not torch.isfinite(loss):
            raise UserError(self._why_not_finite(loss.item(), inputs))
        return loss

    def compute_loss(self, model, inputs: Batch, return_outputs=False, num_items_in_batch=None):
        if self.ordinary_because or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = likelihood.completion_loss(self.model, inputs, num_items_in_batch)
        # the tokens are counted over all processes, whose gradients are averaged
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Loss per supervised token over all rows; the library's is a mean of the means of batches.

        Of several processes each takes its share of the batches; the library fills up the last ones with rows that
        were counted already.
        """
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        rows, size = len(dataloader.dataset), self.args.eval_batch_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # loss, tokens
        for first in range(0, rows, size * self.args.world_size):
            start = first + size * self.args.process_index
            batch = [dataloader.dataset[i] for i in range(start, min(start + size, rows))]
            inputs = dataloader.collate_fn(batch) if batch else blank(dataloader.collate_fn([dataloader.dataset[0]]))
            for part in self._parts(self._prepare_inputs(inputs)):
                loss, supervised = self.compute_loss(self.model, part), supervised_tokens(part)
                if supervised:
                    sums += torch.stack([loss * supervised, supervised])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        total, tokens = self.accelerator.reduce(sums).tolist()
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": total / tokens}, rows)

    def _parts(self, inputs: Batch) -> Iterator[Batch]:
        parts = list(split_batch(inputs, self.micro_batch_tokens, padded=bool(self.ordinary_because)))
        # with every part the library talks to the other processes, so all must have as many
        missing = processes.largest(len(parts)) - len(parts)
        yield from parts + [blank(parts[-1])] * missing

    def _check_loss(self, inputs: Batch) -> None:
        """Once, on the two shortest rows of the first batch: is our loss the ordinary one for this model?"""
        self.checked = True
        rows = inputs["attention_mask"].sum(dim=1).argsort()[:2]
        few = next(split_batch({name: value[rows] for name, value in inputs.items()}, budget=10**9))
        try:
            found = likelihood.difference(self.model, few)
        except (NotImplementedError, TypeError) as error:  # the model's attention wants or gives something else
            found, reason = float("inf"), str(error)
        else:
            reason = f"its loss or gradients differ by {found:.1%}"
        if not found <= likelihood.tolerance(self.model.dtype):
            self.ordinary_because = f"the faster loss does not fit this model ({reason})"
            logger.warning("the ordinary loss of the library is used: %s", self.ordinary_because)

    def _why_not_finite(self, loss: float, inputs: Batch) -> str:
        """One line: where the numbers went wrong, and what to try."""
        where = f"the loss is {loss} in step {self.state.global_step + 1}"
        trained = (p for p in self.model.parameters() if p.requires_grad)
        if not all(torch.isfinite(p).all() for p in trained):
            return (
                f"{where}, because the step before made weights that are no numbers: give a lower --lr (it was "
                f"{self._get_learning_rate():.2g}), a lower --max_grad_norm or more --warmup_ratio"
            )
        longest = int(inputs["attention_mask"].sum(dim=1).max()) if "attention_mask" in inputs else "?"
        return (
            f"{where} although all weights are finite (longest row: {longest} tokens): the numbers overflow, "
            "try --compute_dtype bfloat16 or float32, or --quantization none"
        )


class _ByEpoch(Sampler):
    """The order of rows in an epoch, by a seed of its own, so that a run that is resumed meets the same batches.

    The library's samplers draw from the global generator, or are told the epoch in ways that do not reach them once
    a run is resumed by several processes.
    """

    def __init__(self, sampler: Sampler, seed: Callable[[], int]):
        self.sampler, self.seed = sampler, seed

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def _reason_for_the_ordinary_loss(model, arguments) -> str | None:
    """Why `completion_loss` is not used here; None if it is."""
    if model.device.type != "cpu":
        return "the device has fused kernels for it"
    if arguments.gradient_checkpointing:  # not a matter of the model: the library switches it on as training begins
        return "gradient checkpointing runs the layers again"
    if arguments.packing:
        return "packed rows come with their own positions"
    return likelihood.supports(model)


def trainer_arguments(config: TrainConfig, folder: Path) -> SFTConfig:
    return SFTConfig(
        max_length=None,  # longer rows are dropped before, and counted
        completion_only_loss=not config.train_on_inputs,
        packing=config.packing,
        **common_arguments(config, folder),
    )


def common_arguments(config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    """Our settings in the names of the library: the only place where the two meet."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder / "checkpoints"),
        "seed": config.seed,
        "data_seed": config.seed,
        "learning_rate": config.lr,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_ratio,  # below 1 the library reads a share
        "weight_decay": config.weight_decay,
        "optim": config.optimizer,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": config.gradient_checkpointing,
        "train_sampling_strategy": "group_by_length" if config.group_by_length else "random",
        "bf16": config.compute_dtype == "bfloat16" and (cuda or cpu_has_bf16()),
        "fp16": config.compute_dtype == "float16" and cuda,
        "use_cpu": not cuda,
        "eval_strategy": "steps",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps",
        "save_steps": config.eval_steps,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "logging_steps": config.logging_steps,
        "report_to": [name for name in config.trackers() if name != "tensorboard"],
        "disable_tqdm": None if sys.stderr.isatty() else True,
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
    }


def _adapter_config(config: TrainConfig):
    """LoRA or prefix settings for PEFT; None when all weights are trained."""
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


def callbacks_for(config: FinetuneConfig, folder: Path) -> list[TrainerCallback]:
    callbacks = [Stopwatch(), CompleteCheckpoints()]
    if config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    if "tensorboard" in config.trackers() and processes.is_main():
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(folder / "logs")))
    return [*callbacks, StopOnSignal()]  # the last one: it ends the run


def build_trainer(
    config: TrainConfig, ref: ModelRef, train: list[Example], validation: list[Example], tokenizer, folder: Path
) -> CompletionTrainer:
    """The trainer with its model, checkpoints in `folder`/checkpoints."""
    # all weights are trained in float32: a step of 1e-5 is lost in 16 bits
    settings = vars(config) | ({"compute_dtype": "float32"} if config.method == "full" else {})
    trainer = CompletionTrainer(
        model=load_base(ref, config.quantization, settings, training=True),
        args=trainer_arguments(config, folder),
        train_dataset=_to_dataset(train),
        eval_dataset=_to_dataset(validation),
        processing_class=tokenizer,
        peft_config=_adapter_config(config),
        callbacks=callbacks_for(config, folder),
        micro_batch_tokens=config.micro_batch_tokens,
    )
    memory = estimate(ref, config, ordinary=bool(trainer.ordinary_because))
    if memory:
        tight = memory.free is not None and memory.activations + memory.trained > memory.free  # the weights are loaded
        advice = "; too little: lower --micro_batch_tokens, or add --gradient_checkpointing"
        logger.log(logging.WARNING if tight else logging.INFO, "memory: %s%s", memory, advice if tight else "")
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and not trainer.is_fsdp_enabled:  # which wants one type for all that it shards
            parameter.data = parameter.data.float()  # the library keeps adapters of quantised models in 16 bits
    return trainer


def _to_dataset(examples: list[Example]) -> Dataset:
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples])
