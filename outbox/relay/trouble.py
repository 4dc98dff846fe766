"""Trouble: why deliveries fail, since when that is known, and when they are tried again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DurabilityError, OutboxError, TargetMisconfigured, TargetUnavailable
from ..log import Log
from .breaker import CLOSED, OPEN, THRESHOLD, Breaker

_log = Log("outbox.relay")


class Trouble:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        # Questions of an idle relay in a row that PostgreSQL did not answer.
        self._idle_failures = 0
        # The newest failure, until something is delivered; and whether an operator must end it.
        self.last_error: str | None = None
        self.stopped = False
        # Whether PostgreSQL could not be reached, or did not answer, at the newest try.
        self.unreachable = False
        # Until when, in microseconds of the wall clock, entries were captured that may have waited for the deliveries.
        self.late_us = 0

    def is_late(self, captured_us: int) -> bool:
        """Whether an entry may have waited, in an outage or for a relay: no caller waits for it any more."""
        return captured_us <= self.late_us

    @property
    def breaker_state(self) -> str:
        """The breaker's state as it is published: open also while an idle relay gets no answer."""
        if self.breaker.state == CLOSED and self._idle_failures >= THRESHOLD:
            return OPEN
        return self.breaker.state

    def failed(self, exc: OutboxError, now: float) -> None:
        """Note that a delivery failed."""
        self._note(exc, self.breaker.failed(now))

    def failed_idle(self, exc: OutboxError) -> float:
        """Note that an idle relay got no answer; returns the seconds to wait.

        The breaker stays closed, since no delivery has failed: the next entry is tried at once, and its caller waits.
        """
        self._idle_failures += 1
        delay_s = self.breaker.backoff(self._idle_failures)
        self._note(exc, delay_s)
        return delay_s

    def _note(self, exc: OutboxError, delay_s: float) -> None:
        """Take in a failure, and log it where it is another one than before."""
        stopped = isinstance(exc, TargetMisconfigured)
        # Rounded up: "in 0.0 s" would read as if there were no wait.
        retry_in_s = math.ceil(delay_s * 10) / 10
        if str(exc) != self.last_error or stopped != self.stopped:
            log = _log.error if stopped or isinstance(exc, DurabilityError) else _log.warning
            log("delivery failed: %(error)s (next try in %(retry_in_s)s s)", error=exc, retry_in_s=retry_in_s)
        else:
            _log.debug(
                "delivery failed again: %(error)s (next try in %(retry_in_s)s s)", error=exc, retry_in_s=retry_in_s
            )
        self.last_error, self.stopped = str(exc), stopped
        self.unreachable = isinstance(exc, TargetUnavailable)

    def recovered(self) -> None:
        """Note a success."""
        if self.last_error is not None:
            _log.info("delivery works again after: %(after)s", after=self.last_error)
        self.breaker.succeeded()
        self._idle_failures = 0
        self.last_error, self.stopped, self.unreachable = None, False, False


@contextmanager
def foreseen() -> Iterator[None]:
    """A defect in the target must neither drop an entry nor end the deliveries: the line stops and tries again."""
    try:
        yield
    except OutboxError:
        raise
    except Exception as exc:
        raise unforeseen(exc) from exc


def unforeseen(exc: Exception) -> TargetMisconfigured:
    """See `foreseen`.  Within an `except` block."""
    _log.error("target failed unexpectedly: %(error)s", error=f"{type(exc).__name__}: {exc}", trace=True)
    return TargetMisconfigured(f"unexpected {type(exc).__name__}: {exc}")
