"""How many safety examples does an instruction set need, and what do they cost? A model for every dose and seed.

    python training/train_cost.py                                   # the judge, once
    python recipes/safety_dose.py                                   # the embedded data, on a laptop: 15 models
    python recipes/safety_dose.py --seeds 0 --safety_counts 0,50,200                                  # 3 models
    python recipes/safety_dose.py --base_model models/start --input alpaca_small.json \\
        --safety safety_only_data_Instructions.json --safety_counts 0,100,300,500,1000,1500,2000 --seeds 0,1,2 \\
        --unsafe I-MaliciousInstructions.json I-CoNa.json --safe xstest_prompts.csv --useful I-Alpaca.json \\
        --settings recipes/safety_tuned_llamas.yaml

The same command with --table only reports on the cells that are finished.

Reads  instructions and safety examples as generate_data/mix_safety.py does; --unsafe, --safe and --useful: requests to
       test on (instruction or prompt; of a file with a column label only the rows labelled unsafe, safe or useful);
       the cost model of training/train_cost.py, to be trained on real pairs where figures are to mean something;
       --gold: answers that people labelled (prompt, response, harmful 0 or 1), which say how often both measures of
       harm are right
Writes models/safety_dose/<dose>_s<seed>/: adapter, answers, scores, cell.json
       datasets/reports/safety_dose/: report.html, dose.png, table.md, dose.json

Runs, for each cell: mix_safety.py, train.py, infer.py, score.py and ability.py, as one would by hand. A cell that is
finished is not run again, one that was cut off goes on. The seed also chooses the safety examples. Harm is measured in
two ways that err differently: whether rules find that the request was complied with, and whether the cost model calls
the answer unsafe. An answer that says nothing is neither harmful nor useful. A refusal is no answer to an everyday
instruction, so usefulness counts it too.
"""

import importlib.util
import logging
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from training.train import ALIASES
from utils import dose, params
from utils.configs import MixSafetyConfig, at_least, setting
from utils.cost_model import check, weights_hash
from utils.data import content_id, read_prompts, read_table, require_columns, write_table
from utils.dose_report import write_report
from utils.helpers import UserError, parse_config, run_stage
from utils.models import model_record, resolve
from utils.prompt_styles import style_record
from utils.records import (
    changes,
    check_output_folder,
    file_sha256,
    finish_record,
    read_json,
    record_path,
    start_record,
    whole_folder,
    write_json,
)
from utils.stages import check_training, stage

logger = logging.getLogger(__name__)

KINDS = ("unsafe", "safe", "useful")


@dataclass
class DoseConfig(MixSafetyConfig):
    evaluation: list[str] = field(default_factory=list, metadata={"help": "the requests below, unless given"})
    output: str = setting(str(params.DOSE_DIR), "folder for the report")
    work: str = setting(str(params.DOSE_WORK), "folder for models and answers")
    base_model: str = setting(params.BASE_MODEL, "folder or Hub id of the model to tune")
    seeds: str = setting(params.DOSE_SEEDS, "each with other safety examples and another order of rows")
    unsafe: list[str] = field(
        default_factory=lambda: [str(params.SAFETY_TEST_FILE)], metadata={"help": "requests to decline"}
    )
    safe: list[str] = field(
        default_factory=lambda: [str(params.SAFETY_TEST_FILE)], metadata={"help": "requests that only sound unsafe"}
    )
    useful: list[str] = field(
        default_factory=lambda: [str(params.USEFUL_FILE)], metadata={"help": "everyday instructions"}
    )
    gold: list[str] = field(default_factory=list, metadata={"help": "labelled answers: prompt, response, harmful"})
    cost_model: str = setting(str(params.COST_DIR), "folder of the cost model that calls answers unsafe")
    settings: str = setting("", "YAML with settings of training/train.py")
    prompt_style: str = setting(params.DOSE_STYLE, "how prompts are put, see training/train.py")
    fluency_model: str = setting(params.BASE_MODEL, "to which gibberish is unexpected")
    ability: str = setting(params.ABILITY_TASKS, "a task of testing/ability.py; '': none")
    max_new_tokens: int = setting(params.DOSE_TOKENS, "longest answer, in tokens")
    seed: int = setting(params.SEED, "chooses the answers that the report shows; training goes by --seeds")
    overwrite: bool = setting(False, "train anew cells of --work that were made with other settings")
    table: bool = setting(False, "train nothing, report on what is finished")

    def seed_list(self) -> list[int]:
        if not all(part.strip().isdigit() for part in self.seeds.split(",")):
            raise ValueError(f"--seeds {self.seeds}: give whole numbers, e.g. 0,1,2")
        return sorted({int(part) for part in self.seeds.split(",")})

    def __post_init__(self):
        super().__post_init__()
        self.seed_list()
        at_least(1, self, "max_new_tokens")
        if self.table and self.overwrite:
            raise ValueError("--table reports on what --overwrite would train anew: leave one out")
        self.evaluation = self.evaluation or list(dict.fromkeys([*self.unsafe, *self.safe, *self.useful]))


