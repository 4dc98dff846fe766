"""Rates: how fast entries come and go, when the backlog is gone, and when the store is full.

The relay keeps two samples of what it knows anyway and publishes the older one in `relay.state`; a status of any
process takes the difference.  Without a relay nothing is delivered, and the oldest pending entry is the sample.  None
of it costs a commit, a thread or a read of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..store.quota import KEPT_HISTORY, QUOTA_SHARE

# Over less time the share of one batch or burst is too large.
_SHORTEST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a status knows of speed.  Entries per second, seconds; None where it is not known or never."""

    # The time over which the first two were measured.
    window_s: float | None = None
    enqueued_per_s: float | None = None
    delivered_per_s: float | None = None
    # When nothing is pending any more, as batches are delivered and entries enqueued now.
    drained_in_s: float | None = None
    # When enqueueing is refused if the backlog grows on as it does; None while it does not grow.
    full_in_s: float | None = None
    # When it is refused if nothing is delivered from now on: how long an outage may last.
    outage_s: float | None = None
    # How long draining takes at that moment.
    drain_then_s: float | None = None
    # What is full then: `quota` or `disk`.
    limit: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What the store has and may have.  Bytes and entries, as in `OutboxStatus`."""

    live_bytes: int
    file_bytes: int
    max_bytes: int
    free_disk_bytes: int
    reserve_bytes: int
    pending: int
    ledger: int
    dead_letters: int
    # Whether settled entries may leave to make room.
    history_may_go: bool

    def entries(self) -> tuple[float, str] | None:
        """How many more entries there is room for, and what ends it; None for an empty store."""
        kept = self.pending + self.ledger
        if not kept or not self.live_bytes:
            return None
        each = self.live_bytes / kept
        history = max(0, self.ledger - self.dead_letters - KEPT_HISTORY) if self.history_may_go else 0
        quota = QUOTA_SHARE * self.max_bytes - self.live_bytes + history * each
        # Pages that were freed are used before the file grows.
        disk = self.free_disk_bytes - self.reserve_bytes + max(0, self.file_bytes - self.live_bytes)
        return max(0.0, min(quota, disk) / each), "quota" if quota <= disk else "disk"


def measure(
    said: object,
    *,
    now: float,
    delivering: bool,
    relay_alive: bool,
    last_seq: int,
    first_pending: int | None,
    waiting_s: float | None,
    deliverable: int,
    room: Room,
) -> Rates:
    """The rates, of what the relay `said` (`Pace.published`) and of the store's figures.

    `delivering`: whether PostgreSQL takes entries as far as is known.  `waiting_s`: age of the oldest pending entry,
    whose number is `first_pending`; None where the clock does not show it.  `deliverable`: what is pending and need not
    wait for anybody; 0 where that is not known.
    """
    published: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    enqueued = delivered = window = None
    if relay_alive:
        if (sample := published.get("sample")) is not None and now - sample[0] >= _SHORTEST_S:
            window = now - sample[0]
            enqueued = max(0, last_seq - sample[1]) / window
            delivered = max(0, int(published["delivered"]) - sample[2]) / window
    else:
        delivered = 0.0
        if first_pending is not None and waiting_s is not None and waiting_s >= _SHORTEST_S:
            window = waiting_s
            enqueued = (last_seq - first_pending + 1) / window
    surplus = _surplus(published.get("speed"), enqueued)
    drained_in = deliverable / surplus if surplus and delivering and deliverable else None
    measured = Rates(window_s=window, enqueued_per_s=enqueued, delivered_per_s=delivered, drained_in_s=drained_in)
    left = room.entries()
    if left is None or not enqueued:
        return measured
    more, limit = left
    growth = enqueued - (delivered or 0.0) if delivering else enqueued
    return replace(
        measured,
        full_in_s=more / growth if growth > 0 else None,
        outage_s=more / enqueued,
        drain_then_s=(room.pending + more) / surplus if surplus else None,
        limit=limit,
    )


def _surplus(speed: float | None, enqueued: float | None) -> float | None:
    """How many entries a second a backlog shrinks by; None where that is not known, or it does not."""
    if speed is None or speed <= (enqueued or 0.0):
        return None
    return speed - (enqueued or 0.0)
