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
few-shot base, all of which testing/infer.py writes: give them these names (copy=FILE); missing ones are named.
"""

import logging
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.scorers import Measure, all_measures
from utils import params
from utils.comparison import (
    Systems,
    beaten_by_tricks,
    by_group,
    compare,
    correct,
    plan,
    unlike_rows,
    verdicts,
    with_numbers,
)
from utils.comparison_page import comparison_page, quoted, rows_of, without_groups
from utils.configs import CompareConfig, names
from utils.data import read_table, require_columns, values_of
from utils.exports import export
from utils.fairness import COLUMNS, gaps
from utils.helpers import UserError, parse_config, run_stage
from utils.judges import measure_judge
from utils.records import (
    check_output_folder,
    finish_record,
    start_record,
    whole_folder,
    write_json,
)
from utils.report import difference_table, latex_tables, markdown_table, mean_table
from utils.scored import file_of, judged_differently, on_same_rows, read_named
from utils.shown import visible
from utils.stats import Sampling

logger = logging.getLogger(__name__)


def measures_in(systems: Systems) -> dict[str, Measure]:
    """The measures that every file has, but those of the sources, which are the same for all."""
    known = {m: of for m, of in all_measures().items() if not m.endswith("_source")}
    return {m: of for m, of in known.items() if all(m in frame for frame in systems.values())}


def group_columns(systems: Systems, config: CompareConfig) -> list[str]:
    first = next(iter(systems.values()))
    wanted = names(params.GROUP_COLUMNS if config.group_columns is None else config.group_columns)
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
    """System -> gaps between groups (utils/fairness.py), on the templates that all systems have."""
    systems = read_named(config.counterfactual, "--counterfactual")
    for name, frame in systems.items():
        require_columns(frame, list(COLUMNS), name, "--counterfactual: see generate_data/counterfactuals.py")
    shared = set.intersection(*(set(frame["base_id"]) for frame in systems.values())) if systems else set()
    systems = {name: frame[frame["base_id"].isin(shared)] for name, frame in systems.items()}
    found = {}
    for name, frame in systems.items():
        measures = list(measures_in({name: frame}))
        found[name] = gaps(with_numbers({name: frame}, measures)[name], measures, sampling)
    if empty := [name for name, of in found.items() if not of]:
        raise UserError(
            f"--counterfactual {', '.join(empty)}: no measure, or fewer than two templates with every group"
        )
    return found


def print_plan(result: dict, systems: Systems, config: CompareConfig) -> None:
    found = plan(result, systems, config.differences(), config.power, config.cluster_column)
    rows = [
        [f["system"], f["measure"], str(f["rows"]), "-" if f["shows"] is None else f"{f['shows']:.3g}",
         f"{f['difference']:+.3g}", str(f["rows_needed"])]
        for f in found
    ]  # fmt: skip
    planned = {f["measure"] for f in found}
    if rest := [m for m, of in result["measures"].items() if of["better"] and m not in planned]:
        logger.warning("no difference in these rows, so nothing to plan from: %s", ", ".join(rest))
    print(f"two-sided, {Sampling(**result['sampling']).alpha:.3g} over all measures, power {config.power:.0%}\n")
    print(markdown_table(["system", "measure", "rows now", "show at least", "difference", "rows it takes"], rows))


def main(config: CompareConfig) -> None:
    systems = on_same_rows(read_named(config.inputs, "--inputs"), config)
    measures = measures_in(systems)
    if not measures:
        raise UserError("--inputs: the files share no measure: score them with the same --scorers")
    systems = with_numbers(systems, measures)
    if config.cluster_column:
        require_columns(next(iter(systems.values())), [config.cluster_column], config.inputs[0], "--cluster_column")
    sampling = Sampling(config.confidence, config.resamples, config.seed)
    judges = read_judges(config, measures)
    if config.plan:
        print_plan(compare(systems, measures, sampling, config.cluster_column), systems, config)
        return
    named = [file_of(item)[1] for item in [*config.inputs, *config.counterfactual]]
    files = named + ([Path(config.gold)] if config.gold else [])
    check_output_folder(Path(config.output), config.overwrite, files)
    record = start_record(config, files)

    result = compare(systems, measures, sampling, config.cluster_column)
    result["corrected"] = correct(systems, judges, sampling, config.cluster_column)
    result["groups"] = by_group(systems, measures, group_columns(systems, config))
    result["counterfactual"] = counterfactual_gaps(config, sampling)
    result["verdicts"] = verdicts(result)
    missing = [name for name in params.BASELINES if name not in systems]
    result["warnings"] = [f"the table lacks the baseline rows {', '.join(missing)}"] if missing else []
    result["warnings"] += judged_differently(config.inputs)
    result["warnings"] += unlike_rows(result) + beaten_by_tricks(result, systems, config.cluster_column)

    rows = rows_of(result, systems, config)
    if config.redact:
        result, record = without_groups(result), record | {"command": [], "config": {}, "inputs": {}}
    text = f"{mean_table(result)}\n\n{difference_table(result)}"
    quotes = [] if config.redact else quoted(result, systems, config)
    with whole_folder(Path(config.output), config.overwrite) as folder:
        (folder / "report.html").write_text(comparison_page(result, systems, rows, quotes, config), encoding="utf-8")
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        (folder / "table.tex").write_text(latex_tables(result), encoding="utf-8")
        export(config.formats(), result, rows, config.title, folder)
        write_json(folder / "results.json", result)
        finish_record(record, folder, counts={"rows": result["rows"]})
    print(f"{result['rows']} rows\n\n{visible(text)}\n")
    for verdict in result["verdicts"].values():
        print(visible(verdict["text"]))
    for measure, found in result["corrected"].items():
        means = ", ".join(f"{name} {v['mean']:.3g}" for name, v in found["means"].items() if v["n"])
        print(visible(f"{measure}, corrected for the judge's errors: {means}"))
    for name, found in result["counterfactual"].items():
        sure = [f"{g['measure']} by {g['attribute']} ({g['gap']:.2g})" for g in found if g["p_holm"] <= sampling.alpha]
        print(visible(f"{name}, sure gaps between groups: {', '.join(sure) or 'none'}"))
    for warning in result["warnings"]:
        logger.warning(visible(warning))
    print(f"report: {Path(config.output) / 'report.html'}")


if __name__ == "__main__":
    run_stage(main, parse_config(CompareConfig))
