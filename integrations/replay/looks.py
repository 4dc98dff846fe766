"""Looks: what a manager answers about one session, and which replays are looked at: those that may still teach more.

A look costs as much as a slow delivery, and a backlog holds thousands of calls that were new when they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...log import Log
from ..view.explanations import alike
from ..view.local_view import LocalView
from ..view.reads import BALANCE, MISSING, READ_ORDERS, READ_POSITIONS
from ..view.row_forms import RowForms
from ..view.rows import ORDERS, POSITIONS, Tables
from ..view.seen import Seen

# So far behind its relay is the view of an engine at most; one that is further behind belongs to a relay alone.
_EARLY = 64
# So far ahead of its relay is the view of a program that does not wait, while PostgreSQL is up.
_AHEAD = 16
# The newest that are wanted: where the relay is another process, nothing is replayed here.
_WANTED = 4096
_log = Log("outbox.integrations")

_READS = {POSITIONS: READ_POSITIONS, ORDERS: READ_ORDERS}


class Looks:
    """The looks that one local view asks for.  Thread-safe."""

    def __init__(self, view: LocalView) -> None:
        self._view = view
        # Sequence number -> a call whose effect was not known for sure when it was made, and whether it was sure.
        self.wanted: dict[int, tuple[Seen, bool]] = {}
        # Those that were replayed before the view had followed them.
        self._early: set[int] = set()
        # Kind of calls -> how many looks in a row taught nothing, and how many calls were passed over since.
        self._idle: dict[str, tuple[int, int]] = {}

    def want(self, seq: int, seen: Seen, *, sure: bool) -> None:
        """Look when this call is replayed, unless it already was; the view's lock is held."""
        if seq not in self._early:
            self.wanted[seq] = seen, sure
            if len(self.wanted) > _WANTED:
                del self.wanted[next(iter(self.wanted))]

    def is_due(self, seq: int) -> bool:
        """Whether to look at this replay: in a backlog not where those before it have shown what the call does."""
        with self._view.lock:
            # The relay may be quicker than the caller, who follows a call in the view when it is durable.
            if 0 < seq - self._view.seq <= _EARLY:
                return True
            if seq not in self.wanted:
                return False
            if self._view.seq - seq < _AHEAD:
                return True
            (seen, sure), learning = self.wanted[seq], self._view.learning
            if not learning.wants(seen, sure=sure or learning.explains(seen)):
                return False
            looks, passed = self._idle.get(seen.kind, (0, 0))
            is_due: bool = passed + 1 >= 2**looks
            if not is_due:
                self._idle[seen.kind] = looks, passed + 1
            return is_due

    def taken(self, seq: int, seen: Seen) -> None:
        """A call is looked at, beside the rows that are there: others like it may have shown all that can be learned.

        The view may not have known those rows, and took calls of several kinds for one.
        """
        with self._view.lock:
            if seq not in self.wanted:
                return
            kind = self.wanted[seq][0].kind
            teaches = self._view.learning.wants(seen, sure=True)
            self._idle[kind] = (0 if teaches else self._idle.get(kind, (0, 0))[0] + 1), 0

    def done(self, seq: int) -> None:
        """Only now: a replay that fails is made once more, and looked at then."""
        with self._view.lock:
            self.wanted.pop(seq, None)
            self._early = {one for one in (*self._early, seq) if one > self._view.seq}

    def passed(self, seq: int) -> None:
        """A call was replayed without a look."""
        with self._view.lock:
            self.wanted.pop(seq, None)


class Look:
    """What a manager answers about one session; what it cannot answer is None.  Raises `SQLAlchemyError`."""

    def __init__(
        self,
        ask: Callable[..., Any],
        session_id: Any,
        forms: RowForms,
        more: Mapping[str, Mapping[str, Any]] = {},
    ) -> None:
        """`more`: the arguments of other questions, whose answers are in `answers`."""
        balance = ask(BALANCE, session_id)
        found = {asked: ask(asked.partition("(")[0], **given) for asked, given in more.items()}
        self.answers = {name: answer for name, answer in found.items() if answer is not MISSING}
        asked = {table: _rows(ask, name, session_id) for table, name in _READS.items()}
        rows = {table: shown for table, shown in asked.items() if shown is not MISSING}
        # By table; of one that is missing there, why its rows cannot be understood.
        self.tables: Tables
        self.tables, self.unknown = forms.tables_of(**rows)
        self.shows_balance = balance is not MISSING
        self.balance = balance if self.shows_balance else None

    def shows(self, later: Look) -> bool:
        """Whether a later look shows a change."""
        return not (alike(self.balance, later.balance) and alike(self.tables, later.tables))


def _rows(ask: Callable[..., Any], read: str, session_id: Any) -> Any:
    """What a manager answers to a read of rows; the error where it fails for the manager's callers too."""
    try:
        return ask(read, session_id)
    except SQLAlchemyError:
        raise
    except Exception as exc:  # noqa: BLE001
        _log.warning("the rows of %(read)s cannot be understood", read=read, trace=True)
        return exc
