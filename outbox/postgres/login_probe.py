"""Distinguishes an outage from a refused login, after a connection attempt has failed.

The driver tells nothing but text about a failed connection (no SQLSTATE), and text is translated.  So after a failure
the server is asked once more in its own protocol: its answer to a start-up message is either an error with a SQLSTATE
or a demand for a password.  See PostgreSQL's protocol documentation, "Start-up" and "Error and Notice Message Fields".
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

_PROTOCOL_3 = 196_608
_DEFAULT_PORT = "5432"
_MAX_ANSWER = 65_536
# Stands for "the server asks for a password", after which the driver's login failed.
PASSWORD_ASKED = "28P01"  # noqa: S105 - an error code


def sqlstate_of_login(parameters: Mapping[str, str], timeout_s: float) -> str | None:
    """SQLSTATE with which the first reachable host refuses a login, or None where nothing can be said.

    `parameters` are libpq's.  A server that asks for a password gives `PASSWORD_ASKED`.  Never raises for the network.
    """
    if parameters.get("sslmode") in ("require", "verify-ca", "verify-full"):
        return None
    hosts = (parameters.get("host") or parameters.get("hostaddr") or "localhost").split(",")
    ports = (parameters.get("port") or _DEFAULT_PORT).split(",")
    user = parameters.get("user")
    if not user:
        return None
    login = {"user": user, "database": parameters.get("dbname") or user, "application_name": "lmdb-outbox"}
    for index, host in enumerate(hosts):
        port = ports[index] if index < len(ports) else ports[-1]
        try:
            answer = _ask(host, int(port or _DEFAULT_PORT), login, timeout_s)
        except (OSError, ValueError, struct.error):
            continue
        return answer
    return None


def _ask(host: str, port: int, login: Mapping[str, str], timeout_s: float) -> str | None:
    body = struct.pack(">I", _PROTOCOL_3)
    body += b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in login.items()) + b"\0"
    with _dial(host, port, timeout_s) as server:
        server.sendall(struct.pack(">I", len(body) + 4) + body)
        kind, size = struct.unpack(">cI", _read(server, 5))
        answer = _read(server, min(size - 4, _MAX_ANSWER))
    if kind == b"R":
        (method,) = struct.unpack_from(">I", answer)
        return PASSWORD_ASKED if method else None
    if kind != b"E":
        return None
    codes = [part[1:] for part in answer.split(b"\0") if part[:1] == b"C"]
    return codes[0].decode("ascii", "replace") if codes else None


def _dial(host: str, port: int, timeout_s: float) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout_s)
    server = socket.socket(socket.AF_UNIX)
    try:
        server.settimeout(timeout_s)
        server.connect(f"{host}/.s.PGSQL.{port}")
    except BaseException:
        server.close()
        raise
    return server


def _read(server: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = server.recv(size - len(data))
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    return data
