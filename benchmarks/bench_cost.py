"""What is a small cost model worth on real pairs? PKU-SafeRLHF, by the stage scripts, in resumable cells.

    python benchmarks/bench_cost.py                    # three seeds on all pairs, on the better base
    python benchmarks/bench_cost.py --parts smollm2    # on the chat model that is the default
    python benchmarks/bench_cost.py --parts mixture    # other judged data mixed in
    python benchmarks/bench_cost.py --parts curve      # a quarter and a half of the pairs
    python benchmarks/bench_cost.py --parts sentences  # ToxiGen's texts, tested on the rest of them and on HateCheck
    python benchmarks/bench_cost.py --table            # only print what is finished

Reads  <data_dir>/pku_saferlhf_pairs.jsonl and others; see benchmarks/README.md
Writes models/bench/cost/...                     the cost models (not in git)
       benchmarks/results/cost/<cell>.json       costs of the test responses (in git), from which --table prints

Prompts are split by a hash of their text: a fifth to test, 16 % to validate (on which settings were chosen and the
best checkpoint is kept), the rest to train. Each pair holds exactly one safe response.
"""

import argparse
import gzip
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import cost_report, params
from utils.configs import file_and_share
from utils.cost_metrics import responses_of
from utils.data import same_text
from utils.params import ROOT
from utils.preferences import Judged, read_judged
from utils.records import read_json, whole_file
from utils.report import markdown_table, with_ends
from utils.stages import stage
from utils.stats import Sampling

WORK = ROOT / "models" / "bench" / "cost"
RESULTS = ROOT / "benchmarks" / "results" / "cost"
SAMPLING = Sampling(confidence=0.95, resamples=10_000, seed=0)
# chosen on the validation prompts
SETTINGS = {"--base_model": "mpnet", "--epochs": 2, "--lr": 4e-4, "--lora_r": 16, "--lora_alpha": 32,
            "--max_length": 256, "--prompt_dropout": 0, "--quantization": "none", "--patience": 0,
            "--eval_steps": 0.125}  # fmt: skip
SMOLLM2 = SETTINGS | {"--base_model": "smollm2", "--lr": 2e-4, "--epochs": 1.5}
MIXTURES = {  # name -> files of data_dir, and how much of each
    "derived+hh": ["cost_pairs_derived.jsonl", "hh_rlhf_harmless_test.jsonl.gz"],
    "derived+dia": ["cost_pairs_derived.jsonl", "diasafety.jsonl:0.2"],
    "derived+hh+dia": ["cost_pairs_derived.jsonl", "hh_rlhf_harmless_test.jsonl.gz", "diasafety.jsonl:0.2"],
}
PARTS = ("pairs", "smollm2", "mixture", "curve", "sentences")


def place(text: str) -> int:
    """0 to 999, by a hash."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 1000


def prepare(data_dir: Path) -> None:
    """Writes train.jsonl, validation.jsonl and test.jsonl, and the same of ToxiGen's texts."""
    WORK.mkdir(parents=True, exist_ok=True)
    bounds = {"test": range(200), "validation": range(200, 360), "train": range(360, 1000)}
    for name, column, prefix in (("pku_saferlhf_pairs", "prompt", ""), ("toxigen_annotated", "text", "sentences_")):
        rows = read(data_dir / f"{name}.jsonl")
        for part, places in bounds.items():
            write(f"{prefix}{part}.jsonl", [row for row in rows if place(row[column]) in places])


def prepare_mixtures(data_dir: Path) -> None:
    """Writes what is mixed in, without what answers a test prompt, be it as the first of several turns."""
    tested = {same_text(row["prompt"]) for row in read(WORK / "test.jsonl")}
    for name in {file_and_share(file)[0] for files in MIXTURES.values() for file in files}:
        rows = [row for row in read(data_dir / name) if same_text(_first_turn(row)) not in tested]
        write(name.removesuffix(".gz"), rows)


def _first_turn(row: dict) -> str:
    if "chosen" in row:
        return row["chosen"].strip().removeprefix("Human:").partition("\n\nAssistant:")[0]
    return row["context"] if "context" in row else row["prompt"]


