"""Continuity: whether PostgreSQL still has everything that it acknowledged.  Pure; the SQL is in `watermarks.py`.

PostgreSQL can lose commits that it acknowledged: a standby that lagged is promoted, an older backup is restored, a
server without `fsync` loses power.  What is left then is always an earlier state, whole up to some commit.  So one row
in PostgreSQL, moved by every transaction of the relay, proves everything before it: the store remembers how far it was
when PostgreSQL last acknowledged, and a server whose row is not as far has lost something.

A number alone would not do: after a failover another history counts on from the same number, and the old primary may
come back.  So each connection is a *session* with a random id and counts its transactions, and its row also says which
acknowledgement of an earlier session it follows.

The relay sessions of this store are recorded before PostgreSQL can show them.  A copy of a store has the same id and
goes on from the same acknowledgement.  A session that PostgreSQL shows and this store never began is therefore the work
of a copy: of the store that this one was restored from, or of one that runs beside it.

Entries that an import or an unfinished reconciliation put back to old places in `pending` are noted as late.  Once they
are delivered PostgreSQL has them behind later ones.  Should it be set back then, they must be looked for at their
places.  A reconciliation notes that in the ledger when it ends; until then, or if it is killed, the record does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from ..errors import HistoryRewound, StoreCorrupt
from ..words import counted
from .envelope import LATE, MARK, SESSIONS, Record, seal, unseal

SESSIONS_KEY = b"outbox:sessions"
# The record has the same size from the first day, so that it can be replaced where the store is full.
_SLOTS = 60
_NO_SESSION = bytes(16)


@dataclass(frozen=True, slots=True)
class RelaySessions:
    """The newest sessions of a store, oldest first."""

    newest: tuple[UUID, ...] = ()
    # Whether these are all that the store ever began.
    complete: bool = True

    def __contains__(self, session: UUID) -> bool:
        return session in self.newest

    def begun(self, *sessions: UUID) -> RelaySessions:
        """With `sessions` as the newest ones."""
        every = (*(one for one in self.newest if one not in sessions), *sessions)
        return RelaySessions(every[-_SLOTS:], self.complete and len(every) <= _SLOTS)

    def pack(self) -> bytes:
        """The bytes that the store keeps, with a checksum."""
        slots = [one.bytes for one in self.newest] + [_NO_SESSION] * (_SLOTS - len(self.newest))
        return seal(SESSIONS, SESSIONS_KEY, bytes((self.complete,)) + b"".join(slots))

    @classmethod
    def unpack(cls, data: bytes) -> RelaySessions:
        """Raises `StoreCorrupt`."""
        body = unseal(SESSIONS, SESSIONS_KEY, data, "the record of sessions")
        if len(body) != 1 + 16 * _SLOTS:
            raise StoreCorrupt(f"the record of sessions has {counted(len(body), 'byte')}, expected {1 + 16 * _SLOTS}")
        slots = [body[at : at + 16] for at in range(1, len(body), 16)]
        return cls(tuple(UUID(bytes=slot) for slot in slots if slot != _NO_SESSION), bool(body[0]))


def kept_sessions(txn: Any) -> RelaySessions | None:
    """The sessions of the store that the transaction reads; None where an older version has made it.

    Raises `StoreCorrupt`.
    """
    data = txn.get(SESSIONS_KEY)
    return None if data is None else RelaySessions.unpack(bytes(data))


def keep_sessions(txn: Any, *begun: UUID) -> None:
    """Keep that these sessions are the store's own.  Raises `StoreCorrupt`."""
    txn.put(SESSIONS_KEY, (kept_sessions(txn) or RelaySessions(complete=False)).begun(*begun).pack())


