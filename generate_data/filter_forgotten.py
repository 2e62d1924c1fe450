"""ForgetFilter: drops from a noisy training set what a model learned and then forgot in safety fine-tuning.

    python generate_data/filter_forgotten.py                                # phi 0.1 by ROUGE-1, as published
    python generate_data/filter_forgotten.py --signal likelihood --phi 0.05 --after step-100
    python generate_data/filter_forgotten.py --others cost=datasets/results/noisy.scores.csv:cost

Reads  datasets/noisy/noisy.jsonl, what testing/forgetting.py measured of its rows, and for a comparison scores of the
       same rows by other filters, e.g. of testing/score.py by the scorer cost or guard (by id)
Writes datasets/filtered/: kept.jsonl and dropped.jsonl (the rows as they were, and `forgotten`), report.html with a
       table and rows to read (most and least forgotten, nearest to phi), curve.csv, curve.png, summary.json, run.json

Where the rows have a column polarity, dropping is judged as finding the unsafe ones: precision, recall, F1 and the
area under the ROC curve, with intervals; beside it dropping everything and as many by chance, and as many by the
highest loss after the noisy training and by each of --others. The curve shows all values of phi for every model
measured after. A row whose rate is missing is kept. --phi is the paper's; the report also says where k-means would
draw the line, and whether there are two groups at all: to be used where nobody knows which rows are unsafe.

Next: the model from before the noisy training learns what is left (recipes/forget_filter.sh):
python training/train.py --config recipes/noisy.yaml --input datasets/filtered/kept.jsonl
"""

import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import FilterConfig
from utils.data import read_table, require_columns, values_of, write_jsonl, write_table
from utils.filtering import as_many, by_chance, judged, rates_of, suggestion
from utils.filtering_report import write_page
from utils.forgetting import BEFORE, SIGNALS, read_learned
from utils.helpers import UserError, parse_config, run_stage
from utils.records import (
    check_output_folder,
    file_sha256,
    finish_record,
    read_json,
    record_path,
    start_record,
    whole_folder,
    write_json,
)
from utils.report import markdown_table, with_ends
from utils.stats import Sampling

logger = logging.getLogger(__name__)


