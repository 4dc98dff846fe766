"""DurableDatabaseManager: an engine's own DatabaseManager behind the outbox, by composition.

Critical writes are on the local disk when the call returns; the relay replays each of them later by calling the
same method on a shallow copy of the manager whose sessions live inside the relay's transaction, so that the
effect and the receipt commit together.  Everything else passes straight through to the manager.
"""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from .. import DurabilityError, Entry, Operation, Outbox, OutboxError
from .id_reserve import IdReserve

_log = logging.getLogger("outbox.integrations")

# Ids that are kept in reserve, by table.
_RESERVE = {"trading_sessions": 100, "positions": 5000}


class CallFailed(OutboxError):
    """The manager answered False: it swallowed an error, so the call must not be taken for applied."""


@dataclass(frozen=True)
class Call:
    """How one method of a manager is made durable.  Methods that a manager lacks are left out."""

    method: str
    # Arguments that identify the intent; the first tuple without a None counts, else every call is its own.
    identity: tuple[tuple[str, ...], ...] = ()
    # Table of which the method returns a new id.
    creates: str | None = None
    # What the durable call returns at once, where it creates no id.
    returns: Any = None
    # Whether a False from the manager means that the write failed.
    false_fails: bool = False


CALLS = (
    Call("create_trading_session", creates="trading_sessions"),
    Call("end_trading_session", identity=(("session_id",),)),
    Call("log_position", identity=(("client_order_id",), ("entry_order_id",)), creates="positions"),
    Call("update_position", returns=True, false_fails=True),
    Call("close_position", identity=(("position_id",),), returns=True, false_fails=True),
    Call("log_trade", identity=(("position_id",), ("exit_order_id",))),
    Call("update_balance", returns=True, false_fails=True),
    Call("create_order_journal_entry", identity=(("client_order_id",),)),
    Call("update_order_journal", returns=True, false_fails=True),
    Call("update_order_status_new", returns=True, false_fails=True),
    Call("apply_partial_exit_update"),
    Call("apply_scale_in_update"),
)
_BALANCE_METHOD = "atomic_balance_update"
_BALANCE = Call(_BALANCE_METHOD, identity=(("correlation_id", "reason"),))
# Written by the manager from inside other methods; replayed after them, in a savepoint of their own.
_NESTED = ("log_event",)


@dataclass
class LocalBalanceChange:
    """What `atomic_balance_update` yields, known without PostgreSQL; amounts are in the account's currency."""

    old_balance: Decimal
    new_balance: Decimal
    change: Decimal


def operations(manager: Callable[[], Any]) -> list[Operation]:
    """The operations that replay calls on the manager that `manager()` returns, which is called when one is needed."""
    return [
        Operation(call.method, handler=_replayer(call, manager), identity=_identity(call), order_by=_order)
        for call in (*CALLS, _BALANCE)
    ]