_LAYOUT = struct.Struct(">H16s16sQ")


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest transaction that PostgreSQL acknowledged on one lane, as the store remembers it."""

    # Of the database: a restored or promoted copy has the same, another database has not.
    lineage: UUID
    session: UUID
    position: int
    # Connections that deliver side by side have a lane each, and a row each in PostgreSQL.
    lane: int = 0

    def pack(self) -> bytes:
        """The bytes that the store keeps, with a checksum."""
        return seal(MARK, b"", _LAYOUT.pack(self.lane, self.lineage.bytes, self.session.bytes, self.position))

    @classmethod
    def unpack(cls, data: bytes) -> Mark | None:
        """None where the bytes are damaged."""
        try:
            body = unseal(MARK, b"", bytes(data), plain=_LAYOUT.size)
        except StoreCorrupt:
            return None
        if len(body) != _LAYOUT.size:
            return None
        lane, lineage, session, position = _LAYOUT.unpack(body)
        return cls(UUID(bytes=lineage), UUID(bytes=session), position, lane)


# In the place of one that is damaged: no database proves it, so that an operator is asked.
UNKNOWN = Mark(UUID(int=0), UUID(int=0), 0)


@dataclass(frozen=True, slots=True)
class Watermark:
    """The row of one lane in PostgreSQL."""

    lane: int
    lineage: UUID
    session: UUID
    position: int
    # The acknowledgement that the store remembered when this session began.
    follows: tuple[UUID, int] | None
    # Everything at or below this sequence number was settled when this transaction began.
    settled_seq: int

    def proves(self, mark: Mark) -> bool:
        """Whether the transaction of `mark` is there: this row was moved by it, or later."""
        same = self.session == mark.session and self.position >= mark.position
        return self.lane == mark.lane and (same or self.follows == (mark.session, mark.position))


class Memory(Protocol):
    """What a target must know of the store to notice that PostgreSQL lost something.  The store is one."""

    def marks(self) -> list[Mark]:
        """What PostgreSQL last acknowledged, by lane; empty before the first delivery."""
        ...

    def watermark(self) -> int:
        """Highest sequence number with nothing unsettled at or below it."""
        ...

    def last_seq(self) -> int:
        """Highest sequence number that was given out."""
        ...

    def sessions(self) -> RelaySessions | None:
        """The sessions that the store has begun; None for one that has not kept them so far."""
        ...

    def begin_session(self, *sessions: UUID) -> None:
        """Keep durably that these are the store's own, before PostgreSQL can show them.  Raises `DurabilityError`."""
        ...

    def proofs(self) -> list[Record]:
        """A few of those entries that PostgreSQL acknowledged last, whose receipts must be there."""
        ...


class NoMemory:
    """The memory of a target that has no store yet: it notices no loss."""

    def marks(self) -> list[Mark]:
        return []

    def watermark(self) -> int:
        return 0

    def last_seq(self) -> int:
        return 0

    def sessions(self) -> RelaySessions | None:
        return None

    def begin_session(self, *sessions: UUID) -> None:
        """Not kept."""

    def proofs(self) -> list[Record]:
        return []


# How the sessions begin that no store keeps: nothing follows from not knowing them.
_ANONYMOUS = bytes(4)


def anonymous(session: UUID) -> UUID:
    """The id of a session that no store remembers."""
    return UUID(bytes=_ANONYMOUS + session.bytes[4:])


def judge(
    marks: Iterable[Mark], rows: Sequence[Watermark], own: RelaySessions | None = None, last_seq: int | None = None
) -> HistoryRewound | None:
    """What is wrong with a database that shows `rows` to a store that remembers `marks`; None when nothing is.

    `own` are the sessions that the store has begun, `last_seq` is the newest number that it gave out; None: unknown.
    """
    marks = list(marks)
    lost = [mark for mark in marks if not any(row.proves(mark) for row in rows)]
    earlier = [row for row in rows if lost and row.lineage == lost[0].lineage]
    if lost and not earlier:
        return HistoryRewound(
            "this database has never acknowledged anything to this store, or has lost its row in outbox_watermarks",
            settled_seq=0,
            same_database=False,
        )
    copied = _copied(marks, rows, own, last_seq, certain=not lost)
    if copied is not None or not lost:
        return copied
    mark, row = lost[0], max(earlier, key=lambda row: row.settled_seq)
    return HistoryRewound(
        "PostgreSQL lost entries that it acknowledged, or this store is an older copy of itself: transaction "
        f"{mark.position} of session {mark.session} is not there; the newest is {row.position} of {row.session}",
        settled_seq=row.settled_seq,
        same_database=True,
    )


