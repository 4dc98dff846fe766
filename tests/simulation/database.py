"""PostgreSQL in memory: receipts, effects and watermarks that commit together, and every way in which a server fails.

Simulated are the transaction and the answers to the few statements of ours; how a batch is split, what a refusal blocks
and how a loss is noticed is the library's own code.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from outbox import EntryRejected, Operation, OutboxConfig
from outbox.clock import Clock
from outbox.errors import TargetMisconfigured, TargetUnavailable
from outbox.fate import OperationFault
from outbox.operation import operations_by_name
from outbox.postgres import piggyback, receipts, watermarks
from outbox.postgres.blame import Blame
from outbox.postgres.connection import UnitFailed
from outbox.postgres.lane import Lane
from outbox.postgres.target import PostgresTarget
from outbox.store.continuity import Memory, NoMemory
from outbox.store.envelope import Record
from outbox.target import Outcome, Unit

from .memory import Killed

OPERATIONS = (Operation("write", table="rows"), Operation("note", table="notes", best_effort=True))

BEFORE_COMMIT = ("cut before commit", "read only", "deadlock", "stall", "killed before commit")
AFTER_COMMIT = ("cut after commit", "killed after commit")
FAULTS = ("refused", "misconfigured", "defect", *BEFORE_COMMIT, *AFTER_COMMIT, "cut after the answer")


@dataclass(slots=True)
class State:
    """What PostgreSQL has committed."""

    # Payload hashes by idempotency key.
    receipts: dict[bytes, bytes] = field(default_factory=dict)
    # And the sequence numbers in them.
    places: dict[bytes, int] = field(default_factory=dict)
    # (idempotency key, ordering key) of every effect, in the order of the commits.
    effects: list[tuple[bytes, str | None]] = field(default_factory=list)
    # Rows of the watermarks table by lane, in the order of its columns.
    watermarks: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    # Receipts, and their sequence numbers, that somebody has taken away; an operator has a copy of them.
    emptied: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)

    def copy(self) -> State:
        return State(
            dict(self.receipts), dict(self.places), list(self.effects), dict(self.watermarks), dict(self.emptied)
        )

    def proofs(self) -> list[bytes]:
        """Keys of every receipt, also of those that were taken away; one that was written again is there twice."""
        return [*self.receipts, *self.emptied]


class Database:
    """One server: survives its clients, and can be set back to an earlier state."""

    def __init__(self, rng: random.Random, say: Callable[[str], None]) -> None:
        self._rng, self.say = rng, say
        self.state = State()
        self._past: list[State] = []
        # Counts the times when it was set back; no connection survives that.
        self.generation = 0
        # Keys that are refused for good until somebody mends the cause; keys refused for a while, by how often still.
        self.poison: set[bytes] = set()
        self.passing: dict[bytes, int] = {}
        # Operations that cannot be applied, whatever their entries are.
        self.broken: set[str] = set()
        # How often each key was refused.
        self.refusals: Counter[bytes] = Counter()
        # Chance of a fault in each transaction; 0 when all is calm.
        self.chance = 0.0
        self.down = False
        self.struck: Counter[str] = Counter()
        # Whether a transaction holds the store's advisory lock.
        self.fenced = False
        # Keys of receipts that were written again while the first ones were away.
        self.doubled: set[bytes] = set()

    def commit(self, state: State) -> None:
        self._past.append(self.state)
        self.state = state

    def restore(self) -> set[bytes]:
        """Go back to an earlier state, as from a backup or on a standby that lagged; the keys that are forgotten."""
        if not self._past:
            return set()
        at = self._rng.randrange(len(self._past))
        lost = set(self.state.proofs()) - set(self._past[at].proofs())
        self.state = self._past[at]
        del self._past[at:]
        self.generation += 1
        return lost

    def truncate(self) -> None:
        """TRUNCATE of the receipts; no connection notices."""
        state = self.state.copy()
        state.emptied |= {key: (payload, state.places[key]) for key, payload in state.receipts.items()}
        state.receipts, state.places = {}, {}
        self.commit(state)
        self.struck["truncated"] += 1

    def refill(self) -> None:
        """An operator puts the receipts back that were taken away, from a copy of the table."""
        state = self.state.copy()
        for key, (payload, place) in state.emptied.items():
            if key in state.receipts:
                self.doubled.add(key)
            state.receipts[key], state.places[key] = payload, place
        state.emptied = {}
        self.commit(state)

    def draw(self) -> str | None:
        """What goes wrong in the next transaction."""
        if self._rng.random() >= self.chance:
            return None
        fault = self._rng.choice(FAULTS)
        self.struck[fault] += 1
        self.say(f"  PostgreSQL: {fault}")
        return fault


class _Defect(Exception):
    """Something that nobody foresaw, in a handler."""


class _Driver:
    """What is asked of the driver's connection, which there is none of."""

    closed = False
    rolling_back = nullcontext


