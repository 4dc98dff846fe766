"""A standby that lagged is promoted: what it lacks is delivered again, once and in order, without a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import PostgresServer, Standby
from tests.unit.fakes.failover import Desk, create_tables, lose_primary, multi_host
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
