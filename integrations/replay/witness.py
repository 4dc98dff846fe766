"""Witness: decides which replays are looked at, and what of them is learned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any

from ... import Entry
from ..operations import BALANCES, ManagerOperation, StoredCall, notes_of, told_id
from ..roles import Position
from ..view.amounts import DatabaseScales
from ..view.local_view import LocalView
from ..view.reads import Reads
from ..view.rows import POSITIONS
from . import told_answers
from .lesson import Lesson
from .looks import Looks
from .replay_session import Watch
from .row_ids import SideIds


class Witness:
    """Learns for one local view.  Used by the relay's thread; what it cannot learn it leaves alone."""

    def __init__(self, view: LocalView, reads: Reads, learned: Callable[[Collection[Any], int], None]) -> None:
        """`learned(sessions, seq)` is called when entry `seq` taught something; in `sessions` the view was wrong."""
        self._view, self._reads, self._learned = view, reads, learned
        self.looks, self._scales = Looks(view), DatabaseScales()

    def is_balance(self, one: Decimal, other: Decimal) -> bool:
        """Whether two balances are one, but for the arithmetic in which they were summed."""
        return self._view.learning.is_balance(one, other)

    def adds_to_rows(self, operation: ManagerOperation) -> bool:
        """Whether calls of this operation were seen to change an open row instead of making one."""
        with self._view.lock:
            return operation.name in self._view.learning.merges

    def learn_addition(self, operation: ManagerOperation, entry: Entry, row: Any) -> bool:
        """Learn that of a call that answered with the id of `row`, which was open before; whether it was.

        The answer shows it also where a replay is not looked at.
        """
        session: Any = notes_of(entry).get("session")
        with self._view.lock:
            learning, known = self._view.learning, self._view.sessions.get(session)
            told = told_id(notes_of(entry))
            if operation.position is not Position.OPENS or known is None or type(row) is not type(told):
                return False
            if row not in known["tables"][POSITIONS]:
                return False
            if isinstance(row, int) and row > told:
                # It may be that of a later call, which is not delivered yet.
                return False
            learning.merges[operation.name] = [POSITIONS]
            learning.version += 1
            self._view.doubt_apart(session, f"{operation.name} was seen to change an open row instead of making one")
        self._learned({session}, entry.seq)
        return True

    @contextmanager
    def watching(
        self, made: StoredCall, replica: Any, watch: Watch, unlesson: Callable[[], Any], sides: SideIds
    ) -> Iterator[Lesson]:
        """Look before and after the block in which a call is replayed."""
        operation, entry = made.operation, made.entry
        new_balance = (made.notes.get(BALANCES) or {}).get("new")
        wanted = self.looks.is_due(entry.seq) or (new_balance is not None and new_balance < 0)
        lesson = Lesson(self._view, self._reads, made, replica, watch, unlesson, sides, self._scales)
        follows = self._view.learning.follows(operation)
        if wanted and follows:
            lesson.try_to(partial(lesson.look_before, self.looks))
        counts = self._view.learning.written.wants(operation)
        if counts:
            lesson.try_to(lesson.count_writes)
        try:
            yield lesson
        except Exception as exc:
            if lesson.is_refusal(exc):
                lesson.try_to(partial(lesson.refused, exc))
            raise
        lesson.try_to(lesson.learn_side_rows)
        if counts:
            lesson.try_to(lesson.learn_writes)
            if not follows and self._view.learning.follows(operation):
                lesson.misjudge("write what is shown")
                self._learned(lesson.misjudged, entry.seq)
        if follows or told_answers.wants(self._view.learning, operation):
            lesson.try_to(lesson.learn)
            if lesson.before is not None or not follows:
                self.looks.done(entry.seq)
                self._learned(lesson.misjudged, entry.seq)
            else:
                self.looks.passed(entry.seq)
