"""Audit: compares the ledger with PostgreSQL's receipts and rows.  It changes nothing.

The relay already knows lost commits by its watermarks.  An audit looks at every entry instead, so it also finds rows
that were removed, doubled or changed by something else, and receipts that were taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice

from . import codec
from .box import Outbox
from .clock import SystemClock
from .entry import EntryStatus
from .errors import StoreCorrupt, TargetMisconfigured
from .fate import OperationFault
from .operation import Operation, operations_by_name
from .postgres import receipts
from .postgres.address import Address
from .postgres.connection import GuardedConnection, UnitFailed
from .postgres.rows import RowWriter, Table, json_of, quote, quote_table
from .postgres.sources import VALUE, ColumnType, Source
from .postgres.transaction_settings import Cursor
from .store.envelope import Record, from_us, to_us
from .store.ledger import is_answer
from .words import counted

_TYPES = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"""


@dataclass(frozen=True, slots=True)
class RowCount:
    """What PostgreSQL has of one entry's row."""

    record: Record
    # Rows that equal it in every column that the entry has.
    equal: int
    # How many there must be: as often as the same arguments were applied.
    expected: int
    # Columns that differ, of a row with the same identity.
    differing: tuple[str, ...] = ()


class RowAudit:
    """Compares rows on one connection, in transactions of the caller's."""

    def __init__(self) -> None:
        self._rows = RowWriter()

    def compare(
        self,
        cursor: Cursor,
        operation: Operation,
        names: tuple[str, ...],
        records: Sequence[Record],
        applied: Mapping[bytes, int],
    ) -> Iterator[RowCount]:
        """What there is of each record's row.  All records are of `operation` and have the arguments `names`.

        `applied`: how often each payload was, by any store: receipts are kept longer than the ledger.
        A row is found by the columns of its identity, or by all of its columns where none are declared.
        """
        table = operation.table_path
        self._rows.forget()
        columns = self._rows.columns_of(cursor, table, names)
        cursor.execute(_TYPES, (quote_table(table),))
        types = {str(name): str(kind) for name, kind in cursor.fetchall()}
        declared = operation.identity
        identity = [] if isinstance(declared, str) or callable(declared) else [one for one in declared if one in names]
        for sources, run in self._rows.runs(table, columns, names, records, operation.json_columns):
            query = _query(table, columns, types, names, identity, sources)
            cursor.execute(query, (json_of(run),))
            for number, equal, compared in cursor.fetchall():
                record = run[int(number) - 1]
                same = compared[0] if compared else (True,) * len(names)
                differing = tuple(name for name, one in zip(names, same, strict=True) if not one)
                yield RowCount(record, int(equal), max(1, applied.get(record.payload_hash, 1)), differing)


def _query(
    table: Table,
    columns: Mapping[str, ColumnType],
    types: Mapping[str, str],
    names: Sequence[str],
    identity: Sequence[str],
    sources: Sequence[Source | None],
) -> str:
    """For each entry: its number, how many rows equal it, and, of a row that does not, which columns do.

    Values are compared as text: some types have no equality.  The text of a whole row can be hashed, NULLs included.
    """
    read = [source or Source(columns[name].name) for name, source in zip(names, sources, strict=True)]
    quoted = [quote(name) for name in names]
    values = ", ".join(
        f"CAST({one.expression.replace(VALUE, column)} AS {types[name]}) AS {column}"
        for name, column, one in zip(names, quoted, read, strict=True)
    )
    kinds = ", ".join(f"{column} {one.type}" for column, one in zip(quoted, read, strict=True))
    mine = "CAST(ROW(" + ", ".join(f"entry.{column}" for column in quoted) + ") AS text)"
    theirs = "CAST(ROW(" + ", ".join(f"found.{column}" for column in quoted) + ") AS text)"
    by = [f"found.{quote(name)} = entry.{quote(name)}" for name in identity]
    same = ", ".join(
        f"CAST(found.{column} AS text) IS NOT DISTINCT FROM CAST(entry.{column} AS text)" for column in quoted
    )
    joined = " AND ".join(by) or f"{theirs} = {mine}"
    query = f"""
SELECT outbox_number, count(*) FILTER (WHERE found.outbox_found AND {theirs} = {mine}),
    (array_agg(outbox_same) FILTER (WHERE found.outbox_found AND {theirs} <> {mine}))[1:1]
FROM (
    SELECT outbox_number, {values}
    FROM ROWS FROM (json_to_recordset(\1) AS ({kinds})) WITH ORDINALITY AS row ({", ".join(quoted)}, outbox_number)
) AS entry
LEFT JOIN (SELECT true AS outbox_found, * FROM {quote_table(table)}) AS found ON {joined}
LEFT JOIN LATERAL (SELECT ARRAY[{same}] AS outbox_same) AS compared ON true
GROUP BY outbox_number ORDER BY outbox_number"""
    return query.replace("%", "%%").replace("\1", "%s")


