"""Later values: finds calls whose replay makes other values ready than the call did, by their fingerprints.

A replay finds the arguments, the clock and the manager's state as the call did.  What else a method reads (a global, a
file, the environment) it reads when it is delivered, and nothing in its code need show that.

A random number differs as well, and is no fault.  So a value counts only when it was equal in deliveries that followed
at once, or when the call and the replay have each had one of its own all the time.
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
        # By operation and value: the digests of the call and of the replay, which differ, and how often they did so.
        self._apart: dict[tuple[str, str], tuple[tuple[int, int], int]] = {}

    def keep_in(self, store: Store) -> None:
        """Keep in this store which values are equal; takes over those that it has."""
        with self._lock:
            if store is self._store:
                return
            self._store = store
            kept = store.get_meta(_META)
            for operation, (code, names) in (json.loads(kept) if kept else {}).items():
                self._code[operation] = code
                self._equal[operation] = dict.fromkeys(names, _ENOUGH)

    def differing(self, operation: str, kept: bytes, found: Digests, code: str, *, at_once: bool) -> list[str]:
        """The values that an applied call had otherwise than its replay, and that are not otherwise each time.

        `kept`: the fingerprint of the call; `found`: that of the replay; `at_once`: it followed at once.
        """
        with self._lock:
            if self._code.get(operation) != code:
                self._code[operation], self._equal[operation] = code, {}
            known, wrong = self._equal[operation], list[str]()
            before = _sure(known)
            for name, (one, own) in compared(kept, found, code).items():
                if one == own:
                    known[name] = min(known.get(name, 0) + 1, _ENOUGH)
                    self._apart.pop((operation, name), None)
                    continue
                if known.get(name) == _ENOUGH and not at_once:
                    wrong.append(name)
                    continue
                known[name] = 0
                last, times = self._apart.get((operation, name), (None, 0))
                times = times + 1 if last == (one, own) else 1
                self._apart[operation, name] = (one, own), times
                if times == _ENOUGH:
                    wrong.append(name)
            if _sure(known) != before:
                self._keep()
            return wrong

    def _keep(self) -> None:
        if self._store is None:
            return
        found = {name: (code, sorted(_sure(self._equal[name]))) for name, code in self._code.items()}
        try:
            self._store.put_meta(_META, json.dumps(found).encode(), despite_halt=True)
        except OutboxError as exc:
            _log.error("what is known of the values of calls could not be kept: %(error)s", error=exc)


def _sure(known: dict[str, int]) -> set[str]:
    return {name for name, times in known.items() if times == _ENOUGH}
