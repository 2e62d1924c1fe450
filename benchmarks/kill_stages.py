"""Does a kill at any moment leave half a file, or a stage that cannot go on? kill -9 on every stage, real scripts.

    python benchmarks/kill_stages.py                # 8 kills a stage

A stage runs once undisturbed and is timed. Then it is started again and again, and killed after 1/9, 2/9 ... of that
time. After each kill, whatever has a final name must be equal to what the undisturbed run wrote, and the same command
once more must end well with an equal result (or say that everything is there, where the kill came too late).
The model is a random one of two layers, so that the moments of reading, computing and writing all get their share.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from tests.tiny import make_tiny_model
from utils.data import read_table
from utils.params import ROOT
from utils.records import file_sha256, record_path
from utils.report import markdown_table

QUICK = "--epochs 1 --batch_size 4 --eval_steps 2 --lora_r 4"
# result -> the command that writes it into {here}; later ones read what earlier ones wrote {undisturbed}
STAGES = {
    "annotate.csv": "generate_data/annotate.py --engine transformers --base_model {work}/model "
    "--input {work}/pairs.csv --limit 12 --retries 0 --max_tokens 20 --max_failed 1 --output {here}/annotate.csv",
    "counterfactual.csv": "generate_data/counterfactuals.py --output {here}/counterfactual.csv",
    "spotter": "training/train_spotter.py --base_model {work}/model --input {work}/pairs.csv --output {here}/spotter",
    "adapter": "training/train.py --base_model {work}/model --input {work}/pairs.csv --output {here}/adapter " + QUICK,
    "merged": "training/merge.py --adapter_model {undisturbed}/adapter --output {here}/merged",
    "infer.csv": "testing/infer.py --base_model {work}/model --input {work}/pairs.csv --max_new_tokens 40 "
    "--batch_tokens 900 --output {here}/infer.csv",
    "answers.scores.csv": "testing/score.py --input {here}/answers.csv --scorers overlap,facts,edits",
    "report": "testing/compare.py --inputs one={undisturbed}/answers.scores.csv two={undisturbed}/answers.scores.csv "
    "--output {here}/report",
}


def content(path: Path) -> dict[str, str] | None:
    """What a result says, by file; None where it does not exist. What differs from run to run is left out: times,
    plots, and the texts of a 16-bit model, which depend on the batch."""
    if path.is_dir():
        stable = (".safetensors", "table.md", "results.json")
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(f.relative_to(path)): file_sha256(f) if f.name.endswith(stable) else "" for f in files}
    if path.is_file():
        return {"rows": read_table(path).drop(columns=["generated_text", "raw"], errors="ignore").to_csv()}
    return None


def run(command: list[str], kill_after: float | None = None) -> tuple[int, str]:
    """Exit code and stderr of a stage, killed after so many seconds or left alone."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    _, said = process.communicate()
    return process.returncode, said


def disturb(result: str, work: Path, kills: int) -> list[str]:
    """Runs one stage undisturbed, then kills it `kills` times. Returns a row of the table."""
    places = {"work": work, "undisturbed": work / "undisturbed"}
    start = time.monotonic()
    code, said = run(STAGES[result].format(here=work / "undisturbed", **places).split())
    if code:
        sys.exit(f"{result}: the undisturbed run failed\n{said}")
    seconds = time.monotonic() - start
    wanted = content(work / "undisturbed" / result)
    if result == "infer.csv":
        shutil.copy(work / "undisturbed" / result, work / "undisturbed" / "answers.csv")
    left, broken, failed = 0, 0, 0
    for kill in range(1, kills + 1):
        here = work / f"{result}-{kill}"
        here.mkdir()
        if (work / "undisturbed" / "answers.csv").is_file():
            shutil.copy(work / "undisturbed" / "answers.csv", here)
        command = STAGES[result].format(here=here, **places).split()
        run(command, seconds * kill / (kills + 1))
        found = content(here / result)
        left += found is not None
        broken += found not in (None, wanted)
        code, said = run(command)
        there = code == 2 and ("already there" in said or "is not empty" in said)
        left_over = [*here.glob("*.partial"), *here.glob("*.progress.jsonl")]
        recorded = record_path(here / result).is_file() or result == "counterfactual.csv"
        if (code and not there) or content(here / result) != wanted or left_over or not recorded:
            failed += 1
            print(f"{result}, kill {kill}: code {code}, {sorted(p.name for p in here.iterdir())}\n{said}", flush=True)
        shutil.rmtree(here)
    return [result, f"{seconds:.1f}", str(kills), str(left), str(broken), str(failed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8, help="kills a stage")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "undisturbed").mkdir()
        make_tiny_model(work / "model")
        pairs = [f"a bad thing {i},a thing {i}\na good thing {i},a good thing {i}" for i in range(30)]
        (work / "pairs.csv").write_text("\n".join(["biased_text,debiased_text", *pairs]) + "\n")
        for result in STAGES:
            rows.append(disturb(result, work, options.kills))
            print(*rows[-1], flush=True)
    header = [
        "result",
        "seconds undisturbed",
        "kills",
        "final name there",
        "of these broken",
        "next run not as it should",
    ]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