def _copied(
    marks: list[Mark], rows: Sequence[Watermark], own: RelaySessions | None, last_seq: int | None, *, certain: bool
) -> HistoryRewound | None:
    """What to say where PostgreSQL shows the work of a copy of this store.

    `certain`: PostgreSQL has all that the store remembers.  Else an unknown session proves a copy only if this store
    has never forgotten one.
    """
    ahead = max((row.settled_seq for row in rows), default=0)
    if last_seq is not None and ahead > last_seq:
        return _of_a_copy(
            f"PostgreSQL has seen entries up to {ahead} of this store, which has only {last_seq}: it was restored "
            "from an older copy, or a copy of it runs beside it"
        )
    if own is None or not (certain or own.complete):
        return None
    known = {mark.session for mark in marks}
    known |= {row.session for row in rows if row.session in own or row.session.bytes.startswith(_ANONYMOUS)}
    strangers = [row for row in rows if row.session not in known]
    if not strangers:
        return None
    return _of_a_copy(
        f"a copy of this store has delivered to PostgreSQL, in session {strangers[0].session}: this store was restored "
        "from an older copy, or a copy of it runs beside it"
    )


def _of_a_copy(message: str) -> HistoryRewound:
    # The copy's numbers are not this store's: none of them bounds a comparison.
    return HistoryRewound(message, settled_seq=0, same_database=True, of_a_copy=True)


def lineage_of(marks: Iterable[Mark], rows: Iterable[Watermark]) -> UUID | None:
    """The database's lineage: the remembered one where the database shows it, else its newest; None for a new one."""
    shown = {row.lineage: row.settled_seq for row in rows}
    known = [mark.lineage for mark in marks if mark.lineage in shown]
    return known[0] if known else max(shown, key=lambda lineage: shown[lineage], default=None)


def fingerprint(marks: Iterable[Mark]) -> str:
    """Names a loss: an operator's order is for this one and no later one."""
    return " ".join(f"{mark.lane}:{mark.session}:{mark.position}" for mark in marks)


LATE_KEY = b"outbox:late"
_LATE_LAYOUT = struct.Struct(">QQ")


def unpack_late(data: bytes) -> tuple[int, int]:
    """The lowest of them, and the newest sequence number of then.  Raises `StoreCorrupt`."""
    body = unseal(LATE, LATE_KEY, data, "the record of late entries")
    if len(body) != _LATE_LAYOUT.size:
        raise StoreCorrupt(f"the record of late entries has {counted(len(body), 'byte')}, expected {_LATE_LAYOUT.size}")
    first, newest = _LATE_LAYOUT.unpack(body)
    return first, newest


def kept_late(txn: Any) -> tuple[int, int] | None:
    """What `unpack_late` gives, or None without any.  Raises `StoreCorrupt`."""
    data = txn.get(LATE_KEY)
    return None if data is None else unpack_late(bytes(data))


def keep_late(txn: Any, first: int, newest: int) -> None:
    """Note that entries from `first` on went back when `newest` was the newest.  Raises `StoreCorrupt`."""
    before = kept_late(txn)
    lowest = first if before is None else min(first, before[0])
    txn.put(LATE_KEY, seal(LATE, LATE_KEY, _LATE_LAYOUT.pack(lowest, newest)))


def forget_late(txn: Any) -> None:
    """It is noted in the ledger now."""
    txn.delete(LATE_KEY)
