"""Scores results files: one column per measure, and a summary with n and intervals.

    python testing/score.py --input datasets/results/test_merged.csv
    python testing/score.py --input datasets/results/*.csv        # several at once: models are loaded once
    python testing/score.py --scorers overlap,edits --reference_columns neutral1,neutral2,neutral3 --input out.csv
    python testing/score.py --scorers cost --input responses.jsonl --output_column response
    python testing/score.py --scorers cost --input_text "Just read her diary." --prompt_text "How do I help her?"

Reads  results files of testing/infer.py (or any table with the source, the rewriting and, for some, the reference)
       Optional columns: bias (Yes or No; without it every row counts as biased), biased_words (a JSON list)
Writes <input>.scores.csv: every input column, and one per measure; <input>.summary.json: mean, 95 % interval,
       n scored / n total, and what each measure means

Each scorer is one file in testing/scorers/, with its manual: meaning, overlap, facts, edits; toxicity, refusal and
gibberish (of answers), cost and harmfulness (of responses, by a model of train_cost.py), fluency, style, bertscore,
joint (ParaDetox's), identity (of counterfactual texts); and moderation, judge, guard, where --engine says who is
asked: each answer is kept in <input>.<scorer>.answers.jsonl, and a column <scorer>_missing says why a row has no
number. What does not apply to a row is missing there, never zero: the summary says how many rows a measure rests on.
Files without human rewritings are scored by --scorers meaning,facts,edits; answers to prompts by --scorers refusal
--input_column prompt --output_column answer. A run that was killed goes on with the same command; scores from before
are replaced.

Next: python testing/compare.py --inputs prompted=A.scores.csv tuned=B.scores.csv
"""

import logging
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.scorers import load_scorers
from utils import params
from utils.configs import ScoreConfig, ServerConfig, names
from utils.data import make_room, read_table, require_columns, with_ids, write_table
from utils.helpers import UserError, parse_config, run_stage
from utils.records import Progress, file_sha256, finish_record, start_record, write_json
from utils.report import markdown_table, with_ends
from utils.stats import Sampling, mean_interval

logger = logging.getLogger(__name__)

# scorers that judge a text without the text that it was made from
WITHOUT_SOURCE = {"cost", "harmfulness", "guard", "moderation"}
OF_ASKING = ("aspects", "wordings", "retries", "label_tokens", "moderation_model", "moderation_threshold")
WHO = ("engine", "base_model", "adapter_model", "revision", "quantization")  # settings of a model in process


def results_files(given: list[str]) -> list[Path]:
    """The files to score: those given, without scores that stand among them; else the results written last."""
    files = [Path(name) for name in given] or list(params.RESULTS_DIR.glob("*.csv"))
    files = list(dict.fromkeys(path for path in files if not path.name.endswith(".scores.csv")))
    if not files:
        where = "only scores are given" if given else f"{params.RESULTS_DIR} itself holds no results"
        raise UserError(f"--input: {where}: python testing/infer.py makes results")
    stems = [path.with_suffix("") for path in files]
    if given and len(set(stems)) < len(stems):
        raise UserError("--input: two files differ in their ending only, and would write the same scores: rename one")
    return files if given else [max(files, key=lambda path: path.stat().st_mtime)]


def by_group(frame: pd.DataFrame, scores: pd.DataFrame, scorers: dict, config: ScoreConfig) -> dict[str, dict]:
    """A summary of the rows of each group, the largest group first."""
    groups = frame[config.group_column].value_counts().index
    return {name: summarise(scores[frame[config.group_column] == name], scorers, config.seed) for name in groups}


def group_table(groups: dict[str, dict]) -> str:
    """Means with intervals of all groups, and how many rows each has."""
    measures = list(next(iter(groups.values())))
    rows = [
        [name or "(empty)", str(of[measures[0]]["total"]), *(with_ends(of[m]) for m in measures)]
        for name, of in groups.items()
    ]
    return markdown_table(["group", "rows", *measures], rows)


