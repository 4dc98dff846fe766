"""Adapter: what a call of a wrapped manager does.  The working half of `DurableDatabaseManager`.

A critical call is bound, rehearsed, given its ids, made durable and folded into the local view, in that order; while
PostgreSQL answers, its caller then waits for the real result.  Reads see the caller's own writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID

from .. import DurabilityError, Entry, EntryStatus, IdempotencyConflict, InvalidEntry, Operation, Outbox, OutboxError
from ..codec import encode
from ..errors import ConfigError
from .asof import AsOf
from .balance import BalanceChange, dry_run, told_before
from .delivery import Delivery, local_result
from .host import AWAY, Host, ManagerUnavailable
from .id_reserve import IdReserveEmpty, IdReserves
from .keeper import Keeper
from .local_view import LocalView, UnknownLocally, number, plain
from .operations import AFTER_DRAIN, NOTES, ManagerOperation, call_of
from .passing import Passing
from .reads import LOCAL_READS
from .rehearsal import Rehearsal, rehearse
from .replay import CallFailed, Replayer

_log = logging.getLogger("outbox.integrations")

# For rows that are rolled back: the sequences stay untouched.
_PASSING_IDS = 2_000_000_000


@dataclass(slots=True)
class _Prepared:
    """A call on its way into the store."""

    operation: ManagerOperation
    bound: dict[str, Any]
    notes: dict[str, Any]
    session: int | None
    # What the call returns at once, known when it is durable.
    result: Any = None
    id: UUID | None = None


class Adapter:
    """One wrapped manager and its outbox.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        operations: Iterable[Operation],
        *,
        write_behind: bool = False,
        wait_s: float = 2.0,
        on_halt: Callable[[str], Any] | None = None,
    ) -> None:
        """Raises `ConfigError` for operations that do not fit the manager."""
        self.host, self.outbox, self.on_halt = host, outbox, on_halt
        self._write_behind = write_behind
        host.recall(outbox)
        self._build_if_possible()
        declared = tuple(operations)
        self.calls = {call.name: call for call in declared if isinstance(call, ManagerOperation) and self._fits(call)}
        self._reserves = IdReserves(outbox, {call.table_and_column() for call in self.calls.values() if call.creates})
        self.replayer = Replayer(host, outbox.clock, outbox=outbox, take_id=self._reserves.take_if_any)
        self.operations: tuple[Operation, ...] = bind_to(self.replayer, declared, self.calls)
        outbox.declare(self.operations)
        self.keeper = Keeper(host, outbox, self.calls, self._reserves)
        self.delivery = Delivery(outbox, self.replayer.answers, wait_s=wait_s, refused=self.keeper.doubt)
        self._session_id: int | None = None
        self.passing = Passing(self, write_behind=write_behind)
        self._balance_locks: dict[int | None, threading.RLock] = defaultdict(threading.RLock)
        self._here = threading.local()
        host.remember(outbox, (*self.calls, *LOCAL_READS, *AFTER_DRAIN))
        self.keeper.start()

    @property
    def view(self) -> LocalView:
        """What is known without PostgreSQL."""
        return self.keeper.view

    def close(self) -> None:
        """Keep the view and stop working in the background; may be called twice."""
        self.keeper.stop()
        self.replayer.close()

    def _build_if_possible(self) -> None:
        try:
            self.host.manager()
        except AWAY as exc:
            _log.warning("PostgreSQL is away, the manager is built later", extra={"error": str(exc).splitlines()[0]})

    def _fits(self, operation: ManagerOperation) -> bool:
        """Whether the manager has the operation's method.  Raises `ConfigError` where it must and has not."""
        if self.host.has(operation.name):
            own = inspect.getattr_static(self.host.manager_class, operation.name, None)
            operation.check_declaration(self.host.signature(operation.name), own)
            return True
        if not operation.optional and self.host.manager_class is not None:
            raise ConfigError(
                f"operation {operation.name!r} names a method that {self.host.manager_class.__name__} lacks",
                hint="check the declaration's name",
            )
        return False

    # -- the session that is current

    @property
    def session_id(self) -> int | None:
        """The current trading session, as the manager knows it or would know it."""
        known = self.host.get("_current_session_id", self._session_id)
        return self._session_id if known is None else known

    @session_id.setter
    def session_id(self, value: int | None) -> None:
        self._session_id = value
        self.host.set("_current_session_id", value)

    # -- calls

    def call(self, operation: ManagerOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one call durable; see `DurableDatabaseManager` for what it returns and raises."""
        bound = self._bind(operation, args, kwargs)
        rehearsal = self._rehearse(operation, bound)
        if not rehearsal.reached:
            return rehearsal.answer
        try:
            return self._durably(operation, bound, rehearsal)
        except OutboxError as exc:
            exit_of_halted = isinstance(exc, DurabilityError) and operation.never_refused is not None
            if operation.best_effort or (exit_of_halted and operation.never_refused(bound)):  # type: ignore[misc]
                level = logging.WARNING if operation.best_effort else logging.CRITICAL
                _log.log(level, "a call was not recorded", extra={"operation": operation.name, "error": str(exc)})
                return None
            raise

    def _durably(self, operation: ManagerOperation, bound: dict[str, Any], rehearsal: Rehearsal) -> Any:
        block: list[_Prepared] | None = getattr(self._here, "group", None)
        # A refused event must not take the trade of its block with it.
        group = None if operation.best_effort else block
        waits = block is None and not self._write_behind and self.delivery.prompt()
        lock = self._balance_locks[self._session_of(bound)] if operation.name == "update_balance" else None
        with lock or self.keeper.order, self.keeper.order:
            first = self._first(operation, bound)
            if first is None:
                item = self._first_in(group, operation, bound)
                if item is not None:
                    return item.notes.get("id", operation.returns)
                if not waits:
                    self._check(operation, bound)
                item = self._prepare(operation, bound, rehearsal, final=not waits)
                if group is not None:
                    group.append(item)
                    return item.notes.get("id", operation.returns)
                first = self._record([item])[0]
        return self.delivery.result(operation, first, first) if waits else local_result(operation, first)

    @contextmanager
    def block(self, operation: ManagerOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """A context manager of the manager: everything critical inside is one group, an exception records nothing.

        Balance changes of one session wait for each other.
        """
        bound = self._bind(operation, args, kwargs)
        outer: list[_Prepared] | None = getattr(self._here, "group", None)
        waits = outer is None and not self._write_behind and self.delivery.prompt()
        rehearsal = self._rehearse(operation, bound)
        with self._balance_locks[self._session_of(bound)]:
            first = self._first(operation, bound)
            earlier = first.args[NOTES] if first is not None else None
            again = self._first_in(outer, operation, bound)
            earlier = again.notes if again is not None else earlier
            group: list[_Prepared] = [] if outer is None else outer
            mark = len(group)
            if earlier is not None:
                told: Any = told_before(earlier)
            else:
                item = self._prepare(operation, bound, rehearsal, final=not waits)
                told = self._told(item, online=waits)
                group.append(item)
            self._here.group = group
            try:
                yield told
            except BaseException:
                del group[mark:]
                raise
            finally:
                self._here.group = outer
            if outer is not None or not group:
                return
            with self.keeper.order:
                entries = self._record(group)
        if waits:
            self.delivery.result(operation, entries[0], entries[-1])

    def _bind(self, operation: ManagerOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, so that positional and keyword calls are alike.  Raises `TypeError` as the call would."""
        bound = self.host.signature(operation.name).bind(*args, **kwargs)
        call: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            is_extra = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            call |= value if is_extra else {name: value}
        return call

    def _rehearse(self, operation: ManagerOperation, bound: dict[str, Any]) -> Rehearsal:
        """Let the manager refuse what it can refuse without PostgreSQL, in its own way."""
        try:
            replica = self.host.replica(session_id=self._session_of(bound), apart=True)
            with self.replayer.rehearsing() as rehearsal:
                return rehearse(rehearsal, replica, operation.name, dict(bound), context=operation.context)
        except (ManagerUnavailable, AttributeError):
            if self.host.built is not None:
                raise
            # Its constructor has not run, and what that would have set is missing.
            return Rehearsal(reached=True)

    def _session_of(self, bound: Mapping[str, Any]) -> int | None:
        session: int | None = bound.get("session_id")
        for name in ("position_id", "position_db_id"):
            if session is None and bound.get(name) is not None:
                session = self.view.session_of_position(bound[name])
        return self.session_id if session is None else session

    def _first(self, operation: ManagerOperation, bound: dict[str, Any]) -> Entry | None:
        """The entry of an earlier call with the same identity, or None.

        Raises `IdempotencyConflict` where that one had other arguments, `CallFailed` where it is a dead letter.
        """
        first = self.outbox.lookup(operation.name, bound) if operation.alternatives else None
        if first is None:
            return None
        _must_be_same(operation, call_of(first), bound, f"entry {first.seq}")
        if first.status is EntryStatus.FAILED:
            raise CallFailed(
                f"{operation.name} with this identity is entry {first.seq}, which was refused: {first.error}",
                hint="requeue or discard it",
            )
        return first

    def _first_in(
        self, group: list[_Prepared] | None, operation: ManagerOperation, bound: dict[str, Any]
    ) -> _Prepared | None:
        """The call with the same identity that waits in the same block.  Raises `IdempotencyConflict`."""
        identity = operation.identity_of(bound) if group and operation.alternatives else None
        if identity is None:
            return None
        for item in group or ():
            if item.operation is operation and operation.identity_of(item.bound) == identity:
                _must_be_same(operation, item.bound, bound, "in this block")
                return item
        return None

    def _prepare(
        self, operation: ManagerOperation, bound: dict[str, Any], rehearsal: Rehearsal, *, final: bool
    ) -> _Prepared:
        """`final`: the caller will not wait to hear another id than the one that it is given here."""
        session = self._session_of(bound)
        self.keeper.meet(session)
        notes: dict[str, Any] = {"session": session}
        if operation.creates:
            notes |= {"final": True} if final else {}
            table, column = operation.table_and_column()
            with self._halting():
                notes["id"] = self._take_id(table, column)
            if table == "trading_sessions":
                notes["session"] = session = notes["id"]
            given = {value for value in map(plain, bound.values()) if isinstance(value, str)}
            made = {name: text for name, text in rehearsal.made.get(table, {}).items() if text not in given}
            notes |= {"made": {table: made}} if made else {}
        if operation.name == "update_balance":
            with suppress(OutboxError, ValueError):
                notes["told"] = {"old": self._local_balance(session), "new": number(bound["new_balance"])}
        return _Prepared(operation, bound, notes, session)

    def _take_id(self, table: str, column: str) -> int:
        try:
            return self._reserves.take(table, column)
        except IdReserveEmpty:
            if self.delivery.works is False:
                raise
            # A burst was faster than the background work, or PostgreSQL could not be reached at the start.
            try:
                self._reserves.fill(self.host.manager().engine)
            except AWAY as exc:
                _log.warning("id reserves could not be filled", extra={"error": str(exc).splitlines()[0]})
            return self._reserves.take(table, column)

    def _check(self, operation: ManagerOperation, bound: dict[str, Any]) -> None:
        call = {**bound, "session_id": self._session_of(bound)}
        for check in operation.checks:
            try:
                check(call, self.view)
            except UnknownLocally:
                if not self.delivery.works or not self.keeper.observe(call["session_id"]):
                    raise
                check(call, self.view)

    def _told(self, item: _Prepared, *, online: bool) -> Any:
        """What the block is told: by the manager itself where it can be asked, else by the local view."""
        change = self._ask(item) if online and self.delivery.settled() else None
        if change is not None:
            item.notes["told"] = {name: number(_field(change, f"{name}_balance")) for name in ("old", "new")}
            return change
        self._check(item.operation, item.bound)
        bound = item.bound
        delta = number(bound["balance_change"] if "balance_change" in bound else bound["realized_pnl"])
        old = self._local_balance(item.session)
        item.notes["told"] = {"old": old, "new": old + delta}
        extra = {"position_id": bound["position_db_id"]} if "position_db_id" in bound else {}
        extra |= {"trade_id": item.notes["id"]} if "id" in item.notes else {}
        return BalanceChange(old_balance=old, new_balance=old + delta, change=delta, **extra)

    def _ask(self, item: _Prepared) -> Any:
        clock, ids = self.outbox.clock, count(_PASSING_IDS)
        columns = item.operation.table_and_column()
        as_of = AsOf(columns, item.notes, clock.now(), clock, lambda *_: next(ids))
        try:
            manager, replica = self.host.manager(), self.host.replica(session_id=item.session, apart=True)
            return dry_run(manager, replica, item.operation.name, dict(item.bound), as_of)
        except AWAY:
            return None

    def _local_balance(self, session: int | None) -> Any:
        balance = self.view.balance(session)
        for item in getattr(self._here, "group", None) or ():
            if item.session == session and "told" in item.notes:
                balance = item.notes["told"]["new"]
        return balance

    def _record(self, items: list[_Prepared]) -> list[Entry]:
        """Make calls durable in one commit and fold them into the view; the order is held meanwhile."""
        with self._halting():
            try:
                entries = self._enqueue(items)
            except InvalidEntry:
                # Members of enum classes that are new to the outbox may be all that it refused.
                if not self.host.learn_enums(self.outbox, [item.bound for item in items]):
                    raise
                entries = self._enqueue(items)
        for item, entry in zip(items, entries, strict=True):
            self.keeper.fold(entry)
            self.delivery.noted(entry)
            if item.operation.name == "create_trading_session":
                self.session_id = entry.args[NOTES]["id"]
            elif item.operation.name == "end_trading_session" and item.session == self.session_id:
                self.session_id = None
        return entries

    def _enqueue(self, items: list[_Prepared]) -> list[Entry]:
        calls = [(item.operation.name, {**item.bound, NOTES: item.notes}) for item in items]
        if len(calls) == 1:
            return [self.outbox.enqueue(*calls[0])]
        with self.outbox.transaction() as transaction:
            for name, args in calls:
                transaction.enqueue(name, args)
        return list(transaction.entries)

    @contextmanager
    def _halting(self) -> Iterator[None]:
        """Tell the host to enter its close-only mode before it hears of the error."""
        try:
            yield
        except DurabilityError as exc:
            if self.on_halt is not None:
                self.on_halt(str(exc))
            raise


def bind_to(
    replayer: Replayer, operations: Iterable[Operation], calls: Mapping[str, ManagerOperation] | None = None
) -> tuple[Operation, ...]:
    """`operations` with handlers that replay on the replayer's manager; only `calls`, where given, of its methods."""
    bound: list[Operation] = []
    for operation in operations:
        if not isinstance(operation, ManagerOperation):
            bound.append(operation)
        elif calls is None or operation.name in calls:
            bound.append(dataclasses.replace(operation, handler=replayer.handler(operation)))
    return tuple(bound)


def _must_be_same(operation: ManagerOperation, first: Mapping[str, Any], call: Mapping[str, Any], where: str) -> None:
    if encode(plain(first))[0] != encode(plain(call))[0]:
        raise IdempotencyConflict(
            f"{operation.name} with this identity is {where} already, with other arguments",
            hint="one intent, one identity: the first call stands",
        )


def _field(change: Any, name: str) -> Any:
    return change[name] if isinstance(change, Mapping) else getattr(change, name)
