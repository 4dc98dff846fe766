"""Divergence: alarms for what a replay finds in PostgreSQL and what differs from what the caller was given.

Another writer has changed it, or an earlier call was refused: only a person can decide which value is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from ... import Entry, OutboxError
from ...log import Log
from ...monitoring.notices import Alarms

_log = Log("outbox.integrations")

# At most so long after its delivery began a row is stamped.
_DELIVERY = timedelta(seconds=1)


class Divergences:
    """Logs each difference and raises its alarm.  Used by the relay's thread and by callers that wait."""

    def __init__(self, alarms: Alarms | None) -> None:
        """`alarms`: those of the store that is delivered; None until the relay has named it."""
        self.alarms = alarms
        # Sessions with such a balance, and until when: its row has the time of its delivery.
        self._since: dict[Any, datetime] = {}

    def is_overtaken(self, session: Any, at: datetime) -> bool:
        """Whether a balance stamped `at` would come before one that was delivered already, and count for nothing."""
        return session in self._since and at <= self._since[session]

    def of_balance(self, entry: Entry, session: Any, told: Any, found: Any, now: datetime) -> None:
        """Report that the session's balance is `found`, and was `told` to the caller."""
        self._since[session] = now + _DELIVERY
        message = (
            f"entry {entry.seq} ({entry.operation}) was made at a balance of {told} in session {session}, "
            f"and PostgreSQL had {found}: another writer has changed it, or an earlier change was refused"
        )
        _log.error(
            "balance of session %(session)s diverged at entry %(seq)s: %(detail)s",
            session=session,
            seq=entry.seq,
            detail=message,
        )
        self._sound(f"diverged-balance-{session}", message)

    def of_id(self, entry: Entry, table: str, told: Any, found: Any) -> None:
        """Report that the manager answered with id `found`, and the caller has id `told`."""
        message = (
            f"entry {entry.seq} ({entry.operation}) gave its caller id {told} of {table}, and the manager answered "
            f"with {found}: the row was there already, or the manager has numbered it otherwise (by SQL of its own, "
            "or as a further row of the table)"
        )
        _log.error(
            "id of table %(table)s diverged at entry %(seq)s: %(detail)s", seq=entry.seq, table=table, detail=message
        )
        self._sound(f"diverged-id-{table}-{told}", message)

    def of_thread(self, entry: Entry) -> None:
        """Report that a thread which the call began has written behind the end of its replay."""
        message = (
            f"entry {entry.seq} ({entry.operation}) was applied, but a thread that its method began has written after "
            "it, and that is lost: write it by hand, and let the method wait for its thread"
        )
        _log.critical("a part of entry %(seq)s is lost: %(detail)s", seq=entry.seq, detail=message)
        self._sound(f"lost-thread-{entry.operation}", message)

    def of_context(self, entry: Entry, name: str) -> None:
        """Report that a call is delivered without a context variable that its process could not store."""
        message = (
            f"entry {entry.seq} ({entry.operation}) is delivered without the context value {name}: an earlier "
            "process had its value, which could not be stored: look at the row, and keep plain values there"
        )
        _log.error("a context variable of entry %(seq)s is lost: %(detail)s", seq=entry.seq, detail=message)
        self._sound(f"lost-context-{entry.operation}", message)

    def of_values(self, entry: Entry, names: Sequence[str]) -> None:
        """Report that the call had made other values ready than its delivery did."""
        message = (
            f"entry {entry.seq} ({entry.operation}) was delivered with another {' and '.join(names)} than the call "
            "had: the method reads something that changes between the call and its delivery (a global, a file, the "
            "environment): correct the row by hand, and give the method an argument for it"
        )
        _log.error("values of entry %(seq)s diverged: %(detail)s", seq=entry.seq, detail=message)
        self._sound(f"diverged-values-{entry.operation}", message)

    def _sound(self, alarm: str, message: str) -> None:
        if self.alarms is not None:
            try:
                self.alarms.sound(alarm, message)
            except OutboxError as exc:
                _log.error("the alarm %(alarm)r could not be kept: %(error)s", alarm=alarm, error=exc)
