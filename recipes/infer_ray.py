"""Answers more rows than fit into memory or on one machine: testing/infer.py on a Ray cluster, or on this machine.

    pip install -r requirements-ray.txt
    python recipes/infer_ray.py --input posts.parquet --input_column text --output answers
    python recipes/infer_ray.py --input "posts/*.csv" --format jsonl --workers 4 --base_model models/merged
    python recipes/infer_ray.py --address auto --workers 16 --input /shared/posts --output /shared/answers

Reads  CSV, Parquet or JSONL files: one, a folder of them, or a pattern; the texts in --input_column
Model  as in testing/infer.py; each worker loads it once, on a GPU of its own where there are any
Writes a folder of files in --format (default: that of the input): every input column, and id, generated_text, status,
       error, with a spotter spotted_words; and run.json. The folder appears when it is complete

No row is lost: one that holds no text, or that the model fails on, is kept with status failed and the reason in the
column error. Rows stream through, --rows_at_once to a worker, and come in no particular order; where the input has no
ids, equal texts get equal ones. On several machines the repository, the model and the files must lie in the same place
on each (a shared folder).

Next: python testing/score.py --input answers/....csv
"""

import json
import math
import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.infer import ALIASES, report
from utils import params
from utils.configs import InferConfig, at_least, setting
from utils.data import content_id, make_room, require_columns, unique
from utils.helpers import UserError, parse_config, run_stage, setup_process
from utils.models import ModelRef, latest, model_record, spotter_weights
from utils.prompts import template_of
from utils.records import check_output_folder, finish_record, start_record, whole_folder

FORMATS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}


@dataclass
class RayConfig(InferConfig):
    output: str | None = setting(None, "folder for the answers; default: datasets/results/<input>_<model>")
    format: Literal["csv", "parquet", "jsonl"] | None = setting(None, "format of the answers; default: of the input")
    workers: int = setting(1, "processes that each hold the model")
    rows_at_once: int = setting(256, "rows that are handed to a worker together")
    address: str | None = setting(None, "of a running cluster ('auto' finds it); default: one on this machine")

    def __post_init__(self):
        super().__post_init__()
        if self.baseline or self.input_text is not None or self.engine != "transformers":
            raise ValueError("--baseline, --input_text and --engine are for testing/infer.py")
        if self.cost_model:
            raise ValueError("--cost_model: score the answers with testing/score.py --scorers cost")
        at_least(1, self, "workers", "rows_at_once")


class Worker:
    """Holds a model and answers batches of rows; a callable class, as Ray Data wants it."""

    def __init__(self, config: RayConfig, ref: ModelRef, template: str, threads: int):
        setup_process()
        import torch

        from utils.rewriting import make_rewriter

        torch.set_num_threads(min(threads, os.cpu_count()))
        self.config, self.spotted = config, template == "fill"
        self.rewrite = make_rewriter(config, ref, template, at_once=True)  # what fails here is no fault of a row

    def __call__(self, batch):
        """Answers a pandas.DataFrame of rows."""
        texts = list(batch[self.config.input_column])
        if "id" not in batch:
            batch = batch.assign(id=[content_id(str(text)) for text in texts])
        names = list(unique(content_id(str(i), str(text)) for i, text in zip(batch["id"], texts, strict=True)))
        answers = {name: failed(why) for name, text in zip(names, texts, strict=True) if (why := unusable(text))}
        asked = {name: text for name, text in zip(names, texts, strict=True) if name not in answers}
        try:
            for name, answer in self.rewrite(asked):
                answers[name] = answer
        except Exception:  # some row is at fault: the others must not go with it
            for name in asked.keys() - answers.keys():
                try:
                    answers |= dict(self.rewrite({name: asked[name]}))
                except Exception as error:
                    answers[name] = failed(f"{type(error).__name__}: {error}")
        rows = [answers[name] for name in names]
        batch = make_room(batch, [self.config.output_column, "status", "spotted_words", "error"])
        batch[self.config.output_column] = [row["text"] for row in rows]
        batch["status"] = [row["status"] for row in rows]
        if self.spotted:
            batch["spotted_words"] = [json.dumps(row.get("spotted", []), ensure_ascii=False) for row in rows]
        batch["error"] = [row.get("error", "") for row in rows]
        return batch


def failed(reason: str) -> dict[str, Any]:
    return {"text": "", "status": "failed", "error": " ".join(reason.split())[:300]}


def unusable(text: Any) -> str | None:
    """Why a cell cannot be put before a model; None if it can."""
    if not isinstance(text, str):
        missing = text is None or text is pd.NA or (isinstance(text, float) and math.isnan(text))
        return "no text" if missing else f"not a text but {type(text).__name__}"
    if len(text) > params.MAX_CELL_CHARS:
        return f"{len(text):,} characters, at most {params.MAX_CELL_CHARS:,}"
    return None if text.strip() else "no text"


