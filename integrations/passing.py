"""Passing: calls that are not queued.  They see the caller's own writes, or are answered from the local view."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from .. import Outbox, OutboxError
from .delivery import Delivery
from .host import AWAY, Host
from .keeper import Keeper
from .operations import AFTER_DRAIN
from .reads import LOCAL_READS

_log = logging.getLogger("outbox.integrations")


class NotCaughtUp(OutboxError):
    """A call that cannot be queued needs everything before it to be delivered first, and that is not so."""


class Caller(Protocol):
    """What is needed of the adapter."""

    host: Host
    outbox: Outbox
    keeper: Keeper
    delivery: Delivery
    session_id: int | None


class Passing:
    """Calls the manager itself.  As thread-safe as the manager."""

    def __init__(self, caller: Caller, *, write_behind: bool) -> None:
        self._caller, self._write_behind = caller, write_behind

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `name` of the manager, after the caller's own writes; answered locally where PostgreSQL cannot."""
        caller, local = self._caller, LOCAL_READS.get(name)
        settled = caller.delivery.settled(wait=not self._write_behind or local is not None or name in AFTER_DRAIN)
        if name in AFTER_DRAIN and not settled:
            return self._not_yet(name, args, kwargs)
        if local is None:
            return self._ask(name, args, kwargs)
        if settled and caller.delivery.works is not False:
            try:
                return self._ask(name, args, kwargs)
            except AWAY as exc:
                _log.warning("read from the local view", extra={"method": name, "error": str(exc).splitlines()[0]})
        call = caller.host.signature(name).bind(*args, **kwargs).arguments
        with caller.keeper.order:
            return local(caller.keeper.view, call, caller.session_id, caller.outbox.clock.now())

    def _ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = getattr(self._caller.host.manager(), name)(*args, **kwargs)
        self._caller.keeper.meet(self._caller.session_id)
        return value

    def _not_yet(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "set_current_session":
            session_id = next(iter(self._caller.host.signature(name).bind(*args, **kwargs).arguments.values()), None)
            if session_id in self._caller.keeper.view.sessions:
                # It only says which session is meant, and that one is known to exist.
                self._caller.session_id = session_id
                return
        raise NotCaughtUp(
            f"{name} works on what PostgreSQL holds, and calls before it are not delivered yet",
            hint="try again when `atb outbox status` shows nothing pending",
        )
