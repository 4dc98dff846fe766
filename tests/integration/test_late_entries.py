"""Entries that came back to old places, and a PostgreSQL that is set back after they were delivered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outbox import OutboxConfig
from outbox.clock import SystemClock
from outbox.transfer.exporting import export
from outbox.transfer.importing import restore
from tests.unit.fakes.failover import Desk, Past


def everything(desk: Desk) -> None:
    """`atb outbox reconcile --all`."""
    assert desk.relay.reconcile(everything=True).put_back == 1


def killed(desk: Desk) -> None:
    """The same, but it is killed before it has ended; its order is gone with it."""
    record = desk.box.store.record("ledger", 5)
    assert record is not None
    assert desk.box.store.put_back([record]) == 1


def killed_and_repeated(desk: Desk) -> None:
    killed(desk)
    assert desk.relay.reconcile(everything=True).put_back == 0


@pytest.mark.parametrize("bring_back", [everything, killed, killed_and_repeated])
def test_a_late_delivery_is_found_again_after_a_set_back(
    past: Past, outbox_dir: Path, bring_back: Callable[[Desk], None]
) -> None:
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        desk.trade(10)
        desk.deliver()
        past.execute("DELETE FROM trades WHERE number = 4; DELETE FROM outbox_receipts WHERE seq = 5")
        desk.trade(1)
        desk.deliver()
        copy = past.remember()
        bring_back(desk)
        desk.deliver()
        assert past.execute("SELECT count(*) FROM trades WHERE number = 4") == [(1,)]
        desk.trade(3)
        desk.deliver()
        past.set_back(copy)
        desk.trade(1)
        desk.deliver()
        assert past.execute("SELECT count(*) FROM trades WHERE number = 4") == [(1,)]
        assert past.execute("SELECT count(*) FROM trades") == [(15,)]


def test_an_imported_entry_is_found_again_after_a_set_back(past: Past, outbox_dir: Path, tmp_path: Path) -> None:
    """Entry 5 was lost with a damaged page; a rescued file has it, still pending."""
    lines: list[bytes] = []
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(10)
    export(outbox_dir, lines.append)
    rescued = tmp_path / "rescued.jsonl"
    rescued.write_bytes(b"".join(lines))
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        with desk.box.store._counted("lose entry 5") as (environment, txn, counters):
            record = desk.box.store.record("pending", 5)
            assert record is not None
            txn.delete((5).to_bytes(8), db=environment.pending)
            txn.delete(record.key, db=environment.idempotency)
            counters.acknowledged -= 1
        desk.deliver()
        desk.trade(1)
        desk.deliver()
    copy = past.remember()
    restore(rescued, outbox_dir, OutboxConfig(), SystemClock())
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        desk.deliver()
        assert past.execute("SELECT count(*) FROM outbox_receipts WHERE seq = 5") == [(1,)]
        past.set_back(copy)
        desk.trade(1)
        desk.deliver()
        assert past.execute("SELECT count(*) FROM outbox_receipts WHERE seq = 5") == [(1,)]
