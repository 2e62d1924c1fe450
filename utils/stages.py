"""Recipes run stage scripts as one would by hand."""

import logging
import shlex
import signal
import subprocess
import sys

from utils.configs import TrainConfig
from utils.helpers import INTERRUPTED, UserError, parse_config
from utils.params import ROOT

logger = logging.getLogger(__name__)


def check_training(settings: str, aliases: dict) -> None:
    """Exits for a --settings file that training/train.py would refuse.

    Args:
        settings: YAML, "" for none.
        aliases: the published names of its settings.

    Raises:
        UserError: it trains something else than an adapter, which is what recipes answer with and merge.
    """
    if settings and (method := parse_config(TrainConfig, aliases, ["--config", settings]).method) != "lora":
        raise UserError(f"--settings {settings}: a recipe goes on with a LoRA adapter, not with method: {method}")


def stage(script: str, *flags) -> None:
    """Runs a stage script; what it prints is not shown, what it logs is.

    Ctrl+C reaches the stage too, which may still have a step to save: it is waited for.

    Raises:
        UserError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    logger.info("$ python %s", shlex.join(map(str, [script, *flags])))
    command = [sys.executable, ROOT / script, *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = process.wait()
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt("the same command goes on from there")
    if code == -signal.SIGKILL:
        raise UserError(f"{script} was killed: was there too little memory?")
    if code:
        raise UserError(f"{script} ended with code {code}, see above; once mended, the same command goes on")
