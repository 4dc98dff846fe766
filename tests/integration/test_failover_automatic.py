"""A standby that lagged is promoted: what it lacks is delivered again, once and in order, without a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import PostgresServer, Standby
from tests.unit.fakes.failover import Desk, create_tables, lose_primary, multi_host


@pytest.fixture
def servers(no_leftovers: None) -> Iterator[tuple[PostgresServer, Standby]]:
    with PostgresServer(fsync=False) as primary:
        create_tables(primary)
        with Standby(primary) as standby:
            yield primary, standby


def test_what_a_promoted_standby_lacks_is_delivered_again(
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
