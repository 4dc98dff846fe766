"""The watermarks table: the SQL of continuity, and one connection's place in PostgreSQL's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from ..errors import HistoryRewound, TargetMisconfigured, TargetUnavailable
from ..store.continuity import Mark, Memory, NoMemory, Watermark, anonymous, judge, lineage_of
from ..store.envelope import Record
from . import receipts
from .receipts import LOCK_CLASS, fence, find
from .transaction_settings import HELD, Cursor, not_held

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
RETURNING position, {HELD}, %s::uuid IS NULL OR EXISTS (
    SELECT FROM {receipts.TABLE} WHERE idempotency_key = %s::uuid)"""

_STATE = f"SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', {HELD}"


_THERE = """
SELECT to_regclass(%(receipts)s) IS NOT NULL, to_regclass(%(watermarks)s) IS NOT NULL, (
    SELECT relname::text FROM pg_class
    WHERE oid IN (to_regclass(%(receipts)s), to_regclass(%(watermarks)s)) AND relpersistence <> 'p' LIMIT 1)"""


def check_writable(cursor: Cursor) -> None:
    """Begin a transaction: look whether it can write, and whether its settings hold.

    Raises `TargetUnavailable` for a standby, `TargetMisconfigured` for a server that is read-only by its settings.
    """
    cursor.execute(_STATE)
    standby, read_only, held = cursor.fetchone()
    if standby:
        # It may lag, which is no loss; and it takes no writes.
        raise TargetUnavailable("the server is a standby", hint="add target_session_attrs=read-write to DATABASE_URL")
    if read_only:
        raise TargetMisconfigured(
            "transactions are read-only by default_transaction_read_only, and the server is no standby",
            hint="find out who set it (a full disk, a maintenance); ALTER ROLE, DATABASE or SYSTEM ... RESET it",
        )
    if not held:
        raise not_held()


def check_tables(cursor: Cursor) -> bool:
    """Begin a connection: see `check_writable`; returns whether the receipts and the watermarks table are there.

    Raises `ReceiptsGone` where the receipts were removed, and `TargetMisconfigured` where a crash would empty a table:
    without them entries would be doubled.
    """
    check_writable(cursor)
    cursor.execute(_THERE, {"receipts": receipts.TABLE, "watermarks": TABLE})
    has_receipts, has_watermarks, may_vanish = cursor.fetchone()
    if may_vanish is not None:
        raise TargetMisconfigured(
            f"table {may_vanish!r} is UNLOGGED: a crash of PostgreSQL empties it, and entries would be doubled",
            hint=f"ALTER TABLE {may_vanish} SET LOGGED; the entries wait",
        )
    if has_watermarks and not has_receipts:
        cursor.execute(f"SELECT EXISTS (SELECT FROM {TABLE})")
        if cursor.fetchone()[0]:
            raise receipts.gone("is gone")
    return bool(has_receipts and has_watermarks)


def make_tables(cursor: Cursor) -> None:
    """Create the receipts and the watermarks table unless they are there; needs no privilege in the latter case."""
    receipts.ensure_table(cursor)
    receipts.ensure_table(cursor, TABLE, _CREATE)


