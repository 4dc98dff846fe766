"""Final ids without PostgreSQL: blocks of its sequences, reserved while it is up, kept durably, used at once.

An id that was handed out is never handed out again, also after a crash: a chunk is checked out durably before the first
of its ids is used, and what a crash leaves of it is a gap.  The server's side is as durable: ids are fetched in a
transaction whose commit is flushed, and a sequence that has fallen back, as after the restore of a backup, is set
forward behind the highest id that was ever reserved.  A key that is a UUID needs no reserve: it is made at the call.
Free ids are kept as few ranges with a step, so that their record stays small: a sequence with `INCREMENT BY 2`, or one
that other sessions use meanwhile, does not give numbers in a row.  Which column has the ids is described in
PostgreSQL's catalog (`IdColumn`).
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from sqlalchemy import ColumnClause, Connection, Engine, column, func, select, table, text
from sqlalchemy.exc import ProgrammingError

from ... import DurabilityError, Outbox
from ...errors import ConfigError, InvalidEntry, StoreBusy
from ...log import Log
from ..manager.manager_connection import fresh_connection
from ..manager.session_state import WAIT_BRIEFLY

# What spells a default out waits for the lock of its table, which a migration may hold for long; but PostgreSQL notes
# on which sequence a default depends, and in its stored form which function it calls.
_LOOK = text(r"""
    SELECT format_type(a.atttypid, NULL), coalesce(
        pg_get_serial_sequence(:table, :column),
        (
            SELECT min(CAST(CAST(refobjid AS regclass) AS text)) FROM pg_depend
            JOIN pg_class s ON s.oid = refobjid AND s.relkind = 'S'
            WHERE classid = CAST('pg_attrdef' AS regclass) AND refclassid = CAST('pg_class' AS regclass)
            AND objid = d.oid AND CAST(d.adbin AS text) ~
                ('\:funcid ' || CAST(CAST('pg_catalog.nextval(regclass)' AS regprocedure) AS oid) || '\y')
        )
    ), n.nspname
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = to_regclass(:table) AND a.attname = :column AND NOT a.attisdropped
""")


class IdColumn(NamedTuple):
    """The column that holds the ids of a table's rows; `schema` is None where the search_path finds the table."""

    schema: str | None
    table: str
    column: str

    @classmethod
    def of(cls, names: tuple[str | None, ...]) -> IdColumn:
        """From `(schema, table, column)` or `(table, column)`."""
        schema, table, column = names if len(names) == 3 else (None, *names)
        return cls(schema, table or "", column or "id")

    @classmethod
    def named(cls, creates: str | None) -> IdColumn:
        """From `table`, `table.column` or `schema.table.column`."""
        parts = (creates or "").split(".")
        return cls.of((*parts, "id") if len(parts) == 1 else tuple(parts))

    @property
    def names(self) -> tuple[str, ...]:
        """`(schema, table, column)`, or `(table, column)` where there is no schema."""
        return tuple(name for name in self if name is not None)

    def __str__(self) -> str:
        return ".".join(self.names)


class CatalogColumn(NamedTuple):
    """A column as it is; `sequence`, which may be of another column, as SQL that names it."""

    type: str
    sequence: str | None
    schema: str


def look_up(connection: Connection, table: str, column: str) -> CatalogColumn | None:
    """What the catalog has of a column; None where there is none.  `table` is SQL that names it.

    Waits for no lock.
    """
    row = connection.execute(_LOOK, {"table": table, "column": column}).one_or_none()
    return None if row is None else CatalogColumn(*row)


