"""Texts judged by a model: moderation scores, grades and kept meaning. Missing with a reason where no answer fits."""

import json
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import params
from utils.answers import MODERATIONS, Answer, Answers, Request
from utils.asking import Outcome, ask_until_read, read_or_ask
from utils.configs import AskConfig, ScoreConfig, ServerConfig
from utils.data import content_id
from utils.engines import model_name, open_budget, open_engine
from utils.guard_models import read_verdict, request_for, style_of
from utils.injection import signs
from utils.labels import label_probabilities
from utils.models import model_record, resolve
from utils.pricing import say_estimate, say_spent
from utils.prompts import JUDGE_SCALES, KeptMeaning, judge_messages, parse_answer

logger = logging.getLogger(__name__)

# signs of an instruction to the judge that an honest answer does not have
HOSTILE = {"override", "role", "template", "invisible"}


class Asked(NamedTuple):
    """One question about one row: what is asked, and how the answer is read (see `read_or_ask`)."""

    row: int
    name: str
    request: Request
    read: Callable[[Answer], Any]
    retries: int


def ask_config(config: ScoreConfig, model: str | None = None) -> AskConfig:
    """Who is asked, from the settings of score.py."""
    server = {field.name: getattr(config, field.name) for field in fields(ServerConfig)}
    server |= {"model": model} if model else {}
    return AskConfig(**server, temperature=0.0, max_tokens=params.JUDGE_MAX_TOKENS)


def answer_all(
    questions: list[Asked], config: AskConfig, path: Path
) -> tuple[dict[tuple[int, str], Any], dict[int, str]]:
    """Asks every question whose answer is not kept in `path` yet; for a model in process in a file of its own.

    Returns:
        Values by row and name; and for rows where one is missing, why.
    """
    if config.engine == "transformers":
        path = path.with_name(path.name.replace(".answers.", f".{weights_of(config)}.answers."))
    # answers by other judges stay in the file, for when these are asked again
    answers = Answers(path, {"model": model_name(config)}, overwrite=True)
    budget, engine = open_budget(config, answers), open_engine(config)

    def steps() -> Iterator[Outcome | Request]:
        return (read_or_ask(each.request, answers, each.read, each.retries) for each in questions)

    left = [step for step in steps() if isinstance(step, Request)]
    if left:
        sizes = sum(request.prompt_bytes for request in left), sum(request.max_tokens for request in left)
        logger.info("%s: %s", model_name(config), say_estimate(len(left), *sizes, budget))
    totals = iter([len(left)])
    most = 1 + max((each.retries for each in questions), default=0)
    errors = ask_until_read(
        steps, answers, lambda requests: engine(requests, answers, budget, next(totals, None)), most
    )
    found, reasons = {}, defaultdict(list)
    for each, outcome in zip(questions, steps(), strict=True):
        if isinstance(outcome, Request):
            reasons[each.row].append(f"{each.name}: {errors.get(outcome.key, 'never asked')}")
        elif outcome.status == "ok":
            found[each.row, each.name] = outcome.value
        else:
            reasons[each.row].append(f"{each.name}: {outcome.status}")
    answers.close()
    logger.info("%s", say_spent(budget))
    return found, {row: "; ".join(said) for row, said in reasons.items()}


def weights_of(config: ServerConfig) -> str:
    """Eight hex digits that tell models in process apart: a folder may hold others weights tomorrow."""
    record = model_record(resolve(config.base_model, config.adapter_model, config.revision))
    return content_id(json.dumps(record, sort_keys=True), config.quantization or "")[:8]


# --- moderation ---
def moderation_scores(texts: list[str], config: ScoreConfig, path: Path) -> tuple[list[dict | None], list[str]]:
    """Scores by category, 0..1, of each text that is not empty, and why they are missing elsewhere."""
    asked = ask_config(config, config.moderation_model)
    questions = [
        Asked(n, "moderation", _moderation(text, config), category_scores, 0)
        for n, text in enumerate(texts)
        if text.strip()
    ]
    found, reasons = answer_all(questions, asked, path)
    scores = [found.get((n, "moderation")) for n in range(len(texts))]
    return scores, [_why(n, texts, reasons) for n in range(len(texts))]


def category_scores(answer: Answer) -> dict[str, float]:
    """By category. Raises ValueError for anything that is no score from 0 to 1."""
    scores = json.loads(answer.text)
    if not scores or not all(type(score) in (int, float) and 0 <= score <= 1 for score in scores.values()):
        raise ValueError(f"expected scores from 0 to 1: {answer.text[:200]}")
    return scores


