"""Early state: attributes that a call changes before it writes, such as the date of a daily counter.

A replay must find them as they were at its call, whether this call changed them or a later one did meanwhile; large
ones are left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ... import Outbox
from ..plain_data import is_small
from .kept_state import Changes, is_storable

_META = "state:early"


class EarlyState:
    """The names of such attributes, as far as calls have shown them; kept in the store.  Needs the order of calls."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        stored = outbox.store.get_meta(_META)
        self._names: set[str] = set(json.loads(stored)) if stored else set()

    @property
    def names(self) -> Collection[str]:
        """The names that calls have shown so far."""
        return self._names

    def before(self, own: Mapping[str, Any], changes: Changes, foreseen: Iterable[str]) -> Mapping[str, Any]:
        """The present values of those that a call did not change; `foreseen` are some that calls will change.

        `own`: the attributes of the manager, or of what stands for it before it is built.

        Raises `DurabilityError`.
        """
        new = {*changes.by_name, *foreseen} - self._names
        if new:
            self._names |= new
            self._outbox.store.put_meta(_META, json.dumps(sorted(self._names)).encode())
        others = self._names & own.keys() - changes.by_name.keys()
        return {name: own[name] for name in others if is_small(own[name]) and is_storable(own[name])}
