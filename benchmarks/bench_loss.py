"""What do the shared prefix and the supervised-only output layer save? One training step, three ways, same rows.

    python benchmarks/bench_loss.py --quantization nf4

Ways: the ordinary `model(labels=...)`; the loss of SFTTrainer as it comes (fused output layer, tiled on CPU); and
`utils.likelihood.completion_loss`. Rows: the first 32 of the embedded training rows in batches of 8, LoRA on
all linear layers, forward and backward. The ways take turns, so that a slow moment of the machine hits all of them.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.data import read_table
from utils.helpers import set_seed, setup_process
from utils.report import markdown_table


def batches(tokenizer, rows: int, size: int):
    """Padded batches with labels on the completion only, and the number of real tokens."""
    from utils.prompts import rewrite_messages

    frame = read_table(params.TRAIN_FILE, rows)
    found, tokens = [], 0
    for start in range(0, rows, size):
        part = frame[start : start + size]
        prompts = [rewrite_messages(text, "rewrite") for text in part["biased_text"]]
        full = [[*p, {"role": "assistant", "content": c}] for p, c in zip(prompts, part["debiased_text"], strict=True)]
        batch = tokenizer(
            [tokenizer.apply_chat_template(chat, tokenize=False) for chat in full], padding=True, return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, prompt in enumerate(prompts):
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            labels[row, : len(tokenizer(text)["input_ids"])] = -100
        tokens += int(batch["attention_mask"].sum())
        found.append({**batch, "labels": labels})
    return found, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "none"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    setup_process()

    import torch
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    from utils.likelihood import completion_loss
    from utils.loading import load_base, load_tokenizer
    from utils.models import resolve

    set_seed(0)
    ref = resolve(params.BASE_MODEL)
    tokenizer = load_tokenizer(ref, side="right")
    lora = LoraConfig(
        r=params.LORA_R, lora_alpha=params.LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_base(ref, options.quantization, training=True), lora).train()
    data, tokens = batches(tokenizer, 32, 8)
    plain_forward = model.get_base_model().forward

    def ordinary(batch):
        return model(**batch).loss

    def fused(batch):
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))
        try:
            outputs = model(**batch, use_cache=False, fused_lm_head=True)
            return -outputs.log_probs.sum() / outputs.label_mask.sum()
        finally:
            model.get_base_model().forward = plain_forward

    ways = {"ordinary": ordinary, "TRL": fused, "ours": lambda batch: completion_loss(model, batch)}
    seconds, losses = dict.fromkeys(ways, 0.0), {}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            total = 0.0
            for batch in data:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = way(batch)
                loss.backward()
                total += loss.item()
            if turn:  # the first turn warms up
                seconds[name] += time.perf_counter() - start
            losses[name] = total / len(data)
    rows = [
        [name, f"{losses[name]:.4f}", f"{options.rounds * tokens / s:.0f}", f"{seconds['ordinary'] / s:.2f} x"]
        for name, s in seconds.items()
    ]
    print(
        f"{options.quantization}, {torch.get_num_threads()} threads, {options.rounds} rounds of {tokens} real tokens"
    )
    print(markdown_table(["way", "loss", "real tokens/s", "speed-up"], rows))


if __name__ == "__main__":
    main()
