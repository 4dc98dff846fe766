"""Presence: which of the servers that an address names accept connections.

It logs in nowhere: a connection is made and closed, of which PostgreSQL takes no notice.  One that still starts, and a
pooler whose server is away, accept it too: only a delivery shows whether they work.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

# So long a look at all servers takes at most, where their names are known.  To look a name up has no limit: where that
# takes long, the relay's thread does so for a small part of the time.
_LOOK_S = 0.5
_PAUSES = 20


class Servers:
    """The servers that the last failed connection named.  Used by one thread at a time."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._named: tuple[tuple[str, int], ...] = ()
        # When the next look is due, in monotonic seconds.
        self._due_at = 0.0

    def name(self, tried: Mapping[str, str]) -> None:
        """Look from now on at those of libpq's parameters."""
        self._named = hosts(tried)

    def accepting(self) -> frozenset[str]:
        """Those that accept a connection; none where a look has just taken long.  Never raises."""
        began = self._monotonic()
        if began < self._due_at:
            return frozenset()
        found = accepting(self._named, _LOOK_S)
        ended = self._monotonic()
        if ended - began > 2 * _LOOK_S:
            self._due_at = ended + _PAUSES * (ended - began)
        return found


def hosts(tried: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Host (an address, a name or the folder of a socket) and port of each server that libpq's parameters name."""
    names = (tried.get("hostaddr") or tried.get("host") or "").split(",")
    ports = (tried.get("port") or "").split(",")
    ports = ports if len(ports) == len(names) else ports[:1] * len(names)
    return tuple((name, int(port)) for name, port in zip(names, ports, strict=True) if name and port.isdecimal())


def accepting(servers: tuple[tuple[str, int], ...], timeout_s: float) -> frozenset[str]:
    """The servers that accept a connection within `timeout_s` seconds for all; to look names up comes on top.

    Never raises.
    """
    return frozenset(f"{host}:{port}" for host, port in servers if _accepts(host, port, timeout_s / len(servers)))


def _accepts(host: str, port: int, timeout_s: float) -> bool:
    try:
        if not host.startswith("/"):
            socket.create_connection((host, port), timeout_s).close()
            return True
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(timeout_s)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return True
    except (OSError, ValueError):
        return False
