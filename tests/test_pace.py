"""The pace finds a server's limit, in virtual time: no test waits."""

import asyncio
import random

import pytest

from utils.pace import Pace, retry_after

LIMIT, BURST = 50.0, 50.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only by being waited for."""

    def __init__(self):
        super().__init__()
        self.now, select = 0.0, self._selector.select

        def jump(timeout=None):
            self.now += timeout or 0
            return select(0)

        self._selector.select = jump

    def time(self):
        return self.now


def ask_rows(rows, latency, form, at_most=64, bucket=True, limit_running=None, at_random=0.0):
    """Asks a simulated server; returns seconds, refused share of calls, the pace."""
    loop, draw = VirtualLoop(), random.Random(0)
    pace = Pace(at_most, loop.time)
    state = {"tokens": BURST, "filled": 0.0, "calls": 0, "refused": 0, "running": 0, "left": rows}

    async def call():
        state["calls"] += 1
        refusal = None
        if bucket:
            state["tokens"] = min(BURST, state["tokens"] + (loop.now - state["filled"]) * LIMIT)
            state["filled"] = loop.now
            if state["tokens"] < 1:
                refusal = (1 - state["tokens"]) / LIMIT
            else:
                state["tokens"] -= 1
        elif state["running"] >= limit_running or draw.random() < at_random:
            refusal = 0.1
        if refusal is not None:
            state["refused"] += 1
            await asyncio.sleep(0.002)
            return {"none": None, "exact": refusal, "whole": float(int(refusal) + 1)}[form]
        state["running"] += 1
        await asyncio.sleep(latency)
        state["running"] -= 1
        return "answer"

    async def work():
        while state["left"] > 0:
            state["left"] -= 1
            while True:
                started = await pace.start()
                said = await call()
                pace.end()
                if said == "answer":
                    pace.succeeded(started)
                    break
                await pace.sleep(pace.refused(started, said))

    async def run():
        await asyncio.gather(*(work() for _ in range(at_most)))

    loop.run_until_complete(run())
    loop.close()
    return loop.now, state["refused"] / state["calls"], pace


@pytest.mark.parametrize("form", ["none", "exact", "whole"])
@pytest.mark.parametrize("latency", [0.001, 0.02, 0.2, 1.0])
def test_a_token_bucket_is_used_to_the_full_and_seldom_overrun(latency, form):
    seconds, refused, _ = ask_rows(3000, latency, form)
    assert (3000 - BURST) / LIMIT / seconds > 0.9
    assert refused < 0.1


def test_a_limit_on_requests_under_way_is_found():
    seconds, refused, pace = ask_rows(2000, 0.2, "exact", bucket=False, limit_running=8)
    assert 2000 / 8 * 0.2 / seconds > 0.8 and refused < 0.1
    assert 5 < pace.limit < 16


def test_without_refusals_nothing_waits():
    seconds, _, pace = ask_rows(640, 0.2, "none", bucket=False, limit_running=1000)
    assert seconds == pytest.approx(640 / 64 * 0.2) and pace.limit == 64


def test_a_burst_of_refusals_cuts_once():
    now = [100.0]
    pace = Pace(64, lambda: now[0])
    now[0] = 101.0
    waits = [pace.refused(100.5, 1.0) for _ in range(8)]
    assert waits == [1.0] * 8 and pace.limit == 64  # single refusals: each waits by itself
    pace.refused(100.5, 1.0)
    cut = pace.limit
    assert cut < 64
    now[0] = 101.2
    for _ in range(20):
        pace.refused(100.6, 1.0)  # sent before the cut
    assert pace.limit == cut and pace.refusals == 29
    for _ in range(9):
        pace.refused(101.1, 1.0)  # sent after it
    assert pace.limit < cut


def test_refusals_at_random_slow_nothing_down():
    """A busy provider refuses one request in a hundred, whatever we do."""
    seconds, refused, pace = ask_rows(6400, 0.2, "none", bucket=False, limit_running=1000, at_random=0.01)
    assert 0.002 < refused < 0.03 and pace.limit == 64
    assert 6400 / 64 * 0.2 / seconds > 0.9


def test_after_a_stop_nobody_waits_and_nobody_starts():
    async def run():
        pace = Pace(1)
        await pace.start()
        waiting = asyncio.ensure_future(pace.start())
        await asyncio.sleep(0)
        pace.stop()
        assert await waiting is None and await pace.start() is None
        turns = []

        async def other():
            turns.append(1)

        task = asyncio.ensure_future(other())
        await pace.sleep(100)
        assert turns and task.done()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "60"}, 0.25),
        ({"retry-after": "Wed, 25 Nov 2026 10:00:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 25 Nov 2026 09:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "x", "retry-after": "3"}, 3.0),
    ],
)
def test_every_form_of_retry_after_is_read(headers, seconds):
    assert retry_after(headers, now=1795600800.0) == seconds


def test_a_message_may_name_the_time_too():
    assert retry_after({}, "Rate limit reached. Please try again in 20ms. Visit ...") == 0.02
    assert retry_after({}, "Please try again in 1m2.5s.") == 62.5
    assert retry_after({}, "Please try again later.") is None
    assert retry_after({"retry-after": "3"}, "try again in 20s") == 3.0
