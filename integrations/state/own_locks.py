"""Own locks: each copy of a manager has locks of its own.

A rehearsal ends where the call turns to the database, between `acquire()` and `release()`; and a replay must not wait
for a lock that the caller holds while it waits for the replay.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

_RLOCK = type(threading.RLock())
_LOCKS = (type(threading.Lock()), _RLOCK, threading.Condition, threading.Semaphore)


def own_locks(replica: Any, of_class: Mapping[str, Any]) -> dict[str, Any]:
    """New locks for those that a copy shares with its manager, by the names of its attributes; none is held.

    `of_class`: the members of its class.
    """
    # At each call anew: a class may get its lock at its first use.
    owners = (of_class, vars(replica))
    found = {name: value for one in owners for name, value in one.items() if isinstance(value, _LOCKS)}
    made: dict[int, Any] = {}
    return {name: _lock_like(value, made) for name, value in found.items()}


def _lock_like(lock: Any, made: dict[int, Any]) -> Any:
    """A lock of the same kind; one for each, since a condition may share its lock with an attribute."""
    if id(lock) not in made:
        if isinstance(lock, threading.Condition):
            made[id(lock)] = threading.Condition(_lock_like(lock._lock, made))  # type: ignore[attr-defined]
        elif isinstance(lock, threading.Semaphore):
            # A copy may enter as often as the manager could now, and at least once: no other thread releases it.
            made[id(lock)] = threading.Semaphore(max(1, lock._value))
        else:
            made[id(lock)] = threading.RLock() if isinstance(lock, _RLOCK) else threading.Lock()
    return made[id(lock)]
