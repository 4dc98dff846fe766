"""Final ids without PostgreSQL: blocks taken from its sequences while it is up, kept durably, handed out at once.

An id that was handed out is never handed out again, also after a crash: a chunk is checked out durably before the
first of its ids is used, and what a crash leaves of it is a gap.  A sequence that has fallen back, as after the
restore of a backup, is set forward behind the highest id that was ever reserved.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Engine, text

from .. import Outbox, OutboxError
from ..errors import ConfigError

_CHUNK = 64
# How many ids are kept for each table, and for those of which a program makes few.
_WANTED = 5000
_WANTED_OF = {"trading_sessions": 100}

_SEQUENCE = text("SELECT pg_get_serial_sequence(:table, :column)")
_FETCH = text("SELECT nextval(CAST(:sequence AS regclass)) FROM generate_series(1, :missing)")
_FORWARD = text("SELECT setval(CAST(:sequence AS regclass), :highest)")
_SECURE = text(
    "SELECT setval(CAST(:sequence AS regclass), :highest) "
    "WHERE coalesce(pg_sequence_last_value(CAST(:sequence AS regclass)), 0) < :highest"
)


class IdReserveEmpty(OutboxError):
    """No reserved id is left, or none was ever fetched."""


class IdReserve:
    """Reserved ids of one table's column.  Thread-safe; one object per column and store."""

    def __init__(self, outbox: Outbox, table: str, column: str = "id", *, wanted: int | None = None) -> None:
        """`wanted` ids are kept in reserve by `fill`."""
        self._outbox, self._table, self._column = outbox, table, column
        self._wanted = wanted or _WANTED_OF.get(table, _WANTED)
        self._meta = f"ids:{table}" if column == "id" else f"ids:{table}.{column}"
        # A crash costs a chunk, and a small reserve must last through many.
        self._chunk_size = max(1, min(_CHUNK, self._wanted // 50))
        self._lock = threading.Lock()
        self._chunk: deque[int] = deque()
        stored = outbox.store.get_meta(self._meta)
        state: dict[str, Any] = json.loads(stored) if stored else {"ranges": [], "highest": 0}
        # Ranges [first, last] of ids that are free, oldest first, and the highest id ever fetched.
        self._ranges: list[list[int]] = state["ranges"]
        self._highest: int = state["highest"]

    def left(self) -> int:
        """How many ids can be handed out without PostgreSQL."""
        with self._lock:
            return len(self._chunk) + sum(last - first + 1 for first, last in self._ranges)

    @property
    def low(self) -> bool:
        """Whether it is time to `fill` it."""
        return self.left() <= self._wanted // 2

    def take(self) -> int:
        """The next id.  Raises `IdReserveEmpty` or `DurabilityError`."""
        with self._lock:
            if not self._chunk:
                self._check_out()
            return self._chunk.popleft()

    def fill(self, engine: Engine) -> None:
        """Fetch ids from the column's sequence until enough are in reserve.

        Raises `SQLAlchemyError` when PostgreSQL is away, `ConfigError` where the column has no sequence.
        """
        missing = self._wanted - self.left()
        if missing <= 0:
            return
        with engine.connect() as connection:
            fetched = self._fetch(connection, missing)
        with self._lock:
            for number in fetched:
                if self._ranges and self._ranges[-1][1] == number - 1:
                    self._ranges[-1][1] = number
                else:
                    self._ranges.append([number, number])
            self._highest = max(self._highest, fetched[-1])
            self._save()

    def secure(self, engine: Engine) -> None:
        """Set the sequence forward where it has fallen behind a reserved id, so that nobody else is given that one.

        Raises as `fill`.
        """
        if self._highest:
            with engine.begin() as connection:
                connection.execute(_SECURE, {"sequence": self._sequence(connection), "highest": self._highest})

    def _sequence(self, connection: Connection) -> str:
        sequence = connection.execute(_SEQUENCE, {"table": self._table, "column": self._column}).scalar()
        if sequence is None:
            raise ConfigError(
                f"column {self._table}.{self._column} has no sequence, so no ids can be reserved",
                hint="make it SERIAL or IDENTITY, or declare the operation without creates=",
            )
        return str(sequence)

    def _fetch(self, connection: Connection, missing: int) -> list[int]:
        sequence = self._sequence(connection)
        while True:
            found = sorted(connection.execute(_FETCH, {"sequence": sequence, "missing": missing}).scalars())
            if found[0] > self._highest:
                return found
            connection.execute(_FORWARD, {"sequence": sequence, "highest": self._highest})

    def _check_out(self) -> None:
        if not self._ranges:
            raise IdReserveEmpty(
                f"no id is left in the reserve of {self._table}",
                hint="PostgreSQL must be reachable to fetch more; the reserve is filled when the engine starts",
            )
        first, last = self._ranges[0]
        taken = range(first, min(first + self._chunk_size, last + 1))
        if taken[-1] == last:
            self._ranges.pop(0)
        else:
            self._ranges[0][0] = taken[-1] + 1
        self._save()
        self._chunk.extend(taken)

    def _save(self) -> None:
        state = {"ranges": self._ranges, "highest": self._highest}
        self._outbox.store.put_meta(self._meta, json.dumps(state).encode())


class IdReserves:
    """The reserves of several tables.  Thread-safe."""

    def __init__(self, outbox: Outbox, columns: Iterable[tuple[str, str]]) -> None:
        """`columns`: `(table, column)` of the ids."""
        self._reserves = {(table, column): IdReserve(outbox, table, column) for table, column in columns}

    def take(self, table: str, column: str) -> int:
        """The next id of a column.  Raises `IdReserveEmpty` or `DurabilityError`."""
        return self._reserves[table, column].take()

    def take_if_any(self, table: str, column: str) -> int | None:
        """The next id, or None where the column has no reserve or it is empty.  Raises `DurabilityError`."""
        reserve = self._reserves.get((table, column))
        return reserve.take() if reserve is not None and reserve.left() else None

    @property
    def low(self) -> bool:
        """Whether one of them should be filled."""
        return any(reserve.low for reserve in self._reserves.values())

    def secure(self, engine: Engine) -> None:
        """Secure all of them; raises as `IdReserve.fill`."""
        for reserve in self._reserves.values():
            reserve.secure(engine)

    def fill(self, engine: Engine) -> None:
        """Fill all of them; raises as `IdReserve.fill`."""
        for reserve in self._reserves.values():
            reserve.fill(engine)
