"""Checkpoints that are complete or not used: a marker is written last, and read before a run goes on from one."""

import json
import logging
import os
import re
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from utils import processes
from utils.configs import OptimiserConfig, file_and_share
from utils.helpers import UserError
from utils.models import ModelRef, model_record
from utils.records import RECORD_NAME, changes, file_sha256, read_json, shareable, write_json

logger = logging.getLogger(__name__)

BEGUN = "begun.json"  # in the folder of an unfinished run: what it was begun with
MARKER = "complete.json"  # of every file in the checkpoint its size and SHA-256
_STATE = "trainer_state.json"
# of a checkpoint, what only a run that goes on needs
_OF_TRAINING = (_STATE, MARKER, "optimizer.*", "scheduler.pt", "rng_state*.pth", "training_args.bin", "scaler.pt")
PASSING = ("output", "overwrite", "resume", "report_to")  # settings that change nothing that is learned


def mark_complete(checkpoint: Path) -> None:
    """Brings a checkpoint to disk and says what belongs to it."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MARKER:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            name = str(path.relative_to(checkpoint))
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(checkpoint / MARKER, files)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or with the best one that it refers to; None if it can be used."""
    try:
        files = read_json(checkpoint / MARKER)
        for name, wanted in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {wanted['bytes']}"
            if file_sha256(path) != wanted["sha256"]:
                return f"{name} was changed"
        best = best_of(checkpoint)
    except (UserError, AttributeError, KeyError, TypeError):  # no marker, or no longer what mark_complete wrote
        return f"it was not finished (no readable {MARKER})"
    if best and best != checkpoint and (reason := damage(best)):
        return f"the best one before it, {best.name}, is damaged: {reason}"
    return None


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, as known when `checkpoint` was written."""
    best = read_json(checkpoint / _STATE)["best_model_checkpoint"]
    return checkpoint.parent / Path(best).name if best else None


def by_step(folder: Path) -> list[Path]:
    """All checkpoints in a folder, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def newest_usable(folder: Path) -> Path | None:
    """The newest complete checkpoint; newer ones that are damaged are named in the log and deleted."""
    for checkpoint in by_step(folder):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s cannot be used: %s", checkpoint.name, reason)
        shutil.rmtree(checkpoint)
    return None


def same_run(config: OptimiserConfig, ref: ModelRef, folder: Path) -> dict:
    """What tells this run from another one: settings, model, data. Compares it with a run that was begun before.

    Raises:
        UserError: a begun run is neither to be resumed nor to be given up, or it differs from this one.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in PASSING}
    data = {str(path): file_sha256(path) for path in config.files()}
    this = {"settings": settings, "model": model_record(ref), "data": data, "processes": processes.count()}
    this = json.loads(json.dumps(this, default=str))
    something_is_done = any(folder.rglob("checkpoint-*")) or any(folder.rglob("metrics.json"))
    if not (something_is_done and (folder / BEGUN).is_file()) or (config.overwrite and not config.resume):
        return this
    if not config.resume:
        raise UserError(f"{folder} holds a run that was stopped: add --resume to go on, or --overwrite to start anew")
    begun = read_json(folder / BEGUN)
    changed = [f"--{change}" for change in changes(begun["settings"], this["settings"])]
    changed += [f"the {part} changed" for part in ("model", "data", "processes") if begun[part] != this[part]]
    if changed:
        raise UserError(f"{folder} was begun differently ({'; '.join(changed)}): --overwrite starts anew")
    return this


def stopped_early(checkpoint: Path, patience: int, on_drift: bool) -> bool:
    """Whether the run had run out of patience, or its safety had drifted, when it wrote this checkpoint, so that
    nothing is left to train."""
    state = read_json(checkpoint / _STATE)
    measured = [entry for entry in state["log_history"] if "eval_loss" in entry]
    if on_drift and measured and measured[-1].get("eval_safe_margin_fallen"):
        return True
    states = state["stateful_callbacks"]
    attributes = states.get("EarlyStoppingCallback", {}).get("attributes", {})
    return 0 < patience <= attributes.get("early_stopping_patience_counter", 0)


def finished_otherwise(config: OptimiserConfig, folder: Path) -> list[str]:
    """In words, which settings of a run that is complete differ from these."""
    record = read_json(folder / RECORD_NAME)
    done = record["config"]
    same = [*PASSING, "input", "validation", *(["seed"] if config.seeds else [])]  # of several seeds the best is there
    now = {name: shareable(value) for name, value in asdict(config).items() if name in done and name not in same}
    if now["quantization"] is None:
        now["quantization"] = done["quantization"]
    if isinstance(config.input, list):  # a mixture: its names and shares, as the data themselves are compared below
        for settings, given in ((done, done["input"]), (now, config.input)):
            settings["input"] = " ".join(f"{Path(name).name}:{share:g}" for name, share in map(file_and_share, given))
    data = [file_sha256(path) for path in config.files()]
    return [f"--{change}" for change in changes(done, now)] + (
        [] if data == list(record["inputs"].values()) else ["other data"]
    )


def state_of(callback: str, trainer) -> dict | None:
    """What a callback had kept when the best checkpoint was written; None where there is none."""
    best = trainer.state.best_model_checkpoint
    checkpoint = Path(trainer.args.output_dir) / Path(best).name if best else None
    return _kept_by(callback, checkpoint) if checkpoint and (checkpoint / _STATE).is_file() else None


def load_best_of(trainer, checkpoint: Path) -> None:
    """Ends a run that had stopped by itself when it wrote `checkpoint`: its history, and its best weights."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / _STATE))
    trainer._load_best_model()


