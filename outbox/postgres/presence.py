"""Presence: which of the servers that an address names accept connections.

It logs in nowhere: a connection is made and closed, of which PostgreSQL takes no notice.  One that still starts, and a
pooler whose server is away, accept it too: only a delivery shows whether they work.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping


def hosts(tried: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Host (an address, a name or the folder of a socket) and port of each server that libpq's parameters name."""
    names = (tried.get("hostaddr") or tried.get("host") or "").split(",")
    ports = (tried.get("port") or "").split(",")
    ports = ports if len(ports) == len(names) else ports[:1] * len(names)
    return tuple((name, int(port)) for name, port in zip(names, ports, strict=True) if name and port.isdecimal())


def accepting(servers: tuple[tuple[str, int], ...], timeout_s: float) -> frozenset[str]:
    """The servers that accept a connection within `timeout_s` seconds for all of them.  Never raises."""
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
