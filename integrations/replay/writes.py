"""Writes: finds the statements that may write, also those that bypass the sessions of a replay.

Bulk inserts, statements on a session's connection, cursors of the driver, COPY and functions of the database go past
the ORM's flush.  PostgreSQL itself tells which functions may write: those that are volatile.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import psycopg2.extensions

from ..sql_text import is_of_savepoints, is_setting, only_reads

_CALL = re.compile(r'(\w+)"?\s*\(')
# Longer statements have their values in them, and do not come again.
_KEPT_CHARS = 10_000
_VOLATILE = """
    SELECT DISTINCT lower(proname) FROM pg_catalog.pg_proc JOIN pg_catalog.pg_namespace n ON n.oid = pronamespace
    WHERE lower(proname) = ANY(%s) AND provolatile = 'v' AND nspname NOT IN ('pg_catalog', 'information_schema')
"""


class Writes:
    """Recognises statements that may write.  Thread-safe."""

    def __init__(self) -> None:
        # By lower-case name, whether the database has a function of that name that may write.
        self._functions: dict[str, bool] = {}

    def forget(self) -> None:
        """Something failed: functions may be made, or made anew, before it is tried again."""
        self._functions.clear()

    def may_write(self, raw: Any, statement: str) -> bool:
        """Whether `statement`, about to be sent on the driver's connection `raw`, may write."""
        found = (_judged if len(statement) <= _KEPT_CHARS else _judged.__wrapped__)(statement)
        return found if isinstance(found, bool) else self._writes(raw, found)

    def _writes(self, raw: Any, names: frozenset[str]) -> bool:
        """Whether one of these functions may write."""
        unknown = names - self._functions.keys()
        if unknown and raw.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INERROR:
            with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(_VOLATILE, (sorted(unknown),))
                found = {name for (name,) in cursor}
            self._functions |= {name: name in found for name in unknown}
        return any(self._functions.get(name, False) for name in names)


def called_in(statement: str) -> frozenset[str]:
    """The names, in lower case, that stand before a parenthesis in a statement."""
    return frozenset(name.lower() for name in _CALL.findall(statement))


@lru_cache(maxsize=1024)
def _judged(statement: str) -> bool | frozenset[str]:
    """Whether a statement may write; the functions that it calls where that depends on them."""
    if is_setting(statement) or is_of_savepoints(statement):
        return False
    return not only_reads(statement) or called_in(statement)
