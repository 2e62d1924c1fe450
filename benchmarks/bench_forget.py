"""Are unsafe examples forgotten first by a model of 135M? ForgetFilter and interleaved training on public data.

    python benchmarks/bench_forget.py --parts half           # 50 % unsafe, three seeds
    python benchmarks/bench_forget.py --parts shares         # 25 and 75 %, one seed
    python benchmarks/bench_forget.py --parts table          # the paper's table 2 for bias, one seed
    python benchmarks/bench_forget.py --table                # only print what is finished

Reads  <data_dir>/bbq/, squad_xquad_en.jsonl, alpaca_en_demo.json (see benchmarks/README.md); and the cost model of
       python benchmarks/bench_cost.py --seeds 0, if it is there, as another filter
Writes models/bench/forget/                                   models and answers (not in git)
       benchmarks/results/forget/bias_<share>_s<seed>.json    a finished cell (in git): rates, and how well filters do
       benchmarks/results/forget/table2_s<seed>.json          harm and F1 of every strategy

A run that was stopped continues. A cell is 600 rows: BBQ's stereotypes, its right answers, SQuAD and Alpaca; smollm2
learns them by heart (first gate: a mean ROUGE-1 of 0.6 on them, else a forgetting rate means nothing), then right
answers to other templates of BBQ, and is asked again on the way.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.params import ROOT
from utils.records import read_json, record_path, whole_file
from utils.report import markdown_table, with_ends
from utils.stages import stage

WORK = ROOT / "models" / "bench" / "forget"
RESULTS = ROOT / "benchmarks" / "results" / "forget"
JUDGE = ROOT / "models" / "bench" / "cost" / "pairs_s0"
PARTS = ("half", "shares", "table")
ROWS, NOISY_EPOCHS, SAFE_STEPS = 600, 6, 120
TRAIN = ["--prompt", "answer", "--quantization", "none", "--keep_last", "--batch_size", 16, "--max_length", 1024,
         "--validation_limit", 50, "--report_to", "none", "--resume", "--allow_faults",
         params.NOISY_FAULTS]  # fmt: skip


def mixture(share: float, seed: int, data_dir: Path) -> Path:
    folder = WORK / f"data_{share}_s{seed}"
    if not (folder / "run.json").is_file():
        bbq = sorted((data_dir / "bbq").glob("*.jsonl"))
        stage("generate_data/mix_noisy.py", "--unsafe", *bbq, "--safe", *bbq, "--task",
              data_dir / "squad_xquad_en.jsonl", data_dir / "alpaca_en_demo.json", "--size", ROWS,
              "--unsafe_share", share, "--safe_size", 1000, "--test_size", ROWS, "--seed", seed,
              "--output", folder)  # fmt: skip
    return folder


def cell(share: float, seed: int, data_dir: Path) -> None:
    """M1, M2, what was forgotten, and the filters."""
    name = f"bias_{share}_s{seed}"
    kept, folder = RESULTS / f"{name}.json", WORK / name
    if kept.is_file():
        return
    started = time.monotonic()
    data = mixture(share, seed, data_dir)
    held_out = ["--validation", data / "test.jsonl", "--seed", seed]
    noisy, safe, merged = folder / "noisy", folder / "safe", folder / "noisy_merged"
    stage("training/train.py", *TRAIN, *held_out, "--base_model", "smollm2", "--input", data / "noisy.jsonl",
          "--output", noisy, "--epochs", NOISY_EPOCHS)  # fmt: skip
    stage("training/merge.py", "--adapter_model", noisy, "--output", merged)
    stage("training/train.py", *TRAIN, *held_out, "--base_model", merged, "--input", data / "safe.jsonl",
          "--output", safe, "--max_steps", SAFE_STEPS, "--eval_steps", SAFE_STEPS // 3, "--keep_all")  # fmt: skip
    forgetting, filtered = folder / "forgetting.csv", folder / "filtered"
    if not forgetting.is_file():
        stage("testing/forgetting.py", "--input", data / "noisy.jsonl", "--before", merged,
              "--after", *safe.glob("step-*"), "--output", forgetting)  # fmt: skip
    others = []
    if (JUDGE / "cost.json").is_file():
        rows = folder / "noisy.jsonl"  # scores go beside what is scored
        rows.write_bytes((data / "noisy.jsonl").read_bytes())
        stage("testing/score.py", "--scorers", "cost", "--cost_model", JUDGE, "--input", rows,
              "--input_column", "instruction", "--output_column", "output")  # fmt: skip
        others = ["--others", f"cost model={folder / 'noisy.scores.csv'}:cost"]
    found = {"summary": read_json(forgetting.with_suffix(".summary.json")), "filters": {}}
    for signal in ("rouge1", "likelihood"):
        stage("generate_data/filter_forgotten.py", "--input", data / "noisy.jsonl", "--forgetting", forgetting,
              "--signal", signal, "--output", filtered, "--overwrite", *others)  # fmt: skip
        curve = [line.split(",") for line in (filtered / "curve.csv").read_text().replace('"', "").splitlines()]
        found["filters"][signal] = read_json(filtered / "summary.json") | {"curve": curve}
    trained = read_json(noisy / "metrics.json")
    found |= {"trained": {k: trained[k] for k in ("steps", "train_seconds", "validation_loss")}}
    found |= {"models": read_json(record_path(forgetting))["models"], "seconds": time.monotonic() - started}
    keep(kept, found)


def table2(seed: int, data_dir: Path) -> None:
    """One round of every strategy, on the same rows as the cell of half the share."""
    kept, folder = RESULTS / f"table2_s{seed}.json", WORK / f"table2_s{seed}"
    if kept.is_file():
        return
    settings = WORK / "table2.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"quantization": "none", "batch_size": 16}))  # JSON is YAML
    started = time.monotonic()
    stage("recipes/interleave.py", "--data", mixture(0.5, seed, data_dir), "--base_model", "smollm2", "--rounds", 1,
          "--noisy_steps", NOISY_EPOCHS * ROWS // 16, "--safe_steps", SAFE_STEPS, "--settings", settings,
          "--seed", seed, "--work", folder, "--output", folder / "report")  # fmt: skip
    keep(kept, read_json(folder / "state.json") | {"seconds": time.monotonic() - started})


def keep(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(found) + "\n", encoding="utf-8")


def print_tables() -> None:
    measures = ("dropped", "precision", "recall", "f1", "auroc")
    rates, filters = [], []
    for path in sorted(RESULTS.glob("bias_*.json")):
        found = read_json(path)
        for of in found["summary"]["polarity"]:
            values = (of[name] for name in ("rouge1", "forgotten_rouge1", "likelihood", "forgotten_likelihood"))
            rates.append([path.stem, of["model"], of["polarity"], str(of["rows"]), *map(with_ends, values)])
        least = params.LEARNED_LEAST
        before = [of for of in found["summary"]["polarity"] if of["model"] == "before"]
        learned = sum(of["rouge1"]["mean"] * of["rows"] for of in before) / sum(of["rows"] for of in before)
        print(
            f"{path.stem}: ROUGE-1 of what was learned {learned:.3f} (gate {least}), {found['seconds'] / 60:.0f} min"
        )
        print(f"rank correlation of the two signals: {found['summary']['agreement']}\n")
        if learned < least:
            print("below the gate: its rates mean nothing and are left out\n")
            rates = [row for row in rates if row[0] != path.stem]
            continue
        for signal, of in found["filters"].items():
            for name, value in of["compared"].items():
                beside = name if "> " in name else f"{name} as by {signal}"
                filters.append([path.stem, beside, *(with_ends(value.get(measure)) for measure in measures)])
    if rates:
        header = ["cell", "after", "polarity", "rows", "ROUGE-1", "forgotten", "likelihood", "forgotten"]
        print(f"{markdown_table(header, rates)}\n\n{markdown_table(['cell', 'dropped for', *measures], filters)}\n")
    for path in sorted(RESULTS.glob("table2_*.json")):
        found = read_json(path)
        sources = list(found["models"]["base"]["f1"])
        rows = [
            [name, *map(with_ends, of["harm"].values()), *(with_ends(of["f1"][source]) for source in sources)]
            for name, of in found["models"].items()
        ]
        header = ["model", *found["models"]["base"]["harm"], *(f"F1 {source}" for source in sources)]
        print(f"{path.stem}, {found['seconds'] / 60:.0f} min:\n\n{markdown_table(header, rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=params.ROOT.parent / "shared" / "data")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds if "half" in options.parts else ():
            cell(0.5, seed, options.data_dir)
        for share in (0.25, 0.75) if "shares" in options.parts else ():
            cell(share, options.seeds[0], options.data_dir)
        if "table" in options.parts:
            table2(options.seeds[0], options.data_dir)
    print_tables()


if __name__ == "__main__":
    main()
