"""How much faster is train.py than SFTTrainer, for the same rows, steps and batches, and the same loss at the end?

    python benchmarks/bench_train.py                                   # all cells: about 90 minutes on two cores
    python benchmarks/bench_train.py --quantizations none --instructions shipped --rounds 1

The task is SR-LLM's: an instruction as the system turn, a biased text, its rewriting; LoRA on all linear layers. Three
systems take turns, each run in a process of its own: `default` is SFTTrainer with its own settings (gradient
checkpointing on), `tuned` is SFTTrainer with checkpointing off and the fastest batch size and attention of a short
trial, `ours` is what train.py builds. Seconds are those of `trainer.train()`, so ours pays for its self-check; the
validation loss afterwards is computed by the model's own forward pass, for all alike. Finished runs are kept in
benchmarks/results/train.jsonl, and the table is printed from there: the same command goes on after a stop.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import TrainConfig
from utils.helpers import set_seed, setup_process
from utils.prompts import REWRITE_TEMPLATES
from utils.report import markdown_table

KEPT = params.ROOT / "benchmarks" / "results" / "train.jsonl"
BATCH = 8
TUNINGS = [f"{rows}x{BATCH // rows}-{attention}" for rows in (8, 4, 2, 1) for attention in ("eager", "sdpa")]


def instruction(length: str, tokenizer) -> str:
    """The instruction as shipped, or the same text cut or repeated to so many tokens."""
    text = REWRITE_TEMPLATES["rewrite"]
    if length == "shipped":
        return text
    ids = tokenizer(" ".join([text] * 4), add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[: int(length)])


def run_once(system: str, quantization: str, length: str, rows: int, steps: int) -> dict:
    """Trains once and returns seconds, validation loss, peak memory, and what there was to compute."""
    import torch

    from utils.loading import load_tokenizer
    from utils.models import resolve
    from utils.supervision import encode_all, load_rows

    set_seed(0)
    ref = resolve(params.BASE_MODEL)
    tokenizer = load_tokenizer(ref, side="right")
    REWRITE_TEMPLATES["bench"] = instruction(length, tokenizer)
    config = TrainConfig(
        prompt="bench", quantization=quantization, limit=rows + 32, batch_size=BATCH, group_by_length=False,
        epochs=1, max_steps=steps, validation_share=32 / (rows + 32), report_to="none", patience=0,
    )  # fmt: skip
    train, held_out = encode_all(*load_rows(config), ref, tokenizer, config)
    trainer = (_ours if system == "ours" else _sft)(system, config, ref, tokenizer, train, held_out)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trained = train[: steps * BATCH] if steps > 0 else train
    shared = next(n for n in range(1000) if len({e.input_ids[n] for e in trained}) > 1)
    return {
        "seconds": seconds,
        "once": sum(len(e.input_ids) for e in trained) - shared * (len(trained) - len(trained) // BATCH),
        "loss": validation_loss(trainer.model, held_out),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": len(trained),
        "tokens": sum(len(e.input_ids) for e in trained),
        "supervised": sum(label != -100 for e in trained for label in e.labels),
        "instruction_tokens": len(tokenizer(REWRITE_TEMPLATES["bench"], add_special_tokens=False)["input_ids"]),
        "threads": torch.get_num_threads(),
    }


def _ours(system, config, ref, tokenizer, train, held_out):
    import tempfile

    from utils.trainer import build_trainer

    trainer = build_trainer(config, ref, train, held_out, tokenizer, Path(tempfile.mkdtemp()))
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"  # the others do not evaluate either
    trainer.args.load_best_model_at_end = False
    return trainer


def _sft(system, config, ref, tokenizer, train, held_out):
    import tempfile

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from utils.loading import load_base
    from utils.supervision import to_messages

    rows, attention = (BATCH, None) if system == "default" else (int(system[0]), system.partition("-")[2])
    if config.quantization == "nf4":
        model = load_base(ref, "nf4")
        model.config._attn_implementation = attention or "sdpa"
    else:
        model = AutoModelForCausalLM.from_pretrained(ref.path, dtype="bfloat16", attn_implementation=attention)
    messages = [to_messages(example.row, config.prompt) for example in train]
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), seed=config.seed, data_seed=config.seed, max_length=None,
        learning_rate=config.lr, lr_scheduler_type=config.lr_scheduler, warmup_steps=config.warmup_ratio,
        num_train_epochs=1, max_steps=config.max_steps, per_device_train_batch_size=rows,
        gradient_accumulation_steps=BATCH // rows, use_cpu=True, bf16=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
        **({} if system == "default" else {"gradient_checkpointing": False}),
    )  # fmt: skip
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
        target_modules="all-linear",
    )  # fmt: skip
    return SFTTrainer(
        model=model, args=arguments, processing_class=tokenizer, peft_config=lora,
        train_dataset=Dataset.from_list([{"prompt": p, "completion": c} for p, c in messages]),
    )  # fmt: skip


def validation_loss(model, examples) -> float:
    """Per supervised token, by the model's own forward pass, one row at a time."""
    import torch

    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for example in examples:
            ids, labels = (torch.tensor([values]) for values in (example.input_ids, example.labels))
            supervised = int((labels[:, 1:] != -100).sum())
            total += model(input_ids=ids, labels=labels).loss.item() * supervised
            tokens += supervised
    return total / tokens


