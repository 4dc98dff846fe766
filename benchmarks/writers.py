"""The contenders for one durable write: each makes a trade durable before `write` returns, in its own usual way.

They are set up as their documentation tells who wants no loss at a power cut, and none is made slower than it need be:
connections, prepared files and encoders are kept; each thread has a connection of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import lmdb
import psycopg2
from sqlalchemy import create_engine
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import Session

from outbox import Outbox
from outbox.store.envelope import Counters, pack, seq_key

from .workload import TRADE, TRADE_COLUMNS, config, create_table, execute, trade

T = TypeVar("T", bound="Closable")


class Closable(Protocol):
    def close(self) -> Any: ...


class Writer(Protocol):
    """Thread-safe.  `rows` counts afterwards what is there, by asking the storage; None where nothing is kept."""

    def write(self, number: int, args: dict[str, Any]) -> Any: ...
    def rows(self) -> int | None: ...
    def close(self) -> None: ...


class OneFlush:
    """The limit: 4 KiB over the same block of a file, one fdatasync.  Keeps nothing."""

    def __init__(self, directory: Path, url: str) -> None:
        del url
        self._file = os.open(directory / "block", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._block = bytes(4096)
        os.pwrite(self._file, self._block, 0)
        os.fsync(self._file)

    def write(self, number: int, args: dict[str, Any]) -> None:
        os.pwrite(self._file, self._block, 0)
        os.fdatasync(self._file)

    def rows(self) -> None:
        return None

    def close(self) -> None:
        os.close(self._file)


class BareLmdb:
    """LMDB with the puts of the outbox and nothing else: bytes that are ready, no check, no hash, no encoding."""

    def __init__(self, directory: Path, url: str) -> None:
        del url
        self._environment = lmdb.open(os.fspath(directory), map_size=64 << 30, max_dbs=3, lib_version=0)
        with self._environment.begin(write=True) as txn:
            self._pending, self._keys, _ = (
                self._environment.open_db(name, txn=txn) for name in (b"pending", b"idempotency", b"ledger")
            )
        self._record, self._counters = _stored_sizes(directory)
        self._next = 1

    def write(self, number: int, args: dict[str, Any]) -> None:
        self.write_many(1)

    def write_many(self, count: int) -> None:
        with self._environment.begin(write=True) as txn:
            for _ in range(count):
                key, seq = os.urandom(16), seq_key(self._next)
                txn.put(seq, self._record, db=self._pending, append=True)
                txn.put(key, seq + key, db=self._keys)
                self._next += 1
            txn.put(b"counters", self._counters)

    def rows(self) -> int:
        with self._environment.begin() as txn:
            return int(txn.stat(self._pending)["entries"])

    def close(self) -> None:
        self._environment.close()


def _stored_sizes(directory: Path) -> tuple[bytes, bytes]:
    """A record and the counters as the outbox stores them."""
    with Outbox.open(directory / "sample", config(), [TRADE]) as box:
        record = box._prepare(TRADE.name, trade(1), None, None)[0]
    return pack(record), Counters().pack()


class JsonLines:
    """The classic write-ahead file: a line of JSON, appended and flushed under a lock that processes respect."""

    def __init__(self, directory: Path, url: str) -> None:
        del url
        self._path = directory / "trades.jsonl"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # A flock belongs to the open file, which threads share.
        self._mutex = threading.Lock()

    def write(self, number: int, args: dict[str, Any]) -> None:
        data = json.dumps(args, default=str).encode() + b"\n"
        with self._mutex:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                os.write(self._file, data)
                os.fsync(self._file)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def rows(self) -> int:
        with self._path.open("rb") as file:
            return sum(1 for _ in file)

    def close(self) -> None:
        os.close(self._file)


class PerThread(Generic[T]):
    """One connection for each thread, made when it first asks, all closed together."""

    def __init__(self, connect: Callable[[], T]) -> None:
        self._connect = connect
        self._own = threading.local()
        self._all: list[T] = []

    def get(self) -> T:
        connection: T | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._connect()
            self._all.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._all:
            connection.close()


class Sqlite:
    """SQLite with a write-ahead log and `synchronous=FULL`, the key of a trade as primary key."""

    def __init__(self, directory: Path, url: str) -> None:
        del url
        self._path = directory / "trades.sqlite"
        self._connections = PerThread(self._connect)
        self._connections.get().execute("CREATE TABLE trades (key TEXT PRIMARY KEY, body TEXT NOT NULL)")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=120, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def write(self, number: int, args: dict[str, Any]) -> None:
        values = (args["client_order_id"], json.dumps(args, default=str))
        self._connections.get().execute("INSERT INTO trades VALUES (?, ?)", values)

    def rows(self) -> int:
        return int(self._connections.get().execute("SELECT count(*) FROM trades").fetchone()[0])

    def close(self) -> None:
        self._connections.close()


class PersistQueue:
    """persist-queue's SQLiteAckQueue."""

    def __init__(self, directory: Path, url: str) -> None:
        del url
        from persistqueue import SQLiteAckQueue

        self._queue = SQLiteAckQueue(os.fspath(directory), multithreading=True)

    def write(self, number: int, args: dict[str, Any]) -> None:
        self._queue.put(args)

    def rows(self) -> int:
        return int(self._queue.ready_count() + self._queue._ack_count_via_status("0"))

    def close(self) -> None:
        self._queue.close()


