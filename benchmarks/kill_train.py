"""Does a training run that is killed again and again end with the weights of one that was not?

    python benchmarks/kill_train.py                 # 20 kills at random moments, then damage to the newest checkpoint

One run is left alone and timed. Another is killed (SIGKILL) after a random share of that time, started again with
--resume, and so on, until it ends by itself; then a new one begins, until 20 kills are used up. Each must end with the
same weights, bit by bit, and the same best checkpoint. Then, of a run that was killed late, each file of the newest
checkpoint is deleted, cut and emptied in turn, and a copy is resumed. A random model of two layers in float32, LoRA
with dropout, so that a wrong state of the random generator shows.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from benchmarks.kill_stages import run
from tests.tiny import make_tiny_model
from utils.checkpoints import by_step
from utils.records import file_sha256

SETTINGS = "--resume --quantization none --compute_dtype float32 --lora_dropout 0.1 --epochs 3 --eval_steps 0.1"
DAMAGES = ("delete", "cut", "empty")


def result(output: Path) -> tuple:
    """What must be the same: the weights, and which checkpoint they are from."""
    metrics = json.loads((output / "metrics.json").read_text())
    return file_sha256(output / "adapter_model.safetensors"), metrics["best_step"], metrics["validation_loss"]


def kill_until_done(command: list[str], seconds: float, chance: random.Random, most: int) -> int:
    """Kills and resumes until the run ends by itself or has been killed `most` times. Returns the number of kills."""
    kills = 0
    while True:
        last = kills == most
        code, said = run(command, None if last else seconds * chance.uniform(0.2, 1.1))
        if code == 0:
            return kills
        if code != -9:
            sys.exit(f"after {kills} kills: exit code {code}\n{said}")
        kills += 1


def damage(path: Path, how: str) -> None:
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == "cut" else b"")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_tiny_model(work / "model", hidden=256)
        rows = [f"A bad thing number {i}.,A thing number {i}." for i in range(300)]
        (work / "pairs.csv").write_text("\n".join(["biased_text,debiased_text", *rows]) + "\n")
        command = f"training/train.py --base_model {work}/model --input {work}/pairs.csv {SETTINGS} --output".split()
        start = time.monotonic()
        code, said = run([*command, str(work / "alone")])
        if code:
            sys.exit(said)
        seconds = time.monotonic() - start
        wanted = result(work / "alone")
        print(f"alone: {seconds:.1f} s, best step {wanted[1]}", flush=True)

        kills = runs = different = 0
        while kills < options.kills:
            output = work / f"killed-{runs}"
            kills += kill_until_done([*command, str(output)], seconds, chance, options.kills - kills)
            runs += 1
            different += result(output) != wanted
            print(f"{runs} runs, {kills} kills, {different} with another result", flush=True)

        # killed late: several checkpoints are there
        while True:
            shutil.rmtree(work / "late.partial", ignore_errors=True)
            code, _ = run([*command, str(work / "late")], seconds * chance.uniform(0.75, 0.9))
            if code == -9 and len(by_step(work / "late.partial" / "checkpoints")) > 1:
                break
            shutil.rmtree(work / "late", ignore_errors=True)
        newest = by_step(work / "late.partial" / "checkpoints")[0].relative_to(work / "late.partial")
        names = sorted(path.name for path in (work / "late.partial" / newest).iterdir())
        for name in names:
            for how in DAMAGES:
                for left in ("hurt", "hurt.partial"):
                    shutil.rmtree(work / left, ignore_errors=True)
                shutil.copytree(work / "late.partial", work / "hurt.partial")
                damage(work / "hurt.partial" / newest / name, how)
                code, said = run([*command, str(work / "hurt")])
                told = f"{newest.name} cannot be used" in said
                same = code == 0 and result(work / "hurt") == wanted
                print(f"{name} {how}: skipped with a message {told}, same result {same}", flush=True)
                different += not (told and same)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
