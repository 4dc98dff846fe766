"""Reconciler: puts back into `pending` what PostgreSQL has forgotten, so that the relay delivers it again.

What is missing is found by comparing the ledger with the receipts.  It goes back to its old sequence numbers before the
line moves on, so nothing overtakes it; its receipts keep what did survive from taking effect twice.  Killed at any
point it starts over: until the end the store remembers the old acknowledgement, which the database still lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice

from . import codec
from .alarms import Alarms
from .box import Outbox
from .continuity import Memory, fingerprint
from .entry import EntryStatus
from .envelope import Record
from .errors import HistoryRewound, InvalidEntry, StoreCorrupt, TargetMisconfigured, TargetUnavailable
from .ledger import RECONCILE, REQUEUE, answer, is_answer
from .reading import FORGOTTEN
from .target import Comparison, Forgetful, Target, Unit, units

_log = logging.getLogger("outbox.reconcile")

# Something is lost that the ledger no longer has.
GONE = "postgresql-forgot-for-good"
_ORDER = "reconcile"
_COMPARED = 500
# Rows of one commit: a writer waits for the whole of it.
_MOVED = 250
_RUN = "run `atb outbox reconcile`"
_RUN_ELSEWHERE = (
    "check DATABASE_URL; if it is right, run `atb outbox reconcile` to deliver the whole ledger there, or "
    "`atb outbox reconcile --accept REASON` to deliver none of it again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an operator asked for: `everything` compares the whole ledger, `accept` re-delivers nothing and says why."""

    everything: bool = False
    accept: str | None = None
    # The loss that it was given for, by what the store remembered; None where the operator waits for the answer.
    marks: str | None = None

    def __post_init__(self) -> None:
        if self.accept is not None and not self.accept.strip():
            raise InvalidEntry(f"reason is {self.accept!r}", hint="say why PostgreSQL may stay as it is")


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """What a reconciliation did."""

    # Sequence number that it began behind: everything up to there is in PostgreSQL.
    settled_seq: int = 0
    compared: int = 0
    # First and last sequence number that was put back, and how many.
    put_back: int = 0
    first_seq: int | None = None
    last_seq: int | None = None
    # Entries that cannot be delivered again, because the ledger no longer has them, or not all of their transaction.
    gone: int = 0
    accepted: str | None = None

    # False: PostgreSQL has all that it acknowledged, and nothing was compared.
    needed: bool = True

    def sentence(self) -> str:
        """What there is to say of it."""
        if not self.needed:
            return "PostgreSQL has everything that it acknowledged"
        if self.accepted is not None:
            return f"PostgreSQL was accepted as it is: {self.accepted}"
        if not self.put_back:
            return f"compared {self.compared} entries, none was missing"
        return (
            f"compared {self.compared} entries, {self.put_back} were missing and were put back "
            f"(first {self.first_seq}, last {self.last_seq})"
        )