def read(path: Path) -> list[dict]:
    if not path.is_file():
        sys.exit(f"{path} is not here: see benchmarks/README.md, or give --data_dir")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(name: str, rows: list[dict]) -> None:
    with whole_file(WORK / name) as partial:  # a run beside this one may be reading it
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def cell(name: str, inputs: list[str], seed: int, tests: dict[str, Path], flags: dict, prefix: str = "") -> None:
    """Trains a cost model and keeps the costs of the test responses; a finished cell is left as it is."""
    folder, kept = WORK / name, RESULTS / f"{name}.json"
    settings = [str(part) for item in flags.items() for part in item]
    names = [Path(given).name for given in inputs]
    if kept.is_file() and (read_json(kept)["settings"], read_json(kept)["inputs"]) == (settings, names):
        return
    validation = ["--validation", WORK / f"{prefix}validation.jsonl"]
    stage("training/train_cost.py", "--input", *inputs, *validation, "--seed", seed, "--output", folder,
          "--report_to", "none", "--resume", *settings)  # fmt: skip
    metrics = read_json(folder / "metrics.json")
    found = {"settings": settings, "inputs": names, "steps": metrics["steps"]}
    found["seconds"] = round(metrics["train_seconds"])
    found |= {"validation": {k: metrics[k] for k in ("ranking_accuracy", "sign_accuracy") if k in metrics}}
    found["calibration"] = read_json(folder / "cost.json")["calibration"]
    for test, path in tests.items():
        report = WORK / "reports" / f"{name}-{test}"
        stage("testing/evaluate_cost.py", "--cost_model", folder, "--input", path, "--output", report, "--overwrite",
              "--no_baselines", "--unsafe_labels", "unsafe,hate,hateful")  # fmt: skip
        costs = pd.read_csv(report / "costs.csv")["cost"]
        found[test] = [round(float(cost), 4) for cost in costs]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with whole_file(kept) as partial:
        partial.write_text(json.dumps(found) + "\n", encoding="utf-8")


def run(parts: list[str], seeds: list[int], mixtures: list[str], data_dir: Path) -> None:
    pairs, train = {"test": WORK / "test.jsonl"}, str(WORK / "train.jsonl")
    if "mixture" in parts:
        prepare_mixtures(data_dir)
    for seed in seeds:
        if "pairs" in parts:
            cell(f"pairs_s{seed}", [train], seed, pairs, SETTINGS)
        if "smollm2" in parts:
            cell(f"smollm2_s{seed}", [train], seed, pairs, SMOLLM2)
        if "mixture" in parts:
            for name in mixtures:
                mixed = [str(WORK / file.replace(".gz", "")) for file in MIXTURES[name]]
                cell(f"{name}_s{seed}", [train, *mixed], seed, pairs, SETTINGS)
        if "curve" in parts:
            for share in (0.25, 0.5):
                cell(f"pairs_{share}_s{seed}", [f"{train}:{share}"], seed, pairs, SETTINGS)
    if "sentences" in parts:
        tests = {"test": WORK / "sentences_test.jsonl", "hatecheck": hatecheck(data_dir)}
        for name, settings in (("sentences", SETTINGS), ("sentences_smollm2", SMOLLM2)):
            flags = settings | {"--objective": "binary", "--unsafe_labels": "hate"}
            cell(name, [str(WORK / "sentences_train.jsonl")], 0, tests, flags, prefix="sentences_")


def hatecheck(data_dir: Path) -> Path:
    frame = pd.read_csv(data_dir / "hatecheck.csv", keep_default_na=False)
    path = WORK / "hatecheck.csv"
    frame.rename(columns={"test_case": "text", "label_gold": "label", "functionality": "category"})[
        ["text", "label", "category"]
    ].to_csv(path, index=False)
    return path


def table(names: dict[str, list[str]], rows: list[Judged], others: dict[str, np.ndarray], test: str) -> None:
    """Every system's figures; of several seeds the means over them. Differences from TF-IDF, paired by row."""
    lines, differences = [], []
    for label, cells in names.items():
        files = [RESULTS / f"{name}.json" for name in cells]
        if not all(file.is_file() for file in files):
            continue
        found = [read_json(file) for file in files]
        costs = [np.array(of[test]) for of in found]
        per_seed = [
            cost_report.figures(rows, c, of["calibration"], SAMPLING) for c, of in zip(costs, found, strict=True)
        ]
        lines.append(
            [label, *(_mean(per_seed, m) for m in cost_report.SHOWN), str(max(of["seconds"] for of in found))]
        )
        if len(costs) > 1:  # would several models be worth their price?
            of = cost_report.accuracies(rows, np.mean(costs, axis=0), SAMPLING)
            together = [_mean([of], m) for m in cost_report.SHOWN]
            lines.append([f"{label}, mean of the costs of {len(costs)}", *together, ""])
        against = [cost_report.differences(rows, c, others["TF-IDF, prompt and response"], SAMPLING) for c in costs]
        differences.append([label, *(_mean(against, m, "+.3f") for m in ("ranking", "sign"))])
    for name, scores in others.items():
        of = cost_report.figures(rows, scores, None, SAMPLING)
        lines.append([name, *(_mean([of], m) for m in cost_report.SHOWN), ""])
    print(markdown_table(["system", *cost_report.SHOWN, "seconds"], lines))
    print(markdown_table(["minus TF-IDF, prompt and response", "ranking", "sign"], differences))


