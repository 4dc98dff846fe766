"""The invariants: what must hold of every outbox, whatever happened to it.  One checker for all tests.

It takes plain data (what callers were told, what the store holds, what PostgreSQL holds), so that it judges real
processes on a real PostgreSQL and a simulation in memory alike.  `check` returns one sentence for each violation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise


class Told(Enum):
    """What a caller knows of its own call."""

    ACKNOWLEDGED = "acknowledged"
    # A `DurabilityError` that is not a `StoreFull`, or the process died before the call returned.
    IN_DOUBT = "in doubt"
    # `StoreFull`, `InvalidEntry` and their like: certainly not stored.
    REFUSED = "refused"


class Place(Enum):
    """Where the store has an entry."""

    PENDING = "pending"
    COMPLETED = "completed"
    # Rejected, and waiting for an operator.
    DEAD = "dead"
    # Given up by an operator, or best effort and rejected.
    DISCARDED = "discarded"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `enqueue`, or one entry of a transaction, as its caller saw it."""

    # Names the intent: a repeated call has the same one, an effect in PostgreSQL tells whose it is.
    key: Hashable
    told: Told
    # Known when it was acknowledged.
    seq: int | None = None
    order_by: str | None = None
    # Names the transaction: its calls are stored and applied all or none.
    group: Hashable = None
    # Whether a `DurabilityError` ended it: from then on nothing may be acknowledged.
    halted: bool = False


@dataclass(frozen=True)
class Reopened:
    """The store was closed and opened again: enqueueing may work again, provided that this verified the store."""

    verified: bool = True


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One entry in the store."""

    seq: int
    key: Hashable
    place: Place
    # Why it was rejected.
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Applied:
    """One effect in PostgreSQL.  Given in the order in which they took effect."""

    key: Hashable
    order_by: str | None = None


@dataclass(kw_only=True)
class Observation:
    """All that is known in the end."""

    # Calls, in the order in which they ended, and the times when the store was opened again.
    history: Sequence[Call | Reopened]
    stored: Sequence[Stored]
    effects: Sequence[Applied]
    # The keys that have a receipt, as often as they have one.
    receipts: Sequence[Hashable]
    # `acknowledged` and the number of entries in each place, by the store's own counters; None: not looked at.
    counters: dict[str, int] | None = None
    # Completed without a ledger copy, by the store's own counter: so many may be in no place.
    unledgered: int = 0
    # The keys that PostgreSQL had a reason to refuse.
    refusable: Collection[Hashable] = ()
    # Whether the faults have stopped and the relay has had the time to deliver.
    calm: bool = False
    # Keys of entries that were discarded while they were pending, and for whose receipts no relay has asked yet.
    unasked: Collection[Hashable] = ()
    # Keys of entries that wait behind a dead letter.
    held_back: Collection[Hashable] = ()
    # Whether a relay is really running.
    relay_runs: bool = True
    # What the status says needs attention.
    findings: Sequence[str] = ()
    # Keys of entries that PostgreSQL acknowledged and then forgot, and for which an alarm is up.
    alarmed: Collection[Hashable] = ()


def check(seen: Observation) -> list[str]:
    """Every violation; empty when all is as promised."""
    calls = [event for event in seen.history if isinstance(event, Call)]
    return [
        *_stored_once(seen, calls),
        *_groups_whole(seen, calls),
        *_counted(seen),
        *_proved(seen),
        *_one_effect(seen, calls),
        *_ordered(seen, calls),
        *_halted(seen),
        *_nothing_dropped(seen),
        *_drained(seen),
        *_visible(seen),
    ]


def _stored_once(seen: Observation, calls: list[Call]) -> Iterator[str]:
    """Acknowledged = pending + completed + dead + discarded + quarantined; a failed call appears at most once."""
    places = Counter(entry.key for entry in seen.stored)
    seqs = {entry.key: entry.seq for entry in seen.stored}
    told: dict[Hashable, set[Told]] = defaultdict(set)
    numbers: dict[Hashable, set[int]] = defaultdict(set)
    for call in calls:
        told[call.key].add(call.told)
        if call.seq is not None:
            numbers[call.key].add(call.seq)
    missing = [key for key, answers in told.items() if Told.ACKNOWLEDGED in answers and not places[key]]
    # Without a ledger copy a completed entry leaves no trace here, but has its receipt.
    proved = set(seen.receipts)
    yield from (f"{key} was acknowledged and is nowhere" for key in missing if key not in proved)
    uncopied = sum(key in proved for key in missing)
    if uncopied > seen.unledgered:
        yield f"{uncopied} entries have no ledger copy, and the store says {seen.unledgered}"
    for key, count in places.items():
        answers = told.get(key, set())
        if count > 1:
            yield f"{key} is in the store {count} times"
        if answers <= {Told.REFUSED}:
            yield f"{key} is in the store and was {'refused' if answers else 'never enqueued'}"
    for key, known in numbers.items():
        if len(known) > 1:
            yield f"{key} was acknowledged under several sequence numbers: {sorted(known)}"
        elif key in seqs and seqs[key] not in known:
            yield f"{key} was acknowledged as {min(known)} and is stored as {seqs[key]}"
    for seq, count in Counter(entry.seq for entry in seen.stored).items():
        if count > 1:
            yield f"sequence number {seq} is in the store {count} times"


def _groups_whole(seen: Observation, calls: list[Call]) -> Iterator[str]:
    """A transaction is stored all or none, and applied all or none."""
    members: dict[Hashable, set[Hashable]] = defaultdict(set)
    for call in calls:
        if call.group is not None:
            members[call.group].add(call.key)
    where: tuple[tuple[str, set[Hashable]], ...] = (("applied", {effect.key for effect in seen.effects}),)
    if not seen.unledgered:
        where = (("stored", {entry.key for entry in seen.stored}), *where)
    for group, keys in members.items():
        for verb, present in where:
            if keys & present and not keys <= present:
                yield f"of transaction {group} only {len(keys & present)} of {len(keys)} entries are {verb}"


def _counted(seen: Observation) -> Iterator[str]:
    """The store's counters agree with what is in it."""
    if seen.counters is None:
        return
    found = Counter(entry.place for entry in seen.stored)
    found[Place.COMPLETED] += seen.unledgered
    for place in Place:
        if seen.counters[place.value] != found[place]:
            yield f"the store counts {seen.counters[place.value]} {place.value} and has {found[place]}"
    total = sum(seen.counters[place.value] for place in Place)
    if seen.counters["acknowledged"] != total:
        yield f"the store counts {seen.counters['acknowledged']} acknowledged and accounts for {total}"


