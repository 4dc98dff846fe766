"""Scales: the decimal places to which columns round amounts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float, Integer, MetaData, Numeric, TypeDecorator

from ..view.explanations import SCALES


def scales_in(metadata: MetaData) -> set[int | None]:
    """The decimal places of all columns of the tables."""
    return {scale for table in metadata.tables.values() for column in table.columns for scale in scales_of(column.type)}


def scales_of(kind: Any) -> tuple[int | None, ...]:
    """The decimal places that amounts of a column may have, None where it does not round them."""
    if isinstance(kind, TypeDecorator):
        # Its own code may round.
        return SCALES if isinstance(kind.impl_instance, Numeric | Float | Integer) else ()
    # SQLAlchemy 2.0 derives Float from Numeric, 2.1 does not.
    if isinstance(kind, Float):
        return (None,)
    return (kind.scale,) if isinstance(kind, Numeric) else ()
