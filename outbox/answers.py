"""OperatorAnswers: carries out an operator's requeue or discard, and records it in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from .entry import Entry
from .errors import InvalidEntry
from .log import Log
from .store.envelope import Record, is_seq
from .store.ledger import ACKNOWLEDGE, DISCARD, REQUEUE, answer
from .store.store import Store
from .store.withdrawal import members, not_in_delivery

_log = Log("outbox")


def require_number(seq: object) -> None:
    """Raise `InvalidEntry` for what is no sequence number."""
    if not isinstance(seq, int) or isinstance(seq, bool):
        raise InvalidEntry(f"seq is {seq!r}", hint="allowed: a sequence number")


def require_reason(reason: object) -> None:
    """Raise `InvalidEntry` for an empty reason."""
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidEntry(f"reason is {reason!r}", hint="say why this entry may be given up")


class OperatorAnswers:
    """Those of one store.  Safe from any thread."""

    def __init__(self, store: Store, new_id: Callable[[], UUID]) -> None:
        self._store, self._new_id = store, new_id

    def requeue(self, seq: int) -> list[Entry]:
        """See `Outbox.requeue`."""
        audit = self._audit(REQUEUE, seq)
        return self._released("requeue", seq, self._store.requeue(seq, audit))

    def discard(self, seq: int, reason: str, *, free_key: bool) -> list[Entry]:
        """See `Outbox.discard`."""
        require_reason(reason)
        extra: dict[str, Any] = {"free_key": True} if free_key else {}
        audit = self._audit(DISCARD, seq, reason=reason, **extra)
        pending = self._store.record("pending", seq) if is_seq(seq) else None
        if pending is None:
            released = self._store.discard(seq, reason, audit, free_key=free_key)
        else:
            with not_in_delivery(self._store.directory, *members(pending)):
                released = self._store.withdraw(seq, reason, audit, free_key=free_key)
        return self._released("discard", seq, released)

    def forget_unledgered(self, name: str) -> bool:
        """Acknowledge, as alarm `name`, the entries that were completed without a ledger copy; whether any were."""
        count = self._store.figures().counters.unledgered
        if count:
            audit = answer(ACKNOWLEDGE, {"name": name, "entries": count}, self._new_id().bytes)
            self._store.forget_unledgered(count, audit)
        return bool(count)

    def _audit(self, operation: str, seq: int, **said: Any) -> Record:
        require_number(seq)
        return answer(operation, {"seq": seq, **said}, self._new_id().bytes)

    def _released(self, action: str, seq: int, released: list[Record]) -> list[Entry]:
        """Let a relay know that the answered entries, or those behind them, may be delivered."""
        _log.warning(
            "entry answered by an operator: %(action)s of entry %(seq)s; entries in its transaction: %(entries)s",
            action=action,
            seq=seq,
            entries=len(released),
        )
        for listener in tuple(self._store.listeners):
            listener()
        return [record.entry(strict=False) for record in released]
