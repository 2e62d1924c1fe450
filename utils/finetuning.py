"""A fine-tuning run around its trainer: audit, seeds, checkpoints, and the files that a model is left with."""

import logging
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from utils import processes
from utils.card import REWRITER, write_card
from utils.checkpoints import (
    BEGUN,
    finished_otherwise,
    load_best_of,
    newest_usable,
    same_run,
    seconds_of,
    stopped_early,
)
from utils.configs import FinetuneConfig, OptimiserConfig
from utils.disk import disk_errors
from utils.helpers import UserError, describe, set_seed
from utils.loading import load_tokenizer
from utils.models import ModelRef, model_record
from utils.prompts import ANSWER
from utils.records import (
    RECORD_NAME,
    finish_record,
    read_json,
    start_record,
    unfinished,
    whole_folder,
    write_json,
)
from utils.report import plot_losses
from utils.supervision import Example, encode_all, findings, write_audit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is learned. A row is an example with `input_ids` and `id`.

    Attributes:
        build: (config, model, training rows, validation rows, tokenizer, folder) -> Trainer, its checkpoints in
            folder/checkpoints.
        encode: (training rows, validation rows, model, tokenizer, config) -> both as examples.
        audit: (training examples, tokenizer, config, folder): raises UserError where they are no good.
        conclude: (trainer, validation examples, tokenizer, folder) -> metrics of the best weights, which it may also
            write files about; in the main process only.
        about: see utils/card.py.
        chats: whether the tokenizer needs a chat template.
    """

    build: Callable
    encode: Callable
    audit: Callable
    conclude: Callable
    about: tuple[str, str, str]
    chats: bool = True


def check_settings(config: OptimiserConfig, arguments: Callable) -> None:
    """Everything that can be wrong with the settings, before a model is loaded.

    Args:
        arguments: makes the library's arguments from (config, folder).
    """
    from transformers.integrations import get_reporting_integration_callbacks

    try:  # the library knows its optimisers, schedules and trackers
        made = arguments(config, Path(config.output))
    except (ValueError, ImportError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"--optimizer, --lr_scheduler or --compute_dtype: {said}") from error
    try:
        for tracker in get_reporting_integration_callbacks(made.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"--report_to {config.report_to}: {' '.join(str(error).split())}") from error
    if made.n_gpu > 1:
        raise UserError(
            f"there are {made.n_gpu} GPUs: start a process for each (torchrun --nproc_per_node {made.n_gpu} "
            f"{sys.argv[0]} ...), or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    processes.check_launch(made.world_size)


def nothing_left_to_do(config: OptimiserConfig) -> str | None:
    """In words that a run that is to be resumed is complete; None if there is something to do.

    Raises:
        UserError: it is, with other settings.
    """
    output = Path(config.output).resolve()
    if not config.resume or unfinished(output).exists() or not (output / RECORD_NAME).is_file():
        return None
    if changed := finished_otherwise(config, output):
        raise UserError(
            f"{config.output} is complete, with other settings ({'; '.join(changed)}): --overwrite trains anew"
        )
    return f"{config.output} is complete: nothing to go on with"


def rewriting(build: Callable) -> Task:
    """The task of a model that rewrites texts, by any trainer."""
    return Task(build, encode_all, audit, conclude=lambda *_: {}, about=REWRITER)


def finetune(config: OptimiserConfig, ref: ModelRef, rows: tuple[list, list], task: Task) -> dict[int, dict]:
    """Trains every seed on (training rows, validation rows) and returns metrics by seed.

    Where several processes train together, all of them call this; the main one writes and returns metrics.
    """
    output = Path(config.output).resolve()
    main = processes.is_main()
    this_run = same_run(config, ref, unfinished(output)) if main else None
    logger.info("training %s on %s (%s)", ref.name, config.input, describe(config))
    style = getattr(config, "prompt_style", None)
    tokenizer = load_tokenizer(ref, side="right", chat=task.chats, style=style)
    examples, held_out = task.encode(*rows, ref, tokenizer, config)

    seeds, runs = config.seed_list(), {}
    hint = "--resume goes on from the last checkpoint"
    whole = whole_folder(output, config.overwrite, config.resume, hint)
    with whole if main else disk_errors(unfinished(output), hint) as folder:
        if main:
            write_json(folder / BEGUN, this_run)
            task.audit(examples, tokenizer, config, folder)
        processes.wait()
        for seed in seeds:
            target = folder if len(seeds) == 1 else folder / f"seed-{seed}"
            if processes.agree((target / "metrics.json").is_file()):  # done before a stop
                shutil.rmtree(target / "checkpoints", ignore_errors=True)
            else:
                train_one(replace(config, seed=seed), ref, examples, held_out, tokenizer, task, target)
            if main:
                runs[seed] = read_json(target / "metrics.json")
                runs[seed].pop("history", None)
        if main and len(seeds) > 1:
            keep_best(folder, runs)
    (output / BEGUN).unlink(missing_ok=True)  # only now: until then another run must not take this one for its own
    return runs


def audit(examples: list[Example], tokenizer, config: FinetuneConfig, folder: Path) -> None:
    """Writes what training/audit.py writes. Raises UserError where a fault is above its limit."""
    found = findings(examples, config.allowed_faults())
    write_audit(folder, examples, found, tokenizer, config.seed)
    for finding in found:
        if finding.rows:
            logger.warning("%s", finding) if finding.blocks else logger.info("%s", finding)
    if blocking := [finding.fault for finding in found if finding.blocks]:
        raise UserError(
            f"{config.input}: {', '.join(blocking)} in too many rows (numbers above; python training/audit.py shows "
            f"them): mend them, or add --allow_faults {','.join(blocking)}"
        )


def train_one(
    config: OptimiserConfig, ref: ModelRef, examples: list, held_out: list, tokenizer, task: Task, folder: Path
) -> None:
    """Trains one seed into `folder`, from its newest checkpoint if there is one, and writes its metrics last."""
    main = processes.is_main()
    folder.mkdir(exist_ok=True)
    record = start_record(config, config.files()) if main else None
    set_seed(config.seed)
    # of like length beside one another, so that little of a validation batch is padding
    by_length = sorted(held_out, key=lambda example: len(example.input_ids))
    train, validation = (
        [example for example in rows if len(example.input_ids) <= config.max_length] for rows in (examples, by_length)
    )
    if not train or not validation:
        raise UserError(f"no rows left within --max_length {config.max_length}")
    dropped = len(examples) + len(held_out) - len(train) - len(validation)
    logger.info("%d training rows, %d validation rows, %d too long", len(train), len(validation), dropped)

    checkpoint = processes.agree(newest_usable(folder / "checkpoints") if main else None)
    trainer = task.build(config, ref, train, validation, tokenizer, folder)
    trainer.args.eval_on_start = checkpoint is None  # a run that goes on has that loss in its history
    if checkpoint:
        logger.info("going on from %s", checkpoint.name)
    seconds = seconds_of(checkpoint) if checkpoint else 0.0
    if checkpoint and stopped_early(checkpoint, config.patience, getattr(config, "stop_on_drift", False)):
        load_best_of(trainer, checkpoint)
    else:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds += outcome.metrics["train_runtime"]
    trainer.save_model(folder)
    if main:
        concluded = task.conclude(trainer, validation, tokenizer, folder)
        state = trainer.state
        metrics = {
            "validation_loss_before": next(e["eval_loss"] for e in state.log_history if "eval_loss" in e),
            "validation_loss": found_at(state.best_global_step, "eval_loss", state.log_history),
            "best_step": state.best_global_step,
            "steps": state.global_step,
            "train_seconds": seconds,  # of all parts, where the run was resumed
            "processes": processes.count(),
            "rows": {"train": len(train), "validation": len(validation), "too_long": dropped},
            "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
            "ordinary_loss_because": getattr(trainer, "ordinary_because", None),
        } | concluded
        if getattr(config, "safety_probe", ""):
            metrics["safety"] = safety_found(state)
        tokenizer.save_pretrained(folder)
        plot_losses(state.log_history, folder / "loss.png")
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
        more = {"prompt": template_learned(config, examples)} if hasattr(config, "prompt") else {}
        ids = [example.id for example in held_out]
        finish_record(record, folder, model=model_record(ref), metrics=metrics, held_out=ids, **more)
        for kept in folder.glob("step-*"):  # --keep_all: each is a model like that in the folder itself
            shutil.copy(folder / RECORD_NAME, kept)
        adapter = (folder / "adapter_config.json").is_file()
        write_card(folder, record, task.about, "adapter" if adapter else "finetune")
        write_json(folder / "metrics.json", metrics | {"history": state.log_history})  # it says that all is there
        shutil.rmtree(folder / "checkpoints")
    processes.wait()


def found_at(step: int, name: str, history: list[dict]) -> float:
    """What an evaluation found, by its step."""
    return next(entry[name] for entry in history if name in entry and entry["step"] == step)


def safety_found(state) -> dict:
    """The margins of utils/drift.py before training and of the checkpoint that is kept, and where drift was seen."""
    measured = [entry for entry in state.log_history if "eval_safe_margin" in entry]
    return {
        name.removeprefix("eval_"): {
            "before": measured[0][name],
            "kept": found_at(state.best_global_step, name, measured),
            "fallen_at_step": next((entry["step"] for entry in measured if entry[f"{name}_fallen"]), None),
        }
        for name in measured[0]
        if name.endswith("_margin")
    }


def template_learned(config: FinetuneConfig, examples: list[Example]) -> str:
    """The template of the prompts that were learned: rows that are no pairs come with prompts of their own."""
    return config.prompt if any(example.row["templated"] for example in examples) else ANSWER


def keep_best(folder: Path, runs: dict[int, dict]) -> None:
    """Puts the files of the best seed into `folder` itself, and says how far the seeds are apart."""
    best = min(runs, key=lambda seed: runs[seed]["validation_loss"])
    shutil.copytree(folder / f"seed-{best}", folder, dirs_exist_ok=True)
    mean, stdev = mean_and_spread(runs)
    write_json(folder / "seeds.json", {"mean": mean, "stdev": stdev, "best_seed": best, "runs": runs})


def mean_and_spread(runs: dict[int, dict]) -> tuple[float, float]:
    """Mean and standard deviation of the validation loss over seeds."""
    losses = [run["validation_loss"] for run in runs.values()]
    return statistics.mean(losses), statistics.stdev(losses)


def describe_runs(runs: dict[int, dict]) -> str:
    lines = [
        f"seed {seed}: validation loss {run['validation_loss_before']:.3f} -> {run['validation_loss']:.3f} "
        f"in {run['steps']} steps, {run['train_seconds']:.0f} s"
        for seed, run in runs.items()
    ]
    if len(runs) > 1:
        lines.append("validation loss {:.3f} +- {:.3f} over the seeds".format(*mean_and_spread(runs)))
    return "\n".join(lines)
