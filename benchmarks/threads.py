"""Scenario `threads`: many threads write at once, each waits until its own trade is durable."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

from .durability import flushes_per_write
from .measure import Goal, Result, Setting, clock, line, median, p99, require_same, turns
from .workload import trade
from .writers import IN_POSTGRES, JSON_LINES, LIMIT, OUTBOX, WRITERS, Writer, available


def run(setting: Setting) -> Result:
    sizes = setting.sizes
    names = [name for name in available() if name != LIMIT]
    flushes, notes = flushes_per_write(setting, [name for name in names if name not in IN_POSTGRES], sizes.threads)
    writers = {name: WRITERS[name](setting.folder("threads"), setting.url) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}
    setting.say(f"timing {sizes.threads} threads")
    # The same threads throughout, since some contenders have a connection for each; they connect in an untimed round.
    pool = ThreadPoolExecutor(sizes.threads)
    try:
        for name in names:
            _round(pool, writers[name], 0, sizes.threads, 1)
        for name in turns(sizes.thread_rounds, names):
            first = sizes.threads + len(samples[name])
            seconds, times = _round(pool, writers[name], first, sizes.threads, sizes.writes_per_thread)
            spent[name].append(seconds)
            samples[name] += times
        for name, writer in writers.items():
            rows = writer.rows()
            assert rows is not None
            require_same(f"{name}: rows", rows, sizes.threads + len(samples[name]))
    finally:
        pool.shutdown()
        for writer in writers.values():
            writer.close()
    per_round = sizes.threads * sizes.writes_per_thread
    rates = {name: per_round / median(spent[name]) for name in names}
    return Result(
        scenario="threads",
        title=f"The same trade, {sizes.threads} threads at once",
        reference=JSON_LINES,
        tabled=False,
        lines=[
            line(
                name,
                samples[name],
                per_second=rates[name],
                ratio=rates[name] / rates[JSON_LINES],
                flushes=flushes.get(name),
            )
            for name in names
        ],
        goals=[
            Goal(
                text="outbox / JSON lines, throughput",
                value=rates[OUTBOX] / rates[JSON_LINES],
                limit=3.5,
                at_most=False,
                judged=sizes.judges,
                question=f"Enqueues of {sizes.threads} threads",
                answer="{value:.1f} times as many as lines of JSON, each flushed",
            ),
            Goal(
                text="JSON lines / outbox, p99",
                value=p99(samples[JSON_LINES]) / p99(samples[OUTBOX]),
                limit=8,
                at_most=False,
                judged=sizes.judges,
            ),
        ],
        notes=[*notes, "ratio: writes per second, the median of the rounds"],
    )


def _round(pool: ThreadPoolExecutor, writer: Writer, first: int, threads: int, each: int) -> tuple[float, list[float]]:
    """All threads write `each` trades; returns the seconds of the whole and of each write."""
    gate = threading.Barrier(threads + 1)

    def work(start: int) -> list[float]:
        trades = [trade(number) for number in range(start, start + each)]
        times = []
        gate.wait()
        for number, args in enumerate(trades, start):
            begin = clock()
            writer.write(number, args)
            times.append(clock() - begin)
        return times

    workers = [pool.submit(work, first + index * each) for index in range(threads)]
    gate.wait()
    begin = clock()
    wait(workers)
    seconds = clock() - begin
    return seconds, [seconds for worker in workers for seconds in worker.result()]
