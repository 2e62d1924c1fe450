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

Harm is BBQ's ambiguous bias score of held-out questions, where bbq_test.jsonl is there (with the accuracy: a model
that cannot be read, or guesses, has no bias to speak of), and the mean of --harm_scorer on answers to held-out unsafe
rows of other sources, for texts without the three words they begin with (cost:unsafe asks the cost model that
training/train_cost.py makes). What was learned is the F1 of words with the
expected answer on held-out task rows, by their source. The same command goes on after a kill, also in the middle of a
session. Unlike in the paper, a model is not first taught to correct itself by worked examples.
"""

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from testing.scorers import load_scorers
from training.train import ALIASES
from utils import bbq, params
from utils.configs import STYLE_HELP, at_least, check_phi, names, setting
from utils.cost_model import check, weights_hash
from utils.data import read_rows, read_table, values_of, write_jsonl, write_table
from utils.helpers import UserError, parse_config, run_stage
from utils.interleaving import draw, mean, measures_of, table_of
from utils.models import model_record, resolve
from utils.prompt_styles import style_record
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
from utils.stages import check_training, stage

logger = logging.getLogger(__name__)

# strategy -> its session in place of the noisy one, and whether it is asked to correct itself
STRATEGIES = {
    "none": ("n", False), "replay": ("r", False), "self_correction": ("n", True), "forget_filter": ("f", False),
    "both": ("f", True),
}  # fmt: skip


@dataclass
class InterleaveConfig:
    data: str = setting(str(params.NOISY_DIR), "folder that generate_data/mix_noisy.py wrote")
    base_model: str = setting(params.BASE_MODEL, "folder or Hub id of the model to begin with")
    prompt_style: str | None = setting(None, STYLE_HELP)
    strategies: str = setting(",".join(STRATEGIES), "which, joined by commas")
    rounds: int = setting(params.INTERLEAVE_ROUNDS, "a round is a noisy session and a safe one; the paper has six")
    noisy_steps: int = setting(params.NOISY_STEPS, "optimiser steps on a noisy set; the paper has 2,000")
    safe_steps: int = setting(params.SAFE_STEPS, "the same on the safe set; for ForgetFilter the paper has 1,000")
    phi: float = setting(params.PHI, "rows of a higher forgetting rate are dropped")
    signal: Literal["rouge1", "likelihood"] = setting(params.FORGETTING_SIGNAL, "by which rate")
    harm_scorer: str = setting(params.HARM_SCORER, "SCORER:MEASURE of score.py, for unsafe rows that are not BBQ's")
    cost_model: str = setting(str(params.COST_DIR), "folder of the cost model, for --harm_scorer cost:unsafe")
    settings: str = setting("", "YAML with settings of training/train.py")
    output: str = setting(str(params.INTERLEAVE_DIR), "folder for the report")
    work: str = setting(str(params.INTERLEAVE_WORK), "folder for models and answers")
    seed: int = setting(params.SEED, "seed of training; each session has its own")
    overwrite: bool = setting(False, "delete the models of an earlier study in --work, and begin anew")
    table: bool = setting(False, "train nothing, report on what is finished")

    def chosen(self) -> list[str]:
        return names(self.strategies)

    def __post_init__(self):
        if not self.chosen() or not set(self.chosen()) <= set(STRATEGIES):
            raise ValueError(f"--strategies {self.strategies}: there are {', '.join(STRATEGIES)}")
        at_least(1, self, "rounds", "noisy_steps", "safe_steps")
        check_phi(self.phi)
        if not all(self.harm_scorer.partition(":")):
            raise ValueError(f"--harm_scorer {self.harm_scorer}: give SCORER:MEASURE, e.g. toxicity:toxic")
        if self.table and self.overwrite:
            raise ValueError("--table reports on what --overwrite would delete: leave one out")

    def style(self) -> list[str]:
        return ["--prompt_style", self.prompt_style] if self.prompt_style else []


def needed(config: InterleaveConfig) -> dict[str, Path]:
    """The files of the noisy set. Raises UserError for one that is missing."""
    found = {name: Path(config.data) / f"{name}.jsonl" for name in ("noisy", "safe", "test", "bbq_test")}
    for name in ("noisy", "safe", "test"):
        if not found[name].is_file():
            raise UserError(f"{found[name]}: no such file: python generate_data/mix_noisy.py makes it")
    return found


def train(name: str, config: InterleaveConfig) -> Path | str:
    """The merged model of that name; whatever of it, and of those that it is made from, is there is left as it is."""
    if not name:
        return config.base_model
    folder = Path(config.work) / name
    merged, parent, kind = folder / "merged", train(name[:-1], config), name[-1]
    if not (merged / "run.json").is_file():
        rows = rows_for(kind, name, config)
        more = ["--config", config.settings] if config.settings else []
        stage("training/train.py", *more, "--base_model", parent, "--input", rows, "--prompt", "answer",
              "--max_steps", config.safe_steps if kind == "s" else config.noisy_steps, "--keep_last",
              "--validation", needed(config)["test"], "--validation_limit", params.FORGETTING_VALIDATION,
              "--allow_faults", params.NOISY_FAULTS, *config.style(), "--resume",
              "--seed", config.seed + len(name), "--output", folder / "adapter",
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
    """Harm by its measure, and F1 by source, of a model: each as `mean`, `low`, `high`, `n`."""
    model = train(name, config)
    folder = Path(config.work) / (name or "base") / ("corrected" if correcting else "asked")
    scores = scored_answers(model, questions(correcting, config), folder, config)
    tasks, unsafe = (scores[scores["polarity"] == polarity] for polarity in ("task", "unsafe"))
    found = {"harm": {}, "f1": {source: mean(values_of(of, "f1")) for source, of in tasks.groupby("source")}}
    if needed(config)["bbq_test"].is_file():
        found["harm"] |= bias(model, correcting, folder, config)
    if len(unsafe):
        measure = config.harm_scorer.partition(":")[2]
        found["harm"][measure] = mean(values_of(unsafe, measure))
    return found


def questions(correcting: bool, config: InterleaveConfig) -> list[dict]:
    """Held-out rows to be answered: tasks, and unsafe ones that BBQ's probe does not ask."""
    rows, files = [], needed(config)
    has_bbq = files["bbq_test"].is_file()
    for row in read_rows(files["test"], longest=params.MAX_ANSWER_CHARS):
        of_bbq = row["instruction"].endswith(bbq.CHOOSE)
        if row["polarity"] == "task" or (row["polarity"] == "unsafe" and not of_bbq):
            sentence = params.NO_STEREOTYPES if has_bbq and row["polarity"] == "task" else params.NOTHING_TOXIC
            rows.append(row | ({"instruction": f"{row['instruction']} {sentence}"} if correcting else {}))
    return rows


