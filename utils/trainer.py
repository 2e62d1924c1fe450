"""SFTTrainer that computes only what is learned from, in parts that fit into memory, and stops at a loss of NaN."""

import logging
from pathlib import Path

import torch
from datasets import Dataset
from peft import PrefixTuningConfig
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from utils import likelihood, packing
from utils.base_trainer import TokenMeanTrainer, as_many_everywhere, callbacks_for, common_arguments, misfit
from utils.batches import Batch, split_batch, supervised_tokens
from utils.checkpoints import KeepAll
from utils.configs import TrainConfig
from utils.drift import SafetyProbe
from utils.helpers import UserError
from utils.loading import load_base
from utils.lora import lora_config
from utils.memory import log_estimate
from utils.models import ModelRef
from utils.supervision import Example

logger = logging.getLogger(__name__)

LAST = {"metric_for_best_model": "eval_step", "greater_is_better": True}
SAFEST = {"metric_for_best_model": "eval_safe_margin", "greater_is_better": True}


class CompletionTrainer(TokenMeanTrainer, SFTTrainer):
    """Trains with `likelihood.completion_loss` where that is the ordinary loss, and with SFTTrainer's own elsewhere.

    A batch of the data loader is one batch for the optimiser (times gradient accumulation). It goes through the model
    in parts of at most `micro_batch_tokens` tokens; the loss stays the mean over all its supervised tokens.
    """

    def __init__(
        self, *arguments, micro_batch_tokens: int, safety: SafetyProbe | None, stop_on_drift: bool = False, **named
    ):
        super().__init__(*arguments, **named)
        self.micro_batch_tokens = micro_batch_tokens
        self.safety, self.stop_on_drift = safety, stop_on_drift
        self.ordinary_because = _reason_for_the_ordinary_loss(self.model, self.args)
        self.checked = False
        if self.ordinary_because:
            logger.info("the ordinary loss of the library is used: %s", self.ordinary_because)

    def training_step(self, model, inputs: Batch, num_items_in_batch=None) -> torch.Tensor:
        if not self.ordinary_because and not self.checked:
            self._check_loss(self._prepare_inputs(inputs))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs: Batch, return_outputs=False, num_items_in_batch=None):
        if self.ordinary_because or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = likelihood.completion_loss(self.model, inputs, num_items_in_batch)
        # the tokens are counted over all processes, whose gradients are averaged
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    def evaluation_loop(self, *arguments, metric_key_prefix="eval", **named) -> EvalLoopOutput:
        """Beside the loss also how safe the model is, where there is a probe."""
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        output.metrics[f"{metric_key_prefix}_step"] = self.state.global_step
        if self.safety:
            found = self.safety.measure(self.model, self.state.global_step)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
            self.control.should_training_stop |= self._stops_for_drift()
        return output

    def _stops_for_drift(self) -> bool:
        return self.stop_on_drift and "safe_margin" in self.safety.fallen

    def _determine_best_metric(self, metrics, trial) -> bool:
        """Of a run that ends for drift the last checkpoint is not kept, however low its loss."""
        if self._stops_for_drift():
            if self.state.best_model_checkpoint is None:
                raise UserError(
                    f"safety has drifted by the first evaluation (step {self.state.global_step}), before any "
                    "checkpoint: evaluate sooner (--eval_steps), lower --lr, or mix in safety examples "
                    "(generate_data/mix_safety.py)"
                )
            return False
        return super()._determine_best_metric(metrics, trial)

    def parts(self, inputs: Batch) -> list[Batch]:
        return as_many_everywhere(
            list(split_batch(inputs, self.micro_batch_tokens, padded=bool(self.ordinary_because)))
        )

    def supervised(self, inputs: Batch) -> torch.Tensor:
        return supervised_tokens(inputs)

    def _check_loss(self, inputs: Batch) -> None:
        """Once, on the two shortest rows of the first batch: is our loss the ordinary one for this model?"""
        self.checked = True
        rows = inputs["attention_mask"].sum(dim=1).argsort()[:2]
        few = next(split_batch({name: value[rows] for name, value in inputs.items()}, budget=10**9))
        reason = misfit(
            self.model,
            lambda: self.model(**few, use_cache=False).loss,
            lambda: likelihood.completion_loss(self.model, few),
            "its loss or gradients",
        )
        if reason:
            self.ordinary_because = f"the faster loss does not fit this model ({reason})"
            logger.warning("the ordinary loss of the library is used: %s", self.ordinary_because)


def _reason_for_the_ordinary_loss(model, arguments) -> str | None:
    """Why `completion_loss` is not used here; None if it is."""
    if model.device.type != "cpu":
        return "the device has fused kernels for it"
    if arguments.gradient_checkpointing:  # not a matter of the model: the library switches it on as training begins
        return "gradient checkpointing runs the layers again"
    if arguments.packing:
        return "packed rows come with their own positions"
    if type(packing.without_adapter(model).get_output_embeddings()) is not torch.nn.Linear:
        return "its output layer is no plain linear layer"
    return packing.supports(model)


def trainer_arguments(config: TrainConfig, folder: Path) -> SFTConfig:
    return SFTConfig(
        max_length=None,  # longer rows are dropped before, and counted
        completion_only_loss=not config.train_on_inputs,
        packing=config.packing,
        **(common_arguments(config, folder) | (SAFEST if config.keep_safest else LAST if config.keep_last else {})),
    )


def _adapter_config(config: TrainConfig):
    """LoRA or prefix settings for PEFT; None when all weights are trained."""
    if config.method == "full":
        return None
    if config.method == "prefix":
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.prefix_tokens)
    return lora_config(config, "CAUSAL_LM")


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
        callbacks=[*([KeepAll(folder)] if config.keep_all else []), *callbacks_for(config, folder)],
        micro_batch_tokens=config.micro_batch_tokens,
        safety=SafetyProbe(config.safety_probe, tokenizer, folder) if config.safety_probe else None,
        stop_on_drift=config.stop_on_drift,
    )
    log_estimate(ref, config, ordinary=bool(trainer.ordinary_because))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and not trainer.is_fsdp_enabled:  # which wants one type for all that it shards
            parameter.data = parameter.data.float()  # the library keeps adapters of quantised models in 16 bits
    return trainer


def _to_dataset(examples: list[Example]) -> Dataset:
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples])
