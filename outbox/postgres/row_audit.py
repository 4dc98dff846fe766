"""Row audit: whether the rows of table operations are in PostgreSQL as they were acknowledged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..operation import Operation
from ..store.envelope import Record
from .rows import RowWriter, Table, json_of, quote, quote_table
from .sources import VALUE, ColumnType, Source
from .transaction_settings import Cursor

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
