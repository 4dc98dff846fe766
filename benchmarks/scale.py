"""Scenario `scale`: does it get slower with the size of the backlog?"""

from __future__ import annotations

import multiprocessing
import threading
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from outbox import Outbox, PostgresTarget, Relay

from .measure import Goal, NotTheSameWork, Result, Setting, clock, line, median, require_same, timed, turns
from .workload import TICK, TICK_COLUMNS, config, create_table, execute, fill, tick

# Of each round.
_LOOKS = 8
_ENQUEUES = 40
_SAMPLE_S = 0.01
# Between the first numbers of two stores, which share a table.
_APART = 1_000_000_000


class _Backlog:
    """A store with so many pending entries, and what was measured on it."""

    def __init__(self, folder: Path, size: int, first: int) -> None:
        self.folder, self.size = folder, size
        self._numbers = count(first)
        self.looks: list[float] = []
        self.statuses: list[float] = []
        self.enqueues: list[float] = []
        self.batches: list[float] = []
        # MiB that a process which drained it had for itself.
        self.memory = 0.0

    def fill(self) -> None:
        """Enqueue what is missing."""
        with Outbox.open(self.folder, config(), [TICK]) as box:
            missing = self.size - box.status().pending
            fill(box, TICK, (tick(next(self._numbers)) for _ in range(missing)))

    def measure(self, url: str, entries: int) -> None:
        """One round: look, enqueue, drain `entries`."""
        self.looks += [timed(self._look) for _ in range(_LOOKS)]
        with Outbox.open(self.folder, config(), [TICK]) as box:
            self.statuses += [timed(box.status) for _ in range(_LOOKS)]
            for _ in range(_ENQUEUES):
                args = tick(next(self._numbers))
                self.enqueues.append(timed(lambda: box.enqueue(TICK.name, args)))  # noqa: B023 - called at once
        batches, memory = _drain_a_slice(self.folder, url, entries)
        self.batches += batches
        self.memory = max(self.memory, memory)

    def _look(self) -> None:
        with Outbox.attach(self.folder, config()) as box:
            pending = box.status().pending
            next(iter(box.pending()))
        require_same("pending", pending, self.size)

    def completed(self) -> int:
        """How many were drained; what is left must be all the rest."""
        with Outbox.attach(self.folder, config()) as box:
            status = box.status()
        require_same("entries", status.pending + status.completed, next(self._numbers) % _APART)
        return status.completed


def run(setting: Setting) -> Result:
    sizes = setting.sizes
    create_table(setting.url, "ticks", TICK_COLUMNS)
    backlogs = {
        str(size): _Backlog(setting.folder("scale") / "outbox", size, number * _APART)
        for number, size in enumerate(sizes.scale)
    }
    for backlog in backlogs.values():
        setting.say(f"{backlog.size:,} pending entries")
        backlog.fill()
    for name in turns(sizes.scale_rounds, list(backlogs)):
        setting.say(f"measuring at {int(name):,}")
        backlogs[name].fill()
        backlogs[name].measure(setting.url, sizes.scale_slice)
    completed = sum(backlog.completed() for backlog in backlogs.values())
    require_same("rows", execute(setting.url, "SELECT count(DISTINCT id) FROM ticks")[0][0], completed)
    looks, statuses, enqueues, batches = (
        {backlog.size: getattr(backlog, what) for backlog in backlogs.values()}
        for what in ("looks", "statuses", "enqueues", "batches")
    )
    memory = {backlog.size: backlog.memory for backlog in backlogs.values()}
    drains = {size: median(times) for size, times in batches.items()}
    small, large = sizes.scale[0], sizes.scale[-1]
    judged = sizes.judges

    def goal(text: str, value: float, limit: float, question: str = "", answer: str = "") -> Goal:
        return Goal(text=text, value=value, limit=limit, judged=judged, question=question, answer=answer)

    million = max(size for size in sizes.scale if size <= 1_000_000)
    return Result(
        scenario="scale",
        title="With a backlog of " + ", ".join(f"{size:,}" for size in sizes.scale) + " entries",
        reference="",
        tabled=False,
        lines=[
            one
            for size in sizes.scale
            for one in (
                line(f"{size:,}: open + status + first entry", looks[size]),
                line(f"{size:,}: status", statuses[size]),
                line(f"{size:,}: enqueue", enqueues[size]),
                line(
                    f"{size:,}: drain, per entry",
                    batches[size],
                    per_second=1 / drains[size],
                    ratio=drains[size] / drains[small],
                    note=f"{memory[size]:.0f} MiB",
                ),
            )
        ],
        goals=[
            goal(f"open + status + first entry at {million:,}, median, ms", median(looks[million]) * 1e3, 1),
            goal(f"status at {large:,} / at {small:,}, median", median(statuses[large]) / median(statuses[small]), 1.5),
            goal(
                "memory of a draining process, MiB",
                max(memory.values()),
                150,
                f"Memory of a process that drains a backlog of {large:,}",
                "{value:.1f} MiB",
            ),
            goal(f"drain per entry at {large:,} / at {small:,}", drains[large] / drains[small], 1.3),
        ],
        notes=[
            "a store for each size, measured in turns",
            f"draining: {sizes.scale_slice:,} entries of the backlog in each turn, in a process of its own; n: batches",
            "memory: the most that this process had for itself, sampled, without pages of the store's file",
        ],
        curves={
            "drain, per entry": [(size, drains[size] * 1e6) for size in sizes.scale],
            "enqueue, median": [(size, median(enqueues[size]) * 1e6) for size in sizes.scale],
            "open + status + first entry": [(size, median(looks[size]) * 1e6) for size in sizes.scale],
        },
        axes=("pending entries", "microseconds"),
    )


def _drain_a_slice(folder: Path, url: str, count: int) -> tuple[list[float], float]:
    """Seconds per entry of each batch, and the draining process's own memory in MiB."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=_drain, args=(sender, str(folder), url, count))
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        raise NotTheSameWork("the draining process ended without an answer") from None
    finally:
        child.join()
    return list(answer[0]), float(answer[1])


def _drain(answer: Connection, folder: str, url: str, count: int) -> None:
    peak = _Peak()
    with Outbox.attach(folder, config(), [TICK]) as box:
        relay = Relay(box, PostgresTarget(url, [TICK], config=box.config))
        relay.step(box.clock.monotonic())  # connects
        with peak:
            batches = _batches(relay, box, count)
        relay.stop()
    answer.send((batches, peak.mib))


def _batches(relay: Relay, box: Outbox, count: int) -> list[float]:
    """Drain about `count` entries; returns the seconds per entry of each step that completed some."""
    samples: list[float] = []
    begin, done = clock(), box.store.figures().counters.completed
    goal = done + count
    while done < goal:
        idle = relay.step(box.clock.monotonic()) > 0
        now, completed = clock(), box.store.figures().counters.completed
        if completed > done:
            samples.append((now - begin) / (completed - done))
            begin, done = now, completed
        elif idle:
            break
    return samples


class _Peak:
    """The most anonymous memory that this process has while the block runs, sampled."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.mib = max(self.mib, own_memory_mib())
            if self._stop.wait(_SAMPLE_S):
                return


def own_memory_mib() -> float:
    """This process's resident memory without the pages of files."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith("RssAnon:"):
            return int(text.split()[1]) / 1024
    return 0.0
