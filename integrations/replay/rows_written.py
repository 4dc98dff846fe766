"""Rows written: what a transaction has written so far, also by functions and triggers of PostgreSQL."""

from __future__ import annotations

from sqlalchemy import Connection, text

# A partition counts as the table that it belongs to.
_ROWS = text("""
    SELECT named.relname, sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_user_tables AS counted
    JOIN pg_class AS named ON named.oid = coalesce(pg_partition_root(counted.relid), counted.relid)
    WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 GROUP BY named.relname
""")


def rows_written(connection: Connection) -> dict[str, int]:
    """How many rows of each table were inserted, updated or deleted; those of other tables stay as they are."""
    return {table: int(rows) for table, rows in connection.execute(_ROWS)}
