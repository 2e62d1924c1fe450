"""What every stage script needs: its command line, its log, its seed, and a one-line end for a user's mistake."""

import argparse
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Config = TypeVar("Config")
logger = logging.getLogger(__name__)

USAGE_ERROR, INTERRUPTED = 2, 130


class UserError(Exception):
    """Something the user can mend. The message is one line: what was wrong, the value, the fix."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The script's docstring as it is written, and every default."""


def parse_config(
    config_class: type[Config], aliases: dict[str, Any] | None = None, argv: list[str] | None = None
) -> Config:
    """Reads the command line into a config. Precedence: utils/params.py < --config FILE.yaml < flags.

    Args:
        config_class: dataclass of utils/configs.py.
        aliases: published flag name -> our name; or (our name, function from the old value to ours, where None
            sets nothing); or (None, what replaced it) for a flag that is accepted without effect.
        argv: arguments instead of `sys.argv[1:]`.

    Exits with code 2 on unknown flags or keys, on values of a wrong type and on a config's own ValueError.
    """
    setup_process()
    from transformers.hf_argparser import HfArgumentParser  # imports no torch; half a second

    manual = sys.modules["__main__"].__doc__ or ""

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(USAGE_ERROR, f"error: {message} (see --help)\n")  # without two screens of usage before it

    parser = Parser(config_class, description=manual, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings by name; flags on the command line win")
    argv = _rename_published_flags(sys.argv[1:] if argv is None else argv, aliases or {}, parser)
    config_file = parser.parse_known_args(argv)[0].config
    if config_file:  # settings of the file go before the flags, so that they are checked alike and flags win
        settings = _yaml_as_flags(config_file, aliases or {}, parser)
        argv = _rename_published_flags(settings, aliases or {}, parser) + argv
    values = vars(parser.parse_args(argv))
    values.pop("config")
    if values.get("limit") is not None and values["limit"] < 1:
        parser.error(f"--limit {values['limit']}: give a number above 0")
    try:
        return config_class(**values)
    except ValueError as error:
        parser.error(str(error))


def _rename_published_flags(argv: list[str], aliases: dict, parser: argparse.ArgumentParser) -> list[str]:
    """`--learning_rate 2e-4` becomes `--lr 2e-4`; two names for one setting that disagree are an error."""
    renamed, given = [], {}
    tokens = iter(argv)
    pending = next(tokens, None)
    while pending is not None:
        token, pending = pending, next(tokens, None)
        name, equals, value = token.partition("=")
        old = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or old not in aliases:
            renamed.append(token)
            continue
        if not equals:
            value = "True"  # a published switch without a value
            if pending is not None and not pending.startswith("--"):
                value, pending = pending, next(tokens, None)
        for new, converted in _translate(old, value, aliases, parser).items():
            if given.setdefault(new, converted) != converted:
                parser.error(f"--{old} {value} disagrees with another flag that sets --{new} to {given[new]}")
            renamed += [f"--{new}", str(converted)]
    for new, converted in given.items():
        canonical = _flag_value(argv, new)
        if canonical is not None and canonical != str(converted):
            parser.error(f"--{new} {canonical} disagrees with a published flag that sets it to {converted}")
    return renamed


def _flag_value(argv: list[str], name: str) -> str | None:
    """The text given for --name in argv, or None."""
    for position, token in enumerate(argv):
        if token == f"--{name}" and position + 1 < len(argv):
            return argv[position + 1]
        if token.startswith(f"--{name}="):
            return token.partition("=")[2]
    return None


def _translate(old: str, value: Any, aliases: dict, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What a published name and its value are called here: one setting, or none."""
    alias = aliases[old]
    if isinstance(alias, str):
        return {alias: value}
    new, detail = alias
    if new is None:
        logger.warning("--%s has no effect: %s", old, detail)
        return {}
    try:
        converted = detail(value)
    except (ValueError, KeyError):
        parser.error(f"--{old} {value}: not a value that can be read")
    return {} if converted is None else {new: converted}


def _yaml_as_flags(path: str, aliases: dict, parser: argparse.ArgumentParser) -> list[str]:
    """The settings of a YAML file as they would stand on the command line."""
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        parser.error(f"--config {path}: {error.strerror}")
    except yaml.YAMLError as error:
        parser.error(f"--config {path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(settings, dict):
        parser.error(f"--config {path}: expected lines like 'lr: 2.0e-4'")
    flags = []
    for name, value in settings.items():
        if name not in aliases and f"--{name}" not in parser._option_string_actions:
            parser.error(f"--config {path}: there is no setting {name}")
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def as_switch(value: str) -> bool:
    """A published on/off flag. Raises KeyError for anything else."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]


# aliases for `parse_config`: what our settings are called in transformers' TrainingArguments, and so in most scripts
TRAINER_NAMES = {
    "output_dir": "output",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "save_steps": "eval_steps",
    "bf16": ("compute_dtype", lambda value: "bfloat16" if as_switch(value) else None),
    "fp16": ("compute_dtype", lambda value: "float16" if as_switch(value) else None),
    "tf32": (None, "the library decides"),
    "remove_unused_columns": (None, "rows hold only what is trained on"),
    "logging_dir": (None, "logs go to the output folder"),
    "resume_from_checkpoint": (None, "add --resume: it finds the newest checkpoint"),
}


def setup_process() -> None:
    """Logging to stderr in one format (answers and tables go to stdout), no telemetry, no code from a hub."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "openai", "sentence_transformers", "datasets", "bitsandbytes", "filelock",
                 "transformers.distributed"):  # fmt: skip
        logging.getLogger(name).setLevel(logging.ERROR)
    # where it finds this package, bitsandbytes downloads native code from a hub as it is imported
    sys.modules.setdefault("kernels", None)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    if not sys.stderr.isatty():  # a log file wants lines, not bars
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def run_stage(main: Callable, config: Any) -> NoReturn:
    """Runs a stage's `main(config)` and turns its end into the exit code of the process.

    0: done; or the number that main returns (1: too many rows failed). 2: a mistake the user can mend, in one line.
    130: interrupted.
    """
    try:
        code = main(config)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USAGE_ERROR)
    except OSError as error:
        if not (error.filename and error.strerror):
            raise
        sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt as interrupt:
        what_next = str(interrupt) or "the same command, without --overwrite, continues or starts clean (see --help)"
        sys.stderr.write(f"interrupted: {what_next}\n")
        sys.exit(INTERRUPTED)
    sys.exit(code or 0)


def set_seed(seed: int) -> None:
    """Seeds Python, numpy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def describe(config) -> str:
    """The settings that differ from the defaults, for the log."""
    default = type(config)()
    changed = {k: v for k, v in asdict(config).items() if v != getattr(default, k)}
    return ", ".join(f"{k}={v}" for k, v in changed.items()) or "all settings at their defaults"
