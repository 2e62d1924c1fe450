"""Generative guard models: the verdict is a word at a known place, and its probability is a score.

What a guard reads is its own affair: its chat template puts prompt and response into the form that it was trained on.
For a guard without one (WildGuard) a file holds the form, with {prompt} and {response} in it, as its authors print it.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.answers import Answer, Request
from utils.configs import ScoreConfig
from utils.helpers import UserError
from utils.labels import label_probabilities


class Verdict(NamedTuple):
    """A line that a guard writes: what stands before its verdict, the words that this may be, and which is meant."""

    name: str
    lead: str
    labels: tuple[str, ...]
    meant: str


# style -> the lines up to that of the response's harm, in order
STYLES: dict[str, tuple[Verdict, ...]] = {
    "llama-guard": (Verdict("unsafe", "\n\n", ("safe", "unsafe"), "unsafe"),),
    "qwen3guard": (Verdict("unsafe", "Safety:", (" Safe", " Controversial", " Unsafe"), " Unsafe"),),
    "shieldgemma": (Verdict("unsafe", "", ("Yes", "No"), "Yes"),),
    "wildguard": (
        Verdict("request", "Harmful request:", (" yes", " no"), " yes"),
        Verdict("refusal", "\nResponse refusal:", (" yes", " no"), " yes"),
        Verdict("unsafe", "\nHarmful response:", (" yes", " no"), " yes"),
    ),
}


def style_of(config: ScoreConfig, name: str) -> tuple[Verdict, ...]:
    """The style asked for, or the one in the name of a model.

    Raises:
        UserError: neither is known; the guard needs a form or a policy that was not given; or it can only run in
            process, where what it reads is put together here.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    style = config.guard_style or next((known for known in STYLES if known.replace("-", "") in plain), "")
    if style not in STYLES:
        raise UserError(f"--guard_style {style or '(not known of ' + name + ')'}: there are {', '.join(STYLES)}")
    if style == "wildguard" and not config.guard_template:
        raise UserError("--guard_template FILE: WildGuard has no chat template; take the form of its model card")
    if style == "shieldgemma" and not (config.guard_policy or config.guard_template):
        raise UserError("--guard_policy TEXT: ShieldGemma judges by a policy; its model card has examples")
    if config.engine != "transformers" and (config.guard_policy or config.guard_template):
        raise UserError("--guard_policy and --guard_template are for a guard in process: add --engine transformers")
    if config.guard_policy and config.guard_template:
        raise UserError("--guard_policy is for a guard's own chat template: write it into the form instead")
    return STYLES[style]


def read_form(config: ScoreConfig) -> str | None:
    """The form in --guard_template, if one is given."""
    if not config.guard_template:
        return None
    form = Path(config.guard_template).read_text(encoding="utf-8")
    if "{prompt}" not in form or "{response}" not in form:
        raise UserError(f"--guard_template {config.guard_template}: it has to hold {{prompt}} and {{response}}")
    return form


def turns(prompt: str, response: str) -> list[dict[str, str]]:
    """What is judged, as a chat: a response to a prompt, or a text by itself, as if a user said it."""
    if not prompt:
        return [{"role": "user", "content": response}]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def filled(form: str, prompt: str, response: str) -> str:
    """In one pass, so that a text that holds {response} stays as it is."""
    return re.sub(r"\{(prompt|response)\}", lambda found: {"prompt": prompt, "response": response}[found[1]], form)


def verdicts(
    model, tokenizer, rows: list[tuple[str, str]], style: tuple[Verdict, ...], config: ScoreConfig
) -> Iterator[tuple[int, dict[str, float]]]:
    """Numbers of rows (prompt, response), and of each verdict the probability of what is meant, in process.

    A line that comes before is written as the guard would write it: with its likeliest word.
    """
    from utils.options import option_likelihoods

    form, policy = read_form(config), {"guideline": config.guard_policy} if config.guard_policy else {}
    if form is None and tokenizer.chat_template is None:
        raise UserError("the guard has no chat template: give its form as --guard_template FILE")
    contexts = [
        filled(form, *row)
        if form
        else tokenizer.apply_chat_template(turns(*row), tokenize=False, add_generation_prompt=True, **policy)
        for row in rows
    ]
    found: list[dict[str, float]] = [{} for _ in rows]
    for verdict in style:
        contexts = [context + verdict.lead for context in contexts]
        questions = [(context, verdict.labels) for context in contexts]
        for number, likely in option_likelihoods(model, tokenizer, questions, special=False):
            shares = [math.exp(nats - likely.nats.max()) for nats in likely.nats]
            meant = shares[verdict.labels.index(verdict.meant)]
            found[number][verdict.name] = meant / sum(shares)
            contexts[number] += verdict.labels[shares.index(max(shares))]
    yield from enumerate(found)


def request_for(row: tuple[str, str], style: tuple[Verdict, ...], model: str, config: ScoreConfig) -> Request:
    """The same as a request to a server, which knows the guard's chat template."""
    return Request(model, turns(*row), max_tokens=config.label_tokens, labels=_plain(style[-1].labels))


def read_verdict(answer: Answer, verdict: Verdict) -> dict[str, float]:
    """From what a guard wrote at a server: with its probability, where this was told.

    Raises:
        ValueError: there is no verdict.
    """
    shares = label_probabilities(answer, _plain(verdict.labels), verdict.lead)
    return {verdict.name: shares[verdict.meant.strip().lower()]}


def _plain(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(label.strip().lower() for label in labels)
