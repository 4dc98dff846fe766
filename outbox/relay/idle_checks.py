"""Idle checks: without a batch to deliver, asks PostgreSQL whether it still has everything."""

from __future__ import annotations

from ..errors import TargetMisconfigured, TargetUnavailable
from ..log import Log
from .link import foreseen
from .reconcile import Reconciler

_log = Log("outbox.relay")

_PROBE_S = 60.0
_ASK_S = 1.0


class IdleChecks:
    """Belongs to one relay's step; `want` may be called from any thread."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        # The number of questions whether PostgreSQL still has everything, and the last one that is answered.
        self._wanted = self.answered = 0
        self._next_probe = 0.0
        # As of which release it was asked whether what was discarded had been applied.
        self._asked, self._ask_at = -1, 0.0

    def want(self) -> int:
        """Ask whether PostgreSQL still has everything; known when `answered` has reached the number returned."""
        self._wanted += 1
        return self._wanted

    def probe(self, now: float) -> bool:
        """Now and then ask whether PostgreSQL still has everything; whether it has answered that it does.

        Raises `OutboxError`; then it asks again at the next step.
        """
        if self._wanted <= self.answered and now < self._next_probe:
            return False
        # Answered also by an error: nothing more is known until PostgreSQL is back.
        self.answered, self._next_probe = self._wanted, now
        with foreseen():
            fine = self._reconciler.probe()
        self._next_probe = now + _PROBE_S
        return fine

    def confirm_withdrawn(self, now: float, releases: int) -> None:
        """What was discarded may have been sent before.  `releases`: of the store, as the scan knows it."""
        if self._asked == releases or now < self._ask_at:
            return
        self._ask_at = now + _ASK_S
        try:
            with foreseen():
                known = self._reconciler.confirm_withdrawn()
        except (TargetUnavailable, TargetMisconfigured) as exc:
            # If deliveries fail too, the next batch reports it.
            _log.debug("could not ask whether anything discarded was applied: %(error)s", error=exc)
        else:
            self._asked = releases if known else self._asked
