"""Units: records that are applied, and wait, together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from .envelope import Record

# What must be applied together: a group, or a record of its own.
Unit = list[Record]


def units(records: Iterable[Record]) -> Iterator[Unit]:
    """Split records into what must be applied together: a group, or a record of its own."""
    for group, members in groupby(records, key=lambda record: record.group or -record.seq):
        del group
        yield list(members)


def ordering_keys(unit: Unit) -> set[str]:
    """The ordering keys that a unit touches."""
    return {record.order_by for record in unit if record.order_by is not None}
