"""Lesson: what is learned from one replay, by the manager's answers just before and after it.

Both looks are taken inside the relay's transaction, so that nothing but this call lies between them; what the reads
themselves might write is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple

from psycopg2.extensions import TRANSACTION_STATUS_INTRANS
from sqlalchemy import MetaData, Table
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.exc import DBAPIError, ResourceClosedError

from ...log import Log
from ...words import first_line
from ..manager.away import cannot_take, is_away
from ..manager.host import replica_of
from ..operations import StoredCall, call_of
from ..roles import Balance, Session
from ..state.kept_state import KeptState
from ..view import checks, resumptions
from ..view.amounts import DatabaseScales, nearly_equal, number_or_none, scales_of
from ..view.folds import foretells
from ..view.local_view import ENDED, LocalView, question
from ..view.reads import ACTIVE_SESSION, BALANCE, LAST_BALANCE, LAST_SESSION, MISSING, Reads, about_sessions
from ..view.row_forms import RowForms
from ..view.rows import ORDERS, RESOLVED, resolved_before
from ..view.seen import Seen
from . import sessions, told_answers
from .balance import learn_yield
from .looks import Look, Looks
from .no_ops import applied
from .replay_session import Watch
from .rewritten_sql import rows_written
from .row_ids import SideIds
from .sessions import everywhere

_log = Log("outbox.integrations")


class _Balances(NamedTuple):
    """The balance of a session before and after a call, None where it is not known."""

    old: Decimal | None
    new: Decimal | None
    # What the read showed, or would without rounding.
    before: Any
    shown: Any


class Lesson:
    """What one replay teaches.  Used by the thread that replays; what cannot be learned is left alone."""

    def __init__(
        self,
        view: LocalView,
        reads: Reads,
        made: StoredCall,
        replica: Any,
        watch: Watch,
        unwatched: Any,
        sides: SideIds,
        database_scales: DatabaseScales,
    ) -> None:
        self._view, self._reads, self._database_scales = view, reads, database_scales
        self._operation, self._entry, self._notes = made.operation, made.entry, made.notes
        self._replica, self._watch = replica, watch
        self._unwatched, self._sides = unwatched, sides
        self.before: Look | None = None
        self._answer: Any = None
        # Whether it was more than a call that found nothing to do.
        self._did = True
        # Sessions that the view has, perhaps, otherwise than the call has made them.
        self.misjudged: set[Any] = set()
        # Other sessions that arguments may name, by argument, as they were before the call.
        self._beside: dict[str, tuple[Any, Look]] = {}
        self._told: list[Any] = []
        self._rows_written: dict[str, int] | None = None
        # Each amount that the call writes, with its column; and all tables that are mapped together with these: it may
        # write some of them past the ORM.
        self._written: list[tuple[Any, Decimal | None]] = []
        self._metadata: set[MetaData] = set()

    def try_to(self, action: Callable[[], Any]) -> None:
        """The replay must not suffer from what is only curiosity."""
        try:
            action()
        except Exception as exc:  # noqa: BLE001
            if is_away(exc) or isinstance(exc, ResourceClosedError):
                # The replay fails as well, which the relay reports, and is made again.
                _log.debug("entry %(seq)s lost its connection: %(error)s", seq=self._entry.seq, error=first_line(exc))
                return
            _log.warning("the replay of entry %(seq)s could not be learned from", seq=self._entry.seq, trace=True)

    def count_writes(self) -> None:
        """Note how many rows of each table this transaction has written."""
        try:
            self._rows_written = self._count()
        except DBAPIError as exc:
            if not is_away(exc):
                # A server that only speaks PostgreSQL's protocol may not count them.
                self._view.learning.written.matters = False
            raise

    def learn_writes(self) -> None:
        """Take in which tables the call has written, also by functions and triggers of PostgreSQL."""
        before = self._rows_written
        # One that was not applied is none of the few that are looked at.
        if before is None or self.was_away() or not self._operation.success(self._answer, self._watch.committed):
            return
        after = self._count()
        with self._view.lock:
            changed = [table for table, rows in after.items() if rows != before.get(table)]
            self._view.learning.written.learn(self._operation.name, changed)
            self._view.learning.version += 1

    def learn_side_rows(self) -> None:
        """Take in how many rows with a reserved id the call has written on the side."""
        taken, learning = {column: len(ids) for column, ids in self._sides.taken.items()}, self._view.learning
        if not (taken or learning.has_sides(self._operation)):
            return
        with self._view.lock:
            if learning.written.side_rows.learn(self._operation.name, call_of(self._entry), taken):
                learning.version += 1

    def misjudge(self, how: str) -> None:
        """The view has followed the call, if at all, in another way than the manager."""
        session = self._notes.get("session")
        with self._view.lock:
            if session in self._view.sessions and self._entry.seq <= self._view.seq:
                self._view.doubt_apart(session, f"{self._operation.name} was seen to {how}")
                self.misjudged.add(session)

    def _count(self) -> dict[str, int]:
        connection = sessions.maker_of(self._replica.session_factory).kw["bind"]
        with self._unwatched():
            savepoint = connection.begin_nested()
            try:
                return rows_written(connection)
            finally:
                savepoint.rollback()

    def told(self, value: Any) -> None:
        """Take in what a balance block yielded."""
        self._told.append(value)

    def answered(self, value: Any) -> Any:
        """What the manager's method answered."""
        self._answer = value
        return value

    def was_away(self) -> bool:
        """Whether PostgreSQL failed meanwhile: what the manager made of that is not what such calls do."""
        error = self._watch.error
        return is_away(error) or (cannot_take(error) and not self._watch.committed)

    def is_refusal(self, error: Exception) -> bool:
        """Whether the manager, or a rule of the database, refused the call."""
        if isinstance(error, DBAPIError):
            return self._is_rule(error)
        return not self.was_away()

    def _is_rule(self, error: Exception) -> bool:
        """Whether a rule of the database was broken, and the manager has rolled back, so that one can look."""
        if not checks.is_broken_by(error):
            # The connection may be lost, and asking for it would raise another error.
            return False
        raw: Any = sessions.maker_of(self._replica.session_factory).kw["bind"].connection.dbapi_connection
        in_transaction: bool = raw.info.transaction_status == TRANSACTION_STATUS_INTRANS
        return in_transaction

    def learn(self) -> None:
        """Take in what the call did, or that the manager's answer refused it."""
        if self.was_away():
            return
        wrote, error = self._watch.committed, self._watch.error
        self._did = self._operation.success(self._answer, wrote)
        if not applied(self._operation, type(self._replica), self._answer, wrote=wrote, error=error):
            # An answer after an error that the manager swallowed is none of such calls.
            if self._watch.error is None or self._is_rule(self._watch.error):
                self.declined()
        elif not self._did and error is None and self._refused_quietly():
            self.look_at_session()
        elif self._has_resumed() or self.before is None:
            roundings = self._view.learning.roundings
            if roundings.hides_balance and self._operation.balance is not None:
                roundings.written.pop(self._notes.get("session"), None)
            self.look_at_session()
            # The answer of a call that is looked at is learned beside the rows of its session.
            has_rows = self._notes.get("session") is not None and self._view.learning.follows(self._operation)
            if self._did and not has_rows:
                told_answers.learn(self._view, self._seen(), self._answer, None)
        else:
            self.look_after()

    def _has_resumed(self) -> bool:
        """Whether the call that begins a session has gone on, or should have, with one that was there; learns that."""
        if self._operation.session is not Session.BEGINS:
            return False
        with self._view.lock:
            call, notes = call_of(self._entry), self._notes
            return resumptions.learn(self._view, self._operation, call, notes, self._answer)

    def look_before(self, looks: Looks) -> None:
        """See the session as it is before the call."""
        session = self._notes.get("session")
        if session is None:
            return
        self._listen()
        begins = self._operation.session is Session.BEGINS
        # A session that the call begins is not there yet.
        self.before = Look(lambda *_: MISSING, session, self._forms) if begins else self._look(session)
        seen = self._seen()
        looks.taken(self._entry.seq, seen)
        with self._view.lock:
            named = seen.sessions_beside(self._view.sessions)
        self._beside = {name: (other, self._look(other)) for name, other in named.items()}

    def _look(self, session: Any, more: Mapping[str, Mapping[str, Any]] = {}) -> Look:
        connection = sessions.maker_of(self._replica.session_factory).kw["bind"]
        with self._unwatched():
            savepoint = connection.begin_nested()
            # What the read caches or counts is no change of the call.
            reader = KeptState(replica_of(self._replica)).replica
            reader.session_factory = sessions.apart(reader.session_factory, {"watch": self._watch.apart()})
            try:
                with everywhere(reader.session_factory):
                    return Look(self._reads.asking(reader), session, self._forms, more)
            finally:
                sessions.end_scope(reader.session_factory)
                savepoint.rollback()

    @property
    def _forms(self) -> RowForms:
        return self._view.learning.forms

    def _listen(self) -> None:
        """Note the amounts that the call writes."""

        def note(session: Any) -> None:
            for row in (*session.new, *session.dirty):
                state = inspect_orm(row)
                self._metadata.add(state.mapper.local_table.metadata)
                for attribute in state.mapper.column_attrs:
                    column = attribute.columns[0]
                    if scales_of(column.type):
                        self._written.append((column, number_or_none(state.dict.get(attribute.key))))

        def note_table(table: Any) -> None:
            if isinstance(table, Table):
                self._metadata.add(table.metadata)

        self._watch.on_flush, self._watch.on_write = note, note_table

    def _amounts(self) -> list[tuple[int | None, Decimal | None]]:
        """The amounts that the call has written, each with the decimal places that its column may have."""
        return [(scale, amount) for column, amount in self._written for scale in self._database_scales.of(column)]

    def _scales(self) -> set[int | None]:
        """The decimal places of all columns of the manager's tables, as PostgreSQL has them."""
        connection = sessions.maker_of(self._replica.session_factory).kw["bind"]
        for metadata in self._metadata:
            with self._unwatched():
                self._database_scales.ask(metadata, connection)
        return set[int | None]().union(*map(self._database_scales.within, self._metadata))

    def _seen(self) -> Seen:
        entry = self._entry
        notes = {**self._notes, "at": entry.captured_at, "seq": entry.seq, "side": self._sides.taken}
        shown = {} if self.before is None else self.before.tables
        with self._view.lock:
            hidden = resolved_before(self._view.sessions.get(notes["session"]) or {"tables": {}}, self._entry.seq)
        resolved = {id_: row for id_, row in hidden.items() if id_ not in shown.get(ORDERS, {})}
        written = {amount for _, amount in self._written if amount is not None}
        call = self._operation.standard(call_of(self._entry))
        decisions = self._view.learning.decisions.get(self._operation.name, ())
        return Seen(self._operation, call, notes, {**shown, RESOLVED: resolved}, written, self._forms, decisions)

    def look_after(self) -> None:
        """See the session as it is after the call, and learn."""
        seen, learning = self._seen(), self._view.learning
        session = seen.notes["session"]
        begins = self._operation.session is Session.BEGINS
        # Where there is a balance row: without one this read writes it, and takes an id from its sequence.
        asked = dict[str, Any]({LAST_BALANCE: {"session_id": session}} if self._operation.balance is not None else {})
        about = about_sessions(seen.call if begins else self._view.sessions.get(session) or {})
        asked |= about if self._operation.session is not None else {}
        after = self._look(session, asked)
        changed = [(name, other) for name, (other, look) in self._beside.items() if look.shows(self._look(other))]
        scales, amounts = self._scales(), self._amounts()
        with self._view.lock:
            learning.version += 1
            learning.scales |= scales
            balances = self._balances(session, after, amounts, begins=begins)
            if not begins and not foretells(self._view, seen, after.tables):
                self.misjudge("change rows otherwise than before")
            learning.learn(seen, after.tables)
            self._learn_balance(seen, balances, begins=begins)
            for name, other in changed:
                learning.learn_beside(seen, name)
                self.misjudged.add(other)
                self._view.doubt_apart(other, f"{self._operation.name} changes it beside its own session")
            if balances.new is not None:
                learning.learn_answer(BALANCE, balances.new, after.balance)
                if LAST_BALANCE in after.answers:
                    learning.learn_answer(LAST_BALANCE, balances.new, after.answers[LAST_BALANCE])
            self._learn_sessions(session, after, about, begins=begins)
            learning.learn_sides(seen, {column: len(ids) for column, ids in self._sides.taken.items()})
            if self._sides.taken and "side" not in self._notes:
                learning.taken[self._entry.seq] = dict(self._sides.taken)
            for told in self._told:
                learn_yield(learning, seen, told, balances.old)
            if self._did:
                told_answers.learn(self._view, seen, self._answer, balances.old)
            checks.accepted(learning, self._operation, checks.exceeded(seen, balances.old, learning.of_shape(seen)))
        self.look_at_session()

    def _balances(
        self, session: Any, after: Look, amounts: Collection[tuple[int | None, Decimal | None]], *, begins: bool
    ) -> _Balances:
        """The balance before and after the call: where the read rounds it, by what the call was seen to write."""
        assert self.before is not None
        learning, changes = self._view.learning, self._operation.balance is not None
        old, new = number_or_none(self.before.balance), number_or_none(after.balance)
        before, shown = self.before.balance, after.balance
        if learning.roundings.hides_balance:
            old = None if old is None else learning.roundings.exact(session, old, None)
            if not changes and not begins:
                new = None
            elif new is not None:
                learning.roundings.note(session, new, amounts)
                before, shown = old, (new := learning.roundings.exact(session, new, None))
        if new is not None and changes:
            fitting = {scale for scale, amount in amounts if amount is not None and nearly_equal(amount, new)}
            learning.possible_scales = (learning.possible_scales & fitting) or learning.possible_scales
        return _Balances(old, new, before, shown)

    def _learn_balance(self, seen: Seen, balances: _Balances, *, begins: bool) -> None:
        """Learn what the call makes of the balance; doubt the view's where it made another one of it."""
        learning, session = self._view.learning, seen.notes["session"]
        is_known = balances.shown is not None and (
            balances.before is not None or begins or seen.operation.balance is Balance.SET
        )
        if is_known or not learning.roundings.hides_balance:
            learning.learn_balance(seen, balances.before, balances.shown)
        effect = learning.effect(seen)
        if effect is not None and effect.balance.of(seen.words) is False and session in self._view.sessions:
            self.misjudged.add(session)
            self._view.doubt(session, "balance", f"{self._operation.name}: the manager made another balance of it")

    def _learn_sessions(self, session: Any, after: Look, about: Mapping[str, Any], *, begins: bool) -> None:
        """Learn whether the reads of the active and the last session answer with this one; `about`: asked for which."""
        for name, answer in after.answers.items():
            if name == ACTIVE_SESSION and begins:
                self._view.learning.compared.agrees[name] = answer == session
            elif name.startswith(LAST_SESSION):
                given = [*about[name], *([] if begins else [ENDED])]
                self._view.learning.compared.agrees[question(LAST_SESSION, given)] = answer == session

    def look_at_session(self) -> None:
        """Learn whether the session is current after it was begun or ended."""
        if self._operation.session is None or not hasattr(self._replica, "_current_session_id"):
            return
        session = self._notes.get("session")
        if session is not None:
            self._view.learning.habits.current[self._operation.name] = self._replica._current_session_id == session

    def refused(self, error: Exception) -> None:
        """The manager raised: learn which limit it may have kept."""
        with self._limits() as (_, limits):
            checks.refused(self._view.learning, self._operation, limits, error)

    def declined(self) -> None:
        """The manager's answer refused the call: learn which limit it may have kept, or what it did not change."""
        with self._limits() as (seen, limits):
            checks.answered(self._view.learning, self._operation, limits, self._answer)
            if not limits and seen is not None:
                self._view.learning.learn_declined(seen)

    def _refused_quietly(self) -> bool:
        """Whether a call that found nothing to do went beyond a limit: a position that is not open."""
        with self._limits() as (_, limits):
            checks.answered(self._view.learning, self._operation, limits, self._answer)
            return bool(limits)

    @contextmanager
    def _limits(self) -> Iterator[tuple[Seen | None, dict[str, str]]]:
        """A call that has changed nothing, and the limits that it went beyond; locks the view in the block."""
        session = self._notes.get("session")
        if session is None or not self._operation.has_role:
            yield None, {}
            return
        look = self.before = self.before or self._look(session)
        seen = self._seen()
        with self._view.lock:
            yield seen, checks.exceeded(seen, number_or_none(look.balance), self._view.learning.of_shape(seen))
