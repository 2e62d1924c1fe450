"""Asks an OpenAI-compatible server as fast as it allows, and keeps every answer as it comes. For all stages that ask.

The client's own retries are off. A refusal for speed (429) slows all requests down (utils/pace.py) and counts against
no request; a fault of the server (5xx, a reset, a timeout) is tried again for that request alone; a wrong key, an
empty account or a request that the server will never take ends the run at once. What was paid for is kept.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import openai
import tenacity
from dotenv import load_dotenv
from tqdm import tqdm

from utils import params
from utils.answers import Answer, Answers, Request
from utils.configs import AskConfig
from utils.helpers import UserError
from utils.pace import Pace, retry_after
from utils.pricing import Budget

logger = logging.getLogger(__name__)

# what a server may not know, and what it is sent in its place
ADJUSTABLE = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None, "response_format": None}


class TransientError(Exception):
    """A fault that may be gone when the request is sent again."""


def make_client(config: AskConfig, kind: type = openai.AsyncOpenAI) -> openai.AsyncOpenAI | openai.OpenAI:
    """A client, with key and address from the environment or `.env`.

    Raises:
        UserError: neither a key nor an address is set.
    """
    load_dotenv(params.ROOT / ".env")
    for old in ("OPEN_AI_TOKEN", "OPEN_AI_KEY"):
        if os.environ.get(old) and not os.environ.get("OPENAI_API_KEY"):
            logger.warning("%s is an old name: set OPENAI_API_KEY", old)
            os.environ["OPENAI_API_KEY"] = os.environ[old]
    key = os.environ.get("OPENAI_API_KEY")
    if not key and not os.environ.get("OPENAI_BASE_URL"):
        raise UserError(
            "nobody to ask: set OPENAI_API_KEY (or OPENAI_BASE_URL for a server of your own), "
            "or add --engine transformers for the embedded model"
        )
    # a local server asks for no key, but the client does
    return kind(api_key=key or "none", timeout=config.timeout, max_retries=0 if kind is openai.AsyncOpenAI else 5)


def ask_endpoint(
    requests: Iterator[Request], answers: Answers, budget: Budget, config: AskConfig, total: int | None = None
) -> dict[str, str]:
    """Asks every request that has no answer yet, and keeps each answer in `answers` at once.

    Args:
        requests: taken one by one as there is room: never more than `config.max_concurrency` are held.
        total: how many there are, for the progress bar.

    Returns:
        What went wrong with the requests that have no answer, by key.

    Raises:
        UserError: the key, the account, the model name or the address is wrong, the server takes no such request, it
            is out of order, or the budget is spent.
        KeyboardInterrupt: on Ctrl+C, after the answers under way have come.
    """
    run = _Run(make_client(config), config, answers, budget, total)
    try:
        asyncio.run(run.ask_all(requests))
    finally:
        if run.bar is not None:
            run.bar.close()
    return run.errors


class _Run:
    """One pass over requests: what its concurrent parts share."""

    def __init__(
        self, client: openai.AsyncOpenAI, config: AskConfig, answers: Answers, budget: Budget, total: int | None
    ):
        self.client, self.answers, self.budget, self.total = client, answers, budget, total
        self.bar: tqdm | None = None  # shown from the first answer on
        self.server = urlparse(str(client.base_url)).netloc
        self.model, self.most = config.model, config.max_concurrency
        self.under_way: set[str] = set()
        self.errors: dict[str, str] = {}
        self.given_up = 0  # requests in a row
        self.dropped: set[str] = set()
        self.end: BaseException | None = None  # why no further request is begun

    async def ask_all(self, requests: Iterator[Request]) -> None:
        self.pace = Pace(self.most)
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGINT, self._interrupt)
        except (NotImplementedError, RuntimeError):  # not on Windows, nor outside the main thread
            pass
        requests = iter(requests)
        await self._work(requests, at_most=1)  # alone: a wrong key costs one refusal, not one per connection
        await asyncio.gather(*(self._work(requests) for _ in range(self.most)))
        await self.client.close()
        if self.end:
            raise self.end

    def _interrupt(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        logger.warning("waiting for %d answers under way; Ctrl+C again leaves them", len(self.under_way))
        self._stop(KeyboardInterrupt())

    def _stop(self, why: BaseException) -> None:
        self.end = self.end or why
        self.pace.stop()

    async def _work(self, requests: Iterator[Request], at_most: int | None = None) -> None:
        done = 0
        while not self.end and done != at_most:
            try:
                request = next(requests)
                if request.key in self.under_way or request.key in self.answers:
                    continue  # the same text stands in two rows: it is asked once
                self.under_way.add(request.key)
                await self._ask(request)
                done += 1
                self.under_way.discard(request.key)
            except StopIteration:
                return
            except UserError as error:
                self._stop(error)

    async def _ask(self, request: Request) -> None:
        bound = await self._reserve(request)
        try:
            # an object of its own for every request: it keeps the state of its tries
            answer = await tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(TransientError),
                stop=tenacity.stop_after_attempt(params.ASK_TRIES),
                wait=tenacity.wait_random_exponential(multiplier=params.ASK_WAIT, max=params.ASK_WAIT_MOST),
                sleep=self.pace.sleep,
                reraise=True,
            )(self._send, request)
        except TransientError as error:
            self.errors[request.key] = str(error)
            self.given_up += 1
            if self.given_up >= params.ASK_OUTAGE:
                raise UserError(
                    f"{self.server} is out of order, {self.given_up} requests in a row failed {params.ASK_TRIES} "
                    f"times each, the last one with: {error}; run the same command again to go on"
                ) from error
            return
        finally:
            self.budget.release(bound)
        if answer:
            self.given_up = 0
            self.answers.add(request.key, answer, request.marker)
            self._show()

    async def _reserve(self, request: Request) -> float:
        while (bound := self.budget.reserve(request)) is None:
            if not self.budget.under_way:
                raise UserError(self.budget.say_full())
            await self.pace.sleep(0.02)  # what is under way mostly costs less than it could
        return bound

    def _show(self) -> None:
        if self.bar is None:
            self.bar = tqdm(total=self.total, unit="answer", disable=self.total == 1)
        self.bar.update()
        spent = self.budget.spent()
        cost = "" if spent is None else f"{spent:.4f} USD, "
        self.bar.set_postfix_str(f"{cost}{self.pace.limit:.3g} at once, {self.pace.refusals} refused", refresh=False)

    async def _send(self, request: Request) -> Answer | None:
        """One try, begun when the pace allows, and again after each refusal for speed. None once the run has ended."""
        while True:
            started = await self.pace.start()
            if started is None:
                return None
            dropped = frozenset(self.dropped)
            try:
                body = adjust(request.body() | {"model": self.model}, dropped)
                data = await self.client.post("/chat/completions", body=body, cast_to=object)
                answer = read_completion(data, request.model, self.server)
                self.pace.succeeded(started)
                return answer
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise UserError("the account has no quota left: add credit, then run the same command") from error
                self._wait(started, retry_after(error.response.headers))
            except openai.BadRequestError as error:
                if error.code == "content_filter":
                    return Answer(str(error.message), "filtered", 0, 0, request.model, self.server)
                self._adjust_to(error, dropped)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise UserError(
                    f"the server refuses model {request.model} ({error.status_code}): check key and name, "
                    "and that OPENAI_BASE_URL ends as the server wants it, usually in /v1"
                ) from error
            except openai.APIConnectionError as error:
                if type(error.__cause__).__name__ == "ConnectError" and not self.pace.successes:
                    raise UserError(
                        f"no server at {self.client.base_url}: check OPENAI_BASE_URL and the network"
                    ) from error
                raise TransientError(f"{error} {error.__cause__ or ''}".strip()) from error
            except (openai.APIStatusError, openai.APIError, ValueError) as error:
                status = getattr(error, "status_code", 0)
                if 400 <= status < 500 and status not in (408, 409):
                    self._adjust_to(error, dropped)
                else:
                    raise TransientError(self._clean(error)) from error
            finally:
                self.pace.end()

    def _wait(self, started: float, seconds: float | None) -> None:
        if (seconds or 0) > params.ASK_PATIENCE or self.pace.since_success() > params.ASK_PATIENCE:
            asked = "" if seconds is None else f" and asks to wait {seconds:.0f} seconds"
            raise UserError(f"{self.server} refuses every request (429){asked}: run the same command later to go on")
        self.pace.refused(started, seconds)

    def _adjust_to(self, error: openai.APIStatusError, dropped: frozenset[str]) -> None:
        """Leaves out the parameter that the server does not take. Raises UserError where that is not the trouble."""
        if dropped != self.dropped:  # another request has found out meanwhile
            return
        name = unsupported(error.param, str(error.message), self.dropped)
        if name is None:
            raise UserError(
                f"the server rejects the request ({self._clean(error)}): it must take the chat messages of this "
                "stage; try another --model"
            ) from error
        self.dropped.add(name)

    def _clean(self, error: Exception) -> str:
        """What an error says, in one line, without the key that a server may repeat."""
        said = str(error)
        if isinstance(error, openai.APIStatusError):  # a body of another form than OpenAI's is not in its message
            known = isinstance(error.body, dict) and error.body.get("message")
            said = f"{error.status_code}: {known or error.response.text}"
        return " ".join(said.split()).replace(self.client.api_key, "[key]")[:300]


def unsupported(param: str | None, message: str, dropped: set[str]) -> str | None:
    """The parameter that a server complains of, if it can be left out and was not yet."""
    for name in ADJUSTABLE:
        if name not in dropped and (param == name or f"'{name}'" in message):
            instead = ADJUSTABLE[name]
            logger.warning("the server does not take %s: %s", name, f"sent as {instead}" if instead else "left out")
            return name
    return None


def adjust(body: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    """A request without the parameters that the server does not take; the answer is checked here in any case."""
    for name in dropped & set(body):
        value = body.pop(name)
        if ADJUSTABLE[name]:
            body[ADJUSTABLE[name]] = value
    return body


def read_completion(data: Any, by: str, server: str, batch: bool = False) -> Answer:
    """The answer in the body of a chat completion.

    Raises:
        ValueError: the body is none, whatever its status was.
    """
    try:
        choice, usage = data["choices"][0], data.get("usage") or {}
        message = choice["message"]
        refusal, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the server sent something else than a chat completion: {str(data)[:200]}") from error
    end = "length" if choice.get("finish_reason") == "length" else "stop"
    if choice.get("finish_reason") == "content_filter":
        end = "filtered"
    elif refusal:
        end, content = "refused", refusal
    text = content if isinstance(content, str) else ""
    return Answer(text, end, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, by, server, batch)
