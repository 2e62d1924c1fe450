"""Teaches an encoder-decoder to rewrite: the small baselines of SR-LLM, T5, Flan-T5 and BART, all weights trained.

    python training/train_seq2seq.py                                             # Flan-T5 base
    python training/train_seq2seq.py --base_model google-t5/t5-large --batch_size 4 --gradient_accumulation 4
    python training/train_seq2seq.py --base_model facebook/bart-large --lr 3e-5

Reads  datasets/content_moderation/train.csv, or anything else that training/train.py reads
Writes models/seq2seq/: model.safetensors, config, tokenizer, metrics.json, loss.png, audit.html, logs/, run.json

The model reads the instruction and the text, as one, and writes the rewriting. Rows are audited and held out, the best
checkpoint is kept, and a stopped run goes on with --resume, as in training/train.py. There is no embedded model of
this kind: --base_model is a folder, or a Hub id. --compute_dtype float16 overflows in T5.

Next: python testing/infer.py --base_model models/seq2seq
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import Seq2SeqConfig
from utils.helpers import TRAINER_NAMES, parse_config, run_stage
from utils.loading import check_kind
from utils.models import resolve
from utils.processes import is_main
from utils.prompts import check_template
from utils.records import check_output_folder
from utils.supervision import load_rows


def main(config: Seq2SeqConfig) -> None:
    from utils.finetuning import check_settings, describe_runs, finetune, nothing_left_to_do, rewriting
    from utils.seq2seq import build_seq2seq_trainer, seq2seq_arguments

    if complete := nothing_left_to_do(config):
        if is_main():
            print(complete)
        return
    rows = load_rows(config)  # one split for all seeds
    check_output_folder(Path(config.output), config.overwrite)
    check_template(config.prompt)
    check_settings(config, seq2seq_arguments)
    ref = resolve(config.base_model, revision=config.revision)
    check_kind(ref, encoder_decoder=True)
    runs = finetune(replace(config, quantization="none"), ref, rows, rewriting(build_seq2seq_trainer))
    if is_main():
        print(describe_runs(runs))
        print(f"all weights: {config.output}; next: python testing/infer.py --base_model {config.output}")


if __name__ == "__main__":
    run_stage(main, parse_config(Seq2SeqConfig, TRAINER_NAMES))