class Reconciler:
    """Belongs to the holder of the relay's role; not thread-safe."""

    def __init__(self, box: Outbox, target: Target, memory: Memory) -> None:
        """`memory` is what the target shall know of the store."""
        self._box, self._store = box, box.store
        self._alarms = Alarms(box.store)
        self._target = target if isinstance(target, Forgetful) else None
        self._lost = False
        if self._target is not None:
            self._target.follow(memory)

    def resume(self) -> None:
        """Take up what the last holder of the role left."""
        self._lost = self._target is not None and self._alarms.sounds(FORGOTTEN)

    @property
    def waiting(self) -> bool:
        """Whether PostgreSQL lacks something that has not been put back yet, as far as is known."""
        return self._lost

    @property
    def wanted(self) -> bool:
        """Whether `mend` would do something."""
        return self._target is not None and (self._lost or ordered(self._box))

    def note(self, interruption: Exception | None) -> None:
        """What ended a batch may be a loss: look closer before the next one."""
        if isinstance(interruption, HistoryRewound) and not self._lost:
            _log.critical("PostgreSQL lacks what it had acknowledged", extra={"why": interruption.message})
            self._lost = True

    def probe(self) -> bool:
        """Ask PostgreSQL although nothing is to be delivered; whether it answered that it has everything.

        That it is away is not worth a word.
        """
        if self._target is None or not self._store.marks():
            return False
        for _ in range(2):  # the first may find out that an idle connection has died long ago
            try:
                self.note(self._target.compare(self._store.identity.store_id).loss)
            except (TargetUnavailable, TargetMisconfigured) as exc:
                _log.debug("could not ask whether anything was lost", extra={"error": str(exc)})
            else:
                return not self._lost
        return False

    def mend(self, order: Order | None = None) -> Reconciliation | None:
        """Put back what is missing, where that may be done now; None where there was nothing to do.

        Without `order` an operator's order is looked for in the store.

        Raises `HistoryRewound` while an operator must decide, `TargetUnavailable`, `TargetMisconfigured` or
        `DurabilityError`.
        """
        if self._target is None:
            return None
        # One that is placed from now on is left for the next time: it has not been looked at.
        found = None if order is not None else self._order()
        order = order or found
        if order is None and not self._lost:
            return None
        comparison = self._target.compare(self._store.identity.store_id)
        loss = comparison.loss
        if loss is not None:
            if order is not None and order.marks not in (None, fingerprint(self._store.marks())):
                order = None  # it was given for another loss, or for none
            automatic = self._automatic(comparison, loss)
            self._sound(loss, automatic=automatic)
            if order is None and not automatic:
                if found is not None:
                    withdraw_order(self._box)
                raise _for_operator(loss)
        done = self._run(comparison, loss, order or Order())
        if found is not None:
            withdraw_order(self._box)
        self._healed()
        return done

    def _automatic(self, comparison: Comparison, loss: HistoryRewound) -> bool:
        """Whether nobody needs to be asked: never where it may be the wrong database."""
        wanted = self._box.config.reconcile
        return loss.same_database and (wanted == "auto" or (wanted == "failover" and comparison.failover))

    def _order(self) -> Order | None:
        """What an operator ordered from another process."""
        data = self._store.get_meta(_ORDER)
        return None if data is None else Order(**codec.from_json(data))

    # -- comparing and putting back

    def _run(self, comparison: Comparison, loss: HistoryRewound | None, order: Order) -> Reconciliation:
        if loss is None and not order.everything:
            return Reconciliation(needed=False)
        done = Reconciliation(accepted=order.accept, settled_seq=0 if loss is None else loss.settled_seq)
        if order.accept is None:
            self._put_back(comparison, done, first=1 if order.everything else self._first(done))
            if loss is not None:
                done.gone += self._absent(done.settled_seq, comparison)
        if done.gone:
            self._alarms.sound(
                GONE,
                f"PostgreSQL was set back behind entry {done.settled_seq}, and {done.gone} later entries are not in "
                "the ledger, or not whole: those that it lacks cannot be delivered again. Compare your books, then "
                f"acknowledge this alarm with `atb outbox acknowledge {GONE}`",
            )
        mark = comparison.accept()
        note = {**asdict(done), "why": None if loss is None else loss.message}
        self._store.rebase(mark, answer(RECONCILE, note, self._box.clock.new_id().bytes))
        _log.warning("reconciled with PostgreSQL", extra=note)
        self._box.progress.rewound()
        return done

    def _put_back(self, comparison: Comparison, done: Reconciliation, *, first: int) -> None:
        """Compare the ledger from sequence number `first` on, and move what is missing."""
        moving: list[Record] = []
        for chunk in _chunks(self._completed(first)):
            records = [record for unit in chunk for record in unit]
            missing = {record.seq for record in comparison.missing(records)}
            done.compared += len(records)
            for unit in chunk:
                if not any(record.seq in missing for record in unit):
                    continue
                if unit[0].group and len(unit) != unit[0].members:
                    done.gone += len(unit)
                    continue
                moving += unit
                if len(moving) >= _MOVED:
                    self._move(moving, done)
                    moving = []
        if moving:
            self._move(moving, done)

    def _move(self, records: list[Record], done: Reconciliation) -> None:
        done.put_back += self._store.put_back(records)
        done.first_seq = records[0].seq if done.first_seq is None else done.first_seq
        done.last_seq = records[-1].seq

    def _completed(self, first: int) -> Iterator[Unit]:
        """What PostgreSQL acknowledged, in order, groups whole."""
        for unit in units(self._store.records("ledger", first=first, on_damage=_say)):
            if all(record.status is EntryStatus.COMPLETED and not is_answer(record) for record in unit):
                yield unit

    def _first(self, done: Reconciliation) -> int:
        """Where to begin: a dead letter below may have been requeued, and delivered, later."""
        first = done.settled_seq + 1
        for record in self._store.records("ledger", first=first, on_damage=_say):
            if record.operation == REQUEUE and is_answer(record):
                seq = record.entry().args["seq"]
                try:
                    again = self._store.record("ledger", seq)
                except StoreCorrupt:  # whoever walks over it says so
                    again = None
                    done.gone += seq <= done.settled_seq
                first = min(first, again.group if again is not None and again.group else seq)
        return first

    def _absent(self, settled_seq: int, comparison: Comparison) -> int:
        """How many entries after `settled_seq` the store has no sound copy of, and PostgreSQL is not known to have."""
        absent = self._store.figures().counters.next_seq - 1 - settled_seq
        for name in ("pending", "ledger"):
            absent -= sum(1 for _ in self._store.records(name, first=settled_seq + 1, on_damage=_say))
        absent -= sum(seq > settled_seq for seq, _ in self._store.quarantined())
        if self._store.figures().counters.unledgered:
            bare = (record for record in self._store.without_record() if record.seq > settled_seq)
            while chunk := list(islice(bare, _COMPARED)):
                absent -= len(chunk) - len(comparison.missing(chunk))
        return max(0, absent)

    # -- alarms

    def _sound(self, loss: HistoryRewound, *, automatic: bool) -> None:
        self.note(loss)
        way_out = _RUN if loss.same_database else _RUN_ELSEWHERE
        if automatic:
            way_out = "it is being put back and delivered again"
        self._alarms.sound(FORGOTTEN, f"{loss.message}; nothing is delivered until it is reconciled: {way_out}")

    def _healed(self) -> None:
        self._lost = False
        self._alarms.acknowledge(FORGOTTEN)


