"""Manager's code: what the view takes from it, of how calls decide and write, and how reads order, limit and round.

And what the view cannot take from it: whether the manager has no trading sessions, so that all rows belong to one
account, and what it will not answer after calls of an outage, as far as is known before the outage.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Mapping
from operator import is_
from typing import Any

from ..code.answers import applied_answer, plain_answer
from ..code.class_code import ClassCode, forget_conclusions
from ..code.code_version import code_version
from ..code.members import is_mock, names_set_by
from ..code.row_queries import row_query
from ..code.row_tests import row_tests
from ..code.tables_named import tables_named
from ..code.written_values import places_kept, respells
from ..manager.host import Host
from ..operations import ManagerOperation
from ..view import branches
from ..view.decisions import PresentCode
from ..view.kept_answers import ManagerRead
from ..view.learned import Learning
from ..view.local_view import NOT_SHOWN, LocalView
from ..view.reads import (
    ACTIVE_SESSION,
    BALANCE,
    LAST_BALANCE,
    LAST_SESSION,
    LOCAL_READS,
    READ_ORDERS,
    READ_POSITIONS,
    Reads,
)
from ..view.rows import ORDERS, POSITIONS, Row
from ..view.tables_used import TablesRead

_CURRENT = "_current_session_id"
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_sessionless(host: Host, calls: Iterable[ManagerOperation], reads: Reads) -> bool:
    """Whether nothing that is declared of a manager, and nothing in its class, has to do with trading sessions."""
    calls, cls = tuple(calls), host.manager_class
    if cls is None or hasattr(cls, _CURRENT) or _CURRENT in names_set_by(cls):
        return False
    if any(call.session is not None for call in calls) or host.has("set_current_session"):
        return False
    if any(host.has(reads.name(name)) for name in (ACTIVE_SESSION, LAST_SESSION)):
        return False
    answered = [read for name in LOCAL_READS if (read := reads.local(reads.name(name))) and host.has(read.name)]
    if not answered:
        return False
    declared: list[ManagerOperation | ManagerRead] = [*calls, *answered]
    for one in declared:
        takes = host.signature(one.name).parameters.values()
        if any(one.standard_name(argument.name) == "session_id" for argument in takes):
            return False
        if one in answered and any(argument.kind in _ANY for argument in takes):
            return False
    return True


NOTICE = "unanswerable"


def unanswerable(learning: Learning, calls: Mapping[str, ManagerOperation]) -> list[str]:
    """One clause for each reason why reads of balance, positions and orders may not be answered in an outage.

    `calls`: the operations by the names of their methods.  A method without a part in positions and orders is left out,
    but for its changes of the balance.
    """
    methods = sorted(name for name, one in calls.items() if one.position is not None or one.order is not None)
    values: dict[str, set[str]] = {}
    for kind, effect in learning.effects.items():
        if effect.count:
            values.setdefault(kind.partition("|")[0], set()).update(effect.unexplained())
    unexplained = [(name, sorted(values[name])) for name in methods if values.get(name)]
    otherwise = sorted({kind.partition("|")[0] for kind, one in learning.effects.items() if one.balance.is_strange})
    open_ = [name for name, one in calls.items() if one.as_seen and _is_open(learning.yields.get(name))]
    never = [name for name in methods if name not in values]
    return [
        *(f"{', '.join(names)} after {name} ({_why(calls[name], names)})" for name, names in unexplained),
        *([f"the balance after some calls of {', '.join(otherwise)} (not as declared)"] if otherwise else []),
        *([f"the answers of {', '.join(sorted(open_))} (cannot be explained)"] if open_ else []),
        *([f"rows after the first call of {', '.join(never)} (never seen)"] if never else []),
    ]


def not_understood(sessions: Mapping[Any, Row]) -> list[str]:
    """One clause for each table that PostgreSQL shows in a form that is not understood: no read of it is answered."""
    shown = (row.get("unshown", {}).items() for row in sessions.values() if row["active"])
    found = {table: why for one in shown for table, why in one if why != NOT_SHOWN}
    return [f"{table} at all ({why})" for table, why in sorted(found.items())]


def _is_open(known: Mapping[str, Any] | None) -> bool:
    """Whether the answers of a method, as they were seen, are not all explained."""
    if known is None:
        return False
    return (
        bool(known.get("varies"))
        or known.get("numbered") is False
        or any(space.strikes for space in known["keys"].values())
    )


def _why(operation: ManagerOperation, names: list[str]) -> str:
    is_id = operation.creates is None and any(name.startswith("id of ") for name in names)
    return "not known without creates=" if is_id else "cannot be explained"


class CodeWatch:
    """Looks whether the functions of a class are still those that it had.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cls: type | None = None
        self._members: list[Any] = []
        # With what else the class held at the last look: to compare all takes a tenth of picking the functions.
        self._held: list[Any] = []

    def has_changed(self, cls: type) -> bool:
        """Whether the class has other functions than at the last look; then all conclusions are forgotten.

        What a test has mocked is no code of the manager's.
        """
        held = _all_of(cls)
        if self._cls is cls and _are_same(self._held, held):
            return False
        # What is no function may change at each call.
        members = [one for one in held if hasattr(type(one), "__get__")]
        if self._cls is cls and _are_same(self._members, members):
            self._held = held
            return False
        with self._lock:
            if (self._cls is cls and _are_same(self._members, members)) or any(map(is_mock, held)):
                return False
            is_first = self._cls is not cls
            self._cls, self._members, self._held = cls, members, held
        if is_first:
            return False
        forget_conclusions()
        return True


