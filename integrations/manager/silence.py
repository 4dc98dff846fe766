"""Silence: ends statements that wait for a frozen PostgreSQL, where the program can go on without the answer.

A server that is frozen (its disk hangs, its host is suspended) keeps the driver waiting for ever, while TCP looks well.
The relay has a time limit for that: a statement that takes long makes the relay look, and ends when the relay reports
an outage.  A server that is only slow is waited for.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import psycopg2.extensions

from ...log import Log

_log = Log("outbox.integrations")

# How long a statement may take before the relay is asked, and how often this is checked.
_PATIENCE_S = 2.0
_LOOK_S = 0.5
# For a new connection, where neither the URL nor the engine gives a time.
_CONNECT_S = 5

_begun: ContextVar[list[Callable[[], None]] | None] = ContextVar("outbox_begun_statements", default=None)
_ours: ContextVar[object] = ContextVar("outbox_own_statement", default=None)


class Silence:
    """Watches over the statements of one manager.  Thread-safe."""

    def __init__(self, is_away: Callable[[], bool], ask: Callable[[], None], monotonic: Callable[[], float]) -> None:
        """`is_away()`: whether PostgreSQL is away, as far as a relay knows; `ask()` lets the relay look."""
        self._is_away, self._ask, self._monotonic = is_away, ask, monotonic
        self._lock = threading.RLock()
        # By the driver's connection: when its last statement began.
        self._waiting: dict[Any, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def begins(self, raw: Any) -> None:
        """A statement is sent on a driver's connection; it ends with the block of `ending`, and without one is free."""
        begun = _begun.get()
        if begun is None or not isinstance(raw, psycopg2.extensions.connection):
            return
        with self._lock:
            new = raw not in self._waiting
            self._waiting[raw] = self._monotonic()
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="outbox-silence", daemon=True)
                self._thread.start()
        if new:
            begun.append(lambda: self._ends(raw))

    def watch_pings(self, dialect: Any) -> Callable[[], None]:
        """A pool with `pool_pre_ping` asks before any event of SQLAlchemy; returns how to undo it."""
        ping = dialect.do_ping

        def do_ping(raw: Any) -> Any:
            self.begins(raw)
            return ping(raw)

        def undo() -> None:
            if vars(dialect).get("do_ping") is do_ping:
                del dialect.do_ping

        dialect.do_ping = do_ping
        return undo

    def _ends(self, raw: Any) -> None:
        with self._lock:
            self._waiting.pop(raw, None)

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._closed.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_S):
            with self._lock:
                since = min(self._waiting.values(), default=None)
            if since is None or self._monotonic() - since < _PATIENCE_S:
                continue
            try:
                if self._is_away():
                    self._end_late()
                else:
                    self._ask()
            except Exception as exc:  # noqa: BLE001 - without this thread a silent server stops the host's reads
                # The store was closed or is halted, or memory is short; it may be asked again.
                _log.warning("whether PostgreSQL is away is unknown: %(error)s", error=exc)

    def _end_late(self) -> None:
        # Within the lock: else a connection may be closed meanwhile, and another socket would be shut.
        with self._lock:
            late = [raw for raw, began in self._waiting.items() if self._monotonic() - began >= _PATIENCE_S]
            for raw in late:
                del self._waiting[raw]
                with suppress(psycopg2.Error, OSError):  # it is closed already
                    _shut(raw.fileno())
        if late:
            _log.warning("PostgreSQL is silent, and %(count)s connections of the manager were shut", count=len(late))


def _shut(descriptor: int) -> None:
    duplicate = socket.socket(fileno=os.dup(descriptor))
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    finally:
        duplicate.close()


@contextmanager
def ending() -> Iterator[None]:
    """In this block statements end where PostgreSQL is silent."""
    begun, around = list[Callable[[], None]](), _begun.get()
    try:
        _begun.set(begun)
        yield
    finally:
        if _begun.get() is begun:
            _begun.set(around)
        for end in begun:
            end()


def limit_connecting(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
    """For SQLAlchemy's event `do_connect`: in a block of `ending` connecting has a time limit."""
    if _begun.get() is not None:
        parameters.setdefault("connect_timeout", _CONNECT_S)


@contextmanager
def own_statements() -> Iterator[None]:
    """Statements that the adapter itself sends through the manager's engine pass every guard, and end in silence."""
    ours, around = object(), _ours.get()
    try:
        _ours.set(ours)
        with ending():
            yield
    finally:
        if _ours.get() is ours:
            _ours.set(around)


def is_own() -> bool:
    """Whether the adapter itself sends a statement."""
    return _ours.get() is not None
