"""Address: where to connect and as whom, in the words of libpq, and whether a failed login was refused or an outage.

The driver tells nothing but text about a failed connection (no SQLSTATE), and text is translated.  So after a failure
the same server is asked once more in its own protocol, with the same login: only its answer tells a wrong password
from a role that has too many connections.  See PostgreSQL's protocol documentation, "Start-up", "SASL Authentication"
and "Error and Notice Message Fields".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import socket
import ssl
import struct
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg2
import psycopg2.extensions

from ..config import check_database_url
from ..errors import ConfigError, TargetMisconfigured, TargetUnavailable
from ..log import Log

_log = Log("outbox.postgres")

# One of several hosts as SQLAlchemy names them: `?host=one:5432&host=other:5433`.
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:/,]*):(\d*)")


class Address:
    """Where to connect, and as whom; callables are asked at each new connection, so that a password may change."""

    def __init__(self, url: str | Callable[[], str], password: Callable[[], str] | None = None) -> None:
        """Raises `ConfigError`, without repeating the URL, for a text that is none or has a password beside another."""
        self._url = url if callable(url) else libpq_url(url)
        self._password = password
        if isinstance(self._url, str) and password is not None and "password" in _parsed(self._url):
            raise ConfigError("the URL has a password, and password= gives another", hint="leave it out of the URL")

    def parameters(self) -> dict[str, Any]:
        """What libpq needs for a new connection.

        Raises `TargetUnavailable` where a callable raises OSError, and `TargetMisconfigured` where it raises anything
        else or answers with something that is of no use.
        """
        url = self._url
        if callable(url):
            try:
                url = libpq_url(_asked("URL of the database", url))
            except ConfigError as exc:
                raise TargetMisconfigured(f"the URL of the database is of no use: {exc}") from exc
        given = _parsed(url)
        if self._password is not None:
            given["password"] = _asked("password", self._password)
        return given


def _asked(what: str, ask: Callable[[], str]) -> str:
    try:
        answer: object = ask()
    except OSError as exc:  # what keeps it is away
        raise TargetUnavailable(f"the {what} cannot be had: {type(exc).__name__}: {exc}") from exc
    except Exception as exc:
        raise TargetMisconfigured(f"the {what} cannot be had: {type(exc).__name__}: {exc}") from exc
    if not isinstance(answer, str) or not answer:
        shown = "empty" if answer == "" else type(answer).__name__
        raise TargetMisconfigured(f"the {what} that was asked for is {shown}", hint="allowed: a text")
    return answer


def rotated(given: dict[str, Any], by: int) -> dict[str, Any]:
    """libpq's parameters with the first `by` hosts behind the others."""
    lists = {name: given[name].split(",") for name in ("host", "hostaddr", "port") if name in given}
    return given | {name: ",".join(one[by % len(one) :] + one[: by % len(one)]) for name, one in lists.items()}


def completed(given: Mapping[str, Any]) -> Mapping[str, str] | None:
    """`given` with what libpq takes from a service, the environment and its defaults; None where it does not show.

    The driver shows that of a living connection only: of one to a port of our own, which goes no further.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as here:
            where = {"host": "127.0.0.1", "hostaddr": "127.0.0.1", "port": here.getsockname()[1]}
            raw = psycopg2.connect(**{**given, **where}, async_=True)
            try:
                found: Mapping[str, str] = raw.info.dsn_parameters
                return found
            finally:
                raw.close()
    except (OSError, psycopg2.Error):
        return None


def places(tried: Mapping[str, str]) -> frozenset[str]:
    """The databases that libpq's parameters of a connection name: host, port and database of each host."""
    hosts = (tried.get("host") or tried.get("hostaddr") or "").split(",")
    ports = (tried.get("port") or "").split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    return frozenset(f"{host}:{port}/{tried.get('dbname', '')}" for host, port in zip(hosts, ports, strict=True))


def _parsed(dsn: str) -> dict[str, Any]:
    parameters: dict[str, Any] = psycopg2.extensions.parse_dsn(dsn)
    return parameters


