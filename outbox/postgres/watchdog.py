"""Watchdog: shuts the connection to a server that has become silent.

A stalled server whose kernel still acknowledges TCP keeps the driver waiting past every timeout it has; only
shutting the socket wakes it.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..log import Log

_log = Log("outbox.watchdog")


class Watchdog:
    """Shuts a connection's socket when a guarded block takes too long.  Thread-safe.

    It holds a duplicate of the descriptor, so that it can never shut a socket that got the number later.
    """

    def __init__(self, limit_s: float, monotonic: Callable[[], float], *, connecting_s: float = math.inf) -> None:
        """`limit_s` is the longest that a guarded block may take, `connecting_s` that one host may take to let in.

        It fires within a quarter of `limit_s` more.
        """
        self._limit_s, self._connecting_s, self._monotonic = limit_s, connecting_s, monotonic
        # Its thread shuts a socket while it holds the lock.
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None
        # Of connections that a handler makes beside it, within the guarded block at hand.
        self._beside: list[socket.socket] = []
        self._deadline: float | None = None
        # Whether the driver waits for an answer; None while the socket is still being connected, so that a server that
        # is away is no surprise.
        self._is_asking: Callable[[], bool] | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        # Whether it shut the socket of the guarded block at hand, or of the last one.
        self.fired = False
        # Whether the driver waited for no answer then, so that the time was spent in this process.
        self.spent_here = False
        # Whether `interrupt` asked for the end of the guarded block at hand.
        self._unwanted = False

    def watch_connecting(self, descriptor: int) -> None:
        """Guard this socket while it is connected, where the driver leaves waiting to a callback of the host.

        Called whenever the callback is about to wait; the time of a socket begins with the first call.
        """
        with self._lock:
            known = self._socket is not None and os.path.sameopenfile(self._socket.fileno(), descriptor)
        if not known:
            self._watch(descriptor, self._connecting_s, None)

    def watch(self, descriptor: int, is_asking: Callable[[], bool] = lambda: True) -> None:
        """Guard this connected socket from now on, instead of any earlier one.

        `is_asking`: whether an answer is waited for; called by another thread while the socket is watched.
        """
        self._watch(descriptor, self._limit_s, is_asking)

    def watch_beside(self, descriptor: int) -> None:
        """Guard this connected socket too, until the guarded block at hand ends; does nothing without one."""
        with self._lock:
            if self._deadline is not None:
                self._beside.append(socket.socket(fileno=os.dup(descriptor)))

    def _watch(self, descriptor: int, limit_s: float, is_asking: Callable[[], bool] | None) -> None:
        duplicate = socket.socket(fileno=os.dup(descriptor))
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket, self._is_asking, self.fired, self.spent_here = duplicate, is_asking, False, False
            if self._deadline is not None:
                # Connecting has a time limit of its own; what comes then has this one.
                self._deadline = self._monotonic() + limit_s
            if self._unwanted:
                self._shut()
            if self._thread is None:
                self._closing = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._closing,), name="outbox-watchdog", daemon=True)
                # It may fail, and must then be tried again at the next connection.
                thread.start()
                self._thread = thread

    def forget(self) -> None:
        """Let go of the socket: while a duplicate is open, the server does not see that the connection was closed."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """The block must end within the limit; else the socket is shut, and `fired` is set."""
        with self._lock:
            self.fired = self._unwanted = self.spent_here = False
            self._deadline = self._monotonic() + self._limit_s
        try:
            yield
        finally:
            with self._lock:
                self._deadline, self._unwanted = None, False
                while self._beside:
                    self._beside.pop().close()

    def shut(self) -> None:
        """Shut the socket now, or as soon as the guarded block at hand has one."""
        with self._lock:
            self._unwanted = self._deadline is not None
            self._shut()

    def _shut(self) -> None:
        """Assumes the lock."""
        self.fired = True
        for one in (self._socket, *self._beside):
            with suppress(OSError):  # it is down already
                if one is not None:
                    one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the socket and end the thread; `watch` starts anew."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            thread, self._thread = self._thread, None
            self._closing.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._limit_s)

    def _run(self, closing: threading.Event) -> None:
        # Looking a few times per limit costs less than waking a thread for every batch.
        while not closing.wait(self._limit_s / 4):
            # Within the lock: else the block may end meanwhile, and the socket of the next one would be shut.
            with self._lock:
                # Without a socket the driver itself waits until it is connected, with a time limit of its own.
                if self._deadline is not None and self._socket is not None and not self.fired:
                    self._end_if_late(self._deadline)

    def _end_if_late(self, deadline: float) -> None:
        """Shut the socket of a silent server, or of a host that completes no login: the driver may try the next one.

        Assumes the lock.
        """
        if self._monotonic() <= deadline:
            return
        if self._is_asking is None:
            _log.debug(
                "a host completes no login within %(limit_s)s s: trying the next one", limit_s=self._connecting_s
            )
            self._shut()
            return
        self.spent_here = not self._is_asking() or self._has_answer()
        if self.spent_here:
            _log.error(
                "a transaction took longer than %(limit_s)s s here, not in PostgreSQL: its connection is shut",
                limit_s=self._limit_s,
            )
        else:
            _log.error("PostgreSQL took longer than %(limit_s)s s: its connection is shut", limit_s=self._limit_s)
        self.shut()

    def _has_answer(self) -> bool:
        """Whether the socket has unread bytes.  Assumes the lock."""
        return self._socket is not None and has_unread(self._socket.fileno())


def has_unread(descriptor: int) -> bool:
    """Whether a socket has unread bytes, or was ended by the other side."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    # The host has patched it away, as eventlet does.
    with suppress(ValueError):  # a number that select(2) cannot take
        return bool(select.select([descriptor], [], [], 0)[0])
    return False
