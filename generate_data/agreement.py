"""How far annotators agree: models, prompts, repeated samples, people.

    python generate_data/agreement.py                                   # the annotated pilot texts against gold
    python generate_data/agreement.py --inputs gpt=a.csv llama=b.csv gold=datasets/annotation_guideline/gold.csv
    python generate_data/agreement.py --inputs sampled.csv              # repeated samples of annotate.py
    python generate_data/agreement.py --inputs rated.csv --raters annotation_1,annotation_2

Reads  two or more tables of the same rows, matched by id; or one table with a column per annotator
Writes <first input>.agreement.json, and prints two tables: all annotators together (share of equal pairs, Fleiss'
       kappa, Krippendorff's alpha) and each pair (Cohen's kappa; weighted for ordered labels)

An empty label is missing: Fleiss' kappa leaves the row out, alpha uses what is there. Intervals are bootstrap
intervals over rows. The paper reports a Fleiss' kappa of 0.62 to 0.74 between its experts.

Next: python generate_data/annotate.py with the better prompt, or a clearer guideline
"""

import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

import numpy as np

from utils import params
from utils.agreement import alpha, codes, cohen, fleiss, interval, same
from utils.annotation import SCALES
from utils.configs import AgreementConfig
from utils.data import read_table, require_columns
from utils.helpers import UserError, parse_config, run_stage
from utils.records import check_output_file, write_json
from utils.report import markdown_table

Ratings = dict[str, dict[str, list[str]]]  # label -> annotator -> one value per row


def by_columns(path: str, config: AgreementConfig) -> Ratings:
    """Annotators are columns of one table: the ones named, or the samples `bias_1`, `bias_2` ... of annotate.py."""
    table = read_table(path)
    if config.raters:
        raters = parts(config.raters)
        require_columns(table, raters, path, "--raters")
        return {config.labels or "rating": {rater: list(table[rater]) for rater in raters}}
    ratings: Ratings = {}
    for column in table.columns:
        if (found := re.fullmatch(r"(\w+)_(\d+)", column)) and found[1] in wanted(config):
            ratings.setdefault(found[1], {})[f"sample {found[2]}"] = list(table[column])
    if not ratings:
        raise UserError(f"{path}: one file needs --raters, or the columns that annotate.py --samples writes")
    return ratings


def by_files(inputs: list[str], config: AgreementConfig) -> Ratings:
    """Annotators are tables; only rows that all of them have are compared."""
    tables = {}
    for given in inputs:
        name, equals, path = given.rpartition("=")
        table = read_table(path)
        require_columns(table, [config.key], path, "--key")
        if table[config.key].duplicated().any():
            raise UserError(f"{path}: {config.key} repeats: rows cannot be matched by it, see --key")
        tables[name if equals else Path(path).stem] = table.set_index(config.key)
    if len(tables) < len(inputs):
        raise UserError("two inputs have the same name: write NAME=FILE")
    shared = [key for key in next(iter(tables.values())).index if all(key in t.index for t in tables.values())]
    if not shared:
        raise UserError(f"the inputs share no row by {config.key}: see --key")
    counts = ", ".join(f"{len(table)} in {name}" for name, table in tables.items())
    print(f"rows: {counts}; {len(shared)} shared by {config.key}\n")
    for column in (params.INPUT_COLUMN, "text"):
        if all(column in table for table in tables.values()):
            texts = [list(table[column][shared]) for table in tables.values()]
            if different := sum(len(set(row)) > 1 for row in zip(*texts, strict=True)):
                raise UserError(
                    f"{different} of {len(shared)} rows with one {config.key} differ in {column}: see --key"
                )
    if config.labels:
        for given, table in zip(inputs, tables.values(), strict=True):
            require_columns(table, wanted(config), given, "--labels")
    labels = [label for label in wanted(config) if all(label in table for table in tables.values())]
    if not labels:
        raise UserError(
            f"the inputs share none of the columns {', '.join(wanted(config))}: see --labels (of the prompts of "
            "annotate.py only labels-1 gives labels)"
        )
    return {label: {name: list(table[label][shared]) for name, table in tables.items()} for label in labels}


