"""Quota: which new entries fit on the disk and into the store's limit, which settled ones make room, and for how long.

Pending entries and dead letters never go.  Settled ones are history: they stay for the retention time, but no longer
than new entries have room, for a full ledger is no reason to halt trading.

The rates, entries per second in and out, give the time until the backlog is gone or the store is full.  The relay keeps
two samples of what it knows anyway and publishes the older one in `relay.state`; a status of any process takes the
difference.  Without a relay nothing is delivered, and the oldest pending entry is the sample.  None of it costs a
commit, a thread or a read of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import StoreCorrupt, StoreFull
from ..log import Log
from . import ledger, small
from .environment import Environment
from .reads import ALARM_PREFIX, CHUNK, FORGOTTEN, live_bytes

_log = Log("outbox.store")

# Enqueueing stops at this share of the quota; the rest is for draining.
QUOTA_SHARE = 0.85
# The newest settled entries that stay all the same: PostgreSQL forgets the newest, if any, and what is kept locally of
# its content may be some hundred entries behind.
KEPT_HISTORY = 1000
# On the disk an entry costs its record, its idempotency key and its share of half-empty pages.
_ENTRY_COST = 4
_ANY_TIME_US = 1 << 63
_SAID_EVERY_US = 3_600_000_000
_FORGOTTEN_KEY = small.PREFIX + (ALARM_PREFIX + FORGOTTEN).encode()


class Quota:
    """The limits of one store.  Its user lets one thread at a time `admit` and `say`."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        reserve_bytes: int,
        retention_us: int,
        now_us: Callable[[], int],
        named: Callable[[str], str] = str,
    ) -> None:
        """`max_bytes` is the limit, `reserve_bytes` the free disk kept for draining, `now_us` the wall clock.

        `named` gives the names under which the user sets the settings: see `OutboxConfig.named`.
        """
        self._named = named
        self._directory, self._max_bytes, self._reserve_bytes = directory, max_bytes, reserve_bytes
        self._retention_us, self._now_us = retention_us, now_us
        # Below this sequence number there is nothing that could go.
        self._history_from = 0
        # Since the last `say`: how much went before its time, and what could not be read.
        self._early = 0
        self._damage: StoreCorrupt | None = None
        self._said_us = -_SAID_EVERY_US

    def admit_to_disk(self, free_bytes: int, sizes: Sequence[int]) -> list[StoreFull | None]:
        """For each submission of so many bytes None, or the error where it needs what is kept for draining.

        Empty where there is room for all.
        """
        room = (free_bytes - self._reserve_bytes) // _ENTRY_COST
        if sum(sizes) <= room:
            return []
        return _admit(
            sizes,
            room,
            f"{free_bytes >> 20} MiB are free at {self._directory}, "
            f"{self._reserve_bytes >> 20} MiB are kept for draining",
            "halt trading and free disk space",
        )

    def admit(self, environment: Environment, txn: Any, sizes: Sequence[int]) -> list[StoreFull | None]:
        """For each submission of so many bytes None, or the error where it does not fit, though history has gone.

        Empty where there is room for all.
        """
        limit = int(self._max_bytes * QUOTA_SHARE)
        # Pages in use are never more than the file has had, and that is cheaper to learn.
        if environment.high_water_bytes() + sum(sizes) <= limit:
            return []
        self._make_room(environment, txn, limit - sum(sizes))
        used = live_bytes(environment, txn)
        mapped = self._max_bytes == environment.map_bytes
        bound, way_out = ("the address space", "ulimit -v") if mapped else (self._named("max_size_mb"),) * 2
        return _admit(
            sizes,
            limit - used,
            f"the store uses {used >> 20} MiB, enqueueing stops at {limit >> 20} MiB, "
            f"85 % of {bound}={self._max_bytes >> 20}",
            f"halt trading; drain and compact, or raise {way_out}",
        )

    def _make_room(self, environment: Environment, txn: Any, enough: int) -> None:
        """Delete history, what has expired first, until at most `enough` bytes are in use."""
        if live_bytes(environment, txn) <= enough or txn.get(_FORGOTTEN_KEY) is not None:
            return
        try:
            self._prune(environment, txn, enough, self._now_us() - self._retention_us, keep=0)
            self._early += self._prune(environment, txn, enough, _ANY_TIME_US, keep=KEPT_HISTORY)
        except StoreCorrupt as exc:
            self._damage = exc

    def _prune(self, environment: Environment, txn: Any, enough: int, before_us: int, *, keep: int) -> int:
        total, first = 0, self._history_from
        while live_bytes(environment, txn) > enough:
            rows = min(CHUNK, int(txn.stat(environment.ledger)["entries"]) - keep)
            if rows <= 0:
                break
            pruned, go_on = ledger.prune(environment, txn, first, rows, before_us, self._now_us())
            total += pruned
            if go_on is None:
                if before_us == _ANY_TIME_US:
                    # A dead letter that was passed over may have been answered by the next time.
                    self._history_from = 0
                break
            self._history_from = first = go_on
        return total

    def say(self) -> None:
        """Log what `admit` had no time for, as it runs inside a write transaction; once an hour."""
        if not self._early and self._damage is None:
            return
        now_us = self._now_us()
        if abs(now_us - self._said_us) < _SAID_EVERY_US:
            return
        if self._early:
            _log.warning(
                "the store is full: settled entries leave early, to make room for new ones: %(entries)s left before "
                "%(retention_hours)s hours were over (raise %(size_setting)s, or lower %(retention_setting)s)",
                entries=self._early,
                retention_hours=self._retention_us / 3_600_000_000,
                size_setting=self._named("max_size_mb"),
                retention_setting=self._named("retention_hours"),
            )
        if self._damage is not None:
            _log.error("the ledger cannot be pruned: %(error)s", error=self._damage)
        self._early, self._damage, self._said_us = 0, None, now_us


def _admit(sizes: Sequence[int], room: int, message: str, hint: str) -> list[StoreFull | None]:
    """First come, first served: what does not fit leaves its room to smaller ones behind it."""
    refusals: list[StoreFull | None] = []
    for size in sizes:
        refusals.append(None if size <= room else StoreFull(message, hint=hint))
        room -= size if size <= room else 0
    return refusals


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
