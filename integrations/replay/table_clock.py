"""Table clock: the columns of a table whose default reads PostgreSQL's clock, from the catalog.

All rows of a batch, and of an outage, would have the time of one transaction.
"""

from __future__ import annotations

from typing import Any

import psycopg2.extensions

from . import sql_clock

_DEFAULTS = """
    SELECT a.attname, pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE d.adrelid = to_regclass(%s) AND a.attgenerated = '' AND NOT a.attisdropped ORDER BY d.adnum
"""


class TableClock:
    """Asks the catalog once for each table."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}

    def forget(self) -> None:
        """Something failed: a table may have been altered."""
        self._known.clear()

    def defaults(self, raw: Any, name: str) -> dict[str, str]:
        """The defaults of a table that read the clock, as SQL by column.

        `raw` is the driver's connection, `name` the table as an INSERT names it.
        """
        known = self._known.get(name)
        if known is None:
            with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(_DEFAULTS, (name,))
                # The driver would take a percent sign for one of its own.
                known = {column: sql for column, sql in cursor if sql_clock.reads_clock(sql) and "%" not in sql}
            self._known[name] = known
        return known
