"""Do the intervals of a share behind an imperfect judge hold the truth as often as they say? By simulation.

    python benchmarks/bench_coverage.py            # about 5 minutes

A judge with a planted sensitivity and specificity, a gold set on which both are measured, and a set that it judges.
Each setting is drawn anew many times: how often does the 95 % interval of utils/stats.py hold the true share, and the
true paired difference of two systems? Beside it, the same intervals with sensitivity and specificity taken as known.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.helpers import UserError
from utils.judges import corrected_difference, corrected_mean, measure_judge
from utils.report import markdown_table
from utils.stats import Sampling

ACCURACY = ((0.95, 0.95), (0.8, 0.9), (0.7, 0.95))  # sensitivity, specificity
GOLD = (50, 100, 400)  # rows, half of each label
ROWS = (150, 600)
SHARES = (0.1, 0.4)  # of the first system; the second one has half of it


def judged(truth: np.ndarray, accuracy: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    sensitivity, specificity = accuracy
    says_yes = np.where(truth == 1, sensitivity, 1 - specificity)
    return (rng.random(len(truth)) < says_yes).astype(float)


def simulate(accuracy: tuple[float, float], gold: int, rows: int, share: float, repeats: int) -> dict[str, float]:
    """Share of intervals that hold the truth, by kind, and the number of draws whose judge was refused."""
    rng = np.random.default_rng(int(1000 * sum(accuracy)) + 7 * gold + 11 * rows + int(100 * share))
    held, done, refused = dict.fromkeys(("mean", "mean, known", "difference", "difference, known"), 0), 0, 0
    labels = np.repeat([1.0, 0.0], gold // 2)
    for n in range(repeats):
        try:
            judge = measure_judge(judged(labels, accuracy, rng), labels)
        except UserError:  # no better than chance on its gold rows: a user is told so
            refused += 1
            continue
        first = (rng.random(rows) < share).astype(float)
        second = first * (rng.random(rows) < 0.5)  # paired: the second system mends half of the rows of the first
        ours, theirs = judged(second, accuracy, rng), judged(first, accuracy, rng)
        sampling = Sampling(confidence=0.95, resamples=1000, seed=n)
        done += 1
        for propagate, suffix in ((True, ""), (False, ", known")):
            mean = corrected_mean(theirs, judge, sampling, propagate=propagate)
            difference = corrected_difference(ours, theirs, judge, sampling, propagate=propagate)
            held["mean" + suffix] += mean["low"] <= share <= mean["high"]
            held["difference" + suffix] += difference["low"] <= -share / 2 <= difference["high"]
    return {name: count / done for name, count in held.items()} | {"refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    options = parser.parse_args()
    table, all_found = [], []
    for accuracy, gold, rows, share in product(ACCURACY, GOLD, ROWS, SHARES):
        found = simulate(accuracy, gold, rows, share, options.repeats)
        all_found.append(found)
        names = ("mean", "difference", "mean, known", "difference, known")
        table.append(
            [f"{accuracy[0]}, {accuracy[1]}", str(gold), str(rows), str(share), *(f"{found[n]:.3f}" for n in names)]
        )
    header = ["sensitivity, specificity", "gold rows", "rows", "share", "share held", "difference held",
              "share held, judge taken as known", "difference held, judge taken as known"]  # fmt: skip
    print(markdown_table(header, table))
    print(f"judges refused, no better than chance on their gold rows: {sum(found['refused'] for found in all_found)}")
    for name in ("mean", "difference", "mean, known", "difference, known"):
        values = [found[name] for found in all_found]
        print(f"{name}: {min(values):.3f} to {max(values):.3f}, mean {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