def wanted(config: AgreementConfig) -> list[str]:
    return parts(config.labels) if config.labels else list(SCALES)


def parts(joined: str) -> list[str]:
    return [part.strip() for part in joined.split(",")]


def measure(ratings: Ratings, config: AgreementConfig) -> Iterator[dict]:
    """One entry for all annotators of a label, and one for each pair of them."""
    for label, raters in ratings.items():
        scale = SCALES.get(label)
        try:
            table, _ = codes(list(raters.values()), scale)
        except ValueError as error:
            raise UserError(f"label {label}: {error}") from error
        ordered = scale is not None and len(scale) > 2

        def with_interval(function, part):
            return function(part), interval(function, part, config.confidence, config.resamples, config.seed)

        entry = {"label": label, "annotators": list(raters), "rows": table.shape[1], "agreement": same(table)}
        entry["complete"] = int((~np.isnan(table).any(axis=0)).sum())
        entry["fleiss"], entry["fleiss_interval"] = with_interval(fleiss, table)
        entry["alpha"], entry["alpha_interval"] = with_interval(alpha, table)
        entry["alpha_ordinal"] = alpha(table, "ordinal") if ordered else None
        yield entry
        for (i, one), (j, other) in combinations(enumerate(raters), 2):
            pair = table[[i, j]]
            entry = {"label": label, "annotators": [one, other], "rows": int((~np.isnan(pair).any(axis=0)).sum())}
            entry["agreement"] = same(pair)
            entry["cohen"], entry["cohen_interval"] = with_interval(cohen, pair)
            entry["cohen_linear"] = cohen(pair, "linear") if ordered else None
            yield entry


def show(value: float | None, bounds: tuple[float, float] | None = None) -> str:
    if value is None:
        return "undefined (one value only)"
    return f"{value:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def main(config: AgreementConfig) -> None:
    if len(config.inputs) == 1:
        ratings = by_columns(config.inputs[0], config)
    else:
        ratings = by_files(config.inputs, config)
    if any(len(raters) < 2 for raters in ratings.values()):
        raise UserError("one annotator agrees with nobody: name two or more")
    paths = [Path(given.rpartition("=")[2]) for given in config.inputs]
    output = Path(config.output) if config.output else paths[0].with_name(paths[0].name + ".agreement.json")
    check_output_file(output, paths, overwrite=output.suffix == ".json")
    entries = list(measure(ratings, config))
    write_json(output, {"confidence": config.confidence, "paper_fleiss": params.PAPER_KAPPA, "measures": entries})

    together = [
        [e["label"], str(len(e["annotators"])), f"{e['complete']}/{e['rows']}", show(e["agreement"]),
         show(e["fleiss"], e["fleiss_interval"]), show(e["alpha"], e["alpha_interval"]),
         show(e["alpha_ordinal"]) if e["alpha_ordinal"] is not None else "", "{} to {}".format(*params.PAPER_KAPPA)]
        for e in entries if "fleiss" in e
    ]  # fmt: skip
    header = [
        "label",
        "annotators",
        "complete rows",
        "equal pairs",
        "Fleiss' kappa",
        "Krippendorff's alpha",
        "ordinal",
    ]
    print(markdown_table([*header, "paper (Fleiss)"], together) + "\n")
    pairs = [
        [e["label"], *e["annotators"], str(e["rows"]), show(e["agreement"]), show(e["cohen"], e["cohen_interval"]),
         show(e["cohen_linear"]) if e["cohen_linear"] is not None else ""]
        for e in entries if "cohen" in e
    ]  # fmt: skip
    print(markdown_table(["label", "one", "other", "rows", "equal", "Cohen's kappa", "linear weights"], pairs))
    print(f"\n{output}")


if __name__ == "__main__":
    run_stage(main, parse_config(AgreementConfig))
