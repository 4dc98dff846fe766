"""Pending attributes: attributes of the manager that queued calls may change when they are delivered.

Until then they stand still, and reading one waits or raises: a risk limit would be wrong.
"""

from __future__ import annotations

from ... import Entry
from ..code.class_code import ClassCode, remembered
from ..manager.host import Host
from ..state.carried import Carried
from ..state.kept_state import NOT_STATE
from .delivery_waits import DeliveryWaits
from .guard import Guard
from .stages import PreparedCall


class PendingAttributes:
    """The attributes of one manager that wait for deliveries.  Thread-safe."""

    def __init__(self, host: Host, carried: Carried, delivery: DeliveryWaits, guard: Guard) -> None:
        self._host, self._carried, self._delivery, self._guard = host, carried, delivery, guard
        # Attributes that the methods of operations assign, and the last call each waits for.
        self._pending_attributes: dict[str, tuple[str, int]] = {}
        # Those that only a delivery counts, and the last call that changes them so.
        self._uncounted: dict[str, int] = {}

    def read(self, name: str) -> None:
        """An attribute of the manager is read: let it have what deliveries have changed.

        Raises `NotCaughtUp` where a call that is not delivered in time changes it.
        """
        operation, seq = self._pending_attributes.get(name, ("", 0))
        if seq and not self._delivery.wait_until_passed(seq):
            raise self._guard.not_caught_up(f"self.{name} is changed by {operation}")
        self._pending_attributes.pop(name, None)
        self._carried.settle()

    def stale(self) -> set[str]:
        """Attributes that a call which is not delivered yet may change, and has not changed yet."""
        if not self._pending_attributes:
            return set()
        self._carried.settle()
        return {name for name, (_, seq) in [*self._pending_attributes.items()] if not self._delivery.passed(seq)}

    def uncounted(self) -> set[str]:
        """Attributes that lack the changes of queued calls, since there was no manager yet to rehearse those calls.

        A rehearsal finds older values in them than the replay will find.
        """
        if self._uncounted:
            self._carried.settle()
            self._uncounted = {name: seq for name, seq in self._uncounted.items() if not self._delivery.passed(seq)}
        return set(self._uncounted)

    def by(self, name: str) -> set[str]:
        """The attributes that a call of method `name` may change, by its code and by what its replays have changed."""
        cls, known = self._host.manager_class, self._carried.names.get(name, set())
        return set(known) if cls is None else _changed_by(cls, name) | known

    def note(self, item: PreparedCall, entry: Entry) -> None:
        """Remember which attributes the call may change when it is delivered, and has not changed yet."""
        name = item.operation.name
        later = self._carried.names.get(name, set())
        for attribute in ((self.by(name) - item.changes.by_name.keys()) | later) - item.foreseen.keys():
            self._pending_attributes[attribute] = (name, entry.seq)
        self._uncounted |= dict.fromkeys(item.uncounted, entry.seq)


@remembered(256)
def _changed_by(cls: type, name: str) -> set[str]:
    return ClassCode(cls).changed_by(name) - NOT_STATE