def place_order(box: Outbox, order: Order) -> None:
    """Tell the relay of another process to reconcile; it does so at its next try.  Raises `DurabilityError`."""
    given = replace(order, marks=fingerprint(box.store.marks()))
    box.store.put_meta(_ORDER, codec.to_json(asdict(given)), despite_halt=True)


def ordered(box: Outbox) -> bool:
    """Whether an order waits to be carried out."""
    return box.store.get_meta(_ORDER) is not None


def withdraw_order(box: Outbox) -> None:
    """Undo `place_order`.  Raises `DurabilityError`."""
    box.store.delete_meta(_ORDER, despite_halt=True)


def reconciliations(box: Outbox, *, after_seq: int) -> Iterator[Reconciliation]:
    """What was done, of the ledger's records after a sequence number."""
    names = [item.name for item in fields(Reconciliation)]
    for record in box.store.records("ledger", first=after_seq + 1, on_damage=_say):
        if record.operation == RECONCILE and is_answer(record):
            args = record.entry().args
            yield Reconciliation(**{name: args[name] for name in names})


def _chunks(found: Iterator[Unit]) -> Iterator[list[Unit]]:
    """Units in lists of about as many records as are compared at once."""
    chunk: list[Unit] = []
    size = 0
    for unit in found:
        chunk.append(unit)
        size += len(unit)
        if size >= _COMPARED:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _for_operator(loss: HistoryRewound) -> HistoryRewound:
    """The loss with the way out of it."""
    hint = _RUN if loss.same_database else _RUN_ELSEWHERE
    return HistoryRewound(loss.message, settled_seq=loss.settled_seq, same_database=loss.same_database, hint=hint)


def _say(seq: int, damage: StoreCorrupt) -> None:
    _log.error("a settled entry cannot be read", extra={"seq": seq, "why": str(damage)})
