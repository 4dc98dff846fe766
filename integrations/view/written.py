"""Written: which tables the calls of each operation write, by the code, and as seen in PostgreSQL.

Functions, procedures and triggers of PostgreSQL write tables that no code of the manager names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from .side_rows import SideRows

if TYPE_CHECKING:
    from ..operations import ManagerOperation

_LOOKS = 3


class Written:
    """What is known of one manager.  Not thread-safe: the view's lock is held."""

    def __init__(self) -> None:
        # Tables that local reads show, and operations whose code may write them; of the code, and not stored.
        self.shown: frozenset[str] = frozenset()
        self.suspects: Collection[str] = frozenset()
        # Whether it matters what calls write.
        self.matters = False
        # operation -> the tables that its calls were seen to write, and how often it was looked.
        self.tables: dict[str, list[str]] = {}
        self.looks: dict[str, int] = {}
        self.side_rows = SideRows()

    def follows(self, operation: ManagerOperation) -> bool:
        """Whether calls without a role may change what a local read shows."""
        return operation.name in self.suspects or not self.shown.isdisjoint(self.of(operation.name))

    def of(self, name: str) -> Collection[str]:
        """The tables that calls of an operation were seen to write."""
        return self.tables.get(name, ())

    def seen(self, name: str) -> Collection[str] | None:
        """The tables that calls of an operation were seen to write; None where it was not looked yet, and will be."""
        return None if self.matters and name not in self.looks else self.of(name)

    def wants(self, operation: ManagerOperation) -> bool:
        """Whether it should be looked which tables such a call writes."""
        return self.matters and not operation.best_effort and self.looks.get(operation.name, 0) < _LOOKS

    def learn(self, name: str, tables: Collection[str]) -> None:
        """Take in which tables a call has written."""
        self.looks[name] = self.looks.get(name, 0) + 1
        self.tables[name] = sorted({*tables, *self.of(name)})

    def dump(self) -> dict[str, Any]:
        """What was seen, to be stored."""
        return {name: [self.looks[name], *tables] for name, tables in self.tables.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.looks = {name: seen[0] for name, seen in state.items()}
        self.tables = {name: seen[1:] for name, seen in state.items()}
