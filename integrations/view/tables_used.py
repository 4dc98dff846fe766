"""Tables used: which tables each read was seen to use, and which the calls of each operation write.

The code of a read does not name all of them: a view, a function, a table of a reflected schema, or SQL that is put
together stands for them.  Functions, procedures and triggers of PostgreSQL write tables that no code of the manager
names.

And how many rows with a reserved id they write beside the one whose id they return.  The ids of these are taken at the
call, so that the ids of a table are in the order of the calls, also where deliveries come later.  A method may write as
many rows as an argument has items; else the fewest that were seen are expected, since an id that is taken in vain is
lost to an outage.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ... import Outbox, OutboxError
from ...log import Log

if TYPE_CHECKING:
    from ..operations import ManagerOperation

_log = Log("outbox.integrations")

_META = "tables-read"


class TablesRead:
    """What is known of one manager's reads.  Thread-safe."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox, self._lock = outbox, threading.Lock()
        stored = outbox.store.get_meta(_META)
        self._tables: dict[str, frozenset[str]] = (
            {} if stored is None else {read: frozenset(tables) for read, tables in json.loads(stored).items()}
        )

    def of(self, read: str) -> frozenset[str]:
        """The tables that a read was seen to use, without their schemas."""
        return self._tables.get(read, frozenset())

    def note(self, read: str, tables: Collection[str]) -> bool:
        """Take in which tables a read has used; whether that is news.  On disk when it returns."""
        if self.of(read).issuperset(tables):
            return False
        with self._lock:
            self._tables[read] = self.of(read).union(tables)
            data = json.dumps({name: sorted(known) for name, known in self._tables.items()})
            try:
                self._outbox.store.put_meta(_META, data.encode())
            except OutboxError as exc:
                _log.warning("the tables that %(read)s uses could not be kept: %(error)s", read=read, error=exc)
        return True


_LOOKS = 3
# More are left to the delivery: a bulk must not use up the ids of an outage.
MOST = 256


class Written:
    """What is known of one manager.  Not thread-safe: the view's lock is held."""

    def __init__(self) -> None:
        # Tables that local reads show, and operations whose code may write them; of the code, and not stored.
        self.shown: frozenset[str] = frozenset()
        self.suspects: Collection[str] = frozenset()
        # Whether it matters what calls write.
        self.matters = False
        # operation -> the tables that its calls were seen to write, and how often it was looked.
        self.tables: dict[str, list[str]] = {}
        self.looks: dict[str, int] = {}
        self.side_rows = SideRows()

    def follows(self, operation: ManagerOperation) -> bool:
        """Whether calls without a role may change what a local read shows."""
        return operation.name in self.suspects or not self.shown.isdisjoint(self.of(operation.name))

    def of(self, name: str) -> Collection[str]:
        """The tables that calls of an operation were seen to write."""
        return self.tables.get(name, ())

    def seen(self, name: str) -> Collection[str] | None:
        """The tables that calls of an operation were seen to write; None where it was not looked yet, and will be."""
        return None if self.matters and name not in self.looks else self.of(name)

    def wants(self, operation: ManagerOperation) -> bool:
        """Whether it should be looked which tables such a call writes."""
        return self.matters and not operation.best_effort and self.looks.get(operation.name, 0) < _LOOKS

    def learn(self, name: str, tables: Collection[str]) -> None:
        """Take in which tables a call has written."""
        self.looks[name] = self.looks.get(name, 0) + 1
        self.tables[name] = sorted({*tables, *self.of(name)})

    def dump(self) -> dict[str, Any]:
        """What was seen, to be stored."""
        return {name: [self.looks[name], *tables] for name, tables in self.tables.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.looks = {name: seen[0] for name, seen in state.items()}
        self.tables = {name: seen[1:] for name, seen in state.items()}


class SideRows:
    """By operation and "table.column": the fewest rows, and the arguments that had as many items each time."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state`: what `dump` gave."""
        self._seen: dict[str, dict[str, tuple[int, list[str]]]] = {
            name: {column: (fewest, list(names)) for column, (fewest, names) in one.items()}
            for name, one in (state or {}).items()
        }
        # By operation: the rows of all its effects; None where these differ.
        self._of_all: dict[str, Mapping[str, int] | None] = {}

    def learn(self, name: str, call: Mapping[str, Any], taken: Mapping[str, int]) -> bool:
        """Take in how many ids a call took; whether that is new."""
        known = self._seen.get(name, {})
        if not (known or taken):
            return False
        now: dict[str, tuple[int, list[str]]] = {}
        for column in {*known, *taken}:
            count = taken.get(column, 0)
            fewest, names = known.get(column, (count, list(call)))
            now[column] = (min(fewest, count), [one for one in names if _size(call.get(one)) == count])
        if now == known:
            return False
        self._seen[name] = now
        return True

    def knows(self, name: str) -> bool:
        """Whether calls of an operation were seen to take ids."""
        return name in self._seen or self.of_all(name) != {}

    def agree(self, name: str, sides: Sequence[Mapping[str, int]]) -> None:
        """Take over what each effect of an operation has."""
        self._of_all[name] = sides[0] if all(one == sides[0] for one in sides) else None

    def of_all(self, name: str) -> Mapping[str, int] | None:
        """How many rows any call of an operation was seen to write; None where that depends on the call."""
        return self._of_all.get(name, {})

    def by_size(self, name: str, call: Mapping[str, Any]) -> dict[str, int]:
        """How many rows a call writes by the size of an argument, where that explains what was seen."""
        known = self._seen.get(name, {})
        return {column: _size(call.get(names[0])) or 0 for column, (_, names) in known.items() if names}

    def fewest(self, name: str) -> dict[str, int]:
        """How many rows each call wrote at least."""
        return {column: fewest for column, (fewest, _) in self._seen.get(name, {}).items()}

    def dump(self) -> dict[str, Any]:
        """The state, to be stored."""
        return {name: {column: list(one) for column, one in known.items()} for name, known in self._seen.items()}


def _size(value: Any) -> int | None:
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else None
