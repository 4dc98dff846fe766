"""Alarms: findings that only a person can judge, kept durably and shown until an operator acknowledges them."""

from __future__ import annotations

from ..store.reads import ALARM_PREFIX
from ..store.store import Store

_MAX_CHARS = 2000


class Alarms:
    """The alarms of one store.  Safe from any thread and process."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def sound(self, name: str, message: str) -> None:
        """Keep `message` under `name`; the first message of a name stays.  Raises `DurabilityError`."""
        if not self.sounds(name):
            text = message[:_MAX_CHARS].encode(errors="replace")
            self.store.put_meta(ALARM_PREFIX + name, text, despite_halt=True)

    def sounds(self, name: str) -> bool:
        """Whether the alarm `name` is kept."""
        return self.store.get_meta(ALARM_PREFIX + name) is not None

    def acknowledge(self, name: str) -> bool:
        """Forget the alarm `name`; whether there was one.  Raises `DurabilityError`."""
        return self.store.delete_meta(ALARM_PREFIX + name, despite_halt=True)