def write_prompts(config: DoseConfig, path: Path) -> None:
    """All requests that are tested on, each once, by kind."""
    rows = []
    for kind in KINDS:
        for name in getattr(config, kind):
            if not (requests := read_prompts(name, kind)):
                raise UserError(f"--{kind} {name}: no row has {kind} in its column label")
            rows += [
                {"id": content_id(kind, text), "kind": kind, "set": Path(name).stem, "instruction": text.instruction,
                 "input": text.input, "label": kind if kind != "useful" else ""}
                for text in requests
            ]  # fmt: skip
    write_table(pd.DataFrame(rows).drop_duplicates("id"), path)


def run_cell(config: DoseConfig, count: int, seed: int, mixture: Path, prompts: Path) -> None:
    """Trains, answers and scores; whatever of it is done already is left as it is."""
    folder = Path(config.work) / f"{count}_s{seed}"
    settings = {"model": model_record(resolve(config.base_model)), "mixture": file_sha256(mixture)}
    settings |= {"prompts": file_sha256(prompts), "cost_model": weights_hash(config.cost_model)}
    settings |= {name: getattr(config, name) for name in ("max_new_tokens", "fluency_model", "ability")}
    settings["style"] = style_record(config.prompt_style)
    settings["train"] = file_sha256(Path(config.settings)) if config.settings else ""
    begun, finished = folder / "settings.json", folder / "cell.json"
    if config.overwrite and begun.is_file():  # it is ours
        shutil.rmtree(folder)
    earlier = read_json(begun) if begun.is_file() else settings
    if finished.is_file():
        earlier = read_json(finished)["settings"]
    if changed := changes(earlier, settings):
        said = "; ".join(changed)
        raise UserError(f"{folder} was made with other settings ({said}): name another --work, or add --overwrite")
    if finished.is_file():
        return
    write_json(begun, settings)
    adapter, answers, ability = folder / "adapter", folder / "answers.csv", folder / "ability.csv"
    more = ["--config", config.settings] if config.settings else []
    stage("training/train.py", *more, "--base_model", config.base_model, "--input", mixture, "--seed", seed,
          "--prompt", "answer", "--prompt_style", config.prompt_style, "--output", adapter, "--resume",
          "--report_to", "none")  # fmt: skip
    if not answers.is_file():
        stage("testing/infer.py", "--adapter_model", adapter, "--input", prompts, "--output", answers,
              "--max_new_tokens", config.max_new_tokens)  # fmt: skip
    scores = scored(answers, config, "generated_text")
    found = dose.measured(scores)
    if config.ability:
        if not ability.is_file():
            stage("testing/ability.py", "--tasks", config.ability, "--adapter_model", adapter, "--output", ability)
        found["ability"] = dose.of_questions(read_table(ability))
    trained = read_json(adapter / "metrics.json")
    kept = {name: trained[name] for name in ("validation_loss_before", "validation_loss", "steps", "train_seconds")}
    write_json(finished, {"settings": settings, "trained": kept, "measures": found, "sets": list(scores["set"])})


def scored(path: Path, config: DoseConfig, column: str) -> pd.DataFrame:
    """Answers with their scores."""
    scores = path.with_suffix(".scores.csv")
    if not scores.is_file():
        stage("testing/score.py", "--scorers", "refusal,cost,gibberish", "--cost_model", config.cost_model,
              "--fluency_model", config.fluency_model, "--input", path, "--input_column", "prompt",
              "--output_column", column)  # fmt: skip
    return read_table(scores, longest=params.MAX_ANSWER_CHARS)


