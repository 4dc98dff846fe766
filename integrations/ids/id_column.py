"""Id column: the column that holds the ids of a table's rows: its name, and its description in PostgreSQL's catalog."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, text

# What spells a default out waits for the lock of its table, which a migration may hold for long; but PostgreSQL notes
# on which sequence a default depends, and in its stored form which function it calls.
_LOOK = text(r"""
    SELECT format_type(a.atttypid, NULL), coalesce(
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


class IdColumn(NamedTuple):
    """The column that holds the ids of a table's rows; `schema` is None where the search_path finds the table."""

    schema: str | None
    table: str
    column: str

    @classmethod
    def of(cls, names: tuple[str | None, ...]) -> IdColumn:
        """From `(schema, table, column)` or `(table, column)`."""
        schema, table, column = names if len(names) == 3 else (None, *names)
        return cls(schema, table or "", column or "id")

    @classmethod
    def named(cls, creates: str | None) -> IdColumn:
        """From `table`, `table.column` or `schema.table.column`."""
        parts = (creates or "").split(".")
        return cls.of((*parts, "id") if len(parts) == 1 else tuple(parts))

    @property
    def names(self) -> tuple[str, ...]:
        """`(schema, table, column)`, or `(table, column)` where there is no schema."""
        return tuple(name for name in self if name is not None)

    def __str__(self) -> str:
        return ".".join(self.names)


class CatalogColumn(NamedTuple):
    """A column as it is; `sequence`, which may be of another column, as SQL that names it."""

    type: str
    sequence: str | None
    schema: str


def look_up(connection: Connection, table: str, column: str) -> CatalogColumn | None:
    """What the catalog has of a column; None where there is none.  `table` is SQL that names it.

    Waits for no lock.
    """
    row = connection.execute(_LOOK, {"table": table, "column": column}).one_or_none()
    return None if row is None else CatalogColumn(*row)


def quoted(*names: str | None) -> str:
    """Names as one identifier in SQL; a schema that is None is left out."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names if name is not None)