def summarise(scores: pd.DataFrame, scorers: dict, seed: int) -> dict[str, dict]:
    """Mean, interval, and n scored / n total of every measure."""
    sampling = Sampling(params.CONFIDENCE, params.BOOTSTRAP_RESAMPLES, seed)
    summary = {}
    for module in scorers.values():
        for name, measure in module.MEASURES.items():
            interval = mean_interval(scores[name].to_numpy(dtype=float), sampling)
            summary[name] = {
                **{key: interval[key] for key in ("mean", "low", "high")},
                "scored": interval["n"],
                "total": len(scores),
                **measure._asdict(),
            }
    return summary


def read_results(path: Path, config: ScoreConfig, scorers: dict) -> pd.DataFrame:
    frame = read_table(path, config.limit, params.MAX_ANSWER_CHARS)
    columns = [config.input_column, config.output_column]
    if set(scorers) <= WITHOUT_SOURCE and config.input_column not in frame:
        columns = columns[1:]
    require_columns(frame, columns, path, "--input_column and --output_column")
    if config.group_column:
        require_columns(frame, [config.group_column], path, "--group_column")
    if needing := ", ".join({"overlap", "bertscore", "answer"} & set(scorers)):
        flag = f"--reference_columns, or leave {needing} out of --scorers"
        require_columns(frame, names(config.reference_columns), path, flag)
    measures = [name for module in scorers.values() for name in module.MEASURES]
    return with_ids(make_room(frame, measures), columns[0])


def is_asked(module, config: ScoreConfig) -> bool:
    """Whether somebody else is asked; else the scorer is done here."""
    return hasattr(module, "ask") and not (hasattr(module, "score") and config.engine == "transformers")


def score_rows(frame: pd.DataFrame, name: str, module, config: ScoreConfig, progress: Progress) -> pd.DataFrame:
    """One scorer's columns, params.SCORE_CHUNK rows at a time; what an earlier run finished is taken from there."""
    parts = []
    for start in range(0, len(frame), params.SCORE_CHUNK):
        rows, key = frame.iloc[start : start + params.SCORE_CHUNK], f"{name} {start}"
        if key not in progress.done:
            values = module.score(rows, config)
            found = {m: [None if pd.isna(v) else float(v) for v in values[m]] for m in module.MEASURES}
            progress.add(key, **found, missing=list(values["missing"]) if "missing" in values else None)
        found = {m: progress.done[key][m] for m in module.MEASURES}
        part = pd.DataFrame(found, index=rows.index, dtype=float)
        reasons = progress.done[key].get("missing")
        parts.append(part if reasons is None else part.assign(missing=reasons))
    return pd.concat(parts)


def begin(path: Path, scorers: dict, config: ScoreConfig) -> Progress:
    """What was scored before a kill, if file and settings are still the same; else nothing."""
    idle = {"input", "scorers", "group_column", *OF_ASKING, *(field.name for field in fields(ServerConfig))} - set(WHO)
    settings = {key: value for key, value in asdict(config).items() if key not in idle}
    settings |= {"input": file_sha256(path)}
    for module in scorers.values():
        settings |= module.fingerprint(config) if hasattr(module, "fingerprint") else {}
    output = path.with_suffix(".scores")  # never written: the scores themselves may be there from before
    try:
        return Progress(output, settings)
    except UserError as error:
        logger.warning("starting again: %s", str(error).removesuffix(": add --overwrite"))
        return Progress(output, settings, overwrite=True)