def read_gold(config: DoseConfig) -> dict[str, pd.DataFrame]:
    """Answers that people labelled, by the name of their file. Raises UserError for labels that are not 0 or 1."""
    found = {}
    for name in config.gold:
        frame = read_table(name, longest=params.MAX_ANSWER_CHARS)
        require_columns(frame, ["prompt", "response", "harmful"], name, "--gold")
        if set(frame["harmful"]) != {"0", "1"}:
            raise UserError(f"--gold {name}: the column harmful holds 0 and 1, and both of them")
        if Path(name).stem in found:
            raise UserError(f"--gold: two files are called {Path(name).stem}: rename one")
        found[Path(name).stem] = frame
    return found


def judges(config: DoseConfig, gold: dict[str, pd.DataFrame]) -> dict[str, dict]:
    """How often the measures of harm were right on such answers, which are scored for that."""
    found = {}
    for name, frame in gold.items():
        key = content_id(weights_hash(config.cost_model), config.fluency_model, *frame.astype(str).to_numpy().ravel())
        copy = Path(config.work) / "gold" / f"{name}_{key}.csv"
        if not copy.is_file():
            write_table(frame, copy)
        found[name] = dose.judged(scored(copy, config, "response"))
    return found


def main(config: DoseConfig) -> None:
    work, prompts, output = Path(config.work), Path(config.work) / "prompts.csv", Path(config.output)
    check(config.cost_model)
    check_training(config.settings, ALIASES)
    gold = read_gold(config)
    check_output_folder(output, overwrite=True)
    if config.ability and importlib.util.find_spec("lm_eval") is None:
        logger.warning("ability is left out: lm-evaluation-harness is not installed (requirements-eval.txt)")
        config = replace(config, ability="")
    if not config.table:
        write_prompts(config, prompts)
        run_grid(config, prompts)
    mixed = [record for seed in config.seed_list() for record in mixtures(config, seed).values()]
    if not mixed:
        raise UserError(f"--table: {work} holds no mixtures yet: run it without --table")
    doses = sorted({record["counts"]["safety"] for record in mixed})
    cells, sets = dose.read_cells(work, doses, config.seed_list())
    record = start_record(config, [prompts])
    with whole_folder(output, overwrite=True) as folder:
        answers = dose.examples(work, cells, config.seed)
        print(write_report(folder, cells, sets, mixed[0]["general"], judges(config, gold), answers))
        finish_record(record, folder, counts={"cells": len(cells)})
    print(f"\n{output}: report.html, dose.png, table.md, dose.json")


def mixtures(config: DoseConfig, seed: int) -> dict[Path, dict]:
    """The files of a seed, by dose, with their records."""
    folder = Path(config.work) / f"mixtures_s{seed}"
    found = {path: read_json(record_path(path)) for path in folder.glob(f"{Path(config.input).stem}_safety*.json")
             if not path.name.endswith(".run.json")}  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: item[1]["counts"]["safety"]))


def run_grid(config: DoseConfig, prompts: Path) -> None:
    """All doses of a seed, then the next seed, so that whole curves are there soon."""
    flag = "safety_counts" if config.safety_shares is None else "safety_shares"
    shaping = ["--input", config.input, "--safety", *config.safety, "--form", config.form,
               "--evaluation", *config.evaluation, f"--{flag}", getattr(config, flag) or params.SAFETY_COUNTS,
               *(["--keep_leaks"] if config.keep_leaks else []),
               *(["--limit", config.limit] if config.limit else [])]  # fmt: skip
    for seed in config.seed_list():
        folder = Path(config.work) / f"mixtures_s{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # made anew in seconds, and doses no longer asked for go
        stage("generate_data/mix_safety.py", *shaping, "--seed", seed, "--output", folder)
        for mixture, of in mixtures(config, seed).items():
            run_cell(config, of["counts"]["safety"], seed, mixture, prompts)


if __name__ == "__main__":
    run_stage(main, parse_config(DoseConfig))
