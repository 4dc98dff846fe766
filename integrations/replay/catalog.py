"""Catalog: what PostgreSQL's catalog says of the tables that calls write, asked once for each table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from ..ids.always_generated import AlwaysGenerated
from .table_clock import TableClock


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
