"""Compares scored results on the same rows: a table, and paired differences with intervals.

    cd datasets/results
    python ../../testing/compare.py --inputs prompted=test_smollm2.scores.csv tuned=test_merged.scores.csv

Reads  two or more .scores.csv files of testing/score.py, each as FILE or NAME=FILE; the first is what the others are
       compared with. Rows are matched by id; only rows that every file has are used, and their number is shown.
Writes datasets/reports/comparison/: table.md, results.json, run.json

A rewriting is only as good as what simple tricks reach on the same rows, so a table is not complete without the rows
copy, delete, reference, prompted base and few-shot base, all of which testing/infer.py writes: missing ones are named.
"""

import logging
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.scorers import load_scorers
from utils import params
from utils.configs import CompareConfig
from utils.data import read_table, require_columns
from utils.helpers import UserError, parse_config, run_stage
from utils.records import finish_record, start_record, whole_folder, write_json
from utils.report import markdown_table
from utils.stats import mean_interval, paired_difference

logger = logging.getLogger(__name__)

BASELINES = ("copy", "delete", "reference", "prompted", "few-shot")


def read_systems(inputs: list[str], limit: int | None = None) -> dict[str, pd.DataFrame]:
    """Scored files by name, reduced to the rows that all of them have, in one order."""
    if len(inputs) < 2:
        raise UserError("--inputs: give two or more .scores.csv files (testing/score.py makes them)")
    systems = {}
    for item in inputs:
        name, equals, path = item.partition("=")
        path = Path(path if equals else item)
        name = name if equals else path.name.removesuffix(".scores.csv")
        if name in systems:
            raise UserError(f"--inputs: two files are called {name}: write NAME=FILE")
        frame = read_table(path)
        require_columns(frame, ["id"], path, "testing/score.py")
        systems[name] = frame.set_index("id")
    shared = next(iter(systems.values())).index
    for frame in systems.values():
        shared = shared[shared.isin(frame.index)]
    shared = shared[:limit]
    if shared.empty:
        raise UserError("--inputs: the files have no row in common")
    systems = {name: frame.loc[shared] for name, frame in systems.items()}
    texts = [frame[params.INPUT_COLUMN] for frame in systems.values() if params.INPUT_COLUMN in frame]
    if any(not other.equals(texts[0]) for other in texts):
        raise UserError("--inputs: the same id stands for different texts: these files are not about the same rows")
    return systems


def measures_of(systems: dict[str, pd.DataFrame]) -> dict[str, bool | None]:
    """Measures that every file has -> whether higher is better."""
    known = {}
    for module in load_scorers(params.SCORERS).values():
        known |= module.HIGHER_IS_BETTER
    return {name: better for name, better in known.items() if all(name in frame for frame in systems.values())}


def compare(systems: dict[str, pd.DataFrame], config: CompareConfig) -> dict:
    """Means with intervals, and differences of every system from the first."""
    first, *others = systems
    values = {
        name: {m: pd.to_numeric(frame[m]).to_numpy(dtype=float) for m in measures_of(systems)}
        for name, frame in systems.items()
    }
    settings = (config.confidence, config.resamples, config.seed)
    return {
        "rows": len(systems[first]),
        "compared_with": first,
        "higher_is_better": measures_of(systems),
        "means": {
            name: {m: {**mean_interval(v[v == v], *settings), "n": int((v == v).sum())} for m, v in columns.items()}
            for name, columns in values.items()
        },
        "differences": {
            name: {m: paired_difference(values[name][m], values[first][m], *settings) for m in values[name]}
            for name in others
        },
    }


def verdict(difference: dict, better: bool | None) -> str:
    """A star where the interval excludes 0: better (+) or worse (-)."""
    if difference["mean"] is None or better is None or difference["low"] <= 0 <= difference["high"]:
        return ""
    return " +" if (difference["mean"] > 0) == better else " -"


def tables(result: dict, confidence: float) -> str:
    """Two Markdown tables: means, and paired differences."""
    measures = list(result["higher_is_better"])

    def cell(value: dict) -> str:
        return "-" if value["mean"] is None else f"{value['mean']:.3g}"

    means = [[name, *[cell(row[m]) for m in measures]] for name, row in result["means"].items()]
    arrows = {True: " (up)", False: " (down)", None: ""}
    header = ["system", *[m + arrows[better] for m, better in result["higher_is_better"].items()]]
    text = markdown_table(header, means)
    scored = [["rows scored", *[str(next(iter(result["means"].values()))[m]["n"]) for m in measures]]]
    text += "\n" + markdown_table(header, scored).splitlines()[-1]
    differences = [
        [
            name,
            m,
            f"{d['mean']:+.3g}",
            f"{d['low']:+.3g} to {d['high']:+.3g}",
            str(d["n"]),
            verdict(d, result["higher_is_better"][m]).strip(),
        ]
        for name, row in result["differences"].items()
        for m, d in row.items()
        if d["mean"] is not None
    ]
    text += f"\n\nPaired differences from {result['compared_with']}, {confidence:.0%} bootstrap intervals "
    text += "(+ better, - worse, empty: the interval holds 0)\n\n"
    return text + markdown_table(["system", "measure", "difference", "interval", "rows", ""], differences)


def main(config: CompareConfig) -> None:
    systems = read_systems(config.inputs, config.limit)
    if not measures_of(systems):
        raise UserError("--inputs: the files share no measure: score them with the same --scorers")
    record = start_record(config, [Path(item.partition("=")[2] or item) for item in config.inputs])
    result = compare(systems, config)
    text = tables(result, config.confidence)
    with whole_folder(Path(config.output), config.overwrite) as folder:
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        write_json(folder / "results.json", result)
        finish_record(record, folder, counts={"rows": result["rows"]})
    print(f"{result['rows']} rows\n\n{text}\n\nreport: {config.output}")
    missing = [name for name in BASELINES if name not in systems]
    if missing:
        logger.warning("the table lacks the baseline rows %s", ", ".join(missing))


if __name__ == "__main__":
    run_stage(main, parse_config(CompareConfig))