class Psycopg2:
    """A row straight into PostgreSQL: INSERT and COMMIT with psycopg2."""

    def __init__(self, directory: Path, url: str) -> None:
        del directory
        self._url = url
        create_table(url, "direct_trades", TRADE_COLUMNS)
        names = list(trade(1))
        self._insert = f"INSERT INTO direct_trades ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"
        self._connections = PerThread(lambda: psycopg2.connect(url))

    def write(self, number: int, args: dict[str, Any]) -> None:
        connection = self._connections.get()
        with connection.cursor() as cursor:
            cursor.execute(self._insert, tuple(args.values()))
        connection.commit()

    def rows(self) -> int:
        return int(execute(self._url, "SELECT count(*) FROM direct_trades")[0][0])

    def close(self) -> None:
        self._connections.close()


class SqlAlchemy:
    """A row straight into PostgreSQL: `session.add` and `session.commit` of SQLAlchemy's ORM."""

    def __init__(self, directory: Path, url: str) -> None:
        del directory
        self._url = url
        create_table(url, "orm_trades", TRADE_COLUMNS)
        self._class = mapped_class(url, "orm_trades")
        self._engine = create_engine(sqlalchemy_url(url), pool_size=64)
        self._connections = PerThread(lambda: Session(self._engine))

    def write(self, number: int, args: dict[str, Any]) -> None:
        session = self._connections.get()
        session.add(self._class(**args))
        session.commit()

    def rows(self) -> int:
        return int(execute(self._url, "SELECT count(*) FROM orm_trades")[0][0])

    def close(self) -> None:
        self._connections.close()
        self._engine.dispose()


class OutboxWriter:
    """This library: one call, one entry; or a transaction of several."""

    def __init__(self, directory: Path, url: str) -> None:
        del url
        self.box = Outbox.open(directory / "outbox", config(), [TRADE])

    def write(self, number: int, args: dict[str, Any]) -> None:
        self.box.enqueue("log_trade", args)

    def rows(self) -> int:
        return sum(1 for _ in self.box.pending())

    def close(self) -> None:
        self.box.close()


def mapped_class(url: str, table: str) -> Any:
    """An ORM class of a table that exists."""
    engine = create_engine(sqlalchemy_url(url))
    try:
        base: Any = automap_base()
        base.prepare(autoload_with=engine, reflection_options={"only": [table]})
        return base.classes[table]
    finally:
        engine.dispose()


def sqlalchemy_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


LIMIT, BARE, OUTBOX, JSON_LINES = "one 4 KiB fdatasync", "bare LMDB transaction", "outbox", "JSON lines + flock + fsync"
WRITERS: dict[str, Callable[[Path, str], Writer]] = {
    LIMIT: OneFlush,
    BARE: BareLmdb,
    OUTBOX: OutboxWriter,
    JSON_LINES: JsonLines,
    "SQLite WAL, synchronous=FULL": Sqlite,
    "persist-queue SQLiteAckQueue": PersistQueue,
    "psycopg2 INSERT + COMMIT": Psycopg2,
    "SQLAlchemy ORM add + commit": SqlAlchemy,
}
# These flush in PostgreSQL's process, which counts for itself.
IN_POSTGRES = {"psycopg2 INSERT + COMMIT", "SQLAlchemy ORM add + commit"}


def available() -> list[str]:
    """The contenders whose packages are installed."""
    return [name for name in WRITERS if WRITERS[name] is not PersistQueue or find_spec("persistqueue") is not None]


def audited_calls(name: str, directory: str, count: int, threads: int) -> list[tuple[float, float]]:
    """Make `count` writes on each of `threads` threads; returns when each began and ended, monotonic seconds."""
    writer = WRITERS[name](Path(directory), "")
    spans: list[tuple[float, float]] = []

    def work(first: int) -> None:
        for number in range(first, first + count):
            args = trade(number)
            begin = time.monotonic()
            writer.write(number, args)
            spans.append((begin, time.monotonic()))

    workers = [threading.Thread(target=work, args=(index * count,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = writer.rows()
    writer.close()
    if rows is not None and rows != len(spans):
        raise RuntimeError(f"{name}: {rows} rows after {len(spans)} writes")
    return spans
