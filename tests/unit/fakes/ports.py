"""Ports on loopback, below those that the system gives to outgoing connections.

One of those could be taken while nobody listens on it, even by the client that tries to reach it.
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress

from outbox.testing.postgres_server import _PORTS

# Not the module's own numbers: these are the same in two processes of a run that have the same seed.
_draw = random.SystemRandom()


def listen() -> socket.socket:
    """A socket that listens on a port of its own."""
    while True:
        with suppress(OSError):  # somebody has it
            return socket.create_server(("127.0.0.1", _draw.choice(_PORTS)))


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on."""
    sockets = [listen() for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def held_port() -> socket.socket:
    """A socket that keeps a free port of loopback, at which others may listen who reuse addresses, as servers do."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held