def libpq_url(url: str) -> str:
    """`url` as libpq takes it: without SQLAlchemy's driver.  Raises `ConfigError`, without repeating the URL."""
    scheme, _, rest = check_database_url(url).partition("://")
    driver = scheme.partition("+")[2]
    if driver not in ("", "psycopg2"):
        _log.info("the URL of the database names driver %(driver)s: the outbox connects with psycopg2", driver=driver)
    dsn = f"postgresql://{_with_lists_of_hosts(rest)}"
    try:
        psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise ConfigError(
            "database_url cannot be parsed",
            hint="allowed: postgresql://user:password@host:port/database?option=value, options as libpq names them",
        ) from None
    return dsn


def _with_lists_of_hosts(rest: str) -> str:
    """A URL behind its scheme, with several hosts as libpq names them: `?host=one,other&port=5432,5433`."""
    place, _, query = rest.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    hosts = [value for name, value in given if name == "host"]
    parts = [_HOST_AND_PORT.fullmatch(host) for host in hosts]
    if not any(parts) and len(hosts) < 2:
        return rest
    others = [(name, value) for name, value in given if name != "host"]
    names = [host if part is None else part[1].strip("[]") for host, part in zip(hosts, parts, strict=True)]
    lists = [("host", ",".join(names))]
    if any(parts):
        lists.append(("port", ",".join("" if part is None else part[2] for part in parts)))
    return f"{place}?{urlencode([*others, *lists], safe=',/:', quote_via=quote)}"


_PROTOCOL_3 = 196_608
_TLS_REQUEST = 80_877_103
_MAX_ANSWER = 65_536
_MAX_ANSWERS = 1_000
# More would keep the relay busy for longer than it takes to connect.
_MAX_ITERATIONS = 1_000_000
# Methods of authentication, as the server numbers them.
_OK, _PLAIN, _MD5, _SASL, _SASL_GOES_ON, _SASL_ENDS = 0, 3, 5, 10, 11, 12
_ASKS_A_PASSWORD = frozenset({_PLAIN, _MD5, _SASL})
_SCRAM = b"SCRAM-SHA-256"
# Stands for "the server asks for a password, and the program has none".
PROOF_MISSING = "28P01"


@dataclass(frozen=True, slots=True)
class Login:
    """The login that failed, at the one host that was tried last."""

    # A name, an address, or the folder of a socket.
    host: str
    port: int
    user: str
    database: str
    password: str = field(default="", repr=False)
    # As libpq names them: disable, allow, prefer, require, verify-ca, verify-full.
    sslmode: str = "prefer"
    # Whether only the driver can make this login safely: with a certificate of the program's, or with a proof of who
    # the server is.
    particular: bool = False

    @classmethod
    def of(cls, info: Any, tried: Mapping[str, str]) -> Login:
        """What the driver tried, by the `info` of its connection and all of libpq's parameters that it shows."""
        host, sslmode = info.host or "", tried.get("sslmode", "prefer")
        encrypted = sslmode != "disable" and not host.startswith("/")
        # As libpq does: with a root certificate `require` verifies the server's.
        verifies = sslmode.startswith("verify") or (
            sslmode == "require" and _has_file(tried, "sslrootcert", "root.crt")
        )
        binds = tried.get("channel_binding") == "require" or bool(tried.get("require_auth"))
        return cls(
            host=host,
            port=info.port,
            user=info.user or "",
            database=info.dbname or "",
            password=info.password or "",
            sslmode=sslmode,
            particular=binds or (encrypted and (verifies or _has_file(tried, "sslcert", "postgresql.crt"))),
        )


def _has_file(tried: Mapping[str, str], name: str, default: str) -> bool:
    """Whether libpq has a file for TLS: one that it was told of, or the one in its folder."""
    return bool(tried.get(name)) or os.path.exists(os.path.expanduser(f"~/.postgresql/{default}"))


def sqlstate_of_login(login: Login, timeout_s: float, nonce: str) -> str | None:
    """SQLSTATE with which the server refuses a login, or None where it does not, or nothing can be said.

    `nonce` is random text without a comma.  Never raises for the network.
    """
    if login.particular or not (login.host and login.user):
        return None
    try:
        with _dial(login, timeout_s) as server:
            return _ask(server, login, nonce)
    except (OSError, LookupError, ValueError, struct.error):
        return None