def matrix_peak() -> float:
    """GFLOP/s of a large bfloat16 product on this machine, now."""
    import torch

    a = torch.randn(4096, 4096, dtype=torch.bfloat16)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(times) / 1e9


def needed_gflop(once: int, supervised: int) -> float:
    """Products of one pass over the rows, shared tokens once: forward and gradient of the input for frozen weights
    (4 operations a weight and token), all three products for LoRA (6), the output layer on supervised tokens only (4).
    """
    from utils.models import resolve, weight_shapes

    shapes = weight_shapes(Path(resolve(params.BASE_MODEL).path))
    layers = [s for name, s in shapes.items() if len(s) == 2 and "embed" not in name and "lm_head" not in name]
    frozen = sum(a * b for a, b in layers)
    lora = params.LORA_R * sum(a + b for a, b in layers)
    vocabulary, width = shapes["model.embed_tokens.weight"]
    return (once * (4 * frozen + 6 * lora) + supervised * 4 * vocabulary * width) / 1e9


def in_a_process(system: str, cell: tuple, rows: int, steps: int = -1) -> dict:
    command = [sys.executable, __file__, "--run", system, *map(str, cell), str(rows), str(steps)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=params.ROOT, env=os.environ)
    if found.returncode:
        sys.exit(found.stderr)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantizations", nargs="+", default=["none", "nf4"])
    parser.add_argument("--instructions", nargs="+", default=["shipped", "8", "32", "128"], help="tokens, or shipped")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    setup_process()
    if options.run:
        system, quantization, length, rows, steps = options.run
        print(json.dumps(run_once(system, quantization, length, int(rows), int(steps))))
        return
    kept = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.is_file() else []
    for length in options.instructions:
        for quantization in options.quantizations:
            measure((quantization, length), options, kept)
            print_cell((quantization, length), options.rows, kept)


def measure(cell: tuple, options, kept: list[dict]) -> None:
    """Runs what is missing of a cell, and keeps each run."""

    def keep(**values) -> None:
        kept.append({"cell": list(cell), "size": options.rows, **values})
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        with open(KEPT, "a", encoding="utf-8") as file:
            file.write(json.dumps(kept[-1]) + "\n")

    def of(kind: str) -> list[dict]:
        return [k for k in kept if k["cell"] == list(cell) and k["size"] == options.rows and k["kind"] == kind]

    if not of("tuning"):  # two steps each
        trials = {name: in_a_process(name, cell, options.rows, steps=2)["seconds"] for name in TUNINGS}
        keep(kind="tuning", trials=trials, fastest=min(trials, key=trials.get))
    systems = {"default": "default", "tuned": of("tuning")[0]["fastest"], "ours": "ours"}
    for turn in range(options.rounds):
        for name, system in systems.items():
            if not any(run["turn"] == turn for run in of(name)):
                keep(
                    kind=name, turn=turn, system=system, peak=matrix_peak(), **in_a_process(system, cell, options.rows)
                )


def print_cell(cell: tuple, rows: int, kept: list[dict]) -> None:
    table = []
    mine = [k for k in kept if k["cell"] == list(cell) and k["size"] == rows]
    by_name = {name: [k for k in mine if k["kind"] == name] for name in ("default", "tuned", "ours")}
    ours = statistics.median(run["seconds"] for run in by_name["ours"])
    for name, runs in by_name.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs, by_name["ours"], strict=True)]
        table.append(
            [
                f"{name} ({runs[0]['system']})",
                f"{seconds:.1f} ({', '.join(format(run['seconds'], '.1f') for run in runs)})",
                f"{runs[0]['tokens'] / seconds:.0f}",
                f"{statistics.median(ratios):.2f} x" if seconds != ours else "",
                f"{statistics.median(run['loss'] for run in runs):.4f}",
                f"{max(run['peak_mb'] for run in runs):.0f}",
            ]
        )
    run = by_name["ours"][0]
    gflop = needed_gflop(run["once"], run["supervised"])
    peak = statistics.median(run["peak"] for run in mine if "peak" in run)
    print(
        f"\n{cell[0]}, instruction of {run['instruction_tokens']} tokens, {run['rows']} rows, {run['tokens']} tokens "
        f"({run['supervised']} supervised); large matrix products run at {peak:.0f} GFLOP/s, ours at "
        f"{gflop / ours:.0f} ({gflop / ours / peak:.0%})"
    )
    header = ["system", "seconds, median (each)", "tokens/s", "ours is faster by", "loss", "peak MB"]
    print(markdown_table(header, table), flush=True)


if __name__ == "__main__":
    main()
