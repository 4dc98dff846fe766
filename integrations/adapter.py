"""Adapter: carries out each call of a wrapped manager.  The working half of `DurableDatabaseManager`.

A critical call is bound, rehearsed, given its ids, made durable and folded into the local view, in that order; while
PostgreSQL answers, its caller then waits for the real result.  Inside a balance block it joins the block's group.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from functools import partial
from os import PathLike
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .. import Entry, Operation, Outbox, OutboxError
from ..errors import ConfigError
from ..log import Log
from ..words import first_line
from .binding import bind_to
from .calls import earlier_calls
from .calls.asked_reads import BlockReads
from .calls.block import Block, Entering, SessionLocks, current, entered, has_called, logged_at_exit
from .calls.callers_session import CallersSession
from .calls.delivery_waits import DeliveryWaits, PendingAttributes, local_result
from .calls.guard import Guard
from .calls.local_answers import LocalAnswers
from .calls.passing import Passing
from .calls.preparing import IdsTaken, Preparing
from .calls.sessions import Sessions
from .calls.stages import EncodedCall, Passed, RehearsedCall, in_session, lent_until_recorded, take_back
from .calls.unrecorded import Halt, Unwritten
from .code.begun import begun
from .ids.id_reserves import IdReserves
from .manager.away import Silence, is_away
from .manager.host import Host
from .operations import AFTER_DRAIN, ManagerOperation, notes_of, told_id
from .outage import Outage
from .preflight.preflight import examine
from .preflight.records import remembered
from .replay.balance import told_before
from .replay.replay import Replayer
from .replay.upgrades import refuse_unfit
from .roles import Session
from .upkeep.keeper import Keeper
from .view.former_learning import carried_over
from .view.kept_answers import ManagerRead
from .view.local_view import LocalView
from .view.reads import Reads

_log = Log("outbox.integrations")

# So often a call gets ids before it finds none left, though others take all of them each time.
_FILLS = 100
# The manager that each outbox serves.  Two would give out the same ids, and keep two views under one name.
_served: weakref.WeakKeyDictionary[Outbox, Host] = weakref.WeakKeyDictionary()


def _reserves_of(outbox: Outbox, calls: Iterable[ManagerOperation]) -> IdReserves:
    """The id reserves of the tables that the calls add rows to; a program begins few sessions a day."""
    creating = [call for call in calls if call.creates]
    few = {call.id_column for call in creating if call.session is Session.BEGINS}
    return IdReserves(outbox, {call.id_column for call in creating}, few)


def serving(manager_class: type | None) -> list[Outbox]:
    """The outboxes of this process that serve managers of that class."""
    found = [box for box, host in list(_served.items()) if host.manager_class is manager_class is not None]
    return [box for box in found if not box.store.forked]


class Adapter:
    """One wrapped manager and its outbox.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        operations: Iterable[Operation | ManagerRead],
        *,
        write_behind: bool = False,
        wait_s: float = 2.0,
        on_halt: Callable[[str], Any] | None = None,
        learned_from: str | PathLike[str] | None = None,
    ) -> None:
        """Raises `ConfigError` for operations that do not fit the manager, and for an outbox of another manager."""
        if outbox in _served:
            raise ConfigError(
                f"the outbox at {outbox.path} serves a {_served[outbox].name} already",
                hint="one manager, one store: give this one a directory of its own, or make one class of both",
            )
        self.host, self.outbox, self._halt = host, outbox, Halt(on_halt)
        self._write_behind = write_behind
        learned = None if learned_from is None else carried_over(outbox, learned_from)
        host.recall(outbox)
        self._build_if_possible()
        given = tuple(operations)
        self.calls, declared = self._fitting(given)
        self._reserves = _reserves_of(outbox, self.calls.values())
        reads = Reads(one for one in given if isinstance(one, ManagerRead))
        take, column_of = self._reserves.take_if_any, self._reserves.column_of
        self.replayer = Replayer(host, outbox.clock, reads, outbox=outbox, take_id=take, column_of=column_of)
        self.operations: tuple[Operation, ...] = bind_to(self.replayer, declared, self.calls)
        outbox.declare(self.operations)
        self.outage = Outage(outbox, host)
        self.keeper = Keeper(host, outbox, self.calls, reads, self._reserves, self.outage, learned)
        self.replayer.witness = self.keeper.witness
        self._unwritten = Unwritten(outbox, self.calls, host, self.keeper.kept.order, self.outage)
        self._serve(reads, wait_s)
        host.remember(outbox, (*self.calls, *reads.names, *AFTER_DRAIN))
        self.keeper.start()
        _served[outbox] = host

    def _fitting(
        self, given: tuple[Operation | ManagerRead, ...]
    ) -> tuple[dict[str, ManagerOperation], tuple[Operation, ...]]:
        """The declared calls that the manager has methods for, and all declared operations.

        Raises `ConfigError` for a manager or a pending entry that does not fit them.
        """
        host, outbox = self.host, self.outbox
        examine(host, given, outbox)
        declared = remembered((one for one in given if isinstance(one, Operation)), host.manager_class, outbox)
        calls = {one.name: one for one in declared if isinstance(one, ManagerOperation) and host.has(one.name)}
        refuse_unfit(outbox, host, calls)
        return calls, declared

    def _serve(self, reads: Reads, wait_s: float) -> None:
        """Make the parts that carry out calls, in the order in which they need each other."""
        host, outbox, keeper, replayer = self.host, self.outbox, self.keeper, self.replayer
        block = partial(current, self)
        self.delivery = delivery = DeliveryWaits(outbox, self.outage, replayer, wait_s=wait_s, refused=keeper.refused)
        outbox.progress.claim_refusals(replayer.answers.claims)
        self.sessions = Sessions(host, keeper.view, block)
        silence = Silence(self.outage.is_on, outbox.progress.ask, outbox.clock.monotonic)
        elsewhere, redefined = replayer.border.statement_elsewhere, self._reserves.redefine
        self.guard = Guard(delivery, elsewhere, partial(has_called, self), silence, redefined)
        host.when_built(self.guard.attach)
        self.callers_session = CallersSession(host, self.guard, self.outage)
        host.when_built(self.callers_session.attach)
        block_reads = BlockReads(host, keeper, outbox.clock, block, replayer)
        self.passing = Passing(self, reads, block_reads)
        self._session_locks = SessionLocks(outbox.clock)
        self.pending_attributes = PendingAttributes(host, replayer.carried, delivery, self.guard)
        self._preparing = Preparing(
            host,
            outbox,
            keeper,
            replayer,
            self.outage,
            delivery,
            self._reserves,
            self.sessions,
            block=block,
            methods=self.calls,
            pending_attributes=self.pending_attributes,
        )
        begins = any(call.session is Session.BEGINS for call in self.calls.values())
        self._local_answers = LocalAnswers(
            host, outbox, keeper, self.outage, delivery, block_reads, block, replayer.catalog, begins=begins
        )

    @property
    def view(self) -> LocalView:
        """What is known without PostgreSQL."""
        return self.keeper.view

    def close(self) -> None:
        """Keep the view and stop working in the background; may be called twice."""
        if _served.get(self.outbox) is self.host:
            del _served[self.outbox]
        self.outbox.progress.unclaim_refusals(self.replayer.answers.claims)
        self.keeper.stop()
        self.guard.close()
        self.callers_session.close()
        self.replayer.close()

    def _build_if_possible(self) -> None:
        try:
            self.host.manager()
        except SQLAlchemyError as exc:
            if not is_away(exc):
                raise
            _log.warning("PostgreSQL is away, the manager is built later: %(error)s", error=first_line(exc))
            if self.host.manager_class is not None:
                self.host.begin_with(begun(self.host.manager_class))

    # -- calls

    def refuse_fork(self) -> None:
        """Raise `StoreClosed` in a forked child, before any lock, which a thread of the parent may hold for ever."""
        if self.outbox.store.forked:
            self.outbox.store.check_open()

    def call(
        self, operation: ManagerOperation, args: tuple[Any, ...], kwargs: dict[str, Any], *, at: datetime | None = None
    ) -> Any:
        """Make one call durable; see `DurableDatabaseManager` for what it returns and raises.

        `at`: when it was made, where that was before there was an outbox.
        """
        bound: Mapping[str, Any] = {}
        try:
            self.keeper.look_at_code()
            call = self._preparing.bind(operation, args, kwargs, at=at)
            bound = call.bound
            self.refuse_fork()
            if current(self) is None:
                self.callers_session.save(operation)
            item = self._preparing.rehearsed(call)
            if not item.rehearsal.reached:
                return self._unwritten.answer(item)
            try:
                return self._with_ids(self._durably, item)
            finally:
                self.callers_session.follow()
        except OutboxError as exc:
            self._halt.after(exc)
            if self._unwritten.is_let_pass(operation, bound, exc):
                return None
            raise

    def _with_ids(self, make: Callable[[RehearsedCall, bool], Any], item: RehearsedCall) -> Any:
        """Make a call, with ids in reserve: other threads may take them before it has the order of calls."""
        for _ in range(_FILLS):
            has_ids = self._preparing.reserve(item)
            with suppress(IdsTaken):
                return make(item, has_ids)
        return make(item, False)

    def _durably(self, item: RehearsedCall, has_ids: bool) -> Any:
        """Store a call, or add it to the caller's block, and answer it; a repeated call is not stored again."""
        operation, block = item.operation, current(self)
        # A refused event must not take the trade of its block with it.
        group = None if operation.best_effort else block
        answers = self._local_answers
        waits = block is None and not self._write_behind and self.delivery.prompt()
        waits = waits and not answers.cannot_ask(item)
        if not waits:
            answers.look_up(item)
        with self._balance_lock(item, block), self.keeper.kept.order:
            hashed = earlier_calls.hash_of(self.outbox, item)
            entry = earlier_calls.stored(self.outbox, item, hashed)
            if entry is not None:
                answer, notes, unnumbered = local_result(operation, entry), notes_of(entry), None
            else:
                again = earlier_calls.in_block(group, item)
                if again is not None:
                    return again.local_answer
                item = in_session(item, self.sessions.of(item))
                if not waits and (refusal := answers.check(item)) is not None:
                    return refusal[0]
                item = self._preparing.as_of_now(item)
                if not item.rehearsal.reached:
                    # Another thread's call has come between: at a limit, say.
                    return self._unwritten.answer(item)
                prepared = answers.answering(self._preparing.prepare(item, final=not waits, has_ids=has_ids))
                encoded = self._preparing.encoded(prepared, hashed)
                entry = None if group is not None and group.add(encoded) else self._record([encoded], waits=waits)[0]
                answer, notes, unnumbered = encoded.local_answer, encoded.notes, encoded.unnumbered
        if unnumbered is not None:
            self._halt.after(unnumbered)
        if entry is not None and waits:
            return self._result(operation, [entry], answer, item.passed)
        item.passed.numbered(told_id(notes))
        return answer

    def _result(
        self,
        operation: ManagerOperation,
        entries: Sequence[Entry],
        local_answer: Any = None,
        passed: Passed | None = None,
    ) -> Any:
        """Wait for the delivery of a call or of a block, and return or raise the manager's answer to the first."""
        try:
            result = self.delivery.result(operation, entries, local_answer, passed)
        finally:
            self.replayer.carried.settle()
        if operation.session is Session.BEGINS:
            self.sessions.answered(notes_of(entries[0]).get("id"), result)
        return result

    def _balance_lock(self, item: RehearsedCall, block: Block | None) -> AbstractContextManager[Any]:
        if item.operation.balance is None:
            return nullcontext()
        return self._session_locks.held(self.sessions.of(item), inside=block)

    def block(self, operation: ManagerOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entering:
        """A context manager of the manager: all critical calls inside are one group, an exception records none.

        The block belongs to the code inside it, in whichever task or thread; blocks of one session wait for each other.
        Raises `BlockMisused` and `SessionBusy` beside what a call raises.
        """

        def alive() -> bool:
            made = entering()
            return made is not None and made.is_alive()

        # Weak: a block that was left open must be collected.
        made = Entering(self._block, (operation, args, kwargs, alive), {}, operation.name, self._halt.after)
        entering = weakref.ref(made)
        return made

    def _block(
        self,
        operation: ManagerOperation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        alive: Callable[[], bool],
    ) -> Generator[Any, None, None]:
        """The generator of a block: stores nothing before it ends, and then all of its calls in one commit."""
        self.refuse_fork()
        self.keeper.look_at_code()
        item = self._preparing.rehearsed(self._preparing.bind(operation, args, kwargs))
        outer = current(self)
        if not item.rehearsal.reached:
            self._unwritten.answer(item)
        waits = outer is None and not self._write_behind and self.delivery.prompt()
        session = self.sessions.of(item)
        with self._session_locks.held(session, inside=outer) as turn:
            self.keeper.kept.catch_up()
            block = Block(self, session, alive)
            opens, value = self._with_ids(partial(self._opening, block, outer, waits), item)
            with lent_until_recorded(block):
                with logged_at_exit(block), entered(block):
                    yield value
                if outer is None:
                    self.callers_session.save(operation)
                calls = block.end()
                if calls and opens and not turn.alone:
                    # Another block of the session may be recorded first, and change the balance.
                    calls[0] = self._preparing.without_balances(calls[0])
                if not calls or (outer is not None and outer.add(*calls)):
                    return
                with self.keeper.kept.order:
                    entries = self._record(calls, waits=waits)
        try:
            if waits:
                self._result(operation, entries)
        finally:
            self.callers_session.follow()

    def _opening(
        self, block: Block, outer: Block | None, waits: bool, item: RehearsedCall, has_ids: bool
    ) -> tuple[bool, Any]:
        """Make the call that opens a block its first; whether it was not made before.  And what the block yields."""
        hashed = earlier_calls.hash_of(self.outbox, item)
        first = earlier_calls.stored(self.outbox, item, hashed)
        again = earlier_calls.in_block(outer, item)
        earlier = again.notes if again is not None else notes_of(first) if first is not None else None
        if earlier is not None:
            return False, told_before(earlier)
        with self.keeper.kept.order:
            item = in_session(item, self.sessions.of(item))
            item = self._preparing.as_of_now(item)
            if not item.rehearsal.reached:
                self._unwritten.answer(item)
            prepared = self._preparing.prepare(item, final=not waits, has_ids=has_ids)
            is_applied = self._preparing.apply(prepared)
        value, prepared = self._local_answers.yielded(prepared, online=waits)
        block.add(self._preparing.encoded(prepared, hashed, is_applied=is_applied))
        return True, value

    def _record(self, items: list[EncodedCall], *, waits: bool) -> list[Entry]:
        """Make calls durable in one commit and fold them into the view; the order is held meanwhile.

        `waits`: the caller waits for their deliveries; where nobody does, the fold may be done later.
        """
        if waits:
            self.replayer.answers.expect(item.ready[0] for item in items)
        for item in items:
            # Before it is recorded: the relay may be fast.
            self.replayer.contexts.hold(item.ready[0].id, item.held)
        try:
            entries = self.outbox.submit([item.ready for item in items])
            for item, entry in zip(items, entries, strict=True):
                item.lent.keep(entry.seq)
                self._unwritten.wrote(item.operation.name)
                self.keeper.follow(entry, soon=not waits)
                self.passing.waiting.note(entry.operation, entry.seq)
                self.delivery.noted(entry.seq)
                self.pending_attributes.note(item, entry)
                self.sessions.follow(item.operation, item.session)
        except OutboxError:
            take_back(items)
            self.replayer.answers.forget(item.ready[0].id for item in items)
            for item in items:
                self.replayer.contexts.drop(item.ready[0].id)
            raise
        except BaseException:
            self._interrupted(items)
            raise
        return entries

    def _interrupted(self, items: list[EncodedCall]) -> None:
        """A signal handler has raised while calls were recorded: they may be stored, and folded in part."""
        self.keeper.kept.order.interrupted = True
        self.replayer.answers.forget(item.ready[0].id for item in items)
        last = self.outbox.store.last_seq()
        self.delivery.noted(last)
        for item in items:
            self.passing.waiting.note(item.operation.name, last)
            made, stored = item.ready[0], self.outbox.store.find(item.ready[0].key)
            if stored is not None and stored.id == made.id:
                item.lent.keep(stored.seq)
            else:
                self.replayer.contexts.drop(made.id)
        take_back(items)
        self.keeper.kept.catch_up()