def _ask(server: socket.socket, login: Login, nonce: str) -> str | None:
    texts = {"user": login.user, "database": login.database or login.user, "application_name": "lmdb-outbox"}
    body = b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in texts.items()) + b"\0"
    server.sendall(struct.pack(">II", len(body) + 8, _PROTOCOL_3) + body)
    scram: _Scram | None = None
    for _ in range(_MAX_ANSWERS):
        kind, answer = _receive(server)
        if kind == b"E":
            return _code(answer)
        if kind == b"Z":  # the login is complete
            server.sendall(b"X" + struct.pack(">I", 4))
            return None
        if kind != b"R":
            continue
        (method,), rest = struct.unpack_from(">I", answer), answer[4:]
        if method == _MD5 and login.password:
            _send(server, _md5(login, rest) + b"\0")
        elif method == _SASL and login.password and _SCRAM in rest.split(b"\0"):
            scram = _Scram(login.password, nonce)
            _send(server, _SCRAM + b"\0" + struct.pack(">I", len(scram.first)) + scram.first)
        elif method == _SASL_GOES_ON and scram is not None:
            _send(server, scram.final(rest))
        elif method in _ASKS_A_PASSWORD and not login.password:
            return PROOF_MISSING
        elif method not in (_OK, _SASL_ENDS):
            # A plain password, which LDAP and PAM ask for too, is not sent once more: the account may be locked after a
            # few wrong ones.  Without the server's answer nothing tells a refusal from an outage.
            return None
    return None


def _md5(login: Login, salt: bytes) -> bytes:
    inner = hashlib.md5((login.password + login.user).encode()).hexdigest()  # noqa: S324 - the server's choice
    return b"md5" + hashlib.md5(inner.encode() + salt).hexdigest().encode()  # noqa: S324


class _Scram:
    """The client's side of SCRAM-SHA-256 (RFC 7677), without channel binding."""

    def __init__(self, password: str, nonce: str) -> None:
        self._password = unicodedata.normalize("NFKC", password).encode()
        self._bare = f"n=,r={nonce}".encode()
        self.first = b"n,," + self._bare

    def final(self, challenge: bytes) -> bytes:
        """The proof that the password is known.  Raises `KeyError` or `ValueError` for a challenge that is none."""
        given = dict(part.split(b"=", 1) for part in challenge.split(b",") if b"=" in part)
        iterations = int(given[b"i"])
        if iterations > _MAX_ITERATIONS:
            raise ValueError(f"{iterations} iterations")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(given[b"s"], validate=True), iterations)
        key = hmac.digest(salted, b"Client Key", "sha256")
        answer = b"c=biws,r=" + given[b"r"]
        signed = b",".join((self._bare, challenge, answer))
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        return answer + b",p=" + base64.b64encode(proof)


def _code(answer: bytes) -> str | None:
    codes = [part[1:] for part in answer.split(b"\0") if part[:1] == b"C"]
    return codes[0].decode("ascii", "replace") if codes else None


def _dial(login: Login, timeout_s: float) -> socket.socket:
    server = socket.socket(socket.AF_UNIX) if login.host.startswith("/") else None
    try:
        if server is not None:
            server.settimeout(timeout_s)
            server.connect(f"{login.host}/.s.PGSQL.{login.port}")
            return server
        server = socket.create_connection((login.host, login.port), timeout_s)
        return server if login.sslmode == "disable" else _secured(server, login.sslmode)
    except BaseException:
        if server is not None:
            server.close()
        raise


def _secured(server: socket.socket, sslmode: str) -> socket.socket:
    """The same connection, encrypted where the server can do that.  As with the driver, no certificate is looked at."""
    server.sendall(struct.pack(">II", 8, _TLS_REQUEST))
    if _read(server, 1) == b"S":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(server)
    if sslmode == "require":
        raise ConnectionError("the server does not encrypt")
    return server


def _send(server: socket.socket, proof: bytes) -> None:
    server.sendall(b"p" + struct.pack(">I", len(proof) + 4) + proof)


def _receive(server: socket.socket) -> tuple[bytes, bytes]:
    kind, size = struct.unpack(">cI", _read(server, 5))
    return kind, _read(server, min(size - 4, _MAX_ANSWER))


def _read(server: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = server.recv(size - len(data))
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    return data
