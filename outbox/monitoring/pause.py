"""Pause: an operator stops deliveries for a while, in every relay of the store.

It is kept in the store, so it outlives every process.  Its end is decided by elapsed time while the machine runs, as a
wall clock may jump; after a restart of the machine by the wall clock, and one that was set back ends it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..clock import Clock
from ..errors import DurabilityError, InvalidEntry, StoreCorrupt
from ..log import Log
from ..store.reads import PAUSE
from ..store.steady import boot_id
from ..store.store import Store

_log = Log("outbox")

_MAX_CHARS = 500
LONGEST_S = 366 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Why nothing is delivered, since when, and until when (UTC; None: until it is ended)."""

    reason: str
    since: datetime
    until: datetime | None = None

    def sentence(self) -> str:
        """The same for people."""
        until = "" if self.until is None else f" until {self.until:%Y-%m-%d %H:%M:%S} UTC"
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"delivery is paused since {since}{until}: {self.reason} (`atb outbox resume` ends it)"


class Pauses:
    """The pause of one store.  Safe from any thread and process."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    def begin(self, reason: str, for_s: float | None = None) -> Pause:
        """Pause for so many seconds, or until `end`; replaces an earlier pause.

        Raises `InvalidEntry` for a reason that is empty or no text, and a length of none or of more than a year, or
        `DurabilityError`.
        """
        if not reason.strip():
            raise InvalidEntry(f"reason is {reason!r}", hint="say why nothing may be delivered")
        try:
            reason.encode()
        except UnicodeEncodeError:
            raise InvalidEntry(f"reason {reason[:100]!r} is not valid text", hint="give it in UTF-8") from None
        if for_s is not None and not 0 < for_s <= LONGEST_S:
            raise InvalidEntry(f"the pause is {for_s!r} s", hint="allowed: more than 0, at most a year")
        said = {
            "reason": reason[:_MAX_CHARS],
            "wall_s": self._clock.now().timestamp(),
            "monotonic": self._clock.monotonic(),
            "boot": boot_id(),
            "for_s": for_s,
        }
        self._store.put_meta(PAUSE, json.dumps(said).encode(), despite_halt=True)
        return _pause(said)

    def end(self) -> bool:
        """Let deliveries go on; whether they were paused.  Raises `DurabilityError`."""
        paused = self.current() is not None
        self._store.delete_meta(PAUSE, despite_halt=True)
        return paused

    def current(self, *, forget: bool = False) -> Pause | None:
        """The pause that lasts now, or None.  `forget`: take one that has ended out of the store."""
        try:
            data = self._store.get_meta(PAUSE)
        except StoreCorrupt:
            return None  # a verification reports it; the operator's wish is lost
        pause = parse(data, self._clock)
        if forget and data is not None and pause is None:
            try:
                # An operator may have begun another one meanwhile.
                self._store.delete_meta(PAUSE, only=data, despite_halt=True)
            except DurabilityError as exc:
                _log.warning("a pause that has ended could not be removed: %(error)s", error=exc)
        return pause


def parse(data: bytes | None, clock: Clock) -> Pause | None:
    """The pause that the store keeps as `data`; None where there is none, or it has ended."""
    if data is None:
        return None
    said = json.loads(data)
    for_s = said["for_s"]
    if for_s is not None:
        same_boot = said["boot"] and said["boot"] == boot_id()
        passed = clock.monotonic() - said["monotonic"] if same_boot else clock.now().timestamp() - said["wall_s"]
        if not 0 <= passed < for_s:
            return None
    return _pause(said)


def check(data: bytes) -> None:
    """Raise where no relay could read `data` as a pause.  Raises KeyError, TypeError or ValueError."""
    said = json.loads(data)
    said["boot"], _pause(said).sentence()
    if said["for_s"] is not None:
        float(said["monotonic"]), float(said["for_s"])


def _pause(said: dict[str, object]) -> Pause:
    since = datetime.fromtimestamp(float(str(said["wall_s"])), UTC)
    for_s = said["for_s"]
    return Pause(
        reason=str(said["reason"]),
        since=since,
        until=None if for_s is None else since + timedelta(seconds=float(str(for_s))),
    )
