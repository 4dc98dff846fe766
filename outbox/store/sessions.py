"""RelaySessions: the relay sessions of this store, recorded before PostgreSQL can show them.

A copy of a store has the same id and goes on from the same acknowledgement.  A session that PostgreSQL shows and this
store never began is therefore the work of a copy: of the store that this one was restored from, or of one that runs
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ..errors import StoreCorrupt
from ..words import counted
from .envelope import SESSIONS, seal, unseal

KEY = b"outbox:sessions"
# The record has the same size from the first day, so that it can be replaced where the store is full.
_SLOTS = 60
_NONE = bytes(16)


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
        slots = [one.bytes for one in self.newest] + [_NONE] * (_SLOTS - len(self.newest))
        return seal(SESSIONS, KEY, bytes((self.complete,)) + b"".join(slots))

    @classmethod
    def unpack(cls, data: bytes) -> RelaySessions:
        """Raises `StoreCorrupt`."""
        body = unseal(SESSIONS, KEY, data, "the record of sessions")
        if len(body) != 1 + 16 * _SLOTS:
            raise StoreCorrupt(f"the record of sessions has {counted(len(body), 'byte')}, expected {1 + 16 * _SLOTS}")
        slots = [body[at : at + 16] for at in range(1, len(body), 16)]
        return cls(tuple(UUID(bytes=slot) for slot in slots if slot != _NONE), bool(body[0]))


def kept(txn: Any) -> RelaySessions | None:
    """The sessions of the store that the transaction reads; None where an older version has made it.

    Raises `StoreCorrupt`.
    """
    data = txn.get(KEY)
    return None if data is None else RelaySessions.unpack(bytes(data))


def keep(txn: Any, *begun: UUID) -> None:
    """Keep that these sessions are the store's own.  Raises `StoreCorrupt`."""
    txn.put(KEY, (kept(txn) or RelaySessions(complete=False)).begun(*begun).pack())
