"""Scenario `restart`: how soon a program that was killed may enqueue again, with a history of any length."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from outbox import Outbox
from outbox.store.ledger import Settlement

from .measure import Goal, NotTheSameWork, Result, Setting, clock, line, median, require_same
from .workload import TICK, config, fill, tick

_CHUNK = 2000
# Numbers of the entries that a life enqueues: above those of the history.
_LIVES = 1_000_000_000
_spawn = multiprocessing.get_context("spawn")


def run(setting: Setting) -> Result:
    sizes, pending = setting.sizes, setting.sizes.restart_pending
    seconds: dict[int, list[float]] = {}
    memory: dict[int, float] = {}
    for settled in sizes.restart_settled:
        folder = setting.folder("restart") / "outbox"
        setting.say(f"{settled:,} settled entries")
        _make(folder, settled, pending)
        seconds[settled], memory[settled] = [], 0.0
        for round_ in range(sizes.restart_rounds):
            _kill_one(folder)
            setting.say(f"opening after SIGKILL, {settled:,} settled entries")
            took_s, mib = _open(folder)
            seconds[settled].append(took_s)
            memory[settled] = max(memory[settled], mib)
            with Outbox.attach(folder, config()) as box:
                # Each life has enqueued one entry before it was killed or ended.
                require_same("pending", box.status().pending, pending + 2 * (round_ + 1))
    small, large = sizes.restart_settled[0], sizes.restart_settled[-1]
    judged = sizes.judges
    return Result(
        scenario="restart",
        title=f"From SIGKILL to the next durable entry, with {pending:,} pending entries",
        reference=f"{small:,} settled entries",
        tabled=False,
        lines=[
            line(
                f"{settled:,} settled entries",
                times,
                ratio=median(times) / median(seconds[small]),
                note=f"{memory[settled]:.0f} MiB",
            )
            for settled, times in seconds.items()
        ],
        goals=[
            Goal(
                text=f"seconds at {large:,} settled, median",
                value=median(seconds[large]), limit=1, judged=judged,
                question=f"Enqueueing again after SIGKILL, {large:,} settled and {pending:,} pending entries",
                answer="{value:.2f} s",
            ),
            Goal(text=f"MiB at {large:,} settled", value=memory[large], limit=100, judged=judged),
            Goal(
                text=f"time at {large:,} settled / at {small:,}, median",
                value=median(seconds[large]) / median(seconds[small]), limit=1.25, judged=judged,
            ),
        ],
        notes=["a new process, from `Outbox.open` until `enqueue` has returned; MiB: by which it grew, and its child"],
    )  # fmt: skip


def _make(folder: Path, settled: int, pending: int) -> None:
    with Outbox.open(folder, config(), [TICK]) as box:
        for first in range(0, settled, _CHUNK):
            fill(box, TICK, (tick(number) for number in range(first, min(first + _CHUNK, settled))))
            while records := box.store.peek(0, _CHUNK).records:
                box.store.settle(Settlement(completed=[(record, b"") for record in records]))
        fill(box, TICK, (tick(number) for number in range(settled, settled + pending)))


def _kill_one(folder: Path) -> None:
    """A process that has the store open, has enqueued, and is killed."""
    receiver, sender = _spawn.Pipe(duplex=False)
    child = _spawn.Process(target=_live, args=(sender, str(folder)))
    child.start()
    receiver.recv()
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()


def _live(answer: Connection, folder: str) -> None:
    with Outbox.open(folder, config(), [TICK]) as box:
        box.enqueue(TICK.name, tick(_LIVES + os.getpid()))
        answer.send("open")
        signal.pause()


def _open(folder: Path) -> tuple[float, float]:
    """Seconds until the next entry is durable, and MiB."""
    receiver, sender = _spawn.Pipe(duplex=False)
    child = _spawn.Process(target=_timed, args=(sender, str(folder)))
    child.start()
    sender.close()
    try:
        took_s, mib = receiver.recv()
    except EOFError:
        raise NotTheSameWork("the store could not be opened") from None
    finally:
        child.join()
    return float(took_s), float(mib)


def _timed(answer: Connection, folder: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = clock()
    with Outbox.open(folder, config(), [TICK]) as box:
        box.enqueue(TICK.name, tick(_LIVES + os.getpid()))
        took_s = clock() - begin
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    answer.send((took_s, (own + child) / 1024))
