"""Replay: applies one stored call by calling the manager's own method inside the relay's transaction.

The call runs on a shallow copy of the manager whose sessions are bound to the relay's connection, so that the manager's
commits are savepoints and the receipt commits with the effect.  Ids are those that the caller was given, times those of
the capture, and a method that swallows its error is not taken for success.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from .. import Entry, Outbox, OutboxError
from ..clock import Clock
from ..errors import TargetMisconfigured, TargetUnavailable
from ..failures import Verdict, classify
from . import sessions
from .asof import AsOf
from .host import Host, invoke
from .local_view import exact
from .operations import ManagerOperation, call_of, notes_of
from .rehearsal import Reached, Rehearsal
from .replay_session import ReplaySession, Watch, listen_to, refuse_connections, watch_engine

_log = logging.getLogger("outbox.integrations")

_ANSWERS_KEPT = 256


class CallFailed(OutboxError, ValueError):
    """A replayed method raised, answered that it failed, or wrote nothing: it must not be taken for applied."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the manager answered to one replay: a value, or what it raised."""

    value: Any = None
    error: BaseException | None = None

    def give(self) -> Any:
        """Return or raise it, as the manager did."""
        if self.error is not None:
            raise self.error
        return self.value


class Answers:
    """The last answers by sequence number, for callers who wait for the real result.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Answer] = OrderedDict()

    def keep(self, seq: int, answer: Answer) -> None:
        """Replace what is known of `seq`."""
        with self._lock:
            self._kept[seq] = answer
            self._kept.move_to_end(seq)
            while len(self._kept) > _ANSWERS_KEPT:
                self._kept.popitem(last=False)

    def take(self, seq: int) -> Answer | None:
        """What is known of `seq`, once."""
        with self._lock:
            return self._kept.pop(seq, None)


def _is_refusal(error: BaseException) -> bool:
    """Whether an error of the database is about the data, and would come again."""
    invalidated = getattr(error, "connection_invalidated", False)
    sqlstate = getattr(getattr(error, "orig", None), "pgcode", None)
    return classify(sqlstate, connected=not invalidated, data_error=False) is Verdict.REJECTED


def _database_of(raw: Any) -> tuple[Any, ...] | None:
    """What tells a PostgreSQL database from others; None for another driver's connection."""
    info: Any = getattr(raw, "info", None)
    return None if not hasattr(info, "dbname") else (info.host, info.port, info.dbname)


def _no_id(*_: str) -> None:
    """Let PostgreSQL give the id."""


