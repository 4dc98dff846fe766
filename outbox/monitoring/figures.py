"""Figures: the numbers of a status, by the names of their metrics.

Independent of a monitoring system: `metrics.py` and `otel.py` read the same table.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from ..store.reads import UNKNOWN_BYTES
from .status import OutboxStatus

PREFIX = "lmdb_outbox_"
_BREAKERS = ("closed", "open", "half-open", "unknown")

# The values of the figure's own labels, and the number.
Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric.  `read` gives its samples of a status; none where it is not known."""

    # Without the prefix.  A counter's ends in `_total`, and only grows as long as the store is not restored.
    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    read: Callable[[OutboxStatus], Iterable[Sample]]
    # Beside `store`, which every figure has.
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as monitoring systems see it."""
        return PREFIX + self.name


def _gauge(name: str, meaning: str, value: Callable[[OutboxStatus], float | None]) -> Figure:
    return Figure(name, "gauge", meaning, lambda status: _known(value(status)))


def _known(value: float | None) -> Iterable[Sample]:
    return [] if value is None else [((), float(value))]


def _free_disk(status: OutboxStatus) -> float | None:
    return status.free_disk_bytes if status.free_disk_bytes < UNKNOWN_BYTES else None


def _last_applied(status: OutboxStatus) -> float | None:
    at = status.relay.last_applied_at
    return None if at is None else at.timestamp()


def _breaker(status: OutboxStatus) -> Iterable[Sample]:
    return [((state,), float(status.breaker == state)) for state in _BREAKERS]


@functools.cache
def _version() -> str:
    return importlib.metadata.version("lmdb-outbox")


def _info(status: OutboxStatus) -> Iterable[Sample]:
    return [((status.store_id, _version()), 1.0)]


# Whether the store could be read at all: the only figure of one that could not.
UP = Figure("up", "gauge", "1 where the store could be read, else 0; then there is nothing else", lambda _: [((), 1.0)])

# completed and discarded are gauges: a reconciliation puts entries back, and a counter that falls would look like a
# restart and be counted a second time.
FIGURES = (
    UP,
    Figure("info", "gauge", "1; which store, and which version of the library", _info, ("store_id", "version")),
    _gauge("health", "0 healthy, 1 degraded, 2 needs an operator", lambda s: s.health),
    _gauge("halted", "1 while the halt latch is set", lambda s: s.halted),
    _gauge("engine_running", "1 while some process may enqueue", lambda s: s.engine_pid is not None),
    _gauge("pending_entries", "Acknowledged and not yet settled, held back ones included", lambda s: s.pending),
    _gauge("held_back_entries", "Pending behind a dead letter of the same ordering key", lambda s: s.held_back),
    _gauge("dead_letter_entries", "Refused for good, waiting for an operator", lambda s: s.dead_letters),
    _gauge("quarantined_entries", "Damaged records that were set aside", lambda s: s.quarantined),
    _gauge("unledgered_entries", "Completed without a ledger copy, as the disk was full", lambda s: s.unledgered),
    _gauge("ledger_entries", "Settled entries that are still kept", lambda s: s.ledger),
    Figure(
        "acknowledged_entries_total",
        "counter",
        "Enqueued since the store was created",
        lambda s: [((), float(s.acknowledged))],
    ),
    _gauge("completed_entries", "Applied since the store was created, less those put back", lambda s: s.completed),
    _gauge(
        "discarded_entries", "Given up since the store was created, less those found applied", lambda s: s.discarded
    ),
    _gauge("lag_seconds", "Age of the oldest pending entry; 0 where there is none", lambda s: s.lag_s),
    _gauge("watermark_sequence", "Highest sequence number with nothing pending at or below it", lambda s: s.watermark),
    _gauge("last_sequence", "Highest sequence number", lambda s: s.last_seq),
    _gauge("clock_ahead_seconds", "How far the newest entry is stamped ahead of the clock", lambda s: s.ahead_s),
    Figure(
        "alarm",
        "gauge",
        "1 for each unacknowledged alarm",
        lambda s: [((name,), 1.0) for name in s.alarms],
        ("alarm",),
    ),
    Figure(
        "notice_lasts_seconds",
        "gauge",
        "In how long calls are refused, at the present rate, by a notice such as ids-in-reserve; absent for never",
        lambda s: [((name,), one.lasts_s) for name, one in s.notices.items() if one.lasts_s is not None],
        ("notice",),
    ),
    _gauge("relay_running", "1 while some process is the relay", lambda s: s.relay.alive),
    Figure("relay_breaker", "gauge", "1 for the state of the relay's circuit breaker", _breaker, ("state",)),
    _gauge("relay_stopped", "1 while PostgreSQL refuses and an operator must act", lambda s: s.relay.stopped),
    _gauge("relay_stuck", "1 while entries wait, nothing moves and no delivery fails", lambda s: s.relay.stuck),
    _gauge(
        "relay_parked_operations",
        "Parked operations; at most 8 are counted",
        lambda s: len(s.relay.parked) + len(s.relay.parked_best_effort),
    ),
    _gauge("relay_idle_seconds", "Since the relay settled something or found nothing to do", lambda s: s.relay.idle_s),
    _gauge("relay_last_applied_timestamp_seconds", "When the relay last applied something, Unix time", _last_applied),
    _gauge("live_bytes", "Pages of the store in use", lambda s: s.live_bytes),
    _gauge("file_bytes", "Size of the store's file", lambda s: s.file_bytes),
    _gauge("max_bytes", "The quota; enqueueing stops at 85 % of it", lambda s: s.max_bytes),
    _gauge("map_bytes", "Address space of the memory map", lambda s: s.map_bytes),
    _gauge("free_disk_bytes", "Free on the store's file system; absent where that is unknown", _free_disk),
    _gauge("reserve_bytes", "Free disk below which enqueueing stops", lambda s: s.reserve_bytes),
    _gauge("pinned_commits", "How many commits the oldest reader is behind", lambda s: s.pinned_commits),
)
