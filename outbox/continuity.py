"""Continuity: whether PostgreSQL still has everything that it acknowledged.  Pure; the SQL is in `watermarks.py`.

PostgreSQL can lose commits that it acknowledged: a standby that lagged is promoted, an older backup is restored, a
server without `fsync` loses power.  What is left then is always an earlier state, whole up to some commit.  So one row
in PostgreSQL, moved by every transaction of the relay, proves everything before it: the store remembers how far it was
when PostgreSQL last acknowledged, and a server whose row is not as far has lost something.

A number alone would not do: after a failover another history counts on from the same number, and the old primary may
come back.  So each connection is a *session* with a random id and counts its transactions, and its row also says which
acknowledgement of an earlier session it follows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from .errors import HistoryRewound

_LAYOUT = struct.Struct(">H16s16sQ")
_CRC = struct.Struct(">I")


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
        body = _LAYOUT.pack(self.lane, self.lineage.bytes, self.session.bytes, self.position)
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes) -> Mark | None:
        """None where the bytes are damaged."""
        body = data[: _LAYOUT.size]
        if len(data) != _LAYOUT.size + _CRC.size or _CRC.unpack(data[_LAYOUT.size :])[0] != zlib.crc32(body):
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
    """What a target must know of the store to tell whether PostgreSQL has forgotten something.  The store is one."""

    def marks(self) -> list[Mark]:
        """What PostgreSQL last acknowledged, by lane; empty before the first delivery."""
        ...

    def watermark(self) -> int:
        """Highest sequence number with nothing unsettled at or below it."""
        ...


class NoMemory:
    """Of a target that nobody has told of a store: it cannot miss anything."""

    def marks(self) -> list[Mark]:
        return []

    def watermark(self) -> int:
        return 0


class Ahead:
    """A memory that also knows what PostgreSQL has acknowledged and the store has not recorded yet."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.forget()

    def forget(self) -> None:
        """The store knows it too now, or never will."""
        self._newest: list[Mark] = []
        self._settled = range(0)

    def know(self, newest: list[Mark], settled: range) -> None:
        """`newest` was acknowledged, and with it all that was pending in the range `settled` of sequence numbers."""
        self._newest, self._settled = newest, settled

    def marks(self) -> list[Mark]:
        newest = self._newest
        return [*newest, *(mark for mark in self._memory.marks() if all(mark.lane != new.lane for new in newest))]

    def watermark(self) -> int:
        recorded = self._memory.watermark()
        return self._settled[-1] if recorded + 1 in self._settled else recorded


def judge(marks: Iterable[Mark], rows: Sequence[Watermark]) -> HistoryRewound | None:
    """What is wrong with a database that shows `rows` to a store that remembers `marks`; None when nothing is."""
    lost = [mark for mark in marks if not any(row.proves(mark) for row in rows)]
    if not lost:
        return None
    earlier = [row for row in rows if row.lineage == lost[0].lineage]
    if not earlier:
        return HistoryRewound(
            "this database has never acknowledged anything to this store, or one of the two has forgotten it",
            settled_seq=0,
            same_database=False,
        )
    mark, row = lost[0], max(earlier, key=lambda row: row.settled_seq)
    return HistoryRewound(
        "PostgreSQL lacks what it had acknowledged, or this store is an older copy of itself: transaction "
        f"{mark.position} of session {mark.session} is not there; the newest is {row.position} of {row.session}",
        settled_seq=row.settled_seq,
        same_database=True,
    )


def lineage_of(marks: Iterable[Mark], rows: Iterable[Watermark]) -> UUID | None:
    """The database's lineage: the remembered one where the database shows it, else its newest; None for a new one."""
    shown = {row.lineage: row.settled_seq for row in rows}
    known = [mark.lineage for mark in marks if mark.lineage in shown]
    return known[0] if known else max(shown, key=lambda lineage: shown[lineage], default=None)


def fingerprint(marks: Iterable[Mark]) -> str:
    """Names a loss: an operator's order is for this one and no later one."""
    return " ".join(f"{mark.lane}:{mark.session}:{mark.position}" for mark in marks)
