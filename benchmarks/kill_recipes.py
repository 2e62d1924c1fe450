"""Does a recipe that is killed again and again end with the same models and the same table? kill -9, the real model.

    python training/train_cost.py                   # the judge, once
    python benchmarks/kill_recipes.py               # both recipes
    python benchmarks/kill_recipes.py --recipes interleave

Each recipe runs once undisturbed, small: two doses, or one round of two strategies. Then it runs once more in another
folder, and it and all that it started is killed each time a quarter of that time has passed, and started again, until
it ends. Compared are the trained weights, each answer, and the table. Answers may differ where a kill fell among them:
a 16-bit model rounds differently in another batch.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.data import read_table
from utils.params import MAX_ANSWER_CHARS, ROOT
from utils.records import file_sha256
from utils.report import markdown_table
from utils.stages import stage

MOST_KILLS = 12
RECIPES = {
    "safety_dose": "recipes/safety_dose.py --seeds 0 --safety_counts 0,20 --limit 60 --max_new_tokens 32",
    "interleave": "recipes/interleave.py --data {work}/noisy --rounds 1 --strategies none,forget_filter "
    "--noisy_steps 60 --safe_steps 12 --settings {work}/settings.yaml",
}


def run(command: list[str], kill_after: float | None = None) -> bool:
    """Whether it ended by itself; after so many seconds it is killed, with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{said}")
    return True


def differing(wanted: list[Path], found: list[Path]) -> str:
    """How many of the files differ, of how many."""
    return f"{sum(file_sha256(a) != file_sha256(b) for a, b in zip(wanted, found, strict=True))} of {len(wanted)}"


def differing_answers(wanted: list[Path], found: list[Path]) -> str:
    texts = [[text for path in of for text in read_table(path, longest=MAX_ANSWER_CHARS)["generated_text"]]
             for of in (wanted, found)]  # fmt: skip
    return f"{sum(a != b for a, b in zip(*texts, strict=True))} of {len(texts[0])}"


def disturb(recipe: str, work: Path) -> list[str]:
    """Runs a recipe undisturbed, and then with kills. Returns a row of the table."""
    seconds, kills, files, places = [], 0, [], []
    for folder in ("undisturbed", "killed"):
        command = RECIPES[recipe].format(work=work).split()
        command += ["--work", str(work / recipe / folder), "--output", str(work / recipe / f"{folder}_report")]
        start = time.monotonic()
        while not run(command, seconds[0] / 4 if seconds else None):
            kills += 1
            if kills == MOST_KILLS:
                sys.exit(f"{recipe}: killed {kills} times, and no nearer to its end")
        seconds.append(time.monotonic() - start)
        here = work / recipe / folder
        files.append([sorted(here.rglob(name)) for name in ("adapter_model.safetensors", "answers.csv")])
        places.append([str(path.relative_to(here)) for of in files[-1] for path in of])
    if places[0] != places[1] or not all(files[0]):
        sys.exit(f"{recipe}: without kills there are {places[0]}, with them {places[1]}")
    tables = [(work / recipe / f"{folder}_report" / "table.md").read_text() for folder in ("undisturbed", "killed")]
    (weights, answers), (weights_killed, answers_killed) = files
    said = [differing(weights, weights_killed), differing_answers(answers, answers_killed)]
    same = "the same" if tables[0] == tables[1] else "\n".join(["differs:", *tables])
    return [recipe, *(f"{value:.0f}" for value in seconds), str(kills), *said, same]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        stage("generate_data/mix_noisy.py", "--output", work / "noisy")
        (work / "settings.yaml").write_text("quantization: none\n")
        for recipe in options.recipes:
            rows.append(disturb(recipe, work))
            print(*rows[-1], flush=True)
    header = [
        "recipe",
        "seconds undisturbed",
        "with kills",
        "kills",
        "weights that differ",
        "answers that differ",
        "table",
    ]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