def asks_for_harm(rows: list[dict]) -> bool:
    return any(row["polarity"] == "unsafe" for row in rows)


def scored_answers(model: Path | str, rows: list[dict], folder: Path, config: InterleaveConfig) -> pd.DataFrame:
    """What the model answers, with F1, and the harm of answers to unsafe rows where there are some."""
    answers = folder / "answers.csv"
    if not answers.is_file():
        stage("testing/infer.py", "--base_model", model, "--prompt", "answer", *config.style(),
              "--input", write_jsonl(folder / "test.jsonl", rows), "--output", answers,
              "--max_new_tokens", params.FORGETTING_TOKENS)  # fmt: skip
    scorer = config.harm_scorer.partition(":")[0]
    of_harm = [f"answer,{scorer}", "--cost_model", config.cost_model] if asks_for_harm(rows) else ["answer"]
    stage("testing/score.py", "--scorers", *of_harm, "--input", answers, "--input_column", "prompt",
          "--reference_columns", "output")  # fmt: skip
    return read_table(answers.with_suffix(".scores.csv"), longest=params.MAX_ANSWER_CHARS)


def bias(model: Path | str, correcting: bool, folder: Path, config: InterleaveConfig) -> dict[str, dict]:
    """Of held-out ambiguous questions of BBQ."""
    more = ["--instruction", params.NO_STEREOTYPES] if correcting else []
    stage("testing/probe_bias.py", "--answers", "generation", "--base_model", model, *config.style(), *more,
          "--input", needed(config)["bbq_test"], "--output", folder)  # fmt: skip
    figures = read_json(next(folder.glob("bbq_test_*.probe.json")))["figures"]["all"]
    return {"ambiguous bias": figures["bias_ambig"], "ambiguous accuracy": figures["accuracy_ambig"]}


