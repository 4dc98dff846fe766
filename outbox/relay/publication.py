"""Publication: what the relay says of itself to other processes, in `relay.state`, and takes up from the one before."""

from __future__ import annotations

import os
from pathlib import Path

from ..clock import Clock
from ..log import Log
from ..store.state_file import StateFile

_log = Log("outbox.relay")

_PUBLISH_S = 1.0
# What stays of a relay that has ended.
_LAST_WORD = ("last_error", "stopped", "parked", "waiting", "slow", "since")


class Publication:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._file, self._clock = StateFile(directory / "relay.state"), clock
        self._said: dict[str, object] = {}
        self._again_at = 0.0
        # When the trouble began.
        self._since: str | None = None
        # The last word of the relay before this one, until this one knows better.
        self.inherited: dict[str, object] = {}
        # Entries that each lane has delivered; empty while there is one lane.
        self._by_lane: list[int] = []

    def delivered(self, by_lane: list[int]) -> None:
        """Count what each lane completed of a batch; `by_lane` is empty for one lane."""
        before = self._by_lane or [0] * len(by_lane)
        if by_lane:
            self._by_lane = [count + more for count, more in zip(before, by_lane, strict=True)]

    def take_up(self) -> object:
        """Take up the last word of the relay before: a program that starts again and again must not look better.

        Returns the pace that it published, or None.
        """
        try:
            said = self._file.read() or {}
        except OSError:  # whoever publishes says so
            return None
        if said.get("last_error"):
            self.inherited = {name: said[name] for name in _LAST_WORD if name in said}
        return said.get("pace")

    def tell(self, state: dict[str, object], moving: dict[str, object], now: float, *, force: bool) -> None:
        """Publish at once when `state` has changed, else every second with what is `moving`."""
        if state["last_error"] is None:
            self._since = None
        elif self._since is None:
            self._since = self._clock.now().isoformat()
        state = {"pid": os.getpid(), **state, "since": self._since, **self.inherited}
        if state == self._said and now < self._again_at and not force:
            return
        self._said, self._again_at = state, now + _PUBLISH_S
        try:
            self._file.write({**state, **moving, "lanes": self._by_lane, "said_at": self._clock.now().isoformat()})
        except OSError as exc:
            _log.warning("relay state could not be published: %(error)s", error=exc)
