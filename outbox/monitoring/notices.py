"""Notices and alarms: durable reports of integrations, shown in every status.

A notice is renewed and taken away by its author and needs no person.  An alarm is a finding that only a person can
judge: it is kept until an operator acknowledges it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..store.reads import ALARM_PREFIX
from ..store.reads import NOTICE_PREFIX as _PREFIX
from ..store.store import Store

_MAX_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for operators; `degraded`: whether it makes the status degraded.

    `refuses`: whether calls are refused for it, so that an operator is needed.  `lasts_s`: in how many seconds they
    will be, as it goes on now; None for never.
    """

    message: str
    degraded: bool = False
    refuses: bool = False
    lasts_s: float | None = None


class Notices:
    """The notices of one store.  Safe from any thread and process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(
        self,
        name: str,
        message: str,
        *,
        degraded: bool = False,
        refuses: bool = False,
        lasts_s: float | None = None,
    ) -> None:
        """Keep a notice under `name` in place of its former one; see `Notice`.

        Costs a durable write only where something changed.  Raises `DurabilityError`.
        """
        said = {"message": message[:_MAX_CHARS], "degraded": degraded, "refuses": refuses, "lasts_s": lasts_s}
        data = json.dumps(said).encode()
        if self._store.get_meta(_PREFIX + name) != data:
            self._store.put_meta(_PREFIX + name, data, despite_halt=True)

    def clear(self, name: str) -> None:
        """Take a notice away; nothing happens where there is none.  Raises `DurabilityError`."""
        if self._store.get_meta(_PREFIX + name) is not None:
            self._store.delete_meta(_PREFIX + name, despite_halt=True)


def parse(notices: Mapping[str, bytes]) -> dict[str, Notice]:
    """Every notice by its name, of those that the store read with its figures.

    Fields that a newer version of the library has added are passed over.
    """
    return {name: _notice(json.loads(data)) for name, data in notices.items()}


def _notice(said: Mapping[str, Any]) -> Notice:
    return Notice(**{item.name: said[item.name] for item in fields(Notice) if item.name in said})


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
