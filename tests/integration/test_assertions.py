"""`assert_delivered_once` sees each way in which an entry may not have taken effect once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation, Outbox, PostgresTarget, Relay
from outbox.testing import assert_delivered_once
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

OPERATIONS = (Operation("trade", table="trades", order_by="account"),)


@pytest.fixture
def outbox_operations() -> tuple[Operation, ...]:
    return OPERATIONS


@pytest.fixture
def told(outbox_postgres: str, outbox_store: Outbox, outbox_relay: Relay) -> list[Entry]:
    """Three acknowledged and delivered trades."""
    query(outbox_postgres, "CREATE TABLE trades (number int CHECK (number < 100), account text)")
    entries = [outbox_store.enqueue("trade", {"number": number, "account": "one"}) for number in (1, 2, 3)]
    assert outbox_relay.drain(LONG)
    return entries


def test_delivered_entries_pass(told: list[Entry], outbox_store: Outbox, outbox_postgres: str) -> None:
    assert_delivered_once(outbox_store, outbox_postgres, OPERATIONS, entries=told, rows={"trades": 3})


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("DELETE FROM trades WHERE number = 2", "entry 2 (trade): row missing"),
        ("INSERT INTO trades SELECT * FROM trades WHERE number = 2", "entry 2 (trade): row doubled"),
        ("UPDATE trades SET number = 7 WHERE number = 2", "entry 2 (trade): row"),
        ("DELETE FROM outbox_receipts WHERE seq = 2", "entry 2 (trade): no receipt"),
        ("INSERT INTO trades VALUES (9, 'other')", "table trades has 4 rows, expected 3"),
    ],
)
def test_damage_in_postgresql_fails(
    told: list[Entry], outbox_store: Outbox, outbox_postgres: str, damage: str, fault: str
) -> None:
    query(outbox_postgres, damage)
    with pytest.raises(AssertionError, match=re.escape(fault)):
        assert_delivered_once(outbox_store, outbox_postgres, OPERATIONS, entries=told, rows={"trades": 3})


def test_rejected_and_pending_entries_fail(
    told: list[Entry], outbox_store: Outbox, outbox_postgres: str, outbox_relay: Relay
) -> None:
    told += [outbox_store.enqueue("trade", {"number": number, "account": "two"}) for number in (100, 4)]
    assert outbox_relay.drain(LONG)
    with pytest.raises(AssertionError) as caught:
        assert_delivered_once(outbox_store, outbox_postgres, OPERATIONS, entries=told)
    faults = str(caught.value).splitlines()
    assert faults[0] == "not every entry was delivered once:"
    assert re.match(r"entry 4 \(trade\) is FAILED: 23514", faults[1])
    assert faults[2:] == ["entry 5 (trade) is not settled", "pending: 1", "dead letters: 1"]


def test_entry_of_another_store_fails(told: list[Entry], outbox_store: Outbox, outbox_postgres: str) -> None:
    strange = Entry(**{**{name: getattr(told[0], name) for name in Entry.__slots__}, "id": told[1].id})
    with pytest.raises(AssertionError, match="entry 1 is another one than the acknowledged one"):
        assert_delivered_once(outbox_store, outbox_postgres, OPERATIONS, entries=[strange])


def test_handlers_pass_by_their_number_of_rows(outbox_postgres: str, tmp_path: Path) -> None:
    def insert(connection: Connection, entry: Entry) -> None:
        connection.execute(text("INSERT INTO fees (fee) VALUES (:fee)"), entry.args)

    handler = Operation("fee", handler=insert)
    query(outbox_postgres, "CREATE TABLE fees (fee int)")
    with Outbox.open(tmp_path / "outbox", operations=[handler]) as box:
        for fee in (1, 2):
            box.enqueue("fee", {"fee": fee})
        assert Relay(box, PostgresTarget(outbox_postgres, [handler])).drain(LONG)
        for declared in ([handler], []):
            assert_delivered_once(box, outbox_postgres, declared, rows={"fees": 2})
        with pytest.raises(AssertionError, match="table fees has 2 rows, expected 3"):
            assert_delivered_once(box, outbox_postgres, [handler], rows={"fees": 3})


def test_rows_that_cannot_be_compared_fail(told: list[Entry], outbox_store: Outbox, outbox_postgres: str) -> None:
    query(outbox_postgres, "ALTER TABLE trades RENAME TO gone")
    with pytest.raises(AssertionError, match="rows of trade were not compared"):
        assert_delivered_once(outbox_store, outbox_postgres, OPERATIONS, entries=told)
    # Without declared operations only receipts are compared.
    assert_delivered_once(outbox_store, outbox_postgres, entries=told)
