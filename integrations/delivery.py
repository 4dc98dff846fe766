"""Delivery: waiting for the relay, as long as that makes sense, and what a delivered call returns."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .. import Entry, EntryStatus, Outbox
from ..errors import EntryNotFound
from .operations import NOTES, ManagerOperation
from .replay import Answer, Answers, CallFailed

_log = logging.getLogger("outbox.integrations")

# Behind more entries than this a caller would wait for the backlog, not for its own call.
_BACKLOG = 50
# How long the word of a relay in another process is taken for true.
_HEARSAY_S = 1.0


class Delivery:
    """Knows how far the relay is with one adapter's calls.  Thread-safe."""

    def __init__(
        self, outbox: Outbox, answers: Answers, *, wait_s: float, refused: Callable[[int | None], None]
    ) -> None:
        """Callers wait for at most `wait_s` seconds; `refused(session_id)` hears of calls that PostgreSQL refused."""
        self._outbox, self._answers, self._wait_s, self._refused = outbox, answers, wait_s, refused
        # What an earlier process left is this program's own as well.
        self._last_seq = outbox.store.figures().counters.next_seq - 1
        # An entry whose result did not come in time: until it is settled nobody waits for another.
        self._late_seq = 0
        self._heard: tuple[float, bool | None] = (float("-inf"), None)

    def noted(self, entry: Entry) -> None:
        """A call has become durable."""
        self._last_seq = max(self._last_seq, entry.seq)

    @property
    def works(self) -> bool | None:
        """Whether PostgreSQL takes deliveries, as far as a relay knows; None where no relay is running."""
        here = self._outbox.progress.delivering
        if here is not None:
            return here
        now = self._outbox.clock.monotonic()
        if now - self._heard[0] > _HEARSAY_S:
            relay = self._outbox.status().relay
            word = (relay.breaker == "closed" and not relay.stuck) if relay.alive else None
            self._heard = (now, word)
        return self._heard[1]

    def prompt(self) -> bool:
        """Whether a call made now can be expected to be delivered at once."""
        if not self.works:
            return False
        figures = self._outbox.store.figures()
        late = figures.first_pending is not None and figures.first_pending <= self._late_seq
        return not late and figures.pending <= _BACKLOG

    def settled(self, *, wait: bool = True) -> bool:
        """Whether the relay has passed this adapter's calls; waits for it while deliveries work, if told to."""
        if self._passed():
            return True
        return wait and self.prompt() and self._outbox.progress.wait(self._passed, self._wait_s)

    def _passed(self) -> bool:
        first = self._outbox.store.figures().first_pending
        return first is None or first > self._last_seq

    def result(self, operation: ManagerOperation, entry: Entry, last: Entry) -> Any:
        """Wait for the delivery of `last` and return or raise what the manager answered to `entry`.

        The local result where that does not come in time.  What PostgreSQL refused is discarded, since its caller is
        told.
        """
        store = self._outbox.store
        if not self._outbox.progress.wait(lambda: not store.is_pending(last.seq), self._wait_s):
            if self.works:
                self._late_seq = last.seq
            return local_result(operation, entry)
        answer = self._answers.take(entry.seq)
        settled = self._outbox.entry(entry.seq)
        if settled.status is not EntryStatus.FAILED:
            if answer is not None and "id" in entry.args[NOTES] and answer.value != entry.args[NOTES]["id"]:
                # The manager found the row there already.
                self._refused(entry.args[NOTES].get("session"))
            return local_result(operation, settled) if answer is None else answer.give()
        self._refused(entry.args[NOTES].get("session"))
        if operation.best_effort:
            return None
        with suppress(EntryNotFound):  # an operator was faster
            self._outbox.discard(entry.seq, f"its caller was told: {settled.error}", free_key=True)
        answer = answer or Answer(error=CallFailed(f"{operation.name} was refused: {settled.error}"))
        _log.warning("a call was refused", extra={"operation": operation.name, "error": settled.error})
        return answer.give()


def local_result(operation: ManagerOperation, entry: Entry) -> Any:
    """What a call returns without asking PostgreSQL: the manager's own answer where it was delivered before."""
    if entry.status is EntryStatus.COMPLETED and entry.result is not None and not isinstance(entry.result, dict):
        return entry.result
    return entry.args[NOTES].get("id", operation.returns)
