"""Progress: wakes callers of the same process that wait for a delivery."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..clock import Clock
from ..store.envelope import Record
from ..worker import is_waited_for

# A relay of this process reports each of its steps; an operator's `discard` may come without one.
_BESIDE_A_RELAY_S = 0.5


class Progress:
    """Belongs to one outbox.  Thread-safe; listeners are called by the relay's thread and must be quick."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Held by itself: `Condition.__exit__` is a function of Python, which an exception may end before it releases.
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)
        self._delivering: bool | None = None
        self._unreachable = False
        # Whether deliveries have failed since everything was delivered; true until the relay's first report.
        self._failed = True
        self._was_out = False
        self._steps = 0
        self._acknowledged: frozenset[int] = frozenset()
        self._listeners: list[Callable[[], None]] = []
        self._rewound_listeners: list[Callable[[], None]] = []
        self._asked_listeners: list[Callable[[], None]] = []
        self._claims: list[Callable[[Record], bool]] = []

    @property
    def delivering(self) -> bool | None:
        """Whether deliveries work as far as the relay knows; None where no relay runs in this process."""
        return self._delivering

    @property
    def unreachable(self) -> bool:
        """Whether PostgreSQL could not be reached at the newest try of a relay in this process.

        Earlier than `delivering`, which bears a failure or two.
        """
        return self._unreachable

    @property
    def recovering(self) -> bool:
        """Whether deliveries of a relay in this process have failed, and `on_recovered` was not called since."""
        return self._failed and self._delivering is not None

    @property
    def was_out(self) -> bool:
        """Whether a try of a relay in this process has failed since then."""
        return self._was_out

    def report(self, *, delivering: bool | None, caught_up: bool = False, unreachable: bool = False) -> None:
        """Take the relay's report after each step; `delivering=None` when it leaves."""
        with self._lock:
            self._delivering, self._unreachable = delivering, unreachable
            self._failed |= delivering is False
            self._was_out |= delivering is False or unreachable
            recovered = caught_up and self._failed
            self._steps += 1
            self._moved.notify_all()
        if recovered:
            for listener in tuple(self._listeners):
                listener()
            # Behind the listeners: where it is not seen any more, what they set is.
            self._failed = self._was_out = False

    def acknowledge(self, acknowledged: frozenset[int]) -> None:
        """Take note that PostgreSQL has committed these entries; the relay records that next."""
        with self._lock:
            if acknowledged != self._acknowledged:
                self._acknowledged = acknowledged
                self._steps += 1
                self._moved.notify_all()

    @property
    def acknowledged(self) -> frozenset[int]:
        """The entries of the newest batch that PostgreSQL has committed, which may still be pending here.

        Their effects can be read; should the process end before they are recorded, receipts keep them from being
        repeated.  To be asked before the store is: what is recorded in between is then seen in one of the two.
        """
        return self._acknowledged

    def on_recovered(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the relay has delivered everything, first and after each outage."""
        self._listeners.append(listener)

    def off_recovered(self, listener: Callable[[], None]) -> None:
        """Undo `on_recovered`; may be called twice."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def rewound(self) -> None:
        """Take note that PostgreSQL was set back, and that the entries it lacks are pending again."""
        for listener in tuple(self._rewound_listeners):
            listener()

    def on_rewound(self, listener: Callable[[], None]) -> None:
        """Call `listener` when PostgreSQL was set back to an earlier state, before anything is delivered to it again.

        What was read from it before may be wrong now: rows, and the positions of its sequences.
        """
        self._rewound_listeners.append(listener)

    def off_rewound(self, listener: Callable[[], None]) -> None:
        """Undo `on_rewound`; may be called twice."""
        if listener in self._rewound_listeners:
            self._rewound_listeners.remove(listener)

    def ask(self) -> None:
        """Let the relay look whether PostgreSQL answers, and report it; does nothing where none runs here."""
        for listener in tuple(self._asked_listeners):
            listener()

    def on_asked(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a caller asks whether PostgreSQL answers."""
        self._asked_listeners.append(listener)

    def off_asked(self, listener: Callable[[], None]) -> None:
        """Undo `on_asked`; may be called twice."""
        if listener in self._asked_listeners:
            self._asked_listeners.remove(listener)

    def claim_refusals(self, claims: Callable[[Record], bool]) -> None:
        """Ask `claims(record)` of each new dead letter: whether its caller waits, gets the refusal and discards it.

        Asked by the writer's thread and the relay's, when the dead letter is in the store.  It must be quick.
        """
        self._claims.append(claims)

    def unclaim_refusals(self, claims: Callable[[Record], bool]) -> None:
        """Undo `claim_refusals`; may be called twice."""
        if claims in self._claims:
            self._claims.remove(claims)

    def is_claimed(self, record: Record) -> bool:
        """Whether a caller answers this dead letter, so that it needs no operator."""
        return any(claims(record) for claims in tuple(self._claims))

    def wait(self, reached: Callable[[], bool], timeout: float, *, poll_s: float = 0.01) -> bool:
        """Wait until `reached()`, for at most `timeout` seconds, and no longer than deliveries work.

        A thread of the outbox's own does not wait.

        It is asked after each step of this process's relay, and twice a second; every `poll_s` seconds where the relay
        is another process.
        """
        deadline = self._clock.monotonic() + timeout
        while True:
            steps = self._steps
            if reached():
                return True
            left = deadline - self._clock.monotonic()
            if left <= 0 or self._delivering is False or is_waited_for():
                return False
            with self._lock:
                if self._steps == steps:
                    beside = self._delivering is not None
                    self._moved.wait(min(left, max(poll_s, _BESIDE_A_RELAY_S) if beside else poll_s))
