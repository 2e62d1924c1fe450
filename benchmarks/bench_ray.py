"""Do rows stream through recipes/infer_ray.py, or pile up? Memory of all its processes while it runs.

    python benchmarks/bench_ray.py                 # 10,000 and 100,000 rows, a random Llama of two layers

The rows of one CSV file are answered with 4 new tokens each. Every second the unshared memory of all processes that
belong to the run is added up, and the shared object store; printed are the peaks of each quarter of the run. Flat
means: the last quarter takes what the second took, and 100,000 rows what 10,000 rows take.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from tests.tiny import make_tiny_model
from utils.params import ROOT
from utils.report import markdown_table


def write_rows(path: Path, rows: int) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "number"])
        writer.writerows([f"The clerk of office {n} is rude, as ever.", n] for n in range(rows))


def megabytes(processes: list[psutil.Process]) -> float:
    total = psutil.disk_usage("/dev/shm").used
    for process in processes:
        try:
            total += process.memory_full_info().uss
        except psutil.Error:  # it has ended
            continue
    return total / 2**20


def measure(rows: int, work: Path) -> tuple[float, list[float]]:
    """Seconds, and the peak of each quarter of the time in MB."""
    write_rows(work / "rows.csv", rows)
    command = [sys.executable, "recipes/infer_ray.py", "--input", work / "rows.csv", "--input_column", "text"]
    command += ["--output", work / f"out-{rows}", "--base_model", work / "model", "--max_new_tokens", "4"]
    command += ["--prompt", "rewrite-short"]
    shared = psutil.disk_usage("/dev/shm").used / 2**20
    start = time.monotonic()
    with open(work / "log", "w") as log:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    seen = []
    while process.poll() is None:
        # Ray's own processes are no children of the script once they run
        mine = [p for p in psutil.process_iter(["cmdline"]) if "ray" in " ".join(p.info["cmdline"] or [])]
        seen.append(megabytes(mine) - shared)
        time.sleep(1)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit((work / "log").read_text())
    print(process.stdout.read().strip(), flush=True)
    quarter = max(1, len(seen) // 4)
    return seconds, [max(seen[n * quarter : (n + 1) * quarter or None]) for n in range(4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_tiny_model(work / "model")
        for rows in options.rows:
            seconds, peaks = measure(rows, work)
            table.append([f"{rows:,}", f"{seconds:.0f}", f"{rows / seconds:.0f}", *(f"{peak:.0f}" for peak in peaks)])
    titles = ["rows", "seconds", "rows/s", *(f"peak MB, quarter {n}" for n in range(1, 5))]
    print(markdown_table(titles, table))


if __name__ == "__main__":
    main()