def read_rates(config: FilterConfig, ids: list[str]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """What was measured of these rows: by model after, and of the model before."""
    table = read_table(config.forgetting, longest=params.MAX_ANSWER_CHARS)
    needed = ["id", "model", *SIGNALS, *(f"forgotten_{signal}" for signal in SIGNALS)]
    require_columns(table, needed, config.forgetting, "--forgetting: python testing/forgetting.py makes it")
    numbers = {name: values_of(table, name) for name in needed[2:]}
    by_model = {name: rows.set_index("id") for name, rows in table.assign(**numbers).groupby("model", sort=False)}
    if missing := set(ids) - set(by_model[BEFORE].index):
        raise UserError(
            f"{config.forgetting} holds nothing about {len(missing)} of {len(ids)} rows of {config.input}: were other "
            "rows measured?"
        )
    before = by_model.pop(BEFORE).loc[ids]
    return {name: rows.loc[ids] for name, rows in by_model.items()}, before


def other_filters(config: FilterConfig, before: pd.DataFrame, ids: list[str]) -> dict[str, np.ndarray]:
    """Scores of the rows by other filters, the higher the worse."""
    found = {}
    if not before["likelihood"].isna().all():
        found["highest loss"] = -before["likelihood"].to_numpy()
    for name, (path, column) in config.other_scores().items():
        frame = read_table(path, longest=params.MAX_ANSWER_CHARS)
        require_columns(frame, ["id", column], path, "--others")
        scores = pd.Series(values_of(frame, column), index=frame["id"])
        if lacking := len(set(ids) - set(scores.index)):
            raise UserError(f"--others {path}: {lacking} of {len(ids)} rows are not in it")
        found[name] = scores[~scores.index.duplicated()].loc[ids].to_numpy()
    return found


def compare(rates: dict[str, np.ndarray], unsafe: np.ndarray, others: dict[str, np.ndarray], config: FilterConfig):
    """How well each way finds the unsafe rows: name -> measure -> value with its interval."""
    sampling = Sampling(config.confidence, config.resamples, config.seed)
    found = {f"forgotten, {signal} > {config.phi:g}": judged(values, values > config.phi, unsafe, sampling)
             for signal, values in rates.items()}  # fmt: skip
    number = int((rates[config.signal] > config.phi).sum())
    for name, scores in others.items():
        found[f"{name}, as many"] = judged(scores, as_many(scores, number), unsafe, sampling)
    exact = {"by chance, as many": by_chance(number / len(unsafe), unsafe),
             "everything": rates_of(np.ones(len(unsafe), dtype=bool), unsafe)}  # fmt: skip
    for name, of in exact.items():
        found[name] = {measure: {"mean": value, "low": None, "high": None} for measure, value in of.items()}
    return found


def curves(after: dict[str, pd.DataFrame], unsafe: np.ndarray | None) -> pd.DataFrame:
    """For every model, signal and phi the share dropped, and where labels are known how right that is."""
    lines = []
    for model, rows in after.items():
        for signal in SIGNALS:
            scores = rows[f"forgotten_{signal}"].to_numpy()
            if np.isnan(scores).all():
                continue
            for phi in np.round(np.arange(-0.1, 1.0, params.PHI_STEP), 3):
                dropped = scores > phi
                found = {"dropped": dropped.mean()} if unsafe is None else rates_of(dropped, unsafe)
                lines.append({"model": model, "signal": signal, "phi": phi, **found})
    return pd.DataFrame(lines)


def main(config: FilterConfig) -> None:
    folder = Path(config.output)
    files = [Path(config.input), Path(config.forgetting), *(Path(path) for path, _ in config.other_scores().values())]
    check_output_folder(folder, config.overwrite, files)
    record = start_record(config, files)
    frame = read_learned(config.input, config.limit)
    ids = list(frame["id"])
    measured = record_path(Path(config.forgetting))
    if measured.is_file() and file_sha256(Path(config.input)) not in read_json(measured)["inputs"].values():
        raise UserError(f"{config.forgetting} was measured on another version of {config.input}: measure it again")
    after, before = read_rates(config, ids)
    chosen = config.after or list(after)[-1]
    if chosen not in after:
        raise UserError(f"--after {chosen}: {config.forgetting} holds {', '.join(after)}")
    rates = {signal: after[chosen][f"forgotten_{signal}"].to_numpy() for signal in SIGNALS}
    rates = {signal: values for signal, values in rates.items() if not np.isnan(values).all()}
    if config.signal not in rates:
        raise UserError(f"--signal {config.signal} was not measured, {', '.join(rates)} was: add --signal")
    forgotten = rates[config.signal]
    dropped = forgotten > config.phi
    if dropped.all():
        raise UserError(f"--phi {config.phi:g}: all {len(frame)} rows would be dropped")
    polarity = frame["polarity"] if "polarity" in frame else pd.Series("", index=frame.index)
    unsafe = (polarity == "unsafe").to_numpy()
    known = 0 < unsafe.sum() < len(unsafe)
    if config.others and not known:
        raise UserError(
            f"--others: filters are judged by a column polarity that names unsafe rows, see {config.input}"
        )
    others = other_filters(config, before, ids)
    compared = compare(rates, unsafe, others, config) if known else {}
    suggested = suggestion(forgotten, Sampling(config.confidence, config.resamples, config.seed))
    curve = curves(after, unsafe if known else None)

    rows = frame.drop(columns=[name for name in ("prompt", "completion") if {"instruction", "output"} <= set(frame)])
    rates = [None if np.isnan(value) else round(float(value), 4) for value in forgotten]
    rows = rows.assign(forgotten=pd.Series(rates, index=rows.index, dtype=object))  # floats would make NaN of None
    with whole_folder(folder, config.overwrite) as partial:
        for name, of in (("kept", rows[~dropped]), ("dropped", rows[dropped])):
            write_jsonl(partial / f"{name}.jsonl", of.to_dict("records"))
        write_table(curve, partial / "curve.csv")
        said = in_words(forgotten, dropped, suggested, config, chosen)
        table = table_of(compared)
        read = frame.assign(forgotten=forgotten, polarity=polarity, answer=after[chosen]["answer"].to_numpy())
        write_page(partial, said, table, read, curve, config)
        write_json(partial / "summary.json", {"compared": compared, "suggested": suggested, "after": chosen})
        counts = {"kept": int((~dropped).sum()), "dropped": int(dropped.sum())}
        finish_record(record, partial, counts=counts, suggested=suggested)
    print("\n\n".join([*([markdown_table(*table)] if compared else []), *said, f"{folder}: kept.jsonl, dropped.jsonl, "
                       "report.html, curve.csv, curve.png, summary.json"]))  # fmt: skip


def table_of(compared: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    measures = ["dropped", "precision", "recall", "f1", "auroc"]
    rows = [[name, *(with_ends(of.get(measure)) for measure in measures)] for name, of in compared.items()]
    return ["dropped for", *measures], rows


def in_words(
    forgotten: np.ndarray, dropped: np.ndarray, suggested: dict, config: FilterConfig, model: str
) -> list[str]:
    how = f"by more than {config.phi:g} ({config.signal}, {model})"
    lines = [f"{dropped.sum()} of {len(forgotten)} rows are forgotten {how} and dropped"]
    if missing := int(np.isnan(forgotten).sum()):
        lines.append(f"{missing} rows have no rate (a prompt too long to be answered) and are kept")
    if suggested["phi"] is None:
        lines.append("all rows are forgotten alike: there is nothing to tell them apart by")
    elif suggested["two_groups"]:
        lines.append(
            f"the rates fall into two groups, parted at phi {suggested['phi']:.2f} ({suggested['low']:.2f} to "
            f"{suggested['high']:.2f})"
        )
    else:
        lines.append(
            f"the rates do not surely fall into two groups (two explain {suggested['explained']:.0%} of their "
            f"variance, at least {suggested['explained_low']:.0%}; of evenly spread values they would explain "
            f"{params.TWO_GROUPS:.0%}), "
            "so no phi is suggested"
        )
    return lines


if __name__ == "__main__":
    run_stage(main, parse_config(FilterConfig))
