"""What PostgreSQL's catalog says of a column that holds ids."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, text

# What spells a default out waits for the lock of its table, which a migration may hold for long; but PostgreSQL notes
# on which sequence a default depends, and in its stored form which function it calls.
_LOOK = text(r"""
    SELECT format_type(a.atttypid, NULL), a.attidentity = 'a', coalesce(
        pg_get_serial_sequence(:table, :column),
        (
            SELECT min(CAST(CAST(refobjid AS regclass) AS text)) FROM pg_depend
            JOIN pg_class s ON s.oid = refobjid AND s.relkind = 'S'
            WHERE classid = CAST('pg_attrdef' AS regclass) AND refclassid = CAST('pg_class' AS regclass)
            AND objid = d.oid AND CAST(d.adbin AS text) ~
                ('\:funcid ' || CAST(CAST('pg_catalog.nextval(regclass)' AS regprocedure) AS oid) || '\y')
        )
    ), n.nspname
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = to_regclass(:table) AND a.attname = :column AND NOT a.attisdropped
""")


class CatalogColumn(NamedTuple):
    """A column as it is; `sequence`, which may be of another column, as SQL that names it."""

    type: str
    always_generated: bool
    sequence: str | None
    schema: str


def look_up(connection: Connection, table: str, column: str) -> CatalogColumn | None:
    """What the catalog has of a column; None where there is none.  `table` is SQL that names it.

    Waits for no lock.
    """
    row = connection.execute(_LOOK, {"table": table, "column": column}).one_or_none()
    return None if row is None else CatalogColumn(*row)