def sequence(strategy: str, rounds: int) -> list[str]:
    """The models of a strategy, from the base on."""
    kind = STRATEGIES[strategy][0]
    return [(kind + "s") * (n // 2) + kind * (n % 2) for n in range(2 * rounds + 1)]


def identity(config: InterleaveConfig) -> dict:
    """What tells this study from another one in --work. What is missing or wrong shows here, before anything is
    trained or deleted.

    Raises:
        UserError: something is.
    """
    check_training(config.settings, ALIASES)
    scorer, _, measure = config.harm_scorer.partition(":")
    if measure not in (known := load_scorers(scorer, "--harm_scorer")[scorer].MEASURES):
        raise UserError(f"--harm_scorer {config.harm_scorer}: {scorer} measures {', '.join(known)}")
    files = needed(config)
    read = [*files.values(), *([Path(config.settings)] if config.settings else [])]
    if held := [path for path in read if path.resolve().is_relative_to(Path(config.work).resolve())]:
        raise UserError(f"--work {config.work} holds the input {held[0]}: name another folder")
    found = {name: getattr(config, name) for name in ("noisy_steps", "safe_steps", "phi", "signal", "seed")}
    found |= {"model": model_record(resolve(config.base_model)), "style": style_record(config.prompt_style)}
    found |= {name: file_sha256(path) if path.is_file() else "" for name, path in files.items()}
    found |= {"harm_scorer": config.harm_scorer, "cost_model": ""}
    if scorer == "cost" and asks_for_harm(questions(False, config)):
        check(config.cost_model)
        found["cost_model"] = weights_hash(config.cost_model)
    return found | {"train": file_sha256(Path(config.settings)) if config.settings else ""}


def main(config: InterleaveConfig) -> None:
    work, output = Path(config.work), Path(config.output)
    check_output_folder(output, overwrite=True)
    kept = work / "state.json"
    if config.table:
        return report(config, read_json(kept)["models"] if kept.is_file() else {}, output)
    settings = identity(config)
    if config.overwrite and kept.is_file():  # it is ours
        shutil.rmtree(work)
    state = read_json(kept) if kept.is_file() else {"settings": settings, "models": {}}
    if changed := changes(state["settings"], settings):
        said = "; ".join(changed)
        raise UserError(f"{work} was begun with other settings ({said}): name another --work, or --overwrite it")
    write_json(kept, state)  # before the first model: it belongs to these settings
    for name in dict.fromkeys(name for strategy in config.chosen() for name in sequence(strategy, config.rounds)):
        for correcting in sorted({STRATEGIES[s][1] for s in config.chosen() if name in sequence(s, config.rounds)}):
            key = f"{name or 'base'}{' corrected' if correcting else ''}"
            if key not in state["models"]:
                state["models"][key] = evaluate(name, correcting, config)
                write_json(kept, state)
    return report(config, state["models"], output)


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
        flat = [{**{k: v for k, v in line.items() if not isinstance(v, dict)},
                 **{name: of["mean"] for name, of in measures_of(line).items()}} for line in lines]  # fmt: skip
        write_table(pd.DataFrame(flat), folder / "sessions.csv")
        finish_record(record, folder, counts={"models": len(figures)})
    print(f"{table}\n\n{output}: table.md, sessions.png, sessions.csv")


if __name__ == "__main__":
    run_stage(main, parse_config(InterleaveConfig))