class Stopwatch(TrainerCallback, ExportableState):
    """Has each checkpoint say how many seconds of training it took, those before a stop included."""

    def __init__(self, before: float = 0.0):
        self.before = before
        self.started = time.monotonic()

    def on_train_begin(self, args, state, control, **others):
        self.started = time.monotonic()

    def state(self) -> dict:
        return {"args": {"before": self.before + time.monotonic() - self.started}, "attributes": {}}


def seconds_of(checkpoint: Path) -> float:
    """Seconds of training until this checkpoint."""
    return _kept_by("Stopwatch", checkpoint)["before"]


def _kept_by(callback: str, checkpoint: Path) -> dict:
    return read_json(checkpoint / _STATE)["stateful_callbacks"][callback]["args"]


class CompleteCheckpoints(TrainerCallback):
    """Marks each checkpoint, and then deletes those that neither of the two newest ones needs."""

    def on_save(self, args, state, control, **others):
        processes.wait()  # each writes the state of its random generators
        if not processes.is_main():
            return
        newest, *older = by_step(Path(args.output_dir))
        mark_complete(newest)
        needed = {newest, best_of(newest)}
        if older:  # should the newest be damaged, the run goes on from this one
            needed |= {older[0], best_of(older[0])}
        for checkpoint in set(older) - needed:
            shutil.rmtree(checkpoint)


class KeepAll(TrainerCallback):
    """Keeps the weights of each evaluation, with their tokenizer, in folder/step-<n>."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_save(self, args, state, control, **others):
        evaluated = any("eval_loss" in entry for entry in state.log_history if entry["step"] == state.global_step)
        if processes.is_main() and evaluated:  # Ctrl+C saves at any step
            kept = self.folder / f"step-{state.global_step}"
            shutil.rmtree(kept, ignore_errors=True)  # of a run that was killed while it wrote
            shutil.copytree(by_step(Path(args.output_dir))[0], kept, ignore=shutil.ignore_patterns(*_OF_TRAINING))


class StopOnSignal(TrainerCallback):
    """Ctrl+C (or SIGTERM, from a scheduler) ends the step, saves a checkpoint and stops; the second stops at once.

    Of several processes one may hear it a step later than another, and the launcher passes it on once more: they
    stop together, after the step.
    """

    def __init__(self):
        self.stopped = False

    def on_train_begin(self, args, state, control, **others):
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, number, frame):
        if self.stopped and processes.count() == 1:
            raise KeyboardInterrupt("stopped at once; --resume goes on from the last checkpoint")
        if not self.stopped:
            more = " (once more stops at once)" if processes.count() == 1 else ""
            logger.warning("stopping after this step, to save it%s", more)
        self.stopped = True

    def on_step_end(self, args, state, control, **others):
        self.stopped = bool(processes.largest(self.stopped))
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **others):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.stopped:
            step = f"step {state.global_step} of {state.max_steps}"
            raise KeyboardInterrupt(f"{step} is saved, --resume goes on from there")
