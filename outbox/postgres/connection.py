"""Connection: one guarded connection to PostgreSQL, and what a failure on it means.

The driver's border, with `lane.py`: everything that is raised inside leaves in our words; a connection that failed is
dropped, and the next use connects anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..clock import Clock
from ..config import OutboxConfig
from ..errors import EntryRejected, OutboxError, Reject, RetryLater, TargetMisconfigured, TargetUnavailable
from ..fate import CONFLICTS, CONTENTIONS, PRIVILEGE, STALLS, UNNAMED, Fate, OperationFault, classify
from ..log import Log
from ..words import first_line
from .address import Address, Login, completed, places, rotated, sqlstate_of_login
from .alterations import RefusedStatement
from .piggyback import PiggybackConnection, warn_of_greenlets
from .presence import Servers
from .transaction_settings import LEFT_BEHIND, Cursor, TransactionSettings, keeping
from .watchdog import Watchdog, has_unread
from .watermarks import check_tables, make_tables

_log = Log("outbox.postgres")

# Whatever a statement raises.
DRIVER_ERRORS = (SQLAlchemyError, psycopg2.Error)

# So many reads at most find the end of a connection: of its last words, and of the end behind them.
_LAST_WORDS = 4
# So many open connections that handlers have made are no use of theirs, but forgotten.
_MANY_BESIDE = 10
_ASKING = psycopg2.extensions.TRANSACTION_STATUS_ACTIVE

# A statement that PostgreSQL itself ends at the stall timeout shows which it was: shutting the connection comes after.
_GRACE = 1.25


class UnitFailed(Exception):
    """A unit of the batch could not be applied: `position` is its place; None: a smaller batch must show it.

    `error` is `EntryRejected` where the entry's data was refused, `RetryLater` where its handler asks for time, and
    `TargetMisconfigured` where its `operation` cannot be applied; None where that is not known.
    """

    def __init__(self, error: OutboxError, position: int | None, operation: str | None = None) -> None:
        super().__init__(str(error))
        self.error, self.position, self.operation = error, position, operation
        # Whether the handler may have left the connection in any state.
        self.suspect = False
        # PostgreSQL's diagnostics of it, where the database may have been altered.
        self.refused: RefusedStatement | None = None


class GuardedConnection:
    """At most one connection, watched for silence.  Used by one thread at a time (`interrupt` excepted)."""

    def __init__(self, address: Address, config: OutboxConfig, clock: Clock) -> None:
        self._address = address
        # Whether the address of the last connection names several hosts.
        self.several_hosts = False
        # The databases that it names.
        self.places: frozenset[str] = frozenset()
        # What failed, if the last one that was tried did.
        self._refused: Login | None = None
        self._servers = Servers(clock.monotonic)
        # How many of the hosts are tried last, because they completed no login.
        self._put_last = 0
        self._new_id = clock.new_id
        self._connect_timeout_s = config.connect_timeout
        self.stall_timeout_s = config.stall_timeout
        self._settings = TransactionSettings(config.stall_timeout)
        self._engine: Engine = create_engine("postgresql+psycopg2://", creator=self._connect_raw, poolclass=NullPool)
        self._connection: Connection | None = None
        # Whether the relay's own connection is being made; a handler may make others.
        self._connecting = False
        # SQL: sets again what the connection began with.
        self._kept = ""
        # Whether the database has the receipts and the watermarks table, as of the last connection.
        self.has_tables = False
        # What to raise for a commit, by whether it is the relay's own connection's; set while a handler runs.
        self._no_commit: Callable[[bool], TargetMisconfigured] | None = None
        # Those that handlers have made, and how many open ones are worth a warning.
        self._beside, self._many_beside = WeakSet[Any](), _MANY_BESIDE
        event.listen(self._engine, "commit", self._refuse_commit)
        limit_s = config.stall_timeout * _GRACE
        self._watchdog = Watchdog(limit_s, clock.monotonic, connecting_s=config.connect_timeout)
        # A block that must end soon behind the stall timeout, else the connection is shut.
        self.guard = self._watchdog.guard

    @property
    def current(self) -> Connection | None:
        """The connection in use, if there is one."""
        return self._connection

    @property
    def silent(self) -> bool:
        """Whether the connection was shut because the server had gone silent, in the last guarded block."""
        return self._watchdog.fired and not self._watchdog.spent_here

    def get(self) -> Connection:
        """The connection, made now unless there is one.  Raises `TargetUnavailable` or `TargetMisconfigured`."""
        if self._connection is not None and not self._watchdog.fired and _was_ended(raw_of(self._connection)):
            # While it was idle: by a timeout of the server, of a pooler or a firewall.  No delivery has failed for it.
            self.disconnect()
        return self._connection or self._connect()

    @contextmanager
    def commits_refused(self, error: Callable[[bool], TargetMisconfigured]) -> Iterator[None]:
        """A commit of SQLAlchemy's within the block raises `error`, made by whether it is of the relay's connection."""
        self._no_commit = error
        try:
            yield
        finally:
            self._no_commit = None

    def _refuse_commit(self, connection: Connection) -> None:
        if self._no_commit is not None:
            raise self._no_commit(connection is self._connection)

    def interrupt(self) -> None:
        """Shut the connection's socket, so that its user fails soon; from any thread."""
        self._watchdog.shut()

    def close(self) -> None:
        """Let go of the connection; may be called twice, and the next use connects anew."""
        self.disconnect()
        self._watchdog.close()

    # -- failures

    def verdict(
        self, exc: BaseException, position: int | None, operation: str | None = None, *, committing: bool = False
    ) -> Exception:
        """What to raise for a failure while an entry of `operation` was applied, or all of the batch was committed."""
        error: BaseException = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
        alive = self._connection is not None and usable(self._connection) and not self._watchdog.fired
        sqlstate = getattr(error, "pgcode", None) if isinstance(error, psycopg2.Error) else None
        # A commit runs what entries have deferred; a commit whose connection was lost shows nothing of them.
        applying = operation is not None or (committing and alive)
        fate = classify(sqlstate, connected=alive, data_error=isinstance(error, Reject), applying=applying)
        diag = error.diag if isinstance(error, psycopg2.Error) else None
        if diag is not None and sqlstate in UNNAMED and diag.table_name and not diag.constraint_name:
            fate = Fate.PARKED
        text = f"{sqlstate or type(error).__name__}: {first_line(error)}"
        if self._watchdog.spent_here:
            text = f"a transaction took longer than {self.stall_timeout_s} s here, not in PostgreSQL"
        if fate is Fate.OUTAGE:
            # An entry's own statement may fail each time while others work: it crashes the server's process, finds a
            # row locked (NOWAIT), or writes to a disk or a page that nothing else needs.  So may what it has deferred
            # to the commit.
            stalled = applying or committing or self._watchdog.fired or sqlstate in STALLS
            too_much, conflict = alive and sqlstate in CONTENTIONS, alive and sqlstate in CONFLICTS
            return TargetUnavailable(text, stalled=stalled, too_much=too_much, conflict=conflict)
        if fate is Fate.PARKED:
            failed = UnitFailed(OperationFault(text, sqlstate=sqlstate), position, operation)
            failed.refused = RefusedStatement.of(error) if sqlstate == PRIVILEGE else None
            return failed
        if isinstance(error, RetryLater):
            return UnitFailed(error, position, operation)
        holds_back = not isinstance(error, Reject) or error.holds_back
        rejected = EntryRejected(text, permanent=fate is Fate.DEAD, sqlstate=sqlstate, holds_back=holds_back)
        failed = UnitFailed(rejected, position, operation)
        failed.refused = RefusedStatement.of(error) if sqlstate is not None else None
        return failed

    @contextmanager
    def own_statements(self) -> Iterator[None]:
        """Statements within the block are the relay's own: their failure is no entry's."""
        try:
            yield
        except DRIVER_ERRORS as exc:
            raise self.own_failure(exc) from exc

    def own_failure(self, exc: Exception) -> Exception:
        """What to raise for the failure of a statement of the relay's own."""
        failure = self.verdict(exc, None)
        if isinstance(failure, UnitFailed):
            return TargetMisconfigured(str(failure))
        if isinstance(failure, TargetUnavailable) and failure.stalled and not self.silent:
            hint = "if it goes on, look who locks outbox_receipts or outbox_watermarks (pg_locks)"
            return TargetUnavailable(str(failure), hint=hint, too_much=True)
        return failure

    @contextmanager
    def translated(self, *, committing: bool = False) -> Iterator[None]:
        """The border: everything raised inside leaves in our words, and a connection that failed is dropped.

        With `committing` all but the commit of entries is translated inside.
        """
        outside = sys.exc_info()[1]
        try:
            yield
        except (TargetUnavailable, TargetMisconfigured):
            self.disconnect()
            raise
        except DRIVER_ERRORS as exc:
            failure = _cause(exc, outside) or self.verdict(exc, None, committing=committing)
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
            self._connecting = True
            try:
                connection = self._engine.connect()
            except DRIVER_ERRORS as exc:
                raise self._login_verdict(exc) from exc
            finally:
                self._connecting = False
            self._connection = connection
            raw = raw_of(connection)
            if raw.autocommit:
                # A listener of the program to all of SQLAlchemy's engines has set it.
                raw.autocommit = False
            try:
                with connection.begin():
                    cursor = self.opening_cursor(connection)
                    self.has_tables = check_tables(cursor)
                    self._kept = keeping(cursor)
            except DRIVER_ERRORS as exc:
                raise self._tables_verdict(exc) from exc
        info = raw_of(connection).info
        _log.info("connected to PostgreSQL: database %(database)s on %(host)s", host=info.host, database=info.dbname)
        return connection

    def make_tables(self) -> None:
        """Create the receipts and the watermarks table.  Raises `TargetUnavailable` or `TargetMisconfigured`."""
        connection = self.get()
        with self._watchdog.guard():
            try:
                with connection.begin():
                    make_tables(self.opening_cursor(connection))
            except DRIVER_ERRORS as exc:
                raise self._tables_verdict(exc) from exc
        self.has_tables = True

    def _tables_verdict(self, exc: Exception) -> Exception:
        """What a failure with the tables means; nothing there is any entry's fault."""
        failure = self.verdict(exc, None)
        if not isinstance(failure, UnitFailed):
            return failure
        text = str(failure)
        if not isinstance(failure.error, TargetMisconfigured):
            return TargetUnavailable(text)  # losing a race to create the table is not even a fault
        hint = "its role must find outbox_receipts and outbox_watermarks in its search path, or make them"
        return TargetMisconfigured(text, hint=hint)

    def _login_verdict(self, exc: Exception) -> Exception:
        """What a failed connection means: an outage, unless the server itself refuses the login."""
        failure = self.verdict(exc, None)
        if isinstance(failure, UnitFailed):
            failure = failure.error
        login = None if self._watchdog.fired else self._refused
        # The driver leaves a host that is silent by itself, except where a callback of the program waits for it.
        self._put_last += self._watchdog.fired
        sqlstate = sqlstate_of_login(login, self._connect_timeout_s, self._new_id().hex) if login is not None else None
        if classify(sqlstate, connected=True, data_error=False) is Fate.PARKED:
            return TargetMisconfigured(str(failure), hint="check DATABASE_URL and the server's pg_hba.conf")
        return failure

    def _connect_raw(self) -> Any:
        warn_of_greenlets()
        given = self._address.parameters()
        self._refused = None
        given = rotated(given, self._put_last)
        limit_ms = max(1, int(self.stall_timeout_s * 1000))
        defaults: dict[str, Any] = {
            "connect_timeout": max(1, round(self._connect_timeout_s)),
            "application_name": "lmdb-outbox",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": limit_ms,
        }
        chosen = {**defaults, **given}
        # Whatever the database's encoding is: a text that it cannot hold then concerns one entry, not the driver.
        on_poll = self._watchdog.watch_connecting if self._connecting else None
        make = partial(PiggybackConnection, on_poll=on_poll, on_failure=partial(self._note_refused, chosen))
        raw = psycopg2.connect(**{**chosen, "client_encoding": "UTF8"}, connection_factory=make)
        # Of a service or the environment, too.
        tried = raw.info.dsn_parameters
        self.several_hosts = any("," in tried.get(name, "") for name in ("host", "hostaddr"))
        self.places = places(tried)
        try:
            if self._connecting:
                self._watchdog.watch(raw.fileno(), lambda: raw.info.transaction_status == _ASKING)
            else:
                self._watchdog.watch_beside(raw.fileno())
                self._note_beside(raw)
        except BaseException:
            raw.close()
            raise
        return raw

    def _note_beside(self, raw: Any) -> None:
        """Count a handler's own connections: those that it never closes use up the server's, and then all wait."""
        self._beside.add(raw)
        left = sum(not one.closed for one in self._beside)
        if left == self._many_beside:
            # Their number may go up and down with each entry.
            self._many_beside *= 2
            _log.warning(
                "handlers leave connections of conn.engine open: %(left)s; use `with conn.engine.connect() as x`",
                left=left,
            )

    def _note_refused(self, given: dict[str, Any], info: Any) -> None:
        tried = completed(given)
        self._refused = None if tried is None else Login.of(info, tried)
        # A service or the environment may name the host that was tried last, and the port.
        last = {"host": info.host or "", "port": str(info.port)}
        self._servers.name(last | {name: str(given[name]) for name in ("host", "hostaddr", "port") if given.get(name)})

    def accepting(self) -> frozenset[str]:
        """See `Reachable.accepting`: of the servers that the last failed connection named."""
        return self._servers.accepting()

    def opening_cursor(self, connection: Connection) -> Cursor:
        """A driver cursor for the statements of a new transaction; the first one also sets what they depend on."""
        raw = raw_of(connection)
        if raw.was_left:
            raw.owe(LEFT_BEHIND)
            raw.was_left = False
        self.owe_beginning(raw)
        cursor: Cursor = raw.cursor()
        return cursor

    def owe_beginning(self, raw: Any) -> None:
        """Set, before the next statement, what the relay's statements depend on: a trigger may have changed it."""
        raw.owe(self._settings.beginning(raw.server_version) + self._kept)

    def owe_settings(self, raw: Any) -> None:
        """Undo, before the next statement, whatever a handler has set for its session or transaction."""
        with self.own_statements(), self.behind_handlers():
            raw.close_cursors()
        raw.owe(self._settings.restoring(raw.server_version) + self._kept)
        if raw.get_parameter_status("client_encoding") != "UTF8":
            # Not together with the next one: PostgreSQL reads a message by the encoding that it finds when it comes.
            raw.send_owed()

    @contextmanager
    def behind_handlers(self) -> Iterator[None]:
        """Statements within the block are sent with `owe_settings`.

        Raises `TargetMisconfigured` where what a handler has done cannot be undone.
        """
        try:
            yield
        except psycopg2.errors.InvalidCursorName as exc:
            raise TargetMisconfigured(
                "a handler ended the relay's transaction", hint="it must not commit or roll back"
            ) from exc
        except psycopg2.errors.ActiveSqlTransaction as exc:
            raise TargetMisconfigured(
                "a handler made the relay's transaction read-only", hint="nothing can be delivered with it"
            ) from exc
        except psycopg2.Error as exc:
            if self._connection is not None and usable(self._connection):
                raise
            # A handler may have set a limit, or ended the connection in another way: a smaller batch shows which.
            raise TargetUnavailable(f"{type(exc).__name__}: {first_line(exc)}", stalled=True) from exc

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._kept = ""
        self._watchdog.forget()
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except DRIVER_ERRORS as exc:
            _log.debug("closing a broken connection failed: %(error)s", error=exc)


def _cause(exc: BaseException, outside: BaseException | None) -> TargetUnavailable | None:
    """The outage that was noticed before `exc`, which is then the failure of a rollback on a lost connection."""
    before = exc.__context__
    while before is not None and before is not outside:
        if isinstance(before, TargetUnavailable):
            return before
        before = before.__context__
    return None


def raw_of(connection: Connection) -> Any:
    """The driver's connection, or None after it was invalidated."""
    return None if connection.invalidated else connection.connection.dbapi_connection


def _was_ended(raw: Any) -> bool:
    """Whether the server has ended a driver's connection between two transactions, as far as it is known here."""
    if raw is None or raw.closed:
        return True
    try:
        # The server's last words come before the end.
        for _ in range(_LAST_WORDS):
            if not has_unread(raw.fileno()):
                return False
            raw.poll()
    except psycopg2.Error:
        return True
    return False


def usable(connection: Connection) -> bool:
    """Whether the driver's connection is there and not known to be broken."""
    raw = None if connection.closed else raw_of(connection)
    return raw is not None and not raw.closed
