"""From requests to what their answers say: asked again where an answer does not fit, missing with a reason at last."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from utils.answers import Answer, Answers, Request
from utils.prompts import ask_again

RAW_CHARS = 2_000  # of an answer that could not be used; the whole of it is in the answers file

_REFUSAL = re.compile(
    r"(?:as an ai\b.{0,60}?)?(?:(?:i'm|i am) (?:really |very |so )?(?:sorry|unable|not able)|sorry,|i apologi[sz]e|"
    r"unfortunately,? i|i (?:can't|cannot|can not|won't|will not|must decline) )",
    re.IGNORECASE | re.DOTALL,
)


class Outcome(NamedTuple):
    """What was read from an answer. `status`: ok; or refused, filtered, truncated, unparsable, and no value.

    `raw` is the answer that could not be used; `by` the model that was asked, `tries` how often.
    """

    status: str
    value: Any
    raw: str
    by: str
    tries: int


def read_or_ask(request: Request, answers: Answers, read: Callable[[Answer], Any], retries: int) -> Outcome | Request:
    """What the kept answers to a request say, or the request that is to be answered next.

    An answer that does not fit is asked for again with what was wrong with it, `retries` times.

    Args:
        read: from an answer to its value. Raises ValueError, with the reason, where it does not fit.
    """
    for tries in range(1, retries + 2):
        answer = answers.get(request.key)
        if answer is None:
            return request
        raw = answer.text[:RAW_CHARS]
        if answer.end in ("refused", "filtered"):
            return Outcome(answer.end, None, raw, answer.by, tries)
        try:
            return Outcome("ok", read(answer), "", answer.by, tries)
        except ValueError as error:
            if _REFUSAL.match(answer.text.strip().replace("\u2019", "'")):
                return Outcome("refused", None, raw, answer.by, tries)
            if answer.end == "length":  # it would be cut again
                return Outcome("truncated", None, raw, answer.by, tries)
            request = replace(request, messages=ask_again(request.messages, raw, str(error)[:300]))
    return Outcome("unparsable", None, raw, answer.by, tries)


def ask_until_read(
    steps: Callable[[], Iterator[Any]],
    answers: Answers,
    ask: Callable[[Iterator[Request]], dict[str, str]],
    rounds: int,
) -> dict[str, str]:
    """Asks an engine: first every request, then again what did not fit.

    Args:
        steps: called for each round, so that they need not be held; those that are requests are asked.
        ask: keeps the answers to requests in `answers`; returns what went wrong, by key.

    Returns:
        What went wrong, by key.
    """
    errors: dict[str, str] = {}
    for _ in range(rounds):
        before = len(answers)
        errors |= ask(step for step in steps() if isinstance(step, Request) and step.key not in errors)
        if len(answers) == before:
            break
    return errors
