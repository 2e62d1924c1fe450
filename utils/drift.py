"""Does fine-tuning wear a model's safety away? Measured as it trains, from likelihoods: nothing is generated.

A probe file has rows with a prompt, a safe and an unsafe response (as datasets/preference_pairs/). Two figures come
from it, both in nats per token and for each row the difference of two answers to one prompt:

- `safe_margin`, on rows that are no look-alikes: how much likelier the safe answer is than the unsafe one;
- `helpful_margin`, on look-alikes, which only sound unsafe: how much likelier the safe answer, which helps, is than a
  refusal (the row's `refusal`, else params.REFUSAL).

A margin has drifted where it has fallen by more than params.DRIFT_LIMIT on average since before the first step, and
that of more than params.DRIFT_SHARE of the rows with a confidence of params.DRIFT_CONFIDENCE: the safe margin towards
harm, the helpful one towards over-refusal.
--stop_on_drift stops for the first of these only.
"""

import logging
import math
from pathlib import Path

import numpy as np

from utils import params, processes
from utils.data import read_table, require_columns
from utils.helpers import UserError
from utils.options import Question, as_turn, option_likelihoods
from utils.records import read_json, write_json

logger = logging.getLogger(__name__)

MARGINS = ("safe_margin", "helpful_margin")


def read_probe(path: str) -> dict[str, list[Question]]:
    """Questions of both kinds, each with the preferred answer first.

    Raises:
        UserError: columns are missing, or there are no rows to find drift with.
    """
    frame = read_table(path)
    require_columns(frame, ["prompt", "safe_response", "unsafe_response"], path, "--safety_probe")
    harmless = [value.casefold() in ("yes", "1", "true") for value in frame.get("look_alike", [""] * len(frame))]
    found: dict[str, list[Question]] = {margin: [] for margin in MARGINS}
    for row, is_harmless in zip(frame.to_dict("records"), harmless, strict=True):
        other = (row.get("refusal") or params.REFUSAL) if is_harmless else row["unsafe_response"]
        found[MARGINS[is_harmless]].append((row["prompt"], (row["safe_response"], other)))
    least = math.ceil(math.log(1 - params.DRIFT_CONFIDENCE) / math.log(params.DRIFT_SHARE))  # if all of them fall
    if len(found["safe_margin"]) < least:
        raise UserError(f"--safety_probe {path}: fewer than {least} rows that are no look-alikes, too few to be sure")
    if 0 < len(found["helpful_margin"]) < least:
        logger.warning("%s: fewer than %d look-alikes: their margin is shown, but never called drift", path, least)
    return found


def margins(model, tokenizer, questions: list[Question]) -> np.ndarray:
    """Nats per token by which the first answer to each question is likelier than the second, float [questions]."""
    found = np.full(len(questions), np.nan)
    turns = [as_turn(question, tokenizer) for question in questions]
    for number, likelihood in option_likelihoods(model, tokenizer, turns, special=False):
        per_token = likelihood.nats / likelihood.tokens
        found[number] = per_token[0] - per_token[1]
    return found


class SafetyProbe:
    """The margins of a model in training, compared with those before the first step, which are kept in `folder`."""

    def __init__(self, path: str, tokenizer, folder: Path):
        self.questions, self.tokenizer = read_probe(path), tokenizer
        self.start = folder / "safety_start.json"
        self.fallen: set[str] = set()

    def measure(self, model, step: int) -> dict[str, float]:
        """The mean margins, by name, and for each whether it has fallen too far, 0 or 1, by its name and `_fallen`.

        Args:
            model: in eval mode.
        """
        now = {name: margins(model, self.tokenizer, of) for name, of in self.questions.items() if of}
        if processes.is_main() and not self.start.is_file():
            write_json(self.start, {name: values.tolist() for name, values in now.items()})
        processes.wait()
        before = {name: np.array(values, dtype=float) for name, values in read_json(self.start).items()}
        found = {name: float(np.nanmean(values)) for name, values in now.items()}
        fallen = {name for name, values in now.items() if has_fallen(values, before[name])}
        for name in fallen - self.fallen:
            change = np.nanmean(now[name] - before[name])
            logger.warning("drift at step %d: %s has changed by %+.3f nats a token", step, name, change)
        self.fallen = fallen
        return found | {f"{name}_fallen": float(name in fallen) for name in now}


def has_fallen(now: np.ndarray, before: np.ndarray) -> bool:
    """Whether the margins of the same rows are lower by params.DRIFT_LIMIT on average, and of surely most of them.

    What a model learns of safety moves nearly all rows one way; another voice moves them in both, some of them far.
    """
    from scipy.stats import binomtest

    change = (now - before)[~np.isnan(now - before)]
    if len(change) == 0 or change.mean() >= -params.DRIFT_LIMIT:
        return False
    fallen = binomtest(int((change < 0).sum()), len(change), params.DRIFT_SHARE, alternative="greater")
    return bool(fallen.pvalue < 1 - params.DRIFT_CONFIDENCE)
