"""Answers: what the manager answered to the newest replays, for callers who wait for the real result."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import Entry
from ...store.envelope import Record

_ANSWERS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What the manager answered to one replay: a value, or what it raised."""

    value: Any = None
    error: BaseException | None = None
    # Whether the value means that nothing was applied.
    refusal: bool = False
    # The arguments as the method has left them, but those that cannot change.
    call: Mapping[str, Any] = field(default_factory=dict)

    def give(self) -> Any:
        """Return or raise it, as the manager did."""
        if self.error is not None:
            raise self.error
        return self.value


class Answers:
    """The last answers by sequence number, for callers who wait for the real result.  Thread-safe."""

    def __init__(self) -> None:
        # Reentrant, since a signal handler may come while it is held.
        self._lock = threading.RLock()
        self._kept: OrderedDict[int, Answer] = OrderedDict()
        # Calls whose callers wait no longer, and have the local result.
        self._left: deque[int] = deque(maxlen=_ANSWERS_KEPT)
        # Ids of entries whose callers are going to wait.
        self._awaited: deque[bytes] = deque(maxlen=_ANSWERS_KEPT)

    def expect(self, records: Iterable[Record]) -> None:
        """Note that the callers of these are going to wait, before the relay can come to them."""
        with self._lock:
            self._awaited.extend(record.id for record in records)

    def is_awaited(self, entry: Entry) -> bool:
        """Whether the caller waits for what becomes of the call."""
        with self._lock:
            return entry.id.bytes in self._awaited and entry.seq not in self._left

    def keep(self, seq: int, answer: Answer) -> None:
        """Replace what is known of `seq`."""
        with self._lock:
            self._kept[seq] = answer
            self._kept.move_to_end(seq)
            while len(self._kept) > _ANSWERS_KEPT:
                self._kept.popitem(last=False)

    def take(self, seq: int) -> Answer | None:
        """What is known of `seq`, once."""
        with self._lock:
            return self._kept.pop(seq, None)

    def leave(self, seq: int) -> Answer | None:
        """Note that the caller waits no longer; what is known of `seq`, though PostgreSQL has not committed it."""
        with self._lock:
            self._left.append(seq)
            return self._kept.pop(seq, None)

    def is_left(self, seq: int) -> bool:
        """Whether the caller has stopped waiting."""
        with self._lock:
            return seq in self._left
