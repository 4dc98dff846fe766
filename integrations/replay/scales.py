"""Scales: the decimal places to which columns round amounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Connection, Float, Integer, MetaData, Numeric, Table, TypeDecorator, text

from ..view.explanations import SCALES

_IN_DATABASE = text("""
    SELECT table_name, column_name, numeric_scale FROM information_schema.columns WHERE data_type = 'numeric'
    AND table_name = ANY (:tables) AND table_schema = ANY (current_schemas(false) || CAST(:schemas AS text[]))
""")

# (table, column) -> the decimal places that PostgreSQL keeps.
InDatabase = Mapping[tuple[str, str], int | None]


class DatabaseScales:
    """The decimal places of columns as PostgreSQL has them, which a migration may have changed."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[MetaData, InDatabase] = WeakKeyDictionary()

    def ask(self, metadata: MetaData, connection: Connection) -> None:
        """Ask for the columns of these tables, once."""
        if metadata not in self._known:
            tables = metadata.tables.values()
            schemas = sorted({table.schema for table in tables if table.schema is not None})
            given = {"tables": [table.name for table in tables], "schemas": schemas}
            self._known[metadata] = {(row[0], row[1]): row[2] for row in connection.execute(_IN_DATABASE, given)}

    def of(self, column: Column[Any]) -> tuple[int | None, ...]:
        """The decimal places that amounts of a column may have, None where it does not round them."""
        known = self._known.get(column.table.metadata, {}) if isinstance(column.table, Table) else {}
        place = getattr(column.table, "name", ""), column.name
        if place in known and isinstance(column.type, Numeric | Float):
            return (known[place],)
        return scales_of(column.type)

    def within(self, metadata: MetaData) -> set[int | None]:
        """The decimal places of all columns of the tables."""
        return {scale for table in metadata.tables.values() for column in table.columns for scale in self.of(column)}


def scales_of(kind: Any) -> tuple[int | None, ...]:
    """The decimal places that amounts of a column may have, None where it does not round them."""
    if isinstance(kind, TypeDecorator):
        # Its own code may round.
        return SCALES if isinstance(kind.impl_instance, Numeric | Float | Integer) else ()
    # SQLAlchemy 2.0 derives Float from Numeric, 2.1 does not.
    if isinstance(kind, Float):
        return (None,)
    return (kind.scale,) if isinstance(kind, Numeric) else ()
