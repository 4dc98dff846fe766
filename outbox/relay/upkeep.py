"""Upkeep: what a relay's step does beside deliveries: its report, housekeeping, and questions while it is idle.

The report to other processes is in `relay.state`; it begins with its predecessor's.  Every minute killed readers are
cleared and the expired ledger is pruned.  Without a batch to deliver PostgreSQL is asked whether it has everything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from ..clock import Clock
from ..errors import DurabilityError, StoreCorrupt, TargetMisconfigured, TargetUnavailable
from ..log import Log
from ..store.envelope import to_us
from ..store.own_files import StateFile
from ..store.store import Store
from ..target import Outcome
from .link import LinkState, foreseen
from .reconcile import Reconciler
from .scan import Scan

# A sample is replaced so often: rates are those of the last one to two times of it.
_SAMPLE_S = 30.0
# Batches of fewer entries take longer for each of them, and do not show how fast a backlog goes.
_TELLING_ENTRIES = 50
# What one batch counts when the next one has been measured: the speed is that of about the last five.
_DECAY = 0.8


class Pace:
    """What the relay notes for it.  Belongs to one relay's step; not thread-safe."""

    def __init__(self) -> None:
        # Of `(monotonic time, newest sequence number, delivered)` the older sample and the newer one.
        self._older: tuple[float, int, int] | None = None
        self._newer: tuple[float, int, int] | None = None
        self._delivered = 0
        self._largest = 0
        self._entries = self._seconds = 0.0

    def inherit(self, said: object) -> None:
        """Take over the speed that an earlier relay has published: it lasts until a batch shows another one."""
        speed = said.get("speed") if isinstance(said, Mapping) else None
        if isinstance(speed, float | int) and speed > 0:
            self._entries, self._seconds = float(speed), 1.0

    def batch(self, entries: int, seconds: float) -> None:
        """Note a batch of which so many entries were delivered in so many seconds."""
        self._delivered += entries
        if not entries or seconds <= 0 or entries < min(self._largest, _TELLING_ENTRIES):
            return
        if self._largest < _TELLING_ENTRIES:
            self._entries = self._seconds = 0.0  # the first ones of that size
        self._largest = max(self._largest, entries)
        self._entries = _DECAY * self._entries + entries
        self._seconds = _DECAY * self._seconds + seconds

    def sample(self, now: float, newest_seq: int) -> None:
        """Note the newest sequence number at this moment."""
        if self._newer is None or now - self._newer[0] >= _SAMPLE_S:
            here = (now, newest_seq, self._delivered)
            self._older, self._newer = self._newer or here, here

    def published(self) -> dict[str, Any]:
        """What other processes need."""
        speed = self._entries / self._seconds if self._seconds else None
        return {"sample": self._older, "delivered": self._delivered, "speed": speed}


_log = Log("outbox.relay")

_PUBLISH_S = 1.0
# Of an error's text: what is published must fit its file.
_SAID_CHARS = 1000
# Of a reason's text, and how many parked operations and waiting entries are published.
_REASON_CHARS = 300
_SHOWN = 8
# What stays of a relay that has ended.
_LAST_WORD = ("last_error", "stopped", "parked", "waiting", "slow", "slow_why", "since")


class Publication:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._file, self._clock = StateFile(directory / "relay.state"), clock
        self._said: dict[str, object] = {}
        self._again_at = 0.0
        # When the trouble began.
        self._since: str | None = None
        # The last report of the relay before this one; to be cleared when this one has its own.
        self.inherited: dict[str, object] = {}
        # When deliveries came on last, or had nothing to do (monotonic seconds); and when one was applied.
        self.moved_at = clock.monotonic()
        # When a delivery failed last; None before any did.  Then the relay is not stuck, though nothing came on.
        self.failed_at: float | None = None
        self._last_applied_at: str | None = None
        self.pace = Pace()
        # Entries that each lane has delivered; empty while there is one lane.
        self._by_lane: list[int] = []
        # Why the relay's thread died, or None.
        self.died: str | None = None
        # What the writer was at, since when, and whether that has been seen twice: then it hangs.
        self._moves, self._at_work_since, self._hangs = 0, 0.0, False
        # Whether the writer must not be waited for before it has been looked at again.
        self.writer_may_hang = False

    def measured(self, outcome: Outcome, newest_seq: int, took_s: float, now: float) -> None:
        """Count what was delivered of a batch, which has taken `took_s`; `newest_seq` is the store's."""
        self.pace.batch(len(outcome.completed), took_s)
        self.pace.sample(now, newest_seq)
        if outcome.completed:
            self._last_applied_at = self._clock.now().isoformat()
        if by_lane := outcome.by_lane:
            before = self._by_lane or [0] * len(by_lane)
            self._by_lane = [count + more for count, more in zip(before, by_lane, strict=True)]

    def take_up(self) -> None:
        """Take over the last relay's report: a program that restarts again and again must not look healthy."""
        try:
            said = self._file.read() or {}
        except OSError:  # the next report logs it
            return
        if said.get("last_error"):
            self.inherited = {name: said[name] for name in _LAST_WORD if name in said}
        self.pace.inherit(said.get("pace"))

    def line_works(self) -> None:
        """Drop the last relay's report that the line is stopped: PostgreSQL was compared, and nothing is lost."""
        if self.inherited.get("stopped"):
            self.inherited |= {"stopped": False, "last_error": None, "since": None}

    def look_at_writer(self, moves: int, now: float) -> None:
        """Find out whether the writer of this process hangs in a piece of work; see `Writer.moves`."""
        at_work = moves % 2 == 1
        self._hangs = at_work and moves == self._moves
        self.writer_may_hang = self._hangs or (at_work and self._moves % 2 == 0)
        if not self._hangs:
            self._moves, self._at_work_since = moves, now

    def tell(self, link: LinkState, scan: Scan, now: float, *, force: bool = False) -> None:
        """Publish at once when something has changed, else every second."""
        reason, waiting = _what_waits(scan)
        error = link.last_error or reason
        state: dict[str, object] = {
            "breaker": link.breaker,
            "stopped": link.stopped,
            "last_error": error and error[:_SAID_CHARS],
            "died": self.died and self.died[:_SAID_CHARS],
            **waiting,
        }
        if error is None:
            self._since = None
        elif self._since is None:
            self._since = self._clock.now().isoformat()
        state = {"pid": os.getpid(), **state, "since": self._since, **self.inherited}
        if state == self._said and now < self._again_at and not force:
            return
        self._said, self._again_at = state, now + _PUBLISH_S
        moving: dict[str, object] = {"moved_at": self.moved_at, "failed_at": self.failed_at}
        moving |= {"last_applied_at": self._last_applied_at, "pace": self.pace.published()}
        moving["writing_since"] = self._at_work_since if self._hangs else None
        try:
            self._file.write({**state, **moving, "lanes": self._by_lane, "said_at": self._clock.now().isoformat()})
        except OSError as exc:
            _log.warning("relay state could not be published: %(error)s", error=exc)


