"""One simulated life: a program, its store, its relay and a PostgreSQL, all driven by one seeded generator.

First faults of every kind, then calm; in the end everything must have been delivered, once and in order.
"""

from __future__ import annotations

import copy
import itertools
import random
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from outbox import AlreadyRejected, DurabilityError, IdempotencyConflict, Outbox, OutboxConfig, OutboxError, Relay
from outbox.errors import TargetMisconfigured, TargetUnavailable
from outbox.relay.link import CLOSED
from outbox.store import continuity
from outbox.store.envelope import Counters, Record, to_us
from outbox.store.gate import COUNTERS_KEY
from outbox.store.kept_files import Range
from outbox.store.ledger import DISCARD, answer
from outbox.store.reads import FORGOTTEN
from outbox.store.store import Store
from outbox.store.withdrawal import members
from outbox.target import Target
from tests.faults.invariants import Applied, Call, Observation, Place, Reopened, Stored, Told, check

from .database import OPERATIONS, Database, SimulatedTarget
from .memory import InlineWriter, Killed, MemoryEnvironment

_ACTIONS = 45
_CALM_STEPS = 5000
# Within this time an idle relay asks PostgreSQL whether it has everything.
_ASKS_S = 65.0
# So many steps in a row may move nothing without asking for a pause.
_IDLE_STEPS = 20
_ORDER = ("a", "b", "c", None)


class SeededClock:
    """Time that stands still until it is told, and ids from the seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._elapsed, self._turned = rng, 1000.0, 0.0

    def monotonic(self) -> float:
        return self._elapsed

    def now(self) -> datetime:
        return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=self._elapsed + self._turned)

    def random(self) -> float:
        return self._rng.random()

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self._rng.getrandbits(128))

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds

    def turn(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self._turned += seconds


class OpenedInMemory:
    """Stands for `OpenStore`."""

    is_engine = True

    def __init__(self, store: Store) -> None:
        self.store = store

    def close(self) -> None:
        self.store.close()


class InDeliveryInMemory:
    """Stands for `outbox.store.kept_files.InDelivery`: the process that dies takes its locks with it."""

    def __init__(self) -> None:
        self._held: set[Range] = set()

    def claim(self, first: int, last: int) -> bool:
        """An operator's lock ends before anybody else has a turn."""
        self._held.add((first, last))
        return True

    def keep(self, *wanted: Range) -> None:
        self._held.intersection_update(wanted)

    def close(self) -> None:
        self._held.clear()

    def holds(self, first: int, last: int) -> bool:
        """Whether an operator is kept from discarding one of these."""
        return any(first <= end and begin <= last for begin, end in self._held)


class UnpublishedRelay(Relay):
    """A relay without files: its role is the simulation's business, and nobody looks from outside."""

    def __init__(self, box: Outbox, target: Target) -> None:
        super().__init__(box, target)
        self._delivery.publish = lambda now, *, force=False: None  # type: ignore[method-assign]

    def _take_role(self) -> None:
        if self._delivery._settling._claims is None:
            self._delivery._settling._claims = InDeliveryInMemory()  # type: ignore[assignment]
            self._delivery._reconciler.resume()

    def _leave_role(self) -> None:
        self._delivery._settling._claims = None