# Entries whose receipts are compared in one transaction of PostgreSQL.
_CHUNK = 1000
# For so many entries, or bytes of arguments, all receipts are read once: how often were their arguments applied?  So is
# each table that has no index on the identity.
_STRETCH = 50_000
_STRETCH_BYTES = 64 << 20
# Further findings are counted and not listed.
_MOST_FINDINGS = 1000

NO_RECEIPT = "no receipt"
OTHER_RECEIPT = "the receipt has other arguments"
ROW_MISSING = "row missing"
ROW_CHANGED = "row changed"
ROW_DOUBLED = "row doubled"
UNREADABLE = "unreadable in the ledger"


@dataclass(frozen=True, slots=True)
class Finding:
    """One entry that PostgreSQL does not have as it was acknowledged."""

    seq: int
    operation: str
    key: str
    captured_at: datetime | None
    problem: str
    detail: str = ""


@dataclass(slots=True)
class Audit:
    """What an audit has compared and found; counts are of entries captured from `since` on."""

    at: datetime
    since: datetime | None
    # Delivered entries in the ledger, each of which must have a receipt.
    delivered: int = 0
    # Of those: entries with a receipt.
    applied: int = 0
    # Of those: entries of table operations, whose rows were compared.
    rows_compared: int = 0
    # Not delivered yet, rejected, and given up: by an operator, or as they were best effort.
    pending: int = 0
    dead_letters: int = 0
    discarded: int = 0
    # How many entries have each problem.
    problems: dict[str, int] = field(default_factory=dict)
    # The first findings, in order.
    findings: list[Finding] = field(default_factory=list)
    # Operations whose rows could not be compared, and why.
    not_compared: dict[str, str] = field(default_factory=dict)

    @property
    def acknowledged(self) -> int:
        """Entries that the store acknowledged and still knows."""
        return self.delivered + self.pending + self.dead_letters + self.discarded + self.problems.get(UNREADABLE, 0)

    @property
    def lost(self) -> int:
        """Delivered entries whose receipt or row is missing."""
        return sum(self.problems.get(name, 0) for name in (NO_RECEIPT, ROW_MISSING))

    @property
    def sound(self) -> bool:
        """Whether PostgreSQL has everything that was delivered, as it was acknowledged."""
        return not self.problems

    def add(self, record: Record, problem: str, detail: str = "") -> None:
        """Count a finding."""
        captured = from_us(record.captured_us)
        self._add(Finding(record.seq, record.operation, record.key.hex(), captured, problem, detail))

    def unreadable(self, seq: int, damage: StoreCorrupt) -> None:
        """Count a record of the ledger that cannot be read."""
        self._add(Finding(seq, "", "", None, UNREADABLE, str(damage)))

    def _add(self, finding: Finding) -> None:
        self.problems[finding.problem] = self.problems.get(finding.problem, 0) + 1
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(finding)


def audit(box: Outbox, url: str, operations: Iterable[Operation], *, since: datetime | None = None) -> Audit:
    """Compare the ledger of `box` with the database at `url`.

    `operations` tell which entries are rows; without them only receipts are compared.  `since` is aware.  Safe beside a
    running engine and relay.  Raises `TargetUnavailable` or `TargetMisconfigured` where PostgreSQL cannot be asked.
    """
    clock = SystemClock()
    done = Audit(at=clock.now(), since=since)
    link = GuardedConnection(Address(url), box.config, clock)
    auditor = _Auditor(done, link, operations_by_name(operations))
    try:
        # An empty ledger must not call a database sound that was not asked.
        auditor.reach()
        ledger = _since(box.store.records("ledger", on_damage=done.unreadable), since)
        while stretch := list(_stretch(ledger)):
            delivered = [record for record in stretch if _is_delivered(box, record, done)]
            applied = auditor.applied(delivered)
            for first in range(0, len(delivered), _CHUNK):
                auditor.compare_receipts(delivered[first : first + _CHUNK])
            # In one piece: without an index each statement reads the whole table.
            auditor.compare_rows(delivered, applied)
    finally:
        link.close()
    done.pending = sum(1 for _ in _since(box.store.records("pending", on_damage=done.unreadable), since))
    return done


def _since(records: Iterator[Record], since: datetime | None) -> Iterator[Record]:
    first_us = 0 if since is None else to_us(since)
    return (record for record in records if record.captured_us >= first_us)


