"""Link: whether PostgreSQL answers, why it does not, and when it is tried again.

How fast it is, and how busy the program, decides how many entries a step takes.

The only owner of that in the relay: everything else reads `Link.state`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..config import OutboxConfig
from ..errors import DurabilityError, OutboxError, TargetMisconfigured
from ..fate import Fate, of_line
from ..log import Log
from ..target import Reachable, Target

_log = Log("outbox.relay")

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"
_THRESHOLD = 3
_MAX_EXPONENT = 32
# A server that is back may start for so long, and is then tried after so many seconds at most.
_STARTING_S = 60.0
_SOON_S = 2.0


class Breaker:
    """Opens after three failures in a row; between tries there is exponential backoff with full jitter.

    After the n-th failure the wait is uniform in [0, min(cap, base * 2**(n-1))]: see "Exponential Backoff And Jitter",
    AWS Architecture Blog, for why full jitter.  Not thread-safe: it belongs to the relay's step.
    """

    def __init__(self, base_s: float, cap_s: float, random: Callable[[], float]) -> None:
        self._base_s, self._cap_s, self._random = base_s, cap_s, random
        # Failures in a row, and those since a server was there again: the delay grows with these.
        self._failures = self._since_return = 0
        self._next_at = self._soon_until = 0.0
        self.state = CLOSED

    def wait(self, now: float) -> float:
        """Seconds until the next try is due; at 0 an open breaker becomes half-open and the try is its probe."""
        left = self._next_at - now if self._failures else 0.0
        if left > 0:
            return left
        if self.state == OPEN:
            self.state = HALF_OPEN
        return 0.0

    def failed(self, now: float) -> float:
        """Note a failure; returns the seconds to wait."""
        self._failures += 1
        self._since_return += 1
        delay = self.backoff(self._since_return, _SOON_S if now < self._soon_until else math.inf)
        self._next_at = now + delay
        if self._failures >= _THRESHOLD:
            self.state = OPEN
        return delay

    def returned(self, now: float) -> None:
        """A server is there again: try at once, and where it only starts, soon again and again."""
        self._since_return, self._next_at = 1, now
        self._soon_until = now + _STARTING_S

    def succeeded(self) -> None:
        """Note a success: closed again."""
        self._failures = self._since_return = 0
        self.state = CLOSED

    def backoff(self, failures: int, most_s: float = math.inf) -> float:
        """A jittered delay in seconds for the n-th failure in a row."""
        ceiling = min(self._cap_s, most_s, self._base_s * 2.0 ** min(failures - 1, _MAX_EXPONENT))
        return self._random() * ceiling

    def hurry(self, now: float, most_s: float) -> None:
        """Bring the next try forward to at most `most_s` from now: a caller is waiting for it."""
        self._next_at = min(self._next_at, now + most_s)


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the newest try has shown of PostgreSQL."""

    # The breaker as it is published: open also while an idle relay gets no answer.
    breaker: str = CLOSED
    # Whether deliveries work: their breaker is closed, which bears a failure or two.
    works: bool = True
    # The newest failure, until something is delivered; and whether an operator must end it.
    last_error: str | None = None
    stopped: bool = False
    # Whether PostgreSQL could not be reached, or did not answer, at the newest try.
    unreachable: bool = False


class Link:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.state = LinkState()
        # Questions of an idle relay in a row that PostgreSQL did not answer.
        self._idle_failures = 0
        # Up to which sequence number entries may have waited for the deliveries.  Not by time: a clock may be set back.
        self.late_seq = 0

    def is_late(self, seq: int) -> bool:
        """Whether an entry may have waited, in an outage or for a relay: no caller waits for it any more."""
        return seq <= self.late_seq

    def wait(self, now: float) -> float:
        """Seconds until the next try is due; at 0 it begins."""
        pause_s, before = self.breaker.wait(now), self.state
        if self.breaker.state == HALF_OPEN != before.breaker:
            self.state = self._state(before.last_error, before.stopped, before.unreachable)
        return pause_s

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
        fate, before = of_line(exc), self.state
        # Rounded up: "in 0.0 s" would read as if there were no wait.
        retry_in_s = math.ceil(delay_s * 10) / 10
        self.state = self._state(str(exc), fate is Fate.STOPPED, fate is Fate.OUTAGE)
        if (before.last_error, before.stopped) != (self.state.last_error, self.state.stopped):
            log = _log.error if self.state.stopped or isinstance(exc, DurabilityError) else _log.warning
            log("delivery failed: %(error)s (next try in %(retry_in_s)s s)", error=exc, retry_in_s=retry_in_s)
        else:
            _log.debug(
                "delivery failed again: %(error)s (next try in %(retry_in_s)s s)", error=exc, retry_in_s=retry_in_s
            )

    def recovered(self) -> None:
        """Note a success."""
        if self.state.last_error is not None:
            _log.info("delivery works again after: %(after)s", after=self.state.last_error)
        self.breaker.succeeded()
        self._idle_failures = 0
        self.state = self._state(None, False, False)

    def _state(self, last_error: str | None, stopped: bool, unreachable: bool) -> LinkState:
        works = self.breaker.state == CLOSED
        breaker = OPEN if works and self._idle_failures >= _THRESHOLD else self.breaker.state
        return LinkState(breaker, works, last_error, stopped, unreachable)


