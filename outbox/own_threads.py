"""Own threads: those whose work callers wait for, so that none of them waits for a delivery itself.

The host's code runs in them too: a logging handler that writes by the manager, `__del__` of an object that is collected
there, an operation's handler.  Its calls are durable at once; a wait for their delivery could not end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


@contextmanager
def waited_for() -> Iterator[None]:
    """Within the block this thread writes into the store, or delivers."""
    _here.depth = depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth = depth - 1


def is_waited_for() -> bool:
    """Whether callers wait for the work of this thread."""
    return getattr(_here, "depth", 0) > 0
