"""Is testing/probe_bias.py as fast as it could be, and does it find what lm-evaluation-harness finds?

    python benchmarks/bench_probe.py                   # against lm-evaluation-harness, on a slice
    python benchmarks/bench_probe.py --parts full      # the script over all of BBQ and CrowS-Pairs that is there

Reads  <data_dir>/bbq/*.jsonl and crows_pairs.csv; see benchmarks/README.md
Needs  pip install -r requirements-eval.txt

Both run the same model object on the same rows, one after the other, after a warm-up; the harness with the
best of --batch_sizes. BBQ is compared in its own form (task bbq: twelve answers, ten wordings of unknown) and with
the three answers of each question (multiple_choice on the same prompt).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import bbq, params, sentence_pairs
from utils.configs import ProbeConfig
from utils.data import read_table
from utils.helpers import setup_process
from utils.report import markdown_table
from utils.stats import Sampling

SAMPLING = Sampling(confidence=0.95, resamples=200, seed=0)


def write_tasks(folder: Path, rows: dict[str, Path]) -> None:
    """The harness's own tasks, and one with three answers, on local rows."""
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks"
    data = "dataset_path: {kind}\ndataset_name: null\ndataset_kwargs: {{data_files: {{test: {path}}}}}\n"
    crows, questions = data.format(kind="csv", path=rows["crows"]), data.format(kind="json", path=rows["bbq"])
    (folder / "crows.yaml").write_text(
        f"include: {tasks}/crows_pairs/crows_pairs_english.yaml\ntask: local_crows\n{crows}"
    )
    (folder / "bbq.yaml").write_text(f"include: {tasks}/bbq/bbq_multiple_choice.yaml\ntask: local_bbq\n{questions}")
    (folder / "bbq3.yaml").write_text(
        f"task: local_bbq3\n{questions}test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{context}}\\n\\nQ: {{question}}\\nA:"\ndoc_to_target: label\n'
        'doc_to_choice: "{{[ans0, ans1, ans2]}}"\nmetric_list: [{metric: acc}]\n'
    )


def harness(model, tokenizer, task: str, folder: Path, batch_size: int) -> tuple[float, np.ndarray, dict]:
    """Seconds, log-likelihoods [rows, answers] and figures of lm-evaluation-harness."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    started = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    seconds = time.perf_counter() - started
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    nats = np.array([[answer[0] for answer in sample["filtered_resps"]] for sample in samples])
    return seconds, nats, {name.split(",")[0]: value for name, value in found["results"][task].items()}


def ours(model, tokenizer, items) -> tuple[float, np.ndarray, list]:
    """Seconds, log-likelihoods and tokens."""
    from utils.options import option_likelihoods

    started = time.perf_counter()
    found = dict(option_likelihoods(model, tokenizer, [(item.context, item.options) for item in items]))
    seconds = time.perf_counter() - started
    return seconds, np.array([found[n].nats for n in range(len(items))]), [found[n].tokens for n in range(len(items))]


def compare(options) -> None:
    from utils.loading import load_base, load_tokenizer
    from utils.models import resolve

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ref = resolve(options.base_model)
    tokenizer = load_tokenizer(ref, "right")
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {"crows": folder / "crows.csv", "bbq": folder / "bbq.jsonl"}
        pairs = read_table(options.data_dir / "crows_pairs.csv", options.rows)
        pairs[["sent_more", "sent_less", "bias_type"]].to_csv(rows["crows"], index=False)
        text = (options.data_dir / "bbq" / "Age.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        rows["bbq"].write_text("".join(text[: options.rows]), encoding="utf-8")
        write_tasks(folder, rows)
        probes = {
            "local_crows": (sentence_pairs, sentence_pairs.read(rows["crows"], ProbeConfig())),
            "local_bbq3": (bbq, bbq.read(rows["bbq"], ProbeConfig())),
            "local_bbq": (bbq, bbq.read(rows["bbq"], ProbeConfig(all_unknowns=True))),
        }
        for dtype in options.dtypes:
            model = load_base(ref, "none", {"compute_dtype": dtype}).eval()
            for task, (probe, items) in probes.items():
                ours(model, tokenizer, items[:8])  # warm-up
                seconds, nats, tokens = ours(model, tokenizer, items)
                tries = {size: harness(model, tokenizer, task, folder, size) for size in options.batch_sizes}
                size, (their_seconds, their_nats, theirs) = min(tries.items(), key=lambda item: item[1][0])
                outcomes = [probe.outcome(*each) for each in zip(items, nats, tokens, strict=True)]
                figures = {name: value["mean"] for name, value in probe.figures(outcomes, SAMPLING).items()}
                apart = np.abs(nats - their_nats).max()
                same = (nats.argmax(axis=1) == their_nats.argmax(axis=1)).mean()
                lines.append(
                    [f"{task.removeprefix('local_')}, {dtype}", f"{len(items)}", f"{seconds:.1f}",
                     f"{their_seconds:.1f} ({size})", f"{their_seconds / seconds:.1f}", f"{apart:.1e}", f"{same:.3f}"]
                )  # fmt: skip
                print(lines[-1], json.dumps({"ours": figures, "theirs": theirs}, default=str), flush=True)
    print(
        markdown_table(["probe", "rows", "ours, s", "lm-eval, s (batch)", "ratio", "nats apart", "same choice"], lines)
    )


def full(options) -> None:
    files = [*sorted((options.data_dir / "bbq").glob("*.jsonl")), options.data_dir / "crows_pairs.csv"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "testing/probe_bias.py", "--base_model", options.base_model, "--output", folder]
        started = time.perf_counter()
        subprocess.run([*command, "--input", *map(str, files)], cwd=params.ROOT, check=True)
        print(f"{len(files)} files in {time.perf_counter() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=params.ROOT.parent / "shared" / "data")
    parser.add_argument("--base_model", default=params.BASE_MODEL)
    parser.add_argument("--parts", nargs="+", choices=["compare", "full"], default=["compare"])
    parser.add_argument("--rows", type=int, default=200, help="of each probe, for the comparison")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    setup_process()
    if "compare" in options.parts:
        compare(options)
    if "full" in options.parts:
        full(options)


if __name__ == "__main__":
    main()
