"""Asks through the Batch API: half the price, within a day. What was paid for is collected, however a batch ended.

`<output>.batches.jsonl` is told of a batch before and after it is created, so that a killed run finds it again and
asks for nothing twice.
"""

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import openai
from openai.types import Batch

from utils import params
from utils.answers import CHAT, Answer, Answers, Request
from utils.api import adjust, make_client, plain, read_answer, redact, server_of, unsupported
from utils.configs import ServerConfig
from utils.helpers import UserError
from utils.pricing import Budget

logger = logging.getLogger(__name__)

API = "/v1"  # before the addresses in a batch file
ENDED = ("completed", "expired", "cancelled", "failed")


def ask_batch(requests: Iterator[Request], answers: Answers, budget: Budget, config: ServerConfig) -> dict[str, str]:
    """Asks every request that has no answer yet, and waits for the answers.

    Requests go out in as few batches as the limits of the API allow. What a batch left unanswered (it expired, was
    cancelled, was too much at once) goes out again, until `BATCH_ROUNDS` rounds have brought nothing.

    Returns:
        What went wrong with the requests that have no answer, by key.

    Raises:
        UserError: the server rejects the batch, or the budget is spent.
    """
    client = make_client(config, openai.OpenAI)
    with _plain_errors(client), tempfile.TemporaryDirectory() as folder:
        run = _Batches(client, answers, config)
        run.wait()  # what an earlier run began
        shards = run.write_shards(_fitting(requests, answers, budget), Path(folder))
        idle = 0
        while shards and idle < params.BATCH_ROUNDS:
            before = len(answers)
            for shard in shards:
                run.submit(shard)
                if run.one_by_one:
                    run.wait()
            run.wait()
            idle = 0 if len(answers) > before else idle + 1
            shards = run.write_shards(_left(shards, answers), Path(folder))
        budget.release_all()
    if budget.full:
        raise UserError(budget.full)
    return run.errors


def collect_ended(answers: Answers, config: ServerConfig) -> None:
    """Collects batches that an earlier run left, before another engine goes on.

    Raises:
        UserError: one of them is still under way, and would be paid for twice.
    """
    if not _state_path(answers).exists():
        return
    client = make_client(config, openai.OpenAI)
    with _plain_errors(client):
        left = _Batches(client, answers, config).collect()
    if left:
        raise UserError(
            f"{len(left)} batches of this output are under way ({', '.join(left)}): wait for them with "
            "--engine batch, or cancel them at the server first"
        )


def _state_path(answers: Answers) -> Path:
    return answers.path.with_name(answers.path.name.replace(".answers.", ".batches."))


def _fitting(requests: Iterator[Request], answers: Answers, budget: Budget) -> Iterator[Request]:
    """The requests without an answer, once each, as far as the budget goes."""
    seen: set[str] = set()
    for request in requests:
        if request.key in seen or request.key in answers:
            continue
        if budget.reserve(request) is None:
            budget.full = budget.say_full()
            return
        seen.add(request.key)
        yield request


def _left(shards: list[Path], answers: Answers) -> Iterator[dict]:
    """The lines of shards whose requests have no answer yet. The shards are deleted."""
    for shard in shards:
        with open(shard, encoding="utf-8", newline="\n") as file:
            for line in file:
                entry = json.loads(line)
                if entry["custom_id"] not in answers:
                    yield entry
        shard.unlink()


