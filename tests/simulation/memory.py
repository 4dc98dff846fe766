"""LMDB in memory: what `Store` and `ledger` need of it, so that both run as they are, thousands of times a second.

Transactions are atomic and can fail at their commit, with or without having taken effect, as a disk does.  A test
compares it with the real thing call by call.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb

from outbox.store.envelope import FORMAT
from outbox.store.identity import Identity


class Killed(BaseException):
    """The process is killed here: nothing of it runs on."""


class Rows:
    """One sub-database: values by key, keys in order."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []

    def set(self, key: bytes, value: bytes | None) -> bytes | None:
        """Put or delete one row; what was there before."""
        before = self.values.get(key)
        if value is None:
            if before is not None:
                del self.values[key]
                del self.keys[bisect.bisect_left(self.keys, key)]
        else:
            self.values[key] = value
            if before is None:
                if not self.keys or key > self.keys[-1]:
                    self.keys.append(key)
                else:
                    bisect.insort(self.keys, key)
        return before


class MemoryEnvironment:
    """Stands for `outbox.store.environment.Environment`, and for the `lmdb.Environment` in its `env`."""

    def __init__(self, store_id: UUID) -> None:
        self.directory = Path("/")
        self.identity = Identity(store_id, FORMAT)
        self.main, self.pending, self.idempotency, self.ledger = Rows(), Rows(), Rows(), Rows()
        self.map_bytes = 1 << 36
        self.readonly = False
        self.env = self
        # What the next durable commit does: "lost" fails without effect, "kept" fails and has taken effect.  With
        # `kill_next` the process is killed in it instead.
        self.fail_next: str | None = None
        self.kill_next = False
        # Whether nothing more fits in; what is there can be deleted, or replaced by what is no longer.
        self.full = False
        self.struck: Counter[str] = Counter()
        # Whether a durable write has failed since the process began.
        self.failed = False

    def check_in_place(self) -> None:
        """Memory stays where it is."""

    check_open = check_lock_in_place = check_roles_in_place = check_in_place

    def pinned_commits(self) -> int:
        """No reader stays behind."""
        return 0

    def data_is_in_place(self) -> bool:
        """As long as the process lives."""
        return True

    def file_bytes(self) -> int:
        return 0

    def can_grow(self, size: int) -> bool:
        return not self.full

    def high_water_bytes(self) -> int:
        return 0

    def reader_check(self) -> None:
        """No readers survive here."""

    def close(self) -> None:
        """What was committed stays."""

    def begin(self, *, write: bool = False) -> MemoryTransaction:
        return MemoryTransaction(self, write=write)

    def commit(self, transaction: MemoryTransaction) -> None:
        """What happens to the process and the disk at the end of a durable write."""
        if self.fail_next is None or not transaction.log:
            return
        self.struck[f"{'killed' if self.kill_next else 'failed'} and {self.fail_next}"] += 1
        if self.fail_next == "lost":
            transaction.undo()
        self.fail_next, self.failed = None, True
        if self.kill_next:
            self.kill_next = False
            raise Killed
        raise lmdb.Error("simulated: Input/output error")


class MemoryTransaction:
    """The part of `lmdb.Transaction` that is used."""

    def __init__(self, environment: MemoryEnvironment, *, write: bool) -> None:
        self._environment, self._main, self._write = environment, environment.main, write
        self.log: list[tuple[Rows, bytes, bytes | None]] = []

    def __enter__(self) -> MemoryTransaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.undo()
        elif self._write:
            self._environment.commit(self)
        else:
            assert not self.log, "a read transaction has written"

    def undo(self) -> None:
        for rows, key, before in reversed(self.log):
            rows.set(key, before)
        self.log.clear()

    def write(self, rows: Rows, key: bytes, value: bytes | None) -> bytes | None:
        if self._environment.full and value is not None and len(value) > len(rows.values.get(key, b"")):
            self._environment.failed = True
            self._environment.struck["full"] += 1
            raise lmdb.MapFullError("simulated")
        before = rows.set(key, value)
        self.log.append((rows, key, before))
        return before

    def get(self, key: bytes, default: Any = None, *, db: Rows | None = None) -> Any:
        return (db or self._main).values.get(key, default)

    def put(
        self, key: bytes, value: bytes, *, db: Rows | None = None, append: bool = False, overwrite: bool = True
    ) -> bool:
        rows = db or self._main
        if not overwrite and key in rows.values:
            return False
        if append and rows.keys and key <= rows.keys[-1]:
            return False
        self.write(rows, key, bytes(value))
        return True

    def delete(self, key: bytes, *, db: Rows | None = None) -> bool:
        rows = db or self._main
        if key not in rows.values:
            return False
        self.write(rows, key, None)
        return True

    def stat(self, db: Rows) -> dict[str, int]:
        return {"entries": len(db.keys), "branch_pages": 0, "leaf_pages": 0, "overflow_pages": 0, "psize": 4096}

    def cursor(self, *, db: Rows | None = None) -> MemoryCursor:
        return MemoryCursor(self, db or self._main)


class MemoryCursor:
    """The part of `lmdb.Cursor` that is used."""

    def __init__(self, transaction: MemoryTransaction, rows: Rows) -> None:
        self._transaction, self._rows, self._at = transaction, rows, 0

    def __enter__(self) -> MemoryCursor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def first(self) -> bool:
        self._at = 0
        return bool(self._rows.keys)

    def last(self) -> bool:
        self._at = len(self._rows.keys) - 1
        return bool(self._rows.keys)

    def key(self) -> bytes:
        return self._rows.keys[self._at] if self._at < len(self._rows.keys) else b""

    def value(self) -> bytes:
        return self._rows.values.get(self.key(), b"")

    def delete(self) -> bool:
        """Delete the row here; the next one takes its place."""
        return self._transaction.delete(self.key(), db=self._rows)

    def set_range(self, key: bytes) -> bool:
        self._at = bisect.bisect_left(self._rows.keys, key)
        return self._at < len(self._rows.keys)

    def iternext(self) -> Iterator[tuple[bytes, bytes]]:
        rows = self._rows
        return ((key, rows.values[key]) for key in rows.keys[self._at :])

    def iterprev(self) -> Iterator[tuple[bytes, bytes]]:
        rows = self._rows
        return ((key, rows.values[key]) for key in reversed(rows.keys))

    def getmulti(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        return [(key, self._rows.values[key]) for key in keys if key in self._rows.values]

    def putmulti(self, items: Sequence[tuple[bytes, bytes]], *, append: bool = False) -> tuple[int, int]:
        added = 0
        for key, value in items:
            added += self._transaction.put(key, value, db=self._rows, append=append)
        return len(items), added


class InlineWriter:
    """Stands for the `Writer`: everything happens in the caller's thread, so that a seed repeats itself."""

    def __init__(
        self, name: str, commit: Callable[..., None], committed: Callable[[], None], died: Callable[..., object]
    ) -> None:
        del name, died
        self._commit, self._committed = commit, committed
        # Of the writer's: nothing is at work when anybody looks.
        self.moves = 0

    def submit(self, item: Any) -> None:
        """Commit one item."""
        self._commit([item])
        self._committed()

    def run(self, rank: Any, work: Callable[[], Any]) -> Any:
        """Run it at once."""
        return work()

    def stop(self) -> None:
        """There is no thread."""
