"""Noisy and safe training in turns: does what was unlearned come back, and what keeps it away? (arXiv 2312.12736)

    python generate_data/mix_noisy.py --unsafe BBQ/*.jsonl --safe BBQ/*.jsonl --task squad.jsonl alpaca.json --size 600
    python recipes/interleave.py                                       # two rounds of every strategy, on that set
    python recipes/interleave.py --rounds 1 --strategies none,forget_filter --base_model models/start
    python recipes/interleave.py --table                               # only report on what is finished

Reads  a folder of generate_data/mix_noisy.py: noisy.jsonl, safe.jsonl, test.jsonl and, for bias, bbq_test.jsonl
Writes models/interleave/<model>/: adapter, merged model, answers; state.json: settings, and the figures of each model
       datasets/reports/interleave/: table.md (as the paper's table 2), sessions.png (as its figure 5), sessions.csv

A model is named by the sessions that made it: n trained on the noisy set, s on the safe one, r on both at once
(replay), f on what ForgetFilter left of the noisy set: `nsn` is the base trained on noisy, safe and noisy rows. So
strategies share what they have in common, and a finished session is never run again. In a round

none             trains on the noisy set, then on the safe one: n s n s ...
replay           trains on both together in place of the noisy set: r s r s ...
forget_filter    trains on the noisy set and then the safe one only to see what is forgotten, goes back, and trains on
                 what is left: f s f s ...
self_correction  asks the models of `none` with a sentence that wants no stereotypes (for texts: nothing toxic)
both             asks those of forget_filter with that sentence

Harm is BBQ's ambiguous bias score of held-out questions, where bbq_test.jsonl is there; else the mean of --harm_scorer
on answers to the held-out unsafe rows. What was learned is the F1 of words with the expected answer on held-out task
rows, by their source. The same command goes on after a kill, also in the middle of a session.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import RunConfig, setting
from utils.data import read_rows, read_table, values_of, write_table
from utils.helpers import UserError, parse_config, run_stage
from utils.interleaving import draw, mean, table_of
from utils.models import model_record, resolve
from utils.records import (
    changes,
    check_output_folder,
    file_sha256,
    finish_record,
    read_json,
    start_record,
    whole_folder,
    write_json,
)
from utils.stages import stage

logger = logging.getLogger(__name__)

# strategy -> its session in place of the noisy one, and whether it is asked to correct itself
STRATEGIES = {
    "none": ("n", False), "replay": ("r", False), "self_correction": ("n", True), "forget_filter": ("f", False),
    "both": ("f", True),
}  # fmt: skip


@dataclass
class InterleaveConfig(RunConfig):
    data: str = setting(str(params.NOISY_DIR), "folder that generate_data/mix_noisy.py wrote")
    base_model: str = setting(params.BASE_MODEL, "folder or Hub id of the model to begin with")
    strategies: str = setting(",".join(STRATEGIES), "which, joined by commas")
    rounds: int = setting(params.INTERLEAVE_ROUNDS, "sessions of either kind; the paper has six")
    noisy_steps: int = setting(params.NOISY_STEPS, "optimiser steps on a noisy set; the paper has 2,000")
    safe_steps: int = setting(params.SAFE_STEPS, "the same on the safe set; for ForgetFilter the paper has 1,000")
    phi: float = setting(params.PHI, "rows of a higher forgetting rate are dropped")
    signal: str = setting(params.FORGETTING_SIGNAL, "by which rate: rouge1 or likelihood, see testing/forgetting.py")
    harm_scorer: str = setting(params.HARM_SCORER, "SCORER:MEASURE of score.py, where there is no bbq_test.jsonl")
    settings: str = setting("", "YAML with settings of training/train.py")
    output: str = setting(str(params.INTERLEAVE_DIR), "folder for the report")
    work: str = setting(str(params.INTERLEAVE_WORK), "folder for models and answers")
    table: bool = setting(False, "train nothing, report on what is finished")

    def chosen(self) -> list[str]:
        return [name.strip() for name in self.strategies.split(",") if name.strip()]

    def __post_init__(self):
        if not self.chosen() or not set(self.chosen()) <= set(STRATEGIES):
            raise ValueError(f"--strategies {self.strategies}: there are {', '.join(STRATEGIES)}")
        for flag in ("rounds", "noisy_steps", "safe_steps"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag} {getattr(self, flag)}: give 1 or more")


def needed(config: InterleaveConfig) -> dict[str, Path]:
    """The files of the noisy set. Raises UserError for one that is missing."""
    found = {name: Path(config.data) / f"{name}.jsonl" for name in ("noisy", "safe", "test", "bbq_test")}
    for name in ("noisy", "safe", "test"):
        if not found[name].is_file():
            raise UserError(f"{found[name]}: no such file: python generate_data/mix_noisy.py makes it")
    return found


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def train(name: str, config: InterleaveConfig) -> Path:
    """The merged model of that name; whatever of it, and of those that it is made from, is there is left as it is."""
    if not name:
        return Path(resolve(config.base_model).path)
    folder = Path(config.work) / name
    merged, parent, kind = folder / "merged", train(name[:-1], config), name[-1]
    if not (merged / "run.json").is_file():
        rows = rows_for(kind, name, config)
        more = ["--config", config.settings] if config.settings else []
        stage("training/train.py", *more, "--base_model", parent, "--input", rows, "--prompt", "answer",
              "--max_steps", config.safe_steps if kind == "s" else config.noisy_steps, "--keep_last",
              "--validation", needed(config)["test"], "--validation_limit", params.FORGETTING_VALIDATION,
              "--seed", config.seed + len(name), "--output", folder / "adapter", "--resume",
              "--report_to", "none")  # fmt: skip
        stage("training/merge.py", "--adapter_model", folder / "adapter", "--output", merged)
    return merged


def rows_for(kind: str, name: str, config: InterleaveConfig) -> Path:
    """What a session is trained on."""
    files = needed(config)
    if kind == "r":
        noisy, safe = (list(read_rows(files[of], longest=params.MAX_ANSWER_CHARS)) for of in ("noisy", "safe"))
        return write_jsonl(Path(config.work) / "replay.jsonl", noisy + safe[: len(noisy)])
    if kind != "f":
        return files["noisy" if kind == "n" else "safe"]
    folder = Path(config.work) / name
    before, after = train(f"{name[:-1]}n", config), train(f"{name[:-1]}ns", config)
    forgetting, filtered = folder / "forgetting.csv", folder / "filtered"
    if not forgetting.is_file():
        signal = "likelihood" if config.signal == "likelihood" else "both"
        stage("testing/forgetting.py", "--input", files["noisy"], "--before", before, "--after", after,
              "--signal", signal, "--output", forgetting)  # fmt: skip
    if not (filtered / "run.json").is_file():
        stage("generate_data/filter_forgotten.py", "--input", files["noisy"], "--forgetting", forgetting,
              "--signal", config.signal, "--phi", config.phi, "--output", filtered)  # fmt: skip
    return filtered / "kept.jsonl"


def evaluate(name: str, correcting: bool, config: InterleaveConfig) -> dict:
    """Harm, and what was learned, of a model: each as `mean`, `low`, `high`, `n`."""
    model, files = train(name, config), needed(config)
    has_bbq = files["bbq_test"].is_file()
    sentence = (params.NO_STEREOTYPES if has_bbq else params.NOTHING_TOXIC) if correcting else ""
    folder = Path(config.work) / (name or "base") / ("corrected" if correcting else "asked")
    wanted = ("task",) if has_bbq else ("task", "unsafe")
    rows = [row for row in read_rows(files["test"], longest=params.MAX_ANSWER_CHARS) if row["polarity"] in wanted]
    for row in rows:
        row["instruction"] = " ".join(filter(None, [row["instruction"], sentence]))
    answers = folder / "answers.csv"
    if not answers.is_file():
        asked = write_jsonl(folder / "test.jsonl", rows)
        stage("testing/infer.py", "--base_model", model, "--prompt", "answer", "--input", asked, "--output", answers,
              "--max_new_tokens", params.FORGETTING_TOKENS)  # fmt: skip
    scorer, _, measure = config.harm_scorer.partition(":")
    scorers = "answer" if has_bbq else f"answer,{scorer}"
    stage("testing/score.py", "--scorers", scorers, "--input", answers, "--input_column", "prompt",
          "--reference_columns", "output")  # fmt: skip
    scores = read_table(answers.with_suffix(".scores.csv"), longest=params.MAX_ANSWER_CHARS)
    tasks = scores[scores["polarity"] == "task"]
    f1 = {source: mean(values_of(of, "f1")) for source, of in tasks.groupby("source")}
    if not has_bbq:
        return {"harm": mean(values_of(scores[scores["polarity"] == "unsafe"], measure)), "f1": f1}
    stage("testing/probe_bias.py", "--answers", "generation", "--base_model", model, "--input", files["bbq_test"],
          "--output", folder, *(["--instruction", sentence] if sentence else []))  # fmt: skip
    probed = read_json(next(folder.glob("bbq_test_*.probe.json")))
    return {"harm": probed["figures"]["all"]["bias_ambig"], "f1": f1,
            "accuracy_ambig": probed["figures"]["all"]["accuracy_ambig"]}  # fmt: skip


def sequence(strategy: str, rounds: int) -> list[str]:
    """The models of a strategy, from the base on."""
    kind = STRATEGIES[strategy][0]
    return [(kind + "s") * (n // 2) + kind * (n % 2) for n in range(2 * rounds + 1)]


def main(config: InterleaveConfig) -> None:
    files, work, output = needed(config), Path(config.work), Path(config.output)
    check_output_folder(output, overwrite=True)
    settings = {name: getattr(config, name) for name in ("noisy_steps", "safe_steps", "phi", "signal", "seed")}
    settings |= {"model": model_record(resolve(config.base_model)), "harm_scorer": config.harm_scorer}
    settings |= {name: file_sha256(path) if path.is_file() else "" for name, path in files.items()}
    settings["train"] = file_sha256(Path(config.settings)) if config.settings else ""
    kept = work / "state.json"
    state = read_json(kept) if kept.is_file() and not config.overwrite else {"settings": settings, "models": {}}
    if changed := changes(state["settings"], settings):
        raise UserError(f"{work} was begun with other settings ({'; '.join(changed)}): name another --work")
    for name in dict.fromkeys(name for strategy in config.chosen() for name in sequence(strategy, config.rounds)):
        for correcting in sorted({STRATEGIES[s][1] for s in config.chosen() if name in sequence(s, config.rounds)}):
            key = f"{name or 'base'}{' corrected' if correcting else ''}"
            if key not in state["models"] and not config.table:
                state["models"][key] = evaluate(name, correcting, config)
                write_json(kept, state)
    report(config, state["models"], output)


def report(config: InterleaveConfig, figures: dict[str, dict], output: Path) -> None:
    """Table and figure of the strategies that are finished."""
    lines = []
    for strategy in config.chosen():
        corrected = " corrected" if STRATEGIES[strategy][1] else ""
        for session, name in enumerate(sequence(strategy, config.rounds)):
            if of := figures.get(f"{name or 'base'}{corrected}"):
                lines.append({"strategy": strategy, "session": session, "model": name or "base", **of})
    if not lines:
        raise UserError(f"--table: {config.work} holds no finished session yet")
    record = start_record(config, [])
    with whole_folder(output, overwrite=True) as folder:
        table = table_of(lines)
        (folder / "table.md").write_text(table + "\n", encoding="utf-8")
        draw(lines, folder / "sessions.png")
        flat = [{**{k: v for k, v in line.items() if not isinstance(v, dict)}, "harm": line["harm"]["mean"],
                 **{f"f1 {source}": of["mean"] for source, of in line["f1"].items()}} for line in lines]  # fmt: skip
        write_table(pd.DataFrame(flat), folder / "sessions.csv")
        finish_record(record, folder, counts={"models": len(figures)})
    print(f"{table}\n\n{output}: table.md, sessions.png, sessions.csv")


if __name__ == "__main__":
    run_stage(main, parse_config(InterleaveConfig))
