"""The standby and the backups that tests lose commits with: they must really lose them, and only when told to."""

from __future__ import annotations

import psycopg2
import pytest

from outbox.testing import PostgresServer, Standby

NUMBERS = "SELECT number FROM kept ORDER BY number"


@pytest.fixture
def table(own_postgres: PostgresServer) -> PostgresServer:
    own_postgres.execute("CREATE TABLE kept (number int)")
    return own_postgres


def add(server: PostgresServer, number: int) -> None:
    server.execute(f"INSERT INTO kept VALUES ({number})")


def test_a_standby_follows_and_takes_no_writes(table: PostgresServer) -> None:
    with Standby(table) as standby:
        add(table, 1)
        standby.catch_up()
        assert standby.execute(NUMBERS) == [(1,)]
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            add(standby, 2)


def test_a_promoted_standby_lacks_what_it_had_not_received(table: PostgresServer) -> None:
    with Standby(table) as standby:
        add(table, 1)
        standby.catch_up()
        standby.detach()
        add(table, 2)
        table.kill()
        standby.promote()
        assert standby.execute(NUMBERS) == [(1,)]
        add(standby, 3)
        standby.kill()
        standby.start()
        assert standby.execute(NUMBERS) == [(1,), (3,)]


def test_a_standby_of_a_server_with_a_password() -> None:
    with PostgresServer(fsync=False, password="s3cret") as primary, Standby(primary) as standby:
        assert standby.execute("SELECT pg_is_in_recovery()") == [(True,)]


def test_a_restored_backup_is_the_past_at_the_same_address(table: PostgresServer) -> None:
    add(table, 1)
    backup, port = table.backup(), table.port
    add(table, 2)
    for number in (3, 4):  # it can be restored more than once
        table.restore(backup)
        assert not table.is_running
        table.start()
        assert table.port == port
        assert table.execute(NUMBERS) == [(1,)]
        add(table, number)