def _are_same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))


def _all_of(cls: type) -> list[Any]:
    # Another thread may set one meanwhile.
    found: list[Any] = []
    for base in cls.__mro__[:-1]:
        found += vars(base).copy().values()
    return found


class ManagersCode:
    """Reads it for one view; thread-safe."""

    def __init__(
        self,
        host: Host,
        view: LocalView,
        calls: Mapping[str, ManagerOperation],
        reads: Reads,
        tables_read: TablesRead,
    ) -> None:
        self._host, self._view, self._calls, self._reads, self._tables_read = host, view, calls, reads, tables_read
        self._watch = CodeWatch()

    def has_changed(self) -> bool:
        """Whether the host has replaced functions of the manager's class; then the present ones are taken in."""
        cls = self._host.manager_class
        if cls is None or not self._watch.has_changed(cls):
            return False
        self.take_in(cls)
        return True

    def take_in(self, cls: type) -> None:
        """Let the view go by the code of the class."""
        self._watch.has_changed(cls)
        found = {call.name: tuple(branches.of(call, cls).decisions.values()) for call in self._calls.values()}
        made, class_code = [call for call in self._calls.values() if call.creates], ClassCode(cls)
        plain = {call.name: plain_answer(class_code, call.name, call.id_column.column) for call in made}
        by_code = [name for name, call in self._calls.items() if call.is_told_by_code]
        applied = {name: one for name in by_code if (one := applied_answer(class_code, name)) is not None}
        names = {read: local.standard for read in self._reads.names if (local := self._reads.local(read)) is not None}
        names |= {name: name for name, call in self._calls.items() if call.has_role}
        code = {name: code_version(cls, own) for own, name in names.items() if callable(getattr(cls, own, None))}
        respelling = frozenset(name for name, call in self._calls.items() if call.has_role and respells(cls, name))
        with self._view.lock:
            self._view.learning.decide_by(found)
            self.suspect(cls)
            self._read_code(cls)
            self._view.learning.present = PresentCode(code, plain, applied, respelling)

    def _read_code(self, cls: type) -> None:
        """Take in the order and the number of rows for which the code of a read asks, and what code rounds."""
        names = {table: self._reads.name(read) for table, read in ((POSITIONS, READ_POSITIONS), (ORDERS, READ_ORDERS))}
        own_names = {table: own for table, own in names.items() if callable(getattr(cls, own, None))}
        found = {table: row_query(cls, own, self._host.attributes()) for table, own in own_names.items()}
        learning = self._view.learning
        learning.row_orders.named = {table: one.order for table, one in found.items() if one.order is not None}
        reads = {self._reads.name(one): one for one in (BALANCE, LAST_BALANCE, READ_POSITIONS, READ_ORDERS)}
        named = reads | {call.name: call.name for call in self._calls.values() if call.has_role}
        kept = {name: places_kept(cls, own) for own, name in named.items() if callable(getattr(cls, own, None))}
        learning.roundings.methods = {name: places for name, places in kept.items() if places is not None}
        learning.forms.most = {table: one.most for table, one in found.items() if one.most is not None}
        learning.forms.shown_rows.tests = {table: row_tests(cls, own) for table, own in own_names.items()}
        learning.forms.limited = frozenset(table for table, one in found.items() if one.is_limited)

    def suspect(self, cls: type) -> None:
        """Follow operations without a role whose code shows a table that a local read shows too, or no table at all."""
        written = self._view.learning.written
        reads = [self._reads.name(read) for read in (BALANCE, READ_POSITIONS, READ_ORDERS)]
        shown = [
            tables_named(cls, read) | self._tables_read.of(read) for read in reads if callable(getattr(cls, read, None))
        ]
        known = frozenset[str]().union(*shown)
        silent = [one.name for one in self._calls.values() if not one.has_role and not one.best_effort]
        named = {name: tables_named(cls, name) for name in silent if shown}
        written.shown = known
        written.matters = bool(silent) or any(one.keep_last for one in self._reads.declared.values())
        written.suspects = frozenset(
            name for name, tables in named.items() if not (tables and all(shown) and tables.isdisjoint(known))
        )
