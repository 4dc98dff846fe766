"""A standby that lagged is promoted: what it lacks is delivered again, once and in order, without a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import PostgresServer, Standby
from tests.unit.fakes.database import query
from tests.unit.fakes.failover import Desk, Past, create_tables, lose_primary, multi_host
from tests.unit.fakes.waiting import LONG


@pytest.fixture
def servers(no_leftovers: None) -> Iterator[tuple[PostgresServer, Standby]]:
    with PostgresServer(fsync=False) as primary:
        create_tables(primary)
        with Standby(primary) as standby:
            yield primary, standby


def test_entries_that_a_promoted_standby_lacks_are_delivered_again(
    servers: tuple[PostgresServer, Standby], outbox_dir: Path
) -> None:
    primary, standby = servers
    with Desk(outbox_dir, multi_host(primary, standby)) as desk:
        desk.trade(25)
        desk.deliver()
        standby.catch_up()
        standby.detach()
        lost = desk.trade(25) + desk.audit.group(desk.box, 4)
        desk.deliver()
        lose_primary(primary, standby)
        assert len(desk.problems()) == len(lost)
        desk.trade(5)
        desk.deliver()
        assert desk.problems() == []
        [done] = desk.reconciliations()
        assert (done["put_back"], done["first_seq"], done["last_seq"], done["gone"]) == (29, lost[0], lost[-1], 0)
        status = desk.box.status()
        assert (status.alarms, status.needs_operator) == ({}, [])


def test_an_engine_trades_through_a_failover(servers: tuple[PostgresServer, Standby], outbox_dir: Path) -> None:
    """The relay runs in its thread all the while, and the engine never stops."""
    primary, standby = servers
    with Desk(outbox_dir, multi_host(primary, standby)) as desk, desk.relay:
        desk.trade(30)
        assert desk.relay.drain(LONG)
        # Without the tables of the outbox it would be another database.
        standby.catch_up()
        standby.detach()
        for _ in range(20):
            desk.trade(5)
        assert desk.relay.drain(LONG)
        desk.trade(7)
        primary.kill()
        desk.trade(7)
        standby.promote()
        desk.trade(7)
        desk.deliver()
        assert desk.problems() == []
        [done] = desk.reconciliations()
        assert done["put_back"] >= 100


def test_a_failover_without_loss_delivers_nothing_again(
    servers: tuple[PostgresServer, Standby], outbox_dir: Path
) -> None:
    primary, standby = servers
    with Desk(outbox_dir, multi_host(primary, standby)) as desk:
        desk.trade(25)
        desk.deliver()
        standby.catch_up()
        lose_primary(primary, standby)
        desk.trade(5)
        desk.deliver()
        assert desk.problems() == []
        assert desk.reconciliations() == []


def test_with_one_host_a_promoted_standby_waits_for_a_person(
    servers: tuple[PostgresServer, Standby], outbox_dir: Path
) -> None:
    primary, standby = servers
    with Desk(outbox_dir, primary.url()) as desk:
        desk.trade(10)
        desk.deliver()
        standby.catch_up()
        standby.detach()
        desk.trade(10)
        desk.deliver()
        lose_primary(primary, standby)
        relay = desk.new_relay(standby.url())
        desk.trade(1)
        assert not relay.drain(0.5)
        assert desk.box.status().pending == 1
        assert relay.reconcile().put_back == 10
        assert relay.drain(LONG)
        assert standby.execute("SELECT count(*) FROM trades") == [(21,)]


@pytest.mark.parametrize("reconcile", ["auto", "failover"])
def test_copy_at_another_address_waits_for_a_person(
    postgres_server: PostgresServer, past: Past, outbox_dir: Path, reconcile: str
) -> None:
    """A copy for tests, to which a wrong setting leads, was filled with all that it lacked, and with what followed."""
    with Desk(outbox_dir, past.url, reconcile=reconcile) as desk:
        desk.trade(5)
        desk.deliver()
        copy = postgres_server.url(past.remember())
        if reconcile == "failover":
            # Two names of one host.
            copy = copy.replace("@127.0.0.1:", f"@127.0.0.1:{postgres_server.port},localhost:")
        strayed = desk.new_relay(copy)
        lost = desk.trade(5)
        desk.deliver()
        desk.relay.stop()
        desk.trade(1)
        desk.stop_at_loss(strayed)
        [said] = desk.box.status().alarms.values()
        assert f"check DATABASE_URL, which was 127.0.0.1:{postgres_server.port}/desk_" in said
        assert len(query(copy, "SELECT number FROM trades")) == 5
        strayed.stop()
        desk.deliver()
        assert desk.problems() == []
        assert (desk.box.status().alarms, desk.reconciliations()) == ({}, [])
        assert len(lost) == 5


def test_operator_takes_another_address_once(postgres_server: PostgresServer, past: Past, outbox_dir: Path) -> None:
    """From then on its losses are put back as those of the first one were."""
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        desk.trade(5)
        desk.deliver()
        copy = postgres_server.url(past.remember())
        desk.trade(5)
        desk.deliver()
        desk.relay.stop()
        moved = desk.new_relay(copy)
        desk.stop_at_loss(moved)
        assert moved.reconcile().put_back == 5
        assert moved.drain(LONG)
        assert desk.box.status().alarms == {}
        assert len(query(copy, "SELECT number FROM trades")) == 10
        moved.stop()
        # The first one lacks what came to the other, and is the stranger now.
        desk.trade(1)
        assert moved.drain(LONG)
        moved.stop()
        desk.stop_at_loss()
        assert len(desk.reconciliations()) == 1