# So often it is looked whether a server is back.
_LOOK_S = 1.0


class Lookout:
    """Looks between two tries whether a server that was away accepts connections again.  Belongs to one relay's step.

    A server that is away costs one refused connection a second.  One that accepts connections all the time, as a pooler
    does, is tried by the backoff alone.
    """

    def __init__(self, target: Target, link: Link) -> None:
        self._target, self._link = target if isinstance(target, Reachable) else None, link
        # Servers that accepted connections at the last look, and when the next one is due (monotonic seconds).
        self._there: frozenset[str] = frozenset()
        self._next_at = -math.inf

    def works(self) -> None:
        """Something was delivered: the next outage begins anew."""
        self._there = frozenset()

    def wait(self, now: float) -> float:
        """Seconds until the next try or look is due; at 0 the try begins."""
        pause_s = self._link.wait(now)
        if pause_s <= 0 or self._target is None or not self._link.state.unreachable:
            return pause_s
        if now >= self._next_at:
            before, self._there = self._there, self._target.accepting()
            self._next_at = now + _LOOK_S
            if self._there - before:
                self._link.breaker.returned(now)
                return self._link.wait(now)
        return min(pause_s, self._next_at - now)


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


# So long after an entry came the program counts as enqueueing: as long as a trading loop may pause.
_BUSY_S = 60.0
# A batch is to take about so long, and at most this part of the time after which it is given up: as often is committed,
# seen by others and unlocked what it has delivered.
_BATCH_S = 1.0
_PART_OF_STALL = 0.1
# Entries of the first batch, when it is not known how long one takes.
_FIRST = 50


class BatchSize:
    """How many entries a step takes, by the program's activity and the target's speed.  Belongs to one relay's step."""

    def __init__(self, config: OutboxConfig, target: Target) -> None:
        self._config, self._target = config, target
        self._batch_s = min(_BATCH_S, config.stall_timeout * _PART_OF_STALL)
        self._limit = min(config.batch_size, _FIRST)
        # Entries of one lane in a batch, and its seconds: one of about the last size, and the last one of another size.
        self._like: tuple[int, float] | None = None
        self._unlike: tuple[int, float] | None = None
        # The newest entry of the last look, and until when the program counts as enqueueing.
        self._newest_seq: int | None = None
        self._busy_until = 0.0
        # Whether to go easy on disk and interpreter, since the program enqueues and waits for both.  Then batches
        # are small, one step after the other: see `docs/explanation/decisions/011-busy-batches.md`.
        self.busy = False

    def entries(self, now: float) -> int:
        """How many entries to take at once; a single one where that is to show which one takes too long."""
        self.busy = now < self._busy_until and self._config.busy_batch_size < self._config.batch_size
        limit = min(self._limit, self._config.busy_batch_size) if self.busy else self._limit
        return limit * self._target.lanes if self._limit > 1 else 1

    def look(self, newest_seq: int, now: float) -> None:
        """Note the newest entry of the store: a later one than before was enqueued meanwhile."""
        if self._newest_seq is not None and newest_seq > self._newest_seq:
            self._busy_until = now + _BUSY_S
            self.busy = self._config.busy_batch_size < self._config.batch_size
        self._newest_seq = newest_seq

    def shrink(self) -> None:
        """A batch took too long."""
        self._limit = max(1, self._limit // 2)

    def measured(self, entries: int, took_s: float) -> None:
        """A batch was delivered: the next one has as many entries as fit its time, if that is not far from the last."""
        each = -(-entries // self._target.lanes)
        entry_s, share_s = self._entry_s(each, took_s), took_s / each
        fit = int(self._batch_s / entry_s) if entry_s > self._batch_s / self._config.batch_size else math.inf
        least = 3 if each == 2 else 2  # another size, which tells
        if least * share_s > self._config.stall_timeout / 2:
            least = 1
        self._limit = int(min(self._config.batch_size, max(min(fit, self._limit * 2), self._limit // 2, least)))

    def _entry_s(self, each: int, took_s: float) -> float:
        """What a further entry takes, by a batch of another size: smaller batches save no round trips and no commit."""
        if self._like is None or _differ(each, self._like[0]):
            self._unlike, self._like = self._like, (each, took_s)
        share = took_s / each
        if self._unlike is None or not _differ(each, self._unlike[0]):
            return share
        return min(share, max(0.0, (took_s - self._unlike[1]) / (each - self._unlike[0])))


def _differ(one: int, other: int) -> bool:
    """Whether two sizes differ enough that the difference in time says something."""
    return max(one, other) * 4 >= min(one, other) * 5