_EVERY_S = 60.0
# So much of the ledger's expired part at once, and after so many seconds more of it, idle or with work waiting.
_PRUNE_ROWS = 2500
_PRUNE_ROWS_BUSY = 500
_PRUNE_PAUSE_S = 1.0


def _what_waits(scan: Scan) -> tuple[str | None, dict[str, object]]:
    """Why something waits that needs an operator, or None; and what waits, in the size of the relay's report."""
    held_back, waits = scan.held_back, scan.waits
    parked, (slow, slow_why), reasons = waits.parked, waits.slow, waits.reasons
    needs = [one.reason for one in parked.values() if one.holds]
    shown = islice(sorted(parked.items()), _SHOWN)
    return next(iter([*needs, *reasons.values()]), None), {
        "held_back": held_back,
        "slow": slow,
        "slow_why": None if slow_why is None else slow_why[:_REASON_CHARS],
        "parked": {name: {"reason": one.reason[:_REASON_CHARS], "best_effort": not one.holds} for name, one in shown},
        "waiting": {seq: why[:_REASON_CHARS] for seq, why in islice(reasons.items(), _SHOWN)},
    }


class Housekeeping:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, store: Store, clock: Clock, retention_hours: float) -> None:
        self._store, self._clock = store, clock
        self._keep_us = timedelta(hours=retention_hours) // timedelta(microseconds=1)
        # When it is due, in monotonic seconds.
        self.due_at = 0.0

    def run(self, now: float, *, idle: bool, prune: bool) -> None:
        """Do it now.  Pruning goes piece by piece; not where PostgreSQL may still need the history."""
        self.due_at = now + _EVERY_S
        self._store.reader_check()
        if not prune or self._store.halt_reason is not None:
            return
        # A relay that is never idle must prune too, or its history fills the store.
        most = _PRUNE_ROWS if idle else _PRUNE_ROWS_BUSY
        try:
            if self._store.prune(to_us(self._clock.now()) - self._keep_us, most=most) >= most:
                self.due_at = now + _PRUNE_PAUSE_S
        except (StoreCorrupt, DurabilityError) as exc:
            # An old record that cannot be read or deleted is no reason to stop deliveries.
            _log.error("the ledger cannot be pruned: %(error)s", error=exc)


_PROBE_S = 60.0
_ASK_S = 1.0


class IdleChecks:
    """Belongs to one relay's step; `want` may be called from any thread."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        # The number of questions whether PostgreSQL still has everything, and the last one that is answered.
        self._wanted = self.answered = 0
        self._next_probe = 0.0
        # As of which release it was asked whether what was discarded had been applied.
        self._asked, self._ask_at = -1, 0.0

    def want(self) -> int:
        """Ask whether PostgreSQL still has everything; known when `answered` has reached the number returned."""
        self._wanted += 1
        return self._wanted

    def probe(self, now: float) -> bool:
        """Now and then ask whether PostgreSQL still has everything; whether it has answered that it does.

        Raises `OutboxError`; then it asks again at the next step.
        """
        if self._wanted <= self.answered and now < self._next_probe:
            return False
        # Answered also by an error: nothing more is known until PostgreSQL is back.
        self.answered, self._next_probe = self._wanted, now
        with foreseen():
            fine = self._reconciler.probe()
        self._next_probe = now + _PROBE_S
        return fine

    def confirm_withdrawn(self, now: float, releases: int) -> None:
        """What was discarded may have been sent before.  `releases`: of the store, as the scan knows it."""
        if self._asked == releases or now < self._ask_at:
            return
        self._ask_at = now + _ASK_S
        try:
            with foreseen():
                known = self._reconciler.confirm_withdrawn()
        except (TargetUnavailable, TargetMisconfigured) as exc:
            # If deliveries fail too, the next batch reports it.
            _log.debug("could not ask whether anything discarded was applied: %(error)s", error=exc)
        else:
            self._asked = releases if known else self._asked
