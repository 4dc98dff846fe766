"""A TCP proxy in front of PostgreSQL that breaks a conversation at the exact point where it hurts.

Each fault says that it struck: an event is set, or `struck` counts it.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

from tests.unit.fakes.ports import held_port
from tests.unit.fakes.waiting import LONG

_READY = b"Z\x00\x00\x00\x05I"
_COMMIT = b"COMMIT\0"
# What makes a transaction a batch's, unlike those with which a connection begins.
_BATCH = b"INSERT INTO outbox_receipts"


class Proxy:
    """Forwards connections to the server of `url`; `self.url` goes through it.  Use it in a `with` block."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        # Keeps the port while nobody listens: it is given to nobody else.
        self._held = held_port()
        self._address = self._held.getsockname()
        self._listener = socket.create_server(self._address)
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{self._address[1]}"))
        self._conversations: list[_Conversation] = []
        self._threads: list[threading.Thread] = []
        # How often each fault struck.
        self.struck: Counter[str] = Counter()
        # While set: the answer to the next COMMIT of a batch is swallowed and the connection cut; then `cut` is set.
        self.cut_at_commit = threading.Event()
        # While set: the next COMMIT of a batch is swallowed and the connection cut; then `cut` is set.
        self.cut_before_commit = threading.Event()
        self.cut = threading.Event()
        # While set: what a client says after its login is swallowed; then `silent` is set.
        self.silent_after_login = threading.Event()
        self.silent = threading.Event()
        # While set: nothing is passed on, and nothing is closed; then `stalled` is set.
        self.stall = threading.Event()
        self.stalled = threading.Event()
        # Seconds until the server's first answer to a new connection is passed on.
        self.slow_login_s = 0.0
        # Seconds by which everything is late, each way.
        self.delay_s = 0.0
        self._closing = threading.Event()

    def __enter__(self) -> Proxy:
        self._acceptor = self._spawn(self._accept, self._listener)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self.refuse()
        self.disconnect()
        for thread in self._threads:
            thread.join(LONG)
        for conversation in self._conversations:
            conversation.close()
        self._held.close()

    def disconnect(self) -> None:
        """Cut every connection, as a server that ends does."""
        for conversation in self._conversations:
            conversation.shut()

    def reset(self) -> None:
        """Cut every connection with an RST, as a firewall or a host that restarted does."""
        for conversation in self._conversations:
            self.struck["reset"] += conversation.reset()

    def refuse(self) -> None:
        """Refuse new connections, as a host on which nobody listens."""
        with suppress(OSError):  # it does already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # What it has just accepted is there for `disconnect` then.
        self._acceptor.join(LONG)

    def accept(self) -> None:
        """Take connections again, at the same address."""
        self._listener = socket.create_server(self._address)
        self._acceptor = self._spawn(self._accept, self._listener)

    def _spawn(self, target: object, *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                conversation = _Conversation(client, socket.create_connection(self._server))
                self._conversations.append(conversation)
                self._spawn(self._upstream, conversation)
                self._spawn(self._downstream, conversation)

    def _upstream(self, conversation: _Conversation) -> None:
        with suppress(OSError):
            while data := conversation.client.recv(1 << 16):
                self._hold()
                if self.silent_after_login.is_set() and conversation.logged_in:
                    self.silent.set()
                    continue
                conversation.in_batch = conversation.in_batch or _BATCH in data
                if conversation.in_batch and _COMMIT in data:
                    conversation.in_batch = False
                    if self.cut_before_commit.is_set():
                        self.cut_before_commit.clear()
                        self.struck["cut before COMMIT"] += 1
                        self.cut.set()
                        break
                    if self.cut_at_commit.is_set():
                        self.cut_at_commit.clear()
                        conversation.committing = True
                conversation.server.sendall(data)
        conversation.shut()

    def _downstream(self, conversation: _Conversation) -> None:
        with suppress(OSError):
            conversation.server.recv(1, socket.MSG_PEEK)
            self._closing.wait(self.slow_login_s)
            while data := conversation.server.recv(1 << 16):
                if conversation.committing:
                    # The server has committed, and nobody will ever hear of it.
                    assert _COMMIT in data
                    self.struck["cut at COMMIT"] += 1
                    self.cut.set()
                    break
                self._hold()
                # Before the client can answer to what it is about to get.
                conversation.logged_in = conversation.logged_in or _READY in data
                conversation.client.sendall(data)
        conversation.shut()

    def _hold(self) -> None:
        """Be late, or stall, if that is asked for."""
        if self.delay_s:
            self.struck["delay"] += 1
            self._closing.wait(self.delay_s)
        while self.stall.is_set() and not self._closing.is_set():
            if not self.stalled.is_set():
                self.struck["stall"] += 1
            self.stalled.set()
            self._closing.wait(0.005)


class _Conversation:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.logged_in = self.in_batch = self.committing = self._over = False
        self._lock = threading.Lock()

    def shut(self) -> None:
        """End it in both directions, unless it is over."""
        with self._lock:
            self._over = True
            for one in (self.client, self.server):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def reset(self) -> bool:
        """End it with an RST to both; returns whether it was going on."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            for one in (self.client, self.server):
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    # Wakes the thread that reads from it, which says nothing to the other side; then nobody holds it.
                    one.shutdown(socket.SHUT_RD)
                    one.close()
            return True

    def close(self) -> None:
        self.client.close()
        self.server.close()
