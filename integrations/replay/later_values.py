"""Later values: finds calls whose replay makes other values ready than the call did, by their fingerprints.

A replay finds the arguments, the clock and the manager's state as the call did.  What else a method reads (a global, a
file, the environment) it reads when it is delivered, and nothing in its code need show that.

A random number differs as well, and is no fault.  So a value counts only when it was equal in deliveries that followed
at once, or when the call and the replay have each had one of its own all the time.  One that is mostly equal, such as a
flag that is set at random, must have been so for far longer than between two of its differences.
"""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta

from ... import OutboxError
from ...log import Log
from ...store.envelope import to_us
from ...store.store import Store
from .fingerprint import Digests, compared, rehearsed_at

_log = Log("outbox.integrations")

_META = "equal_values"
# So many deliveries in a row show what a value is like.
_ENOUGH = 20
# Or so many times as many as were equal before it differed; and at most that many.
_LONGER = 5
_MOST = 2000
# A delivery that follows at once: nothing has changed meanwhile.
AT_ONCE = timedelta(seconds=2)
# A time that the code rounds is the same at both ends of a part of this length, unless it rounds to less.
_ROUNDED_US = 10_000


def is_same_moment(kept: bytes, captured_at: datetime) -> bool:
    """Whether a clock that is rounded showed the same when the call was rehearsed as its replay is shown."""
    one, other = (to_us(time) // _ROUNDED_US for time in (rehearsed_at(kept), captured_at))
    return one == other


class LaterValues:
    """What is known of the values of each operation.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Store | None = None
        # By operation: the version of its code, and how many deliveries in a row each value was equal in.
        self._code: dict[str, str] = {}
        self._equal: dict[str, dict[str, int]] = {}
        # By operation and value: how many must be equal, where it has differed behind equal ones.
        self._enough: dict[tuple[str, str], int] = {}
        # By operation and value: the digests of the call and of the replay, which differ, and how often they did so.
        self._apart: dict[tuple[str, str], tuple[tuple[int, int], int]] = {}

    def keep_in(self, store: Store) -> None:
        """Keep in this store which values are equal; takes over those that it has."""
        with self._lock:
            if store is self._store:
                return
            self._store = store
            kept = store.get_meta(_META)
            for operation, (code, names, *more) in (json.loads(kept) if kept else {}).items():
                self._code[operation] = code
                for enough in more:
                    self._enough |= {(operation, name): number for name, number in enough.items()}
                self._equal[operation] = {name: self._enough.get((operation, name), _ENOUGH) for name in names}

    def differing(self, operation: str, kept: bytes, found: Digests, code: str, *, at_once: bool) -> list[str]:
        """The values that an applied call had otherwise than its replay, and that are not otherwise each time.

        `kept`: the fingerprint of the call; `found`: that of the replay; `at_once`: it followed at once.
        """
        with self._lock:
            if self._code.get(operation) != code:
                self._code[operation], self._equal[operation] = code, {}
                self._enough = {key: number for key, number in self._enough.items() if key[0] != operation}
            known, wrong = self._equal[operation], list[str]()
            before = self._learned(operation)
            for name, (one, own) in compared(kept, found, code).items():
                if one == own:
                    known[name] = min(known.get(name, 0) + 1, _MOST)
                    self._apart.pop((operation, name), None)
                    continue
                if not at_once and self._is_sure(operation, name):
                    wrong.append(name)
                    continue
                self._enough[operation, name] = self._after(operation, name)
                known[name] = 0
                last, times = self._apart.get((operation, name), (None, 0))
                times = times + 1 if last == (one, own) else 1
                self._apart[operation, name] = (one, own), times
                if times == _ENOUGH:
                    wrong.append(name)
            if self._learned(operation) != before:
                self._keep()
            return wrong

    def _enough_of(self, operation: str, name: str) -> int:
        return self._enough.get((operation, name), _ENOUGH)

    def _is_sure(self, operation: str, name: str) -> bool:
        return self._equal[operation].get(name, 0) >= self._enough_of(operation, name)

    def _after(self, operation: str, name: str) -> int:
        """How many must be equal after a difference."""
        longer = _LONGER * self._equal[operation].get(name, 0)
        return min(max(self._enough_of(operation, name), longer), _MOST)

    def _learned(self, operation: str) -> tuple[list[str], dict[str, int]]:
        """What is kept: the values that are equal, and of how many deliveries that must be so, where it is unusual."""
        enough = {name: number for (own, name), number in self._enough.items() if own == operation}
        sure = [name for name in self._equal[operation] if self._is_sure(operation, name)]
        return sorted(sure), {name: number for name, number in enough.items() if number > _ENOUGH}

    def _keep(self) -> None:
        if self._store is None:
            return
        found = {operation: (code, *self._learned(operation)) for operation, code in self._code.items()}
        try:
            self._store.put_meta(_META, json.dumps(found).encode(), despite_halt=True)
        except OutboxError as exc:
            _log.error("what is known of the values of calls could not be kept: %(error)s", error=exc)
