"""What our trainers share: the loss as a mean over tokens, the order of rows, several processes, a stop at NaN."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from utils import packing, processes
from utils.batches import Batch, blank
from utils.checkpoints import CompleteCheckpoints, StopOnSignal, Stopwatch
from utils.configs import OptimiserConfig
from utils.helpers import UserError
from utils.loading import cpu_has_bf16


class TokenMeanTrainer(Trainer):
    """To be put before a Trainer of the library, whose `compute_loss` gives, of the tokens of a batch or a part of it,

    - the mean, where `num_items_in_batch` is None,
    - else the sum over `num_items_in_batch`, times the number of processes.
    """

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size  # the rows of all processes together
        return _ByEpoch(sampler, lambda: self.args.data_seed + int(self.state.epoch or 0))

    def training_step(self, model, inputs: Batch, num_items_in_batch=None) -> torch.Tensor:
        if num_items_in_batch is None:  # of models that do not say that they take one; a sum of means would be wrong
            num_items_in_batch = self.accelerator.reduce(self.supervised(inputs).to(self.args.device))
        step = super().training_step
        # gradients are averaged once, after all parts
        with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
            loss = sum(step(model, part, num_items_in_batch) for part in self.parts(inputs))
        if isinstance(model, DistributedDataParallel) and self.accelerator.sync_gradients:
            processes.average_gradients(model)
        if not torch.isfinite(loss):
            raise UserError(self._why_not_finite(loss.item(), inputs))
        return loss

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
            for part in self.parts(self._prepare_inputs(inputs)):
                loss, supervised = self.compute_loss(self.model, part), self.supervised(part)
                if supervised:
                    sums += torch.stack([loss * supervised, supervised])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        total, tokens = self.accelerator.reduce(sums).tolist()
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": total / tokens}, rows)

    def parts(self, inputs: Batch) -> list[Batch]:
        """The batch in parts that go through the model one after the other; as many in every process."""
        return [inputs]

    def supervised(self, inputs: Batch) -> torch.Tensor:
        """How many tokens are learned."""
        return (inputs["labels"] != -100).sum()

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


def as_many_everywhere(parts: list[Batch]) -> list[Batch]:
    """The parts and empty ones after them: with every part the library talks to the other processes."""
    return parts + [blank(parts[-1])] * (processes.largest(len(parts)) - len(parts))


def misfit(model, ordinary: Callable, ours: Callable, what: str) -> str | None:
    """Why our way to a loss does not do for a model, in all processes; None if it does.

    Args:
        ordinary, ours: see `packing.difference`.
        what: what may differ.
    """
    try:
        found = packing.difference(model, ordinary, ours)
    except (NotImplementedError, TypeError) as error:  # the model's attention wants or gives something else
        found, reason = float("inf"), str(error)
    else:
        reason = f"{what} differ by {found:.1%}"
    # together, as each process has other rows; of a NaN nothing is the largest
    found = processes.largest(found if found == found else float("inf"))
    return None if found <= packing.tolerance(model.dtype) else reason


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


def common_arguments(config: OptimiserConfig, folder: Path) -> dict[str, Any]:
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


def callbacks_for(config: OptimiserConfig, folder: Path) -> list[TrainerCallback]:
    callbacks = [Stopwatch(), CompleteCheckpoints()]
    if config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    if "tensorboard" in config.trackers() and processes.is_main():
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(folder / "logs")))
    return [*callbacks, StopOnSignal()]  # the last one: it ends the run
