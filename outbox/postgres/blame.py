"""Blame: why a unit failed that was tried alone: for its data, its operation, a default, or a sequence behind its rows.

Only for its data is an entry given up; for anything else it waits.  A default has the same value whatever the entry
holds, so every entry is refused alike, as after a migration that added a NOT NULL column, or once a sequence has passed
the type of its column.  A sequence that is behind its rows, as after a restored dump or in a logical copy, gives
numbers that are in use.  Both refuse sound entries until an operator corrects them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .. import codec
from ..errors import EntryRejected, OutboxError, TargetMisconfigured, TargetUnavailable
from ..fate import INTEGRITY, OUT_OF_RANGE, UNIQUE, OperationFault
from ..operation import Operation
from ..store.envelope import Record
from ..target import Unit
from .alterations import Alterations, RefusedStatement
from .connection import GuardedConnection, UnitFailed
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


# Sequences of the columns of an index, by a default or as an identity, and those that statements have named.
_OF_INDEX = """
WITH own AS (
    SELECT indrelid, attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
    WHERE indexrelid = to_regclass(format('%%I.%%I', %s::text, %s::text))
), columns AS (
    SELECT attrelid, attnum FROM own JOIN pg_attribute USING (attname)
    WHERE attrelid = indrelid OR attrelid IN (SELECT relid FROM pg_partition_ancestors(indrelid))
), found AS (
    SELECT refobjid AS seq FROM columns JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    JOIN pg_depend ON classid = 'pg_attrdef'::regclass AND objid = pg_attrdef.oid AND refclassid = 'pg_class'::regclass
    UNION SELECT objid FROM columns JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = attrelid
    AND refobjsubid = attnum AND classid = 'pg_class'::regclass AND deptype = 'i'
    UNION SELECT to_regclass(name) FROM unnest(%s::text[]) AS named (name)
)
SELECT seq::regclass::text FROM found JOIN pg_class ON pg_class.oid = seq AND relkind = 'S'"""

# Messages are translated, this part of them is not.
_KEY = re.compile(r"\(.*\)=\((.*)\)")


@dataclass(frozen=True, slots=True)
class Taken:
    """A number that a sequence has given and that is in use."""

    sequence: str
    number: str


def taken_number(cursor: Any, refused: RefusedStatement) -> Taken | None:
    """The number that a unique index has refused, if this session got it from a sequence.

    The transaction was rolled back, and a sequence takes no number back.  `cursor`: of a `PiggybackConnection`.
    """
    key = _KEY.search(refused.detail or "")
    if key is None:
        return None
    # A number may be got by a statement of its own, and a deferred key is refused at the commit.
    named = text_array(cursor.connection.sequences)
    cursor.execute(_OF_INDEX, (refused.schema, refused.constraint, named))
    for (sequence,) in cursor.fetchall():
        # None where this session has got nothing from it.
        got = tried(cursor, "SELECT currval(%s::regclass)::text", sequence)
        if got is not None and got[0] in key[1].split(", "):
            return Taken(sequence, got[0])
    return None


class Blame:
    """Asks PostgreSQL on one lane's connection; used by the thread that uses that."""

    def __init__(self, link: GuardedConnection, operations: Mapping[str, Operation], alterations: Alterations) -> None:
        self._link, self._operations, self._alterations = link, operations, alterations

    def number_of(self, failed: UnitFailed) -> Taken | None:
        """The number of a sequence that a unique index may have refused; only the session that got it knows."""
        refused = failed.refused
        if refused is None or refused.sqlstate != UNIQUE or (connection := self._link.current) is None:
            return None
        try:
            with self._link.translated(), self._link.guard(), self._link.own_statements(), connection.begin():
                return taken_number(self._link.opening_cursor(connection), refused)
        except (TargetUnavailable, TargetMisconfigured):
            failed.error, failed.refused = EntryRejected(str(failed.error), permanent=False), None
            return None

    def of(self, unit: Unit, failed: UnitFailed, number: Taken | None) -> tuple[OutboxError, str | None]:
        """Why the unit failed, and whose operation's trouble that is, if it is one's.

        `number`: what a sequence has given the unit's rows that is in use already.
        """
        operations = {item.operation for item in unit}
        operation = failed.operation or (operations.pop() if len(operations) == 1 else None)
        refused = failed.refused
        if refused is None:
            return failed.error, operation
        if number is not None:
            hint = f"set sequence {number.sequence} forward, it is behind its rows; the entries wait"
            return OperationFault(str(failed.error), hint=hint), operation
        try:
            way_out = self._way_out(unit, refused, operation)
        except (TargetUnavailable, TargetMisconfigured):
            # Not known, so the entry is not given up for it.
            return EntryRejected(str(failed.error), permanent=False), operation
        return OperationFault(str(failed.error), hint=way_out) if way_out else failed.error, operation

    def _way_out(self, unit: Unit, refused: RefusedStatement, operation: str | None) -> str | None:
        """What an operator can do where the data is not the cause, or None where it is."""
        table = self._operations[operation].table_path if operation and operation in self._operations else ()
        item = next((one for one in unit if one.operation == operation), unit[0])
        given = given_by(refused, table, [one for one in unit if one.operation == operation])
        if given is None and not self._alterations.may_concern(item):
            return None
        with self._link.translated(), self._link.own_statements():
            connection = self._link.get()
            with self._link.guard(), connection.begin():
                cursor = self._link.opening_cursor(connection)
                why = None if given is None else why_left_out(cursor, refused, given)
                path = quote_table(table) if table else None
                altered = self._alterations.between(cursor, item, refused, path)
        if why is None and altered is not None:
            return f"altered since the entry was enqueued: {altered}; alter it back, or discard the entry; it waits"
        return why
