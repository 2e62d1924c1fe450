"""Compares scored results on the same rows: paired differences, tests, tables by group, and a page to read.

    python testing/compare.py --inputs prompted=A.scores.csv tuned=B.scores.csv
    python testing/compare.py --inputs prompted=A.scores.csv tuned=B.scores.csv --plan       # how many rows it takes
    python testing/compare.py --inputs base=A.scores.csv tuned=B.scores.csv --cluster_column conversation
    python testing/compare.py --inputs base=A.scores.csv tuned=B.scores.csv --gold people.scores.csv \\
        --gold_labels refused=human_refused
    python testing/compare.py --inputs ... --counterfactual copy=C.scores.csv tuned=D.scores.csv  # gaps between groups

Reads  two or more .scores.csv files of testing/score.py, each as FILE or NAME=FILE; the first is what the others are
       compared with. Rows are matched by id; only rows that every file has are used, and their number is shown.
       --gold: rows scored by the same scorers, with human labels (0 or 1): the shares behind a judge's verdicts, with
       the error of the gold rows in the interval
       --counterfactual: scored files of the same texts about several groups (generate_data/counterfactuals.py)
Writes datasets/reports/comparison/: report.html (one file, nothing fetched; --redact leaves the texts out), table.md,
       table.tex, results.json, run.json; with --export also the logs of Inspect or lm-evaluation-harness

Yes-or-no measures are tested by McNemar's exact test, the others, and clustered ones, by random flips of signs;
p-values are corrected over the measures of a system by Holm's method. A rewriting is only as good as what simple
tricks reach on the same rows, so a table is not complete without the rows copy, delete, reference, prompted base and
few-shot base, all of which testing/infer.py writes: missing ones are named.
"""

import logging
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.scorers import Measure, all_measures
from utils import params
from utils.comparison import Systems, beaten_by_tricks, by_group, compare, correct, plan, values_of, verdicts
from utils.comparison_page import comparison_page, rows_of, visible
from utils.configs import CompareConfig
from utils.data import read_table, require_columns
from utils.exports import export
from utils.fairness import COLUMNS, gaps
from utils.helpers import UserError, parse_config, run_stage
from utils.records import check_output_folder, finish_record, start_record, whole_folder, write_json
from utils.report import difference_table, latex_tables, markdown_table, mean_table
from utils.stats import Sampling, measure_judge

logger = logging.getLogger(__name__)


def read_named(items: list[str], flag: str) -> Systems:
    """Scored files by name, rows by id."""
    systems: Systems = {}
    for item in items:
        name, equals, path = item.partition("=")
        path = Path(path if equals else item)
        name = name if equals else path.name.removesuffix(".scores.csv")
        if name in systems:
            raise UserError(f"{flag}: two files are called {name}: write NAME=FILE")
        frame = read_table(path, longest=params.MAX_ANSWER_CHARS)
        require_columns(frame, ["id"], path, "testing/score.py")
        systems[name] = frame.set_index("id")
    return systems


def on_same_rows(systems: Systems, limit: int | None) -> Systems:
    """The rows that all systems have, in one order."""
    if len(systems) < 2:
        raise UserError("--inputs: give two or more .scores.csv files (testing/score.py makes them)")
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


def measures_in(systems: Systems) -> dict[str, Measure]:
    """The measures that every file has."""
    return {m: of for m, of in all_measures().items() if all(m in frame for frame in systems.values())}


def group_columns(systems: Systems, config: CompareConfig) -> list[str]:
    first = next(iter(systems.values()))
    wanted = (params.GROUP_COLUMNS if config.group_columns is None else config.group_columns).split(",")
    wanted = [column.strip() for column in wanted if column.strip()]
    if config.group_columns is not None:
        require_columns(first, wanted, config.inputs[0], "--group_columns")
    return [column for column in wanted if column in first]


