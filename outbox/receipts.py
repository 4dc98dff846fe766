"""The receipts table, and inserting rows straight from stored JSON: all the SQL that the relay itself speaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Protocol

from .envelope import Record
from .errors import TargetMisconfigured

TABLE = "outbox_receipts"
# Distinguishes our advisory locks from the host's: the ASCII codes of "obx".
LOCK_CLASS = 0x6F6278

_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    idempotency_key uuid PRIMARY KEY,
    store_id uuid NOT NULL,
    seq bigint NOT NULL,
    operation text NOT NULL,
    payload_hash uuid NOT NULL,
    result json,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""

_FENCE = "SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))"

_RECORD = f"""
INSERT INTO {TABLE} (idempotency_key, store_id, seq, operation, payload_hash)
SELECT key, %s::uuid, seq, operation, payload
FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::uuid[]) AS new (key, seq, operation, payload)
ON CONFLICT (idempotency_key) DO NOTHING RETURNING seq"""

_FIND = f"""
SELECT idempotency_key::text, payload_hash::text, result::text FROM {TABLE}
WHERE idempotency_key = ANY(%s::uuid[])"""

_KEEP_RESULTS = f"""
UPDATE {TABLE} AS receipt SET result = new.result
FROM unnest(%s::uuid[], %s::json[]) AS new (key, result) WHERE receipt.idempotency_key = new.key"""

# Types without their modifiers: numeric(18,8) is enforced by the insert into the column, where it cannot be outdated.
_COLUMNS = """
SELECT attname, format_type(atttypid, -1) FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"""


class Cursor(Protocol):
    """What is needed of a DB-API cursor inside the relay's transaction."""

    def execute(self, query: str, parameters: Any = ..., /) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def fetchone(self) -> Any: ...


def fence(cursor: Cursor, name: str) -> bool:
    """Keep other relays of the same store out until the transaction ends; False where one is in."""
    cursor.execute(_FENCE, (LOCK_CLASS, name))
    return bool(cursor.fetchone()[0])


def ensure_table(cursor: Cursor, name: str = TABLE, create: str = _CREATE) -> None:
    """Create a table of ours unless it is there; needs no privilege in the latter case."""
    cursor.execute("SELECT to_regclass(%s) IS NULL", (name,))
    if cursor.fetchone()[0]:
        # Of two that create it at once, the server refuses one even with IF NOT EXISTS.
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK_CLASS, f"create {name}"))
        cursor.execute(create)


def record(cursor: Cursor, store_id: str, records: Sequence[Record]) -> set[int]:
    """Write receipts; returns the sequence numbers that had none before, whose effects must now be applied."""
    cursor.execute(
        _RECORD,
        (
            store_id,
            _array(item.key.hex() for item in records),
            _array(str(item.seq) for item in records),
            _array(_quoted(item.operation) for item in records),
            _array(item.payload_hash.hex() for item in records),
        ),
    )
    return {row[0] for row in cursor.fetchall()}


def find(cursor: Cursor, records: Sequence[Record]) -> dict[bytes, tuple[bytes, bytes]]:
    """`key -> (payload hash, result)` of the receipts that exist for `records`."""
    cursor.execute(_FIND, ([item.key.hex() for item in records],))
    return {
        bytes.fromhex(key.replace("-", "")): (bytes.fromhex(payload.replace("-", "")), (result or "").encode())
        for key, payload, result in cursor.fetchall()
    }


def keep_results(cursor: Cursor, results: Sequence[tuple[Record, bytes]]) -> None:
    """Store what handlers returned in their receipts."""
    if results:
        cursor.execute(
            _KEEP_RESULTS, ([item.key.hex() for item, _ in results], [result.decode() for _, result in results])
        )


def _array(elements: Iterable[str]) -> str:
    """An array in PostgreSQL's own text form: the driver takes several times as long to write a list."""
    return "{" + ",".join(elements) + "}"


@cache
def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class RowWriter:
    """Inserts the arguments of entries as rows of tables.  Knows their columns until `forget`.

    A stale type would silently lose part of a value (a time of day through `date`), so each transaction locks the table
    against changes, as its INSERT does anyway, and then asks the catalog.
    """

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, str]] = {}
        self._statements: dict[tuple[str, bytes], str] = {}

    def forget(self) -> None:
        """A transaction has ended, so tables may change."""
        self._columns.clear()
        self._statements.clear()

    def insert(self, cursor: Cursor, table: str, names: Sequence[str], shape: bytes, records: Sequence[Record]) -> None:
        """Insert one row for each record, all of which have exactly the arguments `names`, in order.

        PostgreSQL casts the stored JSON bytes itself.  Raises `TargetMisconfigured` for a missing table or column.
        """
        if not names:
            for _ in records:
                cursor.execute(f"INSERT INTO {_quote_table(table)} DEFAULT VALUES")
            return
        statement = self._statements.get((table, shape))
        if statement is None:
            statement = self._statements[table, shape] = self._statement(cursor, table, names)
        rows = b"[" + b",".join(item.args for item in records) + b"]"
        cursor.execute(statement, (rows.decode(),))

    def _statement(self, cursor: Cursor, table: str, names: Sequence[str]) -> str:
        known = self._columns.get(table)
        if known is None:
            name = _quote_table(table)
            lock = f"LOCK TABLE {name} IN ROW EXCLUSIVE MODE;".replace("%", "%%")
            cursor.execute(lock + _COLUMNS, (name,))
            known = self._columns[table] = dict(cursor.fetchall())
        if not known:
            raise TargetMisconfigured(f"table {table!r} does not exist", hint="create it; the entries wait")
        missing = [name for name in names if name not in known]
        if missing:
            raise TargetMisconfigured(f"table {table!r} has no column {missing[0]!r}", hint="add it; the entries wait")
        columns = ", ".join(quote(name) for name in names)
        types = ", ".join(f"{quote(name)} {known[name]}" for name in names)
        # json, not jsonb: it keeps each number's text, and is not parsed twice.
        before = f"INSERT INTO {_quote_table(table)} ({columns}) SELECT {columns} FROM json_to_recordset("
        return before.replace("%", "%%") + "%s" + f") AS row ({types})".replace("%", "%%")


def quote(name: str) -> str:
    """`name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _quote_table(table: str) -> str:
    return ".".join(quote(part) for part in table.split("."))
