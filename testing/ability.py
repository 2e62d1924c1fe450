"""What can a model still do? Tasks of lm-evaluation-harness on a base, adapter or merged model, before and after.

    pip install -r requirements-eval.txt
    python testing/ability.py --base_model smollm2                        # 40 everyday questions that come along
    python testing/ability.py --adapter_model models/adapter --before datasets/results/ability_smollm2.csv
    python testing/ability.py --tasks boolq,piqa,openbookqa               # any task of the harness; its data: the Hub
    python testing/ability.py --tasks boolq --data boolq=boolq.jsonl      # the same on a file of one's own
    python testing/ability.py --task_folder my_tasks --tasks mine         # a task of one's own (YAML)

Reads  tasks by name: those of the harness, and those in --task_folder, whose files of data lie beside them
Writes <output>.csv: every question with its metrics; <output>.json: means with intervals, n, versions

A task's data come from the Hub, and are kept for later runs without a network. --data TASK=FILE puts a local file
(JSON lines or CSV, with the columns of the task) in their place, without worked examples. --before compares with an
earlier result, question by question: a paired difference with its interval. Metrics are those of the task (acc: the
answer with the highest likelihood; acc_norm: by length); the first one is compared.

Next: the same with --adapter_model or the merged model, and --before
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import AbilityConfig
from utils.data import read_table, require_columns, write_table
from utils.helpers import UserError, describe, parse_config, run_stage
from utils.models import ModelRef, latest, model_record
from utils.records import check_output_file, finish_record, read_json, record_path, start_record, write_json
from utils.report import markdown_table, with_ends
from utils.stats import Sampling, mean_interval, paired_difference

logger = logging.getLogger(__name__)


def require_harness() -> None:
    """Raises UserError where lm-evaluation-harness is not installed."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed: pip install -r requirements-eval.txt")


