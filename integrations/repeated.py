"""Repeated: logs a warning that holds for a whole outage once, and at DEBUG after that until the outage ends."""

from __future__ import annotations

from typing import Any

from ..log import Log


class Repeated:
    """The warnings of one component that were logged and are not over.  Thread-safe."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._warned: set[str] = set()

    def warn(self, subject: str, message: str, **facts: Any) -> None:
        """Log a warning about `subject`; at DEBUG if one was logged already."""
        say = self._log.debug if subject in self._warned else self._log.warning
        self._warned.add(subject)
        say(message, **facts)

    def over(self, subject: str) -> None:
        """End the warning about `subject`: the next one is logged as the first."""
        self._warned.discard(subject)
