"""Replay: applies one stored call by calling the manager's own method inside the relay's transaction.

The call runs on a shallow copy of the manager whose sessions are bound to the relay's connection, so that the manager's
commits are savepoints and the receipt commits with the effect.  Ids are those that the caller was given, times those of
the capture, and a method that swallows its error is not taken for success.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from functools import partial
from typing import Any

from sqlalchemy import Connection

from ... import Entry, Outbox
from ...clock import Clock
from ...errors import OutboxError, Reject, TargetMisconfigured, TargetUnavailable
from ...log import Log
from ...monitoring.notices import Alarms
from ...words import first_line
from ..code.signatures import invoke, signature_of_bound
from ..manager.away import Failures, is_away, noting
from ..manager.host import Host, replica_of
from ..manager.manager_connection import ManagerConnection
from ..operations import BALANCES, ManagerOperation, StoredCall, notes_of, told_id
from ..plain_data import PLAIN
from ..roles import Position
from ..state import context_state
from ..state.carried import Carried
from ..state.context_state import Contexts
from ..state.kept_state import KeptState
from ..view import checks
from ..view.amounts import nearly_equal, number_or_none
from ..view.reads import BALANCE, Reads
from . import sessions
from .asof import AsOf
from .border import Border
from .divergence import Divergences
from .fingerprint import AT_ONCE, LaterValues, code_of, is_same_moment
from .frozen_clock import FrozenClock, frozen
from .no_ops import applied, declined, is_refusal
from .replay_session import Watch, work_on
from .rewritten_sql import Catalog
from .row_ids import SameRow, SideIds
from .sessions import everywhere
from .told_answers import Answer, Answers, id_in
from .upgrades import misconfigured, must_fit, upgraded
from .witness import Witness

_log = Log("outbox.integrations")


class CallFailed(Reject, ValueError):
    """A replayed method raised, answered that it failed, or wrote nothing: it must not be taken for applied."""


def _no_id(*_: str | None) -> None:
    """Let PostgreSQL give the id."""


class Handler:
    """Applies the entries of one operation."""

    def __init__(self, apply: Callable[[Connection, Entry], Any], keep_alarms_in: Callable[[Alarms], None]) -> None:
        """`keep_alarms_in`: called by the relay with the alarms of its store."""
        self._apply, self.keep_alarms_in = apply, keep_alarms_in

    def __call__(self, connection: Connection, entry: Entry) -> Any:
        """See `Operation.handler`."""
        return self._apply(connection, entry)


class _Nobody:
    """The witness of a replay that is not learned from."""

    def told(self, value: Any) -> None:
        """Nothing comes of it."""

    def answered(self, value: Any) -> Any:
        """The answer; nothing comes of it."""
        return value


class Replayer:
    """Makes handlers that replay on one host's manager.  Its handlers run in the relay's thread."""

    def __init__(
        self,
        host: Host,
        clock: Clock,
        reads: Reads | None = None,
        *,
        outbox: Outbox | None = None,
        take_id: Callable[..., Any] | None = None,
        column_of: Callable[[str | None, str], str | None] = _no_id,
    ) -> None:
        """`take_id` and `column_of` give ids to further rows of a call, as `SideIds` takes them."""
        self._host, self._clock = host, clock
        self._divergences = Divergences(None if outbox is None else outbox.alarms)
        self._reads = reads or Reads()
        self._take_id, self._column_of = take_id or _no_id, column_of
        self._here = threading.local()
        self._connection = ManagerConnection(host)
        self.border, self.catalog = Border(host), Catalog()
        self.answers = Answers()
        # Learns from replays, in a process with a local view; None in one that runs only a relay.
        self.witness: Witness | None = None
        self.carried = Carried(host, outbox)
        self.contexts = Contexts(outbox, self._divergences.of_context)
        self.same_row = SameRow()
        self._later = LaterValues()
        # Operations of which a thread has written behind the end of a replay, so that it was lost.
        self._late: dict[str, TargetMisconfigured] = {}
        # The first entry of this process.
        self._own_from = 0
        if outbox is not None:
            self.same_row.keep_in(outbox.store)
            self._later.keep_in(outbox.store)
            self._own_from = outbox.store.figures().counters.next_seq

    def close(self) -> None:
        """Take the listeners away again."""
        self.border.close()
        self._connection.close()

    def handler(self, operation: ManagerOperation) -> Handler:
        """The handler that applies entries of `operation`."""

        def replay(connection: Connection, stored: Entry) -> Any:
            self._build()
            # Of its own: the call must find neither what another one has left in its context, nor the relay's.
            return Context().run(deliver, connection, stored)

        def deliver(connection: Connection, stored: Entry) -> Any:
            if operation.name in self._late:
                raise self._late[operation.name]
            entry = upgraded(operation, stored)
            notes = notes_of(entry)
            self._here.kept = None
            try:
                with (
                    context_state.decimals_restored(notes.get("decimals")),
                    # Listeners of the connection read it, too.
                    self.contexts.restored(self._host.built, operation.name, entry, notes),
                    # Before the watch, which would refuse the connection of the manager's own that this may open.
                    self._connection.around(connection) as own,
                ):
                    made = StoredCall.of(operation, entry)
                    sides = self._here.sides = SideIds(notes.get("side"), self._take_id, self._column_of)
                    as_of = AsOf(
                        operation.id_column,
                        notes,
                        entry.captured_at,
                        self._clock,
                        sides,
                        call=[made.given, notes.get("defaults")],
                        catalog=self.catalog,
                    )
                    as_of.follow(own)
                    with self.border.watched(own, as_of) as watch:
                        watch.on_late = partial(self._is_late, entry)
                        return self._replay(made, own, watch, as_of)
            except BaseException:
                self.carried.drop(entry, self._here.kept, notes.get("foreseen", {}))
                self.border.forget()
                self.catalog.forget()
                raise

        return Handler(replay, self._keep_alarms_in)

    def _is_late(self, entry: Entry, error: TargetMisconfigured) -> None:
        """Deliver no more calls of an operation of which a part has got lost."""
        self._late.setdefault(entry.operation, error)
        self._divergences.of_thread(entry)

    def _replay(
        self,
        made: StoredCall,
        connection: Connection,
        watch: Watch,
        as_of: AsOf,
        *,
        in_real_time: bool = False,
    ) -> Any:
        operation, entry, notes = made.operation, made.entry, made.notes
        copy = partial(self._host.replica, session_id=notes.get("session"))
        replica, kept = self.carried.begin(copy, entry, notes.get("state"), notes.get("foreseen", {}))
        self._here.kept = kept
        hidden = {operation.name, *self._reads.names}
        self._host.show_patches(replica, hidden)
        self._host.show_mocks(replica, hidden)
        watch.on_contact = kept.contact
        work_on(connection, replica, watch)
        try:
            limited = getattr(connection, "is_limited", True)
            with (
                noting(is_limited=limited) as failures,
                frozen(entry.captured_at, replica, as_of.told_uuid) as clock,
            ):
                if in_real_time:
                    clock.thaw()
                with everywhere(replica.session_factory):
                    try:
                        value, call = self._call(made, replica, watch, as_of, clock)
                    finally:
                        sessions.end_scope(replica.session_factory)
        except Exception as exc:  # noqa: BLE001 - whatever the manager raises is judged there
            if not (in_real_time or kept.in_contact or watch.misfit or isinstance(exc, OutboxError)):
                # The rehearsal came further: an object that later calls have used, too, refuses to go back in time.
                again = StoredCall.of(operation, entry)
                return self._replay(again, connection, watch, as_of, in_real_time=True)
            result = self._raised(operation, entry, watch, exc)
            self.carried.end(kept, entry, notes.get("foreseen", {}))
            return result
        self._judge(made, type(replica), watch, failures, value, call)
        if not (in_real_time or kept.has_followed):
            self._compare_values(made, watch, clock)
        self.carried.end(kept, entry, notes.get("foreseen", {}))
        return value if isinstance(value, (bool, int, str, type(None))) else None

    def _judge(
        self, made: StoredCall, kind: type, watch: Watch, failures: Failures, value: Any, call: dict[str, Any]
    ) -> None:
        """Keep what a manager of class `kind` answered for the caller, or raise where that was no success."""
        operation, entry = made.operation, made.entry
        if watch.misfit is not None:
            raise watch.misfit
        # After a failure that it swallowed, the manager may have written something else than it would without.
        # Where it has written nothing, its answer (-1, a dict) may stand for the failure.
        swallowed = failures.passing if watch.committed else failures.first
        if swallowed is not None:
            raise swallowed
        done = applied(operation, kind, value, wrote=watch.committed, error=watch.error)
        left = {name: one for name, one in call.items() if type(one) not in PLAIN}
        self.answers.keep(entry.seq, Answer(value, refusal=not done, call=left))
        if not done:
            if watch.error is not None:
                raise self._of_database(operation, entry, watch.error)
            failed = CallFailed(
                f"{operation.name} of the manager answered {value!r} and wrote nothing",
                hint="see the engine's log; the row may be missing",
            )
            failed.holds_back = not declined(operation, kind, value)
            raise failed
        # Whether the caller of an earlier process's entry got an id is unknown.
        if made.notes.get("final") or self.answers.is_left(entry.seq) or entry.seq < self._own_from:
            self.compare_id(operation, entry, value)

    def _raised(self, operation: ManagerOperation, entry: Entry, watch: Watch, exc: Exception) -> Any:
        """What an exception of the manager means for the entry."""
        if watch.misfit is not None or isinstance(exc, (TargetUnavailable, TargetMisconfigured)):
            raise watch.misfit or exc
        self.answers.keep(entry.seq, Answer(error=exc))
        error = watch.error_behind(exc)
        if error is None and is_away(watch.error) and not watch.committed:
            # The manager has swallowed an outage, and raised an error of its own.
            error = watch.error
        if error is not None and not (watch.committed and is_refusal(error)):
            raise self._of_database(operation, entry, error)
        if watch.committed:
            # The effect counts, as it would have without the outbox; the caller gets the error.
            _log.warning(
                "entry %(seq)s (%(operation)s) was applied and then raised: %(error)s",
                seq=entry.seq,
                operation=entry.operation,
                error=exc,
            )
            return {"raised": f"{type(exc).__name__}: {exc}"}
        raise CallFailed(f"{operation.name} of the manager raised {type(exc).__name__}: {exc}") from exc

    def _of_database(self, operation: ManagerOperation, entry: Entry, error: BaseException) -> BaseException:
        """What to raise for an error of PostgreSQL that a call was not applied for."""
        if self.answers.is_awaited(entry) and checks.is_raised(error):
            # Whether it passes is the caller's to find out, as with the manager.
            return CallFailed(f"{operation.name} was refused by a function or a trigger: {first_line(error)}")
        return misconfigured(error, operation, entry, self._host) or error

    def _call(
        self, made: StoredCall, replica: Any, watch: Watch, as_of: AsOf, clock: FrozenClock
    ) -> tuple[Any, dict[str, Any]]:
        """What the method answers, and the arguments as it leaves them."""
        operation, entry = made.operation, made.entry
        method = getattr(replica, operation.name, None)
        if method is None:
            raise TargetMisconfigured(f"the manager has no method {operation.name!r}, and entry {entry.seq} needs it")
        if self._diverged(made, replica):
            # The change follows what the other writer did, so it must not be stamped before that.
            as_of.keep_times()
            clock.thaw()
        # Defaults are those of the software that was called, as far as the method still has these arguments.
        signature = signature_of_bound(method)
        must_fit(made, signature)
        known = signature.parameters
        call = {name: value for name, value in made.notes.get("defaults", {}).items() if name in known}
        call |= operation.of_row(made.given, self.same_row.of)
        with self._witnessing(made, replica, watch) as witness:
            if not operation.context:
                answer = invoke(method, call)
                sessions.commit_left(replica.session_factory)
                return witness.answered(answer), call
            with invoke(method, call) as told:
                witness.told(told)
            sessions.commit_left(replica.session_factory)
        return None, call

    def _witnessing(self, made: StoredCall, replica: Any, watch: Watch) -> AbstractContextManager[Any]:
        if self.witness is None:
            return nullcontext(_Nobody())
        return self.witness.watching(made, replica, watch, self.border.unwatched, self._here.sides)

    def _diverged(self, made: StoredCall, replica: Any) -> bool:
        """Whether the balance is another than the caller was given, which is reported, or was so before this call."""
        entry, given, session = made.entry, made.notes.get(BALANCES) or {}, made.notes.get("session")
        overtaken = made.operation.balance is not None and self._divergences.is_overtaken(session, entry.captured_at)
        if "old" not in given:
            return overtaken
        with self.border.unwatched():
            reader = KeptState(replica_of(replica)).replica
            found = number_or_none(self._reads.asking(reader)(BALANCE, session))
        near = nearly_equal if self.witness is None else self.witness.is_balance
        if found is None or near(found, given["old"]):
            return overtaken
        self._divergences.of_balance(entry, session, given["old"], found, self._clock.now())
        return True

    def _compare_values(self, made: StoredCall, watch: Watch, clock: FrozenClock) -> None:
        """Report values that the call had otherwise when it turned to the database."""
        operation, entry, given = made.operation, made.entry, made.given
        kept, cls = made.notes.get("fingerprint"), self._host.manager_class
        if not kept or not watch.fingerprint or cls is None or self._host.is_mocked:
            return
        if operation.of_row(given, self.same_row.of) != given:
            # The row that the call meant is another one.
            return
        if clock.was_read and not is_same_moment(kept, entry.captured_at):
            return
        code = code_of(cls, operation.name)
        at_once = entry.seq >= self._own_from and self._clock.now() - entry.captured_at < AT_ONCE
        names = self._later.differing(operation.name, kept, watch.fingerprint, code, at_once=at_once)
        if names:
            self._divergences.of_values(entry, names)

    def compare_id(self, operation: ManagerOperation, entry: Entry, value: Any) -> None:
        """Report an id that is not the one which the caller has, as where the manager found the row there already.

        Later calls with the caller's id of a position go to the row that the manager took.
        """
        notes, (_, table, column) = notes_of(entry), operation.id_column
        told = told_id(notes)
        value = None if told is None else id_in(value, told, column)
        if value is None or isinstance(value, bool):
            return
        if operation.position is Position.OPENS and type(value) is type(told) and "resumes" not in notes:
            self.same_row.note(told, value)
        if value == told:
            return
        witness = self.witness
        if witness is not None and (witness.adds_to_rows(operation) or witness.learn_addition(operation, entry, value)):
            _log.warning(
                "entry %(seq)s (%(operation)s) was added to row %(row)s, and its caller has id %(id)s",
                seq=entry.seq,
                operation=entry.operation,
                row=value,
                id=told,
            )
            return
        self._divergences.of_id(entry, table, told, value)

    def _keep_alarms_in(self, alarms: Alarms) -> None:
        self._divergences.alarms = alarms
        self.same_row.keep_in(alarms.store)
        self._later.keep_in(alarms.store)

    def _build(self) -> None:
        # The relay is connected, so what failed before may work now.
        self._host.forget_failure()
        try:
            self._host.manager()
        except Exception as exc:
            if is_away(exc):
                raise TargetUnavailable(f"the manager cannot be built: {exc}") from exc
            # Such as a migration that fails.
            raise TargetMisconfigured(f"the manager cannot be built: {type(exc).__name__}: {exc}") from exc
