"""Waiting writes: calls that have changed an answer kept for an outage since, or will when they are delivered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from ... import EntryStatus, Outbox
from ..code.class_code import remembered
from ..code.tables_named import tables_named
from ..manager.host import Host
from .history import entries_since

if TYPE_CHECKING:
    from ..operations import ManagerOperation

_KEPT = 256


class WaitingWrites:
    """The critical calls that wait, and the last one of each operation.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        calls: Mapping[str, ManagerOperation],
        seen: Callable[[str], Collection[str] | None] = lambda _: (),
        read: Callable[[str], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        """`calls`: the operations by name.  Calls of an earlier process are found in the store.

        `seen(operation)`: the tables that its calls were seen to write; None before it was looked.
        `read(name)`: the tables that a read was seen to use.
        """
        self._seen_to_write, self._seen_to_read = seen, read
        self._host, self._outbox = host, outbox
        self._operations = frozenset(name for name, operation in calls.items() if not operation.best_effort)
        self._roles = frozenset(name for name, operation in calls.items() if operation.has_role)
        self._seqs: dict[str, list[int]] = {}
        # How many are kept of each before those that do not wait any more are left out.
        self._most = dict.fromkeys(self._operations, _KEPT)
        # The last call of each operation among those from `_seen_from` on.
        self._last: dict[str, int] = {}
        self._seen_from = outbox.store.figures().counters.next_seq
        # The last entry among those that is missing.
        self._missing = 0
        # A look at earlier calls must not set a later one back.
        self._lock = threading.RLock()
        if self._operations:
            # A damaged one is the relay's to report.
            for record in outbox.store.records("pending", on_damage=lambda *_: None):
                if record.operation in self._operations:
                    self._seqs.setdefault(record.operation, []).append(record.seq)

    def note(self, operation: str, seq: int) -> None:
        """A call of an operation was recorded; calls come one after the other."""
        if operation not in self._operations:
            return
        with self._lock:
            self._last[operation] = seq
        seqs = self._seqs.setdefault(operation, [])
        if len(seqs) >= self._most[operation]:
            seqs = self._seqs[operation] = [one for one in seqs if self._outbox.store.is_pending(one)]
            # In a long outage all of them wait: then it is twice as long until they are looked at again.
            self._most[operation] = max(_KEPT, 2 * len(seqs))
        seqs.append(seq)

    def of(self, read: str, unrecorded: Iterable[tuple[str, str]] = ()) -> tuple[str, str] | None:
        """A waiting call, by operation and place, that may change what `read` answers; None for none.

        It may where both name a table in common, and, for an operation without a role, where the tables of one of them
        cannot be seen: calls with a role come all the time.  `unrecorded` are calls that wait elsewhere.
        """
        for operation, place in unrecorded:
            if operation in self._operations and self.may_change(operation, read):
                return operation, place
        for operation, seqs in tuple(self._seqs.items()):
            waiting = next((seq for seq in reversed(seqs) if self._outbox.store.is_pending(seq)), None)
            if waiting is not None and self.may_change(operation, read):
                return operation, f"entry {waiting}"
        return None

    def since(self, read: str, seq: int) -> tuple[str, int] | None:
        """A call after `seq`, delivered or not, that may have changed what `read` answers; None for none."""
        if seq + 1 < self._seen_from:
            for one in entries_since(self._outbox, seq):
                if isinstance(one, range):
                    self._missing = max(self._missing, one[-1])
                elif one.operation in self._operations and one.status is not EntryStatus.FAILED:
                    with self._lock:
                        self._last[one.operation] = max(one.seq, self._last.get(one.operation, 0))
            self._seen_from = seq + 1
        if self._missing > seq:
            return "an entry that is not in the store any more", self._missing
        later = ((operation, last) for operation, last in tuple(self._last.items()) if last > seq)
        return next((one for one in later if self.may_change(one[0], read)), None)

    def may_show(self, read: str, tables: Collection[str], method: str) -> bool:
        """Whether `read` may show what a method without a declaration has written, into `tables`."""
        cls = self._host.manager_class
        shown = frozenset() if cls is None else self._shown(cls, read)
        return self.may_change(method, read) if not shown or "" in tables else not shown.isdisjoint(tables)

    def show(self, reads: Iterable[str], tables: Collection[str], method: str) -> bool:
        """Whether one of these reads names one of the `tables`; where those are not known, one that `method` names."""
        cls = self._host.manager_class
        if cls is None:
            return False
        tables = _tables(cls, method) if "" in tables else tables
        return any(not self._shown(cls, read).isdisjoint(tables) for read in reads)

    def may_change(self, operation: str, read: str) -> bool:
        """Whether a call of the operation may change what `read` answers, by the tables that both name."""
        cls = self._host.manager_class
        if cls is None:
            return operation not in self._roles
        named, shown, seen = _tables(cls, operation), self._shown(cls, read), self._seen_to_write(operation)
        if seen is not None and not shown.isdisjoint(seen):
            return True
        if named and shown:
            return not named.isdisjoint(shown)
        # A call that was seen to write other tables may have another effect with other arguments.
        return operation not in self._roles or (seen is None and operation in self._operations)

    def _shown(self, cls: type, read: str) -> frozenset[str]:
        """The tables that a read shows: those that its code names, and those that it was seen to use."""
        return _tables(cls, read) | self._seen_to_read(read)


@remembered(256)
def _tables(cls: type, method: str) -> frozenset[str]:
    return tables_named(cls, method)
