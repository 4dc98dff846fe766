"""The watermarks table: the SQL of continuity, and one connection's place in PostgreSQL's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from . import receipts
from .continuity import Mark, Memory, Watermark, judge, lineage_of
from .envelope import Record
from .errors import HistoryRewound, TargetMisconfigured, TargetUnavailable
from .receipts import LOCK_CLASS, Cursor, fence, find

T = TypeVar("T")

TABLE = "outbox_watermarks"

_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    store_id uuid NOT NULL,
    lane smallint NOT NULL,
    lineage uuid NOT NULL,
    session uuid NOT NULL,
    position bigint NOT NULL,
    follows_session uuid,
    follows_position bigint,
    settled_seq bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (store_id, lane)
)"""

_READ = f"""
SELECT lane, lineage::text, session::text, position, follows_session::text, follows_position, settled_seq
FROM {TABLE} WHERE store_id = %s"""

_BEGIN = f"""
INSERT INTO {TABLE} (store_id, lane, lineage, session, position, follows_session, follows_position, settled_seq)
VALUES (%s, %s, %s, %s, 1, %s, %s, %s)
ON CONFLICT (store_id, lane) DO UPDATE SET (lineage, session, position, follows_session, follows_position, settled_seq,
    seen_at) = (excluded.lineage, excluded.session, excluded.position, excluded.follows_session,
    excluded.follows_position, excluded.settled_seq, excluded.seen_at)"""

# The fence and the watermark in one round trip.  Where the lock is taken by another the row is left alone, unlocked.
_ADVANCE = f"""
UPDATE {TABLE} SET position = position + 1, settled_seq = %s, seen_at = clock_timestamp()
WHERE store_id = %s AND lane = %s AND session = %s AND pg_try_advisory_xact_lock(%s, hashtext(%s))
RETURNING position"""


def ensure_tables(cursor: Cursor) -> None:
    """Create the receipts and the watermarks table unless they are there; needs no privilege in the latter case.

    Raises `TargetMisconfigured` where somebody has taken the receipts away: without them entries would be doubled.
    """
    cursor.execute("SELECT to_regclass(%s) IS NULL AND to_regclass(%s) IS NOT NULL", (receipts.TABLE, TABLE))
    if cursor.fetchone()[0]:
        cursor.execute(f"SELECT EXISTS (SELECT FROM {TABLE})")
        if cursor.fetchone()[0]:
            raise TargetMisconfigured(
                f"table {receipts.TABLE} is gone, though this database has taken entries before",
                hint=f"restore it; or check that nothing is pending and drop {TABLE} too",
            )
    receipts.ensure_table(cursor)
    receipts.ensure_table(cursor, TABLE, _CREATE)


class Session:
    """One connection's place in PostgreSQL's history.  Used by the thread that uses the connection."""

    def __init__(self, memory: Memory, store_id: UUID, new_id: Callable[[], UUID], *, lane: int = 0) -> None:
        self._memory, self._store_id, self._new_id, self._lane = memory, str(store_id), new_id, lane
        # Lanes of one relay do not keep each other out, two relays do.
        self._fence = self._store_id if lane == 0 else f"{store_id}/{lane}"
        self._id = new_id()
        self._lineage: UUID | None = None
        self._position = 0
        self._entered = 0

    @property
    def mark(self) -> Mark | None:
        """The newest transaction that PostgreSQL acknowledged to this session."""
        if self._lineage is None or not self._position:
            return None
        return Mark(self._lineage, self._id, self._position, self._lane)

    def enter(self, cursor: Cursor) -> None:
        """Begin a transaction of the relay: keep other relays out, make sure that nothing was lost, move the watermark.

        Raises `TargetUnavailable`, or `HistoryRewound`; the transaction must then be rolled back.
        """
        if not self._position:
            loss = self.examine(cursor)
            if loss is not None:
                raise loss
            self.begin(cursor)
            return
        row = (self._memory.watermark(), self._store_id, self._lane, str(self._id))
        cursor.execute(_ADVANCE, (*row, LOCK_CLASS, self._fence))
        [position] = cursor.fetchone() or (None,)
        if position != self._position + 1:
            _check_fence(fence(cursor, self._fence))
            # Behind a connection pooler the server can change without the connection.
            raise TargetUnavailable("the server behind the connection is not the one that it was")
        self._entered = position

    def committed(self) -> None:
        """PostgreSQL has acknowledged the transaction that was entered."""
        self._position = self._entered

    def examine(self, cursor: Cursor) -> HistoryRewound | None:
        """What PostgreSQL has forgotten of what it acknowledged to the store.  Raises `TargetUnavailable`."""
        cursor.execute("SELECT pg_is_in_recovery()")
        if cursor.fetchone()[0]:
            # It may lag, which is no loss; and it takes no writes.
            raise TargetUnavailable(
                "the server is a standby", hint="add target_session_attrs=read-write to DATABASE_URL"
            )
        return judge(self._memory.marks(), self._rows(cursor))

    def begin(self, cursor: Cursor, *, complete: bool = True) -> None:
        """Enter the first transaction, taking the database as it is.

        Unless it is `complete` it must not prove what it lacks: to a copy of the store, or to this one after a crash.
        """
        _check_fence(fence(cursor, self._fence))
        marks = self._memory.marks()
        follows = next((mark for mark in marks if complete and mark.lane == self._lane), None)
        lineage = lineage_of(marks, self._rows(cursor)) or self._new_id()
        before = (str(follows.session), follows.position) if follows is not None else (None, None)
        parameters = (self._store_id, self._lane, str(lineage), str(self._id), *before, self._memory.watermark())
        cursor.execute(_BEGIN, parameters)
        self._lineage, self._entered = lineage, 1

    def _rows(self, cursor: Cursor) -> list[Watermark]:
        cursor.execute(_READ, (self._store_id,))
        return [_watermark(*row) for row in cursor.fetchall()]


class Comparison:
    """What the database on the other end has, compared with what the store remembers; ends with the connection."""

    def __init__(self, session: Session, ask: Callable[[Callable[[Cursor], Any]], Any], *, failover: bool) -> None:
        """`ask` runs a function with a cursor in a transaction of its own; it raises `TargetUnavailable`."""
        self._session, self._ask = session, ask
        # Whether the address names several hosts, so that a change of the primary is part of the plan.
        self.failover = failover
        self.loss: HistoryRewound | None = ask(session.examine)

    def missing(self, records: Sequence[Record]) -> list[Record]:
        """Those of `records` that have no receipt of their own payload."""
        found = self._ask(lambda cursor: find(cursor, records))
        return [item for item in records if item.key not in found or found[item.key][0] != item.payload_hash]

    def accept(self) -> Mark:
        """Take the database as it is: from now on it is compared with this moment."""
        if self._session.mark is None:
            self._ask(lambda cursor: self._session.begin(cursor, complete=self.loss is None))
        else:
            self._ask(self._session.enter)
        self._session.committed()
        mark = self._session.mark
        assert mark is not None
        return mark


def _watermark(
    lane: int,
    lineage: str,
    session: str,
    position: int,
    follows_session: str | None,
    follows_position: int | None,
    settled_seq: int,
) -> Watermark:
    follows = None
    if follows_session is not None and follows_position is not None:
        follows = (UUID(follows_session), follows_position)
    return Watermark(lane, UUID(lineage), UUID(session), position, follows, settled_seq)


def _check_fence(taken: bool) -> None:
    if not taken:
        raise TargetUnavailable("another relay of this store is at work in PostgreSQL")
