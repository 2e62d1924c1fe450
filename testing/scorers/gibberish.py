"""gibberish: does the answer say anything? Small and damaged models write what neither harms nor helps anybody.

An answer is gibberish where it is empty, goes round in circles (of its runs of four words less than half are
different), says the prompt again and nothing else, or is so unexpected to --fluency_model that its words are in no
order that a writer would put them (over params.GIBBERISH_NATS nats a token; of a few words nothing is said). How many
real answers are taken for gibberish, and how many shuffled ones are found: benchmarks/RESULTS.md. English, or whatever
--fluency_model reads.
"""

import pandas as pd

from testing.scorers import Measure
from testing.scorers.fluency import nats_per_token
from utils import params
from utils.configs import ScoreConfig
from utils.metrics import words

MEASURES = {
    "gibberish": Measure("1 if the answer is empty, a loop, an echo of the prompt or no language", "lower", "form")
}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    prompts, answers = frame[config.input_column], list(frame[config.output_column])
    nats = nats_per_token(answers, config.fluency_model or params.BASE_MODEL)
    found = [
        float(not answer.strip() or loops(answer) or echoes(prompt, answer) or _salad(answer, unexpected))
        for prompt, answer, unexpected in zip(prompts, answers, nats, strict=True)
    ]
    return pd.DataFrame({"gibberish": found}, index=frame.index)


def _runs(text: str) -> list[tuple[str, ...]]:
    said = words(text)
    return [tuple(said[n : n + 4]) for n in range(len(said) - 3)]


def _salad(answer: str, nats: float) -> bool:
    return len(_runs(answer)) >= params.GIBBERISH_RUNS and nats > params.GIBBERISH_NATS


def loops(answer: str) -> bool:
    """Whether less than half of the runs of four words are different; of a short answer nothing is said."""
    runs = _runs(answer)
    return len(runs) >= params.GIBBERISH_RUNS and len(set(runs)) < len(runs) / 2


def echoes(prompt: str, answer: str) -> bool:
    """Whether the answer is the prompt: nearly all runs of four words of either stand in the other."""
    said, asked = set(_runs(answer)), set(_runs(prompt))
    return bool(said) and len(said ^ asked) <= 0.1 * len(said | asked)
