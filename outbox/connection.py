"""Connection: one guarded connection to PostgreSQL, and what a failure on it means.

The driver's border, with `lane.py`: everything that is raised inside leaves in our words; a connection that failed is
dropped, and the next use connects anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from .clock import Clock
from .config import OutboxConfig, check_database_url
from .errors import ConfigError, EntryRejected, TargetMisconfigured, TargetUnavailable
from .failures import STALLS, Verdict, classify
from .login_probe import sqlstate_of_login
from .receipts import Cursor
from .watchdog import Watchdog
from .watermarks import ensure_tables

_log = logging.getLogger("outbox.postgres")

# Not TypeError: that is how a program says that it was changed and no longer fits, and no entry is to blame.
_DATA_ERRORS = (ValueError, ArithmeticError)


class UnitFailed(Exception):
    """A unit of the batch was refused: `position` is its place, or None where only bisecting can tell."""

    def __init__(self, error: EntryRejected, position: int | None) -> None:
        super().__init__(str(error))
        self.error, self.position = error, position


class GuardedConnection:
    """At most one connection, watched for silence.  Used by one thread at a time (`interrupt` excepted)."""

    def __init__(self, dsn: str, config: OutboxConfig, clock: Clock) -> None:
        self._dsn = dsn
        self._connect_timeout_s = config.connect_timeout
        self._stall_timeout_s = config.stall_timeout
        self._engine: Engine = create_engine("postgresql+psycopg2://", creator=self._connect_raw, poolclass=NullPool)
        self._connection: Connection | None = None
        # What to raise when a commit is tried meanwhile; set while a handler runs.
        self._no_commit: TargetMisconfigured | None = None
        event.listen(self._engine, "commit", self._refuse_commit)
        self._watchdog = Watchdog(config.stall_timeout, clock.monotonic)

    @property
    def current(self) -> Connection | None:
        """The connection in use, if there is one."""
        return self._connection

    @property
    def silent(self) -> bool:
        """Whether the connection was shut because the server had gone silent, in the last guarded block."""
        return self._watchdog.fired

    @property
    def several_hosts(self) -> bool:
        """Whether the address names several hosts."""
        return "," in psycopg2.extensions.parse_dsn(self._dsn).get("host", "")

    def get(self) -> Connection:
        """The connection, made now unless there is one.  Raises `TargetUnavailable` or `TargetMisconfigured`."""
        return self._connection or self._connect()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """The block must end within the stall timeout, else the connection is shut."""
        with self._watchdog.guard():
            yield

    @contextmanager
    def commits_refused(self, error: TargetMisconfigured) -> Iterator[None]:
        """A commit of SQLAlchemy's within the block raises `error`."""
        self._no_commit = error
        try:
            yield
        finally:
            self._no_commit = None

    def _refuse_commit(self, _: Connection) -> None:
        if self._no_commit is not None:
            raise self._no_commit

    def interrupt(self) -> None:
        """Shut the connection's socket, so that whoever uses it fails soon; from any thread."""
        self._watchdog.shut()

    def close(self) -> None:
        """Let go of the connection; may be called twice, and the next use connects anew."""
        self.disconnect()
        self._watchdog.close()

    # -- failures

    def verdict(self, exc: Exception, position: int | None) -> Exception:
        """What to raise for a failure while an entry was applied."""
        error: BaseException = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
        alive = self._connection is not None and usable(self._connection) and not self._watchdog.fired
        sqlstate = getattr(error, "pgcode", None) if isinstance(error, psycopg2.Error) else None
        data_error = isinstance(error, _DATA_ERRORS) and not isinstance(error, psycopg2.Error)
        verdict = classify(sqlstate, connected=alive, data_error=data_error)
        text = f"{sqlstate or type(error).__name__}: {_first_line(error)}"
        if verdict is Verdict.UNAVAILABLE:
            return TargetUnavailable(text, stalled=self._watchdog.fired or sqlstate in STALLS)
        if verdict is Verdict.MISCONFIGURED:
            return TargetMisconfigured(text)
        return UnitFailed(EntryRejected(text, permanent=verdict is Verdict.REJECTED), position)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The border: everything raised inside leaves in our words, and a connection that failed is dropped."""
        try:
            yield
        except (TargetUnavailable, TargetMisconfigured):
            self.disconnect()
            raise
        except (SQLAlchemyError, psycopg2.Error) as exc:
            failure = self.verdict(exc, None)
            if not isinstance(failure, UnitFailed):
                self.disconnect()
            raise failure from exc
        finally:
            # SQLAlchemy would quietly reconnect, without the watchdog.
            if self._connection is not None and not usable(self._connection):
                self.disconnect()

    # -- the connection

    def _connect(self) -> Connection:
        with self._watchdog.guard():
            try:
                connection = self._engine.connect()
            except (SQLAlchemyError, psycopg2.Error) as exc:
                raise self._login_verdict(exc) from exc
            self._connection = connection
            try:
                with connection.begin():
                    ensure_tables(cursor_of(connection))
            except (SQLAlchemyError, psycopg2.Error) as exc:
                failure = self.verdict(exc, None)
                # Nothing here is any entry's fault; losing a race to create the table is not even a fault.
                raise TargetUnavailable(str(failure)) if isinstance(failure, UnitFailed) else failure from exc
        info = raw_of(connection).info
        _log.info("connected to PostgreSQL", extra={"host": info.host, "database": info.dbname})
        return connection

    def _login_verdict(self, exc: Exception) -> Exception:
        """What a failed connection means: an outage, unless the server itself refuses the login."""
        failure = self.verdict(exc, None)
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
                self._set(cursor)
            raw.commit()
        except BaseException:
            raw.close()
            raise
        return raw

    def restore_settings(self, cursor: Cursor) -> None:
        """Undo whatever a handler has set for its session or transaction.

        Raises `TargetMisconfigured` where that cannot be undone.
        """
        try:
            self._set(cursor, "SET TRANSACTION READ WRITE; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; ")
        except psycopg2.errors.ActiveSqlTransaction as exc:
            raise TargetMisconfigured(
                "a handler made the relay's transaction read-only", hint="nothing can be delivered with it"
            ) from exc

    def _set(self, cursor: Cursor, before: str = "") -> None:
        limit_ms = max(1, int(self._stall_timeout_s * 1000))
        # A commit that is acknowledged must be on PostgreSQL's disk, whatever the server's default says; and a server
        # left alone by a dead relay must let go of its locks.  The driver reads ISO dates only.
        cursor.execute(
            before + "SET synchronous_commit = on; SET TIME ZONE 'UTC'; SET datestyle = 'ISO'; "
            "SET statement_timeout = %s; SET idle_in_transaction_session_timeout = %s",
            (limit_ms, 2 * limit_ms),
        )

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._watchdog.forget()
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except (SQLAlchemyError, psycopg2.Error) as exc:
            _log.debug("closing a broken connection failed", extra={"error": str(exc)})


def libpq_url(url: str) -> str:
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


def raw_of(connection: Connection) -> Any:
    """The driver's connection, or None after it was invalidated."""
    return None if connection.invalidated else connection.connection.dbapi_connection


def usable(connection: Connection) -> bool:
    """Whether the driver's connection is there and not known to be broken."""
    raw = None if connection.closed else raw_of(connection)
    return raw is not None and not raw.closed


def cursor_of(connection: Connection) -> Any:
    """A plain driver cursor inside the connection's transaction: our own few statements need nothing more."""
    return raw_of(connection).cursor()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
