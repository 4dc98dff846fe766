"""What a server answers to a login is told from an outage, also where the server asks for a password first."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from outbox.postgres.address import PROOF_MISSING, Login, completed, sqlstate_of_login
from outbox.postgres.piggyback import PiggybackConnection
from tests.unit.fakes.ports import held_port
from tests.unit.fakes.waiting import LONG


class Server:
    """Takes one login at a time and answers each message with the next of `answers`; `asked` is what it was sent."""

    def __init__(self, listener: socket.socket, *answers: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._listener, self._answers, self._tls = listener, answers, tls
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # Nobody has to listen to the end.
            with suppress(ConnectionError):
                client.settimeout(LONG)
                for answer in self._answers:
                    sent = client.recv(65_536)
                    if sent == TLS_REQUEST:
                        client.sendall(b"N" if self._tls is None else b"S")
                        client = client if self._tls is None else self._tls.wrap_socket(client, server_side=True)
                        sent = client.recv(65_536)
                    if not sent:
                        break
                    self.asked.append(sent)
                    # In pieces, as a network may deliver it.
                    for at in range(0, len(answer), 3):
                        client.sendall(answer[at : at + 3])
            client.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


@contextmanager
def served(listener: socket.socket, *answers: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(listener, *answers, tls=tls)
    try:
        yield server
    finally:
        server.close()


def on_tcp() -> tuple[socket.socket, int]:
    """A listener and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, int(listener.getsockname()[1])


def login(port: int, **changed: Any) -> Login:
    return Login(**{"host": "127.0.0.1", "port": port, "user": "me", "database": "trading", **changed})


def answer_of(one: Login, timeout_s: float = LONG) -> str | None:
    return sqlstate_of_login(one, timeout_s, "nonce")


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content) + 4) + content


def error(*fields: bytes) -> bytes:
    return message(b"E", b"".join(part + b"\0" for part in fields) + b"\0")


def method(number: int, rest: bytes = b"") -> bytes:
    return message(b"R", struct.pack(">I", number) + rest)


