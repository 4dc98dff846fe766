"""Tables used: the tables that a statement reads, as PostgreSQL has locked them for it.

Also those behind a view, a function of PostgreSQL, or a name that the program has put together.
"""

from __future__ import annotations

from typing import Any

import psycopg2
import psycopg2.extensions

from ...log import Log
from ...words import first_line

_log = Log("outbox.integrations")

_KEPT = 1000
# Longer statements have their values in them, and do not come again.
_KEPT_CHARS = 10_000
# A partition counts as the table that it belongs to.
_LOCKED = """
    SELECT DISTINCT named.relname FROM pg_locks AS held
    JOIN pg_class AS used ON used.oid = held.relation
    JOIN pg_class AS named ON named.oid = coalesce(pg_partition_root(used.oid), used.oid)
    WHERE held.pid = pg_backend_pid() AND held.locktype = 'relation' AND named.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND named.relnamespace <> 'pg_catalog'::regnamespace
"""


class TablesUsed:
    """Asks PostgreSQL once for each statement.  Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[str]] = {}
        self._can_tell = True

    def forget(self) -> None:
        """Views and functions may have been made anew."""
        self._known.clear()

    def by(self, raw: Any, statement: str) -> frozenset[str]:
        """The tables of a statement that was just executed on the driver's connection `raw`; empty if unknown.

        Those of earlier statements of its transaction are among them.
        """
        found = self._known.get(statement)
        # Without a transaction the locks are gone.
        in_transaction = raw.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS
        if found is None and self._can_tell and in_transaction:
            found = self._ask(raw)
            if len(statement) <= _KEPT_CHARS and len(self._known) < _KEPT:
                self._known[statement] = found
        return found or frozenset()

    def _ask(self, raw: Any) -> frozenset[str]:
        with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute("SAVEPOINT outbox_tables")
            try:
                cursor.execute(_LOCKED)
                return frozenset(name for (name,) in cursor)
            except psycopg2.Error as exc:
                # A server that only speaks PostgreSQL's protocol may not show its locks.
                self._can_tell = False
                _log.info("the tables of reads are not looked up: %(error)s", error=first_line(exc))
                cursor.execute("ROLLBACK TO SAVEPOINT outbox_tables")
                return frozenset()
            finally:
                if raw.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
                    cursor.execute("RELEASE SAVEPOINT outbox_tables")
