"""Scenario `disturbance`: what an enqueue costs while the backlog drains, or while the host computes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from outbox import Outbox, PostgresTarget, Relay

from .measure import Goal, NotTheSameWork, Result, Setting, clock, line, median, p99, timed, turns
from .workload import TRADE, TRADE_COLUMNS, config, create_table, execute, fill, trade

_IDLE, _THREAD, _PROCESS = "idle", "relay thread drains", "relay process drains"
_FULL = "relay thread drains at full speed"
_ELSEWHERE = "relay process drains another store"
_BUSY, _BUSY_FINE = "CPU-bound thread in the host", "the same, switch interval 0.1 ms"
_FINE_S = 0.0001
_FULL_BATCH = 1000
_PATIENCE_S = 60.0


def run(setting: Setting) -> Result:
    states = {
        _IDLE: _idle,
        _THREAD: _relay_thread,
        _FULL: _relay_thread,
        _PROCESS: _relay_process,
        _ELSEWHERE: _relay_process_elsewhere,
        _BUSY: _computing,
        _BUSY_FINE: _yielding,
    }
    drained = {_THREAD, _FULL, _PROCESS, _ELSEWHERE}
    samples: dict[str, list[float]] = {name: [] for name in states}
    rates: dict[str, list[float]] = {name: [] for name in states}
    for name in turns(setting.sizes.disturbed_rounds, list(states)):
        setting.say(f"timing enqueues: {name}")
        create_table(setting.url, "trades", TRADE_COLUMNS)
        numbers = count()
        full = {"busy_batch_size": _FULL_BATCH} if name == _FULL else {}
        with Outbox.open(setting.folder("disturbed") / "outbox", config(**full), [TRADE]) as box:
            if name in drained:
                fill(box, TRADE, (trade(next(numbers)) for _ in range(setting.sizes.drain_rows // 4)))
            before = box.status().completed
            with states[name](setting, box) as target:
                first, began = box.status().completed, clock()
                for _ in range(setting.sizes.disturbed):
                    args = trade(next(numbers))
                    samples[name].append(timed(lambda: target.enqueue(TRADE.name, args)))  # noqa: B023 - called at once
                status = box.status()
                rates[name].append((status.completed - first) / (clock() - began))
            if name in drained and status.completed == before:
                raise NotTheSameWork(f"{name}: nothing was drained while enqueues were timed")
            rows = execute(setting.url, "SELECT count(*) FROM trades")[0][0]
            if rows != box.status().completed:
                raise NotTheSameWork(f"{name}: {rows} rows for {box.status().completed} completed entries")
    tail = {name: p99(times) for name, times in samples.items()}
    limits = {_THREAD: 5, _PROCESS: 3}
    return Result(
        scenario="disturbance",
        title="One enqueue while something else goes on",
        reference=_IDLE,
        lines=[
            line(
                name,
                times,
                ratio=median(times) / median(samples[_IDLE]),
                note=f"{median(rates[name]):,.0f} drained per second" if name in drained else "",
            )
            for name, times in samples.items()
        ],
        goals=[
            Goal(
                text=f"{name} / idle, p99",
                value=tail[name] / tail[_IDLE],
                limit=limits[name],
                judged=setting.sizes.judges,
                question=f"p99 of an enqueue while a {name}",
                answer="{value:.2f} times idle",
            )
            for name in samples
            if name in limits
        ],
        notes=[
            f"{_FULL}: with OUTBOX_BUSY_BATCH_SIZE={_FULL_BATCH}",
            f"{_ELSEWHERE}, at full speed: nothing is shared but the machine, with its disk, and PostgreSQL",
        ]
        if _PROCESS in states
        else ["this version has no `atb outbox relay`"],
    )


@contextmanager
def _idle(setting: Setting, box: Outbox) -> Iterator[Outbox]:
    yield box


@contextmanager
def _relay_thread(setting: Setting, box: Outbox) -> Iterator[Outbox]:
    relay = Relay(box, PostgresTarget(setting.url, [TRADE], config=box.config))
    relay.start()
    try:
        _until_it_drains(box)
        yield box
    finally:
        relay.stop()


@contextmanager
def _relay_process(setting: Setting, box: Outbox) -> Iterator[Outbox]:
    environment = {
        **os.environ,
        "OUTBOX_DIR": str(box.path),
        "DATABASE_URL": setting.url,
        "OUTBOX_OPERATIONS": "benchmarks.workload:OPERATIONS",
        "OUTBOX_MAX_SIZE_MB": str(box.config.max_size_mb),
    }
    with (setting.directory / "relay.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "outbox", "outbox", "relay"], env=environment, stdout=log, stderr=log
        )
        try:
            _until_it_drains(box)
            yield box
        finally:
            process.terminate()
            process.wait(_PATIENCE_S)


@contextmanager
def _relay_process_elsewhere(setting: Setting, box: Outbox) -> Iterator[Outbox]:
    with (
        Outbox.open(setting.folder("elsewhere") / "outbox", config(), [TRADE]) as other,
        _relay_process(setting, box),
    ):
        yield other


def _until_it_drains(box: Outbox) -> None:
    pause = threading.Event()
    for _ in range(int(_PATIENCE_S * 100)):
        if box.store.figures().counters.completed:
            return
        pause.wait(0.01)
    raise NotTheSameWork(f"the relay drained nothing within {_PATIENCE_S:.0f} s")


@contextmanager
def _computing(setting: Setting, box: Outbox) -> Iterator[Outbox]:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(number * number for number in range(10_000))

    thread = threading.Thread(target=compute, name="computing")
    thread.start()
    try:
        yield box
    finally:
        stop.set()
        thread.join()


@contextmanager
def _yielding(setting: Setting, box: Outbox) -> Iterator[Outbox]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_FINE_S)
    try:
        with _computing(setting, box):
            yield box
    finally:
        sys.setswitchinterval(before)
