"""PostgresTarget: delivers batches to PostgreSQL, on one connection or on several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import UUID

from ..clock import Clock, SystemClock
from ..config import OutboxConfig
from ..errors import HistoryRewound
from ..fate import of_batch
from ..operation import Operation, operations_by_name
from ..store.continuity import Memory
from ..store.envelope import Record
from ..target import Outcome, Unit, spread, units
from ..worker import Worker
from .address import Address
from .alterations import Alterations
from .connection import GuardedConnection
from .lane import Lane
from .watermarks import PostgresComparison


class PostgresTarget:
    """PostgreSQL as the relay's target.

    `operations` declare how entries are applied; entries of another operation wait.  Used by one thread at
    a time (`interrupt` excepted).  Holds at most `config.lanes` connections.  Handlers run in the caller's thread, one
    at a time, whatever the number of lanes; the other lanes only insert rows.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        operations: Iterable[Operation],
        *,
        password: Callable[[], str] | None = None,
        config: OutboxConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`url` is a libpq or SQLAlchemy URL, several hosts included.  Connects at the first `apply`.

        Without `config` it takes that of the outbox whose relay it is given to.

        `url` may also be a callable that returns one, and `password` one that returns the password that the URL leaves
        out.  They are asked at each new connection, in the relay's thread or a lane's, and must be quick.  An OSError
        of theirs counts as an outage; any other error stops the line until it is mended.

        Raises `ConfigError` for a bad URL (without repeating it) or bad operations.
        """
        self.operations: Mapping[str, Operation] = operations_by_name(operations)
        self._address, self._clock = Address(url, password), clock or SystemClock()
        self._is_configured = config is not None
        self._make_lanes(config or OutboxConfig())

    def _make_lanes(self, config: OutboxConfig) -> None:
        alterations, clock = Alterations(), self._clock
        self._lanes = [
            Lane(number, GuardedConnection(self._address, config, clock), self.operations, clock, alterations)
            for number in range(config.lanes)
        ]
        # How many transactions `apply` runs side by side at most.
        self.lanes = len(self._lanes)
        self._workers: list[Worker[Outcome]] = [Worker(f"outbox-lane-{number}") for number in range(1, config.lanes)]

    def configure(self, config: OutboxConfig) -> None:
        """Take these settings where it was made without any; a relay calls it before everything else."""
        if not self._is_configured:
            self._is_configured = True
            self.close()
            self._make_lanes(config)

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        """See `Target.apply`.  Each lane gets a transaction of its own; an ordering key is never in two of them."""
        # The first lane goes first: it looks whether anything was lost, and the others join the history that it finds.
        lanes = self.lanes if self.lanes > 1 and self._lanes[0].mark is not None else 1
        batch = list(units(records))
        if lanes == 1:
            outcome = self._lanes[0].apply(store_id, batch)
            outcome.by_lane = [len(outcome.completed), *[0] * (self.lanes - 1)] if self.lanes > 1 else []
        else:
            outcome = self._apply_side_by_side(store_id, spread(batch, lanes, self._has_handler))
        if outcome.failed:
            works = {record.operation for record, _ in outcome.completed}
            outcome.failed, outcome.parked = of_batch(outcome.failed, works)
        if outcome.interruption is not None:
            # Another server may have taken over: no lane goes on without having looked.
            for lane in self._lanes[1:]:
                lane.disconnect()
            if isinstance(outcome.interruption, HistoryRewound):
                self._lanes[0].disconnect()
        return outcome

    def _apply_side_by_side(self, store_id: UUID, parts: list[list[Unit]]) -> Outcome:
        def task(lane: Lane, part: list[Unit]) -> Callable[[], Outcome]:
            return lambda: lane.apply(store_id, part) if part else Outcome()

        outcome, *others = self._side_by_side([task(*one) for one in zip(self._lanes, parts, strict=True)])
        outcome.by_lane = [len(one.completed) for one in (outcome, *others)]
        for other in others:
            outcome.merge(other)
        return outcome

    def _has_handler(self, unit: Unit) -> bool:
        known = (self.operations.get(item.operation) for item in unit)
        return any(operation is None or operation.handler is not None for operation in known)

    def _side_by_side(self, tasks: list[Callable[[], Outcome]]) -> list[Outcome]:
        """Run them all at once, the first in this thread.  A defect is raised when all have ended."""
        first, *others = tasks
        working = list(zip(self._workers, others, strict=False))
        for worker, task in working:
            worker.begin(task)
        try:
            own = first()
        finally:
            answers = [worker.wait() for worker, _ in working]
        return [own, *(answer() for answer in answers if answer is not None)]

    def follow(self, memory: Memory) -> None:
        """See `Forgetful.follow`.  Call it before the first `apply`."""
        for lane in self._lanes:
            lane.follow(memory)

    def compare(self, store_id: UUID) -> PostgresComparison:
        """See `Forgetful.compare`.  It ends with the connection, and `apply` goes on with the same one."""
        return self._lanes[0].compare(store_id)

    def accepting(self) -> frozenset[str]:
        """See `Reachable.accepting`."""
        return self._lanes[0].accepting()

    def interrupt(self) -> None:
        """Shut the connections' sockets, so that a running `apply` fails soon."""
        for lane in self._lanes:
            lane.interrupt()

    def close(self) -> None:
        """See `Target.close`.  Ends the lanes' threads, too."""
        for worker in self._workers:
            worker.close()
        for lane in self._lanes:
            lane.close()
