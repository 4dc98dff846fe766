"""Waiting for what sends no signal: work of another thread, another process or the server."""

from __future__ import annotations

import time
from collections.abc import Callable

from outbox.clock import Patience

# Ends a wait in which nothing moves any more, in seconds: how long a hanging test hangs.  On a loaded machine
# a sound test may wait many times as long as on an idle one.
LONG = 120.0


def until(condition: Callable[[], bool], progress: Callable[[], object] = lambda: None) -> None:
    """Return when `condition` holds; fail when it does not, and `progress` does not change, for `LONG` seconds."""
    patience = Patience(LONG, time.monotonic)
    while not condition():
        assert not patience.is_lost(progress()), "it did not happen in time"
        time.sleep(0.002)
