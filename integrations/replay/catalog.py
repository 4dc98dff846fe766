"""Catalog: what PostgreSQL's catalog says of the tables that calls write, asked once for each table.

A default that reads PostgreSQL's clock would give all rows of a batch, and of an outage, the time of one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2.extensions
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from ..ids.id_reserve import quoted
from . import sql_clock

_DEFAULTS = """
    SELECT a.attname, pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE d.adrelid = to_regclass(%s) AND a.attgenerated = '' AND NOT a.attisdropped ORDER BY d.adnum
"""
_ASK = (
    "SELECT coalesce((SELECT attidentity = 'a' FROM pg_attribute "
    "WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped), false)"
)
# A partition counts as the table that it belongs to.
_ROWS = text("""
    SELECT named.relname, sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_user_tables AS counted
    JOIN pg_class AS named ON named.oid = coalesce(pg_partition_root(counted.relid), counted.relid)
    WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 GROUP BY named.relname
""")


class AlwaysGenerated:
    """Which columns are GENERATED ALWAYS, as PostgreSQL said when it was asked first."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, str, str], bool] = {}

    def has(self, schema: str | None, table: str, column: str, ask: Callable[[str, tuple[str, str]], object]) -> bool:
        """Whether a column is one; `ask` gets one value from PostgreSQL for a question and its arguments."""
        place = schema, table, column
        if place not in self._known:
            self._known[place] = ask(_ASK, (quoted(schema, table), column)) is True
        return self._known[place]

    def forget(self) -> None:
        """Ask again: columns may have been altered."""
        self._known.clear()


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


@dataclass(frozen=True, slots=True)
class Catalog:
    """For all replays of one manager, and what is made in a transaction that is rolled back."""

    always: AlwaysGenerated = field(default_factory=AlwaysGenerated)
    clocks: TableClock = field(default_factory=TableClock)

    @contextmanager
    def forgotten_after_failure(self) -> Iterator[None]:
        """Ask again what the block used, if PostgreSQL fails in it."""
        try:
            yield
        except SQLAlchemyError:
            self.forget()
            raise

    def forget(self) -> None:
        """Something failed: a table may have been altered."""
        self.always.forget()
        self.clocks.forget()


def rows_written(connection: Connection) -> dict[str, int]:
    """How many rows of each table were inserted, updated or deleted; those of other tables stay as they are."""
    return {table: int(rows) for table, rows in connection.execute(_ROWS)}