class Cursor:
    """Answers the statements of `receipts` and `watermarks` in one transaction."""

    connection: Any = _Driver()

    def __init__(self, database: Database, state: State) -> None:
        self._database, self._state = database, state
        self._rows: list[Any] = []

    def execute(self, query: str, parameters: Sequence[Any] = (), /) -> None:
        self._rows = self._answers[query](self, *parameters)

    @property
    def rowcount(self) -> int:
        return len(self._rows)

    def fetchall(self) -> list[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def _is_there(self, _: str) -> list[Any]:
        return [(True,)]

    def _recovering(self) -> list[Any]:
        return [(False, False, True)]

    def _fence(self, *_: Any) -> list[Any]:
        return [(not self._database.fenced,)]

    def _find(self, keys: str) -> list[Any]:
        known = self._state.receipts
        asked = keys.strip("{}").split(",")
        return [(key, known[raw].hex(), None) for key in asked if (raw := bytes.fromhex(key)) in known]

    def _read(self, *_: Any) -> list[Any]:
        return list(self._state.watermarks.values())

    def _begin(self, _: str, lane: int, lineage: str, session: str, *follows_and_settled: Any) -> list[Any]:
        self._state.watermarks[lane] = (lane, lineage, session, 1, *follows_and_settled)
        return []

    def _any_left(self, *_: Any) -> list[Any]:
        return [(bool(self._state.receipts),)]

    def _size(self, *_: Any) -> list[Any]:
        return [(1, receipts._RANGES_SINCE)]

    def _highest(self, *_: Any) -> list[Any]:
        return [(max(self._state.places.values(), default=0),)]

    def _advance(
        self, settled: int, _: str, lane: int, session: str, __: int, ___: str, proof: str | None, *____: Any
    ) -> list[Any]:
        row = self._state.watermarks.get(lane)
        if self._database.fenced or row is None or row[2] != session:
            return []
        self._state.watermarks[lane] = (*row[:3], row[3] + 1, *row[4:6], settled)
        return [(row[3] + 1, True, proof is None or bytes.fromhex(proof) in self._state.receipts)]

    def _without_receipt(self, _: str, keys: str, seqs: str, *__: Any) -> list[Any]:
        """Only asked in front of a rollback to a savepoint: entries get their receipts in `SimulatedLane._apply`."""
        asked = zip(keys.strip("{}").split(","), seqs.strip("{}").split(","), strict=True)
        return [(seq,) for key, seq in asked if bytes.fromhex(key) not in self._state.receipts]

    def _nothing(self, *_: Any) -> list[Any]:
        return []

    _answers: dict[str, Callable[..., list[Any]]] = {  # noqa: RUF012 - constant
        "SAVEPOINT outbox_withdrawn; SET LOCAL lock_timeout = '100ms'": _nothing,
        "ROLLBACK TO SAVEPOINT outbox_withdrawn": _nothing,
        piggyback._QUARTER: _nothing,
        "ROLLBACK TO SAVEPOINT outbox_in_time; RELEASE SAVEPOINT outbox_in_time": _nothing,
        receipts._RECORD: _without_receipt,
        watermarks._STATE: _recovering,
        receipts._IS_THERE: _is_there,
        receipts._FENCE: _fence,
        receipts._HOLDER: _nothing,
        receipts._FIND: _find,
        receipts._ANY_LEFT: _any_left,
        receipts._SIZE: _size,
        f"{receipts._HIGHEST}true": _highest,
        watermarks._READ: _read,
        watermarks._BEGIN: _begin,
        watermarks._ADVANCE: _advance,
    }


class SimulatedTarget(PostgresTarget):
    """`PostgresTarget` on a `Database`, with lanes that take turns instead of running at once."""

    def __init__(
        self, database: Database, clock: Clock, rng: random.Random, *, lanes: int = 1, copied: bool = False
    ) -> None:
        # Without the parent's: no driver and no thread.
        self.operations = operations_by_name(OPERATIONS)
        self._rng = rng
        self._lanes = [SimulatedLane(number, database, clock, self, copied=copied) for number in range(lanes)]
        self.lanes, self._workers = lanes, []
        # Called at a transaction's begin, or inside it: what somebody else does meanwhile.
        self.meanwhile: tuple[bool, Callable[[], Any]] | None = None

    def configure(self, config: OutboxConfig) -> None:
        """It has no settings."""

    def _side_by_side(self, tasks: list[Callable[[], Outcome]]) -> list[Outcome]:
        answers = {}
        for number in self._rng.sample(range(len(tasks)), len(tasks)):
            answers[number] = _ending(tasks[number])
        return [answers[number]() for number in range(len(tasks))]


def _ending(task: Callable[[], Outcome]) -> Callable[[], Outcome]:
    """What the task ended with; a defect in one lane does not keep the others from ending."""
    try:
        outcome = task()
    except _Defect as exc:
        defect = exc

        def fail() -> Outcome:
            raise defect

        return fail
    return lambda: outcome


class SimulatedLane(Lane):
    """`Lane` on a `Database`, with one connection at a time."""

    def __init__(self, number: int, database: Database, clock: Clock, target: SimulatedTarget, *, copied: bool) -> None:
        # Without the parent's: no connection.
        self._number, self.operations, self._target = number, target.operations, target
        self.database, self._clock = database, clock
        # Whether it belongs to a copy of the store: that one gives nothing up and outwits no passing refusal, else one
        # store could bury what the other delivers in the same moment, which is not promised.
        self._copied = copied
        self._memory: Memory = NoMemory()
        # Its refusals have no diagnostics to look at.
        nothing: Any = None
        self._blame = Blame(nothing, target.operations, nothing)
        self._session: watermarks.RelaySession | None = None
        self._generation = 0
        # Whether the connection is gone and nobody has noticed.
        self._cut = False

    def accepting(self) -> frozenset[str]:
        return frozenset() if self.database.down else frozenset({"database"})

    def interrupt(self) -> None:
        """Nothing runs."""

    def disconnect(self) -> None:
        self._session = None

    def _late(self, exc: TargetUnavailable, *, alone: bool) -> int | None:
        return 0 if alone and exc.stalled else None

    def close(self) -> None:
        self._session = None

    def compare(self, store_id: UUID) -> watermarks.PostgresComparison:
        session = self._session_of(store_id)

        def ask(question: Callable[[Cursor], Any]) -> Any:
            if session is not self._session:
                raise TargetUnavailable("the connection was lost while the ledger was compared")
            # Asking runs none of the handlers in which a defect may hide.
            with suppress(_Defect), self._transaction() as state:
                return question(Cursor(self.database, state))
            raise TargetUnavailable("connection lost")

        return watermarks.PostgresComparison(session, ask, failover=False)

    def _session_of(self, store_id: UUID) -> watermarks.RelaySession:
        if self._session is None or self._cut:
            self._cut = False
            self._session = watermarks.RelaySession(self._memory, store_id, self._clock.new_id, lane=self._number)
            self._generation = self.database.generation
        return self._session

    @contextmanager
    def _transaction(self) -> Iterator[State]:
        """The block's changes are committed at its end, unless something goes wrong."""
        try:
            if self.database.down:
                raise TargetUnavailable("connection refused")
            fault = self.database.draw()
            if fault == "refused" or self._generation != self.database.generation:
                raise TargetUnavailable("connection refused or lost")
            if fault == "misconfigured":
                raise TargetMisconfigured("42P01: table rows does not exist")
            self._let_others_work(inside=False)
            state = self.database.state.copy()
            yield state
            if fault == "defect":
                raise _Defect
            self._let_others_work(inside=True)
            _strike(fault, BEFORE_COMMIT)
            self.database.commit(state)
            _strike(fault, AFTER_COMMIT)
            self._cut = fault == "cut after the answer"
        except (TargetUnavailable, TargetMisconfigured):
            self._session = None
            raise

    def _let_others_work(self, *, inside: bool) -> None:
        target = self._target
        if target.meanwhile is None or target.meanwhile[0] != inside:
            return
        (_, work), target.meanwhile = target.meanwhile, None
        self.database.fenced = inside
        try:
            work()
        finally:
            self.database.fenced = False

    def _transact(self, store_id: UUID, part: list[Unit]) -> list[tuple[Record, bytes]]:
        session = self._session_of(store_id)
        with self._transaction() as state:
            # The relay knows the database's answers in the protocol's words only.
            session.enter(Cursor(self.database, state))
            for index, unit in enumerate(part):
                for record in unit:
                    self._apply(record, state, index)
        session.committed(part[-1][-1])
        return [(record, b"") for unit in part for record in unit]

    def _apply(self, record: Record, state: State, index: int) -> None:
        known = state.receipts.get(record.key)
        if known is not None:
            if known != record.payload_hash:
                raise self._refused(record, index, "a receipt exists with other arguments", permanent=True)
            return
        if record.operation in self.database.broken:
            self.database.say(f"  PostgreSQL lacks what {record.operation} needs")
            raise UnitFailed(OperationFault("42P01: no table"), index, record.operation)
        if record.key in self.database.poison:
            raise self._refused(record, index, "23514: check violated", permanent=True)
        if self.database.passing.get(record.key, 0) > 0:
            self.database.passing[record.key] -= not self._copied
            raise self._refused(record, index, "XX000: unlisted", permanent=False)
        state.receipts[record.key] = record.payload_hash
        state.places[record.key] = record.seq
        state.effects.append((record.key, record.order_by))

    def _refused(self, record: Record, index: int, why: str, *, permanent: bool) -> UnitFailed:
        self.database.refusals[record.key] += 1
        self.database.say(f"  PostgreSQL refuses {record.seq}: {why}")
        return UnitFailed(EntryRejected(why, permanent=permanent), index)


def _strike(fault: str | None, moment: tuple[str, ...]) -> None:
    if fault not in moment or fault is None:
        return
    if fault.startswith("killed"):
        raise Killed
    raise TargetUnavailable(fault, stalled=fault == "stall")
