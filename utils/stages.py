"""Recipes run stage scripts as one would by hand."""

import logging
import signal
import subprocess
import sys

from utils.helpers import INTERRUPTED, UserError
from utils.params import ROOT

logger = logging.getLogger(__name__)


def stage(script: str, *flags) -> None:
    """Runs a stage script; what it prints is not shown, what it logs is.

    Ctrl+C reaches the stage too, which may still have a step to save: it is waited for.

    Raises:
        UserError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    logger.info("$ python %s", " ".join(map(str, [script, *flags])))
    command = [sys.executable, ROOT / script, *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = process.wait()
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt("the same command goes on from there")
    if code:
        raise UserError(f"{script} ended with code {code}, see above; once mended, the same command goes on")