class _Batches:
    """The batches of one output: what is announced, created, and collected."""

    def __init__(self, client: openai.OpenAI, answers: Answers, config: ServerConfig):
        self.client, self.answers, self.config = client, answers, config
        self.server = server_of(client)
        self.errors: dict[str, str] = {}
        self.dropped: set[str] = set()
        self.requests_a_shard, self.one_by_one = params.BATCH_REQUESTS, False
        self.path = _state_path(answers)
        self.marker = self.asked_as = ""
        self.open: dict[str, dict] = {}  # batch id -> what was announced
        self._read()

    # --- state ---
    def _read(self) -> None:
        announced: dict[str, dict] = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            with contextlib.suppress(ValueError):  # cut by a kill
                event = json.loads(line)
                if event["event"] == "announced":
                    announced[event["shard"]] = event
                elif event["event"] == "created":
                    self.open[event["id"]] = announced.pop(event["shard"])
                elif event["event"] == "collected":
                    self.open.pop(event["id"], None)
        if announced:  # killed between two lines: the server knows whether the batch was created
            for batch in self.client.batches.list():
                shard = (batch.metadata or {}).get("shard")
                if shard in announced:
                    self.open[batch.id] = announced.pop(shard)
                    self._note(event="created", shard=shard, id=batch.id)

    def _note(self, **event) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:  # an empty line before each: the last one may have been cut by a kill
            file.write(f"\n{json.dumps(event)}\n".encode())

    # --- sending ---
    def write_shards(self, requests: Iterable[Request | dict], folder: Path) -> list[Path]:
        """Writes requests into files within the limits of the API."""
        shards: list[Path] = []
        count = size = 0
        for request in requests:
            line = (json.dumps(self._line(request)) + "\n").encode()
            if not shards or count >= self.requests_a_shard or size + len(line) > params.BATCH_BYTES:
                shards.append(folder / f"{time.time_ns()}-{len(shards)}.jsonl")
                count = size = 0
            with open(shards[-1], "ab") as file:
                file.write(line)
            count, size = count + 1, size + len(line)
        return shards

    def _line(self, request: Request | dict) -> dict:
        if isinstance(request, dict):  # asked in an earlier round
            return request | {"body": adjust(request["body"], self.dropped)}
        self.marker, self.asked_as = request.marker, request.model
        body = adjust(request.body() | {"model": self.config.model}, self.dropped)
        return {"custom_id": request.key, "method": "POST", "url": API + request.path, "body": body}

    def submit(self, path: Path) -> None:
        content = path.read_bytes()
        # two batches of the same content are two batches: the name of the file is part of the hash
        shard = hashlib.sha256(path.name.encode() + content).hexdigest()[:32]
        url = json.loads(content.partition(b"\n")[0])["url"]
        event = {
            "shard": shard,
            "requests": content.count(b"\n"),
            "marker": self.marker,
            "model": self.asked_as,
            "url": url,
        }
        self._note(event="announced", **event)
        uploaded = self.client.files.create(file=(f"{shard}.jsonl", content), purpose="batch")
        # tried once: after a reset nobody knows whether it was created, but the next run finds out
        batch = self.client.with_options(max_retries=0).batches.create(
            input_file_id=uploaded.id,
            endpoint=url,
            completion_window="24h",
            metadata={"shard": shard},
        )
        self.open[batch.id] = event
        self._note(event="created", shard=shard, id=batch.id)
        logger.info("%s: %d requests sent", batch.id, event["requests"])

    # --- collecting ---
    def wait(self) -> None:
        """Until every batch has ended and is collected."""
        if self.open:
            logger.info("waiting for %d batches; after Ctrl+C the same command goes on waiting", len(self.open))
        while self.collect():
            time.sleep(self.config.poll)

    def collect(self) -> list[str]:
        """Takes the answers of batches that have ended; returns the ids of those that have not."""
        for batch_id in list(self.open):
            batch = self.client.batches.retrieve(batch_id)
            if batch.status in ENDED:
                event = self.open[batch_id]
                kept, unreadable = self._keep_answers(batch, event)
                logger.info("%s %s: %d of %d requests answered", batch_id, batch.status, kept, event["requests"])
                if unreadable:
                    logger.warning("%s: %d lines cannot be read and are asked for again", batch_id, unreadable)
                self._note(event="collected", id=batch_id)
                del self.open[batch_id]
                if batch.status == "failed":
                    self._explain(batch, event)
        return list(self.open)

    def _keep_answers(self, batch: Batch, event: dict) -> tuple[int, int]:
        """Keeps what the files of a batch hold; returns how many answers, and how many lines that are none."""
        kept = unreadable = 0
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):  # an expired batch has both
            for line in self.client.files.content(file_id).content.split(b"\n"):
                try:
                    kept += self._keep(json.loads(line), event) if line.strip() else 0
                except (ValueError, KeyError, TypeError, AttributeError):
                    unreadable += 1
        return kept, unreadable

    def _keep(self, line: dict, event: dict) -> bool:
        """Keeps one answer. That a line stands in the output file does not mean that the request went well."""
        key, response = line["custom_id"], line.get("response") or {}
        if key in self.answers:  # collected before a kill
            return True
        body = response.get("body") or {}
        if response.get("status_code") == 200:
            path = event.get("url", API + CHAT).removeprefix(API)
            answer = read_answer(path, body, event["model"], self.server, 0, batch=True)
        else:
            error = (body.get("error") if isinstance(body, dict) else None) or line.get("error") or {}
            said = plain(f"{response.get('status_code', '')} {error.get('message') or error}", self.client)
            if error.get("code") != "content_filter":
                self.errors[key] = said
                if name := unsupported(error.get("param"), said, self.dropped):
                    self.dropped.add(name)
                return False
            answer = Answer(said, "filtered", 0, 0, event["model"], self.server, True)
        answer = answer._replace(text=redact(answer.text, self.client))
        self.answers.add(key, answer, event["marker"])
        self.errors.pop(key, None)
        return True

    def _explain(self, batch: Batch, event: dict) -> None:
        """A batch that failed as a whole: smaller ones where it was too much at once, else the end."""
        problems = batch.errors.data if batch.errors and batch.errors.data else []
        said = "; ".join(f"{problem.code}: {problem.message}" for problem in problems) or "no reason given"
        if any(problem.code == "token_limit_exceeded" for problem in problems):
            self.one_by_one = True
            self.requests_a_shard = min(self.requests_a_shard, max(1, event["requests"] // 2))
            logger.warning("%s was too much at once: %d requests a batch from now on", batch.id, self.requests_a_shard)
            return
        raise UserError(plain(f"{batch.id} failed ({said})", self.client))


@contextlib.contextmanager
def _plain_errors(client: openai.OpenAI) -> Iterator[None]:
    """What the server says against a batch, in one line and without the key."""
    try:
        yield
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
        raise UserError(
            f"{server_of(client)} has no such batch, or no Batch API for this key ({error.status_code}): check key "
            "and OPENAI_BASE_URL, or use another --engine"
        ) from error
    except openai.APIConnectionError as error:
        raise UserError(f"{server_of(client)} cannot be reached: the same command goes on") from error
    except openai.APIError as error:
        raise UserError(f"the Batch API says: {plain(error, client)}; the same command goes on") from error
