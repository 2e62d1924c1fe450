"""Does cost grow with the rows, and no faster? train.py and infer.py on 100, 1,000 and 10,000 rows.

    python benchmarks/bench_growth.py                                     # a random Llama of two layers: 10 minutes
    python benchmarks/bench_growth.py --base_model models/merged --stages infer --rows 100 1000

Each stage runs as a user runs it, for one pass over so many different rows. With the small model what remains is the
work around the model: reading, the audit, tokenising, batching, keeping what is done. "ms a row" is the time of the
whole script less that of the smallest number of rows, by the rows between them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from tests.tiny import make_tiny_model
from utils.data import write_rows
from utils.params import ROOT
from utils.report import markdown_table


def measured(command: list) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command. Exits with what it said where it fails."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            sys.exit(log.read())
    return seconds, usage.ru_maxrss / 1024


def command_of(stage: str, model: str, rows: Path, output: Path) -> list:
    if stage == "infer":
        return [sys.executable, "testing/infer.py", "--base_model", model, "--input", rows, "--output", output,
                "--max_new_tokens", "16"]  # fmt: skip
    return [sys.executable, "training/train.py", "--base_model", model, "--input", rows, "--output", output,
            "--epochs", "1", "--report_to", "none"]  # fmt: skip


def growth(stage: str, model: str, counts: list[int], work: Path) -> list[list[str]]:
    """Table rows: rows, seconds, ms a further row, peak MB."""
    table, first = [], None
    for count in counts:
        path, output = work / f"{count}.csv", work / f"{stage}-{count}{'.csv' if stage == 'infer' else ''}"
        texts = ([f"The {tone}clerk of office {n} is slow." for tone in ("rude ", "")] for n in range(count))
        write_rows(texts, ["biased_text", "debiased_text"], path)
        seconds, peak = measured(command_of(stage, model, path, output))
        first = first or (count, seconds)
        further = 1000 * (seconds - first[1]) / (count - first[0]) if count > first[0] else None
        table.append(
            [stage, f"{count:,}", f"{seconds:.1f}", "" if further is None else f"{further:.1f}", f"{peak:.0f}"]
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    parser.add_argument("--rows", nargs="+", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--base_model", help="default: a random one of two layers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model = options.base_model or str(make_tiny_model(work / "model"))
        table = [row for stage in options.stages for row in growth(stage, model, options.rows, work)]
    print(markdown_table(["stage", "rows", "seconds", "ms a row", "peak MB"], table))


if __name__ == "__main__":
    main()
