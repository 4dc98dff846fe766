"""Waiting writes: undelivered calls that may change an answer kept for an outage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from ... import Outbox
from ..host import Host
from ..operations import ManagerOperation
from ..preflight.tables_named import tables_named

_KEPT = 256


class WaitingWrites:
    """The waiting calls of operations without a role: what they change is in no local view.  Thread-safe."""

    def __init__(self, host: Host, outbox: Outbox, calls: Mapping[str, ManagerOperation]) -> None:
        """`calls`: the operations by name.  Calls of an earlier process are found in the store."""
        self._host, self._outbox = host, outbox
        self._operations = frozenset(
            name for name, operation in calls.items() if not operation.has_role and not operation.best_effort
        )
        self._seqs: dict[str, list[int]] = {}
        # How many are kept of each before those that do not wait any more are left out.
        self._most = dict.fromkeys(self._operations, _KEPT)
        if self._operations:
            for record in outbox.store.records("pending"):
                if record.operation in self._operations:
                    self._seqs.setdefault(record.operation, []).append(record.seq)

    def note(self, operation: str, seq: int) -> None:
        """A call of an operation was recorded; calls come one after the other."""
        if operation not in self._operations:
            return
        seqs = self._seqs.setdefault(operation, [])
        if len(seqs) >= self._most[operation]:
            seqs = self._seqs[operation] = [one for one in seqs if self._outbox.store.is_pending(one)]
            # In a long outage all of them wait: then it is twice as long until they are looked at again.
            self._most[operation] = max(_KEPT, 2 * len(seqs))
        seqs.append(seq)

    def of(self, read: str, unrecorded: Iterable[tuple[str, str]] = ()) -> tuple[str, str] | None:
        """A waiting call, by operation and place, that may change what `read` answers; None for none.

        It may where both name a table in common, and where the tables of one of them cannot be seen.  `unrecorded` are
        calls that wait elsewhere.
        """
        for operation, place in unrecorded:
            if operation in self._operations and self._may_change(operation, read):
                return operation, place
        for operation, seqs in tuple(self._seqs.items()):
            waiting = next((seq for seq in reversed(seqs) if self._outbox.store.is_pending(seq)), None)
            if waiting is not None and self._may_change(operation, read):
                return operation, f"entry {waiting}"
        return None

    def _may_change(self, operation: str, read: str) -> bool:
        cls = self._host.manager_class
        return cls is None or _have_one_table(cls, operation, read)


@lru_cache(maxsize=256)
def _have_one_table(cls: type, operation: str, read: str) -> bool:
    written, shown = tables_named(cls, operation), tables_named(cls, read)
    return not written or not shown or not written.isdisjoint(shown)
