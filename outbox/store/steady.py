"""Steady: a wall clock that pruning can trust.

One minute of a clock that is ten days ahead must not end the retention of everything.  A clock that never goes back
tells how much time has really passed since the wall clock was last believed; it survives a restart in a small file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ..clock import Clock
from ..errors import StoreUnavailable
from ..log import Log
from .own_files import StateFile

_log = Log("outbox.steady")

_FILE = "clock.state"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Corrections of the clock and a short suspension of the machine are no jump.
_TOLERANCE_US = 300_000_000
# A clock that stays ahead for so long is right: it was behind before, or the machine was suspended.
_BELIEVED_AFTER_S = 86_400.0
_REMEMBER_S = 10.0


class Steady:
    """Microseconds since 1970 by the wall clock, or by elapsed time where the wall clock has jumped ahead.

    Thread-safe.
    """

    def __init__(self, directory: Path, clock: Clock, to_us: Callable[[datetime], int]) -> None:
        """`to_us` turns what `clock.now` returns into microseconds."""
        self._state, self._clock, self._to_us = StateFile(directory / _FILE), clock, to_us
        self._mutex = threading.Lock()
        self._monotonic, self._wall_us = clock.monotonic(), to_us(clock.now())
        # Monotonic time since when the wall clock is ahead.
        self._ahead_since: float | None = None
        self._boot, self._remembered = boot_id(), -_REMEMBER_S
        self._recall()

    def now_us(self) -> int:
        """The time to judge by what has expired."""
        with self._mutex:
            monotonic, wall_us = self._clock.monotonic(), self._to_us(self._clock.now())
            expected_us = self._wall_us + int(max(0.0, monotonic - self._monotonic) * 1e6)
            if wall_us > expected_us + _TOLERANCE_US and not self._believed(monotonic, wall_us - expected_us):
                return expected_us
            self._ahead_since = None
            self._monotonic, self._wall_us = monotonic, wall_us
            self._remember()
            return wall_us

    def _believed(self, monotonic: float, ahead_us: int) -> bool:
        if self._ahead_since is None:
            self._ahead_since = monotonic
            _log.warning(
                "the clock jumped %(ahead_s)s s ahead: until it is set right, or for a day, "
                "elapsed time decides what leaves the ledger",
                ahead_s=ahead_us // 1_000_000,
            )
        return monotonic - self._ahead_since > _BELIEVED_AFTER_S

    def _recall(self) -> None:
        """Take over what an earlier process of this boot believed."""
        state = None
        with suppress(OSError, StoreUnavailable):
            state = self._state.read()
        if not state or state.get("boot") != self._boot or not self._boot:
            return
        monotonic, wall_us = state.get("monotonic"), state.get("wall_us")
        if isinstance(monotonic, float) and isinstance(wall_us, int) and monotonic <= self._monotonic:
            self._monotonic, self._wall_us = monotonic, wall_us

    def _remember(self) -> None:
        if self._monotonic - self._remembered < _REMEMBER_S:
            return
        self._remembered = self._monotonic
        with suppress(OSError, StoreUnavailable):  # then the next process believes its clock at first
            self._state.write({"boot": self._boot, "monotonic": self._monotonic, "wall_us": self._wall_us})


def boot_id() -> str:
    """The id of this boot of the machine; empty where the system does not report it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
