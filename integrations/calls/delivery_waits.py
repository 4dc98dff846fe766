"""Delivery waits: waits for the relay while deliveries make progress, and returns the result of a delivered call.

Attributes of the manager that queued calls may change when they are delivered stand still until then, and reading one
waits or raises: a risk limit would be wrong (`PendingAttributes`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ... import Entry, EntryStatus, Outbox
from ...errors import EntryNotFound
from ...log import Log
from ..code.class_code import ClassCode, remembered
from ..manager.host import Host
from ..operations import ManagerOperation, call_of, notes_of, told_id
from ..outage import Outage
from ..replay.balance import told_before
from ..replay.replay import CallFailed, Replayer
from ..replay.told_answers import Answer, id_in
from ..state.carried import Carried, has_arrived
from ..state.kept_state import NOT_STATE
from .stages import Passed, PreparedCall

if TYPE_CHECKING:
    from .guard import Guard

_log = Log("outbox.integrations")

# Behind more entries than this a caller would wait for the backlog, not for its own call.
_BACKLOG = 50
# Stands for the answer that the notes of an entry give.
_NOTED: Any = object()


class DeliveryWaits:
    """Follows how far the relay is with one adapter's calls.  Thread-safe."""

    def __init__(
        self, outbox: Outbox, outage: Outage, replayer: Replayer, *, wait_s: float, refused: Callable[[Entry], None]
    ) -> None:
        """Callers wait for at most `wait_s` seconds; `refused(entry)` is called when PostgreSQL refused a call."""
        self._outbox, self._outage, self._replayer = outbox, outage, replayer
        self.wait_s, self._refused, self._answers = wait_s, refused, replayer.answers
        # Pending calls of an earlier process count as this program's own.
        self.last_seq = outbox.store.figures().counters.next_seq - 1
        self._here = threading.local()
        # A call that a caller has waited for in vain: until it is settled, reads with another answer do not wait.
        self._late_seq = 0
        # The call that was next while a caller waited in vain: as long as it is, no other caller waits, but for one
        # before any delivery came in time, since over a long line the first batch behind a start takes seconds.
        self._stuck_seq: int | None = None
        self._was_in_time = self._has_waited_twice = False

    def noted(self, seq: int) -> None:
        """Take in that a call of this thread is durable."""
        self.last_seq, self._here.seq = max(self.last_seq, seq), seq

    @property
    def last_here(self) -> int:
        """The last call of this thread; 0 for none."""
        return getattr(self._here, "seq", 0)

    def prompt(self) -> bool:
        """Whether a call that is made now will probably be delivered at once, so that its caller should wait."""
        if not self._outage.delivers:
            return False
        return not self._is_late() and self._outbox.store.figures().pending <= _BACKLOG

    def _is_late(self) -> bool:
        first = self._outbox.store.first_pending()
        return first is not None and first <= self._late_seq

    def wait_until_passed(self, last_seq: int | None = None, *, once: bool = False) -> bool:
        """Wait for the relay to pass this adapter's calls up to `last_seq`, by default all; whether it has.

        Waits for at most `wait_s`, only while deliveries work, and not after a caller has waited in vain for the same
        call, which may be parked for hours; once more before a first delivery came in time.  `once`: nor for a call
        before that one, since the read has another answer.
        """
        bar = self.last_seq if last_seq is None else last_seq
        if self.passed(bar):
            return True
        if not self._outage.delivers or (once and self._is_late()):
            return False
        first = self._outbox.store.first_pending()
        if first is not None and first == self._stuck_seq:
            if once or self._was_in_time or self._has_waited_twice:
                return False
            self._has_waited_twice = True
        if self._outbox.progress.wait(lambda: self.passed(bar), self.wait_s):
            self._was_in_time = True
            return True
        self._waited_in_vain(bar, first)
        return False

    def wait_until_settled(self) -> bool:
        """Wait for at most `wait_s` until no call waits for its delivery; whether none does."""
        return self._outbox.progress.wait(lambda: not self._outbox.store.figures().pending, self.wait_s)

    def _waited_in_vain(self, bar: int, first: int | None) -> None:
        """Note that the relay did not pass `bar` in time; `first` was the next entry when the wait began."""
        if self._outage.delivers:
            self._late_seq = max(self._late_seq, bar)
            if first == self._outbox.store.first_pending():
                self._stuck_seq = first

    def passed(self, bar: int) -> bool:
        """Whether the relay has passed the calls up to `bar`."""
        acknowledged = self._outbox.progress.acknowledged
        first = self._outbox.store.first_pending()
        while first is not None and first <= bar and first in acknowledged:
            first += 1
        return first is None or first > bar

    def result(
        self, operation: ManagerOperation, entries: Sequence[Entry], local_answer: Any, passed: Passed | None
    ) -> Any:
        """Wait for the delivery of a call, or of a block, and return or raise what the manager answered to the first.

        The caller is answered when PostgreSQL has committed, before the store has recorded that; with `local_answer`
        if that takes too long.  A refused call is discarded, since its caller gets the error.  `passed`: the caller's
        objects, which follow what the method changed.
        """
        entry, last = entries[0], entries[-1]
        first = self._outbox.store.first_pending()
        early = None
        if not self._wait(entry, lambda: has_arrived(self._outbox, last.seq)):
            self._waited_in_vain(last.seq, first)
            early = self._answers.leave(entry.seq)
            # A refusal that came just before was left to this caller to answer.
            if not has_arrived(self._outbox, last.seq):
                if early is not None:
                    self._replayer.compare_id(operation, entry, early.value)
                if passed is not None:
                    passed.numbered(told_id(notes_of(entry)))
                return local_result(operation, entry, local_answer)
        self._was_in_time = True
        answers = [self._answers.take(one.seq) for one in entries]
        answer = answers[0] = answers[0] or early
        if answer is None:
            # Another handler than this adapter's has applied it: the result is known when it is recorded.
            self._wait(entry, lambda: not self._outbox.store.is_pending(last.seq))
        settled = self._as_settled(entry)
        if settled.status is not EntryStatus.FAILED:
            self._answers.forget(one.id.bytes for one in entries)
            id_ = notes_of(entry).get("id")
            if answer is not None and id_ is not None:
                shown = id_in(answer.value, id_, operation.id_column.column)
                if shown not in (id_, None):
                    # The manager has answered with another id: the row was there already.
                    self._refused(settled)
            if passed is not None:
                passed.numbered(id_) if answer is None else passed.changed(answer.call)
            return local_result(operation, settled, local_answer) if answer is None else answer.give()
        return self._given_up(operation, settled, answers)

    def _wait(self, entry: Entry, reached: Callable[[], bool]) -> bool:
        """Wait for what becomes of a call; where a signal handler raises, a refusal is left to an operator."""
        try:
            return self._outbox.progress.wait(reached, self.wait_s)
        except BaseException:
            self._answers.leave(entry.seq)
            raise

    def _as_settled(self, entry: Entry) -> Entry:
        """The entry as the store has it; one that is gone was completed, and a full disk kept no copy of it."""
        try:
            return self._outbox.entry(entry.seq)
        except EntryNotFound:
            return replace(entry, status=EntryStatus.COMPLETED)

    def _given_up(self, operation: ManagerOperation, settled: Entry, answers: Sequence[Answer | None]) -> Any:
        """Discard a call that PostgreSQL refused, and raise the refusal; a best-effort call returns None."""
        self._refused(settled)
        if operation.best_effort:
            return None
        with suppress(EntryNotFound):  # an operator was faster
            self._outbox.discard(settled.seq, f"its caller was told: {settled.error}", free_key=True)
        _log.warning("a call of %(operation)s was refused: %(error)s", operation=operation.name, error=settled.error)
        return _refusal(operation, settled, answers).give()


