"""Lane: applies units on one connection, receipts and effects in one transaction.

It promises that an entry's effect and its receipt commit together, so that a lost COMMIT reply is settled by the
receipt at the next try; that a group is never split; and that every failure is attributed to the line or to one unit,
never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar
from uuid import UUID

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from sqlalchemy import Connection

from . import codec, watermarks
from .clock import Clock
from .connection import GuardedConnection, UnitFailed, cursor_of, raw_of, usable
from .continuity import Mark, Memory, NoMemory
from .entry import EntryStatus
from .envelope import Record
from .errors import ConfigError, EntryRejected, TargetMisconfigured, TargetUnavailable
from .operation import Operation
from .receipts import Cursor, RowWriter, find, keep_results, record
from .target import Outcome, Unit, ordering_keys

T = TypeVar("T")

_BROKEN = psycopg2.extensions.TRANSACTION_STATUS_INERROR
_INSIDE = psycopg2.extensions.TRANSACTION_STATUS_INTRANS


class Lane:
    """One of the connections that deliver side by side.  Used by one thread at a time (`interrupt` excepted)."""

    def __init__(self, number: int, link: GuardedConnection, operations: Mapping[str, Operation], clock: Clock) -> None:
        self._number, self._link, self._clock = number, link, clock
        self.operations = operations
        self._memory: Memory = NoMemory()
        # The place in PostgreSQL's history of the connection that it belongs to.
        self._session: watermarks.Session | None = None
        self._session_on: Connection | None = None
        self._rows = RowWriter()
        self._shapes: dict[bytes, tuple[str, ...]] = {}

    def apply(self, store_id: UUID, part: list[Unit]) -> Outcome:
        """Apply units in order.  A refused entry is isolated by splitting its batch, in order."""
        outcome = Outcome()
        # Ordering keys behind what was refused, or behind what has to wait for that.
        blocked: set[str] = set()
        todo: list[list[Unit]] = [part]
        while todo:
            part = todo.pop()
            free, behind = _free_of(part, blocked)
            if not free:
                blocked = behind
                continue
            tried = [part[index] for index in free]
            try:
                outcome.completed += self._transact(store_id, tried)
                blocked = behind
                outcome.marks = [mark] if (mark := self.mark) is not None else []
            except (TargetUnavailable, TargetMisconfigured) as exc:
                outcome.interruption = exc
                if isinstance(exc, TargetUnavailable) and exc.stalled and len(free) == 1 and not self._silent():
                    outcome.stalled = tried[0]
                break
            except UnitFailed as exc:
                if len(free) == 1:
                    outcome.rejected += [(item, exc.error) for item in tried[0]]
                    lenient = all(self.operations[item.operation].best_effort for item in tried[0])
                    blocked = behind if lenient else behind | ordering_keys(tried[0])
                else:
                    todo += reversed(_split(part, free, exc.position))
        return outcome

    @property
    def mark(self) -> Mark | None:
        """The newest transaction that was acknowledged on its connection, or on the last one that it had."""
        return self._session.mark if self._session is not None else None

    def follow(self, memory: Memory) -> None:
        """See `Forgetful.follow`."""
        self._memory = memory

    def compare(self, store_id: UUID) -> watermarks.Comparison:
        """See `Forgetful.compare`.  It ends with the connection, and `apply` goes on with the same one."""
        with self._link.translated():
            connection, session = self._connected(store_id)
        return watermarks.Comparison(
            session, lambda question: self._ask(connection, question), failover=self._link.several_hosts
        )

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

    def _connected(self, store_id: UUID) -> tuple[Connection, watermarks.Session]:
        connection = self._link.get()
        if self._session is None or self._session_on is not connection:
            self._session = watermarks.Session(self._memory, store_id, self._clock.new_id, lane=self._number)
            self._session_on = connection
        return connection, self._session

    def _silent(self) -> bool:
        """Whether the server said nothing any more, so that it is no entry's fault."""
        return self._link.silent

    def _ask(self, connection: Connection, question: Callable[[Cursor], T]) -> T:
        """Run `question` in a transaction of its own on a connection that must still be the one in use."""
        try:
            with self._link.translated():
                if connection is not self._link.current:
                    raise TargetUnavailable("the connection was lost while the ledger was compared")
                with self._link.guard(), connection.begin():
                    return question(cursor_of(connection))
        except UnitFailed as exc:
            raise TargetUnavailable(str(exc)) from exc

    # -- one transaction

    def _transact(self, store_id: UUID, part: list[Unit]) -> list[tuple[Record, bytes]]:
        """Apply units in one transaction.  Raises `TargetUnavailable`, `TargetMisconfigured` or `UnitFailed`."""
        records = [item for unit in part for item in unit]
        for item in records:
            if item.operation not in self.operations:
                raise TargetMisconfigured(
                    f"entry {item.seq} is of operation {item.operation!r}, which is not declared here",
                    hint=f"declared: {', '.join(self.operations) or 'none'}",
                )
        position = {item.seq: index for index, unit in enumerate(part) for item in unit}
        with self._link.translated():
            connection, session = self._connected(store_id)
            with self._link.guard(), connection.begin() as transaction:
                session.enter(cursor_of(connection))
                self._rows.forget()
                results: dict[int, bytes] = {}
                for run in self._runs(records):
                    results |= self._apply_run(connection, transaction, str(store_id), run, position)
            session.committed()
        return [(item, results.get(item.seq, b"")) for item in records]

    def _runs(self, records: list[Record]) -> Iterator[list[Record]]:
        """What gets its receipts in one statement: all rows, but each entry with a handler on its own.

        A handler that commits behind our back must not commit receipts of entries whose effect has not run.
        """
        if all(self.operations[item.operation].handler is None for item in records):
            yield records
            return
        for is_row, run in groupby(records, key=lambda item: self.operations[item.operation].handler is None):
            if is_row:
                yield list(run)
            else:
                yield from ([item] for item in run)

    def _apply_run(
        self, connection: Connection, transaction: Any, store_id: str, run: list[Record], position: dict[int, int]
    ) -> dict[int, bytes]:
        """Write receipts and effects.  Returns what the handlers returned, now or at an earlier try, by seq."""
        cursor = cursor_of(connection)
        fresh = record(cursor, store_id, run)
        repeated = [item for item in run if item.seq not in fresh]
        known = find(cursor, repeated) if repeated else {}
        for item in repeated:
            if item.key not in known:
                raise TargetMisconfigured(
                    f"the receipt of entry {item.seq} was neither written nor found",
                    hint="a trigger, a rule or a policy on outbox_receipts keeps receipts out; take it away",
                )
            if known[item.key][0] != item.payload_hash:
                message = f"a receipt for key {item.key.hex()} exists with other arguments"
                raise UnitFailed(EntryRejected(message, permanent=True), position[item.seq])
        results = self._effects(connection, transaction, [item for item in run if item.seq in fresh], position)
        keep_results(cursor, [(item, results[item.seq]) for item in run if item.seq in results])
        return results | {item.seq: known[item.key][1] for item in repeated if item.key in known}

    def _effects(
        self, connection: Connection, transaction: Any, fresh: list[Record], position: dict[int, int]
    ) -> dict[int, bytes]:
        """Run the effects in order, table rows in runs.  Returns what handlers returned, encoded, by seq."""
        results: dict[int, bytes] = {}
        for (name, shape), run in groupby(fresh, key=lambda item: (item.operation, item.shape)):
            operation = self.operations[name]
            table = operation.table_name
            if table is not None:
                self._insert(connection, table, shape, list(run), position)
                continue
            for item in run:
                value = self._handle(connection, transaction, operation, item, position[item.seq])
                if value is not None:
                    results[item.seq] = codec.encode_result(value)
        return results

    def _insert(
        self, connection: Connection, table: str, shape: bytes, run: list[Record], position: dict[int, int]
    ) -> None:
        names = self._shapes.get(shape)
        if names is None:
            names = self._shapes[shape] = codec.field_names(run[0].args)
        try:
            self._rows.insert(cursor_of(connection), table, names, shape, run)
        except psycopg2.errors.NotNullViolation as exc:
            column, of = exc.diag.column_name, exc.diag.table_name
            if of == table.rpartition(".")[2] and column not in names:
                raise TargetMisconfigured(
                    f"column {column!r} of table {table!r} must not be null, and the entries do not have it",
                    hint="give it a default; the entries wait",
                ) from exc
            raise self._link.verdict(exc, position[run[0].seq] if len(run) == 1 else None) from exc
        except psycopg2.Error as exc:
            raise self._link.verdict(exc, position[run[0].seq] if len(run) == 1 else None) from exc

    def _handle(
        self, connection: Connection, transaction: Any, operation: Operation, item: Record, position: int
    ) -> Any:
        assert operation.handler is not None
        try:
            entry = replace(item.entry(), status=EntryStatus.SYNCING)
        except ConfigError as exc:
            raise TargetMisconfigured(f"entry {item.seq} cannot be decoded: {exc}") from exc
        ended = TargetMisconfigured(
            f"the handler of {operation.name!r} ended the relay's transaction", hint="it must not commit or roll back"
        )
        try:
            with self._link.commits_refused(ended):
                value = operation.handler(connection, entry)
        except (TargetUnavailable, TargetMisconfigured):
            raise
        except Exception as exc:
            if usable(connection) and not transaction.is_active:
                raise ended from exc
            raise self._link.verdict(exc, position) from exc
        if not usable(connection):
            raise TargetUnavailable(f"the connection was lost while {operation.name!r} was applied")
        if not transaction.is_active or connection.get_transaction() is not transaction:
            raise ended
        status = raw_of(connection).info.transaction_status
        if status not in (_BROKEN, _INSIDE):
            raise ended
        if status == _BROKEN:
            message = f"the handler of {operation.name!r} swallowed a database error"
            raise UnitFailed(EntryRejected(message, permanent=False), position)
        # What it has set must reach neither our commit nor the next entry.
        self._link.restore_settings(cursor_of(connection))
        return value


def _free_of(part: list[Unit], blocked: set[str]) -> tuple[list[int], set[str]]:
    """Where in `part` are units that are not behind a refused one, and what is blocked for what comes after `part`.

    A unit that has to wait blocks its other keys too, but only for what comes behind it.
    """
    free, behind = [], set(blocked)
    for index, unit in enumerate(part):
        keys = ordering_keys(unit)
        if keys & behind:
            behind |= keys
        else:
            free.append(index)
    return free, behind


def _split(part: list[Unit], free: list[int], position: int | None) -> list[list[Unit]]:
    """Halves, or what lies before, at and behind the culprit, which is the unit at `free[position]`."""
    if position is None:
        middle = free[len(free) // 2]
        return [part[:middle], part[middle:]]
    at = free[position]
    return [part[:at], part[at : at + 1], part[at + 1 :]]
