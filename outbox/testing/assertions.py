"""Assertions that PostgreSQL has every entry that the engine was told is durable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

import psycopg2

from outbox.audit import audit
from outbox.box import Outbox
from outbox.entry import Entry, EntryStatus
from outbox.operation import Operation
from outbox.postgres.address import libpq_url
from outbox.postgres.rows import quote_table
from outbox.words import counted

_SHOWN = 10


def assert_delivered_once(
    box: Outbox,
    url: str,
    operations: Iterable[Operation] = (),
    *,
    entries: Iterable[Entry] = (),
    rows: Mapping[str, int] | None = None,
) -> None:
    """Assert that each acknowledged entry took effect in PostgreSQL once.

    Nothing may be pending or rejected, each delivered entry needs its receipt, and each row of an operation with a
    `table` must be there once, unchanged.  Handlers' effects are known to their author only: give the number of `rows`
    that each of their tables must have.

    Args:
        box: the store, open or attached; its relay must have caught up (`Relay.drain`).
        url: the database that the relay delivers into.
        operations: those whose rows are compared; without them only receipts are.
        entries: acknowledged entries that the store must know and have delivered, as `enqueue` returned them.
        rows: the exact number of rows by table.

    Raises:
        AssertionError: with one line for each fault.
        TargetUnavailable, TargetMisconfigured: PostgreSQL cannot be asked.
    """
    found = [*_undelivered(box, entries), *_audited(box, url, operations), *_miscounted(url, rows or {})]
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise AssertionError("not every entry was delivered once:\n" + "\n".join([*found[:_SHOWN], *more]))


def _undelivered(box: Outbox, entries: Iterable[Entry]) -> Iterator[str]:
    told = {entry.seq: entry for entry in entries}
    settled = {entry.seq: entry for entry in box.ledger() if entry.seq in told}
    for seq, entry in told.items():
        known = settled.get(seq)
        if known is None:
            yield f"entry {seq} ({entry.operation}) is not settled"
        elif known.id != entry.id:
            yield f"entry {seq} is another one than the acknowledged one ({entry.operation})"
        elif known.status is not EntryStatus.COMPLETED:
            yield f"entry {seq} ({entry.operation}) is {known.status.value}: {known.error}"


def _audited(box: Outbox, url: str, operations: Iterable[Operation]) -> Iterator[str]:
    declared = list(operations)
    # Of the others only receipts are compared.
    tables = {one.name for one in declared if one.handler is None and not one.may_vanish}
    done = audit(box, url, declared)
    for finding in done.findings:
        detail = f": {finding.detail}" if finding.detail else ""
        yield f"entry {finding.seq} ({finding.operation}): {finding.problem}{detail}"
    for name in sorted(tables & done.not_compared.keys()):
        why = done.not_compared[name]
        yield f"rows of {name} were not compared: {why}"
    for count, state in ((done.pending, "pending"), (done.dead_letters, "dead letters"), (done.discarded, "discarded")):
        if count:
            yield f"{state}: {count}"


def _miscounted(url: str, rows: Mapping[str, int]) -> Iterator[str]:
    if not rows:
        return
    with closing(psycopg2.connect(libpq_url(url))) as connection, connection.cursor() as cursor:
        for table, expected in rows.items():
            path = Operation("rows", table=table).table_path
            cursor.execute(f"SELECT count(*) FROM {quote_table(path)}")  # noqa: S608 - of quoted identifiers only
            [(count,)] = cursor.fetchall()
            if count != expected:
                yield f"table {table} has {counted(count, 'row', 'rows')}, expected {expected}"