def _proved(seen: Observation) -> Iterator[str]:
    """Completed is in PostgreSQL with a receipt, or an alarm is up; what was refused is not; receipts have effects."""
    effects, receipts = Counter(effect.key for effect in seen.effects), Counter(seen.receipts)
    for entry in seen.stored:
        pair = effects[entry.key], receipts[entry.key]
        if entry.place is Place.COMPLETED:
            right = pair == (1, 1) or entry.key in seen.alarmed
        elif entry.place in (Place.DEAD, Place.DISCARDED) and entry.key not in seen.unasked:
            right = pair == (0, 0)
        else:
            right = pair in ((0, 0), (1, 1))
        if not right:
            yield f"{entry.key} is {entry.place.value} and has {pair[0]} effects and {pair[1]} receipts"


def _one_effect(seen: Observation, calls: list[Call]) -> Iterator[str]:
    """At most one effect per key, each with its receipt, none that nobody asked for."""
    wanted = {call.key for call in calls if call.told is not Told.REFUSED}
    receipts = Counter(seen.receipts)
    for key, count in Counter(effect.key for effect in seen.effects).items():
        if count > 1:
            yield f"{key} took effect {count} times"
        if key not in wanted:
            yield f"{key} took effect and was never enqueued"
        if not receipts[key]:
            yield f"{key} took effect without a receipt"
    effects = {effect.key for effect in seen.effects}
    for key, count in receipts.items():
        if count > 1:
            yield f"{key} has {count} receipts"
        if key not in effects:
            yield f"{key} has a receipt and no effect"


def _ordered(seen: Observation, calls: list[Call]) -> Iterator[str]:
    """For each ordering key, effects in the order of the sequence numbers, and those in the order of the calls."""
    seqs = {entry.key: entry.seq for entry in seen.stored}
    seqs |= {call.key: call.seq for call in calls if call.seq is not None}
    keys: dict[str, list[Hashable]] = defaultdict(list)
    for effect in seen.effects:
        if effect.order_by is not None and effect.key in seqs:
            keys[effect.order_by].append(effect.key)
    for order_by, applied in keys.items():
        for earlier, later in pairwise(applied):
            if seqs[earlier] > seqs[later]:
                yield f"{order_by}: {later} took effect after {earlier}, and was enqueued before it"


def _halted(seen: Observation) -> Iterator[str]:
    """After the first durability error nothing is acknowledged until the store was opened again and verified."""
    halted: Hashable = None
    for event in seen.history:
        if isinstance(event, Reopened):
            if halted is not None and not event.verified:
                yield f"the store was opened again after {halted} failed and was not verified"
            halted = None
        elif event.halted:
            halted = event.key
        elif halted is not None and event.told is Told.ACKNOWLEDGED:
            yield f"{event.key} was acknowledged although {halted} had failed before"


def _nothing_dropped(seen: Observation) -> Iterator[str]:
    """Rejected is only what PostgreSQL had a reason to refuse, and the reason is kept."""
    for entry in seen.stored:
        if entry.place in (Place.DEAD, Place.DISCARDED):
            if entry.key not in seen.refusable:
                yield f"{entry.key} is {entry.place.value} and nothing was wrong with it: {entry.reason}"
            elif not entry.reason:
                yield f"{entry.key} is {entry.place.value} without a reason"


def _drained(seen: Observation) -> Iterator[str]:
    """Once the faults have stopped, nothing waits but what is behind a dead letter."""
    if seen.calm:
        for entry in seen.stored:
            if entry.place is Place.PENDING and entry.key not in seen.held_back:
                yield f"{entry.key} still waits although all is calm"


def _visible(seen: Observation) -> Iterator[str]:
    """A relay that does not run while entries wait is seen in the status."""
    waiting = sum(entry.place is Place.PENDING for entry in seen.stored)
    if waiting and not seen.relay_runs and not any("relay" in finding for finding in seen.findings):
        yield f"no relay runs, {waiting} entries wait, and the status says only: {list(seen.findings)}"
