"""Lane: applies units on one connection, receipts and effects in one transaction.

It promises that an entry's effect and its receipt commit together, so that a lost COMMIT reply is settled by the
receipt at the next try; that a group is never split; and that every failure is attributed to the line or to one unit,
never dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar
from uuid import UUID

import psycopg2.errors
import psycopg2.extensions
from sqlalchemy import Connection

from .. import codec
from ..clock import Clock
from ..errors import EntryRejected, TargetMisconfigured, TargetUnavailable, Unrestorable
from ..fate import OperationFault, of_unit
from ..operation import Operation
from ..results import encode_result
from ..store.continuity import Mark, Memory, NoMemory
from ..store.envelope import Record
from ..target import Outcome, Unit, free_of, is_best_effort, ordering_keys, split
from ..words import counted, entries
from . import watermarks
from .alterations import Alterations
from .blame import Blame, Taken
from .connection import DRIVER_ERRORS, GuardedConnection, UnitFailed
from .handler_call import broken, call_handler, ended, slowest, unrestorable
from .receipts import find, keep_results, kept_out, record
from .rows import RowWriter
from .transaction_settings import Cursor

T = TypeVar("T")

# A commit runs the query of such a cursor, which then fails with these words.
_REFUSE_COMMIT = """
DECLARE outbox_guard NO SCROLL CURSOR WITH HOLD FOR
    SELECT ('a handler must not end the relay''s transaction' || random())::int"""
_ALLOW_COMMIT = "CLOSE outbox_guard"

# So many units of an operation may fail alone while none works.
_ENOUGH = 16
_INSIDE = psycopg2.extensions.TRANSACTION_STATUS_INTRANS


@dataclass(slots=True)
class _Course:
    """How far the units of one batch are applied."""

    # Parts that are still to be tried, the next one last.
    todo: list[list[Unit]]
    outcome: Outcome = field(default_factory=Outcome)
    # Ordering keys behind what was refused, or behind what has to wait for that.
    blocked: set[str] = field(default_factory=set)
    # How many units of an operation failed alone, and which operations work.
    failed: Counter[str] = field(default_factory=Counter)
    works: set[str] = field(default_factory=set)
    # Numbers of sequences that are in use already, by the first entry of the unit that got them.
    taken: dict[int, Taken] = field(default_factory=dict)

    @property
    def given_up(self) -> set[str]:
        """Operations whose entries fail one after the other: the rest is not tried."""
        return {name for name, units in self.failed.items() if units >= _ENOUGH and name not in self.works}


class Lane:
    """One of the connections that deliver side by side.  Used by one thread at a time (`interrupt` excepted)."""

    def __init__(
        self,
        number: int,
        link: GuardedConnection,
        operations: Mapping[str, Operation],
        clock: Clock,
        alterations: Alterations,
    ) -> None:
        self._number, self._link, self._clock, self._alterations = number, link, clock, alterations
        self.operations = operations
        self._memory: Memory = NoMemory()
        # The place in PostgreSQL's history of the connection that it belongs to.
        self._session: watermarks.RelaySession | None = None
        self._session_on: Connection | None = None
        # The newest entry when that connection was made.
        self._connected_seq = 0
        # When the handlers of one transaction began, by their units' places; None: something else began.
        self._begun: list[tuple[int | None, float]] = []
        self._rows = RowWriter(link.owe_beginning)
        self._shapes: dict[bytes, tuple[str, ...]] = {}
        self._blame = Blame(link, operations, alterations)

    def apply(self, store_id: UUID, part: list[Unit]) -> Outcome:
        """Apply units in order.  A refused entry is isolated by splitting its batch, in order."""
        course = _Course([part])
        while course.todo and course.outcome.interruption is None:
            self._apply_part(store_id, course, course.todo.pop())
        return course.outcome

    def _apply_part(self, store_id: UUID, course: _Course, part: list[Unit]) -> None:
        outcome = course.outcome
        free, behind = list(range(len(part))), course.blocked
        if course.blocked or course.failed:
            free, behind = free_of(part, course.blocked, course.given_up, self.operations)
        tried = [part[index] for index in free]
        try:
            done = self._transact(store_id, tried) if tried else []
        except (TargetUnavailable, TargetMisconfigured) as exc:
            outcome.interruption = exc
            if isinstance(exc, TargetUnavailable) and (late := self._late(exc, alone=len(tried) == 1)) is not None:
                outcome.stalled = tried[late]
        except UnitFailed as exc:
            if len(tried) == 1:
                self._failed_alone(course, part, tried[0], exc, behind)
                return
            if exc.suspect:
                self._link.disconnect()
            course.todo += reversed(split(part, free, exc.position))
        else:
            outcome.completed += done
            course.works |= {item.operation for item, _ in done}
            course.blocked = behind
            if done:
                outcome.marks = [mark] if (mark := self.mark) is not None else []

    def _failed_alone(self, course: _Course, part: list[Unit], unit: Unit, exc: UnitFailed, behind: set[str]) -> None:
        """Find out why, and what waits for it; `part` has only this unit that need not wait."""
        number = self._blame.number_of(exc)
        if exc.suspect:
            self._link.disconnect()
        if number is not None and unit[0].seq not in course.taken:
            # The next try gets another one, unless it is the entry that brings it.
            course.taken[unit[0].seq] = number
            course.todo.append(part)
            return
        error, operation = self._blame.of(unit, exc, None if number == course.taken.get(unit[0].seq) else number)
        failed = of_unit(unit, error, operation)
        holds = failed.holds_back and not is_best_effort(unit, self.operations)
        course.blocked = behind | ordering_keys(unit) if holds else behind
        course.outcome.failed.append(failed)
        if failed.fate.waits and operation is not None:
            course.failed[operation] += 1

    def _late(self, exc: TargetUnavailable, *, alone: bool) -> int | None:
        """The place of the unit that took the time, or failed as a stall `alone`; None where none is known."""
        if not (exc.stalled or exc.too_much) or (alone and self._link.silent):
            return None
        if alone and exc.stalled:
            return 0
        return slowest(self._begun, self._clock.monotonic(), self._link.stall_timeout_s)

    @property
    def mark(self) -> Mark | None:
        """The newest transaction that was acknowledged on its connection, or on the last one that it had."""
        return self._session.mark if self._session is not None else None

    def follow(self, memory: Memory) -> None:
        """See `Forgetful.follow`."""
        self._memory = memory

    def compare(self, store_id: UUID) -> watermarks.PostgresComparison:
        """See `Forgetful.compare`.  It ends with the connection, and `apply` goes on with the same one."""
        with self._link.translated():
            connection, session = self._connected(store_id)
        return watermarks.PostgresComparison(
            session,
            lambda question: self._ask(connection, question),
            failover=self._link.several_hosts,
            places=self._link.places,
        )

    def accepting(self) -> frozenset[str]:
        """See `Reachable.accepting`."""
        return self._link.accepting()

    def interrupt(self) -> None:
        """Make a running `apply` fail soon; from any thread."""
        self._link.interrupt()

    def disconnect(self) -> None:
        """Connect anew at the next use, and look again at what PostgreSQL has."""
        self._link.disconnect()
        self._session = self._session_on = None

    def close(self) -> None:
        self.disconnect()
        self._link.close()

    def _connected(self, store_id: UUID) -> tuple[Connection, watermarks.RelaySession]:
        connection = self._link.get()
        if self._session is None or self._session_on is not connection:
            if not self._link.has_tables and not self._memory.marks():
                self._link.make_tables()
            self._session = watermarks.RelaySession(self._memory, store_id, self._clock.new_id, lane=self._number)
            self._session_on, self._connected_seq = connection, self._memory.last_seq()
        return connection, self._session

    def _ask(self, connection: Connection, question: Callable[[Cursor], T]) -> T:
        """Run `question` in a transaction of its own on a connection that must still be the one in use."""
        try:
            with self._link.translated():
                if connection is not self._link.current:
                    raise TargetUnavailable("the connection was lost while the ledger was compared")
                with self._link.guard(), self._link.own_statements(), connection.begin():
                    return question(self._link.opening_cursor(connection))
        except UnitFailed as exc:
            raise TargetUnavailable(str(exc)) from exc

    # -- one transaction

    def _transact(self, store_id: UUID, part: list[Unit]) -> list[tuple[Record, bytes]]:
        """Apply units in one transaction.  Raises `TargetUnavailable`, `TargetMisconfigured` or `UnitFailed`."""
        self._begun.clear()
        records = [item for unit in part for item in unit]
        position = {item.seq: index for index, unit in enumerate(part) for item in unit}
        for item in records:
            if item.operation not in self.operations:
                fault = OperationFault(
                    f"entry {item.seq} is of operation {item.operation!r}, which is not declared here",
                    hint=f"declared: {', '.join(self.operations) or 'none'}",
                )
                raise UnitFailed(fault, position[item.seq], item.operation)
        with self._link.translated(committing=True):
            connection, session = self._connected(store_id)
            with self._link.guard(), connection.begin() as transaction:
                try:
                    cursor = self._link.opening_cursor(connection)
                    if session.mark is None:
                        self._alterations.connected(cursor, store_id, self._connected_seq)
                    session.enter(cursor)
                except DRIVER_ERRORS as exc:
                    raise self._link.own_failure(exc) from exc
                if cursor.connection.info.transaction_status != _INSIDE:
                    raise TargetMisconfigured(
                        "PostgreSQL has not begun the relay's transaction",
                        hint="a connection pooler must keep a transaction on one server",
                    )
                self._rows.forget()
                results: dict[int, bytes] = {}
                runs, guarded = self._runs(part)
                for run in runs:
                    results |= self._apply_run(connection, transaction, cursor, str(store_id), run, position, guarded)
                if self._rows.ran_code:
                    # A trigger may have turned off what makes the commit durable.
                    with self._link.own_statements():
                        cursor.connection.send_owed()
            session.committed(records[-1])
        return [(item, results.get(item.seq, b"")) for item in records]

    def _runs(self, part: list[Unit]) -> tuple[list[list[Record]], bool]:
        """What gets its receipts in one statement, and whether a commit by a handler must fail.

        A handler that commits behind our back must not commit receipts of entries whose effect has not run.  In a batch
        its commit fails, and its unit is tried again alone: there each entry with a handler has a statement of its own.
        """
        records = [item for unit in part for item in unit]
        if all(self._is_row(item) for item in records):
            return [records], False
        if len(part) > 1:
            return [records], True
        runs: list[list[Record]] = []
        for is_row, run in groupby(records, key=self._is_row):
            found = list(run)
            runs += [found] if is_row else [[item] for item in found]
        return runs, False

    def _is_row(self, item: Record) -> bool:
        return self.operations[item.operation].handler is None

    def _apply_run(
        self,
        connection: Connection,
        transaction: Any,
        cursor: Cursor,
        store_id: str,
        run: list[Record],
        position: dict[int, int],
        guarded: bool,
    ) -> dict[int, bytes]:
        """Write receipts and effects.  Returns what the handlers returned, now or at an earlier try, by seq."""
        raw = cursor.connection
        try:
            if guarded:
                raw.owe(_REFUSE_COMMIT)
                raw.keeps_cursors = True
            fresh = record(cursor, store_id, run)
            repeated = [item for item in run if item.seq not in fresh]
            known = find(cursor, repeated) if repeated else {}
        except DRIVER_ERRORS as exc:
            raise self._link.own_failure(exc) from exc
        for item in repeated:
            if item.key not in known:
                raise kept_out(f"the receipt of entry {item.seq} was neither written nor found")
            if known[item.key][0] != item.payload_hash:
                message = f"a receipt for key {item.key.hex()} exists with other arguments"
                raise UnitFailed(EntryRejected(message, permanent=True), position[item.seq])
        results = self._effects(connection, transaction, cursor, [item for item in run if item.seq in fresh], position)
        if not all(self._is_row(item) for item in run):
            self._leave_handlers(cursor, raw, run, results, position, guarded)
        return results | {item.seq: known[item.key][1] for item in repeated if item.key in known}

    def _leave_handlers(
        self,
        cursor: Cursor,
        raw: Any,
        run: list[Record],
        results: Mapping[int, bytes],
        position: dict[int, int],
        guarded: bool,
    ) -> None:
        """Undo what handlers have set, and keep what they returned.

        A handler alone is not guarded: where it has rolled back and begun anew, the receipt is gone.
        """
        last = run[-1]
        at = position[last.seq] if len(set(position.values())) == 1 else None
        operation = self.operations[last.operation]
        try:
            with self._link.own_statements(), self._link.behind_handlers():
                if guarded:
                    raw.owe(_ALLOW_COMMIT)
                kept = [(item, results[item.seq]) for item in run if item.seq in results]
                if not (keep_results(cursor, kept) if kept else guarded or find(cursor, run)):
                    if kept and find(cursor, run):
                        raise kept_out(f"the result of entry {kept[0][0].seq} was not kept in its receipt")
                    raise broken(operation, ended(operation, "its receipt is gone"), at)
                raw.send_owed()
                raw.keeps_cursors = False
        except TargetMisconfigured as exc:
            if isinstance(exc.__cause__, (psycopg2.errors.ActiveSqlTransaction, psycopg2.errors.InvalidCursorName)):
                raise broken(operation, exc, at) from exc
            raise

    def _effects(
        self, connection: Connection, transaction: Any, cursor: Cursor, fresh: list[Record], position: dict[int, int]
    ) -> dict[int, bytes]:
        """Run the effects in order, table rows in runs.  Returns what handlers returned, encoded, by seq."""
        results: dict[int, bytes] = {}
        for (name, shape), run in groupby(fresh, key=lambda item: (item.operation, item.shape)):
            operation = self.operations[name]
            if operation.handler is None:
                self._insert(cursor, operation, shape, list(run), position)
                continue
            for item in run:
                self._begun.append((position[item.seq], self._clock.monotonic()))
                value = call_handler(self._link, connection, transaction, operation, item, position[item.seq])
                if value is not None:
                    results[item.seq] = encode_result(value)
            self._begun.append((None, self._clock.monotonic()))
        return results

    def _insert(
        self, cursor: Cursor, operation: Operation, shape: bytes, run: list[Record], position: dict[int, int]
    ) -> None:
        table = operation.table_name
        assert table is not None
        names = self._shapes.get(shape)
        if names is None:
            names = self._shapes[shape] = codec.field_names(run[0].args)
        only = position[run[0].seq] if len(run) == 1 else None
        try:
            lenient, json_columns = operation.may_vanish or operation.best_effort, operation.json_columns
            written = self._rows.insert(cursor, operation.table_path, names, run, json_columns, may_vanish=lenient)
        except psycopg2.errors.NotNullViolation as exc:
            column, of = exc.diag.column_name, exc.diag.table_name
            if of == operation.table_path[-1] and column not in names:
                fault = OperationFault(
                    f"column {column!r} of table {table!r} must not be null, and the entries do not have it",
                    hint="give it a default; the entries wait",
                )
                raise UnitFailed(fault, only, operation.name) from exc
            raise self._link.verdict(exc, only, operation.name) from exc
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName) as exc:
            if exc.diag.context is not None:  # in a trigger or a function
                raise self._link.verdict(exc, only, operation.name) from exc
            fault = OperationFault(f"table {table!r} does not exist", hint="create it; the entries wait")
            raise UnitFailed(fault, only, operation.name) from exc
        except psycopg2.Error as exc:
            raise self._link.verdict(exc, only, operation.name) from exc
        except OperationFault as exc:
            raise UnitFailed(exc, only, operation.name) from exc
        except Unrestorable as exc:
            raise UnitFailed(unrestorable(run[0], exc), only, operation.name) from exc
        if written < len(run) and not operation.may_vanish:
            fault = OperationFault(
                f"table {table!r} took {counted(written, 'row', 'rows')} of {entries(len(run))}: a trigger or a rule "
                "keeps rows out",
                hint="correct it, or declare the operation with may_vanish=True; the entries wait",
            )
            raise UnitFailed(fault, only, operation.name)
