"""What becomes of one damaged store: opened like an engine opens it, and salvaged like an operator does."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from outbox import (
    ConfigError,
    IdempotencyConflict,
    Operation,
    Outbox,
    OutboxError,
    Relay,
    StoreCorrupt,
    StoreFormatError,
    StoreMissing,
)
from outbox.box import LEDGER_DAMAGED
from outbox.clock import SystemClock
from outbox.rescue import verify
from outbox.store.entry_json import State, from_object
from outbox.store.envelope import Record, key_seq
from outbox.store.key_row import place_of
from outbox.testing import InMemoryTarget
from outbox.transfer import exporting
from outbox.transfer.importing import restore
from tests.unit.fakes.waiting import LONG

from .mutations import Damage, damage
from .template import CONFIG, MARK, METAS, NamingClock, Template, args_of

CLEAN, QUARANTINE, REFUSED = "clean, all right", "quarantine with report", "refused"
# The history is damaged, which a check in the background has reported.
REPORTED = "opened, damaged ledger reported"
# Each so many are verified in a real child, opened again after an import, and so on: slow, and the same each time.
_THOROUGH = 50


@dataclass
class Verdict:
    """The outcome of one mutant; `wrong` is empty unless a promise was broken."""

    number: int
    kind: str
    told: str
    outcome: str = ""
    wrong: list[str] = field(default_factory=list)
    # Of the entries on untouched pages, and of all: how many came out of the export.
    untouched: int = 0
    salvaged: int = 0
    uncertain: int = 0


class Judge:
    """Judges mutants of one template, one after the other, in a folder of its own.  Runs as an engine's process."""

    def __init__(self, template: Template, folder: Path) -> None:
        self._template, self._folder = template, folder
        self._real = verify._own_interpreter

    def judge(self, number: int) -> Verdict:
        """Make, open and salvage mutant `number`."""
        directory = self._folder / f"mutant-{number}"
        shutil.copytree(self._template.directory, directory)
        thorough = number % _THOROUGH == 0
        verify._own_interpreter = self._real if thorough else _no_interpreter
        try:
            done = damage(self._template, directory, number)
            verdict = Verdict(number, done.kind, done.told)
            # Before it is opened, since opening may set damaged records aside.
            exported = self._salvage(directory, done, verdict)
            self._open(directory, verdict)
            if thorough and exported is not None:
                self._import(exported, verdict)
            return verdict
        finally:
            verify._own_interpreter = self._real
            shutil.rmtree(directory)

    # -- as an engine

    def _open(self, directory: Path, verdict: Verdict) -> None:
        try:
            box = Outbox.open(directory, CONFIG, clock=NamingClock())
        except (StoreCorrupt, StoreFormatError, StoreMissing) as exc:
            verdict.outcome = f"{REFUSED}: {type(exc).__name__}"
            if not exc.hint:
                verdict.wrong.append(f"{exc} has no hint")
            return
        with box:
            assert box._opened.history is not None
            assert box._opened.history.wait(LONG)
            if LEDGER_DAMAGED in box.status().alarms:
                # Until then nothing touches the history: there is no relay, and nothing is enqueued.
                verdict.outcome = REPORTED
                return
            damaged = {seq for seq, _, _ in box.store.peek(0, 100_000).damaged}
            verdict.outcome = QUARANTINE if damaged else CLEAN
            self._compare(box, damaged, verdict.wrong)

    def _compare(self, box: Outbox, damaged: set[int], wrong: list[str]) -> None:
        template = self._template

        def expect(what: str, found: object, expected: object) -> None:
            if found != expected:
                wrong.append(f"{what}: {found!r:.300}, expected {expected!r:.300}")

        ledger = {record.seq: record for record in box.store.records("ledger")}
        pending = {record.seq: record for record in box.store.peek(0, 100_000).records}
        known = {seq: record for seq, record in template.records.items() if seq not in damaged}
        expect("records", {**pending, **ledger}, known)
        states = dict.fromkeys(pending, State.PENDING)
        expect("pending", states, {s: state for s, state in template.states.items() if s in pending})
        dead = [seq for seq, _ in box.store.dead()]
        expect("dead letters", dead, [seq for seq, state in template.states.items() if state is State.DEAD])
        for name, value in METAS.items():
            expect(name, box.store.get_meta(name), value)
        expect("marks", box.store.marks(), [MARK])
        figures = box.store.figures().counters
        expect("counters", {name: getattr(figures, name) for name in template.counters}, template.counters)
        self._compare_keys(box, known, damaged, wrong)
        self._deliver(box, damaged, known, wrong)

    def _compare_keys(self, box: Outbox, known: dict[int, Record], damaged: set[int], wrong: list[str]) -> None:
        """A call that repeats an earlier one is recognised; of a damaged entry the key may be damaged too."""
        with box.store._read() as (environment, txn):
            keys = {bytes(key): bytes(value) for key, value in txn.cursor(db=environment.idempotency)}
        both = (self._template.keys, keys)
        expected, found = ({k: v for k, v in some.items() if key_seq(place_of(v)) not in damaged} for some in both)
        if found != expected:
            wrong.append(f"idempotency keys differ: {len(found)}")
        repeated = next(record for record in known.values() if record.operation == "trade" and record.seq % 2)
        if box.store.find(repeated.key) != repeated:
            wrong.append(f"key {repeated.key.hex()} does not lead to entry {repeated.seq}")

    def _deliver(self, box: Outbox, damaged: set[int], known: dict[int, Record], wrong: list[str]) -> None:
        """The relay delivers what waits, sets the damaged aside, and a new entry comes next."""
        new = box.enqueue("trade", args_of(9999), key="new")
        if new.seq != self._template.next_seq:
            wrong.append(f"the next entry got number {new.seq}, expected {self._template.next_seq}")
        delivered: dict[int, Record] = {}
        target = InMemoryTarget([Operation("trade", table="trades")])
        target.before = lambda records: delivered.update({record.seq: record for record in records})
        relay = Relay(box, target)
        # The clock of the store stands still.
        limit = threading.Timer(LONG, relay.stop)
        limit.start()
        try:
            if not relay.drain(20):
                wrong.append("the relay does not come to an end")
        finally:
            limit.cancel()
            relay.stop()
        for seq, record in delivered.items():
            if seq != new.seq and record != known.get(seq):
                wrong.append(f"entry {seq} was delivered otherwise than it was acknowledged")
        status = box.status()
        if status.quarantined != len(damaged) or bool(damaged) != any(
            "quarantined" in s for s in status.needs_operator
        ):
            wrong.append(f"{len(damaged)} entries are damaged, the status says {status.needs_operator}")
        settled = status.completed + status.dead_letters + status.discarded + status.quarantined
        if status.acknowledged != status.pending + settled:
            wrong.append("acknowledged is not pending + completed + dead letters + discarded + quarantined")

    # -- as an operator

    def _salvage(self, directory: Path, done: Damage, verdict: Verdict) -> Path | None:
        """Export, and compare with what was acknowledged."""
        file = self._folder / f"mutant-{verdict.number}.jsonl"
        try:
            with file.open("wb") as out:
                findings = exporting.export(directory, out.write)
        except (StoreCorrupt, StoreMissing) as exc:
            if done.same_file:
                verdict.wrong.append(f"nothing could be exported: {exc}")
            file.unlink()
            return None
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        if lines[-1] != {"kind": "end", "lines": len(lines) - 1}:
            verdict.wrong.append(f"the export ends with {lines[-1]}")
        if done.same_file:
            self._check_salvaged(lines, done, verdict, sound=findings.sound)
        if verdict.number % _THOROUGH:
            file.unlink()
        return file

    def _check_salvaged(self, lines: list[dict[str, object]], done: Damage, verdict: Verdict, *, sound: bool) -> None:
        template, out = self._template, dict[int, State]()
        for line in lines:
            if line["kind"] != "entry":
                continue
            record, state = from_object(line)
            if record.seq in out:
                verdict.wrong.append(f"entry {record.seq} is exported twice")
            out[record.seq] = state
            truth = template.records.get(record.seq) or template.acknowledged.get(record.seq)
            if truth is None or _content(record) != _content(truth):
                verdict.wrong.append(f"entry {record.seq} is exported otherwise than it was acknowledged")
            expected = template.states.get(record.seq)
            if state is not expected:
                verdict.uncertain += 1
                # What is uncertain may be delivered again, and its receipt tells; never the other way round.
                if not line["loose"] and state is not State.DEAD:
                    verdict.wrong.append(f"entry {record.seq} is exported as {state}, and is {expected}")
                if expected is State.PENDING and state is State.COMPLETED:
                    verdict.wrong.append(f"entry {record.seq} is pending and exported as completed")
        safe = {seq for seq, pages in template.pages.items() if not pages & done.touched}
        verdict.untouched, verdict.salvaged = len(safe), len(out.keys() & template.records.keys())
        missing = safe - out.keys()
        if missing:
            verdict.wrong.append(f"entries {sorted(missing)[:10]} lie on untouched pages and were not exported")
        if sound and out != template.states:
            verdict.wrong.append("the store is called sound, and not everything was exported")

    def _import(self, file: Path, verdict: Verdict) -> None:
        """What was exported makes a store that is sound and can be imported again without a change."""
        target = self._folder / f"imported-{verdict.number}"
        try:
            first = restore(file, target, CONFIG, SystemClock())
            again = restore(file, target, CONFIG, SystemClock())
            if again.entries or again.remains:
                verdict.wrong.append(f"importing again brought {again}")
            with Outbox.open(target, CONFIG) as box:
                now = box.status()
                settled = now.completed + now.dead_letters + now.discarded + now.quarantined
                if now.acknowledged != now.pending + settled or now.quarantined != first.remains:
                    verdict.wrong.append(f"the imported store does not add up: {now}")
        except (OutboxError, IdempotencyConflict, ConfigError) as exc:
            verdict.wrong.append(f"what was exported cannot be imported: {exc}")
        finally:
            shutil.rmtree(target, ignore_errors=True)
            file.unlink(missing_ok=True)


