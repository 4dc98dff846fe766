"""Alterations: whether the database was altered between the enqueueing of an entry and its refusal.

A column that became an integer, or a new constraint, refuses sound entries.  The rows of PostgreSQL's catalogs have the
number of the transaction that wrote them, and so has the store's watermark: an object with a higher number than the
newest delivery before the entry was enqueued is younger than that delivery.  The entry then waits, since an operator
can alter it back.  Nothing is asked while entries are applied.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from .. import codec
from ..fate import PRIVILEGE
from ..store.envelope import Record
from .piggyback import tried
from .receipts import text_array
from .transaction_settings import Cursor
from .watermarks import TABLE as WATERMARKS

# Of another cluster, as a logical copy that took over, nothing is the same, numbers of transactions included.
_CLUSTER = "SELECT system_identifier::text FROM pg_control_system()"
# The newest transaction that delivered something.
_NEWEST = f"SELECT xmin::text FROM {WATERMARKS} WHERE store_id = %s ORDER BY age(xmin) LIMIT 1"

_NAMED = """
WITH home AS (SELECT oid AS home FROM pg_namespace WHERE nspname = %(schema)s)
SELECT 'constraint ' || quote_ident(conname) FROM home JOIN pg_constraint ON connamespace = home
WHERE conname = %(constraint)s AND age(pg_constraint.xmin) < age(%(since)s::xid)
UNION ALL
SELECT 'index ' || quote_ident(relname) FROM home JOIN pg_class ON relnamespace = home
JOIN pg_index ON indexrelid = pg_class.oid
WHERE relname = %(constraint)s AND age(pg_index.xmin) < age(%(since)s::xid)
UNION ALL
SELECT 'type ' || quote_ident(typname) FROM home JOIN pg_type ON typnamespace = home
WHERE typname = %(datatype)s AND age(pg_type.xmin) < age(%(since)s::xid)
UNION ALL
SELECT 'column ' || quote_ident(attname) FROM home JOIN pg_class ON relnamespace = home
JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relname = %(table)s AND attname = %(column)s AND age(pg_attribute.xmin) < age(%(since)s::xid)
LIMIT 4"""

_OF_TABLES = """
WITH rels AS (
    SELECT oid, relname, age(xmin) AS age, relrowsecurity FROM pg_class
    WHERE CASE WHEN %(operation)s::text IS NULL
        THEN relname = ANY(%(names)s::text[]) AND relkind IN ('r', 'p', 'v', 'f')
        ELSE oid = to_regclass(%(operation)s) END
)
SELECT 'column ' || quote_ident(attname) || ' of ' || quote_ident(relname)
FROM rels JOIN pg_attribute ON attrelid = rels.oid AND attnum > 0 AND NOT attisdropped
WHERE NOT %(policy)s AND (attname = ANY(%(names)s::text[]) OR attgenerated <> '') AND (
    age(pg_attribute.xmin) < age(%(since)s::xid)
    OR EXISTS (SELECT FROM pg_type one WHERE one.oid = atttypid AND age(one.xmin) < age(%(since)s::xid))
    OR EXISTS (SELECT FROM pg_enum one WHERE enumtypid = atttypid AND age(one.xmin) < age(%(since)s::xid)))
UNION ALL
SELECT 'trigger ' || quote_ident(tgname) || ' of ' || quote_ident(relname)
FROM rels JOIN pg_trigger ON tgrelid = rels.oid AND NOT tgisinternal JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE %(in_function)s
    AND (age(pg_trigger.xmin) < age(%(since)s::xid) OR age(pg_proc.xmin) < age(%(since)s::xid))
UNION ALL
SELECT 'rule ' || quote_ident(rulename) || ' of ' || quote_ident(relname)
FROM rels JOIN pg_rewrite ON ev_class = rels.oid WHERE NOT %(policy)s AND age(pg_rewrite.xmin) < age(%(since)s::xid)
UNION ALL
SELECT 'row security of ' || quote_ident(relname) FROM rels
WHERE %(policy)s AND relrowsecurity AND (age < age(%(since)s::xid)
    OR EXISTS (SELECT FROM pg_policy one WHERE polrelid = rels.oid AND age(one.xmin) < age(%(since)s::xid)))
