"""Scenario `async`: a thousand coroutines write at once, each waits until its own trade is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from outbox import Outbox

from .measure import Goal, Result, Setting, clock, line, median, require_same, turns
from .workload import TRADE, config, trade
from .writers import JSON_LINES, WRITERS

_OUTBOX = "outbox, enqueue_async"
_THREADS = f"{JSON_LINES}, in threads"


def run(setting: Setting) -> Result:
    sizes = setting.sizes
    samples: dict[str, list[float]] = {_OUTBOX: [], _THREADS: []}
    spent: dict[str, list[float]] = {name: [] for name in samples}
    file = WRITERS[JSON_LINES](setting.folder("async"), setting.url)
    setting.say(f"timing {sizes.coroutines:,} coroutines")
    with (
        Outbox.open(setting.folder("async") / "outbox", config(), [TRADE]) as box,
        ThreadPoolExecutor(sizes.threads) as pool,
    ):

        async def into_outbox(number: int) -> None:
            await box.enqueue_async(TRADE.name, trade(number))

        async def into_file(number: int) -> None:
            await asyncio.get_running_loop().run_in_executor(pool, file.write, number, trade(number))

        writers: dict[str, Callable[[int], Awaitable[None]]] = {_OUTBOX: into_outbox, _THREADS: into_file}
        for name in turns(sizes.thread_rounds, list(writers)):
            seconds, times = asyncio.run(_round(writers[name], len(samples[name]), sizes.coroutines))
            spent[name].append(seconds)
            samples[name] += times
        require_same("entries", box.status().pending, len(samples[_OUTBOX]))
    lines = file.rows()
    assert lines is not None
    require_same("lines", lines, len(samples[_THREADS]))
    file.close()
    rates = {name: sizes.coroutines / median(times) for name, times in spent.items()}
    return Result(
        scenario="async",
        title=f"The same trade, {sizes.coroutines:,} coroutines at once",
        reference=_THREADS,
        tabled=False,
        lines=[
            line(name, samples[name], per_second=rates[name], ratio=rates[name] / rates[_THREADS]) for name in samples
        ],
        goals=[
            Goal(
                text="outbox / JSON lines, throughput",
                value=rates[_OUTBOX] / rates[_THREADS], limit=3, at_most=False, judged=sizes.judges,
                question=f"Enqueues of {sizes.coroutines:,} coroutines",
                answer="{value:.1f} times as many as lines of JSON, each flushed",
            ),
        ],
    )  # fmt: skip


async def _round(write: Callable[[int], Awaitable[None]], first: int, count: int) -> tuple[float, list[float]]:
    """All coroutines write one trade; returns the seconds of the whole and of each write."""
    times: list[float] = []

    async def one(number: int) -> None:
        begin = clock()
        await write(number)
        times.append(clock() - begin)

    begin = clock()
    await asyncio.gather(*(one(number) for number in range(first, first + count)))
    return clock() - begin, times
