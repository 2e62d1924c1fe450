"""Fine-tuning of encoder-decoders (T5, Flan-T5, BART) by transformers' Seq2SeqTrainer, on the rows of train.py."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoConfig, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from utils.configs import Seq2SeqConfig
from utils.helpers import UserError
from utils.loading import load_base
from utils.models import ModelRef
from utils.supervision import Example
from utils.trainer import callbacks_for, common_arguments


def check_encoder_decoder(ref: ModelRef) -> None:
    """Raises UserError for a model of another kind."""
    settings = AutoConfig.from_pretrained(ref.path, revision=ref.revision)
    if not settings.is_encoder_decoder:
        kind = settings.model_type
        raise UserError(f"--base_model {ref.name} is no encoder-decoder ({kind}): training/train.py trains it")


def seq2seq_arguments(config: Seq2SeqConfig, folder: Path) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(**common_arguments(config, folder))


def build_seq2seq_trainer(
    config: Seq2SeqConfig, ref: ModelRef, train: list[Example], validation: list[Example], tokenizer, folder: Path
) -> Seq2SeqTrainer:
    """The trainer with its model, all of whose weights are trained; checkpoints in `folder`/checkpoints."""
    # in float32: a step of 1e-5 is lost in 16 bits
    model = load_base(ref, "none", {"compute_dtype": "float32"}, training=True)
    return Seq2SeqTrainer(
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
