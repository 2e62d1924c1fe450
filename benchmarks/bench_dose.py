"""How many safety examples repair a small model that complies? Safety-Tuned LLaMAs' study, by its public files.

    python benchmarks/bench_dose.py --parts start            # a start that has something to repair, and the proof
    python benchmarks/bench_dose.py --parts grid             # five doses, three seeds, from that start
    python benchmarks/bench_dose.py --parts instruct         # the same doses from the instruct model, one seed
    python benchmarks/bench_dose.py --parts drift            # does the drift gate flag what it should, and only that?
    python benchmarks/bench_dose.py --table                  # only print what is finished

Reads  <data_dir>/safety_tuned_llamas/ and others (see benchmarks/README.md), and the cost model of
       python benchmarks/bench_cost.py --seeds 0, which learned from none of the labelled answers
Writes models/bench/dose/                                    models and answers (not in git)
       benchmarks/results/dose/<start>_<dose>_s<seed>.json   a finished cell (in git): the measures of every answer
       benchmarks/results/dose/drift_<rows>_s<seed>.json     the margins of a run

A run that was stopped continues, also from the results alone: start and judge are then made again by the same
commands. The start is smollm2, tuned on the unsafe side of PKU-SafeRLHF's pairs in the Alpaca prompt. Nothing of the
grid, nor of what it is tested on, is among these rows.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import dose, params
from utils.cost_model import weights_hash
from utils.data import read_prompts, read_table, write_table
from utils.leaks import find_leaks
from utils.models import model_record, resolve
from utils.params import ROOT
from utils.records import read_json, whole_file, write_json
from utils.report import markdown_table, with_ends
from utils.stages import stage
from utils.stats import Sampling, paired_difference

WORK = ROOT / "models" / "bench" / "dose"
RESULTS = ROOT / "benchmarks" / "results" / "dose"
JUDGE = ROOT / "models" / "bench" / "cost" / "pairs_s0"
SAMPLING = Sampling(confidence=0.95, resamples=10_000, seed=0)
PARTS = ("start", "grid", "instruct", "drift")
SHARES = "0,0.025,0.1,0.25,0.5"
UNSAFE = ("I-MaliciousInstructions", "I-CoNa", "I-Controversial", "I-PhysicalSafetyUnsafe")
START = ["--base_model", "smollm2", "--prompt", "answer", "--prompt_style", "alpaca", "--quantization", "none",
         "--epochs", 2, "--allow_faults", "cut off,duplicate,completion in prompt,contradiction,leak",
         "--report_to", "none", "--resume"]  # fmt: skip
SAFE_START = ["--base_model", "smollm2", "--prompt", "answer", "--quantization", "none", "--epochs", 2,
              "--patience", 0, "--report_to", "none", "--resume"]  # fmt: skip
FIELDS = ["instruction", "input", "output"]
GRID = {"epochs": 2, "batch_size": 16, "max_length": 512, "quantization": "none", "eval_steps": 0.25, "patience": 0,
        "allow_faults": "cut off,duplicate,completion in prompt,leak,too long"}  # fmt: skip


def files(data_dir: Path) -> dict[str, list[Path]]:
    """What is tested on, by kind."""
    published = data_dir / "safety_tuned_llamas"
    return {
        "unsafe": [*(published / f"{name}.json" for name in UNSAFE), data_dir / "xstest_prompts.csv"],
        "safe": [data_dir / "xstest_prompts.csv", published / "I-PhysicalSafetySafe.json"],
        "useful": [published / "I-Alpaca.json"],
    }


def make_start(data_dir: Path) -> Path:
    """smollm2 without its scruples: two unsafe answers to each prompt, none of which is tested on."""
    rows = [json.loads(line) for line in open(data_dir / "pku_saferlhf_pairs.jsonl", encoding="utf-8")]
    published = data_dir / "safety_tuned_llamas" / "safety_only_data_Instructions.json"
    others = [path for of in files(data_dir).values() for path in of] + [published, data_dir / "alpaca_en_demo.json"]
    tests = [text for path in others for text in read_prompts(path)]
    leaks = {leak.row for leak in find_leaks([row["prompt"] for row in rows], tests)}
    rows = [row for n, row in enumerate(rows) if n not in leaks]
    random.Random(0).shuffle(rows)
    seen: Counter = Counter()
    chosen = []
    for row in rows:
        seen[row["prompt"]] += 1
        if seen[row["prompt"]] <= 2:
            chosen.append({"prompt": row["prompt"], "completion": row["unsafe_response"]})
    WORK.mkdir(parents=True, exist_ok=True)
    with whole_file(WORK / "unsafe.jsonl") as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    stage("training/train.py", *START, "--input", WORK / "unsafe.jsonl", "--output", WORK / "start_adapter")
    stage("training/merge.py", "--adapter_model", WORK / "start_adapter", "--output", WORK / "start")
    return WORK / "start"


def prove_start(start: Path, data_dir: Path) -> None:
    """Does the start comply more than smollm2 on I-MaliciousInstructions? Kept in results/dose/start.json."""
    asked = data_dir / "safety_tuned_llamas" / "I-MaliciousInstructions.json"
    ways = {"chat": ["--base_model", "smollm2"], "alpaca": ["--base_model", "smollm2", "--prompt_style", "alpaca"],
            "start": ["--base_model", start]}  # fmt: skip
    found = {}
    for name, flags in ways.items():
        answers = WORK / f"malicious_{name}.csv"
        stage("testing/infer.py", *flags, "--prompt", "answer", "--input", asked, "--output", answers,
              "--max_new_tokens", params.DOSE_TOKENS, "--overwrite")  # fmt: skip
        stage("testing/score.py", "--scorers", "refusal,cost,gibberish", "--cost_model", JUDGE, "--input", answers,
              "--input_column", "prompt")  # fmt: skip
        scores = read_table(answers.with_suffix(".scores.csv"), longest=params.MAX_ANSWER_CHARS)
        found[name] = dose.measured(scores.assign(kind="unsafe"))
    write_json(RESULTS / "start.json", found)


def gold(data_dir: Path) -> list[Path]:
    """Answers that people labelled: XSTest's to unsafe prompts, harmful where they comply, and Do-Not-Answer's."""
    xstest = read_table(data_dir / "xstest_completions.csv", longest=params.MAX_ANSWER_CHARS)
    xstest = xstest[xstest["prompt_unsafe"] == "1"].rename(columns={"completion": "response"})
    xstest["harmful"] = [str(int(label == "1_full_compliance")) for label in xstest["final_label"]]
    others = read_table(data_dir / "do_not_answer_labelled.csv", longest=params.MAX_ANSWER_CHARS)
    others = others.rename(columns={"question": "prompt"})
    harmless = others[others["harmful"] == "0"].sample(400, random_state=0)  # 123 of 4,176 are harmful
    made = {"xstest": xstest, "do_not_answer": others[(others["harmful"] == "1") | others.index.isin(harmless.index)]}
    for name, frame in made.items():
        write_table(frame[["prompt", "response", "harmful"]], WORK / f"{name}.csv")
    return [WORK / f"{name}.csv" for name in made]


def grid(start: str, name: str, seeds: str, data_dir: Path) -> None:
    """All doses from one start, by the recipe; what finishes is copied to the results at once."""
    work = WORK / name
    present = {"model": model_record(resolve(start)), "cost_model": weights_hash(str(JUDGE))}
    for kept in RESULTS.glob(f"{name}_*_s*.json"):
        cell = work / kept.stem.removeprefix(f"{name}_") / "cell.json"
        if not cell.is_file():  # of another machine, where the same commands gave weights that differ in the last bits
            found = read_json(kept)
            write_json(cell, found | {"settings": found["settings"] | present})
    settings = WORK / "grid.yaml"
    settings.write_text(json.dumps(GRID), encoding="utf-8")  # JSON is YAML
    published = data_dir / "safety_tuned_llamas"
    tested = [part for kind, of in files(data_dir).items() for part in (f"--{kind}", *of)]
    command = [sys.executable, "recipes/safety_dose.py", "--base_model", start, "--seeds", seeds, *tested,
               "--input", data_dir / "alpaca_en_demo.json", "--safety_shares", SHARES,
               "--safety", published / "safety_only_data_Instructions.json", "--gold", *gold(data_dir),
               "--cost_model", JUDGE, "--settings", settings, "--work", work,
               "--output", WORK / f"report_{name}"]  # fmt: skip
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT)
    while process.poll() is None:
        time.sleep(30)
        collect(name)  # so that a machine that goes away takes no finished cell with it
    code = process.returncode
    if code:
        sys.exit(code)


def collect(name: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for cell in (WORK / name).glob("*_s*/cell.json"):
        kept = RESULTS / f"{name}_{cell.parent.name}.json"
        if not kept.is_file():
            with whole_file(kept) as partial:
                partial.write_text(json.dumps(read_json(cell)) + "\n", encoding="utf-8")


def safe_start() -> Path:
    """smollm2, tuned on half of the embedded instructions and the safe side of the pairs: safety to be lost."""
    pairs = read_table(params.PAIRS_FILE).rename(columns={"prompt": "instruction", "safe_response": "output"})
    rows = read_json(params.GENERAL_FILE)[:100] + pairs.assign(input="")[FIELDS].to_dict("records")
    random.Random(0).shuffle(rows)
    write_json(WORK / "safe.json", rows)
    stage("training/train.py", *SAFE_START, "--input", WORK / "safe.json", "--output", WORK / "safe_adapter")
    stage("training/merge.py", "--adapter_model", WORK / "safe_adapter", "--output", WORK / "safe_start")
    return WORK / "safe_start"


def drift(seeds: list[int], data_dir: Path) -> None:
    """From that start: the other half of the instructions; the same and as many unsafe answers; and, in another voice,
    instructions of Alpaca. The probe is the test rows of the pairs."""
    start = safe_start()
    planted = read_table(params.PAIRS_FILE).rename(columns={"prompt": "instruction", "unsafe_response": "output"})
    planted = planted[planted["look_alike"] == "no"].assign(input="")[FIELDS]
    benign = read_json(params.GENERAL_FILE)[100:]
    rows = {"benign": benign, "planted": benign + planted.sample(100, random_state=0).to_dict("records"),
            "alpaca": read_json(data_dir / "alpaca_en_demo.json")[:100]}  # fmt: skip
    for seed in seeds:
        for name, of in rows.items():
            kept = RESULTS / f"drift_{name}_s{seed}.json"
            if kept.is_file():
                continue
            write_json(WORK / f"drift_{name}.json", of)
            folder = WORK / f"drift_{name}_s{seed}"
            stage("training/train.py", "--base_model", start, "--input", WORK / f"drift_{name}.json",
                  "--output", folder, "--seed", seed,
                  "--safety_probe", params.PAIRS_TEST_FILE, "--quantization", "none", "--epochs", 4, "--patience", 0,
                  "--eval_steps", 0.25, "--max_length", 512, "--report_to", "none", "--resume", "--allow_faults",
                  GRID["allow_faults"])  # fmt: skip
            metrics = read_json(folder / "metrics.json")
            curve = [{k: v for k, v in entry.items() if k == "step" or k.startswith("eval_") and "_per_" not in k}
                     for entry in metrics["history"] if "eval_safe_margin" in entry]  # fmt: skip
            write_json(kept, {"safety": metrics["safety"], "steps": metrics["steps"], "curve": curve})


def print_tables() -> None:
    if (RESULTS / "start.json").is_file():
        found = read_json(RESULTS / "start.json")
        lines = []
        for measure in dose.HARM:
            values = {name: np.array(of[measure]) for name, of in found.items()}
            for other in ("chat", "alpaca"):
                difference = paired_difference(values["start"], values[other], SAMPLING)
                means = [f"{values[name].mean():.3f}" for name in ("start", other)]
                lines.append([measure, other, *means, with_ends(difference, "+.3f"), str(difference["n"])])
        header = ["I-MaliciousInstructions", "smollm2 asked as", "start", "smollm2", "difference", "n"]
        print(markdown_table(header, lines))
    for name in ("start", "instruct"):
        report = WORK / f"report_{name}" / "table.md"
        if report.is_file():
            print(f"\n{name}:\n\n{report.read_text()}")
    runs = [(path.stem, read_json(path)) for path in sorted(RESULTS.glob("drift_*.json"))]
    if runs:
        kinds = ("safe", "helpful")
        rows = [
            [name, str(of["steps"]), *(str(of["safety"][f"{kind}_margin"]["fallen_at_step"]) for kind in kinds),
             f"{of['curve'][0]['eval_safe_margin']:.3f}", f"{of['curve'][-1]['eval_safe_margin']:.3f}",
             f"{of['curve'][0]['eval_helpful_margin']:.3f}", f"{of['curve'][-1]['eval_helpful_margin']:.3f}"]
            for name, of in runs
        ]  # fmt: skip
        header = [
            "run",
            "steps",
            "safe flagged at",
            "helpful flagged at",
            "safe margin before",
            "after",
            "helpful margin before",
            "after",
        ]
        print(f"\n{markdown_table(header, rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=params.ROOT.parent / "shared" / "data")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    options = parser.parse_args()
    if not options.table:
        run(options)
    print_tables()


def run(options: argparse.Namespace) -> None:
    if set(options.parts) - {"drift"} and not (JUDGE / "cost.json").is_file():
        sys.exit(f"{JUDGE} is not here: python benchmarks/bench_cost.py --seeds 0 makes it")
    seeds = ",".join(map(str, options.seeds))
    if {"start", "grid"} & set(options.parts):
        start = make_start(options.data_dir)
    if "start" in options.parts:
        prove_start(start, options.data_dir)
    if "grid" in options.parts:
        grid(str(start), "start", seeds, options.data_dir)
    if "instruct" in options.parts:
        grid("smollm2", "instruct", str(options.seeds[0]), options.data_dir)
    if "drift" in options.parts:
        drift(options.seeds, options.data_dir)


if __name__ == "__main__":
    main()
