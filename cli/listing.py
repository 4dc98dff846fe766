"""Listing: the entries that `atb outbox list` shows, without reading a whole backlog to count the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import islice

from outbox import Outbox
from outbox.monitoring.held_back import LOOKED_AT, held_back
from outbox.store.envelope import Record


class What(Enum):
    """What is listed; the values are for people."""

    DEAD = "dead letters"
    PENDING = "pending entries"
    HELD_BACK = "held back entries"


class Looking:
    """Records in their order, counted, until so many were looked at."""

    def __init__(self, records: Iterable[Record], most: int | None = None) -> None:
        self._records = records
        self.most = most
        self.count = 0
        # Whether there were more.
        self.ended_early = False

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            if self.most is not None and self.count >= self.most:
                self.ended_early = True
                return
            self.count += 1
            yield record


class Listing:
    """The first entries that are `wanted`, at most `limit` of them."""

    def __init__(
        self, box: Outbox, what: What, wanted: Callable[[Record], bool], limit: int, *, unfiltered: bool
    ) -> None:
        """`unfiltered`: all are `wanted`."""
        looked_at = Looking(_dead(box) if what is What.DEAD else box.store.records("pending"))
        records = Looking(held_back(looked_at, box.store.dead()) if what is What.HELD_BACK else looked_at)
        chosen = filter(wanted, records)
        self.shown = list(islice(chosen, limit))
        # How many there are beyond, as text; empty for none.
        self.more = ""
        if len(self.shown) == limit:
            looked_at.most = looked_at.count + LOOKED_AT
            known = _all(box, what) if unfiltered else None
            more = sum(1 for _ in chosen) if known is None else max(0, known - limit)
            plus = "+" if looked_at.ended_early else ""
            self.more = f"{more}{plus}" if more or plus else ""
        # How many there are without the filter, of which none was shown.
        self.unfiltered = records.count


def _all(box: Outbox, what: What) -> int | None:
    """How many there are in all, where the store counts them."""
    figures = box.store.figures()
    return {What.DEAD: figures.counters.dead, What.PENDING: figures.pending}.get(what)


def _dead(box: Outbox) -> Iterator[Record]:
    for seq, _ in box.store.dead():
        record = box.store.record("ledger", seq)
        if record is not None:
            yield record
