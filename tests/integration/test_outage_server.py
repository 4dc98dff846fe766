"""The whole server away, killed, restarted, frozen or full: the relay rides it out and nothing is lost or doubled."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from outbox import Health, Operation, Outbox, PostgresTarget, Relay, TargetUnavailable
from outbox.testing import PostgresServer
from tests.unit.fakes.scene import Scene
from tests.unit.fakes.waiting import LONG, until


def test_server_down_at_the_start_delays_delivery_only(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with Scene(outbox_dir, own_postgres.url()) as scene:
        scene.create()
        own_postgres.stop()
        scene.trade(15)
        scene.relay.start()
        scene.target.wait_for_interruptions(3)
        until(lambda: scene.box.status().breaker == "open")
        scene.trade(15)
        scene.audit.group(scene.box, 12)
        status = scene.box.status()
        assert status.health is Health.DEGRADED
        assert (status.pending, status.completed) == (42, 0)
        assert {entry.attempts for entry in scene.box.pending()} == {0}
        own_postgres.start()


def test_server_killed_during_a_batch_uses_no_attempt(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with Scene(outbox_dir, own_postgres.url()) as scene:
        scene.create()
        scene.trade(25)
        assert scene.relay.drain(LONG)
        with scene.batch_in_flight():
            own_postgres.kill()
            scene.target.wait_for_interruptions(1)
        scene.trade(25, operation="booking")
        assert {entry.attempts for entry in scene.box.pending()} == {0}
        own_postgres.start()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_server_restarts_during_trading_lose_and_double_nothing(
    own_postgres: PostgresServer, outbox_dir: Path, mode: Any
) -> None:
    with Scene(outbox_dir, own_postgres.url()) as scene:
        scene.create()
        scene.relay.start()
        for _ in range(2):
            scene.trade(30)
            scene.audit.group(scene.box, 5)
            scene.relay.drain(0.02)
            own_postgres.restart(mode)
        scene.trade(5)


def test_store_reopened_after_an_outage_delivers_everything(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with Scene(outbox_dir, own_postgres.url()) as scene:
        scene.create()
        scene.trade(12)
        assert scene.relay.drain(LONG)
        own_postgres.kill()
        scene.trade(12)
        scene.relay.start()
        scene.target.wait_for_interruptions(1)
        scene.relay.stop()
        scene.box.close()
        own_postgres.start()
        with Scene(outbox_dir, own_postgres.url()) as later:
            later.audit = scene.audit
            assert later.box.status().pending == 12
            later.trade(3)
        scene.box, scene.relay = later.box, later.relay
        scene.finish = lambda: None  # type: ignore[method-assign]


def test_frozen_server_is_given_up_and_delivery_goes_on_later(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with Scene(outbox_dir, own_postgres.url(), stall_timeout=0.5) as scene:
        scene.create()
        scene.trade(5)
        scene.relay.start()
        assert scene.relay.drain(LONG)
        own_postgres.pause()
        scene.trade(20)
        scene.target.wait_for_interruptions(1)
        error = scene.target.interruptions()[0]
        assert isinstance(error, TargetUnavailable)
        assert error.stalled
        assert scene.box.status().completed == 5
        own_postgres.resume()


def test_stop_is_fast_while_the_server_hangs_in_a_batch(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with Scene(outbox_dir, own_postgres.url(), stall_timeout=600) as scene:
        scene.create()
        with scene.batch_in_flight():
            own_postgres.pause()
            # The batch is given up long before `stall_timeout`.
            until(lambda: scene.relay.stop(timeout=1.0))
            assert not scene.relay.running
            own_postgres.resume()


def test_stop_is_bounded_while_the_server_hangs_at_the_door(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with Scene(outbox_dir, own_postgres.url(), connect_timeout=2) as scene:
        scene.create()
        scene.trade(5)
        own_postgres.pause()
        scene.relay.start()
        until(lambda: scene.relay.stop(timeout=8.0))
        own_postgres.resume()


def test_server_with_too_many_clients_delays_delivery_only(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    own_postgres.options |= {"max_connections": 4, "superuser_reserved_connections": 0}
    own_postgres.restart()
    with Scene(outbox_dir, own_postgres.url()) as scene:
        scene.create()
        scene.trade(15)
        others: list[Any] = []
        until(lambda: taken(own_postgres, others) == 4)
        scene.relay.start()
        scene.target.wait_for_interruptions(3)
        assert "too many clients" in str(scene.target.interruptions()[-1])
        assert {entry.attempts for entry in scene.box.pending()} == {0}
        for other in others:
            other.close()
        assert scene.relay.drain(LONG)
        # The audit makes more connections, and the server counts each for a moment after it was closed.
        own_postgres.options["max_connections"] = 50
        own_postgres.restart()


def taken(server: PostgresServer, connections: list[Any]) -> int:
    """Connect once more, unless the server is still busy with one that was closed; returns how many there are."""
    with suppress(psycopg2.OperationalError):
        connections.append(psycopg2.connect(server.url()))
    return len(connections)


def test_port_with_another_service_is_an_outage_without_loss(postgres_url: str, outbox_dir: Path) -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as stranger,
        Scene(outbox_dir, postgres_url, relay_url=f"postgresql://u@127.0.0.1:{stranger.getsockname()[1]}/db") as scene,
    ):
        scene.create()
        scene.trade(3)
        scene.relay.start()
        other, _ = stranger.accept()
        other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        other.close()
        scene.target.wait_for_interruptions(1)
        assert isinstance(scene.target.interruptions()[0], TargetUnavailable)
        assert scene.box.status().dead_letters == 0
        stranger.close()
        scene.relay.stop()
        scene.target, scene.relay = scene.new_relay(postgres_url)


@pytest.mark.parametrize("form", ["url", "environment"])
def test_target_sees_whether_its_server_is_there(
    own_postgres: PostgresServer, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    operations, url = [Operation("log", table="pg_class")], own_postgres.url()
    if form == "environment":
        monkeypatch.setenv("PGHOST", "127.0.0.1")
        monkeypatch.setenv("PGPORT", str(own_postgres.port))
        url = "postgresql://postgres@/postgres"
    target = PostgresTarget(url, operations)
    own_postgres.kill()
    with Outbox.open(outbox_dir, None, operations) as box:
        box.enqueue("log", {"relname": "x"})
        relay = Relay(box, target)
        relay.step(0.0)
        assert target.accepting() == frozenset()
        own_postgres.start()
        assert target.accepting() == {f"127.0.0.1:{own_postgres.port}"}
        relay.stop()
