"""A server that is back is noticed by a look without a login, before the backoff ends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from outbox import Relay, TargetMisconfigured, TargetUnavailable
from outbox.postgres import presence
from outbox.postgres.presence import accepting, hosts
from outbox.testing import InMemoryTarget
from tests.unit.fakes.rig import OPERATIONS, FakeClock, Rig

DOWN = TargetUnavailable("connection refused")


class SeenTarget(InMemoryTarget):
    """Shows which servers accept connections, and counts the looks."""

    there: frozenset[str] = frozenset()
    looks = 0

    def accepting(self) -> frozenset[str]:
        self.looks += 1
        return self.there


class SeenRig(Rig):
    """A rig after an outage of ten minutes, in which each wait is as long as it may be."""

    def __init__(self, directory: Path, there: str = "") -> None:
        super().__init__(directory)
        self.seen = SeenTarget(OPERATIONS)
        self.seen.there = frozenset(there.split())
        self.relay = Relay(self.box, self.seen)
        self.clock.jitter = 0.999
        self.seen.down = DOWN
        self.seqs = self.enqueue(None)
        self.run(600.0)

    def __enter__(self) -> SeenRig:
        return self


def test_server_that_is_back_is_delivered_to_within_a_second(outbox_dir: Path) -> None:
    with SeenRig(outbox_dir) as rig:
        rig.seen.there, rig.seen.down = frozenset({"db1:5432"}), None
        rig.run(1.1)
        assert rig.seen.applied == rig.seqs


def test_look_at_an_absent_server_is_made_once_a_second(outbox_dir: Path) -> None:
    """However often the program enqueues; and no login is tried sooner than by the backoff."""
    with SeenRig(outbox_dir) as rig:
        looks, tries = rig.seen.looks, len(rig.seen.calls)
        for _ in range(300):
            rig.enqueue(None)
            rig.step()
            rig.clock.advance(0.1)
        assert 28 <= rig.seen.looks - looks <= 31
        assert len(rig.seen.calls) - tries <= 3


def test_server_that_still_starts_is_tried_often_for_a_minute(outbox_dir: Path) -> None:
    with SeenRig(outbox_dir) as rig:
        tries, rig.seen.there = len(rig.seen.calls), frozenset({"db1:5432"})
        rig.run(55.0)
        assert 27 <= len(rig.seen.calls) - tries <= 35
        rig.run(30.0)
        tries = len(rig.seen.calls)
        rig.run(60.0)
        assert len(rig.seen.calls) - tries <= 5


def test_server_that_accepts_all_the_time_is_tried_by_the_backoff(outbox_dir: Path) -> None:
    with SeenRig(outbox_dir, there="pooler:6432") as rig:
        tries = len(rig.seen.calls)
        rig.run(150.0)
        assert 9 <= len(rig.seen.calls) - tries <= 11


def test_another_server_that_comes_up_is_tried_at_once(outbox_dir: Path) -> None:
    with SeenRig(outbox_dir, there="db1:5432") as rig:
        rig.seen.there, rig.seen.down = frozenset({"db1:5432", "db2:5432"}), None
        rig.run(1.1)
        assert rig.seen.applied == rig.seqs


def test_refused_login_is_no_reason_to_look(outbox_dir: Path) -> None:
    with SeenRig(outbox_dir) as rig:
        rig.seen.down = TargetMisconfigured("wrong password")
        rig.run(30.0)
        looks = rig.seen.looks
        rig.run(60.0)
        assert rig.seen.looks == looks


def test_breaker_stays_open_while_a_server_starts(outbox_dir: Path) -> None:
    with SeenRig(outbox_dir) as rig:
        rig.seen.there = frozenset({"db1:5432"})
        rig.run(1.1)
        assert rig.box.status().breaker == "open"


def test_name_that_takes_long_to_look_up_is_seldom_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is away takes ten seconds each time, in which the relay's thread cannot be stopped."""
    clock, looked_at = FakeClock(), list[float]()

    def look(*_: object) -> frozenset[str]:
        looked_at.append(clock.monotonic())
        clock.advance(10.0)
        return frozenset()

    monkeypatch.setattr(presence, "accepting", look)
    servers, end = presence.Servers(clock.monotonic), clock.monotonic() + 420.0
    while clock.monotonic() < end:
        servers.accepting()
        clock.advance(1.0)
    assert len(looked_at) == 2


@pytest.mark.parametrize(
    ("tried", "found"),
    [
        ({"host": "db", "port": "5432"}, (("db", 5432),)),
        ({"host": "db1,db2", "port": "5432"}, (("db1", 5432), ("db2", 5432))),
        ({"host": "db1,/run", "port": "1,2"}, (("db1", 1), ("/run", 2))),
        ({"host": "db", "hostaddr": "::1", "port": "5"}, (("::1", 5),)),
        ({"host": "", "port": "5432"}, ()),
        ({}, ()),
    ],
)
def test_servers_are_those_that_the_driver_would_try(tried: dict[str, str], found: tuple[tuple[str, int], ...]) -> None:
    assert hosts(tried) == found


def test_only_servers_that_listen_accept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as gone:
        port, closed = server.getsockname()[1], gone.getsockname()[1]
        gone.close()
        servers = (("127.0.0.1", port), ("127.0.0.1", closed), (str(tmp_path), 5432))
        assert accepting(servers, 1.0) == {f"127.0.0.1:{port}"}
    assert accepting((), 1.0) == frozenset()