def score_one(path: Path, frame: pd.DataFrame, scorers: dict, config: ScoreConfig) -> None:
    """Scores one file, writes what stands beside it, and prints the summary."""
    record, progress = start_record(config, [path]), begin(path, scorers, config)
    scores, anchors, missing = pd.DataFrame(index=frame.index), {}, {}
    for name, module in scorers.items():
        logger.info("%s on %d rows of %s", name, len(frame), path)
        known = pd.concat([frame, scores], axis=1)  # joint reads what others found
        if is_asked(module, config):  # what was answered before a kill is kept in that file
            values = module.ask(known, config, path.with_suffix(f".{name}.answers.jsonl"))
        else:
            values = score_rows(known, name, module, config, progress)
        if "missing" in values:
            missing[name] = Counter(values["missing"][values["missing"] != ""])
            values = values.rename(columns={"missing": f"{name}_missing"})
        scores = pd.concat([scores, values], axis=1)
        extra = module.anchors(frame, values, config) if hasattr(module, "anchors") else {}
        anchors |= {f"{name}_{key}": value for key, value in extra.items()}
    if "status" in frame.columns:
        scores[frame["status"] == "too_long"] = float("nan")  # never answered: neither good nor bad
    summary = summarise(scores, scorers, config.seed)

    groups = by_group(frame, scores, scorers, config) if config.group_column else {}
    stem = path.with_suffix("")
    write_json(
        Path(f"{stem}.summary.json"), {"measures": summary, "groups": groups, "anchors": anchors, "missing": missing}
    )
    finish_record(record, Path(f"{stem}.scores.csv"), counts={"rows": len(frame)})
    write_table(pd.concat([frame, scores], axis=1), Path(f"{stem}.scores.csv"))
    progress.finish()

    print(f"{path}: {len(frame)} rows")
    rows = [
        [
            name,
            "-" if s["mean"] is None else f"{s['mean']:.3f}",
            "-" if s["low"] is None else f"{s['low']:.3f} to {s['high']:.3f}",
            f"{s['scored']}/{s['total']}",
            s["meaning"],
        ]
        for name, s in summary.items()
    ]
    print(markdown_table(["measure", "mean", "95 % interval", "rows", "meaning"], rows))
    if groups:
        print(f"\nby {config.group_column}\n{group_table(groups)}")
    if anchors:
        print("anchors: " + ", ".join(f"{name} {value:.3f}" for name, value in anchors.items()))
    for name, reasons in missing.items():
        if reasons:
            said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(params.REASONS_SHOWN))
            print(f"{name}: something is missing for {reasons.total()} rows: {said}")


def score_text(config: ScoreConfig, scorers: dict) -> None:
    """Prints the measures of --input_text."""
    if not config.input_text.strip():
        raise UserError("--input_text is empty")
    if others := ", ".join(set(scorers) - WITHOUT_SOURCE):
        raise UserError(f"--input_text: {others} compare a text with its source: score a file, or leave them out")
    frame = pd.DataFrame({"prompt": [config.prompt_text], config.output_column: [config.input_text]})
    for module in scorers.values():
        module.fingerprint(config)  # what is missing shows before anything is loaded
        settings = replace(config, prompt_column="")
        if is_asked(module, config):
            with tempfile.TemporaryDirectory() as folder:
                row = module.ask(frame, settings, Path(folder) / "text.answers.jsonl").iloc[0]
        else:
            row = module.score(frame, settings).iloc[0]
        if row.get("missing"):
            raise UserError(f"--input_text has no answer: {row['missing']}")
        if hasattr(module, "verdict"):
            print(module.verdict(row))
        found = {name: of.meaning for name, of in module.MEASURES.items() if not pd.isna(row[name])}
        print("\n".join(f"{name} {row[name]:.3f}  ({meaning})" for name, meaning in found.items()))


def main(config: ScoreConfig) -> None:
    scorers = load_scorers(config.scorers)
    if config.input_text is not None:
        score_text(config, scorers)
        return
    files = results_files(config.input)
    frames = [read_results(path, config, scorers) for path in files]  # a mistake in the last one shows at once
    for path, frame in zip(files, frames, strict=True):
        score_one(path, frame, scorers, config)


if __name__ == "__main__":
    run_stage(main, parse_config(ScoreConfig))