class RelaySession:
    """One connection's place in PostgreSQL's history.  Used by the thread that uses the connection."""

    def __init__(self, memory: Memory, store_id: UUID, new_id: Callable[[], UUID], *, lane: int = 0) -> None:
        self._memory, self._store_id, self._new_id, self._lane = memory, str(store_id), new_id, lane
        # Lanes of one relay do not keep each other out, two relays do.
        self._fence = self._store_id if lane == 0 else f"{store_id}/{lane}"
        self._id = anonymous(new_id()) if isinstance(memory, NoMemory) else new_id()
        self._lineage: UUID | None = None
        self._position = 0
        self._entered = 0
        # The newest transaction that PostgreSQL acknowledged to this session.
        self.mark: Mark | None = None
        # Of an entry that was applied in the newest transaction.
        self._proof: str | None = None
        # Tables of ours that were seen.  Not made before the database is taken as it is: a table that was renamed or
        # moved could not come back to its place.
        self._seen: set[str] = set()

    def _has(self, cursor: Cursor, table: str) -> bool:
        """Whether a table of ours is there."""
        if table not in self._seen and receipts.is_there(cursor, table):
            self._seen.add(table)
        return table in self._seen

    def enter(self, cursor: Cursor) -> None:
        """Begin a transaction of the relay: keep other relays out, make sure that nothing was lost, move the watermark.

        Raises `TargetUnavailable`, `HistoryRewound`, `ReceiptsGone` or `DurabilityError`; the transaction must then be
        rolled back.
        """
        if not self._position:
            # First of all: a copy of the store must not come in between.
            _check_fence(cursor, self._fence)
            loss = self.examine(cursor)
            if loss is not None:
                raise loss
            self.begin(cursor)
            return
        row = (self._memory.watermark(), self._store_id, self._lane, str(self._id))
        cursor.execute(_ADVANCE, (*row, LOCK_CLASS, self._fence, self._proof, self._proof))
        position, held, proven = cursor.fetchone() or (None, True, True)
        if not held:
            raise not_held()
        # A host may have taught the driver to read numbers as something else.
        if position is None or int(position) != self._position + 1:
            _check_fence(cursor, self._fence)
            # Behind a connection pooler the server can change without the connection.
            raise TargetUnavailable("the server behind the connection is not the one that it was")
        if not proven:
            receipts.check_there(cursor, self._store_id, self._memory.proofs(), more=True)
        self._entered = int(position)

    def without_receipt(self, cursor: Cursor, records: Sequence[Record]) -> set[int]:
        """Sequence numbers of those without a receipt.  Raises while another transaction may be writing one."""
        if not self._has(cursor, receipts.TABLE):
            return {item.seq for item in records}
        cursor.execute("SAVEPOINT outbox_withdrawn; SET LOCAL lock_timeout = '100ms'")
        fresh = receipts.record(cursor, self._store_id, records)
        cursor.execute("ROLLBACK TO SAVEPOINT outbox_withdrawn")
        return fresh

    def missing(self, cursor: Cursor, records: Sequence[Record]) -> list[Record]:
        """Those of `records` that have no receipt of their own payload."""
        found = find(cursor, records) if self._has(cursor, receipts.TABLE) else {}
        return [item for item in records if item.key not in found or found[item.key][0] != item.payload_hash]

    def committed(self, proof: Record | None = None) -> None:
        """PostgreSQL has acknowledged the transaction that was entered, and with it the receipt of `proof`."""
        self._position = self._entered
        if self._lineage is not None and self._position:
            self.mark = Mark(self._lineage, self._id, self._position, self._lane)
        self._proof = self._proof if proof is None else proof.key.hex()

    def examine(self, cursor: Cursor) -> HistoryRewound | None:
        """What PostgreSQL lost of what it acknowledged to the store, or has of a copy of the store.

        Raises `TargetUnavailable` or `ReceiptsGone`.
        """
        check_writable(cursor)
        # The rows must be as far as the marks, and the sessions as far as the rows, whatever other lanes do meanwhile.
        marks = self._memory.marks()
        rows = self._rows(cursor)
        loss = judge(marks, rows, self._memory.sessions(), self._memory.last_seq())
        if rows and (loss is None or loss.of_a_copy):
            # What was committed and is not recorded would be applied again.  A database that was set back may be from
            # before the first receipt.
            recorded = {(mark.session, mark.position) for mark in marks}
            more = any((row.session, row.position) not in recorded for row in rows)
            receipts.check_there(cursor, self._store_id, self._memory.proofs(), more=more)
        return loss

    def settled(self, cursor: Cursor) -> int:
        """The highest sequence number up to which this store or a copy of it knew everything to be settled."""
        return max((row.settled_seq for row in self._rows(cursor)), default=0)

    def parts(self, cursor: Cursor) -> list[str]:
        """The receipts in parts; none where there is no table."""
        return receipts.parts(cursor) if self._has(cursor, receipts.TABLE) else []

    def highest(self, cursor: Cursor, part: str) -> int:
        """The highest sequence number of this store or a copy of it in a part of the receipts."""
        return receipts.highest_seq(cursor, self._store_id, part)

    def begin(self, cursor: Cursor, *, complete: bool = True) -> None:
        """Enter the first transaction, taking the database as it is.

        Unless it is `complete` it must not prove what it lacks: to a copy of the store, or to this one after a crash.
        Raises `TargetUnavailable` or `DurabilityError`.
        """
        _check_fence(cursor, self._fence)
        make_tables(cursor)
        marks, rows = self._memory.marks(), self._rows(cursor)
        # Should this transaction be rolled back, PostgreSQL goes on showing the others.
        self._memory.begin_session(*(row.session for row in rows), self._id)
        follows = next((mark for mark in marks if complete and mark.lane == self._lane), None)
        lineage = lineage_of(marks, rows) or self._new_id()
        before = (str(follows.session), follows.position) if follows is not None else (None, None)
        parameters = (self._store_id, self._lane, str(lineage), str(self._id), *before, self._memory.watermark())
        cursor.execute(_BEGIN, parameters)
        self._lineage, self._entered = lineage, 1

    def _rows(self, cursor: Cursor) -> list[Watermark]:
        if not self._has(cursor, TABLE):
            return []
        cursor.execute(_READ, (self._store_id,))
        return [_watermark(*row) for row in cursor.fetchall()]


class PostgresComparison:
    """What the database on the other end has, compared with what the store remembers; ends with the connection."""

    def __init__(
        self,
        session: RelaySession,
        ask: Callable[[Callable[[Cursor], Any]], Any],
        *,
        failover: bool,
        places: frozenset[str] = frozenset(),
    ) -> None:
        """`ask` runs a function with a cursor in a transaction of its own; it raises `TargetUnavailable`."""
        self._session, self._ask = session, ask
        # Whether the address names several hosts, so that a change of the primary is part of the plan.
        self.failover = failover
        # The databases that the address names.
        self.places = places
        self.loss: HistoryRewound | None = ask(session.examine)

    def missing(self, records: Sequence[Record]) -> list[Record]:
        """Those of `records` that have no receipt of their own payload."""
        missing: list[Record] = self._ask(lambda cursor: self._session.missing(cursor, records))
        return missing

    def seen(self) -> int:
        """The highest sequence number of the store or a copy of it that PostgreSQL has seen.

        Reads all receipts.
        """
        highest = int(self._ask(self._session.settled))
        for part in self._ask(self._session.parts):
            highest = max(highest, int(self._ask(partial(self._session.highest, part=part))))
        return highest

    def never_applied(self, records: Sequence[Record]) -> list[Record]:
        """Those of `records` that have no receipt, not even in a transaction that still runs."""
        found = self._ask(lambda cursor: self._session.without_receipt(cursor, records))
        return [item for item in records if item.seq in found]

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
        follows = (UUID(follows_session), int(follows_position))
    return Watermark(int(lane), UUID(lineage), UUID(session), int(position), follows, int(settled_seq))


def _check_fence(cursor: Cursor, name: str) -> None:
    if not fence(cursor, name):
        raise TargetUnavailable(
            f"another relay of this store is at work in PostgreSQL{receipts.holder_of_fence(cursor, name)}",
            hint="wait, or look whether its commit waits for a synchronous standby (SyncRep in pg_stat_activity)",
        )
