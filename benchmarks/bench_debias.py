"""Does tuning beat simple tricks on real data? ParaDetox, through the stage scripts, in resumable cells.

    python benchmarks/bench_debias.py                       # 600 and 2,400 training rows, seeds 0, 1, 2
    python benchmarks/bench_debias.py --rows 600 --seeds 0  # one cell

Reads  <data_dir>/paradetox.tsv (toxic, neutral1, neutral2, neutral3); see benchmarks/README.md
Writes models/bench/...            adapters, merged models, answers (not in git)
       benchmarks/results/debias/  one small JSON per finished cell (in git), from which `--table` prints the table

Rows are shuffled once with a fixed seed: 200 test rows, 200 tuning rows (on which settings were chosen), the rest to
train on. Of up to three human rewritings a training row takes the one closest to the source that is not the source
itself: the smallest sufficient edit. The score takes the best of all three. "Toxic words" are words that human
rewriters remove, learned from all rows outside the test set. What is toxic says a classifier made by
training/train_toxicity.py from rows that no system was trained, tuned or tested on; copy and reference show its worth.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.data import write_table
from utils.metrics import chrf, contains, is_copy, removed_words, words
from utils.params import ROOT
from utils.records import whole_file
from utils.report import markdown_table, with_ends
from utils.stages import stage
from utils.stats import Sampling, mean_interval, paired_difference

WORK = ROOT / "models" / "bench"
RESULTS = ROOT / "benchmarks" / "results" / "debias"
REFERENCES = ("neutral1", "neutral2", "neutral3")
TEST_ROWS = TUNING_ROWS = 200
# passes for each way to write the answer, by number of rows; chosen on the tuning rows
EPOCHS = {"fill": {600: 3, 2400: 1}, "rewrite": {600: 3, 2400: 1}}
SPREAD = 0.8  # of the spotter, chosen on the tuning rows
LEARNING_RATE = 3e-4
JUDGE_ROWS = 3000  # for the toxicity classifier: each gives a toxic text and a neutral one
SCORERS = "overlap,edits,meaning,facts,toxicity,fluency,joint"
QUALITY = ("chrf", "meaning", "facts", "toxic", "fluency", "joint")
SURFACE = ("biased_words_left", "toxic_rows", "copied", "length_ratio")
SAMPLING = Sampling(confidence=0.95, resamples=10_000, seed=0)


def load(data_dir: Path) -> pd.DataFrame:
    path = data_dir / "paradetox.tsv"
    if not path.is_file():
        sys.exit(f"{path} is not here: see benchmarks/README.md, or give --data_dir")
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).map(str.strip)
    frame = frame[frame[list(REFERENCES)].ne("").any(axis=1)].reset_index(drop=True)
    order = list(range(len(frame)))
    random.Random(20261122).shuffle(order)
    return frame.loc[order].reset_index(drop=True)


def smallest_edit(row: pd.Series) -> str:
    given = [row[name] for name in REFERENCES if row[name]]
    edits = [text for text in given if not is_copy(row["toxic"], text)] or given
    return max(edits, key=lambda text: chrf(text, [row["toxic"]]))


def prepare(frame: pd.DataFrame, rows: int) -> None:
    """Writes test.csv, tune.csv, train_<rows>.csv and judge.csv."""
    WORK.mkdir(parents=True, exist_ok=True)
    start = TEST_ROWS + TUNING_ROWS
    pairs = [(row["toxic"], row[name]) for _, row in frame[TEST_ROWS:].iterrows() for name in REFERENCES if row[name]]
    toxic = removed_words(pairs)

    def judged(part: pd.DataFrame) -> pd.DataFrame:
        marked = [json.dumps([w for w in dict.fromkeys(words(text)) if w in toxic]) for text in part["toxic"]]
        return pd.DataFrame(
            {"biased_text": part["toxic"], **{n: part[n] for n in REFERENCES}, "biased_words": marked, "bias": "Yes"}
        ).assign(debiased_text=[smallest_edit(row) for _, row in part.iterrows()])

    write_table(judged(frame[:TEST_ROWS]), WORK / "test.csv")
    write_table(judged(frame[TEST_ROWS:start]), WORK / "tune.csv")
    train = frame[start : start + rows]
    targets = [smallest_edit(row) for _, row in train.iterrows()]
    write_table(pd.DataFrame({"biased_text": train["toxic"], "debiased_text": targets}), WORK / f"train_{rows}.csv")
    judge = frame[start + max(EPOCHS["fill"]) :][:JUDGE_ROWS]
    texts = [*judge["toxic"], *(smallest_edit(row) for _, row in judge.iterrows())]
    labels = ["toxic"] * len(judge) + ["neutral"] * len(judge)
    write_table(pd.DataFrame({"text": texts, "label": labels}), WORK / "judge.csv")


def train_judge() -> Path:
    folder = WORK / "judge"
    if not folder.is_dir():
        stage("training/train_toxicity.py", "--input", WORK / "judge.csv", "--output", folder)
    return folder


def train_spotter(rows: int) -> Path:
    folder = WORK / f"spotter-r{rows}"
    if not folder.is_dir():
        stage("training/train_spotter.py", "--input", WORK / f"train_{rows}.csv", "--output", folder)
    return folder


def train(prompt: str, rows: int, seed: int) -> Path:
    folder = WORK / f"{prompt}-r{rows}-s{seed}"
    if not (folder / "adapter").is_dir():
        stage(
            "training/train.py", "--input", WORK / f"train_{rows}.csv", "--output", folder / "adapter", "--seed", seed,
            "--prompt", prompt, "--epochs", EPOCHS[prompt][rows], "--lr", LEARNING_RATE,
            "--validation_share", 60 / rows, "--batch_size", 16, "--gradient_accumulation", 1,
        )  # fmt: skip
    if not (folder / "merged").is_dir():
        stage("training/merge.py", "--adapter_model", folder / "adapter", "--output", folder / "merged")
    return folder / "merged"


def write_cell(path: Path, value: dict) -> None:
    """One line: hundreds of numbers a file, kept in git."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value) + "\n", encoding="utf-8")


