"""Quota: which new entries fit on the disk and into the store's limit, and which settled ones make room.

Pending entries and dead letters never go.  Settled ones are history: they stay for the retention time, but no longer
than new entries have room, for a full ledger is no reason to halt trading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
