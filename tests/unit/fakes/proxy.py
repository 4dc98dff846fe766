"""A TCP proxy in front of PostgreSQL that breaks a conversation at the exact point where it hurts."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

_READY = b"Z\x00\x00\x00\x05I"


class Proxy:
    """Forwards connections to the server of `url`; `self.url` goes through it.  Use it in a `with` block."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        # While set: the answer to the next COMMIT is swallowed and the connection cut; then `cut` is set.
        self.cut_at_commit = threading.Event()
        self.cut = threading.Event()
        # While set: what a client says after its login is swallowed; then `silent` is set.
        self.silent_after_login = threading.Event()
        self.silent = threading.Event()
        # Seconds until the server's first answer to a new connection is passed on.
        self.slow_login_s = 0.0
        self._closing = threading.Event()

    def __enter__(self) -> Proxy:
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self.disconnect()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in [self._listener, *self._sockets]:
            one.close()

    def disconnect(self) -> None:
        """Cut every connection."""
        for one in self._sockets:
            _shut(one)

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                state = _Conversation()
                self._spawn(self._upstream, client, server, state)
                self._spawn(self._downstream, client, server, state)

    def _upstream(self, client: socket.socket, server: socket.socket, state: _Conversation) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self.silent_after_login.is_set() and state.logged_in:
                    self.silent.set()
                    continue
                if self.cut_at_commit.is_set() and b"COMMIT\0" in data:
                    self.cut_at_commit.clear()
                    state.committing = True
                server.sendall(data)
        _shut(server)

    def _downstream(self, client: socket.socket, server: socket.socket, state: _Conversation) -> None:
        with suppress(OSError):
            server.recv(1, socket.MSG_PEEK)
            self._closing.wait(self.slow_login_s)
            while data := server.recv(1 << 16):
                if state.committing:
                    # The server has committed, and nobody will ever hear of it.
                    assert b"COMMIT\0" in data
                    self.cut.set()
                    _shut(server)
                    break
                # Before the client can answer to what it is about to get.
                state.logged_in = state.logged_in or _READY in data
                client.sendall(data)
        _shut(client)


class _Conversation:
    logged_in = False
    committing = False


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
