"""Catalog: what PostgreSQL's catalog says of the tables that calls write, asked once for each table."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ids.always_generated import AlwaysGenerated
from .table_clock import TableClock


@dataclass(frozen=True, slots=True)
class Catalog:
    """For all replays of one manager, and what is made in a transaction that is rolled back."""

    always: AlwaysGenerated = field(default_factory=AlwaysGenerated)
    clocks: TableClock = field(default_factory=TableClock)

    def forget(self) -> None:
        """Something failed: a table may have been altered."""
        self.always.forget()
        self.clocks.forget()
