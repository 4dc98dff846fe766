"""Publication: the relay's report to other processes in `relay.state`; it begins with its predecessor's."""

from __future__ import annotations

import os
from pathlib import Path

from ..clock import Clock
from ..log import Log
from ..store.own_files import StateFile
from ..store.quota import Pace
from ..target import Outcome
from .link import LinkState
from .scan import Scan

_log = Log("outbox.relay")

_PUBLISH_S = 1.0
# Of an error's text: what is published must fit its file.
_SAID_CHARS = 1000
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
        reason, waiting = scan.published()
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
        moving = {"moved_at": self.moved_at, "last_applied_at": self._last_applied_at, "pace": self.pace.published()}
        moving["writing_since"] = self._at_work_since if self._hangs else None
        try:
            self._file.write({**state, **moving, "lanes": self._by_lane, "said_at": self._clock.now().isoformat()})
        except OSError as exc:
            _log.warning("relay state could not be published: %(error)s", error=exc)