def quoted(*names: str | None) -> str:
    """Names as one identifier in SQL; a schema that is None is left out."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names if name is not None)


_log = Log("outbox.integrations")

_CHUNK = 64
_WANTED = 5000

# A commit is flushed only where the transaction has a number, and a fetched id must survive the server's crash.
_DURABLE = text(f"SET LOCAL synchronous_commit = on; {WAIT_BRIEFLY}")
_NUMBERED = text("SELECT pg_current_xact_id()")
_FETCH = text("SELECT nextval(CAST(:sequence AS regclass)) FROM generate_series(1, :missing)")
_FORWARD = text("SELECT setval(CAST(:sequence AS regclass), :highest)")
_SECURE = text(
    "SELECT setval(CAST(:sequence AS regclass), :highest) "
    "WHERE coalesce(pg_sequence_last_value(CAST(:sequence AS regclass)), 0) < :highest"
)
_BEHIND = text("SELECT coalesce(pg_sequence_last_value(CAST(:sequence AS regclass)), 0) < :highest")


class IdReserveEmpty(DurabilityError):
    """No reserved id is left, or none was ever fetched: what needs one cannot be recorded, and trading must halt."""


class IdReserve:
    """Reserved ids of one table's column.  Thread-safe; one object per column and store."""

    def __init__(
        self, outbox: Outbox, table: str, column: str = "id", *, schema: str | None = None, wanted: int | None = None
    ) -> None:
        """`wanted` ids are kept in reserve by `fill`."""
        self._outbox, self.of = outbox, IdColumn(schema, table, column)
        self.wanted = wanted or _WANTED
        self._meta = f"ids:{self.of}" if schema is not None or column != "id" else f"ids:{table}"
        # A crash costs a chunk, and a small reserve must last through many.
        self._chunk_size = max(1, min(_CHUNK, self.wanted // 50))
        # Reentrant, so that a signal handler is refused by `take` and does not wait for what it has interrupted.
        self._lock = threading.RLock()
        self._chunk: deque[int] = deque()
        # Why the column can have no reserve, as far as is known.
        self.failure: ConfigError | None = None
        self.taken = 0
        stored = outbox.store.get_meta(self._meta)
        state: dict[str, Any] = json.loads(stored) if stored else {}
        # Ids that are free, lowest first, and the highest id ever fetched.
        self._ranges: list[range] = from_state(state)
        self._highest: int = state.get("highest", 0)
        self.is_uuid: bool = state.get("uuid", False)
        # Where the table is, as far as is known.
        self.schema: str | None = state.get("schema", schema)

    def left(self) -> int:
        """How many ids can be handed out without PostgreSQL; as many as are wanted where they are made here."""
        with self._lock:
            if self.is_uuid:
                return self.wanted
            return len(self._chunk) + sum(map(len, self._ranges))

    @property
    def low(self) -> bool:
        """Whether it is time to `fill` it."""
        return self.failure is None and self.left() <= self.wanted * 9 // 10

    def take(self) -> Any:
        """The next id.

        Raises `IdReserveEmpty`, `DurabilityError`, `ConfigError` where there can be none, and `StoreBusy` in the middle
        of another call.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise StoreBusy(
                "this thread is in the middle of taking another id",
                hint="nothing was written; a signal handler should set a flag and leave the rest to the program's loop",
            )
        with self._lock:
            if self.is_uuid:
                return self._outbox.clock.new_id()
            if not self._chunk:
                self._check_out()
            self.taken += 1
            return self._chunk.popleft()

    @property
    def missing(self) -> int:
        """How many ids `fill` has to fetch."""
        return max(0, self.wanted - self.left())

    def fill(self, engine: Engine) -> None:
        """Fetch ids from the column's sequence until enough are in reserve.

        Raises `SQLAlchemyError` when PostgreSQL is away, `ConfigError` where the column has no sequence.
        """
        with fresh_connection(engine) as connection:
            self.fill_on(connection)

    def fill_on(self, connection: Connection) -> None:
        """The same on a connection of the manager's, in a transaction of its own."""
        missing = self.missing
        if not missing:
            return
        self.failure = None
        try:
            with _transaction(connection):
                sequence = self._sequence(connection)
                fetched = self._fetch(connection, sequence, missing) if sequence is not None else []
                connection.execute(_NUMBERED)
        except ConfigError as exc:
            self.failure = exc
            raise
        with self._lock:
            self.is_uuid = not fetched
            self._highest = max([self._highest, *fetched])
            self._keep(joined(self._ranges, fetched))

    def secure_on(self, connection: Connection) -> None:
        """Set the sequence forward where it has fallen behind a reserved id, so that nobody else is given that one.

        Gives up reserved ids that have rows already: the store was restored from a backup.  Raises as `fill`.
        """
        if not self._highest:
            return
        with _transaction(connection):
            sequence = self._sequence(connection)
            if sequence is not None:
                connection.execute(_SECURE, {"sequence": sequence, "highest": self._highest})
        # A role that may only insert sees no rows.
        with suppress(ProgrammingError), _transaction(connection):
            self._give_up_used(connection)

    def is_begun_anew(self, connection: Connection) -> bool:
        """Whether the sequence has begun anew and the table is empty.  Raises as `fill`."""
        if not self._highest:
            return False
        id_: ColumnClause[int] = column(self.of.column)
        with _transaction(connection):
            sequence = self._sequence(connection)
            rows = select(id_).select_from(table(self.of.table, schema=self.schema)).limit(1)
            behind = connection.execute(_BEHIND, {"sequence": sequence, "highest": self._highest}).scalar()
            return bool(behind) and connection.execute(rows).first() is None

    def forget(self) -> None:
        """Give up all reserved ids."""
        with self._lock:
            self._chunk.clear()
            self._ranges, self._highest = [], 0
            self._save()

    def _give_up_used(self, connection: Connection) -> None:
        with self._lock:
            free = [*self._chunk, *(one[0] for one in self._ranges)]
        if not free or self.is_uuid:
            return
        id_: ColumnClause[int] = column(self.of.column)
        rows = select(func.max(id_)).select_from(table(self.of.table, schema=self.schema))
        used = connection.execute(rows.where(id_.between(min(free), self._highest))).scalar()
        if used is None:
            return
        with self._lock:
            self._chunk = deque(number for number in self._chunk if number > used)
            self._ranges = above(self._ranges, used)
            self._save()

    def _sequence(self, connection: Connection) -> str | None:
        """The sequence of the column, or None where its ids are UUIDs."""
        schemas = connection.get_execution_options().get("schema_translate_map") or {}
        schema = schemas.get(self.of.schema, self.of.schema)
        table = quoted(schema, self.of.table)
        found = look_up(connection, table, self.of.column)
        if found is None:
            raise ConfigError(
                f"there is no column {self.of}, so no ids can be reserved",
                hint='declare creates="schema.table.column", or the operation without creates=',
            )
        self.schema = found.schema
        if found.type == "uuid":
            return None
        if found.sequence is None:
            raise ConfigError(
                f"column {self.of} has no sequence, so no ids can be reserved",
                hint="make it SERIAL or IDENTITY, or declare the operation without creates=",
            )
        return found.sequence

    def _fetch(self, connection: Connection, sequence: str, missing: int) -> list[int]:
        while True:
            found = sorted(connection.execute(_FETCH, {"sequence": sequence, "missing": missing}).scalars())
            if found[0] > self._highest:
                return found
            connection.execute(_FORWARD, {"sequence": sequence, "highest": self._highest})

    def _check_out(self) -> None:
        if not self._ranges and self.failure is not None:
            raise self.failure
        if not self._ranges:
            setting = self._outbox.config.named("id_reserve")
            raise IdReserveEmpty(
                f"no id is left in the reserve of {self.of}",
                hint=f"PostgreSQL must be reachable to fetch more; {setting} says how many are kept",
            )
        taken, self._ranges = split(self._ranges, self._chunk_size)
        self._save()
        self._chunk.extend(taken)

    def _keep(self, ranges: list[range]) -> None:
        """Store `ranges`, and then hand ids out of them; of many with gaps as many as one record can have."""
        fetched = sum(map(len, ranges))
        while True:
            try:
                self._save(ranges)
                break
            except InvalidEntry:
                if not ranges:
                    raise
                ranges = ranges[: len(ranges) * 9 // 10]
        self._ranges = ranges
        kept = sum(map(len, ranges))
        if kept < fetched:
            # Else each fill would fetch the rest again, and throw it away.
            self.wanted = kept
            _log.warning(
                "%(kept)s of %(fetched)s ids of %(column)s are reserved: they have gaps, and a record holds no more",
                kept=kept,
                fetched=fetched,
                column=self.of,
            )

    def _save(self, ranges: list[range] | None = None) -> None:
        free = to_state(self._ranges if ranges is None else ranges)
        state = {**free, "highest": self._highest, "uuid": self.is_uuid, "schema": self.schema}
        self._outbox.store.put_meta(self._meta, json.dumps(state).encode())


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """A transaction that is on the server's disk when the block ends."""
    if not connection.in_transaction():
        connection.begin()
    try:
        connection.execute(_DURABLE)
        yield
        connection.commit()
    finally:
        connection.rollback()


def joined(ranges: Sequence[range], numbers: Iterable[int]) -> list[range]:
    """`ranges` and behind them `numbers`, which are ascending and higher."""
    free = list(ranges)
    for number in numbers:
        if free and (extended := _extended(free[-1], number)) is not None:
            free[-1] = extended
        else:
            free.append(range(number, number + 1))
    return free


def _extended(last: range, number: int) -> range | None:
    """`last` with `number` at its end, or None where that is not a step behind it."""
    step = number - last[-1]
    return range(last[0], number + 1, step) if len(last) == 1 or step == last.step else None


def split(ranges: Sequence[range], count: int) -> tuple[list[int], list[range]]:
    """The `count` lowest numbers, or all where there are fewer, and the ranges of the others."""
    taken: list[int] = []
    free = list(ranges)
    while free and len(taken) < count:
        missing = count - len(taken)
        taken += free[0][:missing]
        free[:1] = [rest] if (rest := free[0][missing:]) else []
    return taken, free


def above(ranges: Iterable[range], used: int) -> list[range]:
    """The numbers that are higher than `used`."""
    left = (one[max(0, (used - one[0]) // one.step + 1) :] for one in ranges)
    return [one for one in left if one]


def to_state(ranges: Iterable[range]) -> dict[str, list[list[int]]]:
    """The fields of a record.  A version that knows no steps reads `ranges` and gives the others up."""
    state: dict[str, list[list[int]]] = {"ranges": []}
    for one in ranges:
        if one.step == 1 or len(one) == 1:
            state["ranges"].append([one[0], one[-1]])
        else:
            state.setdefault("stepped", []).append([one[0], one[-1], one.step])
    return state


def from_state(state: dict[str, Any]) -> list[range]:
    """The ranges of a record, lowest first."""
    plain = (range(first, last + 1) for first, last in state.get("ranges", []))
    stepped = (range(first, last + 1, step) for first, last, step in state.get("stepped", []))
    return sorted([*plain, *stepped], key=lambda one: one[0])
