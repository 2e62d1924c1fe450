"""How fast a server may be asked: found out from what it refuses."""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable
from email.utils import parsedate_to_datetime

CUT = 0.85  # of what the server let through last, after a burst of refusals
GROWTH = 1.02  # per second without refusals
RECOVERY = 2.0  # the same below what the server may well let through: after refusals that say nothing of its limit
WINDOW = 2.0  # seconds over which the throughput is measured
PAUSE = 0.5  # seconds after a refusal that names no time
LAST, TOLERATED = 100, 8  # so many refusals among the last answers are no burst: busy servers refuse at random


class Pace:
    """Lets requests start while fewer than `limit` are under way, and adapts `limit` to refusals (status 429).

    The limit begins at the most that is allowed. A burst of refusals cuts it once: to a little less than what the
    server has let through lately, by Little's law (concurrency = throughput x latency). Then it grows slowly. Single
    refusals change nothing. A burst without a success before it (the quota was used up when we came) says nothing of
    the limit: it is halved, but not below 1, and recovers fast. Below the most, starts are also spread evenly, `limit`
    in the time of one answer: on a fast server even one request under way can be too many, so the limit may fall
    below 1.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        self.most, self.limit, self.running = most, float(most), 0
        self.likely = float(most)  # the limit is thought to be no lower than this
        self.refusals, self.successes = 0, 0
        self.latency = 1.0  # seconds, smoothed
        self._clock = clock
        self._gate, self._freed, self._stopped = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._next_start = self._last_change = self._last_cut = self._last_success = clock()
        self._recent: deque[float] = deque(maxlen=10_000)  # times of successes
        self._outcomes: deque[bool] = deque(maxlen=LAST)  # True: refused; since the last cut

    def stop(self) -> None:
        """Nobody waits any longer, and nobody starts."""
        self._stopped.set()
        self._freed.set()

    async def sleep(self, seconds: float) -> None:
        """Waits, but not after `stop`."""
        await asyncio.sleep(0)  # lets others run also where there is nothing to wait for
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def since_success(self) -> float:
        """Seconds since the server answered last, or since the beginning."""
        return self._clock() - self._last_success

    async def start(self) -> float | None:
        """Waits for leave to send a request; returns the time at which it was given. None after `stop`.

        `end` must follow, unless it is None.
        """
        async with self._gate:  # one waits, the others queue behind it
            while not self._stopped.is_set():
                self._grow()
                wait = self._next_start - self._clock()
                if wait > 0.0005:  # less is nothing, and may be lost in the sum with the time
                    await self.sleep(wait)
                elif self.running >= max(1, int(self.limit)):
                    self._freed.clear()
                    await self._freed.wait()
                else:
                    break
            if self._stopped.is_set():
                return None
            self.running += 1
            now = self._clock()
            if self.limit < self.most and self.successes:
                self._next_start = now + self.latency / self.limit
            return now

    def end(self) -> None:
        """A request is no longer under way, however it ended."""
        self.running -= 1
        self._freed.set()

    def succeeded(self, started: float) -> None:
        """The server answered a request begun at `started`."""
        now = self._clock()
        self.latency += (now - started - self.latency) * (0.05 if self.successes else 1)
        self.successes += 1
        self._last_success = now
        self._recent.append(now)
        self._outcomes.append(False)

    def refused(self, started: float, retry_after: float | None) -> float:
        """The server refused a request begun at `started`, and asks to wait `retry_after` seconds.

        Returns:
            Seconds that this request has to wait by itself.
        """
        self.refusals += 1
        now = self._clock()
        wait = PAUSE if retry_after is None else retry_after
        if started <= self._last_cut:  # sent before the last cut: of the same burst
            return 0.0
        self._outcomes.append(True)
        if sum(self._outcomes) <= TOLERATED:
            return wait
        self._outcomes.clear()
        self._next_start = max(self._next_start, now + wait)  # nobody starts before
        since = now - WINDOW
        lately = sum(1 for success in self._recent if success > since)
        if lately:
            sustained = lately / WINDOW * self.latency
            # at least half: what was let through is badly measured at the start, and grows back slowly if underrated
            self.limit = self.likely = max(CUT * min(self.limit, sustained), self.limit / 2)
        else:
            self.limit = max(self.limit / 2, min(self.limit, 1.0))
        self._last_cut = self._last_change = now
        return 0.0

    def _grow(self) -> None:
        now = self._clock()
        quiet = now - self._last_change
        if self.limit < self.likely:
            self.limit = min(self.likely, self.limit * RECOVERY**quiet)
        elif self.limit < self.most:
            self.limit = min(self.most, self.limit * GROWTH**quiet)
        self._last_change = now


def retry_after(headers, message: str = "", now: float | None = None) -> float | None:
    """Seconds that a server asks to wait; None where it names none that can be read.

    Args:
        headers: with `retry-after-ms`, or `Retry-After` in seconds or as a date.
        message: of the error, where the headers say nothing: "... try again in 1m2.5s".
        now: seconds since 1970.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    with contextlib.suppress(KeyError, ValueError):
        date = parsedate_to_datetime(headers["retry-after"])
        return max(0.0, date.timestamp() - (time.time() if now is None else now))
    said = re.search(r"try again in ((?:[\d.]+(?:ms|h|m|s))+)", message)
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", said[1]) if said else []
    return sum(float(number) * units[unit] for number, unit in parts) if parts else None
