"""What a server answers to a login is told from an outage, on whichever of several hosts answers."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from outbox.postgres.login_probe import PASSWORD_ASKED, sqlstate_of_login
from tests.unit.fakes.waiting import LONG


class Server:
    """Takes one login at a time and answers as told; `asked` is what it was sent, behind the length that it said."""

    def __init__(self, listener: socket.socket, answer: bytes) -> None:
        self._listener, self._answer = listener, answer
        self.asked: list[tuple[int, bytes]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(LONG)
                sent = client.recv(65_536)
                self.asked.append((struct.unpack_from(">I", sent)[0], sent[4:]))
                # In pieces, as a network may deliver it, and to nobody who has heard enough.
                with suppress(ConnectionError):
                    for at in range(0, len(self._answer), 3):
                        client.sendall(self._answer[at : at + 3])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


@contextmanager
def served(listener: socket.socket, answer: bytes) -> Iterator[Server]:
    server = Server(listener, answer)
    try:
        yield server
    finally:
        server.close()


def on_tcp() -> tuple[socket.socket, str]:
    """A listener and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, str(listener.getsockname()[1])


@pytest.fixture
def closed_port() -> Iterator[str]:
    """A port at which nobody listens, and that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield str(held.getsockname()[1])


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content) + 4) + content


def error(*fields: bytes) -> bytes:
    return message(b"E", b"".join(field + b"\0" for field in fields) + b"\0")


REFUSED = error(b"SFATAL", b"VFATAL", b"C28000", b"Mno pg_hba.conf entry for host", b"CXXXXX")
ASKS = message(b"R", struct.pack(">I", 10) + b"SCRAM-SHA-256\0\0")
LETS_IN = message(b"R", struct.pack(">I", 0))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (REFUSED, "28000"),
        (ASKS, PASSWORD_ASKED),
        (LETS_IN, None),
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
    ids=["refused", "asks", "lets in", "no code", "no text", "another kind", "cut", "too short", "no size", "nothing"],
)
def test_the_answer_tells_a_refusal_from_all_else(answer: bytes, said: str | None) -> None:
    listener, port = on_tcp()
    with served(listener, answer):
        assert sqlstate_of_login({"host": "127.0.0.1", "port": port, "user": "u"}, LONG) == said


def test_an_answer_without_end_is_read_to_a_limit() -> None:
    listener, port = on_tcp()
    with served(listener, b"E\x7f\xff\xff\xff" + b"C28000\0" + b"M" * 70_000):
        assert sqlstate_of_login({"host": "127.0.0.1", "port": port, "user": "u"}, LONG) == "28000"


@pytest.mark.parametrize(
    ("parameters", "database"), [({"user": "me", "dbname": "trading"}, b"trading"), ({"user": "me"}, b"me")]
)
def test_login_probe_sends_the_login_that_failed(parameters: dict[str, str], database: bytes) -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED) as server:
        sqlstate_of_login({"host": "127.0.0.1", "port": port, **parameters}, LONG)
    ((size, sent),) = server.asked
    assert size == 4 + len(sent)
    assert struct.unpack_from(">HH", sent) == (3, 0)
    assert sent[4:] == b"user\0me\0database\0" + database + b"\0application_name\0lmdb-outbox\0\0"


def test_a_socket_in_a_folder_is_asked_too(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / ".s.PGSQL.5432"))
    listener.listen()
    with served(listener, REFUSED):
        assert sqlstate_of_login({"host": str(tmp_path), "user": "u"}, LONG) == "28000"
    assert sqlstate_of_login({"host": str(tmp_path), "port": "5433", "user": "u"}, LONG) is None


def test_the_first_host_that_answers_speaks_for_all(closed_port: str) -> None:
    first, first_port = on_tcp()
    second, second_port = on_tcp()
    with served(first, REFUSED), served(second, ASKS) as other:
        hosts = "127.0.0.1,127.0.0.1,127.0.0.1"
        ports = f"{closed_port},{first_port},{second_port}"
        assert sqlstate_of_login({"host": hosts, "port": ports, "user": "u"}, LONG) == "28000"
    assert other.asked == []


def test_one_port_is_for_all_hosts(tmp_path: Path) -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED):
        hosts = f"{tmp_path},127.0.0.1"
        assert sqlstate_of_login({"host": hosts, "port": port, "user": "u"}, LONG) == "28000"


def test_a_port_that_is_none_leaves_the_next_host() -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED):
        parameters = {"host": "127.0.0.1,127.0.0.1", "port": f"odd,{port}", "user": "u"}
        assert sqlstate_of_login(parameters, LONG) == "28000"


def test_hosts_may_be_given_by_address_or_not_at_all() -> None:
    listener, port = on_tcp()
    with served(listener, REFUSED):
        assert sqlstate_of_login({"hostaddr": "127.0.0.1", "port": port, "user": "u"}, LONG) == "28000"
        assert sqlstate_of_login({"port": port, "user": "u"}, LONG) == "28000"
        # Another address is not this machine.
        assert sqlstate_of_login({"hostaddr": "256.0.0.1", "port": port, "user": "u"}, LONG) is None
        # A name has precedence, as with the driver.
        named = {"host": "127.0.0.1", "hostaddr": "256.0.0.1", "port": port, "user": "u"}
        assert sqlstate_of_login(named, LONG) == "28000"


def test_login_probe_without_a_listener_has_no_answer(closed_port: str) -> None:
    assert sqlstate_of_login({"host": "127.0.0.1", "port": closed_port, "user": "u"}, LONG) is None


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket(socket.AF_UNIX) as local:
        port = str(silent.getsockname()[1])
        local.bind(str(tmp_path / f".s.PGSQL.{port}"))
        local.listen()
        for host in ("127.0.0.1", str(tmp_path)):
            assert sqlstate_of_login({"host": host, "port": port, "user": "u"}, 0.1) is None


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_login_probe_that_requires_encryption_sends_no_plain_text(mode: str) -> None:
    listener, port = on_tcp()
    parameters = {"host": "127.0.0.1", "port": port, "user": "u"}
    with served(listener, REFUSED) as server:
        assert sqlstate_of_login({**parameters, "sslmode": mode}, LONG) is None
        assert sqlstate_of_login({**parameters, "user": ""}, LONG) is None
        assert server.asked == []
        assert sqlstate_of_login({**parameters, "sslmode": "prefer"}, LONG) == "28000"