def _stretch(records: Iterator[Record]) -> Iterator[Record]:
    size = 0
    for record in islice(records, _STRETCH):
        yield record
        size += len(record.args) + len(record.types)
        if size > _STRETCH_BYTES:
            return


def _is_delivered(box: Outbox, record: Record, done: Audit) -> bool:
    if is_answer(record):
        return False
    if record.status is EntryStatus.COMPLETED:
        return True
    # A best-effort entry is rejected, too, but given up at once.
    if box.store.is_dead(record.seq):
        done.dead_letters += 1
    else:
        done.discarded += 1
    return False


class _Auditor:
    def __init__(self, done: Audit, link: GuardedConnection, operations: dict[str, Operation]) -> None:
        self._done, self._link, self._operations = done, link, operations
        self._rows = RowAudit()

    def reach(self) -> None:
        """Raise `TargetUnavailable` or `TargetMisconfigured` where PostgreSQL cannot be asked."""
        with self._transaction():
            pass

    def applied(self, records: Sequence[Record]) -> Counter[bytes]:
        """How often the arguments of those whose rows can be compared were applied, by any store.

        Reads all receipts.
        """
        found: Counter[bytes] = Counter()
        hashes = {record.payload_hash for record in records if not self._why_not(record.operation)}
        if hashes:
            with self._transaction() as cursor:
                parts = receipts.parts(cursor) if receipts.is_there(cursor) else []
            for part in parts:
                with self._transaction() as cursor:
                    found.update(receipts.counts(cursor, hashes, part))
        return found

    def _why_not(self, name: str) -> str:
        """Why rows of operation `name` cannot be compared; empty where they can."""
        operation = self._operations.get(name)
        if operation is None:
            return "not declared here"
        if operation.handler is not None:
            return "it has a handler, so only receipts are compared"
        return "its rows may vanish" if operation.may_vanish else ""

    def compare_rows(self, records: Sequence[Record], applied: Mapping[bytes, int]) -> None:
        """Compare the rows of delivered entries; `applied`: how often their arguments were."""
        by_shape = sorted(records, key=lambda record: (record.operation, record.shape))
        for (name, _), run in groupby(by_shape, key=lambda record: (record.operation, record.shape)):
            if why := self._why_not(name):
                self._done.not_compared.setdefault(name, why)
            else:
                self._compare_rows(self._operations[name], list(run), applied)

    def compare_receipts(self, records: Sequence[Record]) -> None:
        """Compare the receipts of one chunk of delivered entries."""
        self._done.delivered += len(records)
        with self._transaction() as cursor:
            if not receipts.is_there(cursor):
                raise TargetMisconfigured(
                    f"this database has no table {receipts.TABLE}, or its role does not find it",
                    hint="check DATABASE_URL and the role's search_path",
                )
            found = receipts.find(cursor, records)
        for record in records:
            receipt = found.get(record.key)
            if receipt is None:
                self._done.add(record, NO_RECEIPT)
            elif receipt[0] != record.payload_hash:
                self._done.add(record, OTHER_RECEIPT)
            else:
                self._done.applied += 1

    def _compare_rows(self, operation: Operation, run: list[Record], applied: Mapping[bytes, int]) -> None:
        names = codec.field_names(run[0].args)
        if not names:
            self._done.not_compared.setdefault(operation.name, "its entries have no arguments")
            return
        try:
            with self._transaction() as cursor:
                counts = list(self._rows.compare(cursor, operation, names, run, applied))
        except (OperationFault, TargetMisconfigured) as exc:
            self._done.not_compared[operation.name] = str(exc)
            return
        self._done.rows_compared += len(run)
        for count in sorted(counts, key=lambda count: count.record.seq):
            self._judge(count)

    def _judge(self, count: RowCount) -> None:
        if count.equal > count.expected:
            self._done.add(
                count.record, ROW_DOUBLED, f"{counted(count.equal, 'row', 'rows')} instead of {count.expected}"
            )
        elif count.equal == 0 and count.differing:
            self._done.add(count.record, ROW_CHANGED, f"in {', '.join(count.differing)}")
        elif count.equal < count.expected:
            self._done.add(
                count.record, ROW_MISSING, f"{counted(count.equal, 'row', 'rows')} instead of {count.expected}"
            )

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        """A transaction that changes nothing, within the stall timeout."""
        try:
            with self._link.translated():
                connection = self._link.get()
                with self._link.guard(), self._link.own_statements(), connection.begin():
                    cursor = self._link.opening_cursor(connection)
                    cursor.execute("SET TRANSACTION READ ONLY")
                    yield cursor
        except UnitFailed as exc:
            raise TargetMisconfigured(str(exc)) from exc