class DurableDatabaseManager:
    """Stands where the manager stood: same methods, same arguments.  As thread-safe as the manager.

    Critical methods return at once, with final ids; their rows appear in PostgreSQL when the relay has moved them.
    `on_halt(reason)` is called when the outbox cannot promise durability any more, before the error is raised.
    """

    def __init__(self, manager: Any, outbox: Outbox, *, on_halt: Callable[[str], None] | None = None) -> None:
        """`manager` must be connected: ids are reserved from its sequences.  Raises `SQLAlchemyError`."""
        self._manager, self._outbox, self._on_halt = manager, outbox, on_halt
        self._lock = threading.RLock()
        self._filling = threading.Lock()
        self._session_id: int | None = getattr(manager, "_current_session_id", None)
        self._balances: dict[int, Decimal] = {}
        self._calls = {call.method: call for call in CALLS if hasattr(manager, call.method)}
        self._reserves = {table: IdReserve(outbox, table) for table in _RESERVE}
        self.fill_reserves()

    def fill_reserves(self) -> None:
        """Fetch ids until the reserves are full.  Raises `SQLAlchemyError` when PostgreSQL is away."""
        engine: Engine = self._manager.engine
        for table, reserve in self._reserves.items():
            reserve.fill(engine, _RESERVE[table])

    def __getattr__(self, name: str) -> Any:
        calls = self.__dict__.get("_calls", {})
        if name in calls:
            return self._durable(calls[name])
        return getattr(self.__dict__["_manager"], name)

    def _durable(self, call: Call) -> Callable[..., Any]:
        method = getattr(self._manager, call.method)

        def durable(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                entry = self._enqueue(call, self._bind(method, args, kwargs))
                result = _new_id(entry) if call.creates else call.returns
                if call.method == "create_trading_session":
                    self._session_id = result
                elif call.method == "update_balance" and self._session_id is not None:
                    bound = entry.args["call"]
                    self._balances[bound.get("session_id") or self._session_id] = Decimal(str(bound["new_balance"]))
                return result

        durable.__name__, durable.__doc__ = call.method, method.__doc__
        durable.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
        return durable

    @contextmanager
    def atomic_balance_update(self, *args: Any, **kwargs: Any) -> Iterator[LocalBalanceChange]:
        """As the manager's: the change is recorded when the block ends well, an exception inside records nothing."""
        with self._lock:
            bound = self._bind(getattr(self._manager, _BALANCE_METHOD), args, kwargs)
            session_id = bound.get("session_id") or self._session_id
            if session_id is None:
                raise ValueError("session_id is missing and no trading session is current")
            old = self._balance(session_id)
            change = Decimal(str(bound["balance_change"]))
            if old + change < 0:
                raise ValueError(f"the balance of session {session_id} is {old} and cannot change by {change}")
            yield LocalBalanceChange(old, old + change, change)
            self._enqueue(_BALANCE, bound)
            self._balances[session_id] = old + change

    def _balance(self, session_id: int) -> Decimal:
        if session_id not in self._balances:
            self._balances[session_id] = Decimal(str(self._manager.get_current_balance(session_id)))
        return self._balances[session_id]

    def _bind(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, so that positional and keyword calls are alike.  Raises `TypeError` as the call would."""
        bound = inspect.signature(method).bind(*args, **kwargs).arguments
        if self._session_id is not None and "session_id" in inspect.signature(method).parameters:
            # The session that is current now, not the one that will be at replay.
            bound["session_id"] = bound.get("session_id") or self._session_id
        return dict(bound)

    def _enqueue(self, call: Call, bound: dict[str, Any]) -> Entry:
        try:
            new_id = self._take_id(call.creates) if call.creates else None
            session = bound.get("session_id") or self._session_id or new_id
            return self._outbox.enqueue(call.method, {"call": bound, "id": new_id, "session": session})
        except DurabilityError as exc:
            if self._on_halt is not None:
                self._on_halt(str(exc))
            raise

    def _take_id(self, table: str) -> int:
        reserve = self._reserves[table]
        if reserve.left() < _RESERVE[table] // 2 and not self._filling.locked():
            # Beside the engine: fetching ids must not hold up a trade, and fails while PostgreSQL is away.
            threading.Thread(target=self._fill_again, name="outbox-id-reserve", daemon=True).start()
        return reserve.take()

    def _fill_again(self) -> None:
        if not self._filling.acquire(blocking=False):
            return
        try:
            self.fill_reserves()
        except (SQLAlchemyError, OutboxError) as exc:
            _log.warning("id reserves could not be filled", extra={"error": str(exc)})
        finally:
            self._filling.release()


def _identity(call: Call) -> Callable[[Any], Any]:
    def identity(args: Any) -> Any:
        for names in call.identity:
            values = [args["call"].get(name) for name in names]
            if None not in values:
                return [list(names), values]
        return None

    return identity


def _order(args: Any) -> str:
    return f"session:{args['session']}"


def _new_id(entry: Entry) -> Any:
    return entry.args["id"]


def _replayer(call: Call, manager: Callable[[], Any]) -> Callable[[Connection, Entry], Any]:
    def replay(connection: Connection, entry: Entry) -> Any:
        replica = copy.copy(manager())
        factory = _session_factory(replica.session_factory, connection)
        replica.session_factory = factory
        if entry.args["session"] is not None:
            replica._current_session_id = entry.args["session"]
        deferred = _defer_nested(replica)
        if call.creates is not None:
            _assign_id(factory, call.creates, entry.args["id"])
        method = getattr(replica, call.method)
        if call is _BALANCE:
            with method(**entry.args["call"]):
                result = None
        else:
            result = method(**entry.args["call"])
        if result is False and call.false_fails:
            raise CallFailed(f"{call.method} of the manager answered False", hint="see the engine's log for its error")
        for name, args, kwargs in deferred:
            getattr(type(replica), name)(replica, *args, **kwargs)
        return result

    return replay


def _session_factory(original: sessionmaker[Session], connection: Connection) -> sessionmaker[Session]:
    """A factory like the manager's whose commits are savepoints of the relay's transaction."""
    options = {
        **original.kw,
        "bind": connection,
        "join_transaction_mode": "create_savepoint",
        # A session that reads a committed object again would open a savepoint that its close rolls back.
        "expire_on_commit": False,
    }
    # A class of its own, so that listeners on it end with this replay.
    own = type("ReplaySession", (original.class_,), {})
    return sessionmaker(class_=own, **{name: value for name, value in options.items() if name != "class_"})


def _assign_id(factory: sessionmaker[Session], table: str, new_id: int) -> None:
    """Give the first new row of `table` the id that the engine was told."""
    left = [new_id]

    @event.listens_for(factory.class_, "before_flush")
    def assign(session: Session, *_: Any) -> None:
        for row in session.new:
            if left and getattr(row, "__tablename__", None) == table:
                row.id = left.pop()


def _defer_nested(replica: Any) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    deferred: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in _NESTED:
        if hasattr(replica, name):

            def defer(*args: Any, _name: str = name, **kwargs: Any) -> None:
                deferred.append((_name, args, kwargs))

            setattr(replica, name, defer)
    return deferred
