"""Left out: whether PostgreSQL refused something that an INSERT leaves to a default, and not the entry's data.

A default has the same value whatever the entry holds, so every entry is refused alike, as after a migration that added
a NOT NULL column, or once a sequence has passed the type of its column.  The entries wait until that is corrected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .. import codec
from ..fate import INTEGRITY, OUT_OF_RANGE, UNIQUE
from ..store.envelope import Record
from .alterations import RefusedStatement
from .piggyback import tried
from .receipts import text_array
from .rows import Table, columns_of_index, quote_table

# A trigger before the row may set any column from the others, and so may the expression of a generated one.  Of the
# table of a view it is known which columns are given where they have the same names.
_OF_DEFAULTS = """
NOT EXISTS (SELECT FROM pg_attribute one WHERE one.attrelid = rel AND one.attnum = ANY(keys) AND one.attgenerated <> '')
AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = rel AND tgtype & 7 = 7 AND NOT tgisinternal AND tgenabled <> 'D')
AND (rel = to_regclass(%(table)s) OR to_regclass(%(table)s) IN (SELECT relid FROM pg_partition_ancestors(rel))
    OR rel IN (
        SELECT refobjid FROM pg_rewrite JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
        WHERE ev_class = to_regclass(%(table)s) AND refclassid = 'pg_class'::regclass)
    AND NOT EXISTS (
        SELECT FROM unnest(%(given)s::text[]) AS name
        WHERE name NOT IN (SELECT attname FROM pg_attribute WHERE attrelid = rel AND attnum > 0)))"""

# Each gives a row with NULL where it is about no column at all, as `CHECK (false)`.
_OF_CONSTRAINT = f"""
SELECT attname::text FROM (
    SELECT conrelid AS rel, coalesce(conkey, '{{}}') AS keys FROM pg_constraint
    WHERE connamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND conname = %(constraint)s
    AND contype IN ('c', 'f', 'x') AND NOT 0 = ANY(coalesce(conkey, '{{}}'))
) AS found LEFT JOIN pg_attribute ON attrelid = rel AND attnum = ANY(keys) WHERE {_OF_DEFAULTS}"""
_OF_COLUMN = f"""
SELECT attname::text FROM (
    SELECT attrelid AS rel, ARRAY[attnum] AS keys, attname FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %(schema)s AND relname = %(relation)s AND attname = %(column)s
) AS found WHERE {_OF_DEFAULTS}"""
_OF_DOMAIN = f"""
SELECT attname::text FROM (
    SELECT attrelid AS rel, ARRAY[attnum] AS keys, attname FROM pg_attribute
    JOIN pg_type ON pg_type.oid = atttypid JOIN pg_namespace ON pg_namespace.oid = typnamespace
    WHERE attrelid = to_regclass(%(table)s) AND nspname = %(schema)s AND typname = %(datatype)s
) AS found WHERE {_OF_DEFAULTS}"""

# Sequences of the columns of a table, by their defaults, with the largest number of the column.
_NUMBERED = """
SELECT attname::text, seq::regclass::text, (CASE atttypid WHEN 21 THEN 32767 ELSE 2147483647 END)::text
FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
JOIN pg_depend ON classid = 'pg_attrdef'::regclass AND objid = pg_attrdef.oid AND refclassid = 'pg_class'::regclass
JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S' CROSS JOIN LATERAL (SELECT refobjid AS seq) AS sequence
WHERE attrelid = to_regclass(%s) AND atttypid IN (21, 23)"""

_NAME = r'(?:"[^"]+"|[^\W\d][\w$]*)'
_INSERT = re.compile(
    rf"\bINSERT\s+INTO\s+({_NAME}(?:\s*\.\s*{_NAME})?)(?:\s+AS\s+{_NAME})?\s*\(([^()]*)\)", re.IGNORECASE
)
_PART = re.compile(r'"([^"]+)"|([^\W\d][\w$]*)')
_LITERAL = re.compile(r"'[^']*'")


@dataclass(frozen=True, slots=True)
class Given:
    """The columns to which an INSERT gives values."""

    table: Table
    columns: frozenset[str]


def given_by(refused: RefusedStatement, table: Table, records: Sequence[Record]) -> Given | None:
    """What the refused INSERT of these entries gave, where a default may be the cause; None where that is not known.

    `table` is that of a table operation; without it a handler's statement is taken, if it is one INSERT that names its
    columns.
    """
    if not refused.sqlstate.startswith(INTEGRITY) and refused.sqlstate != OUT_OF_RANGE:
        return None
    if table:
        return Given(table, frozenset(chain.from_iterable(codec.field_names(one.args) for one in records)))
    found = _INSERT.findall(_LITERAL.sub("", refused.statement))
    if len(found) != 1:
        return None
    ((name, columns),) = found
    return Given(_names(name), frozenset(_names(columns)))


def why_left_out(cursor: Any, refused: RefusedStatement, given: Given) -> str | None:
    """What is to be corrected, where it is nothing that the entry gives; else None.

    `cursor`: of a `PiggybackConnection`.
    """
    if refused.sqlstate == OUT_OF_RANGE:
        return None if refused.in_function else _passed(cursor, given)
    if refused.schema is None:
        return None
    if refused.sqlstate == UNIQUE:
        columns = columns_of_index(cursor, given.table, refused.schema, refused.constraint or "")
        left = bool(columns) and not given.columns & set(columns)
        return f"the entries have no {', '.join(columns)}: set its sequence forward; they wait" if left else None
    if refused.in_function:
        return None
    query = _OF_DOMAIN if refused.datatype else _OF_CONSTRAINT if refused.constraint else _OF_COLUMN
    cursor.execute(
        query,
        {
            "table": quote_table(given.table),
            "schema": refused.schema,
            "relation": refused.table,
            "column": refused.column,
            "constraint": refused.constraint,
            "datatype": refused.datatype,
            "given": text_array(sorted(given.columns)),
        },
    )
    rows = [row[0] for row in cursor.fetchall()]
    names = [name for name in rows if name is not None]
    if not rows or given.columns & set(names):
        return None
    return f"the entries have no {', '.join(names) or 'part in it'}: correct the table or its defaults; they wait"


def _passed(cursor: Any, given: Given) -> str | None:
    """A sequence that has passed the type of the column that it numbers."""
    cursor.execute(_NUMBERED, (quote_table(given.table),))
    for column, sequence, largest in cursor.fetchall():
        if column in given.columns:
            continue
        got = tried(cursor, "SELECT pg_sequence_last_value(%s::regclass)::text", sequence)
        if got is not None and got[0] is not None and int(got[0]) > int(largest):
            return f"sequence {sequence} has passed the type of column {column}: make it bigint; the entries wait"
    return None


def _names(text: str) -> tuple[str, ...]:
    return tuple(quoted or word.lower() for quoted, word in _PART.findall(text))
