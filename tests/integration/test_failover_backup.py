"""Files of an older backup in the place of PostgreSQL's, and a read-only standby that answers: what is a loss."""

from __future__ import annotations

from pathlib import Path

from outbox.testing import PostgresServer, Standby
from tests.unit.fakes.failover import Desk, create_tables


def test_a_restored_backup_is_noticed_and_made_whole(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    create_tables(own_postgres)
    with Desk(outbox_dir, own_postgres.url()) as desk:
        desk.trade(15)
        desk.deliver()
        backup = own_postgres.backup()
        lost = desk.trade(20)
        desk.deliver()
        own_postgres.restore(backup)
        own_postgres.start()
        desk.trade(3)
        desk.stop_at_loss()
        done = desk.relay.reconcile()
        assert (done.put_back, done.first_seq) == (20, lost[0])
        desk.deliver()
        assert desk.problems() == []


def test_a_restart_after_a_crash_is_no_loss(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    create_tables(own_postgres)
    with Desk(outbox_dir, own_postgres.url()) as desk:
        for _ in range(3):
            desk.trade(5)
            desk.deliver()
            own_postgres.kill()
            own_postgres.start()
        desk.trade(1)
        desk.deliver()
        assert desk.box.status().alarms == {}
        assert desk.reconciliations() == []
        assert desk.problems() == []


def test_a_standby_that_lags_is_an_outage_and_no_loss(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    create_tables(own_postgres)
    with Standby(own_postgres) as standby, Desk(outbox_dir, own_postgres.url(), reconcile="auto") as desk:
        desk.trade(5)
        desk.deliver()
        standby.catch_up()
        standby.detach()
        desk.trade(5)
        desk.deliver()
        desk.relay.stop()
        strayed = desk.new_relay(standby.url())
        desk.trade(1)
        assert not strayed.drain(0.5)
        assert "standby" in str(strayed._delivery.link.state.last_error)
        status = desk.box.status()
        assert (status.alarms, status.pending) == ({}, 1)
        strayed.stop()
        desk.deliver()
        assert desk.problems() == []
