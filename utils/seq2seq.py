"""Fine-tuning of encoder-decoders (T5, Flan-T5, BART) by transformers' Seq2SeqTrainer, on the rows of train.py."""

from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from utils.base_trainer import TokenMeanTrainer, callbacks_for, common_arguments
from utils.batches import Batch
from utils.configs import Seq2SeqConfig
from utils.loading import load_base
from utils.models import ModelRef
from utils.supervision import Example


class RewritingTrainer(TokenMeanTrainer, Seq2SeqTrainer):
    """Seq2SeqTrainer whose loss is a mean over the tokens of all batches of a step, in all processes.

    The models give the mean of a batch, whatever they are told of the others.
    """

    def compute_loss(self, model, inputs: Batch, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * (self.supervised(inputs) / num_items_in_batch) * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def seq2seq_arguments(config: Seq2SeqConfig, folder: Path) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(**common_arguments(config, folder))


def build_seq2seq_trainer(
    config: Seq2SeqConfig, ref: ModelRef, train: list[Example], validation: list[Example], tokenizer, folder: Path
) -> RewritingTrainer:
    """The trainer with its model, all of whose weights are trained; checkpoints in `folder`/checkpoints."""
    # in float32: a step of 1e-5 is lost in 16 bits
    model = load_base(ref, "none", {"compute_dtype": "float32"}, training=True)
    return RewritingTrainer(
        model=model,
        args=seq2seq_arguments(config, folder),
        train_dataset=_to_dataset(train),
        eval_dataset=_to_dataset(validation),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        callbacks=callbacks_for(config, folder),
    )


def _to_dataset(examples: list[Example]) -> Dataset:
    """What is read and what is written, apart."""
    rows = []
    for example in examples:
        read = example.labels.count(-100)
        rows.append({"input_ids": example.input_ids[:read], "labels": example.labels[read:]})
    return Dataset.from_list(rows)