def _refusal(operation: ManagerOperation, settled: Entry, answers: Sequence[Answer | None]) -> Answer:
    """What the caller of a call, or of a block, that was not applied gets.

    An answer that the manager gave before PostgreSQL refused the commit, or before a later call of the block was
    refused, does not hold.
    """
    refused = [one for one in answers if one is not None and (one.refusal or one.error is not None)]
    if refused and (refused[0].error is not None or len(answers) == 1):
        return refused[0]
    what = operation.name if len(answers) == 1 else f"the block of {operation.name}"
    return Answer(error=CallFailed(f"{what} was refused: {settled.error}", hint="nothing of it was written"))


def local_result(operation: ManagerOperation, entry: Entry, local_answer: Any = _NOTED) -> Any:
    """What a call returns without a question to PostgreSQL: the manager's own answer where it was delivered before.

    Otherwise `local_answer`, or without one the answer that the entry's notes give.
    """
    if entry.status is EntryStatus.COMPLETED and entry.result is not None and not isinstance(entry.result, dict):
        return entry.result
    if local_answer is not _NOTED:
        return local_answer
    notes = notes_of(entry)
    return told_before(notes) if "yielded" in notes else operation.answer_to(call_of(entry), notes)


class PendingAttributes:
    """The attributes of one manager that wait for deliveries.  Thread-safe."""

    def __init__(self, host: Host, carried: Carried, delivery: DeliveryWaits, guard: Guard) -> None:
        self._host, self._carried, self._delivery, self._guard = host, carried, delivery, guard
        # Attributes that the methods of operations assign, and the last call each waits for.
        self._pending_attributes: dict[str, tuple[str, int]] = {}
        # Those that only a delivery counts, and the last call that changes them so.
        self._uncounted: dict[str, int] = {}

    def read(self, name: str) -> None:
        """An attribute of the manager is read: let it have what deliveries have changed.

        Raises `NotCaughtUp` where a call that is not delivered in time changes it.
        """
        operation, seq = self._pending_attributes.get(name, ("", 0))
        if seq and not self._delivery.wait_until_passed(seq):
            raise self._guard.not_caught_up(f"self.{name} is changed by {operation}")
        self._pending_attributes.pop(name, None)
        self._carried.settle()

    def stale(self) -> set[str]:
        """Attributes that a call which is not delivered yet may change, and has not changed yet."""
        if not self._pending_attributes:
            return set()
        self._carried.settle()
        return {name for name, (_, seq) in [*self._pending_attributes.items()] if not self._delivery.passed(seq)}

    def uncounted(self) -> set[str]:
        """Attributes that lack the changes of queued calls, since there was no manager yet to rehearse those calls.

        A rehearsal finds older values in them than the replay will find.
        """
        if self._uncounted:
            self._carried.settle()
            self._uncounted = {name: seq for name, seq in self._uncounted.items() if not self._delivery.passed(seq)}
        return set(self._uncounted)

    def by(self, name: str) -> set[str]:
        """The attributes that a call of method `name` may change, by its code and by what its replays have changed."""
        cls, known = self._host.manager_class, self._carried.names.get(name, set())
        return set(known) if cls is None else _changed_by(cls, name) | known

    def note(self, item: PreparedCall, entry: Entry) -> None:
        """Remember which attributes the call may change when it is delivered, and has not changed yet."""
        name = item.operation.name
        later = self._carried.names.get(name, set())
        for attribute in ((self.by(name) - item.changes.by_name.keys()) | later) - item.foreseen.keys():
            self._pending_attributes[attribute] = (name, entry.seq)
        self._uncounted |= dict.fromkeys(item.uncounted, entry.seq)


@remembered(256)
def _changed_by(cls: type, name: str) -> set[str]:
    return ClassCode(cls).changed_by(name) - NOT_STATE