class Replayer:
    """Makes handlers that replay on one host's manager.  Its handlers run in the relay's thread."""

    def __init__(
        self,
        host: Host,
        clock: Clock,
        *,
        outbox: Outbox | None = None,
        take_id: Callable[[str, str], int | None] | None = None,
    ) -> None:
        """`take_id(table, column)` gives ids to rows that a call creates on the side; None lets PostgreSQL do that."""
        self._host, self._clock, self._outbox = host, clock, outbox
        self._take_id = take_id or _no_id
        self._here = threading.local()
        self._undo: list[Callable[[], None]] = []
        self._engines: set[Engine] = set()
        self.answers = Answers()
        self._undo.append(refuse_connections(self._refusal))

    def close(self) -> None:
        """Take the listeners away again."""
        while self._undo:
            self._undo.pop()()

    def handler(self, operation: ManagerOperation) -> Callable[[Connection, Entry], Any]:
        """The handler that applies entries of `operation`."""

        def replay(connection: Connection, entry: Entry) -> Any:
            self._build()
            notes, creates = notes_of(entry), operation.table_and_column()
            as_of = AsOf(creates, notes, entry.captured_at, self._clock, self._take_id)
            with self._watched(connection, as_of) as watch:
                return self._replay(operation, connection, entry, watch, as_of)

        return replay

    def _replay(
        self, operation: ManagerOperation, connection: Connection, entry: Entry, watch: Watch, as_of: AsOf
    ) -> Any:
        replica = self._host.replica(session_id=notes_of(entry).get("session"))
        replica.session_factory = factory = sessions.factory_like(
            replica.session_factory,
            ReplaySession,
            bind=connection,
            join_transaction_mode="create_savepoint",
            info={"watch": watch},
        )
        listen_to(sessions.session_class(factory))
        as_of.listen(sessions.session_class(factory))
        try:
            value = self._call(operation, replica, entry, as_of)
        except Exception as exc:  # noqa: BLE001 - whatever the manager raises is judged there
            return self._raised(operation, entry, watch, exc)
        if watch.misfit is not None:
            raise watch.misfit
        self.answers.keep(entry.seq, Answer(value))
        if not operation.success(value, watch.committed):
            if watch.error is not None:
                raise watch.error
            raise CallFailed(
                f"{operation.name} of the manager answered {value!r} and wrote nothing",
                hint="see the engine's log; the row may be missing",
            )
        self._compare_id(operation, entry, value)
        return value if isinstance(value, (bool, int, str, type(None))) else None

    def _raised(self, operation: ManagerOperation, entry: Entry, watch: Watch, exc: Exception) -> Any:
        """What an exception of the manager means for the entry."""
        if watch.misfit is not None or isinstance(exc, (TargetUnavailable, TargetMisconfigured)):
            raise watch.misfit or exc
        self.answers.keep(entry.seq, Answer(error=exc))
        error = watch.error_behind(exc)
        if error is not None and not (watch.committed and _is_refusal(error)):
            raise error
        if watch.committed:
            # The effect counts, as it would have without us; the caller hears of the rest.
            fields = {"seq": entry.seq, "operation": entry.operation, "error": str(exc)}
            _log.warning("a call was applied and then raised", extra=fields)
            return {"raised": f"{type(exc).__name__}: {exc}"}
        raise CallFailed(f"{operation.name} of the manager raised {type(exc).__name__}: {exc}") from exc

    def _call(self, operation: ManagerOperation, replica: Any, entry: Entry, as_of: AsOf) -> Any:
        method = getattr(replica, operation.name, None)
        if method is None:
            raise TargetMisconfigured(f"the manager has no method {operation.name!r}, and entry {entry.seq} needs it")
        if self._diverged(entry, replica):
            # The change follows what the other writer did, so it must not be stamped before that.
            as_of.keep_times()
        if not operation.context:
            return invoke(method, call_of(entry))
        with invoke(method, call_of(entry)):
            pass
        return None

    def _diverged(self, entry: Entry, replica: Any) -> bool:
        """Whether the balance is not the one that the caller worked with; reported, since only a person can judge."""
        told: Mapping[str, Any] | None = notes_of(entry).get("told")
        if told is None or not hasattr(replica, "get_current_balance"):
            return False
        session = notes_of(entry).get("session")
        found = replica.get_current_balance(session)
        if found is None or exact(found, told["old"]) == told["old"]:
            return False
        message = (
            f"entry {entry.seq} ({entry.operation}) was made at a balance of {told['old']} in session {session}, "
            f"and PostgreSQL had {Decimal(str(found))}: another writer has changed it, or an earlier change was refused"
        )
        _log.error("balance diverged", extra={"seq": entry.seq, "session": session, "detail": message})
        self._sound(f"diverged-balance-{session}", message)
        return True

    def _compare_id(self, operation: ManagerOperation, entry: Entry, value: Any) -> None:
        """Report an id that is not the one which the caller has, as where the manager found the row there already."""
        told = notes_of(entry).get("id")
        if not notes_of(entry).get("final") or type(value) is not int or value == told:
            return
        table = operation.table_and_column()[0]
        message = (
            f"entry {entry.seq} ({entry.operation}) gave its caller id {told} of {table}, and the manager answered "
            f"with {value}: the row was there already"
        )
        _log.error("id diverged", extra={"seq": entry.seq, "table": table, "detail": message})
        self._sound(f"diverged-id-{table}-{told}", message)

    def _sound(self, alarm: str, message: str) -> None:
        if self._outbox is not None:
            try:
                self._outbox.alarms.sound(alarm, message)
            except OutboxError as exc:
                _log.error("the alarm could not be kept", extra={"error": str(exc)})

    def _build(self) -> None:
        # The relay is connected, so what failed before may work now.
        self._host.forget_failure()
        try:
            self._host.manager()
        except SQLAlchemyError as exc:
            raise TargetUnavailable(f"the manager cannot be built: {exc}") from exc
        except Exception as exc:
            raise TargetMisconfigured(f"the manager cannot be built: {type(exc).__name__}: {exc}") from exc

    # -- nothing may go past the relay's transaction

    @contextmanager
    def _watched(self, connection: Connection, as_of: AsOf) -> Iterator[Watch]:
        if connection.engine not in self._engines:
            self._engines.add(connection.engine)
            self._undo.append(watch_engine(connection.engine, self._watch_here))
            self._bind_alike(connection)
        watch = self._here.watch = Watch(as_of)
        self._here.database = _database_of(connection.connection.dbapi_connection)
        try:
            yield watch
        finally:
            self._here.watch = None

    def _watch_here(self) -> Watch | None:
        watch: Watch | None = getattr(self._here, "watch", None)
        return watch

    def _bind_alike(self, connection: Connection) -> None:
        """The manager's engine may have JSON functions of its own, for values that the default ones refuse."""
        own = getattr(getattr(self._host.built, "engine", None), "dialect", None)
        for name in ("_json_serializer", "_json_deserializer"):
            if getattr(own, name, None) is not None:
                setattr(connection.dialect, name, getattr(own, name))

    def _refusal(self, raw: Any) -> BaseException | None:
        rehearsal: Rehearsal | None = getattr(self._here, "rehearsal", None)
        if rehearsal is not None:
            # Noted here too: managers have bare excepts.
            rehearsal.reached = True
            return Reached()
        watch = self._watch_here()
        if watch is None or _database_of(raw) != self._here.database:
            return None
        return watch.misfits(
            "opened a connection of its own",
            "its writes must go through self.session_factory, or they could be applied twice",
        )

    @contextmanager
    def rehearsing(self) -> Iterator[Rehearsal]:
        """While a call is rehearsed in this thread: a connection of the manager's own ends the rehearsal."""
        self._here.rehearsal = rehearsal = Rehearsal()
        try:
            yield rehearsal
        finally:
            self._here.rehearsal = None
