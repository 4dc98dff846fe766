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
from typing import Any

from outbox import DurabilityError, IdempotencyConflict, Outbox, OutboxConfig, Relay
from outbox.counters import Counters
from outbox.envelope import to_us
from outbox.guarded import COUNTERS_KEY
from outbox.store import Store
from tests.faults.invariants import Applied, Call, Observation, Place, Reopened, Stored, Told, check

from .database import OPERATIONS, Database, SimulatedTarget
from .memory import MemoryEnvironment

_ACTIONS = 45
_CALM_STEPS = 400
_ORDER = ("a", "b", "c", None)


class SeededClock:
    """Time that stands still until it is told, and ids from the seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._elapsed = rng, 1000.0

    def monotonic(self) -> float:
        return self._elapsed

    def now(self) -> datetime:
        return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=self._elapsed)

    def random(self) -> float:
        return self._rng.random()

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self._rng.getrandbits(128))

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds


class OpenedInMemory:
    """Stands for `OpenStore`."""

    is_engine = True

    def __init__(self, store: Store) -> None:
        self.store = store

    def close(self) -> None:
        self.store.close()


class UnpublishedRelay(Relay):
    """A relay without files: its role is the simulation's business, and nobody looks from outside."""

    def _take_role(self) -> None:
        pass

    def _leave_role(self) -> None:
        pass

    def _publish(self, now: float, *, force: bool = False) -> None:
        pass


class World:
    """One seed.  `relay_class` and `target_class` are replaced by tests that let a defect loose."""

    relay_class: type[Relay] = UnpublishedRelay
    target_class: type[SimulatedTarget] = SimulatedTarget

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self._say = say or (lambda line: None)
        self.clock = SeededClock(self.rng)
        self.config = OutboxConfig(
            min_free_mb=0, batch_size=self.rng.choice((1, 3, 50)), max_retries=3, backoff_base=0.5, backoff_cap=5.0
        )
        self.environment = MemoryEnvironment(self.clock.new_id())
        self.environment.main.set(COUNTERS_KEY, Counters().pack())
        self.database = Database()
        self.target = self.target_class(self.database, self.rng)
        self.history: list[Call | Reopened] = []
        # Names of intents by idempotency key, and what is known of each: arguments, ordering key, transaction.
        self.names: dict[bytes, str] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.in_doubt: list[list[str]] = []
        self.refusable: set[str] = set()
        self.forgotten: set[str] = set()
        self._number = itertools.count(1)
        self._open()

    # -- the program's life

    def _open(self) -> None:
        self.box = self._box_on(self.environment)
        self.relay = self.relay_class(self.box, self.target)

    def _box_on(self, environment: MemoryEnvironment) -> Outbox:
        store = Store(
            # The part of the interface of an environment that Store uses.
            environment,  # type: ignore[arg-type]
            max_bytes=1 << 40,
            reserve_bytes=0,
            now_us=lambda: to_us(self.clock.now()),
        )
        return Outbox(OpenedInMemory(store), self.config, OPERATIONS, self.clock)  # type: ignore[arg-type]

    def restart(self, why: str) -> None:
        """The process dies and another one opens the store; what was only in memory is gone."""
        self._say(f"restart: {why}")
        self.environment.fail_next = None
        self._open()
        self.history.append(Reopened())

    # -- actions

    def act(self) -> None:
        """Do one thing at random."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (10, self.enqueue), (4, self.transact), (3, self.repeat), (14, self.step), (2, self.answer),
            (1, lambda: self.restart("killed")), (2, self.lose_power), (2, self.fail_disk), (1, self.second_relay),
            (1, self.toggle), (1, self.housekeep),
        ]  # fmt: skip
        self.rng.choices([action for _, action in actions], [weight for weight, _ in actions])[0]()

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
        except (IdempotencyConflict, DurabilityError) as exc:
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
        key = self.box._hash(self.box.operations[intent["operation"]], intent["operation"], intent["args"], name)
        assert key is not None
        self.names[key] = name
        return key

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
        except DurabilityError:
            self._say(f"enqueue {names}: {'halted' if halted else 'in doubt'}")
            self.in_doubt.append(names)
            self._tell(names, Told.IN_DOUBT, halted=not halted)
            return
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

    def lose_power(self) -> None:
        """The process dies in the middle of an enqueue, which may have been stored or not."""
        names = [self._intent() for _ in range(self.rng.randint(1, 2))]
        self.environment.fail_next = self.rng.choice(("lost", "kept"))
        self._record(names)
        self.restart("killed while enqueueing")

    def fail_disk(self) -> None:
        """The next durable write fails; the program goes on until somebody restarts it."""
        self.environment.fail_next = self.rng.choice(("lost", "kept"))
        self._say(f"the next write fails and is {self.environment.fail_next}")

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
        environment.fail_next = None
        other = self.relay_class(self._box_on(environment), self.target)
        self.target.meanwhile = lambda: other.step(self.clock.monotonic())
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
        self.target.down = not self.target.down
        self._say(f"PostgreSQL is {'down' if self.target.down else 'up'}")

    def housekeep(self) -> None:
        """Old settled entries are pruned, but not those that this run still asks about."""
        self.box.compact(timedelta(days=365))

    # -- a whole life

    def run(self) -> list[str]:
        """Live, calm down, and return every violation."""
        self.target.chance = self.rng.choice((0.05, 0.3))
        for _ in range(_ACTIONS):
            self.act()
            if self.box.store.halt_reason is not None and self.rng.random() < 0.2:
                self.restart("the operator restarts a halted program")
        violations = check(self.observe(calm=False))
        if violations:
            return violations
        self._say("calm")
        self.target.chance, self.target.down = 0.0, False
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
        if self.box.store.figures().pending:
            violations.append("entries are left after every dead letter was answered")
        return violations + check(self.observe(calm=True))

    def _drain(self) -> None:
        for _ in range(_CALM_STEPS):
            wait = self.relay.step(self.clock.monotonic())
            if self.relay._caught_up:
                return
            self.clock.advance(wait)

    def observe(self, *, calm: bool) -> Observation:
        """Everything that the checker asks for."""
        store = self.box.store
        dead = {seq for seq, _ in store.dead()}
        stored: list[Stored] = []
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
                stored.append(Stored(seq=record.seq, key=self.names[record.key], place=place, reason=record.error))
        counters = store.figures().counters
        return Observation(
            history=self.history,
            stored=stored,
            effects=self._effects(),
            receipts=[self.names[key] for key in self.database.receipts],
            counters={
                "acknowledged": counters.acknowledged, "pending": store.figures().pending,
                "completed": counters.completed, "dead": counters.dead, "discarded": counters.discarded,
                "quarantined": counters.quarantined,
            },
            unledgered=counters.unledgered,
            refusable=self._refusable(),
            calm=calm,
            held_back=self._held_back(stored),
            alarmed=self.forgotten,
        )  # fmt: skip

    def _effects(self) -> list[Applied]:
        """What took effect; a best-effort write that was refused holds nobody back, so it may come late."""
        found = []
        for key, order_by in self.database.effects:
            name = self.names[key]
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
