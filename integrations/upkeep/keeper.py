"""Keeper: the background work of a wrapped manager, so that no call of the engine has to do it.

It fills the id reserves, checkpoints the local view, and after an outage compares the view with PostgreSQL: what
another writer has changed meanwhile is reported, not papered over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ... import Entry, Outbox, OutboxError
from ...entry import EntryStatus
from ...log import Log, Repeated
from ...words import first_line
from ...worker import Wake
from ..ids.id_reserves import IdReserves
from ..manager.host import Host
from ..manager.manager_connection import engine_of
from ..operations import ManagerOperation, notes_of
from ..outage import Outage
from ..replay.balance import rolled_back
from ..replay.looks import Look
from ..replay.witness import Witness
from ..roles import NO_SESSIONS, Session
from ..state import context_state
from ..state.kept_state import KeptState
from ..view import former_learning
from ..view.amounts import number_or_none
from ..view.local_view import LocalView, UnknownLocally, question
from ..view.reads import (
    ACTIVE_SESSION,
    LAST_SESSION,
    MISSING,
    Reads,
    about_sessions,
)
from ..view.rows import POSITIONS
from ..view.tables_used import TablesRead
from .kept_view import KeptView
from .managers_code import NOTICE, ManagersCode, is_sessionless, not_understood, unanswerable

_log = Log("outbox.integrations")

_PERIOD_S = 5.0
# How soon a session in doubt is looked at again, while PostgreSQL answers.
_RETRY_S = 0.2


class _ViewCheck(Enum):
    """Whether the view is to be compared with PostgreSQL, behind an outage."""

    NONE = "none"
    IS_DUE = "is due"
    RUNS = "runs"


class Keeper:
    """Keeps the local view and the id reserves of one adapter.  Thread-safe; one background thread."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        calls: Mapping[str, ManagerOperation],
        reads: Reads,
        reserves: IdReserves,
        outage: Outage,
        carried_over: bytes | None = None,
    ) -> None:
        """Restores the view from its checkpoint and the entries since.

        `carried_over`: what another store has learned, for one that has learned nothing.
        """
        self._host, self._outbox, self._calls, self._reserves = host, outbox, calls, reserves
        self._outage, self._reads, self.tables_read = outage, reads, TablesRead(outbox)
        self.view = LocalView(reads.name)
        self.view.otherwise = NO_SESSIONS if is_sessionless(host, calls.values(), reads) else None
        self.view.learning.forms.declare(calls.values())
        self.view.learning.forms.met = partial(host.classes.learn, outbox)
        self._code = ManagersCode(host, self.view, calls, reads, self.tables_read)
        if host.manager_class is not None:
            self._code.take_in(host.manager_class)
        else:
            host.when_built(self._know_class_of)
        self._shown_version = -1
        # Before then no call asks for a fill: the last one has failed.
        self._fill_from = 0.0
        self.witness = Witness(self.view, reads, self._learned)
        self._repeated = Repeated(_log)
        self._wake, self._asked = Wake(), False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._check = _ViewCheck.NONE
        # Sessions of which PostgreSQL has refused something that the view has folded.
        self._doubtful: set[int] = set()
        self.kept = KeptView(outbox, calls, self.view, self._look_again, self.witness.looks)
        self.kept.restore(carried_over)

    def _know_class_of(self, manager: Any) -> None:
        """Take in the class of a manager that was built after the view was restored."""
        self._code.take_in(type(manager))
        self._doubt_former()

    def look_at_code(self) -> None:
        """Go by the present functions of the manager's class, which the host may have replaced.  Holds no lock."""
        if self._code.has_changed():
            self._doubt_former()

    def _doubt_former(self) -> None:
        with self.view.lock:
            self.kept.doubt_former(former_learning.take_over(self.view.learning, self.view.learning.dump()))

    def _learned(self, misjudged: Collection[Any], seq: int) -> None:
        """Keep what entry `seq` has taught, and take the sessions in which it was misjudged from PostgreSQL again."""
        if misjudged:
            self.kept.misjudged(seq)
            self._doubtful.update(misjudged)
        self._ask()

    def start(self) -> None:
        """Begin the background work; fills the reserves now if that is possible."""
        self._outbox.progress.on_recovered(self._recovered)
        self._outbox.progress.on_rewound(self._rewound)
        if self._host.built is not None:
            if self.view.otherwise is not None and not self.view.sessions:
                # Before the first call: while calls are on their way nothing can be taken from PostgreSQL.
                self._try("the account could not be looked up", self._adopt)
            self._tend()
        thread = threading.Thread(target=self._run, name="outbox-keeper", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self) -> None:
        """Checkpoint and end the background work; may be called twice."""
        self._outbox.progress.off_recovered(self._recovered)
        self._outbox.progress.off_rewound(self._rewound)
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and not self._outbox.store.forked:
            self._thread.join(_PERIOD_S)
            self._thread = None
            self._try("the local view was not kept", self.kept.checkpoint)

    # -- the view

    def follow(self, entry: Entry, *, soon: bool) -> None:
        """Apply one durable call to the view, once; the order is held.

        `soon`: its caller does not wait for its delivery, so this may be done behind it, by this keeper's thread or by
        the next thread that looks at the view.
        """
        self.view.follow(entry)
        if soon:
            self._wake.set()
        else:
            self.view.catch_up()
        if self._calls[entry.operation].session is Session.BEGINS and not self.view.learning.compared.agrees:
            # A relay in another process asks nothing about sessions.
            self._look_again(notes_of(entry).get("session"))
        if self.kept.has_many(entry.seq) or self._may_fill():
            self._ask()

    def _may_fill(self) -> bool:
        """Whether the id reserves are low, and could be filled as far as is known."""
        if self._outage.stops_upkeep or self._outbox.clock.monotonic() < self._fill_from:
            return False
        return self._reserves.low

    def refused(self, entry: Entry) -> None:
        """PostgreSQL refused a call that the view has followed, or had its row already; its caller knows."""
        session = notes_of(entry).get("session")
        if entry.status is EntryStatus.FAILED:
            self.kept.refused(entry, session)
            self._ask()
        self._look_again(session)

    def _look_again(self, session_id: int | None) -> None:
        """Take a session from PostgreSQL as soon as no entry is pending."""
        if session_id is not None and session_id not in self._doubtful:
            self._doubtful.add(session_id)
            self._ask()

    def saw(self, read: str, tables: Collection[str]) -> None:
        """Take in the tables that a read has used."""
        cls = self._host.manager_class
        if not self.tables_read.note(read, tables) or cls is None or self._reads.local(read) is None:
            return
        with self.view.lock:
            before = frozenset(self.view.learning.written.suspects)
            self._code.suspect(cls)
            more = sorted(frozenset(self.view.learning.written.suspects) - before)
        if more:
            self._doubt_active(f"{more[0]} may have changed it, which was not followed before")

    def overwritten(self, method: str) -> None:
        """Doubt the active sessions, which an undeclared method has changed: they are taken from PostgreSQL again."""
        self._doubt_active(f"{method} has changed it, which is not declared")

    def _doubt_active(self, why: str) -> None:
        with self.view.lock:
            for session_id in [id_ for id_, row in self.view.sessions.items() if row["active"]]:
                self.view.doubt_apart(session_id, why)
                self._doubtful.add(session_id)
            # What the entries alone make of them is wrong.
            self.kept.changed()
        self._ask()

    @property
    def is_comparing(self) -> bool:
        """Whether it is about to be found out what another writer has changed in an outage."""
        return self._check is not _ViewCheck.NONE or self._outbox.progress.recovering

    def differed(self, session_id: int | None) -> None:
        """The manager answered a read otherwise than the view: what is known of its session is taken anew."""
        self._look_again(session_id)
        self._ask()

    def meet(self, session_id: int | None) -> None:
        """Look at a session that is in use, if it is new to the view, before the next outage."""
        if session_id not in self.view.sessions:
            self._look_again(session_id)

    def observe(self, session_id: int | None, *, foreign: bool = False) -> bool:
        """Take a session's state from PostgreSQL, if no entry is pending; whether that was possible.

        `foreign`: it may be another program's, until a call is made in it.  Raises `SQLAlchemyError`.
        """
        if session_id is None or self._host.built is None:
            return False
        return self._look_at(session_id, lambda _: None, foreign=foreign)

    def _look_at(self, session_id: int, judge: Callable[[Look], None], *, foreign: bool = False) -> bool:
        seq = self.view.seq
        if self._outbox.store.figures().pending:
            return False
        look = self._shown(session_id)
        with self.kept.order:
            if self.view.seq != seq or self._outbox.store.figures().pending:
                return False
            judge(look)
            active = look.answers.get(ACTIVE_SESSION, session_id) == session_id
            with self.view.lock:
                self.view.observe_session(
                    session_id, look.balance, look.tables, active=active, shows_balance=look.shows_balance,
                    unknown=look.unknown, foreign=foreign,
                )  # fmt: skip
                self._compare_answers(session_id, look.answers)
                self.kept.observed(session_id)
            self._doubtful.discard(session_id)
        # What was learned is kept before the program can be killed.
        self._ask()
        return True

    def _shown(self, session_id: int) -> Look:
        """Read a session, and the manager's answers to other reads, in a transaction that is rolled back."""
        manager = self._host.undoubled()
        with context_state.decimals_restored(self._host.decimals), rolled_back(manager) as transaction:
            replica = KeptState(transaction.sets(self._host.replica(session_id=session_id))).replica
            more = about_sessions(self.view.sessions.get(session_id) or {})
            return Look(self._reads.asking(replica), session_id, self.view.learning.forms, more)

    def _compare_answers(self, session_id: int, answers: Mapping[str, Any]) -> None:
        """Learn whether the manager answers to reads of sessions as the view would."""
        agrees, now = self.view.learning.compared.agrees, self._outbox.clock.now()
        for asked, call in about_sessions(self.view.sessions.get(session_id) or {}).items():
            if asked in answers and self.view.sessions:
                if asked == ACTIVE_SESSION:
                    agrees[asked] = True
                    agrees[asked] = self.view.active_session_id() == answers[asked]
                    continue
                try:
                    own, given = self.view.last_session(now, call)
                except UnknownLocally:
                    agrees[asked] = False
                else:
                    agrees[question(LAST_SESSION, given)] = own == answers[asked]

    def compare(self, session_id: int) -> bool:
        """Compare the view of a session with PostgreSQL, report what differs, and take it over.

        Whether it could be done: not while calls are on their way.  Raises `SQLAlchemyError`.
        """
        differences: list[str] = []

        def judge(look: Look) -> None:
            known, balance = self.view.sessions.get(session_id), number_or_none(look.balance)
            if known is None or not self.view.is_sure(session_id) or balance is None or POSITIONS not in look.tables:
                return
            if known.get("foreign"):
                return
            # A delivery may have shown meanwhile that the view had followed a call in another way.
            if session_id in self._doubtful:
                return
            if known["balance"] is not None and not self.view.learning.is_balance(balance, known["balance"]):
                differences.append(f"its balance is {balance} in PostgreSQL and {known['balance']} here")
            here, there = set(known["tables"][POSITIONS]), set(look.tables[POSITIONS])
            if here != there:
                only = [sorted(there - here, key=str), sorted(here - there, key=str)]
                differences.append(f"open in PostgreSQL only: {only[0]}, here only: {only[1]}")

        done = self._look_at(session_id, judge)
        if done and differences:
            self._report(session_id, "; ".join(differences))
        return done

    def _report(self, session_id: int, differences: str) -> None:
        message = (
            f"after the outage session {session_id} differs from what this program was told: {differences}; "
            "another writer has changed it, or entries became dead letters"
        )
        _log.error("the local view of session %(session)s diverged: %(detail)s", session=session_id, detail=differences)
        self._outbox.alarms.sound(f"diverged-session-{session_id}", message)

    # -- background

    def _recovered(self) -> None:
        self._host.forget_failure()
        if self._outbox.progress.was_out:
            # Not at the start, where they were looked at: the host may be emptying its tables by now.
            self._reserves.distrust()
            self.kept.was_out()
        self._check = _ViewCheck.IS_DUE
        self._ask()

    def _rewound(self) -> None:
        """Set sequences forward: PostgreSQL was set back, and would give ids a second time that were given out here."""
        self._try(
            "sequences could not be set forward", lambda: self._reserves.secure(engine_of(self._host.undoubled()))
        )
        # Also where no delivery has failed: what other writers have changed is gone, too.
        self.kept.was_out()
        self._recovered()

    def _ask(self) -> None:
        """Let the background work begin now."""
        self._asked = True
        self._wake.set()

    def _run(self) -> None:
        tended_s = self._outbox.clock.monotonic()
        while not self._stopped.is_set():
            due = (self._doubtful or self._check is _ViewCheck.IS_DUE) and not self._outage.stops_upkeep
            period_s = _RETRY_S if due else _PERIOD_S
            self._wake.wait(period_s)
            self._wake.clear()
            self._try("calls could not be followed by the local view", self.view.catch_up)
            # It is woken for each call, and has the rest to do now and then.
            is_time = self._asked or self._outbox.clock.monotonic() - tended_s >= period_s
            if is_time and not self._stopped.is_set():
                self._asked, tended_s = False, self._outbox.clock.monotonic()
                self._tend()

    def _tend(self) -> None:
        self._work()
        # After the fill: a reserve that is being filled is not scarce.
        self._try("the id reserves are not in the status", self._reserves.show)
        self._try("the status does not show what an outage does not answer", self._show_unanswerable)

    def _work(self) -> None:
        self._try("the local view was not kept", self._keep)
        if self._outage.stops_upkeep or self._host.built is None:
            return
        if self._reserves.low:
            self._try("id reserves could not be filled", lambda: self._reserves.fill(engine_of(self._host.undoubled())))
            # Calls ask for it at once, and each would try to connect.
            self._fill_from = self._outbox.clock.monotonic() + _PERIOD_S if self._reserves.low else 0.0
        if not self.view.sessions:
            self._try("the active session could not be looked up", self._adopt)
        if self._check is _ViewCheck.IS_DUE:
            self._check = _ViewCheck.RUNS
            self._try("the local view could not be compared", self._compare_active)
            if self._check is _ViewCheck.RUNS:
                self._check = _ViewCheck.NONE
        for session_id in tuple(self._doubtful):
            self._try("the local view could not be renewed", partial(self.observe, session_id))

    def _keep(self) -> None:
        if self.kept.is_due():
            self.kept.checkpoint()

    def _show_unanswerable(self) -> None:
        if self._shown_version == self.view.learning.version or not self.view.sessions:
            return
        with self.view.lock:
            self._shown_version = self.view.learning.version
            differing = self.view.learning.compared.all_distrusted()
            clauses = [*not_understood(self.view.sessions), *unanswerable(self.view.learning, self._calls)]
            clauses += [f"{read} ({why})" for read, why in differing.items()]
        if clauses:
            self._outbox.notices.put(NOTICE, f"an outage does not answer: {'; '.join(clauses)}")
        else:
            self._outbox.notices.clear(NOTICE)

    def _adopt(self) -> None:
        """Learn of a session that was begun before there was an outbox."""
        session_id = self.view.otherwise
        if session_id is None and not self._host.has(self._reads.name(ACTIVE_SESSION)):
            return
        if session_id is None:
            manager = self._host.undoubled()
            with rolled_back(manager) as transaction:
                replica = KeptState(transaction.sets(self._host.replica(session_id=None))).replica
                session_id = self._reads.asking(replica)(ACTIVE_SESSION)
        if session_id is not MISSING:
            # With several programs on one database it is perhaps the session of another.
            self.observe(session_id, foreign=session_id != self.view.otherwise)

    def _compare_active(self) -> None:
        for session_id in [id_ for id_, row in self.view.sessions.items() if row["active"]]:
            if not self.kept.may_differ(session_id) or session_id in self._doubtful:
                continue
            if not self.compare(session_id):
                self._check = _ViewCheck.IS_DUE

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
            self._repeated.over(what)
        except (SQLAlchemyError, OutboxError) as exc:
            self._repeated.warn(what, "%(what)s: %(error)s", what=what, error=first_line(exc))
        except Exception:  # noqa: BLE001 - a manager of another shape must not end the background work
            self._repeated.error(what, what)