def cell(name: str, *infer_flags) -> None:
    """Rewrites the test rows, scores them, and keeps the figures; a finished cell is left as it is."""
    kept = RESULTS / f"{name}.json"
    flags = [str(flag).replace(f"{ROOT}/", "") for flag in infer_flags]
    if kept.is_file():
        found = json.loads(kept.read_text())
        if found["flags"] == flags and set(found["per_row"]) == {*QUALITY, *SURFACE}:
            return
    answers = WORK / "answers" / f"{name}.csv"
    stage(
        "testing/infer.py", "--input", WORK / "test.csv", "--output", answers, "--overwrite",
        "--max_new_tokens", 96, *infer_flags,
    )  # fmt: skip
    stage(
        "testing/score.py", "--input", answers, "--scorers", SCORERS, "--toxicity_model", train_judge(),
        "--reference_columns", ",".join(REFERENCES),
    )  # fmt: skip
    scored = pd.read_csv(answers.with_suffix(".scores.csv"), keep_default_na=False)
    texts, marked = scored["generated_text"], scored["biased_words"].map(json.loads)
    scored["toxic_rows"] = [float(any(contains(t, w) for w in ws)) for t, ws in zip(texts, marked, strict=True)]
    per_row = {m: [None if v == "" else round(float(v), 4) for v in scored[m]] for m in (*QUALITY, *SURFACE)}
    write_cell(kept, {"name": name, "flags": flags, "per_row": per_row})


def pooled(names: list[str], measure: str) -> np.ndarray | None:
    """Per-row mean over the given cells (training seeds), NaN where one has no value; None while a cell is missing."""
    files = [RESULTS / f"{name}.json" for name in names]
    if not all(file.is_file() for file in files):
        return None
    rows = np.array([json.loads(file.read_text())["per_row"][measure] for file in files], dtype=float)
    if measure == "toxic":  # as in ParaDetox, a text is toxic or it is not
        rows = np.where(np.isnan(rows), rows, rows >= 0.5)
    return rows.mean(axis=0)


def print_tables(seeds: list[int]) -> None:
    """Means over test rows and training seeds with intervals over rows; differences from delete, paired by row."""
    systems = {"copy": ["copy"], "reference (closest)": ["reference"], "prompted base": ["prompted"]}
    baselines = {}
    for rows in EPOCHS["fill"]:
        systems |= {
            f"delete, {rows} pairs": [f"delete_r{rows}"],
            f"few-shot base, {rows} pairs": [f"few-shot_r{rows}"],
        }
        for kind, label in (("tuned", "tuned, whole texts"), ("fill", "tuned, spot and fill")):
            systems[f"{label}, {rows} pairs"] = [f"{kind}_r{rows}_s{seed}" for seed in seeds]
            baselines[f"{label}, {rows} pairs"] = f"delete_r{rows}"
    means, surface, differences = [], [], []
    for label, names in systems.items():
        values = {m: pooled(names, m) for m in (*QUALITY, *SURFACE)}
        if values["chrf"] is None:
            continue
        cells = {m: with_ends(mean_interval(values[m], SAMPLING), ".1f" if m == "chrf" else ".2f") for m in QUALITY}
        if len(names) > 1:
            cells["chrf"] += f", seeds +- {np.std([pooled([n], 'chrf').mean() for n in names], ddof=1):.1f}"
        means.append([label, *cells.values()])
        surface.append([label, *(f"{np.nanmean(values[m]):.3f}" for m in SURFACE)])
        if label in baselines and (RESULTS / f"{baselines[label]}.json").is_file():
            found = {m: paired_difference(values[m], pooled([baselines[label]], m), SAMPLING) for m in QUALITY}
            differences.append([label, *(with_ends(d, "+.1f" if m == "chrf" else "+.2f") for m, d in found.items())])
    print(markdown_table(["system", *QUALITY], means))
    print(markdown_table(["minus delete", *QUALITY], differences))
    print(markdown_table(["system", *SURFACE], surface))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir", type=Path, default=ROOT.parent / "shared" / "data", help="folder with paradetox.tsv"
    )
    parser.add_argument("--rows", type=int, nargs="+", choices=[600, 2400], default=[600, 2400], help="training rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--whole_texts", action="store_true", help="also tune models that repeat the whole text")
    parser.add_argument("--table", action="store_true", help="only print the tables of finished cells")
    options = parser.parse_args()
    if options.table:
        return print_tables(options.seeds)
    frame = load(options.data_dir)
    for rows in options.rows:
        prepare(frame, rows)
        pairs = WORK / f"train_{rows}.csv"
        for seed in options.seeds:
            # all rows are known to be toxic
            spotting = ("--spotter", train_spotter(rows), "--spot_threshold", 0, "--spot_spread", SPREAD)
            cell(f"fill_r{rows}_s{seed}", "--base_model", train("fill", rows, seed), *spotting)
            if options.whole_texts:
                cell(f"tuned_r{rows}_s{seed}", "--base_model", train("rewrite", rows, seed))
        cell(f"delete_r{rows}", "--baseline", "delete", "--train_file", pairs)
        cell(f"few-shot_r{rows}", "--base_model", "smollm2", "--shots", 4, "--train_file", pairs)
    cell("copy", "--baseline", "copy")
    cell("reference", "--baseline", "reference")
    cell("prompted", "--base_model", "smollm2")
    print_tables(options.seeds)


if __name__ == "__main__":
    main()
