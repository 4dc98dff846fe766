"""Reconciler: puts entries that PostgreSQL lost back into `pending`, so that the relay delivers them again.

What is missing is found by comparing the ledger with the receipts.  It goes back to its old sequence numbers before the
line moves on, so nothing overtakes it; its receipts keep what did survive from taking effect twice.  Killed at any
point it starts over: until the end the store remembers the old acknowledgement, which the database still lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from typing import Any

from ..box import Outbox
from ..entry import EntryStatus
from ..errors import HistoryRewound, OutboxError, StoreCorrupt, TargetUnavailable
from ..log import Log
from ..monitoring.notices import Alarms
from ..store.continuity import Memory, fingerprint
from ..store.envelope import Counters, Record, to_us
from ..store.environment import Environment
from ..store.ledger import COPIED, RECONCILE, REQUEUE, answer, is_answer, note
from ..store.reads import FORGOTTEN, PLACES
from ..target import Comparison, Forgetful, Target, Unit, units
from ..words import counted
from .reconcile_orders import ReconcileOrder, Reconciliation, given_order, say, withdraw_order

_log = Log("outbox.reconcile")

# Something is lost that the ledger no longer has.
GONE = "postgresql-forgot-for-good"
# PostgreSQL has the work of a copy of this store, and deliveries go on.
COPY = "store-copied"
# What is noted of entries that came back to old places: a later loss must look for them there.
_CAME_BACK = frozenset({REQUEUE, RECONCILE, COPIED})
_COMPARED = 500
# Rows of one commit: an enqueue waits until it ends.
_MOVED = 250
_RUN = "run `atb outbox reconcile`"
_RUN_FOR_COPY = "stop the copy, if one runs; enter what was enqueued since this one was made; then run `{}`"
_RUN_ELSEWHERE = (
    "check DATABASE_URL; if it is right, run `atb outbox reconcile` to deliver the whole ledger there, or "
    "`atb outbox reconcile --accept REASON` to deliver none of it again"
)


class Reconciler:
    """Belongs to the holder of the relay's role; not thread-safe."""

    def __init__(self, box: Outbox, target: Target, memory: Memory) -> None:
        """`memory` is what the target shall know of the store."""
        self._box, self._store = box, box.store
        self._alarms = Alarms(box.store)
        self._target = target if isinstance(target, Forgetful) else None
        # Whether PostgreSQL can be compared at all.
        self.able = self._target is not None
        # Whether PostgreSQL lacks something that has not been put back yet, as far as is known.
        self.waiting = False
        # Whether sequence numbers are above those of a copy of the store, as far as it was known then.
        self._risen = False
        if self._target is not None:
            self._target.follow(memory)

    def resume(self) -> None:
        """Take up what the last holder of the role left."""
        # What this one knew stays: its alarm comes with the second step, and the role may be held for one step only.
        self.waiting |= self._target is not None and self._alarms.sounds(FORGOTTEN)

    def note(self, interruption: Exception | None) -> None:
        """What ended a batch may be a loss: look closer before the next one."""
        if isinstance(interruption, HistoryRewound) and not self.waiting:
            _log.critical("deliveries stop: %(why)s", why=interruption.message)
            self.waiting = True

    def probe(self) -> bool:
        """Ask PostgreSQL although nothing is to be delivered; whether it answered that it has everything.

        Raises `TargetUnavailable` or `TargetMisconfigured`.
        """
        if self._target is None:
            return False
        try:
            comparison = self._target.compare(self._store.identity.store_id)
        except TargetUnavailable:  # perhaps only an idle connection that has died long ago
            comparison = self._target.compare(self._store.identity.store_id)
        self.note(comparison.loss)
        if not self.waiting:
            self._remember(comparison)
        return not self.waiting

    def confirm_withdrawn(self) -> bool:
        """Ask PostgreSQL whether what was discarded while it was pending had been applied all the same.

        Whether that is known now; not while a loss waits to be put back, which comes first.  Raises
        `TargetUnavailable`, `TargetMisconfigured` or `DurabilityError`.
        """
        seqs = self._store.withdrawn() if self._target is not None else []
        if self._target is None or not seqs:
            return True
        found = [self._store.record("ledger", seq) for seq in seqs]
        records = [record for record in found if record is not None]
        comparison = self._target.compare(self._store.identity.store_id)
        if comparison.loss is not None:
            self.note(comparison.loss)
            return False
        never = {record.seq for record in comparison.never_applied(records)} if records else set()
        applied = {record.seq for record in records} - never
        self._store.confirm_withdrawn(seqs, applied)
        for seq in sorted(applied):
            _log.warning("entry %(seq)s had been applied before it was discarded; it counts as completed", seq=seq)
        return True

    def mend(self, order: ReconcileOrder | None = None) -> Reconciliation | None:
        """Put back what is missing, where that may be done now; None where there was nothing to do.

        Without `order` an operator's order is looked for in the store.

        Raises `HistoryRewound` while an operator must decide, `TargetUnavailable`, `TargetMisconfigured` or
        `DurabilityError`.
        """
        if self._target is None:
            return None
        # One that is placed from now on is left for the next time: it has not been looked at.
        found = None if order is not None else given_order(self._box)
        order = order or (None if found is None else found[0])
        if order is None and not self.waiting:
            return None
        comparison = self._target.compare(self._store.identity.store_id)
        loss = comparison.loss
        if loss is not None:
            if order is not None and order.marks not in (None, fingerprint(self._store.marks())):
                order = None  # it was given for another loss, or for none
            before = self._elsewhere(comparison)
            automatic = before is None and self._automatic(comparison, loss)
            way_out = _way_out(loss, before)
            self._sound(loss, "it is being put back and delivered again" if automatic else way_out)
            if order is None and not automatic:
                if loss.of_a_copy and not self._risen:
                    self._rise_above(comparison)
                    self._risen = True
                if found is not None:
                    withdraw_order(self._box, found[1])
                raise _for_operator(loss, way_out)
            if loss.of_a_copy and order is None:
                # It was put back without an operator's order, and one must learn of the copy.
                self._alarms.sound(COPY, f"{loss.message}; {_RUN_FOR_COPY.format(f'atb outbox acknowledge {COPY}')}")
        done = self._run(comparison, loss, order or ReconcileOrder())
        if found is not None:
            withdraw_order(self._box, found[1])
        self._remember(comparison)
        self._healed()
        return done

    def _automatic(self, comparison: Comparison, loss: HistoryRewound) -> bool:
        """Whether no operator needs to decide: never where it may be the wrong database."""
        wanted = self._box.config.reconcile
        return loss.same_database and (wanted == "auto" or (wanted == "failover" and comparison.failover))

    def _elsewhere(self, comparison: Comparison) -> str | None:
        """Where the database was, if the address names none that was taken as it is before.

        A copy for tests, made from a snapshot, looks like the database after a restored backup.
        """
        try:
            before = {*(self._store.get_meta(PLACES) or b"").decode().split("\n")} - {""}
        except StoreCorrupt:
            return None
        known = before and comparison.places
        return None if not known or before & comparison.places else ", ".join(sorted(before))

    def _remember(self, comparison: Comparison) -> None:
        """Keep where the database is, which has everything; best effort."""
        here = "\n".join(sorted(comparison.places)).encode()
        with suppress(OutboxError):
            if here and self._store.get_meta(PLACES) != here:
                self._store.put_meta(PLACES, here, despite_halt=True)

    # -- comparing and putting back

    def _run(self, comparison: Comparison, loss: HistoryRewound | None, order: ReconcileOrder) -> Reconciliation:
        if loss is None and not order.everything:
            return Reconciliation(needed=False)
        done = Reconciliation(accepted=order.accept, settled_seq=0 if loss is None else loss.settled_seq)
        of_a_copy = loss is not None and loss.of_a_copy
        if of_a_copy:
            self._rise_above(comparison, for_good=True)
        if order.accept is None:
            everything = order.everything or of_a_copy
            self._put_back(comparison, done, first=1 if everything else self._first(done))
            if loss is not None and not of_a_copy:
                done.gone += self._absent(done.settled_seq, comparison)
        if done.gone:
            later = counted(done.gone, "later entry is", "later entries are")
            self._alarms.sound(
                GONE,
                f"PostgreSQL was set back behind entry {done.settled_seq}, and {later} not in the ledger, "
                "or incomplete there: those that it lacks cannot be delivered again. Compare your books, then "
                f"acknowledge this alarm with `atb outbox acknowledge {GONE}`",
            )
        mark = comparison.accept()
        # One that was killed may have put back others.
        late = self._store.late()
        said = {**asdict(done), "lowest": late and late[0], "why": None if loss is None else loss.message}
        self._store.rebase(mark, self._note(RECONCILE, said))
        _log.warning(
            "reconciled with PostgreSQL after entry %(settled_seq)s: entries compared: %(compared)s, put back to be "
            "delivered again: %(put_back)s, lost for good: %(gone)s; the loss: %(why)s; accepted because: %(accepted)s",
            settled_seq=done.settled_seq,
            compared=done.compared,
            put_back=done.put_back,
            gone=done.gone,
            why=said["why"] or "none was noticed",
            accepted=order.accept or "not accepted",
        )
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
        """The entries that PostgreSQL acknowledged, in order, groups undivided."""
        for unit in units(self._store.records("ledger", first=first, on_damage=say)):
            if all(record.status is EntryStatus.COMPLETED and not is_answer(record) for record in unit):
                yield unit

    def _first(self, done: Reconciliation) -> int:
        """Where to begin: an entry below may have been put back, and delivered, later."""
        first = done.settled_seq + 1
        late = self._store.late()
        places = [late[0]] if late is not None and late[1] >= first else []
        places += [seq for args in self._notes(first) if (seq := _lowest(args)) is not None]
        for seq in places:
            try:
                again = self._store.record("ledger", seq)
            except StoreCorrupt:  # the next walk over the ledger reports it
                again = None
                done.gone += seq <= done.settled_seq
            first = min(first, again.group if again is not None and again.group else seq)
        return first

    def _notes(self, first: int) -> Iterator[Mapping[str, Any]]:
        """What was noted from sequence number `first` on of entries that came back to old places."""
        for record in self._store.records("ledger", first=first, on_damage=say):
            if record.operation in _CAME_BACK and is_answer(record):
                yield record.entry().args

    def _note(self, name: str, args: dict[str, Any]) -> Record:
        return answer(name, args, self._box.clock.new_id().bytes)

    def _rise_above(self, comparison: Comparison, *, for_good: bool = False) -> None:
        """Go on with numbers that no entry in PostgreSQL has, where a copy of this store has delivered there.

        Entries of this store that have such numbers already keep them: PostgreSQL identifies entries by their keys.
        """
        seen, first = comparison.seen(), self._store.watermark() + 1

        def rise(environment: Environment, txn: Any, counters: Counters) -> None:
            unused = range(counters.next_seq, max(counters.next_seq, seen + 1))
            if not unused and not for_good:
                return
            counters.next_seq = unused.stop
            # Rows of the copy claim that these are settled, should PostgreSQL be set back to one of them.
            args = {"lowest": min(first, unused.start), "unused_from": unused.start, "unused_to": unused.stop}
            note(environment, txn, counters, self._note(COPIED, args), to_us(self._box.clock.now()))

        self._store.maintain("rise above what PostgreSQL has seen", rise)

    def _absent(self, settled_seq: int, comparison: Comparison) -> int:
        """How many entries after `settled_seq` the store has no sound copy of, and PostgreSQL is not known to have."""
        absent = self._store.figures().counters.next_seq - 1 - settled_seq
        for args in self._notes(settled_seq + 1):
            if "unused_to" in args:
                absent -= max(0, args["unused_to"] - max(args["unused_from"], settled_seq + 1))
        for name in ("pending", "ledger"):
            absent -= sum(1 for _ in self._store.records(name, first=settled_seq + 1, on_damage=say))
        absent -= sum(seq > settled_seq for seq, _ in self._store.quarantined())
        if self._store.figures().counters.unledgered:
            bare = (record for record in self._store.without_record() if record.seq > settled_seq)
            while chunk := list(islice(bare, _COMPARED)):
                absent -= len(chunk) - len(comparison.missing(chunk))
        return max(0, absent)

    # -- alarms

    def _sound(self, loss: HistoryRewound, way_out: str) -> None:
        self.note(loss)
        self._alarms.sound(FORGOTTEN, f"{loss.message}; nothing is delivered until it is reconciled: {way_out}")

    def _healed(self) -> None:
        self.waiting = self._risen = False
        self._alarms.acknowledge(FORGOTTEN)


def _lowest(args: Mapping[str, Any]) -> int | None:
    """The lowest place that entries came back to, by a note; an older version noted less."""
    found = args.get("lowest", args.get("seq"))
    return args.get("first_seq") if found is None else found


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


def _for_operator(loss: HistoryRewound, way_out: str) -> HistoryRewound:
    """The loss with the way out of it."""
    return HistoryRewound(
        loss.message,
        settled_seq=loss.settled_seq,
        same_database=loss.same_database,
        of_a_copy=loss.of_a_copy,
        hint=way_out,
    )


def _way_out(loss: HistoryRewound, before: str | None) -> str:
    """What an operator does; `before`: where the database was, if it is elsewhere now."""
    if loss.of_a_copy:
        return _RUN_FOR_COPY.format("atb outbox reconcile")
    if not loss.same_database:
        return _RUN_ELSEWHERE
    return _RUN if before is None else f"check DATABASE_URL, which was {before}; if it is right now, {_RUN}"
