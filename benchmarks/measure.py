"""What scenarios are made of: samples, turns, lines of a result, goals.  Knows no contender."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

clock = time.perf_counter


class NotTheSameWork(Exception):
    """A contender did less than the others: rows are missing, or calls returned before anything was flushed."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One contender of a scenario.  Times in microseconds per operation."""

    contender: str
    # Operations that were timed.
    count: int
    median_us: float
    p99_us: float
    # Of the whole, where several threads or a whole backlog are timed; else None.
    per_second: float | None = None
    # Median, or rate, as a multiple of the scenario's reference.
    ratio: float | None = None
    # Flushes per operation in an audited run of the same code, or None where nothing counts them.
    flushes: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A target, and whether this run met it."""

    text: str
    value: float
    limit: float
    at_most: bool = True
    # Sizes too small to judge by: shown, not judged.
    judged: bool = True
    # For the table at the head of the document: what a reader wants to know, and the answer with `{value}` in it.
    question: str = ""
    answer: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(kw_only=True)
class Result:
    """What a scenario found."""

    scenario: str
    title: str
    # What `Line.ratio` is relative to.
    reference: str
    lines: list[Line]
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # For the chart: name -> [(x, y), ...]; empty where bars of the lines say it all.
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")
    # Whether its lines stand in the document too; the chart and `results.json` have those of every scenario.
    tabled: bool = True
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["goals"] = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        return values


@dataclass(frozen=True)
class Sizes:
    """How much work a run does.  The smaller, the noisier: only the full sizes judge a goal."""

    name: str
    enqueue: int
    transactions: int
    threads: int
    writes_per_thread: int
    thread_rounds: int
    drain_rows: int
    drain_rounds: int
    slow_rows: int
    disturbed: int
    disturbed_rounds: int
    end_to_end: int
    scale: tuple[int, ...]
    scale_rounds: int
    scale_slice: int
    steady_per_minute: int
    # Simulated minutes of one turn of traffic.
    steady_step: int
    # Trades of nine calls each, and calls of a backlog.
    manager_rounds: int
    manager_backlog: int
    coroutines: int
    # Entries, and how often the process is killed.
    restart_settled: tuple[int, ...]
    restart_pending: int
    restart_rounds: int
    audited: int

    @property
    def judges(self) -> bool:
        return self.name == "full"


FULL = Sizes(
    name="full",
    enqueue=4000,
    transactions=2000,
    threads=32,
    writes_per_thread=40,
    thread_rounds=8,
    drain_rows=200_000,
    drain_rounds=3,
    slow_rows=3000,
    disturbed=600,
    disturbed_rounds=5,
    end_to_end=600,
    scale=(10_000, 100_000, 1_000_000),
    scale_rounds=6,
    scale_slice=2000,
    steady_per_minute=100,
    steady_step=1,
    manager_rounds=60,
    manager_backlog=3000,
    coroutines=1000,
    restart_settled=(100_000, 1_000_000),
    restart_pending=10_000,
    restart_rounds=5,
    audited=60,
)
# Takes about 7 GiB of disk.
HUGE = replace(FULL, scale=(*FULL.scale, 10_000_000))
QUICK = Sizes(
    name="quick",
    enqueue=500,
    transactions=250,
    threads=32,
    writes_per_thread=10,
    thread_rounds=2,
    drain_rows=10_000,
    drain_rounds=2,
    slow_rows=400,
    disturbed=150,
    disturbed_rounds=2,
    end_to_end=100,
    scale=(5000, 50_000),
    scale_rounds=2,
    scale_slice=2000,
    steady_per_minute=20,
    steady_step=10,
    manager_rounds=10,
    manager_backlog=450,
    coroutines=1000,
    restart_settled=(2000, 20_000),
    restart_pending=1000,
    restart_rounds=2,
    audited=20,
)
TINY = Sizes(
    name="tiny",
    enqueue=10,
    transactions=5,
    threads=4,
    writes_per_thread=3,
    thread_rounds=1,
    drain_rows=200,
    drain_rounds=1,
    slow_rows=20,
    disturbed=10,
    disturbed_rounds=1,
    end_to_end=4,
    scale=(1200, 2400),
    scale_rounds=1,
    scale_slice=300,
    steady_per_minute=2,
    steady_step=60,
    manager_rounds=1,
    manager_backlog=45,
    coroutines=20,
    restart_settled=(50, 100),
    restart_pending=10,
    restart_rounds=1,
    audited=4,
)


@dataclass(frozen=True)
class Setting:
    """Where a run happens."""

    sizes: Sizes
    # An empty directory on the disk to be measured.
    directory: Path
    # A superuser's URL of a PostgreSQL whose settings are its defaults, `fsync` and `synchronous_commit` on.
    url: str
    # Told what is going on, for a human who waits.
    say: Callable[[str], None] = lambda text: None

    def folder(self, name: str) -> Path:
        """A new empty directory."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))


def turns(rounds: int, contenders: Sequence[str]) -> Iterator[str]:
    """Every contender once a round, each round starting with another one, so that none always follows the same."""
    for number in range(rounds):
        shift = number % len(contenders)
        yield from (*contenders[shift:], *contenders[:shift])


def timed(action: Callable[[], Any]) -> float:
    """Seconds that one call of `action` takes."""
    start = clock()
    action()
    return clock() - start


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The sample that 99 % do not exceed; of few samples, the worst."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def line(contender: str, samples: Sequence[float], **more: Any) -> Line:
    """A line from samples in seconds per operation."""
    return Line(
        contender=contender, count=len(samples), median_us=median(samples) * 1e6, p99_us=p99(samples) * 1e6, **more
    )


def require_same(what: str, found: int, expected: int) -> None:
    """Raises `NotTheSameWork`."""
    if found != expected:
        raise NotTheSameWork(f"{what}: {found}, expected {expected}")
