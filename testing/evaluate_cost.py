"""How good is a cost model, and does it beat what anybody makes in a minute?

    python testing/evaluate_cost.py                                           # models/cost on the embedded test pairs
    python testing/evaluate_cost.py --cost_model models/pku --input held_out.jsonl
    python testing/evaluate_cost.py --input PKU-Alignment/PKU-SafeRLHF@test       # of a Hub data set, the part that is

Reads  models/cost/, written by training/train_cost.py, and judged responses (utils/preferences.py lists the formats)
Writes datasets/reports/cost/: metrics.json, metrics.md (all systems, differences, categories, thresholds), costs.csv,
       costs.png, roc.png, reliability.png, run.json

Ranking is the share of pairs whose more harmful response costs more, sign the share of labelled responses on the right
side of 0. Brier score and calibration error are of probabilities that were fitted on the validation rows in training.
All intervals are over prompts. Beside the model stand TF-IDF and MiniLM with logistic regression and the length of
the response alone, fitted on the rows that the model was trained on; --no_baselines leaves them out.

Next: python testing/score.py --scorers cost --input answers.csv
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import cost_report, params
from utils.configs import EvaluateCostConfig, file_and_share
from utils.cost_metrics import labels_of, responses_of
from utils.cost_model import TRAINED_FILE, check
from utils.data import content_id, write_table
from utils.helpers import UserError, parse_config, run_stage
from utils.preferences import Judged, read_judged
from utils.records import (
    RECORD_NAME,
    check_output_folder,
    finish_record,
    read_json,
    start_record,
    whole_folder,
    write_json,
)
from utils.stats import Sampling

logger = logging.getLogger(__name__)


def training_rows(config: EvaluateCostConfig, test: list[Judged]) -> list[Judged]:
    """The rows that the model was trained on, for the simpler classifiers; [] where they are not wanted.

    Says where a prompt that is tested was trained on; such rows are left out.
    """
    trained_on, record = (read_json(Path(config.cost_model) / name) for name in (TRAINED_FILE, RECORD_NAME))
    tested, prompts = {row.group for row in test}, set(trained_on["prompts"])
    if leaked := sum(content_id(group) in prompts for group in tested):
        logger.warning("%d prompts of --input were trained on: the figures flatter the model", leaked)
    if not config.baselines:
        return []
    trained = record["config"]
    try:
        files = config.train_file or [file_and_share(given)[0] for given in trained["input"]]
        rows = read_judged(files, trained["unsafe_labels"], trained["seed"])
    except UserError as error:
        raise UserError(f"{error} (it is read for the simpler classifiers: --no_baselines does without)") from error
    known = set(trained_on["rows"])
    return [row for row in rows if row.group not in tested and (config.train_file or row.id in known)]


def main(config: EvaluateCostConfig) -> None:
    about, output = check(config.cost_model), Path(config.output)
    check_output_folder(output, config.overwrite)
    rows = read_judged(config.input, config.unsafe_labels, config.seed, config.limit)
    train = training_rows(config, rows)
    record = start_record(config, [Path(name) for name in config.input if Path(name).is_file()])

    from utils.cost_baselines import baselines
    from utils.cost_model import costs

    prompts, responses = responses_of(rows)
    logger.info("%d responses to %d prompts", len(responses), len({row.group for row in rows}))
    ours = costs(prompts, responses, config.cost_model)
    fitted = baselines(train) if config.baselines else {}
    others = {name: score(prompts, responses) for name, score in fitted.items()}

    sampling = Sampling(params.CONFIDENCE, params.BOOTSTRAP_RESAMPLES, config.seed)
    calibration, (labelled, unsafe) = about.get("calibration"), labels_of(rows)
    told_apart = len(set(unsafe[labelled])) == 2
    result = {
        "systems": {"cost model": cost_report.figures(rows, ours, calibration, sampling)}
        | {name: cost_report.figures(rows, found, None, sampling) for name, found in others.items()},
        "differences": {name: cost_report.differences(rows, ours, found, sampling) for name, found in others.items()},
        "categories": cost_report.by_category(rows, ours, replace(sampling, resamples=params.COST_RESAMPLES)),
        "thresholds": cost_report.thresholds(ours[labelled], unsafe[labelled], calibration)
        if calibration and told_apart
        else [],
    }
    with whole_folder(output, config.overwrite) as folder:
        write_json(folder / "metrics.json", result)
        said = f"{cost_report.tables(result)}\n{cost_report.verdict(result, len({row.group for row in rows}))}\n"
        (folder / "metrics.md").write_text(said, encoding="utf-8")
        write_table(costs_of_rows(rows, ours), folder / "costs.csv")
        if told_apart:
            cost_report.plot(rows, ours, calibration, others, folder)
        finish_record(record, folder, counts={"rows": len(rows), "responses": len(responses)})
    print(said)
    print(f"written to {output}")


def costs_of_rows(rows: list[Judged], costs: np.ndarray) -> pd.DataFrame:
    """One line a response."""
    lines = [
        {"id": row.id, "prompt": row.prompt, "response": response, "unsafe": unsafe, "category": row.category}
        for row in rows
        for response, unsafe in zip(row.responses, row.unsafe, strict=True)
    ]
    return pd.DataFrame(lines).assign(cost=costs)


if __name__ == "__main__":
    run_stage(main, parse_config(EvaluateCostConfig))