def task_manager(config: AbilityConfig, folder: Path):
    """The harness's tasks, those of --task_folder, and those whose data are local (written to `folder`).

    Raises:
        UserError: a task that nobody knows.
    """
    from lm_eval.tasks import TaskManager

    own = str(Path(config.task_folder).resolve())
    known = TaskManager(include_path=own)
    if wrong := set(config.task_names()) - set(known.all_tasks):
        raise UserError(f"--tasks {', '.join(sorted(wrong))}: neither the harness nor {config.task_folder} has it")
    for name, path in config.local_data().items():
        if not Path(path).is_file():
            raise UserError(f"--data {name}={path}: no such file")
        source = known.task_index[name].yaml_path
        if source is None:
            raise UserError(f"--data {name}: the harness builds this task by code, its data cannot be replaced")
        files = {split: str(Path(path).resolve()) for split in ("train", "validation", "test")}
        local = {"include": str(source), "task": name, "dataset_path": "csv" if path.endswith(".csv") else "json"}
        local |= {"dataset_name": None, "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(json.dumps(local))
    return TaskManager(include_path=[own, str(folder)])


def evaluate(ref: ModelRef, config: AbilityConfig) -> tuple[pd.DataFrame, dict]:
    """Every question with its metrics, and the versions of harness and tasks."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from utils.loading import load_model, load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        manager = task_manager(config, Path(folder))
        tokenizer = load_tokenizer(ref, side="right", chat=config.chat)
        model = load_model(ref, config.quantization)
        tokens = model.config.get_text_config().max_position_embeddings
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size, max_length=tokens)
        # a file of one's own is all splits at once: an example before a question might be that question
        shots = 0 if config.data else config.num_fewshot
        here = os.getcwd()
        os.chdir(config.task_folder)  # where the data of its tasks are named by their file alone
        try:
            found = lm_eval.simple_evaluate(
                model=harness, tasks=config.task_names(), task_manager=manager, num_fewshot=shots,
                limit=config.limit, apply_chat_template=config.chat, log_samples=True, bootstrap_iters=0,
                random_seed=config.seed, numpy_random_seed=config.seed, torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"--tasks {config.tasks}: {reason}; without a network give --data TASK=FILE for its data"
            ) from error
        finally:
            os.chdir(here)
    rows = [row for task, samples in found["samples"].items() for row in questions(task, samples)]
    if not rows:
        raise UserError(f"--tasks {config.tasks}: their metrics are no numbers of single questions")
    return pd.DataFrame(rows), {"harness": lm_eval.__version__, "tasks": found["versions"]}


def questions(task: str, samples: list[dict]) -> list[dict]:
    """One row for each question of a task: what tells it from others, and its metrics that are numbers.

    A task may read an answer in several ways (the harness's filters): each has columns of its own then.
    """
    rows: dict[int, dict] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], {"task": task, "id": f"{sample['doc_id']}-{sample['doc_hash'][:8]}"})
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        row |= {f"{m}{suffix}": float(sample[m]) for m in sample["metrics"] if isinstance(sample[m], int | float)}
    return [row for row in rows.values() if len(row) > 2]


def figures(frame: pd.DataFrame, config: AbilityConfig) -> dict[str, dict[str, dict]]:
    """By task and metric: mean, interval, n."""
    sampling = Sampling(params.CONFIDENCE, params.BOOTSTRAP_RESAMPLES, config.seed)
    metrics = [name for name in frame if name not in ("task", "id")]
    return {
        task: {
            name: mean_interval(rows[name].to_numpy(dtype=float), sampling)
            for name in metrics
            if rows[name].notna().any()
        }
        for task, rows in frame.groupby("task", sort=False)
    }


def compare(frame: pd.DataFrame, before: Path, config: AbilityConfig) -> str:
    """Table of the differences from an earlier result, over the questions that are in both.

    Raises:
        UserError: the earlier result was asked in another way, or holds other questions.
    """
    earlier = read_table(before)
    require_columns(earlier, ["task", "id"], before, "--before")
    asked = read_json(record_path(before))["config"]
    if differs := [name for name in ("chat", "num_fewshot") if asked[name] != getattr(config, name)]:
        raise UserError(f"--before {before} was made with another --{differs[0]}: {asked[differs[0]]}")
    sampling = Sampling(params.CONFIDENCE, params.BOOTSTRAP_RESAMPLES, config.seed)
    lines = []
    for task, rows in frame.groupby("task", sort=False):
        metric = next(name for name in rows if name not in ("task", "id") and rows[name].notna().any())
        old = earlier[earlier["task"] == task].set_index("id").get(metric, pd.Series(dtype=str))
        now = rows.set_index("id")[metric]
        both = [name for name in now.index if old.get(name)]
        if not both:
            raise UserError(f"--before {before} holds no {metric} of these questions of {task}: give other --tasks")
        theirs = np.array([float(old[name]) for name in both])
        found = paired_difference(now[both].to_numpy(dtype=float), theirs, sampling)
        lines.append([task, metric, with_ends(found, "+.3f"), f"{found['p']:.2g}", str(found["n"])])
    return markdown_table(["task", "metric", "after - before", "p", "questions"], lines)


def main(config: AbilityConfig) -> None:
    require_harness()
    ref = latest(config.base_model, config.adapter_model, config.revision)
    stem = Path(config.output) if config.output else params.RESULTS_DIR / f"ability_{ref.label}"
    output = stem.with_name(f"{stem.name.removesuffix('.csv')}.csv")
    check_output_file(output, [config.before] if config.before else [], config.overwrite)
    if config.before and not Path(config.before).is_file():
        raise UserError(f"--before {config.before}: no such file: run this script on the model before")
    record = start_record(config, [Path(path) for path in config.local_data().values()])
    logger.info("%s on %s (%s)", config.tasks, ref.label, describe(config))
    frame, versions = evaluate(ref, config)
    found = figures(frame, config)
    compared = compare(frame, Path(config.before), config) if config.before else ""
    model = model_record(ref)
    write_json(output.with_suffix(".json"), {"figures": found, "model": model, **versions})
    finish_record(record, output, model=model, **versions, counts={"questions": len(frame)})
    write_table(frame, output)
    lines = [
        [task, metric, with_ends(value), str(value["n"])] for task, of in found.items() for metric, value in of.items()
    ]
    print(f"{output}: {ref.label}\n" + markdown_table(["task", "metric", "mean", "questions"], lines))
    if compared:
        print(f"\nafter, minus {config.before}, paired by question:\n{compared}")


if __name__ == "__main__":
    run_stage(main, parse_config(AbilityConfig))
