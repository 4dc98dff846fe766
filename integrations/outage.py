"""Outage: whether PostgreSQL answers, as far as this program knows.  The adapter asks it nowhere else.

A relay of this process knows best; one in another process leaves a report.  An error by itself is judged by
`manager/away.py`.
"""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from .. import Outbox
from ..worker import is_waited_for
from .manager.away import is_away
from .manager.host import Host
from .manager.manager_connection import engine_of, fresh_connection

# For how long a report of a relay in another process is believed.
_REPORT_S = 1.0


class Outage:
    """The state of PostgreSQL for one adapter.  Thread-safe."""

    def __init__(self, outbox: Outbox, host: Host) -> None:
        self._outbox, self._host = outbox, host
        self._reported: tuple[float, bool | None] = (float("-inf"), None)

    @property
    def delivers(self) -> bool | None:
        """Whether PostgreSQL takes deliveries, as far as a relay knows; None where no relay is running.

        False in the outbox's own threads, which cannot wait for one.
        """
        here = self._outbox.progress.delivering
        delivers = self._delivers_elsewhere() if here is None else here
        return False if delivers and is_waited_for() else delivers

    @property
    def stops_upkeep(self) -> bool:
        """Whether a relay of this process cannot deliver; without one the background work finds out for itself."""
        return self._outbox.progress.delivering is False

    def is_on(self) -> bool:
        """Whether a relay could not reach PostgreSQL; a pause by an operator is no outage."""
        if self._outbox.progress.delivering is not None:
            return self._outbox.progress.unreachable
        return self.delivers is False and self._outbox.pauses.current() is None

    def can_connect(self) -> bool:
        """Whether a new connection can be made.  Where it cannot, the relay is to look too.

        A relay without work does not know yet that PostgreSQL is gone.  May take seconds: hold no lock.
        """
        if self._host.built is None:
            return True
        try:
            with fresh_connection(engine_of(self._host.undoubled())):
                return True
        except SQLAlchemyError as exc:
            if not is_away(exc):
                return True
            self._outbox.progress.ask()
            return False

    def _delivers_elsewhere(self) -> bool | None:
        now = self._outbox.clock.monotonic()
        if now - self._reported[0] > _REPORT_S:
            status = self._outbox.status()
            relay, free = status.relay, status.paused is None
            delivers = (relay.breaker == "closed" and not relay.stuck and free) if relay.alive else None
            self._reported = (now, delivers)
        return self._reported[1]