def _moderation(text: str, config: ScoreConfig) -> Request:
    messages = [{"role": "user", "content": text}]
    return Request(config.moderation_model, messages, max_tokens=0, path=MODERATIONS)


# --- grades ---
def judgements(
    sources: list[str], texts: list[str], config: ScoreConfig, path: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What a judge says of texts, by each of several wordings.

    Returns:
        By measure: values, float [rows, wordings], NaN where missing; and for each row why something is missing.
    """
    asked, marker = ask_config(config), secrets.token_hex(8)
    hostile = [bool(HOSTILE & {*signs(source), *signs(text)}) for source, text in zip(sources, texts, strict=True)]
    questions = [
        _question(n, (sources[n], texts[n]), (what, wording), marker, model_name(asked), config)
        for n in range(len(texts))
        if texts[n].strip() and not hostile[n]
        for what in config.judged_aspects()
        for wording in range(config.wordings)
    ]
    found, reasons = answer_all(questions, asked, path)
    reasons |= {n: "instructions in the text" for n, yes in enumerate(hostile) if yes}
    values: dict[str, np.ndarray] = {}
    for (row, name), value in found.items():
        what, wording = name.split()
        for measure, number in (value if what == "meaning" else {what: value}).items():
            of = values.setdefault(measure, np.full((len(texts), config.wordings), np.nan))
            of[row, int(wording) - 1] = np.nan if number is None else number
    return values, [_why(n, texts, reasons) for n in range(len(texts))]


def _question(
    row: int, texts: tuple[str, str], question: tuple[str, int], marker: str, model: str, config: ScoreConfig
) -> Asked:
    what, wording = question
    messages, name = judge_messages(*texts, what, wording, marker), f"{what} {wording + 1}"
    shaping = {"model": model, "messages": messages, "marker": marker}
    if what == "meaning":
        schema = KeptMeaning.model_json_schema()
        request = Request(**shaping, schema=schema, max_tokens=params.JUDGE_MAX_TOKENS)
        return Asked(row, name, request, lambda answer: shares(answer, "\n".join(texts)), config.retries)
    grades = tuple(str(grade) for grade in range(JUDGE_SCALES[what][0] + 1))
    request = Request(**shaping, labels=grades, max_tokens=config.label_tokens)
    return Asked(row, name, request, lambda answer: expected_grade(answer, grades), 0)


def expected_grade(answer: Answer, labels: tuple[str, ...]) -> float:
    """Mean of the grades by their probabilities where these were told, else the grade (G-Eval, Liu et al. 2023)."""
    return sum(float(label) * share for label, share in label_probabilities(answer, labels).items())


def shares(answer: Answer, judged: str) -> dict[str, float | None]:
    """Retention, faithfulness and relevancy, 0..1: the shares of what was listed that holds; None of an empty list."""
    found = parse_answer(answer.text, KeptMeaning, judged)
    lists = {"retention": found.source_facts, "faithfulness": found.text_claims, "relevancy": found.text_statements}
    return {name: sum(fact.holds for fact in facts) / len(facts) if facts else None for name, facts in lists.items()}


# --- guards ---
def guard_verdicts(
    rows: list[tuple[str, str]], config: ScoreConfig, path: Path
) -> tuple[list[dict[str, float] | None], list[str]]:
    """What a guard at a server says of (prompt, response), and why it says nothing elsewhere."""
    asked = ask_config(config)
    style = style_of(config, model_name(asked))

    def question(number: int, row: tuple[str, str]) -> Asked:
        request = request_for(row, style, model_name(asked), config)
        return Asked(number, "guard", request, lambda answer: read_verdict(answer, style[-1]), 0)

    questions = [question(n, row) for n, row in enumerate(rows) if row[1].strip()]
    found, reasons = answer_all(questions, asked, path)
    texts = [text for _, text in rows]
    return [found.get((n, "guard")) for n in range(len(rows))], [_why(n, texts, reasons) for n in range(len(rows))]


def loaded_guard(config: ScoreConfig):
    """Model, tokenizer and name of the guard in process."""
    name = model_name(ask_config(config))
    return *_load_guard(config.base_model, config.adapter_model, config.revision, config.quantization), name


@lru_cache(maxsize=1)
def _load_guard(*names: str | None):
    from utils.loading import load_model, load_tokenizer
    from utils.models import resolve

    ref = resolve(*names[:3])
    return load_model(ref, names[3]), load_tokenizer(ref, chat=False)


def _why(row: int, texts: list[str], reasons: dict[int, str]) -> str:
    return reasons.get(row, "") if texts[row].strip() else "empty"
