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
            if self._made_current(name, args, kwargs):
                return None
            raise NotCaughtUp(
                f"{name} works on what PostgreSQL holds, and calls before it are not delivered yet",
                hint="try again when `atb outbox status` shows nothing pending",
            )
        if local is None or (settled and caller.delivery.works is not False):
            try:
                return self._ask(name, args, kwargs)
            except AWAY as exc:
                if self._made_current(name, args, kwargs):
                    return None
                if local is None:
                    raise
                _log.warning("read from the local view", extra={"method": name, "error": str(exc).splitlines()[0]})
        call = caller.host.signature(name).bind(*args, **kwargs).arguments
        with caller.keeper.order:
            return local(caller.keeper.view, call, caller.session_id, caller.outbox.clock.now())

    def _ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = getattr(self._caller.host.manager(), name)(*args, **kwargs)
        self._caller.keeper.meet(self._caller.session_id)
        return value

    def _made_current(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """`set_current_session` without PostgreSQL: it only says which session is meant, if that one is known."""
        if name != "set_current_session":
            return False
        bound = self._caller.host.signature(name).bind(*args, **kwargs).arguments
        session_id = next(iter(bound.values()), None)
        known = session_id in self._caller.keeper.view.sessions
        if known:
            self._caller.session_id = session_id
        return known