class World:
    """One seed.  `relay_class` and `target_class` are replaced by tests that let a defect loose."""

    relay_class: type[Relay] = UnpublishedRelay
    target_class: type[SimulatedTarget] = SimulatedTarget

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self._say = say or (lambda line: None)
        self.clock = SeededClock(self.rng)
        self.config = OutboxConfig(
            min_free_mb=0, batch_size=self.rng.choice((1, 1, 3, 50)), max_retries=3, backoff_base=0.5, backoff_cap=5.0,
            reconcile=self.rng.choice(("auto", "manual")), lanes=self.rng.choice((1, 1, 2)),
            busy_batch_size=self.rng.choice((2, 1000)),
        )  # fmt: skip
        # One of three.  What a full store kept no copy of cannot be put back once PostgreSQL forgets; and a database
        # that was set back and whose receipts were emptied before the relay looked cannot tell what it has.
        self.lasting = self.rng.choice((self.forget, self.fill_disk, self.truncate))
        self.environment = MemoryEnvironment(self.clock.new_id())
        self.environment.main.set(COUNTERS_KEY, Counters().pack())
        self.environment.main.set(continuity.SESSIONS_KEY, continuity.RelaySessions().pack())
        self.database = Database(self.rng, self._say)
        self.history: list[Call | Reopened] = []
        # Names of intents by idempotency key, and what is known of each: arguments, ordering key, transaction.
        self.names: dict[bytes, str] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.in_doubt: list[list[str]] = []
        self.refusable: set[str] = set()
        # What an operator gave up while it was pending.
        self.given_up: set[str] = set()
        # Those of them that had no effect then, and so must never have one.
        self.recalled: set[str] = set()
        # What PostgreSQL acknowledged and then forgot.
        self.forgotten: set[str] = set()
        # What no checker can see afterwards.
        self.violations: list[str] = []
        self._number = itertools.count(1)
        self._open()

    # -- the program's life

    def _open(self) -> None:
        self.box = self._box_on(self.environment)
        self.target = self._new_target()
        self.relay = self.relay_class(self.box, self.target)

    def _new_target(self, *, copied: bool = False) -> SimulatedTarget:
        return self.target_class(self.database, self.clock, self.rng, lanes=self.config.lanes, copied=copied)

    def _box_on(self, environment: MemoryEnvironment) -> Outbox:
        store = Store(
            # The part of the interface of an environment that Store uses.
            environment,  # type: ignore[arg-type]
            max_bytes=1 << 40,
            reserve_bytes=0,
            retention_us=1 << 60,
            now_us=lambda: to_us(self.clock.now()),
            writer=InlineWriter,  # type: ignore[arg-type]
        )
        return Outbox(OpenedInMemory(store), self.config, OPERATIONS, self.clock)  # type: ignore[arg-type]

    def restart(self, why: str) -> None:
        """The process dies and another one opens the store; what was only in memory is gone."""
        self._say(f"restart: {why}")
        self.environment.fail_next = None
        self.environment.kill_next = self.environment.failed = False
        self._open()
        self.history.append(Reopened())

    # -- actions

    def act(self) -> None:
        """Do one thing at random, and start the program again where that kills it."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (10, self.enqueue), (4, self.transact), (3, self.repeat), (14, self.step), (2, self.answer),
            (1, lambda: self.restart("killed")), (2, self.doom), (4, self.fail_disk), (1, self.lasting),
            (1, self.second_relay), (1, self.toggle), (1, self.break_operation), (1, self.turn_clock),
            (1, self.housekeep), (1, self.reconcile), (1, self.give_up),
        ]  # fmt: skip
        action = self.rng.choices([action for _, action in actions], [weight for weight, _ in actions])[0]
        try:
            action()
        except Killed:
            self.restart("killed in the middle")

    def enqueue(self) -> None:
        """One new call."""
        self._record([self._intent()])

    def transact(self) -> None:
        """Several new calls in one transaction."""
        self._record([self._intent() for _ in range(self.rng.randint(2, 4))])

    def repeat(self) -> None:
        """A call that was made before, with the same arguments or with others, or one that is in doubt."""
        if self.in_doubt and self.rng.random() < 0.5:
            self._record(self.in_doubt.pop(self.rng.randrange(len(self.in_doubt))))
            return
        alone = [name for name, intent in self.intents.items() if intent["group"] is None]
        if not alone:
            return
        name = self.rng.choice(alone)
        if self.rng.random() < 0.7:
            self._record([name])
            return
        if not any(call.key == name and call.told is Told.ACKNOWLEDGED for call in self._calls()):
            return
        try:
            self.box.enqueue(self.intents[name]["operation"], {"other": 1}, key=name)
        except (IdempotencyConflict, AlreadyRejected, DurabilityError) as exc:
            self._say(f"{name} with other arguments: {type(exc).__name__}")
            return
        raise AssertionError(f"{name} was taken twice with different arguments")

    def _calls(self) -> list[Call]:
        return [event for event in self.history if isinstance(event, Call)]

    def _intent(self) -> str:
        name = f"i{next(self._number)}"
        operation = "note" if self.rng.random() < 0.1 else "write"
        self.intents[name] = {
            "operation": operation, "args": {"name": name}, "order_by": self.rng.choice(_ORDER), "group": None,
        }  # fmt: skip
        trouble = self.rng.random()
        if trouble < 0.12:
            key = self._key(name)
            self.refusable.add(name)
            if trouble < 0.07:
                self.database.poison.add(key)
            else:
                self.database.passing[key] = self.rng.randint(1, 6)
        self._key(name)
        return name

    def _key(self, name: str) -> bytes:
        intent = self.intents[name]
        key = self.box.hash_of(intent["operation"], intent["args"], key=name)
        assert key is not None
        self.names[key] = name
        return key

    def _name(self, key: bytes) -> str:
        """Whose key this is; a key of nobody's call gets a name that the checker does not know."""
        if key not in self.names:
            self.names[key] = f"stranger {key.hex()}"
            self.intents[self.names[key]] = {"operation": "write", "args": {}, "order_by": None, "group": None}
        return self.names[key]

    def _record(self, names: list[str]) -> None:
        group = names[0] if len(names) > 1 else None
        for name in names:
            self.intents[name]["group"] = group
        halted = self.box.store.halt_reason is not None
        try:
            if group is None:
                entries = [self._enqueue(self.box, names[0])]
            else:
                with self.box.transaction() as transaction:
                    for name in names:
                        self._enqueue(transaction, name)
                entries = transaction.entries
        except AlreadyRejected as exc:
            # It was stored before, and a refusal of PostgreSQL or an operator has answered it.
            entries = [self.box.lookup(self.intents[name]["operation"], {}, key=name) for name in names]
            if None in entries or exc.seq not in [entry.seq for entry in entries]:
                self.violations.append(f"{names} were called rejected, and are not all there: {exc}")
                return
        except DurabilityError:
            self._say(f"enqueue {names}: {'halted' if halted else 'in doubt'}")
            self.in_doubt.append(names)
            self._tell(names, Told.IN_DOUBT, halted=not halted)
            return
        except Killed:
            self._say(f"enqueue {names}: killed before it returned")
            self.in_doubt.append(names)
            self._tell(names, Told.IN_DOUBT)
            raise
        if self.environment.failed:
            self.violations.append(f"{names} were acknowledged although a durable write had failed before")
        self._say(f"enqueue {names}: {[entry.seq for entry in entries]}")
        self._tell(names, Told.ACKNOWLEDGED, seqs=[entry.seq for entry in entries])

    def _enqueue(self, to: Any, name: str) -> Any:
        intent = self.intents[name]
        return to.enqueue(intent["operation"], intent["args"], key=name, order_by=intent["order_by"])

    def _tell(self, names: list[str], told: Told, *, seqs: list[int] | None = None, halted: bool = False) -> None:
        for at, name in enumerate(names):
            intent = self.intents[name]
            self.history.append(
                Call(
                    key=name, told=told, seq=None if seqs is None else seqs[at],
                    group=intent["group"], halted=halted,
                )
            )  # fmt: skip

    def doom(self) -> None:
        """The process will be killed in the middle of its next durable write, whatever that is."""
        self.fail_disk()
        self.environment.kill_next = True

    def fail_disk(self) -> None:
        """The next durable write fails; the program goes on until somebody restarts it."""
        self.environment.fail_next = self.rng.choice(("lost", "kept"))
        self._say(f"the next write fails and is {self.environment.fail_next}")

    def fill_disk(self) -> None:
        """The disk fills up, or somebody makes room."""
        self.environment.full = not self.environment.full
        self._say(f"the disk {'is full' if self.environment.full else 'has room'}")

    def forget(self) -> None:
        """PostgreSQL is set back: an older backup is restored, or a standby that lagged is promoted."""
        lost = self.database.restore()
        self.forgotten |= {self._name(key) for key in lost}
        self._say(f"PostgreSQL forgets {sorted(self._name(key) for key in lost)}")

    def truncate(self) -> None:
        """Somebody empties the receipts, or an operator puts them back."""
        if self.database.state.emptied:
            self.database.refill()
            self._say("the receipts are put back")
        else:
            self.database.truncate()
            self._say("the receipts are emptied")

    def give_up(self) -> None:
        """An operator discards a pending entry, in the middle of a delivery or between two."""
        if self.rng.random() < 0.3:
            self.target.meanwhile = self.rng.random() < 0.5, self._give_up
            self.step()
            self.target.meanwhile = None
        else:
            self._give_up()

    def _give_up(self) -> None:
        pending = list(self.box.store.records("pending"))
        if not pending:
            return
        record = self.rng.choice(pending)
        lock = self.relay._delivery._settling._claims
        if isinstance(lock, InDeliveryInMemory) and lock.holds(*members(record)):
            self._say(f"operator: {record.seq} is being delivered")
            return
        self._say(f"operator: discard pending {record.seq}")
        # Where the answer is in doubt, it may have been recorded.
        group = [one for one in pending if one.seq == record.seq or (one.group and one.group == record.group)]
        names = {self._name(one.key) for one in group}
        self.given_up |= names
        audit = answer(DISCARD, {"seq": record.seq, "reason": "given up"}, self.clock.new_id().bytes)
        try:
            self.box.store.withdraw(record.seq, "given up", audit)
        except DurabilityError:
            self._say("the answer could not be recorded")
        else:
            self.recalled |= names - {str(applied.key) for applied in self._effects()}

    def reconcile(self) -> None:
        """An operator puts back what PostgreSQL has forgotten, where an alarm says so."""
        if not self.box.alarms.sounds(FORGOTTEN):
            return
        try:
            self._say(f"operator: reconcile: {self.relay.reconcile().sentence()}")
        except (DurabilityError, TargetUnavailable, TargetMisconfigured) as exc:
            self._say(f"operator: reconcile: {exc}")

    def turn_clock(self) -> None:
        """Somebody sets the wall clock; what must not go back does not."""
        self.clock.turn(self.rng.choice((-7200.0, -1.0, 7200.0)))

    def step(self) -> None:
        """The relay does one step, and some time passes."""
        wait = self.relay.step(self.clock.monotonic())
        self._say(f"step at {self.clock.monotonic():.1f}: next in {wait:.1f} s")
        self.clock.advance(min(wait, 10.0) if self.rng.random() < 0.8 else self.rng.random())

    def second_relay(self) -> None:
        """A relay on a copy of the store, made a moment ago, delivers to the same PostgreSQL at the same time.

        On one store there is only one relay, by its lock; copies meet in PostgreSQL.
        """
        environment = copy.deepcopy(self.environment)
        environment.fail_next, environment.kill_next = None, False
        other = self.relay_class(self._box_on(environment), self._new_target(copied=True))
        inside = self.rng.random() < 0.5
        self.target.meanwhile = inside, lambda: other.step(self.clock.monotonic())
        self.step()
        self.target.meanwhile = None

    def answer(self) -> None:
        """An operator answers a dead letter: mends its cause and tries again, tries again as it is, or gives it up."""
        dead = list(self.box.dead_letters())
        if not dead or self.box.store.halt_reason is not None:
            return
        entry = self.rng.choice(dead)
        choice = self.rng.choice(("mend", "retry", "discard"))
        self._say(f"operator: {choice} {entry.seq}")
        members = [one for one in dead if one.group == entry.group] if entry.group else [entry]
        try:
            if choice == "discard":
                self.box.discard(entry.seq, "given up")
                return
            if choice == "mend":
                for member in members:
                    self.database.poison.discard(bytes.fromhex(member.key))
                    self.database.passing.pop(bytes.fromhex(member.key), None)
            self.box.requeue(entry.seq)
        except DurabilityError:
            self._say("the answer could not be recorded")

    def toggle(self) -> None:
        """PostgreSQL goes away, or comes back."""
        self.database.down = not self.database.down
        self._say(f"PostgreSQL is {'down' if self.database.down else 'up'}")

    def break_operation(self) -> None:
        """A table disappears, or comes back."""
        self.database.broken ^= {self.rng.choice(("write", "note"))}
        self._say(f"PostgreSQL lacks the tables of {sorted(self.database.broken)}")

    def housekeep(self) -> None:
        """Old settled entries are pruned, but not those that this run still asks about."""
        try:
            self.box.compact(timedelta(days=365))
        except OutboxError as exc:
            self._say(f"nothing is pruned: {exc}")

    # -- a whole life

    def run(self) -> list[str]:
        """Live, calm down, and return every violation."""
        self.database.chance = self.rng.choice((0.05, 0.3))
        for _ in range(_ACTIONS):
            self.act()
            if self.box.store.halt_reason is not None and self.rng.random() < 0.2:
                self.restart("the operator restarts a halted program")
        violations = check(self.observe(calm=False)) + self.violations
        if violations:
            return violations
        self._say("calm")
        self.database.chance, self.database.down, self.environment.full = 0.0, False, False
        self.database.broken.clear()
        self.database.refill()
        self.environment.fail_next = None
        if self.rng.random() < 0.5:
            # The others go on with what the relay remembers, and a halted store drains too.
            self.restart("a quiet start")
        self._drain()
        violations = check(self.observe(calm=True))
        # The operator answers everything, and nothing may be left over.
        for entry in list(self.box.dead_letters()):
            if any(entry.seq == dead.seq for dead in self.box.dead_letters()):
                self.database.poison.clear()
                self.database.passing.clear()
                self.box.requeue(entry.seq)
        self._drain()
        if self._pending():
            violations.append("entries are left after every dead letter was answered")
        return violations + check(self.observe(calm=True)) + self.violations

    def _pending(self) -> int:
        return len(self.environment.pending.keys)

    def _known_database(self) -> bool:
        """Whether PostgreSQL shows a lineage that the store remembers."""
        shown = {uuid.UUID(row[1]) for row in self.database.state.watermarks.values()}
        return any(mark.lineage in shown for mark in self.box.store.marks())

    def _drain(self) -> None:
        """Until there is nothing to do, also after the relay has asked PostgreSQL whether it has everything."""
        idle, asked_at = 0, self.clock.monotonic() + _ASKS_S
        for _ in range(_CALM_STEPS):
            if self.config.reconcile == "manual" or not self._known_database():
                # In a database that knows nothing of the store, which may be the wrong one, nothing is automatic.
                self.reconcile()
            pending, wait = self._pending(), self.relay.step(self.clock.monotonic())
            if self.relay._last.caught_up and self.clock.monotonic() >= asked_at:
                break
            idle = 0 if wait or self._pending() < pending else idle + 1
            # With a batch of one it looks at each waiting entry in a step of its own.
            if idle > _IDLE_STEPS + self._pending():
                self.violations.append("the relay is busy with nothing")
                break
            # With nothing to do but to ask, time passes without a step for each look.
            self.clock.advance(max(wait, asked_at - self.clock.monotonic()) if self.relay._last.caught_up else wait)
        breaker = self.relay._delivery.link.breaker
        if breaker.state != CLOSED:
            self.violations.append(f"the breaker is {breaker.state} although all is calm")

    def _check_attempts(self, stored: list[Record]) -> None:
        """No entry counts more attempts than refusals of it or its transaction: an outage counts for nobody."""
        refusals: Counter[int] = Counter()
        for record in stored:
            refusals[record.group or record.seq] += self.database.refusals[record.key]
        for record in stored:
            if record.attempts > refusals[record.group or record.seq]:
                self.violations.append(f"{self._name(record.key)} counts more attempts than it was refused")

    def _check_recalled(self) -> None:
        """Nothing takes effect after an operator was told that it is discarded."""
        late = self.recalled.intersection(str(applied.key) for applied in self._effects())
        self.violations += [f"{name} took effect after it was discarded" for name in sorted(late)]

    def _check_times(self, stored: list[Record]) -> None:
        """Captured times increase with the sequence numbers, whatever the clock does."""
        ordered = sorted(stored, key=lambda record: record.seq)
        if any(earlier.captured_us >= later.captured_us for earlier, later in pairwise(ordered)):
            self.violations.append("captured times do not increase")

    def observe(self, *, calm: bool) -> Observation:
        """Everything that the checker asks for."""
        store = self.box.store
        dead = {seq for seq, _ in store.dead()}
        stored: list[Stored] = []
        records: list[Record] = []
        for name in ("pending", "ledger"):
            for record in store.records(name):
                if record.operation.startswith("outbox."):
                    continue
                if name == "pending":
                    place = Place.PENDING
                elif record.status.value == "COMPLETED":
                    place = Place.COMPLETED
                else:
                    place = Place.DEAD if record.seq in dead else Place.DISCARDED
                records.append(record)
                stored.append(Stored(seq=record.seq, key=self._name(record.key), place=place, reason=record.error))
        self._check_attempts(records)
        self._check_times(records)
        self._check_recalled()
        counters = store.figures().counters
        stored_as = {one.seq: one.key for one in stored}
        return Observation(
            history=self.history,
            stored=stored,
            effects=self._effects(),
            receipts=[self._name(key) for key in [*self.database.state.proofs(), *self.database.doubled]],
            counters={
                "acknowledged": counters.acknowledged, "pending": self._pending(),
                "completed": counters.completed, "dead": counters.dead, "discarded": counters.discarded,
                "quarantined": counters.quarantined,
            },
            unledgered=counters.unledgered,
            refusable=self._refusable() | self.given_up,
            # A relay that is caught up asks for the receipts of what was discarded while it was pending.
            unasked=set() if calm else {stored_as[seq] for seq in store.withdrawn() if seq in stored_as},
            calm=calm,
            held_back=self._held_back(stored),
            # The relay learns of it at its next transaction; in the end nothing may be missing.
            alarmed=set() if calm else self.forgotten,
        )  # fmt: skip

    def _effects(self) -> list[Applied]:
        """What took effect; a best-effort write that was refused holds nobody back, so it may come late."""
        found = []
        for key, order_by in self.database.state.effects:
            name = self._name(key)
            ordered = self.intents[name]["operation"] == "write"
            found.append(Applied(key=name, order_by=order_by if ordered else None))
        return found

    def _refusable(self) -> set[str]:
        """What may be rejected: what PostgreSQL refuses, and the others of its transaction."""
        groups = {self.intents[name]["group"] for name in self.refusable} - {None}
        return self.refusable | {name for name, intent in self.intents.items() if intent["group"] in groups}

    def _held_back(self, stored: list[Stored]) -> set[str]:
        """What may wait for ever: whatever comes behind a dead letter in one of its keys, and so on."""
        blocked: set[str | None] = set()
        held: set[str] = set()
        units: dict[Any, list[Stored]] = {}
        for one in sorted(stored, key=lambda one: one.seq):
            group = self.intents[str(one.key)]["group"]
            units.setdefault(group or one.seq, []).append(one)
        for unit in units.values():
            keys = {self.intents[str(one.key)]["order_by"] for one in unit} - {None}
            places = Counter(one.place for one in unit)
            if places[Place.DEAD]:
                blocked |= keys
            elif places[Place.PENDING] and keys & blocked:
                blocked |= keys
                held |= {str(one.key) for one in unit}
        return held
