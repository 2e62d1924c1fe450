"""How many rows a second does infer.py rewrite, against one row at a time and against a pipeline in batches?

    python benchmarks/bench_infer.py                                    # the base by prompt alone
    python benchmarks/bench_infer.py --base_model models/merged         # a tuned model, which copies most of a text
    python benchmarks/bench_infer.py --parts equal                      # are the texts those of one row at a time?
    python benchmarks/bench_infer.py --parts int8                       # 8-bit products: faster by how much?

Systems, all greedy, same prompts, same number type, same limit of new tokens: `one` calls `model.generate` row by row,
as the published script does; `pipeline` is transformers' text-generation pipeline with batch_size=32; `ours` is
utils.generation.generate, what infer.py uses. They take turns; loading is not counted, tokenising is. `equal` compares
in float32: a text that differs is looked at where it first differs, and the gap between the two likeliest tokens there
is printed. `int8` compares weights in 16 bits and in 8 bits (utils/int8.py); for the quality of the texts score what
infer.py --quantization int8 writes. Rows: the embedded test rows, repeated where more are asked for.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import GenerationConfig
from utils.data import read_table
from utils.helpers import set_seed, setup_process
from utils.prompts import rewrite_messages
from utils.report import markdown_table


def chats_of(rows: int) -> list:
    texts = list(read_table(params.TEST_FILE)["biased_text"])
    return [rewrite_messages(texts[n % len(texts)], "rewrite") for n in range(rows)]


def one(model, tokenizer, chats, tokens: int) -> list[str]:
    import torch

    texts = []
    for chat in chats:
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def pipeline(model, tokenizer, chats, tokens: int) -> list[str]:
    from transformers import pipeline as make_pipeline

    generator = make_pipeline("text-generation", model=model, tokenizer=tokenizer)
    found = generator(chats, batch_size=32, max_new_tokens=tokens, do_sample=False, return_full_text=False)
    return [answers[0]["generated_text"].strip() for answers in found]


def ours(model, tokenizer, chats, tokens: int) -> list[str]:
    from utils.generation import generate

    answers = generate(model, tokenizer, chats, GenerationConfig(max_new_tokens=tokens))
    return [answer.text for answer in sorted(answers, key=lambda answer: answer.index)]


SYSTEMS = {"one": one, "pipeline": pipeline, "ours": ours}


def load(base_model: str | None, dtype: str):
    from utils.loading import load_base, load_tokenizer
    from utils.models import resolve

    ref = resolve(base_model)
    return load_base(ref, "none", {"compute_dtype": dtype}).eval(), load_tokenizer(ref)


def speed(options) -> None:
    model, tokenizer = load(options.base_model, "bfloat16")
    chats = chats_of(options.rows)
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    tokens = dict.fromkeys(SYSTEMS, 0)
    for _ in range(options.rounds):
        for name, system in SYSTEMS.items():
            start = time.perf_counter()
            texts = system(model, tokenizer, chats, options.max_new_tokens)
            seconds[name].append(time.perf_counter() - start)
            tokens[name] = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    table = [
        [
            name,
            ", ".join(f"{s:.1f}" for s in times),
            f"{options.rows / statistics.median(times):.2f}",
            f"{tokens[name] / statistics.median(times):.0f}",
            f"{statistics.median(a / b for a, b in zip(times, seconds['ours'], strict=True)):.2f} x",
        ]
        for name, times in seconds.items()
    ]
    model_name = options.base_model or params.BASE_MODEL
    print(f"{model_name}, bfloat16, {options.rows} rows, at most {options.max_new_tokens} new tokens")
    print(markdown_table(["system", "seconds", "rows/s", "new tokens/s", "ours is faster by"], table))


def int8(options) -> None:
    from utils.loading import load_model, load_tokenizer
    from utils.models import resolve

    ref = resolve(options.base_model)
    tokenizer, chats = load_tokenizer(ref), chats_of(options.rows)
    models = {"16 bits": load_model(ref), "8 bits": load_model(ref, "int8")}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    texts = {}
    for _ in range(options.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            texts[name] = ours(model, tokenizer, chats, options.max_new_tokens)
            seconds[name].append(time.perf_counter() - start)
    table = []
    for name, times in seconds.items():
        same = sum(a == b for a, b in zip(texts[name], texts["16 bits"], strict=True))
        faster = statistics.median(a / b for a, b in zip(seconds["16 bits"], times, strict=True))
        each = ", ".join(f"{s:.1f}" for s in times)
        table.append([name, each, f"{options.rows / statistics.median(times):.2f}", f"{faster:.2f} x", str(same)])
    print(f"{ref.name}, {options.rows} rows, at most {options.max_new_tokens} new tokens")
    print(markdown_table(["weights", "seconds", "rows/s", "as fast as 16 bits", "same texts"], table))


def equal(options) -> None:
    import torch

    model, tokenizer = load(options.base_model, "float32")
    chats = chats_of(options.rows)
    wanted, found = (way(model, tokenizer, chats, options.max_new_tokens) for way in (one, ours))
    gaps = []
    for chat, a, b in zip(chats, wanted, found, strict=True):
        if a == b:
            continue
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        x, y = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (a, b))
        same = next((n for n, (i, j) in enumerate(zip(x, y, strict=False)) if i != j), min(len(x), len(y)))
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([prompt + x[:same]])).logits[0, -1]
        first, second = scores.topk(2).values.tolist()
        gaps.append(first - second)
        print(f"differs at token {same}, gap {first - second:.2g}: {a[:60]!r} {b[:60]!r}")
    small = sum(gap < 1e-3 for gap in gaps)
    print(f"{len(chats) - len(gaps)} of {len(chats)} texts equal; {small} of {len(gaps)} others at a gap below 1e-3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["speed", "equal", "int8"], default=["speed"])
    parser.add_argument("--base_model", help="default: the embedded one")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    setup_process()
    set_seed(0)
    for part in options.parts:
        {"speed": speed, "equal": equal, "int8": int8}[part](options)


if __name__ == "__main__":
    main()
