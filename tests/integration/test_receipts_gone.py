"""The receipts table was dropped or emptied: the line stops, and goes on when an operator says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox import Health, TargetMisconfigured
from tests.unit.fakes.failover import Desk, Past
from tests.unit.fakes.waiting import until

HARM = ["DROP TABLE outbox_receipts", "TRUNCATE outbox_receipts"]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("pending", [0, 3])
def test_missing_receipts_stop_delivery_until_an_operator_accepts(
    past: Past, outbox_dir: Path, harm: str, connected: bool, pending: int
) -> None:
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(12)
        desk.deliver()
        if not connected:
            desk.close()
            desk.open()
        past.execute(harm)
        desk.trade(pending)
        # One that waits for the deliveries is a reason to ask, also where nothing is pending.
        with desk.relay:
            until(lambda: not desk.relay.drain(0.1) and bool(desk.box.status().needs_operator))
            said = desk.box.status().needs_operator
        assert len(said) == 1
        assert "outbox_receipts" in said[0]
        assert "though this database has taken entries before" in said[0]
        with pytest.raises(TargetMisconfigured, match="outbox_receipts"):
            desk.relay.reconcile(everything=True)
        past.execute("DROP TABLE outbox_watermarks")
        desk.relay.reconcile(accept="compared by hand")
        desk.deliver()
        for _ in range(2):
            desk.trade(1)
            desk.close()
            desk.open()
            desk.deliver()
            assert desk.box.status().health is Health.HEALTHY
        assert past.execute("SELECT count(*), count(DISTINCT number) FROM trades") == [(14 + pending, 14 + pending)]


@pytest.mark.parametrize("table", ["outbox_receipts", "outbox_watermarks"])
def test_unlogged_receipts_stop_the_line_before_a_crash(past: Past, outbox_dir: Path, table: str) -> None:
    """A crash of PostgreSQL empties them and leaves the rows: reconciling would write each row again."""
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(2)
        desk.deliver()
        past.execute(f"ALTER TABLE {table} SET UNLOGGED")
        desk.close()
        desk.open()
        desk.trade(1)
        assert not desk.relay.drain(0.5)
        (said,) = desk.box.status().needs_operator
        assert f"table '{table}' is UNLOGGED" in said
        assert f"ALTER TABLE {table} SET LOGGED" in said
        past.execute(f"ALTER TABLE {table} SET LOGGED")
        desk.deliver()
        assert desk.box.status().health is Health.HEALTHY
        assert past.execute("SELECT count(*), count(DISTINCT number) FROM trades") == [(3, 3)]


def test_a_database_that_was_accepted_needs_no_receipts(past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(12)
        desk.deliver()
        past.execute("DROP TABLE outbox_receipts, outbox_watermarks")
        desk.close()
        desk.open()
        assert not desk.relay.drain(0.5)
        desk.relay.reconcile(accept="it is a new one")
        for _ in range(2):
            desk.close()
            desk.open()
            desk.deliver()
            assert desk.box.status().health is Health.HEALTHY


@pytest.mark.parametrize("harm", HARM)
def test_receipts_lost_behind_a_reconciliation_stop_the_line(past: Past, outbox_dir: Path, harm: str) -> None:
    """Its note counted as an acceptance, so that nothing was noticed before a new entry had been delivered."""
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(3)
        desk.deliver()
        copy = past.remember()
        desk.trade(2)
        desk.deliver()
        past.set_back(copy)
        desk.stop_at_loss()
        assert desk.relay.reconcile().put_back == 2
        desk.deliver()
        desk.close()
        past.execute(harm)
        desk.open()
        desk.trade(1)
        assert not desk.relay.drain(0.5)
        assert "outbox_receipts" in desk.box.status().needs_operator[0]
        assert desk.box.status().dead_letters == 0


RENAMED = [("outbox_watermarks",), ("outbox_receipts", "outbox_watermarks")]


@pytest.mark.parametrize("tables", RENAMED, ids=" ".join)
@pytest.mark.parametrize("connected", [True, False])
def test_renamed_table_can_be_renamed_back(
    past: Past, outbox_dir: Path, tables: tuple[str, ...], connected: bool
) -> None:
    """The relay made a new, empty one in its place, which had to be dropped first."""
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(3)
        desk.deliver()
        if not connected:
            desk.close()
            desk.open()
        for table in tables:
            past.execute(f"ALTER TABLE {table} RENAME TO {table}_before")
        desk.trade(2)
        with desk.relay:
            until(lambda: not desk.relay.drain(0.1) and bool(desk.box.status().needs_operator))
        for table in tables:
            past.execute(f"ALTER TABLE {table}_before RENAME TO {table}")
        desk.deliver()
        assert desk.box.status().health is Health.HEALTHY
        assert past.execute("SELECT count(*), count(DISTINCT number) FROM trades") == [(5, 5)]


@pytest.mark.parametrize("everything", [True, False])
def test_renamed_tables_are_made_anew_when_an_operator_says_so(past: Past, outbox_dir: Path, everything: bool) -> None:
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(3)
        desk.deliver()
        for table in ("outbox_receipts", "outbox_watermarks"):
            past.execute(f"ALTER TABLE {table} RENAME TO {table}_before")
        past.execute("DELETE FROM trades")
        desk.trade(2)
        desk.stop_at_loss()
        desk.relay.reconcile(everything=everything)
        desk.deliver()
        assert desk.box.status().health is Health.HEALTHY
        assert past.execute("SELECT count(*), count(DISTINCT number) FROM trades") == [(5, 5)]


def test_entry_discarded_before_the_first_table_is_asked_for(past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url) as desk:
        [seq] = desk.trade(1)
        desk.box.discard(seq, "a test")
        desk.deliver()
        desk.trade(1)
        desk.deliver()
        assert desk.box.status().health is Health.HEALTHY
