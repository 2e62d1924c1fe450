"""What a model is asked, what it answered, and the file that keeps every answer: the same for every engine.

`<output>.answers.jsonl` is append-only. An answer is written to it in one call as soon as it is there, and is never
asked for again: the file is the cache, the state that a killed run continues from, and the record of what was said.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from utils.helpers import UserError

TOP_LOGPROBS = 20  # the most that servers give
IN_PROCESS = "in process"  # the server of answers that cost nothing
MARKER = "[marker]"  # stands for the unpredictable marker of a run wherever something is kept
CHAT, MODERATIONS = "/chat/completions", "/moderations"  # what a server answers, by its address


@dataclass(frozen=True)
class Request:
    """One question to a model, whichever engine carries it."""

    model: str
    messages: list[dict[str, str]] = field(hash=False)
    schema: dict[str, Any] | None = field(default=None, hash=False)  # JSON schema of the answer
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    marker: str = ""  # random string in the messages that differs from run to run
    path: str = CHAT  # MODERATIONS judges the text of the last message
    # the answer is one of these words, and is wanted with their probabilities, where the engine knows them
    labels: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """32 hex digits: a hash of everything that shapes the answer, and of nothing else."""
        shaping = [self.model, self.messages, self.schema, self.temperature, self.max_tokens, self.seed]
        shaping += [self.path] * (self.path != CHAT) + [self.labels] * bool(self.labels)
        text = json.dumps(shaping, sort_keys=True)
        if self.marker:
            text = text.replace(self.marker, MARKER)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def prompt_bytes(self) -> int:
        """Size of the messages: no less than their tokens."""
        return sum(len(message["content"].encode("utf-8", "replace")) for message in self.messages)

    def body(self) -> dict[str, Any]:
        """The request as the API takes it."""
        if self.path == MODERATIONS:
            return {"model": self.model, "input": self.messages[-1]["content"]}
        body = {
            "model": self.model,
            "messages": self.messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }
        if self.schema:
            named = {"name": "answer", "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if self.labels:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body


class Answer(NamedTuple):
    """What came back.

    `end`: stop, length (cut at max_tokens), refused (by the model), filtered (by the provider). `by`: the model as
    asked for; `server`: where it ran. `batch`: through the Batch API, at half the price. `model`: what the
    server calls it, often with a date; `at`: when it was kept (UTC). `likely`: at each place of the answer the
    likeliest tokens with their log-probabilities, where they were asked for and told.
    """

    text: str
    end: str
    tokens_in: int
    tokens_out: int
    by: str
    server: str
    batch: bool = False
    model: str = ""
    at: str = ""
    likely: list[dict[str, float]] | None = None


class Answers:
    """The answers file of one output. In memory are only the places of the answers in it: 120 bytes each."""

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool = False):
        """Reads where the answers stand.

        Args:
            settings: what shapes the answers, as a person calls it. Other settings than those the file was begun
                with would mean to pay for everything again, so they are refused unless `overwrite` is set; answers
                to other settings stay in the file, and count when the settings come back.

        Raises:
            UserError: other settings, or a file that is not one of answers.
        """
        self.path, self.settings = path, json.loads(json.dumps(settings, default=str))
        self.spent: Counter = Counter()  # (model, how, "in" or "out") -> tokens, of all answers in the file
        self.servers: set[str] = set()
        self.models: set[str] = set()
        self._places: dict[int, int] = {}
        self._file: int | None = None
        self._torn = False
        begun = self._read() if path.exists() else None
        changed = [k for k in self.settings if begun is not None and begun.get(k) != self.settings[k]]
        if changed and self._places and not overwrite:
            before_now = ", ".join(f"{k} was {begun.get(k)!r}, is {self.settings[k]!r}" for k in changed)
            raise UserError(f"{path} was begun with other settings ({before_now}): add --overwrite to ask anew")
        self._begun = begun == self.settings

    def _read(self) -> dict | None:
        """Finds the places of all whole lines; returns the last settings. A line cut by a kill is passed over."""
        settings, place = None, 0
        with open(self.path, "rb") as file:
            for line in file:
                self._torn = not line.endswith(b"\n")
                try:
                    entry = json.loads(line) if not self._torn else {}
                except ValueError:
                    entry = {}
                if not isinstance(entry, dict):
                    raise UserError(f"{self.path} is no file of answers: move it away")
                if "settings" in entry:
                    settings = entry["settings"]
                elif "key" in entry:
                    self._places[_short(entry["key"])] = place
                    self._count(_answer(entry))
                place += len(line)
        return settings

    def _count(self, answer: Answer) -> None:
        how = "batch" if answer.batch else IN_PROCESS if answer.server == IN_PROCESS else "live"
        self.spent[answer.by, how, "in"] += answer.tokens_in
        self.spent[answer.by, how, "out"] += answer.tokens_out
        self.servers.add(answer.server)
        self.models.add(answer.model)

    def tokens(self, side: str) -> int:
        """Tokens "in" or "out" of all answers in the file."""
        return sum(tokens for (_, _, name), tokens in self.spent.items() if name == side)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Answer | None:
        place = self._places.get(_short(key))
        if place is None:
            return None
        with open(self._descriptor(), "rb", closefd=False) as file:
            file.seek(place)
            entry = json.loads(file.readline())
        return _answer(entry) if entry["key"] == key else None

    def add(self, key: str, answer: Answer, marker: str = "") -> None:
        """Keeps the answer to the request of this key. Once this has returned, a kill no longer loses it."""
        text = answer.text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written
        now = datetime.now(UTC).isoformat(timespec="seconds")
        answer = answer._replace(text=text.replace(marker, MARKER) if marker else text, at=now)
        if not self._begun:
            self._append({"settings": self.settings})
            self._begun = True
        kept = {name: value for name, value in answer._asdict().items() if value is not None}
        self._places[_short(key)] = self._append({"key": key, **kept})
        self._count(answer)

    def _descriptor(self) -> int:
        """The open file. It is locked: a second run would pay for the same answers."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path}: another run is writing to it; wait for that one, or stop it") from error
        return self._file

    def _append(self, entry: dict) -> int:
        """Writes one line at the end, by one call where the system lets it; returns where it begins."""
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        data, file = b"\n" * self._torn + line, self._descriptor()
        self._torn = True  # until the whole line is written
        try:
            written = os.write(file, data)
            while written < len(data):
                written += os.write(file, data[written:])
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}; the answers so far are kept") from error
        self._torn = False
        return os.lseek(file, 0, os.SEEK_CUR) - len(line)

    def close(self) -> None:
        """Makes sure that the answers are on the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def _short(key: str) -> int:
    """60 bits of the key: one small Python integer. `get` compares the whole key."""
    return int(key[:15], 16)


def _answer(entry: dict) -> Answer:
    return Answer(**{name: value for name, value in entry.items() if name != "key"})
