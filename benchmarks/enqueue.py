"""Scenario `enqueue`: one thread, one trade of 600 bytes, durable when the call returns."""

from __future__ import annotations

from .durability import flushes_per_write
from .measure import Goal, Result, Setting, line, median, require_same, timed, turns
from .workload import trade
from .writers import BARE, LIMIT, OUTBOX, WRITERS, available

# Calls of one turn: short enough that all see the same machine, long enough to run as a program would.
_TURN = 25


def run(setting: Setting) -> Result:
    names = available()
    flushes, notes = flushes_per_write(setting, names)
    writers = {name: WRITERS[name](setting.folder("enqueue"), setting.url) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    setting.say("timing one write at a time")
    try:
        for name in turns(max(1, setting.sizes.enqueue // _TURN), names):
            first = len(samples[name])
            trades = [trade(number) for number in range(first, first + min(_TURN, setting.sizes.enqueue))]
            write = writers[name].write
            for number, args in enumerate(trades, first):
                samples[name].append(timed(lambda: write(number, args)))  # noqa: B023 - called at once
        for name, writer in writers.items():
            rows = writer.rows()
            if rows is not None:
                require_same(f"{name}: rows", rows, len(samples[name]))
    finally:
        for writer in writers.values():
            writer.close()
    middle = {name: median(times) for name, times in samples.items()}
    return Result(
        scenario="enqueue",
        title="One trade of 600 bytes, durable when the call returns, one thread",
        reference=LIMIT,
        lines=[
            line(name, samples[name], ratio=middle[name] / middle[LIMIT], flushes=flushes.get(name)) for name in names
        ],
        goals=[
            Goal(
                text="outbox / bare LMDB transaction, median",
                value=middle[OUTBOX] / middle[BARE],
                limit=1.25,
                judged=setting.sizes.judges,
                question="One bare enqueue",
                answer="{value:.2f} bare LMDB transactions",
            ),
            Goal(
                text="outbox / one 4 KiB fdatasync, median",
                value=middle[OUTBOX] / middle[LIMIT],
                limit=2.7,
                judged=setting.sizes.judges,
            ),
        ],
        notes=notes,
    )
