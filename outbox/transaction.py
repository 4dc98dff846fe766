"""Transaction: collects calls that are stored in one LMDB commit, and applied in one PostgreSQL transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .calls import Prepared
from .entry import Entry
from .errors import InvalidEntry

_MAX_GROUP = 10_000


class Transaction:
    """Collects entries for one commit; see `Outbox.transaction`.  Use it on one thread."""

    def __init__(self, prepare: Callable[..., Prepared]) -> None:
        """`prepare` validates and encodes one call."""
        self._prepare = prepare
        self.prepared: list[Prepared] = []
        self._open = True
        self._stored: Iterator[Entry] = iter(())
        self._entries: list[Entry] = []

    def enqueue(
        self, operation: str, args: Mapping[str, Any], *, key: str | None = None, order_by: str | int | None = None
    ) -> None:
        """Add one call; validated now, stored when the block ends.  Raises `InvalidEntry`."""
        if not self._open:
            raise InvalidEntry("the transaction has ended", hint="enqueue inside its with block")
        if len(self.prepared) >= _MAX_GROUP:
            raise InvalidEntry(f"a transaction takes at most {_MAX_GROUP} entries", hint="use several")
        self.prepared.append(self._prepare(operation, args, key, order_by))

    @property
    def entries(self) -> list[Entry]:
        """The stored entries, in order, once the block has ended; none before."""
        self._entries += self._stored
        return self._entries

    def end(self) -> None:
        """Take no more calls."""
        self._open = False

    def keep(self, stored: Iterator[Entry]) -> None:
        """What was stored of them."""
        self._stored = stored