def _mean(of: list[dict], measure: str, form: str = ".3f") -> str:
    """Mean over seeds, with the mean ends of their intervals."""
    if any(measure not in found for found in of):
        return with_ends(None)
    ends = {end: [found[measure][end] for found in of] for end in ("mean", "low", "high")}
    return with_ends({end: None if None in values else np.mean(values) for end, values in ends.items()}, form)


def print_disagreement(data_dir: Path) -> None:
    """How often were two judgements of one response different? No model can be right about both."""
    said = defaultdict(list)
    for row in read(data_dir / "pku_saferlhf_pairs.jsonl"):
        for name in ("safe_response", "unsafe_response"):
            said[row["prompt"], row[name]].append(name == "unsafe_response")
    twos = sum(len(found) * (len(found) - 1) // 2 for found in said.values())
    apart = sum(sum(found) * (len(found) - sum(found)) for found in said.values())
    most = sum(max(sum(found), len(found) - sum(found)) for found in said.values())
    print(f"{len(said)} responses, {sum(map(len, said.values()))} judgements; of {twos} pairs of judgements of one")
    print(f"response {apart} ({apart / twos:.0%}) disagree; the majority's label of each agrees with {most}\n")


def print_tables(seeds: list[int], data_dir: Path) -> None:
    from utils.cost_baselines import baselines

    def judged(path: Path) -> list[Judged]:
        return read_judged([str(path)], "unsafe,hate,hateful", 0)

    print_disagreement(data_dir)
    rows, train = judged(WORK / "test.jsonl"), judged(WORK / "train.jsonl")
    others = {name: score(*responses_of(rows)) for name, score in baselines(train).items()}
    names = {"all pairs": [f"pairs_s{seed}" for seed in seeds]}
    names |= {"all pairs, smollm2": [f"smollm2_s{seed}" for seed in seeds]}
    names |= {f"{share:.0%} of the pairs": [f"pairs_{share}_s{seed}" for seed in seeds] for share in (0.25, 0.5)}
    names |= {f"all pairs + {name}": [f"{name}_s{seed}" for seed in seeds] for name in MIXTURES}
    mixed = [name for name in MIXTURES if all((RESULTS / f"{name}_s{seed}.json").is_file() for seed in seeds)]
    if mixed:
        prepare_mixtures(data_dir)
    for name in mixed:  # the same chance for the bag of words
        files = [str(WORK / file.replace(".gz", "")) for file in MIXTURES[name]]
        more = read_judged([str(WORK / "train.jsonl"), *files], "unsafe", 0)
        found = baselines(more, only="TF-IDF, prompt").items()
        others |= {f"{of} + {name}": score(*responses_of(rows)) for of, score in found}
    table(names, rows, others, "test")
    train = judged(WORK / "sentences_train.jsonl")
    for test, path in (("test", WORK / "sentences_test.jsonl"), ("hatecheck", hatecheck(data_dir))):
        rows = judged(path)
        others = {name: score(*responses_of(rows)) for name, score in baselines(train).items()}
        table({f"mpnet, {test}": ["sentences"], f"smollm2, {test}": ["sentences_smollm2"]}, rows, others, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=params.ROOT.parent / "shared" / "data")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["pairs"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mixtures", nargs="+", choices=MIXTURES, default=list(MIXTURES), help="for the part mixture")
    parser.add_argument("--table", action="store_true", help="only print the tables of finished cells")
    options = parser.parse_args()
    prepare(options.data_dir)
    if not options.table:
        run(options.parts, options.seeds, options.mixtures, options.data_dir)
    print_tables(options.seeds, options.data_dir)


if __name__ == "__main__":
    main()
