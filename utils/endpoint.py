"""Asks an OpenAI-compatible server as fast as it allows, and keeps every answer as it comes. For all stages that ask.

The client's own retries are off. A refusal for speed (429) slows all requests down (utils/pace.py) and counts against
no request; a fault of the server (5xx, a reset, a timeout) is tried again for that request alone; a wrong key, an
empty account or a request that the server will never take ends the run at once. What was paid for is kept.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import signal
from collections.abc import Iterator

import openai
from tqdm import tqdm

from utils import params
from utils.answers import Answer, Answers, Request
from utils.api import adjust, make_client, plain, read_answer, redact, server_of, unsupported
from utils.configs import ServerConfig
from utils.helpers import UserError
from utils.pace import Pace, retry_after
from utils.pricing import Budget

logger = logging.getLogger(__name__)


class TransientError(Exception):
    """A fault that may be gone when the request is sent again, after `wait` seconds where the server names them."""

    def __init__(self, said: str, wait: float | None = None):
        super().__init__(said)
        self.wait = wait or 0.0


class RejectedError(Exception):
    """The server takes other requests, but never this one."""


def ask_endpoint(
    requests: Iterator[Request], answers: Answers, budget: Budget, config: ServerConfig, total: int | None = None
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
        self, client: openai.AsyncOpenAI, config: ServerConfig, answers: Answers, budget: Budget, total: int | None
    ):
        self.client, self.answers, self.budget, self.total = client, answers, budget, total
        self.bar: tqdm | None = None  # shown from the first answer on
        self.server = server_of(client)
        self.model, self.most = config.model, config.max_concurrency
        self.under_way: set[str] = set()
        self.errors: dict[str, str] = {}
        self.given_up = 0  # requests in a row
        self.dropped: set[str] = set()
        self.end: BaseException | None = None  # why no further request is begun

    async def ask_all(self, requests: Iterator[Request]) -> None:
        self.pace = Pace(self.most)
        with contextlib.suppress(RuntimeError):  # outside the main thread Ctrl+C is somebody else's
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        requests = iter(requests)
        await self._work(requests, at_most=1)  # alone: a wrong key costs one refusal, not one per connection
        await asyncio.gather(*(self._work(requests) for _ in range(self.most)))
        await self.client.close()
        if self.end:
            raise self.end

    def _interrupt(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        logger.warning("waiting for %d answers under way; Ctrl+C again leaves them", len(self.under_way))
        self._stop(KeyboardInterrupt("the same command goes on where it was"))

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
            except Exception as error:  # raised at the end, once the answers under way have come
                self._stop(error)

    async def _ask(self, request: Request) -> None:
        bound = await self._reserve(request)
        if bound is None:
            return
        try:
            answer = await self._try(request)
        except RejectedError as error:
            self.errors[request.key] = str(error)
            return
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

    async def _try(self, request: Request) -> Answer | None:
        """Sends a request until it is answered, `ASK_TRIES` times at most where the server is at fault.

        By hand: tenacity takes 0.2 ms a request, a tenth of what the client itself takes.
        """
        for tries in itertools.count(1):
            try:
                return await self._send(request)
            except TransientError as error:
                if tries == params.ASK_TRIES:
                    raise
                longest = min(params.ASK_WAIT * 2 ** (tries - 1), params.ASK_WAIT_MOST)
                # at random, so that what failed together does not come back together
                await self.pace.sleep(max(random.uniform(0, longest), min(error.wait, params.ASK_PATIENCE)))

    async def _reserve(self, request: Request) -> float | None:
        """The money set aside for a request; None where the run ends meanwhile."""
        while (bound := self.budget.reserve(request)) is None:
            if self.end:
                return None
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
        self.bar.set_postfix_str(f"{cost}{self.pace.limit:.3g} at once, {self.pace.refusals} x 429", refresh=False)

    async def _send(self, request: Request) -> Answer | None:
        """One try, begun when the pace allows, and again after each refusal for speed. None once the run has ended."""
        while True:
            started = await self.pace.start()
            if started is None:
                return None
            own_wait = 0.0
            dropped = frozenset(self.dropped)
            body = adjust(request.body() | {"model": self.model}, dropped)
            try:
                data = await self.client.post(request.path, body=body, cast_to=object)
                answer = read_answer(request.path, data, request.model, self.server, request.prompt_bytes)
                self.pace.succeeded(started)
                return answer._replace(text=redact(answer.text, self.client))
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise UserError("the account has no quota left: add credit, then run the same command") from error
                own_wait = self._refused(started, retry_after(error.response.headers, str(error)))
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise self._wrong_address(error) from error
            except openai.APITimeoutError as error:
                self.budget.lost += self.budget.bound(request)  # the server may have answered, and charged
                raise TransientError(plain(error, self.client)) from error
            except openai.APIConnectionError as error:
                if type(error.__cause__).__name__ == "ConnectError" and not self.pace.successes:
                    raise UserError(f"no server at {self.server}: check OPENAI_BASE_URL and the network") from error
                self.budget.lost += self.budget.bound(request)
                raise TransientError(plain(f"{error} {error.__cause__ or ''}", self.client)) from error
            except (openai.APIError, ValueError) as error:
                status = getattr(error, "status_code", 0)
                if not 400 <= status < 500 or status in (408, 409):
                    headers = error.response.headers if status else {}
                    raise TransientError(plain(error, self.client), retry_after(headers)) from error
                if error.code == "content_filter":
                    return Answer(plain(error, self.client), "filtered", 0, 0, request.model, self.server)
                self._adjust_to(error, dropped)
            finally:
                self.pace.end()
            await self.pace.sleep(own_wait)

    def _wrong_address(self, error: openai.APIStatusError) -> UserError:
        return UserError(
            f"the server refuses model {self.model} ({error.status_code}): check key and name, "
            "and that OPENAI_BASE_URL ends as the server wants it, usually in /v1"
        )

    def _refused(self, started: float, seconds: float | None) -> float:
        if (seconds or 0) > params.ASK_PATIENCE or self.pace.since_success() > params.ASK_PATIENCE:
            asked = "" if seconds is None else f" and asks to wait {seconds:.0f} seconds"
            raise UserError(f"{self.server} refuses every request (429){asked}: run the same command later to go on")
        return self.pace.refused(started, seconds)

    def _adjust_to(self, error: openai.APIStatusError, dropped: frozenset[str]) -> None:
        """Leaves out the parameter that the server does not take, where that is the trouble.

        Raises:
            RejectedError: the server has taken other requests: this one is too long, or not allowed.
            UserError: it has taken none yet.
        """
        if dropped != self.dropped:  # another request has found out meanwhile
            return
        if self.pace.successes:
            raise RejectedError(plain(error, self.client)) from error
        if isinstance(error, openai.PermissionDeniedError):
            raise self._wrong_address(error) from error
        name = unsupported(error.param, str(error.message), self.dropped)
        if name is None:
            raise UserError(
                f"the server rejects the request ({plain(error, self.client)}): it must take the chat messages of "
                "this stage; try another --model"
            ) from error
        self.dropped.add(name)
