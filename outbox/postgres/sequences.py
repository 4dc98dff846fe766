"""Sequences: whether a unique key was taken because a sequence is behind its rows.

Then it gives numbers that are in use, as after a restored dump or in a logical copy, and refuses sound entries until
an operator sets it forward.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .alterations import RefusedStatement
from .piggyback import tried
from .receipts import text_array

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