def read_judges(config: CompareConfig, measures: dict[str, Measure]) -> dict:
    """Measure -> how often its scorer was right on the gold rows."""
    judges = {}
    gold = read_table(config.gold, longest=params.MAX_ANSWER_CHARS) if config.gold else pd.DataFrame()
    for measure, column in config.labels():
        if measure not in measures:
            raise UserError(f"--gold_labels {measure}: no such measure in --inputs: {', '.join(measures)}")
        require_columns(gold, [measure, column], config.gold, "--gold_labels, and score it with the same --scorers")
        judges[measure] = measure_judge(values_of(gold, measure), values_of(gold, column))
    return judges


def counterfactual_gaps(config: CompareConfig, sampling: Sampling) -> dict:
    """System -> gaps between groups (utils/fairness.py)."""
    systems = read_named(config.counterfactual, "--counterfactual")
    for name, frame in systems.items():
        require_columns(frame, list(COLUMNS), name, "--counterfactual: see generate_data/counterfactuals.py")
    return {name: gaps(frame, list(measures_in({name: frame})), sampling) for name, frame in systems.items()}


def print_plan(result: dict, systems: Systems, config: CompareConfig) -> None:
    try:
        wanted = {measure: float(value) for measure, value in config.differences()}
    except ValueError as error:
        raise UserError(f"--detect {config.detect}: {error}") from error
    rows = [
        [
            f["system"],
            f["measure"],
            str(f["rows"]),
            f"{f['shows']:.3g}",
            f"{f['difference']:+.3g}",
            str(f["rows_needed"]),
        ]
        for f in plan(result, systems, wanted, config.power)
    ]
    print(f"two-sided, {1 - config.confidence:.0%} over all measures, power {config.power:.0%}\n")
    print(markdown_table(["system", "measure", "rows now", "which show", "difference", "rows it takes"], rows))


def main(config: CompareConfig) -> None:
    systems = on_same_rows(read_named(config.inputs, "--inputs"), config.limit)
    measures = measures_in(systems)
    if not measures:
        raise UserError("--inputs: the files share no measure: score them with the same --scorers")
    if config.cluster_column:
        require_columns(next(iter(systems.values())), [config.cluster_column], config.inputs[0], "--cluster_column")
    sampling = Sampling(config.confidence, config.resamples, config.seed)
    judges = read_judges(config, measures)
    if config.plan:
        print_plan(compare(systems, measures, sampling, config.cluster_column), systems, config)
        return
    check_output_folder(Path(config.output), config.overwrite)
    files = [*config.inputs, *config.counterfactual, *filter(None, [config.gold])]
    record = start_record(config, [Path(item.partition("=")[2] or item) for item in files])

    result = compare(systems, measures, sampling, config.cluster_column)
    result["corrected"] = correct(systems, judges, sampling, config.cluster_column)
    result["groups"] = by_group(systems, measures, group_columns(systems, config))
    result["counterfactual"] = counterfactual_gaps(config, sampling)
    said = verdicts(result)
    missing = [name for name in params.BASELINES if name not in systems]
    warnings = [f"the table lacks the baseline rows {', '.join(missing)}"] if missing else []
    warnings += beaten_by_tricks(result)

    text = f"{mean_table(result)}\n\n{difference_table(result)}"
    page = comparison_page(result, systems, said, warnings, config)
    with whole_folder(Path(config.output), config.overwrite) as folder:
        (folder / "report.html").write_text(page, encoding="utf-8")
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        (folder / "table.tex").write_text(latex_tables(result), encoding="utf-8")
        rows = rows_of(result, systems, config.redact)
        export(config.formats(), result, rows, config.title, folder)
        write_json(folder / "results.json", result | {"verdicts": said, "warnings": warnings})
        finish_record(record, folder, counts={"rows": result["rows"]})
    print(f"{result['rows']} rows\n\n{visible(text)}\n")
    for verdict in said.values():
        print(visible(verdict["text"]))
    for warning in warnings:
        logger.warning(visible(warning))
    print(f"report: {Path(config.output) / 'report.html'}")


if __name__ == "__main__":
    run_stage(main, parse_config(CompareConfig))
