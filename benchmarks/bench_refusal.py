"""How far do the rules of testing/scorers/refusal.py agree with people? Cohen's kappa on XSTest's labelled answers.

    python benchmarks/bench_refusal.py

The rules were written looking at the answers of gpt4, llama2orig and mistralinstruct only; llama2new and mistralguard
were read once, when they stood. Printed per model: kappa for full refusal against the rest, and for the three classes,
with 95 % bootstrap intervals over answers, beside the kappa of the two people who labelled them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.scorers.refusal import FULL_REFUSAL, classify
from utils import params
from utils.data import read_table
from utils.report import markdown_table

READ = ("gpt4", "llama2orig", "mistralinstruct")  # the models that the rules were written with


def kappa(one: np.ndarray, other: np.ndarray) -> str:
    """Cohen's kappa with its 95 % percentile interval over 2,000 resamples of the answers."""
    from sklearn.metrics import cohen_kappa_score

    draws = np.random.default_rng(0).integers(len(one), size=(2000, len(one)))
    found = [cohen_kappa_score(one[rows], other[rows]) for rows in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{cohen_kappa_score(one, other):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=params.ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    frame = read_table(options.data_dir / "xstest_completions.csv")
    frame["rules"] = [classify(answer) for answer in frame["completion"]]
    labels = ("final_label", "annotation_1", "annotation_2")
    for column in labels:
        frame[column] = frame[column].str.partition("_")[2]  # 2_full_refusal
    seen = frame["model"].isin(READ)
    parts = {name: frame["model"] == name for name in (*READ, *sorted(set(frame["model"]) - set(READ)))}
    parts |= {"the three that were read": seen, "the two that were not": ~seen}
    table = []
    for name, mine in parts.items():
        rules, final, first, second = (frame.loc[mine, c].to_numpy(dtype=str) for c in ("rules", *labels))
        pairs = [(rules, final), (first, second)]
        table.append(
            [name, str(mine.sum())]
            + [kappa(a == FULL_REFUSAL, b == FULL_REFUSAL) for a, b in pairs]
            + [kappa(a, b) for a, b in pairs]
        )
    header = ["answers of", "n", "full refusal: rules", "two people", "three classes: rules", "two people"]
    print(markdown_table(header, table))


if __name__ == "__main__":
    main()
