"""Comparisons in the log formats of Inspect and of lm-evaluation-harness, for those who keep their results there.

Written by the published schemas, without either library: Inspect's log version 2 (read by inspect-ai 0.3.285: see
benchmarks/RESULTS.md), and the results and samples files of lm-evaluation-harness.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist

from utils.records import write_json


def export(formats: list[str], result: dict, rows: list[dict], task: str, folder: Path) -> None:
    """Writes a folder for each format, with a log for each system.

    Args:
        result: what utils/comparison.py found. rows: what utils/comparison_page.py holds of each row.
    """
    write = {"inspect": _inspect, "lm_eval": _lm_eval}
    for name in formats:
        (folder / name).mkdir()
        for number, system in enumerate(result["means"]):
            stem = f"{number}_{re.sub(r'[^A-Za-z0-9.-]+', '_', system)}"  # a name may hold what a path may not
            write[name](result, rows, task, system, folder / name, stem)


def _inspect(result: dict, rows: list[dict], task: str, system: str, folder: Path, stem: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    scores = [
        {
            "name": measure,
            "scorer": measure,
            "scored_samples": mean["n"],
            "unscored_samples": result["rows"] - mean["n"],
            "metrics": {"mean": {"name": "mean", "value": mean["mean"]}}
            | {
                f"ci_{end}": {"name": f"ci_{end}", "value": mean[end]}
                for end in ("low", "high")
                if mean[end] is not None
            },
        }
        for measure, mean in result["means"][system].items()
        if mean["mean"] is not None
    ]
    samples = [
        {
            "id": row["id"],
            "epoch": 1,
            "input": row["source"],
            "target": "",
            "output": {
                "model": system,
                "choices": [{"message": {"role": "assistant", "content": row["systems"][system]["text"]}}],
            },
            "scores": {
                measure: {"value": value}
                for measure, value in row["systems"][system]["scores"].items()
                if value is not None
            },
        }
        for row in rows
    ]
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "created": now,
            "task": task,
            "dataset": {"name": task, "samples": len(rows), "sample_ids": [row["id"] for row in rows]},
            "model": system,
            "config": {},
        },
        "results": {"total_samples": len(rows), "completed_samples": len(rows), "scores": scores},
        "stats": {"started_at": now, "completed_at": now},
        "samples": samples,
    }
    write_json(folder / f"{stem}.json", log)


def _lm_eval(result: dict, rows: list[dict], task: str, system: str, folder: Path, stem: str) -> None:
    means = {m: mean for m, mean in result["means"][system].items() if mean["mean"] is not None}
    width = 2 * NormalDist().inv_cdf((1 + result["sampling"]["confidence"]) / 2)  # of an interval, in standard errors
    metrics: dict = {"alias": task}
    for measure, mean in means.items():
        metrics[f"{measure},none"] = mean["mean"]
        if mean["low"] is not None:
            metrics[f"{measure}_stderr,none"] = (mean["high"] - mean["low"]) / width
    better = {m: result["measures"][m]["better"] == "higher" for m in means if result["measures"][m]["better"]}
    write_json(
        folder / f"results_{stem}.json",
        {
            "results": {task: metrics},
            "higher_is_better": {task: better},
            "n-samples": {task: {"original": len(rows), "effective": len(rows)}},
            "configs": {task: {"task": task}},
            "config": {"model": system},
            "date": datetime.now(UTC).timestamp(),
        },
    )
    with open(folder / f"samples_{stem}.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            answer = row["systems"][system]
            scores = {m: value for m, value in answer["scores"].items() if value is not None}
            line = {
                "doc_id": number,
                "doc": {"id": row["id"], "text": row["source"]},
                "target": "",
                "resps": [[answer["text"]]],
                "filtered_resps": [answer["text"]],
                "filter": "none",
                "metrics": list(scores),
                **scores,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