def _content(record: Record) -> tuple[object, ...]:
    """What never changes of an entry, whatever becomes of it."""
    return (record.key, record.id, record.operation, record.order_by, record.args, record.types, record.captured_us)


def _no_interpreter() -> None:
    """Let the verification fork, which does not have to start an interpreter."""


def table(verdicts: list[Verdict]) -> str:
    """Outcomes by kind of damage, for people."""
    outcomes = sorted({verdict.outcome for verdict in verdicts})
    kinds = sorted({verdict.kind for verdict in verdicts})
    count = Counter((verdict.kind, verdict.outcome) for verdict in verdicts)
    width = max(map(len, [*kinds, "total"]))
    rows = [[kind, *(str(count[kind, outcome]) for outcome in outcomes)] for kind in kinds]
    totals = Counter(verdict.outcome for verdict in verdicts)
    rows.append(["total", *(str(totals[outcome]) for outcome in outcomes)])
    head = "  ".join([" " * width, *outcomes])
    sizes = [width, *map(len, outcomes)]

    def aligned(row: list[str]) -> str:
        cells = zip(row[1:], sizes[1:], strict=True)
        return "  ".join([f"{row[0]:<{width}}", *(f"{cell:>{size}}" for cell, size in cells)])

    return "\n".join([head, *map(aligned, rows)])
