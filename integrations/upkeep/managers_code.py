"""Manager's code: what the view takes from it, of how calls decide and write, and how reads order, limit and round."""

from __future__ import annotations

from collections.abc import Mapping

from ..code.answers import applied_answer, plain_answer
from ..code.class_code import ClassCode, CodeWatch
from ..code.code_version import code_version
from ..code.row_queries import row_query
from ..code.row_tests import row_tests
from ..code.tables_named import tables_named
from ..code.written_values import places_kept, respells
from ..manager.host import Host
from ..operations import ManagerOperation
from ..view import branches
from ..view.decisions import PresentCode
from ..view.local_view import LocalView
from ..view.reads import BALANCE, LAST_BALANCE, READ_ORDERS, READ_POSITIONS, Reads
from ..view.rows import ORDERS, POSITIONS
from ..view.tables_read import TablesRead


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
