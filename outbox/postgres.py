"""PostgresTarget: applies batches to PostgreSQL, receipts and effects in one transaction.  The driver's only importer.

It promises the relay that an entry's effect and its receipt commit together, so that a lost COMMIT reply is settled
by the receipt at the next try; that a group is never split; and that every failure is translated into an `Outcome`
and attributed to the line or to one entry, never dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar
from uuid import UUID

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from . import codec, watermarks
from .clock import Clock, SystemClock
from .config import OutboxConfig, check_database_url
from .continuity import Memory, NoMemory
from .entry import EntryStatus
from .envelope import Record
from .errors import ConfigError, EntryRejected, TargetMisconfigured, TargetUnavailable
from .failures import STALLS, Verdict, classify
from .login_probe import sqlstate_of_login
from .operation import Operation, operations_by_name
from .receipts import Cursor, RowWriter, ensure_table, find, keep_results, record
from .target import Outcome, Unit, ordering_keys, units
from .watchdog import Watchdog

T = TypeVar("T")

_log = logging.getLogger("outbox.postgres")

_DATA_ERRORS = (ValueError, TypeError, ArithmeticError)
_BROKEN = psycopg2.extensions.TRANSACTION_STATUS_INERROR


class _UnitFailed(Exception):
    """A unit of the batch was refused: `position` is its place, or None where only bisecting can tell."""

    def __init__(self, error: EntryRejected, position: int | None) -> None:
        super().__init__(str(error))
        self.error, self.position = error, position


class PostgresTarget:
    """PostgreSQL as the relay's target.

    `operations` declare how entries are applied; an entry of another operation stops the line.  Used by one thread at
    a time (`interrupt` excepted); holds at most one connection.
    """

    def __init__(
        self,
        url: str,
        operations: Iterable[Operation],
        *,
        config: OutboxConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`url` is a libpq or SQLAlchemy URL, several hosts included.  Connects at the first `apply`.

        Raises `ConfigError` for a bad URL (without repeating it) or bad operations.
        """
        settings = config or OutboxConfig()
        self._clock = clock or SystemClock()
        self.operations: Mapping[str, Operation] = operations_by_name(operations)
        self._dsn = _libpq_url(url)
        self._connect_timeout_s = settings.connect_timeout
        self._stall_timeout_s = settings.stall_timeout
        self._engine: Engine = create_engine("postgresql+psycopg2://", creator=self._connect_raw, poolclass=NullPool)
        self._connection: Connection | None = None
        self._memory: Memory = NoMemory()
        self._session: watermarks.Session | None = None
        # What to raise when a commit is tried meanwhile; set while a handler runs.
        self._handling: TargetMisconfigured | None = None
        event.listen(self._engine, "commit", self._refuse_commit)
        self._watchdog = Watchdog(settings.stall_timeout, self._clock.monotonic)
        self._rows = RowWriter()
        self._shapes: dict[bytes, tuple[str, ...]] = {}

    # -- the target's port

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        """See `Target.apply`.  A refused entry is isolated by splitting its batch, in order."""
        outcome = Outcome()
        # Ordering keys behind what was refused, or behind what has to wait for that.
        blocked: set[str] = set()
        todo: list[list[Unit]] = [list(units(records))]
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
                outcome.mark = self._session.mark if self._session is not None else None
            except (TargetUnavailable, TargetMisconfigured) as exc:
                outcome.interruption = exc
                break
            except _UnitFailed as exc:
                if len(free) == 1:
                    outcome.rejected += [(item, exc.error) for item in tried[0]]
                    lenient = all(self.operations[item.operation].best_effort for item in tried[0])
                    blocked = behind if lenient else behind | ordering_keys(tried[0])
                else:
                    todo += reversed(_split(part, free, exc.position))
        failed = outcome.rejected if outcome.interruption is None and not outcome.completed else []
        if len({item.group or item.seq for item, _ in failed}) > 1 and not any(error.permanent for _, error in failed):
            # Everything failed and nothing says that it is the data: that is the database, not the entries.
            first = failed[0][1]
            outcome.interruption = TargetMisconfigured(f"every entry of the batch fails: {first}")
            outcome.rejected = []
        return outcome

    def follow(self, memory: Memory) -> None:
        """See `Forgetful.follow`.  Call it before the first `apply`."""
        self._memory = memory

    def compare(self, store_id: UUID) -> watermarks.Comparison:
        """See `Forgetful.compare`.  It ends with the connection, and `apply` goes on with the same one."""
        with self._translated():
            connection, session = self._connected(store_id)
        hosts = psycopg2.extensions.parse_dsn(self._dsn).get("host", "")
        return watermarks.Comparison(session, lambda question: self._ask(connection, question), failover="," in hosts)

    def _ask(self, connection: Connection, question: Callable[[Cursor], T]) -> T:
        """Run `question` in a transaction of its own on a connection that must still be the one in use."""
        try:
            with self._translated():
                if connection is not self._connection:
                    raise TargetUnavailable("the connection was lost while the ledger was compared")
                with self._watchdog.guard(), connection.begin():
                    return question(_cursor(connection))
        except _UnitFailed as exc:
            raise TargetUnavailable(str(exc)) from exc

    def interrupt(self) -> None:
        """Shut the connection's socket, so that a running `apply` fails soon."""
        self._watchdog.shut()

    def close(self) -> None:
        self._disconnect()
        self._watchdog.close()

    # -- one transaction

    def _transact(self, store_id: UUID, part: list[Unit]) -> list[tuple[Record, bytes]]:
        """Apply units in one transaction.  Raises `TargetUnavailable`, `TargetMisconfigured` or `_UnitFailed`."""
        records = [item for unit in part for item in unit]
        for item in records:
            if item.operation not in self.operations:
                raise TargetMisconfigured(
                    f"entry {item.seq} is of operation {item.operation!r}, which is not declared here",
                    hint=f"declared: {', '.join(self.operations) or 'none'}",
                )
        position = {item.seq: index for index, unit in enumerate(part) for item in unit}
        with self._translated():
            connection, session = self._connected(store_id)
            with self._watchdog.guard(), connection.begin() as transaction:
                session.enter(_cursor(connection))
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
        cursor = _cursor(connection)
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
                raise _UnitFailed(EntryRejected(message, permanent=True), position[item.seq])
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
            self._rows.insert(_cursor(connection), table, names, shape, run)
        except psycopg2.Error as exc:
            raise self._verdict(exc, position[run[0].seq] if len(run) == 1 else None) from exc

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
        self._handling = ended
        try:
            value = operation.handler(connection, entry)
        except (TargetUnavailable, TargetMisconfigured):
            raise
        except Exception as exc:
            if _usable(connection) and not transaction.is_active:
                raise ended from exc
            raise self._verdict(exc, position) from exc
        finally:
            self._handling = None
        if not _usable(connection):
            raise TargetUnavailable(f"the connection was lost while {operation.name!r} was applied")
        if not transaction.is_active or connection.get_transaction() is not transaction:
            raise ended
        status = _raw(connection).info.transaction_status
        if status not in (_BROKEN, psycopg2.extensions.TRANSACTION_STATUS_INTRANS):
            raise ended
        if status == _BROKEN:
            message = f"the handler of {operation.name!r} swallowed a database error"
            raise _UnitFailed(EntryRejected(message, permanent=False), position)
        return value

    def _refuse_commit(self, _: Connection) -> None:
        if self._handling is not None:
            raise self._handling

    def _verdict(self, exc: Exception, position: int | None) -> Exception:
        """What to raise for a failure while an entry was applied."""
        error: BaseException = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
        alive = self._connection is not None and _usable(self._connection) and not self._watchdog.fired
        sqlstate = getattr(error, "pgcode", None) if isinstance(error, psycopg2.Error) else None
        data_error = isinstance(error, _DATA_ERRORS) and not isinstance(error, psycopg2.Error)
        verdict = classify(sqlstate, connected=alive, data_error=data_error)
        text = f"{sqlstate or type(error).__name__}: {_first_line(error)}"
        if verdict is Verdict.UNAVAILABLE:
            return TargetUnavailable(text, stalled=self._watchdog.fired or sqlstate in STALLS)
        if verdict is Verdict.MISCONFIGURED:
            return TargetMisconfigured(text)
        return _UnitFailed(EntryRejected(text, permanent=verdict is Verdict.REJECTED), position)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The border: everything raised inside leaves in our words, and a connection that failed is dropped."""
        try:
            yield
        except (TargetUnavailable, TargetMisconfigured):
            self._disconnect()
            raise
        except (SQLAlchemyError, psycopg2.Error) as exc:
            failure = self._verdict(exc, None)
            if not isinstance(failure, _UnitFailed):
                self._disconnect()
            raise failure from exc
        finally:
            # SQLAlchemy would quietly reconnect, without the watchdog.
            if self._connection is not None and not _usable(self._connection):
                self._disconnect()

    # -- the connection

    def _connected(self, store_id: UUID) -> tuple[Connection, watermarks.Session]:
        connection = self._connection or self._connect()
        if self._session is None:
            self._session = watermarks.Session(self._memory, store_id, self._clock.new_id)
        return connection, self._session

    def _connect(self) -> Connection:
        with self._watchdog.guard():
            try:
                connection = self._engine.connect()
            except (SQLAlchemyError, psycopg2.Error) as exc:
                raise self._login_verdict(exc) from exc
            self._connection = connection
            try:
                with connection.begin():
                    ensure_table(_cursor(connection))
                    watermarks.ensure_table(_cursor(connection))
            except (SQLAlchemyError, psycopg2.Error) as exc:
                failure = self._verdict(exc, None)
                # Nothing here is any entry's fault; losing a race to create the table is not even a fault.
                raise TargetUnavailable(str(failure)) if isinstance(failure, _UnitFailed) else failure from exc
        info = _raw(connection).info
        _log.info("connected to PostgreSQL", extra={"host": info.host, "database": info.dbname})
        return connection

    def _login_verdict(self, exc: Exception) -> Exception:
        """What a failed connection means: an outage, unless the server itself refuses the login."""
        failure = self._verdict(exc, None)
        given = psycopg2.extensions.parse_dsn(self._dsn)
        sqlstate = None if self._watchdog.fired else sqlstate_of_login(given, self._connect_timeout_s)
        if classify(sqlstate, connected=True, data_error=False) is Verdict.MISCONFIGURED:
            return TargetMisconfigured(str(failure), hint="check DATABASE_URL and the server's pg_hba.conf")
        return failure

    def _connect_raw(self) -> Any:
        given = psycopg2.extensions.parse_dsn(self._dsn)
        limit_ms = max(1, int(self._stall_timeout_s * 1000))
        defaults: dict[str, Any] = {
            "connect_timeout": max(1, round(self._connect_timeout_s)),
            "application_name": "lmdb-outbox",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": limit_ms,
        }
        raw = psycopg2.connect(self._dsn, **{name: value for name, value in defaults.items() if name not in given})
        try:
            self._watchdog.watch(raw.fileno())
            with raw.cursor() as cursor:
                # A commit that is acknowledged must be on PostgreSQL's disk, whatever the server's default says; and a
                # server left alone by a dead relay must let go of its locks.
                cursor.execute(
                    "SET synchronous_commit = on; SET TIME ZONE 'UTC'; SET statement_timeout = %s; "
                    "SET idle_in_transaction_session_timeout = %s",
                    (limit_ms, 2 * limit_ms),
                )
            raw.commit()
        except BaseException:
            raw.close()
            raise
        return raw

    def _disconnect(self) -> None:
        connection, self._connection, self._session = self._connection, None, None
        self._watchdog.forget()
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except (SQLAlchemyError, psycopg2.Error) as exc:
            _log.debug("closing a broken connection failed", extra={"error": str(exc)})


def _libpq_url(url: str) -> str:
    scheme, _, rest = check_database_url(url).partition("://")
    del scheme
    dsn = f"postgresql://{rest}"
    try:
        psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise ConfigError(
            "database_url cannot be parsed", hint="allowed: postgresql://user:password@host:port/database?option=value"
        ) from None
    return dsn


def _raw(connection: Connection) -> Any:
    """The driver's connection, or None after it was invalidated."""
    return None if connection.invalidated else connection.connection.dbapi_connection


def _usable(connection: Connection) -> bool:
    """Whether the driver's connection is there and not known to be broken."""
    raw = None if connection.closed else _raw(connection)
    return raw is not None and not raw.closed


def _cursor(connection: Connection) -> Any:
    """A plain driver cursor inside the connection's transaction: our own few statements need nothing more."""
    return _raw(connection).cursor()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


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