LIMIT 4"""

_WORD = re.compile(r'"([^"]+)"|([^\W\d][\w$]*)')
# Of a handler's statement, which has its values in it.
_STATEMENT_CHARS = 20_000
# Horizons that are kept, one for each connection after which something was delivered; and entries that were looked at.
_MOST = 1000


@dataclass(frozen=True, slots=True)
class RefusedStatement:
    """PostgreSQL's diagnostics of a refused statement."""

    sqlstate: str
    schema: str | None
    table: str | None
    column: str | None
    datatype: str | None
    constraint: str | None
    # Translated, and only of rows that the role may read.
    detail: str | None
    # Whether a trigger or a function raised it.
    in_function: bool
    statement: str

    @classmethod
    def of(cls, error: Any) -> RefusedStatement:
        """Read it from an error of the driver that has an SQLSTATE."""
        diag, query = error.diag, getattr(error.cursor, "query", None) or b""
        return cls(
            sqlstate=error.pgcode,
            schema=diag.schema_name,
            table=diag.table_name,
            column=diag.column_name,
            datatype=diag.datatype_name,
            constraint=diag.constraint_name,
            detail=diag.message_detail,
            in_function=diag.context is not None,
            statement=query[:_STATEMENT_CHARS].decode(errors="replace"),
        )


class Alterations:
    """What the lanes of one target know of the past of their database.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Where the server reports it.
        self._cluster: str | None = None
        # Up to which entry, and the newest delivery of which is known that it was before.  Not by their times: a clock
        # may be set back.
        self._horizons: list[tuple[int, str]] = []
        # By sequence number: what was found at the last look.
        self._found: dict[int, str] = {}

    def connected(self, cursor: Cursor, store_id: UUID, last_seq: int) -> None:
        """Note the newest delivery before this connection: entries up to `last_seq` may have come after it."""
        row = tried(cursor, _CLUSTER)
        cluster = None if row is None else str(row[0])
        row = tried(cursor, _NEWEST, str(store_id))
        with self._lock:
            if cluster != self._cluster:
                self._horizons, self._found = [], {}
            self._cluster = cluster
            if row is not None:
                self._note(last_seq, str(row[0]))

    def may_concern(self, item: Record) -> bool:
        """Whether `between` would look: not for an entry that came while the relay was connected."""
        return self._before(item.seq) is not None

    def between(self, cursor: Cursor, item: Record, refused: RefusedStatement, table: str | None) -> str | None:
        """What was altered after an entry was captured and may be why it is refused, or None.

        Of an entry that came while the relay was connected nothing is asked: its caller may wait for the refusal.
        `table` is that of a table operation; without it the names in the statement are taken.
        """
        since = self._before(item.seq)
        if since is None:
            return None
        if table:
            names = list(codec.field_names(item.args))
        else:
            names = [quoted or word.lower() for quoted, word in _WORD.findall(refused.statement)]
        given = {
            "since": since,
            "schema": refused.schema,
            "table": refused.table,
            "column": refused.column,
            "datatype": refused.datatype,
            "constraint": refused.constraint,
            "operation": table,
            "names": text_array(dict.fromkeys(names)),
            "in_function": refused.in_function,
            "policy": refused.sqlstate == PRIVILEGE,
        }
        named = refused.schema and (refused.constraint or refused.column or refused.datatype)
        cursor.execute(_NAMED if named else _OF_TABLES, given)
        altered = ", ".join(str(row[0]) for row in cursor.fetchall())
        with self._lock:
            if not altered:
                # It may have been taken away since the entry was refused.
                return self._found.pop(item.seq, None)
            self._found = dict([*self._found.items(), (item.seq, altered)][-_MOST:])
            return altered

    def _before(self, seq: int) -> str | None:
        with self._lock:
            return next((xid for until, xid in self._horizons if seq <= until), None)

    def _note(self, last: int, xid: str) -> None:
        """Assumes the lock."""
        # A number that is still to come is of a history that was lost, as behind a restored backup.
        known = [(until, other) for until, other in self._horizons if until > last or not _follows(other, xid)]
        if known and known[-1][1] == xid:
            last = max(last, known.pop()[0])
        self._horizons = sorted([*known, (last, xid)])[-_MOST:]


def _follows(xid: str, other: str) -> bool:
    """Whether a transaction came after another one.  Their numbers wrap around."""
    return 0 < (int(xid) - int(other)) % 2**32 < 2**31