def whole_path(path: str) -> str:
    """Of something that exists the whole path; a Hub id stays one."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def input_files(pattern: str) -> tuple[list[str], str]:
    """Paths and their common format. Raises UserError where there are none, or several formats."""
    path = Path(pattern)
    found = [path] if path.is_file() else sorted(path.iterdir() if path.is_dir() else path.parent.glob(path.name))
    files = [file.resolve() for file in found if file.suffix.lower() in FORMATS]
    formats = {FORMATS[file.suffix.lower()] for file in files}
    if len(formats) != 1:
        what = f"files of {len(formats)} formats" if formats else "no .csv, .parquet or .jsonl file"
        raise UserError(f"--input {pattern}: {what}: name files of one kind")
    if empty := [file.name for file in files if not file.stat().st_size]:
        raise UserError(f"--input {pattern}: {', '.join(empty)} is empty")
    return list(map(str, files)), formats.pop()


def read(files: list[str], kind: str):
    """A Ray dataset. In a CSV every cell is read as text, as everywhere here; a cell may hold line breaks."""
    import ray
    from pyarrow.fs import LocalFileSystem  # named, since Ray would try what is not installed to find it out

    if kind == "csv":
        from pyarrow import csv

        parse = csv.ParseOptions(newlines_in_values=True)
        names = [name for file in files for name in csv.open_csv(file, parse_options=parse).schema.names]
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, "string"), strings_can_be_null=False)
        return ray.data.read_csv(files, filesystem=LocalFileSystem(), convert_options=convert, parse_options=parse)
    if kind == "jsonl":  # line by line: the JSON readers of the libraries make numbers and dates of texts
        return ray.data.read_text(files, filesystem=LocalFileSystem()).map(lambda line: json.loads(line["text"]))
    return ray.data.read_parquet(files, filesystem=LocalFileSystem())


def main(config: RayConfig) -> int:
    try:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("Ray is not installed: pip install -r requirements-ray.txt") from error
    files, kind = input_files(config.input)
    ref = latest(config.base_model, config.adapter_model, config.revision)
    template = template_of(ref.record, config.prompt)
    if template == "fill":
        spotter_weights(config.spotter)  # a missing spotter shows before anything is loaded
    source = Path(config.input)  # of a pattern its folder gives the name
    name = f"{(source if source.exists() else source.parent.resolve()).stem}_{ref.label}"
    output = (Path(config.output) if config.output else params.RESULTS_DIR / name).resolve()
    if any(Path(file).is_relative_to(output) for file in files):
        raise UserError(f"--output {output} holds the input: name another folder")
    check_output_folder(output, config.overwrite)
    # workers run in a folder of their own
    ref = replace(ref, path=whole_path(ref.path), adapter=ref.adapter and ref.adapter.resolve())
    config.spotter, config.train_file = whole_path(config.spotter), whole_path(config.train_file)
    record = start_record(config, [Path(file) for file in files])

    environment = {"env_vars": {"PYTHONPATH": str(params.ROOT), "RAY_USAGE_STATS_ENABLED": "0"}}
    # "local": Ray would look for the last cluster on this machine otherwise, and wait for one that is gone
    # a cluster of one's own is reached from this machine only
    start = {} if config.address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(config.address or "local", log_to_driver=False, runtime_env=environment, **start)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    rows = read(files, kind)
    if config.limit:
        rows = rows.limit(config.limit)
    require_columns(rows.columns() or [], [config.input_column], config.input, "--input_column")
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    rows = rows.map_batches(
        Worker,
        fn_constructor_args=(config, ref, template, max(1, cpus // config.workers)),
        batch_size=config.rows_at_once,
        batch_format="pandas",
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        num_cpus=0,  # of what Ray shares out: workers that had all of it would leave none to read and to write
        num_gpus=1 if gpus else 0,
    )
    written = {"csv": "write_csv", "parquet": "write_parquet", "jsonl": "write_json"}[config.format or kind]
    with whole_folder(output, config.overwrite) as folder:
        getattr(rows, written)(str(folder))
        for file in folder.glob("*.json"):  # they hold a row a line
            file.rename(file.with_suffix(".jsonl"))
        counts = count_statuses(folder)
        details = {"model": model_record(ref), "adapter": str(ref.adapter or ""), "prompt": template}
        finish_record(record, folder, **details, counts=dict(counts))
    ray.shutdown()
    return report(output, counts)


def count_statuses(folder: Path) -> Counter:
    """How many rows have which status, from what was written."""
    from pyarrow import csv, dataset

    lines = dataset.CsvFileFormat(csv.ParseOptions(newlines_in_values=True))
    formats = {"csv": lines, "jsonl": "json"}
    counts: Counter = Counter()
    for file in folder.iterdir():
        kind = FORMATS[file.suffix]
        for batch in dataset.dataset(file, format=formats.get(kind, kind)).to_batches(columns=["status"]):
            counts.update(batch["status"].to_pylist())
    return counts


if __name__ == "__main__":
    run_stage(main, parse_config(RayConfig, ALIASES))
