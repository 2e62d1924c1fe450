"""The Trainer of cost models: pairs and labelled responses in one batch, in parts that fit into memory."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from utils import packing
from utils.base_trainer import TokenMeanTrainer, as_many_everywhere, callbacks_for, common_arguments, misfit
from utils.batches import Batch
from utils.configs import CostConfig
from utils.cost import JudgedIds, Normaliser, collate, cost_loss, head_of, hits, token_costs
from utils.helpers import UserError
from utils.loading import load_base
from utils.lora import lora_config
from utils.memory import log_estimate
from utils.models import ModelRef

logger = logging.getLogger(__name__)


class CostTrainer(TokenMeanTrainer, Trainer):
    """Means are over rows, a pair counting once; `labels` are the numbers of the rows of a batch."""

    def __init__(self, *arguments, config: CostConfig, **named):
        super().__init__(*arguments, **named)
        self.config = config
        self.model_accepts_loss_kwargs = False  # else the library counts sequences, and takes them for rows
        self.ordinary_because = _reason_for_the_ordinary_way(self.model, config)
        self.checked = False
        if self.ordinary_because:
            logger.info("prompts are run with each of their responses: %s", self.ordinary_because)

    @property
    def normaliser(self) -> Normaliser:
        """Of the callback that checkpoints keep, another one once a run goes on."""
        return next(c.normaliser for c in self.callback_handler.callbacks if isinstance(c, KeepsNormaliser))

    def training_step(self, model, inputs: Batch, num_items_in_batch=None) -> torch.Tensor:
        if not self.ordinary_because and not self.checked:
            self._check_costs(self._prepare_inputs(inputs))
        self.seen = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.normaliser.kind != "none":  # after the step, so that the parts of a batch are all treated alike
            self.normaliser.update(*self.accelerator.reduce(self.seen).tolist())
        return loss

    def evaluation_loop(self, *arguments, metric_key_prefix="eval", **named) -> EvalLoopOutput:
        """Beside the loss also how many pairs are ranked right, and how many labels told."""
        self.hits = torch.zeros(2, 2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        if self.config.objective == "regression":
            return output
        for name, (right, of) in zip(("ranking", "sign"), self.accelerator.reduce(self.hits).tolist(), strict=True):
            if of:
                output.metrics[f"{metric_key_prefix}_{name}_accuracy"] = right / of
        return output

    def compute_loss(self, model, inputs: Batch, return_outputs=False, num_items_in_batch=None):
        costs = token_costs(self.model, inputs, packed=not self.ordinary_because)
        if self.model.training:
            last = torch.stack([c[-1] for c in costs]).detach().double()[inputs["labels"] != -100]
            self.seen += torch.stack([torch.tensor(len(last), device=last.device), last.sum(), (last**2).sum()])
        costs = [self.normaliser(c) for c in costs]
        if not self.model.training:
            self.hits += hits(costs, inputs)
        token_wise = self.config.loss_type == "token-wise"
        total = cost_loss(costs, inputs, self.config.objective, token_wise, self.config.regularization)
        if num_items_in_batch is None:
            return total / self.supervised(inputs).clamp(min=1)
        # the rows are counted over all processes, whose gradients are averaged
        return total / num_items_in_batch * self.accelerator.num_processes

    def parts(self, inputs: Batch) -> list[Batch]:
        return as_many_everywhere(list(split_rows(inputs, self.config.micro_batch_tokens)))

    def supervised(self, inputs: Batch) -> torch.Tensor:
        rows = inputs["labels"]
        return torch.tensor(len(rows[rows != -100].unique()), device=rows.device)

    def _check_costs(self, inputs: Batch) -> None:
        """Once, on the pair of the first batch that shares most: are our costs and gradients the ordinary ones?"""
        self.checked = True
        few = max(split_rows(inputs, budget=1), key=lambda row: (len(row["labels"]), int(row["begins"][0])))
        ways = (partial(self._loss_of, few, packed) for packed in (False, True))
        if reason := misfit(self.model, *ways, "costs or gradients"):
            self.ordinary_because = f"the faster way does not fit this model ({reason})"
            logger.warning("prompts are run with each of their responses: %s", self.ordinary_because)

    def _loss_of(self, inputs: Batch, packed: bool) -> torch.Tensor:
        return cost_loss(token_costs(self.model, inputs, packed), inputs, self.config.objective)


def _reason_for_the_ordinary_way(model, config: CostConfig) -> str | None:
    if model.device.type != "cpu":
        return "the device has fused kernels"
    if config.gradient_checkpointing:
        return "gradient checkpointing runs the layers again"
    if head_of(model) is None:
        return "it is an encoder"
    return packing.supports(model)


def split_rows(inputs: Batch, budget: int) -> Iterator[Batch]:
    """Splits a batch of `cost.collate` into parts of at most `budget` padded tokens, rows of like length together.

    The responses of a row stay together. A single row may be longer, and is a part of its own.
    """
    lengths = inputs["attention_mask"].sum(dim=1)
    rows = [(inputs["labels"] == n).nonzero()[:, 0].tolist() for n in inputs["labels"].unique_consecutive()]
    rows.sort(key=lambda row: -int(lengths[row].max()))
    part: list[int] = []
    for row in rows:
        if part and int(lengths[part].max()) * (len(part) + len(row)) > budget:
            yield _take(inputs, part, lengths)
            part = []
        part += row
    yield _take(inputs, part, lengths)


def _take(inputs: Batch, sequences: list[int], lengths: torch.Tensor) -> Batch:
    width = int(lengths[sequences].max())
    return {name: value[sequences, :width] if value.dim() == 2 else value[sequences] for name, value in inputs.items()}


class KeepsNormaliser(TrainerCallback, ExportableState):
    """Has each checkpoint hold the running mean and deviation; the library makes it anew from them on resuming."""

    def __init__(self, **state):
        self.normaliser = Normaliser(**state)

    def state(self) -> dict:
        return {"args": vars(self.normaliser), "attributes": {}}


def cost_arguments(config: CostConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(remove_unused_columns=False, **common_arguments(config, folder))


def build_cost_trainer(
    config: CostConfig,
    ref: ModelRef,
    train: list[JudgedIds],
    validation: list[JudgedIds],
    tokenizer,
    folder: Path,
) -> CostTrainer:
    """The trainer with its model, checkpoints in `folder`/checkpoints."""
    settings = vars(config) | ({"compute_dtype": "float32"} if config.method == "full" else {})
    model = load_base(ref, config.quantization, settings, training=True, labels=1)
    if config.loss_type == "token-wise" and head_of(model) is None:
        raise UserError(f"--loss_type token-wise: {ref.name} is an encoder, which has one cost for a text")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if config.method == "lora":
        model = get_peft_model(model, lora_config(config, "SEQ_CLS", model.new_layers))
    settings = {"kind": config.normaliser, "function": config.normalise_by, "momentum": config.normaliser_momentum}
    trainer = CostTrainer(
        model=model,
        args=cost_arguments(config, folder),
        train_dataset=_to_dataset(train),
        eval_dataset=_to_dataset(validation),
        data_collator=lambda items: collate([item["example"] for item in items], tokenizer.pad_token_id),
        callbacks=[KeepsNormaliser(**settings), *callbacks_for(config, folder)],
        config=config,
    )
    log_estimate(ref, config, ordinary=bool(trainer.ordinary_because))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _to_dataset(examples: list[JudgedIds]) -> list[dict]:
    return [{"input_ids": example.input_ids, "example": example} for example in examples]  # rows are measured by ids
