"""Unwritten: calls that answer without having used the database, so that nothing of them is recorded."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from ... import ConfigError, DurabilityError, Outbox
from ...log import Log
from ..manager.host import Host
from ..outage import Outage
from ..preflight import beyond_call
from ..upkeep.kept_view import OrderLock
from .stages import RehearsedCall

_log = Log("outbox.integrations")

_PREFIX = "unwritten:"


class Unwritten:
    """Answers those of one adapter, and shows them.  Safe from any thread."""

    def __init__(self, outbox: Outbox, names: Iterable[str], host: Host, order: OrderLock, outage: Outage) -> None:
        """`names`: the operations.  Notices of an earlier run are taken away: the method may be mended since.

        `order` is held while the manager gets what such a call has changed in it.
        """
        self._outbox, self._host, self._order, self._outage = outbox, host, order, outage
        # Operations that were seen to write nothing: reported once, as a method may write sometimes.
        self._reported: set[str] = set()
        # Those of them that were not seen to write since.
        self._shown: set[str] = set()
        for notice in outbox.store.figures().notices.keys() & {_PREFIX + name for name in names}:
            outbox.notices.clear(notice)

    def answer(self, item: RehearsedCall) -> Any:
        """The answer of the call's rehearsal; the manager gets the rehearsal's changes.

        Raises what the manager raised, `ConfigError` where the call was only buffered, or has not run, and
        `DurabilityError`.
        """
        operation, rehearsal = item.operation, item.rehearsal
        answer, changed = rehearsal.answer, rehearsal.changes
        if inspect.isawaitable(answer) or inspect.isgenerator(answer):
            raise ConfigError(
                f"{operation.name} of the manager answers with a {type(answer).__name__}, which has not run yet",
                hint="managers must be synchronous; leave the operation out",
            )
        refused = rehearsal.error is not None or rehearsal.refused or answer is False
        if changed and not refused and not operation.best_effort:
            names = ", ".join(f"self.{name}" for name in changed.by_name)
            raise ConfigError(
                f"{operation.name} of the manager kept the call in {names} and did not write it",
                hint="what is buffered cannot be made durable: write at each call, or leave the operation out",
            )
        if self._host.built is not None:
            # Other threads' calls may change the same attributes.
            with self._order:
                changed.apply(self._host.built)
        if not operation.best_effort:
            self._look_at_switches(operation.name)
        if rehearsal.error is not None:
            raise rehearsal.error
        if not refused and not operation.best_effort:
            self._show(operation.name)
        return answer

    def _look_at_switches(self, name: str) -> None:
        """Sound an alarm where an outage may be why the manager did not write."""
        cls = self._host.manager_class
        found = beyond_call.of_class(cls, name) if cls is not None and self._outage.is_on() else ()
        if not found:
            return
        by = ", ".join(f"self.{one}" for one in found)
        message = f"calls of {name} were not recorded: the manager leaves them out in an outage, by {by}"
        _log.critical("%(problem)s: %(way)s", problem=message, way=beyond_call.SWITCHES_WAY)
        self._outbox.alarms.sound(f"left-out-{name}", f"{message}: {beyond_call.SWITCHES_WAY}")

    def _show(self, name: str) -> None:
        if name in self._reported:
            return
        self._reported.add(name)
        _log.warning("%(operation)s wrote nothing and was not recorded", operation=name)
        self._outbox.notices.put(_PREFIX + name, f"{name} answered without writing anything")
        self._shown.add(name)

    def wrote(self, name: str) -> None:
        """A call of operation `name` was recorded."""
        if name not in self._shown:
            return
        self._shown.discard(name)
        try:
            self._outbox.notices.clear(_PREFIX + name)
        except DurabilityError as exc:
            # The call is recorded, and must not seem to have failed.
            _log.warning("a notice could not be taken away: %(error)s", error=exc)