# Of these tests alone; its key opens nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+/Imq4hVbbEW4QPe
1yJrvW7peYxufd50mwRb+b6Li+6hRANCAAQGfyrvgDAdTcTbLpT/ixmlh41KpzwV
0zeSnnijcVzceZgPW9owtfa6G4/OVmMiTTWHDibm9BGE6YGftEWN2JCz
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUId/jxSY7COfl2wotnzQJgBrxeOUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODEzMDcyNFoYDzIxMjYxMTA0
MTMwNzI0WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQGfyrvgDAdTcTbLpT/ixmlh41KpzwV0zeSnnijcVzceZgPW9owtfa6
G4/OVmMiTTWHDibm9BGE6YGftEWN2JCzo1MwUTAdBgNVHQ4EFgQUZAKFWSLCS9J4
pO/+sDB8TW1bIjwwHwYDVR0jBBgwFoAUZAKFWSLCS9J4pO/+sDB8TW1bIjwwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiAoTWOKMmxI0YDBo9VOtvs8
PrwRqAPFkHFpNsOX4vNXGwIhAOMtr0QyT23CCWjVmRx4kETmUD0DS5GTuuej9MKW
AEP8
-----END CERTIFICATE-----
"""
TLS_REQUEST = struct.pack(">II", 8, 80_877_103)
REFUSED = error(b"SFATAL", b"VFATAL", b"C28000", b"Mno pg_hba.conf entry for host", b"CXXXXX")
TOO_MANY = error(b"SFATAL", b"VFATAL", b"C53300", b"Mtoo many connections for role")
PASSWORD, MD5, SCRAM, LETS_IN = method(3), method(5, b"salt"), method(10, b"SCRAM-SHA-256\0\0"), method(0)
READY = message(b"S", b"server_version\x0017\0") + message(b"Z", b"I")
CHALLENGE = method(11, b"r=noncetheirs,s=c2FsdA==,i=2")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (REFUSED, "28000"),
        (TOO_MANY, "53300"),
        (SCRAM, PROOF_MISSING),
        (MD5, PROOF_MISSING),
        (PASSWORD, PROOF_MISSING),
        (method(7), None),
        (LETS_IN + READY, None),
        (LETS_IN + TOO_MANY, "53300"),
        (error(b"SFATAL", b"Mwithout a code"), None),
        # Not text at all; the name of a state is asked of nobody, so it need not be one.
        (error(b"C\xff8000"), "\N{REPLACEMENT CHARACTER}8000"),
        # A message of another kind, an answer that ends in the middle, one that is too short for what it is, none.
        (message(b"v", struct.pack(">I", 10)), None),
        (REFUSED[:-1], None),
        (message(b"R", b"\0"), None),
        (b"E\0\0\0\0", None),
        (b"", None),
    ],
    ids=[
        "refused",
        "too many",
        "scram",
        "md5",
        "plain",
        "kerberos",
        "in",
        "full",
        "no code",
        "no text",
        "another kind",
        "cut",
        "too short",
        "no size",
        "nothing",
    ],
)
def test_the_answer_tells_a_refusal_from_all_else(answer: bytes, said: str | None) -> None:
    listener, port = on_tcp()
    with served(listener, answer):
        assert answer_of(login(port)) == said


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((SCRAM, CHALLENGE, method(12, b"v=x") + LETS_IN + TOO_MANY), "53300"),
        ((SCRAM, CHALLENGE, method(12, b"v=x") + LETS_IN + READY, b""), None),
        ((SCRAM, CHALLENGE, error(b"C28P01")), "28P01"),
        ((MD5, LETS_IN + TOO_MANY), "53300"),
        ((MD5, error(b"C28P01")), "28P01"),
        # A login that the probe cannot make may be refused or not.
        ((PASSWORD, LETS_IN + TOO_MANY), None),
        ((PASSWORD, error(b"C28P01")), None),
        ((method(7), REFUSED), None),
        ((method(10, b"SCRAM-SHA-512\0\0"), REFUSED), None),
        ((CHALLENGE, REFUSED), None),
        # Challenges that are none, and work for hours.
        ((SCRAM, method(11, b"r=x"), REFUSED), None),
        ((SCRAM, method(11, b"r=noncetheirs,s=c2FsdA==,i=2000000000"), REFUSED), None),
        ((SCRAM, method(11, b"r=noncetheirs,s=!,i=2"), REFUSED), None),
    ],
    ids=[
        "scram full",
        "in",
        "wrong",
        "md5 full",
        "md5 wrong",
        "plain",
        "plain wrong",
        "kerberos",
        "512",
        "unasked",
        "no challenge",
        "too much",
        "no salt",
    ],
)
def test_answer_behind_the_password_is_asked_for(answers: tuple[bytes, ...], said: str | None) -> None:
    listener, port = on_tcp()
    with served(listener, *answers):
        assert answer_of(login(port, password="secret")) == said


def test_answers_without_end_are_read_to_a_limit() -> None:
    listener, port = on_tcp()
    with served(listener, b"E\x7f\xff\xff\xff" + b"C28000\0" + b"M" * 70_000):
        assert answer_of(login(port)) == "28000"
    listener, port = on_tcp()
    with served(listener, message(b"N", b"") * 2000 + REFUSED):
        assert answer_of(login(port)) is None


@pytest.mark.parametrize("database", ["trading", ""])
def test_login_probe_sends_the_login_that_failed(database: str) -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED) as server:
        answer_of(login(port, database=database))
    (sent,) = server.asked
    assert struct.unpack_from(">IHH", sent) == (len(sent), 3, 0)
    name = database.encode() or b"me"
    assert sent[8:] == b"user\0me\0database\0" + name + b"\0application_name\0lmdb-outbox\0\0"


def test_a_socket_in_a_folder_is_asked_too(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / ".s.PGSQL.5432"))
    listener.listen()
    with served(listener, REFUSED):
        assert answer_of(login(5432, host=str(tmp_path))) == "28000"
    assert answer_of(login(5433, host=str(tmp_path))) is None


def test_login_probe_without_a_listener_has_no_answer() -> None:
    with held_port() as held:
        assert answer_of(login(held.getsockname()[1])) is None


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket(socket.AF_UNIX) as local:
        port = int(silent.getsockname()[1])
        local.bind(str(tmp_path / f".s.PGSQL.{port}"))
        local.listen()
        for host in ("127.0.0.1", str(tmp_path)):
            assert answer_of(login(port, host=host), 0.1) is None


def failed(**given: Any) -> Login:
    """The login of the driver at a port where no server is."""
    found: list[Login] = []

    def note(info: Any) -> None:
        tried = completed(asked)
        assert tried is not None
        found.append(Login.of(info, tried))

    with held_port() as held, pytest.raises(psycopg2.OperationalError):
        asked = {"host": "127.0.0.1", "port": held.getsockname()[1], "user": "me", "dbname": "trading", **given}
        psycopg2.connect(**asked, connection_factory=partial(PiggybackConnection, on_failure=note))
    return found[0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, of which libpq takes certificates."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    return tmp_path


@pytest.mark.parametrize("mode", ["disable", "require", "verify-full"])
def test_sslmode_of_the_environment_is_the_logins(home: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """A login of verify-full was sent to a server whose certificate was not looked at."""
    monkeypatch.setenv("PGSSLMODE", mode)
    login = failed()
    assert (login.sslmode, login.particular) == (mode, mode == "verify-full")


def test_sslmode_of_a_service_is_the_logins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "services").write_text("[trading]\nsslmode=verify-ca\n")
    monkeypatch.setenv("PGSERVICEFILE", str(home / "services"))
    assert failed(service="trading").particular


@pytest.mark.parametrize(
    ("given", "files", "particular"),
    [
        ({}, [], False),
        ({}, ["postgresql.crt"], True),
        ({"sslmode": "disable"}, ["postgresql.crt", "root.crt"], False),
        ({"host": "/nowhere"}, ["postgresql.crt"], False),
        ({"sslmode": "require"}, [], False),
        # As libpq: with a root certificate this is verify-ca.
        ({"sslmode": "require"}, ["root.crt"], True),
        ({"sslmode": "verify-ca", "sslrootcert": "/nowhere"}, [], True),
        ({"channel_binding": "require"}, [], True),
        ({"require_auth": "scram-sha-256"}, [], True),
    ],
    ids=str,
)
def test_login_is_the_drivers_alone_where_it_proves_more(
    home: Path, given: dict[str, Any], files: list[str], particular: bool
) -> None:
    for name in files:
        (home / ".postgresql" / name).write_text(CERTIFICATE)
    assert failed(**given).particular is particular


@pytest.mark.parametrize(
    "changed",
    [
        {"particular": True},
        {"user": ""},
        {"host": ""},
    ],
    ids=str,
)
def test_login_that_only_the_driver_can_make_is_not_sent(changed: dict[str, Any]) -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED) as server:
        assert answer_of(login(port, **changed)) is None
        assert server.asked == []


@pytest.mark.parametrize(("mode", "said"), [("disable", "28000"), ("prefer", "28000"), ("require", None)])
def test_server_without_encryption_is_asked_if_allowed(mode: str, said: str | None) -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED) as server:
        assert answer_of(login(port, sslmode=mode)) == said
    # Nothing in plain text where that is not allowed.
    assert bool(server.asked) is (said is not None)


@pytest.fixture
def encrypting(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate that nobody has signed."""
    (tmp_path / "server.pem").write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


@pytest.mark.parametrize("mode", ["allow", "prefer", "require"])
def test_server_that_encrypts_is_asked_in_secret(encrypting: ssl.SSLContext, mode: str) -> None:
    listener, port = on_tcp()
    with served(listener, SCRAM, CHALLENGE, LETS_IN + TOO_MANY, tls=encrypting) as server:
        assert answer_of(login(port, sslmode=mode, password="secret")) == "53300"
    assert len(server.asked) == 3


def test_a_login_shows_no_password() -> None:
    assert "secret" not in repr(login(1, password="secret"))
