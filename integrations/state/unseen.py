"""Unseen: what deliveries have changed in attributes since a later call noted their values.

A call that waits has noted the values that it reads.  Deliveries of calls before it may change these: its replay must
find that, too, though the values in its notes are older.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ..plain_data import is_small, same
from .kept_state import Changes
from .merging import Change

# Changes are joined where no call has noted a value between them, so that a backlog makes one.
_MOST = 1000


class _Link(NamedTuple):
    """Changes of one attribute by calls of one process.

    `first`, `last`: their sequence numbers; `process`: the first call of the process that made them; `at`: when the
    manager got the last of them.
    """

    first: int
    last: int
    process: int | None
    at: int
    change: Change


class Unseen:
    """The changes that reached the manager, by attribute.  Not thread-safe: needs the lock of `Carried`."""

    def __init__(self, process: int) -> None:
        """`process`: the first call of this process."""
        self._process = process
        self._links: dict[str, deque[_Link]] = {}
        # Counts the calls whose changes the manager got, and the highest count at which a call has noted values.
        self._now = self._noted = 0

    def mark(self) -> dict[str, int]:
        """What a call keeps beside the values that it notes now, for `since`."""
        self._noted = self._now
        return {"process": self._process, "at": self._now}

    def add(self, seq: int, process: int | None, changes: Changes) -> None:
        """The manager gets what call `seq` has changed, or would get it if the process of the call still ran."""
        self._now += 1
        for name, change in changes.by_name.items():
            if not (is_small(change.before) and is_small(change.after)):
                # Each call would hold it twice; notes leave large ones to the delivery.
                self._links.pop(name, None)
                continue
            links = self._links.setdefault(name, deque())
            last, made = links[-1] if links else None, _Link(seq, seq, process, self._now, change)
            goes_on = last is not None and last.process == process and last.last < seq
            # Otherwise the engine has set it between them.
            if last is not None and goes_on and last.at > self._noted and same(last.change.after, change.before):
                links[-1] = made._replace(first=last.first, change=Change(last.change.before, change.after))
            else:
                links.append(made)
            if len(links) > _MOST:
                links.popleft()

    def since(self, noted: Mapping[str, Any], names: Collection[str], seq: int) -> Iterator[Changes]:
        """What calls before call `seq` have changed in `names` since it noted them, oldest first."""
        seen = noted.get("seen")
        if seen is None:
            return
        # An earlier process, whose calls come before all of this one, has counted for itself.
        at = seen["at"] if seen["process"] == self._process else 0
        for name in names:
            for link in self._links.get(name, ()):
                if link.at > at and link.first >= seen["process"] and link.last < seq:
                    yield Changes({name: link.change})
