"""A database that was set back: the line stops, and after reconciling PostgreSQL has everything once, in order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from outbox import DurabilityError, Health, OutboxError, StoreLocked
from outbox.errors import HistoryRewound
from outbox.relay import reconcile_orders
from outbox.relay.reconcile import GONE, Reconciler
from outbox.relay.reconcile_orders import ORDER, ReconcileOrder, Reconciliation, ordered, place_order, reconciliations
from outbox.store.envelope import seq_key
from outbox.store.ledger import MARK_PREFIX, Settlement
from outbox.store.reads import FORGOTTEN
from outbox.store.store import Store
from outbox.target import Comparison
from outbox.testing import PostgresServer
from tests.unit.fakes.failover import Desk, Past
from tests.unit.fakes.rig import damage
from tests.unit.fakes.waiting import LONG, until


@pytest.fixture
def desk(past: Past, outbox_dir: Path) -> Iterator[Desk]:
    """With one host in its URL, so that a person decides."""
    with Desk(outbox_dir, past.url) as desk:
        yield desk


def lose(desk: Desk, past: Past, count: int = 25) -> list[int]:
    """Deliver some, then so many that PostgreSQL forgets; returns the latter's sequence numbers."""
    desk.trade(12)
    desk.deliver()
    copy = past.remember()
    lost = desk.trade(count)
    desk.deliver()
    past.set_back(copy)
    return lost


def rows(past: Past) -> int:
    return int(past.execute("SELECT count(*) FROM trades")[0][0])


# -- the line stops


def test_new_entries_do_not_overtake_lost_ones(desk: Desk, past: Past) -> None:
    lose(desk, past)
    new = desk.trade(6, accounts=6)  # of keys that lost nothing too
    desk.stop_at_loss()
    assert [entry.seq for entry in desk.box.pending()] == new
    assert rows(past) == 12
    status = desk.box.status()
    assert status.health is Health.NEEDS_OPERATOR
    assert "run `atb outbox reconcile`" in status.alarms[FORGOTTEN]
    assert desk.reconciliations() == []


def test_entries_lost_before_they_were_recorded_are_missed_too(desk: Desk, past: Past) -> None:
    desk.trade(10)
    desk.deliver()
    copy = past.remember()
    desk.trade(20)
    # The first batch is acknowledged; that is to be recorded while the second one is applied.
    desk.relay.step(desk.box.clock.monotonic())
    assert rows(past) == 20
    assert len(list(desk.box.pending())) == 20
    past.set_back(copy)
    # As when the connection went right behind the acknowledgement, so that nothing was noticed at the time.
    desk.relay._target.close()
    desk.relay.step(desk.box.clock.monotonic())
    desk.stop_at_loss()
    assert rows(past) == 10
    assert FORGOTTEN in desk.box.status().alarms
    desk.relay.reconcile()
    desk.deliver()
    assert rows(past) == 30
    assert desk.problems() == []


def test_reconciling_delivers_exactly_what_is_missing_in_order(desk: Desk, past: Past) -> None:
    lost = lose(desk, past)
    desk.trade(6)
    desk.stop_at_loss()
    done = desk.relay.reconcile()
    assert (done.put_back, done.first_seq, done.last_seq, done.gone) == (25, lost[0], lost[-1], 0)
    assert [entry.seq for entry in desk.box.pending()][:25] == lost
    desk.deliver()
    assert desk.problems() == []
    assert desk.box.status().alarms == {}
    assert [one["put_back"] for one in desk.reconciliations()] == [25]


def test_reconciling_is_refused_while_deliveries_are_paused(desk: Desk, past: Past) -> None:
    """A migration's vacuum or lock would wait for the connection, and meet the written watermark."""
    lose(desk, past)
    desk.relay.stop()
    desk.box.pauses.begin("migration 42")
    before = past.execute("SELECT position, seen_at FROM outbox_watermarks")
    for order in ({"everything": True}, {"accept": "it is right"}):
        with pytest.raises(OutboxError, match="nothing was put back: delivery is paused .*migration 42"):
            desk.relay.reconcile(**order)
    assert past.execute("SELECT position, seen_at FROM outbox_watermarks") == before
    desk.box.pauses.end()
    assert desk.relay.reconcile().put_back == 25
    desk.deliver()
    assert desk.problems() == []


def test_status_after_reconciling_asks_for_it_no_more(desk: Desk, past: Past) -> None:
    """It told the operator to run the command that had just been run."""
    desk.trade(3)
    desk.deliver()
    copy = past.remember()
    desk.trade(2)
    desk.deliver()
    past.set_back(copy)
    desk.stop_at_loss()
    desk.close()
    desk.open()
    [reason] = desk.box.status().needs_operator
    assert reason.startswith("postgresql-forgot: PostgreSQL lost entries")
    assert desk.relay.reconcile().put_back == 2
    status = desk.box.status()
    assert status.needs_operator == []
    assert status.degraded == ["no relay is running and 2 entries wait; start the engine or its relay"]


def test_reconciling_twice_changes_nothing_more(desk: Desk, past: Past) -> None:
    lose(desk, past)
    assert desk.relay.reconcile().put_back == 25
    assert not desk.relay.reconcile().needed
    desk.deliver()
    assert not desk.relay.reconcile().needed
    again = desk.relay.reconcile(everything=True)
    assert (again.needed, again.put_back) == (True, 0)
    assert desk.problems() == []


def test_a_loss_is_noticed_without_anything_to_deliver(desk: Desk, past: Past) -> None:
    lose(desk, past)
    desk.stop_at_loss()
    assert FORGOTTEN in desk.box.status().alarms


def test_drains_of_one_step_each_find_the_loss(desk: Desk, past: Past) -> None:
    lose(desk, past)
    desk.trade(1)
    for _ in range(2):
        assert not desk.relay.drain(0.0)
    assert FORGOTTEN in desk.box.status().alarms


def test_a_running_relay_is_asked_by_drain(desk: Desk, past: Past) -> None:
    with desk.relay:
        lose(desk, past)
        desk.stop_at_loss()
        assert FORGOTTEN in desk.box.status().alarms


def test_a_relay_that_starts_asks_by_itself(desk: Desk, past: Past) -> None:
    lose(desk, past)
    desk.close()
    desk.open()
    desk.relay.start()
    until(lambda: FORGOTTEN in desk.box.status().alarms)


def test_no_reconciliation_beside_a_running_relay(desk: Desk) -> None:
    desk.relay.start()
    with pytest.raises(StoreLocked, match="stop it first"):
        desk.relay.reconcile()


def test_the_ledger_keeps_everything_until_it_was_compared(desk: Desk, past: Past) -> None:
    lose(desk, past)
    desk.stop_at_loss()
    with pytest.raises(OutboxError, match="cannot prune while the alarm 'postgresql-forgot' stands"):
        desk.box.compact(timedelta(0))
    desk.relay.reconcile()
    desk.deliver()
    assert desk.box.compact(timedelta(0)) > 0


def test_a_restart_goes_on_waiting_for_the_operator(desk: Desk, past: Past) -> None:
    lose(desk, past)
    desk.trade(1)
    desk.stop_at_loss()
    desk.close()
    desk.open()
    desk.stop_at_loss()
    assert rows(past) == 12
    assert FORGOTTEN in desk.box.status().alarms


def test_when_the_right_database_comes_back_the_alarm_goes(desk: Desk, past: Past) -> None:
    desk.trade(5)
    desk.deliver()
    old = past.remember()
    desk.trade(5)
    desk.deliver()
    right = past.remember()
    past.set_back(old)
    desk.trade(1)
    desk.stop_at_loss()
    assert FORGOTTEN in desk.box.status().alarms
    past.set_back(right)
    desk.deliver()
    assert desk.box.status().alarms == {}
    assert desk.reconciliations() == []
    assert desk.problems() == []


# -- what is delivered again and what is not


def test_groups_are_delivered_again_whole(desk: Desk, past: Past) -> None:
    desk.trade(3)
    desk.deliver()
    copy = past.remember()
    desk.audit.group(desk.box, 40)
    desk.trade(3)
    last = desk.audit.group(desk.box, 7)
    desk.deliver()
    past.set_back(copy)
    # One member of the last has been delivered by another store, as a key that two stores share can be.
    member = desk.box.store.record("ledger", last[3])
    assert member is not None
    past.execute(
        "INSERT INTO outbox_receipts (idempotency_key, store_id, seq, operation, payload_hash) VALUES "
        f"('{member.key.hex()}', '{desk.box.status().store_id}', {member.seq}, 'trade', '{member.payload_hash.hex()}')"
    )
    past.execute(f"INSERT INTO trades (number, account) VALUES ({member.entry().args['number']}, 'elsewhere')")
    assert desk.relay.reconcile().put_back == 50
    desk.deliver()
    assert desk.box.status().dead_letters == 0
    assert desk.problems() == []


def test_dead_letters_and_what_was_given_up_are_not_delivered_again(desk: Desk, past: Past) -> None:
    past.execute("ALTER TABLE trades ADD CHECK (number NOT BETWEEN 100 AND 199)")
    desk.trade(3)
    desk.deliver()
    copy = past.remember()
    for number in (100, 101, 102):
        desk.box.enqueue("trade", {"number": number, "account": f"refused-{number}"})
    desk.relay.drain(LONG)
    kept, given_up, requeued = [entry.seq for entry in desk.box.dead_letters()]
    desk.box.discard(given_up, "entered by hand")
    desk.trade(3)
    desk.relay.drain(LONG)
    past.set_back(copy)
    assert desk.relay.reconcile().put_back == 3
    desk.relay.drain(LONG)
    assert [entry.seq for entry in desk.box.dead_letters()] == [kept, requeued]
    assert rows(past) == 6
    # Other answers of an operator are in the ledger too.
    assert [one.put_back for one in reconciliations(desk.box, after_seq=0)] == [3]


def test_a_requeued_entry_from_long_before_is_delivered_again(desk: Desk, past: Past) -> None:
    past.execute("ALTER TABLE trades ADD CONSTRAINT picky CHECK (account <> 'joint')")
    seqs = desk.audit.group(desk.box, 4)
    desk.trade(12)
    desk.relay.drain(LONG)
    past.execute("ALTER TABLE trades DROP CONSTRAINT picky")
    desk.trade(1)
    desk.relay.drain(LONG)
    copy = past.remember()
    desk.box.requeue(seqs[2])
    desk.deliver()
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert (done.put_back, done.first_seq) == (4, seqs[0])
    desk.deliver()
    assert desk.problems() == []


def two_refused(desk: Desk, past: Past) -> None:
    """Two dead letters before six entries that are delivered; what refused them is mended."""
    past.execute("ALTER TABLE trades ADD CONSTRAINT picky CHECK (number < 100)")
    for number in (100, 101):
        desk.box.enqueue("trade", {"number": number, "account": f"refused-{number}"})
    desk.trade(6)
    desk.relay.drain(LONG)
    past.execute("ALTER TABLE trades DROP CONSTRAINT picky")


def test_several_entries_requeued_long_before_are_delivered_again(desk: Desk, past: Past) -> None:
    two_refused(desk, past)
    copy = past.remember()
    older, newer = [entry.seq for entry in desk.box.dead_letters()]
    desk.box.requeue(older)
    desk.box.requeue(newer)
    desk.deliver()
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert (done.put_back, done.first_seq, done.last_seq) == (2, older, newer)
    desk.deliver()
    assert rows(past) == 8


def spoil(desk: Desk, seq: int) -> None:
    """Damage an entry's copy in the ledger."""
    opened = desk.box.store._environment
    assert opened is not None
    with opened.env.begin(write=True) as txn:
        txn.put(seq_key(seq), b"garbage", db=opened.ledger)


def test_unreadable_requeued_entry_does_not_keep_others_from_return(desk: Desk, past: Past) -> None:
    two_refused(desk, past)
    copy = past.remember()
    dead = [entry.seq for entry in desk.box.dead_letters()]
    for seq in dead:
        desk.box.requeue(seq)
    lost = desk.trade(3)
    desk.deliver()
    for seq in dead:
        spoil(desk, seq)
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert (done.put_back, done.first_seq, done.last_seq, done.gone) == (3, lost[0], lost[-1], 2)
    assert "2 later entries are not in the ledger" in desk.box.status().alarms[GONE]


def test_group_incomplete_in_the_ledger_is_gone_and_the_rest_returns(desk: Desk, past: Past) -> None:
    desk.trade(12)
    desk.deliver()
    copy = past.remember()
    groups = [desk.audit.group(desk.box, 2) for _ in range(2)]
    single = desk.trade(3)
    desk.deliver()
    for _, second in groups:
        spoil(desk, second)
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert (done.put_back, done.first_seq, done.gone) == (3, single[0], 4)
    assert "4 later entries are not in the ledger" in desk.box.status().alarms[GONE]


def test_a_quarantined_entry_is_not_missed(desk: Desk, past: Past) -> None:
    desk.trade(12)
    desk.deliver()
    copy = past.remember()
    seqs = desk.trade(5)
    damage(desk.box.path, seqs[2])
    assert desk.relay.drain(LONG)
    assert [seq for seq, _ in desk.box.store.quarantined()] == [seqs[2]]
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert (done.put_back, done.gone) == (4, 0)
    assert GONE not in desk.box.status().alarms


def test_large_loss_is_put_back_in_several_commits_and_reported_once(desk: Desk, past: Past) -> None:
    lost = lose(desk, past, 600)
    before = desk.box.status().last_seq
    done = desk.relay.reconcile()
    assert (done.put_back, done.first_seq, done.last_seq) == (600, lost[0], lost[-1])
    assert [entry.seq for entry in desk.box.pending()] == lost
    # What was done can be read in the ledger, by who knows what he has read before.
    assert list(reconciliations(desk.box, after_seq=before)) == [done]
    desk.box.alarms.sound("disk", "it smells")
    desk.box.alarms.acknowledge("disk")
    assert list(reconciliations(desk.box, after_seq=before)) == [done]
    assert list(reconciliations(desk.box, after_seq=before + 1)) == []
    desk.deliver()
    assert desk.problems() == []


def test_entries_that_survived_are_not_put_back(desk: Desk, past: Past) -> None:
    """The surviving watermark lies before transactions that survived too: their receipts tell."""
    desk.trade(12)
    desk.deliver()
    copy = past.remember()
    desk.trade(25)
    desk.deliver()
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert done.compared > done.put_back == 25


def test_entries_without_a_ledger_copy_are_looked_up_by_their_keys(
    desk: Desk, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Store._settle

    def full(store: Store, settlement: Settlement, *, keep_ledger: bool) -> None:
        if keep_ledger:
            raise DurabilityError("no room for ledger copies")
        settle(store, settlement, keep_ledger=False)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_settle", full)
        desk.trade(4)
        desk.deliver()
        copy = past.remember()
        desk.trade(3)
        desk.deliver()
    past.set_back(copy)
    assert desk.relay.reconcile().gone == 3


def test_lost_entries_missing_in_the_ledger_raise_an_alarm(desk: Desk, past: Past) -> None:
    desk.trade(4)
    desk.deliver()
    copy = past.remember()
    desk.trade(8)
    desk.deliver()
    desk.box.compact(timedelta(0))
    desk.trade(3)
    desk.deliver()
    past.set_back(copy)
    done = desk.relay.reconcile()
    assert done.put_back == 3
    assert done.gone >= 8
    desk.relay.drain(LONG)
    assert f"{done.gone} later entries are not in the ledger" in desk.box.status().alarms[GONE]


def test_a_receipt_of_another_payload_is_no_proof(desk: Desk, past: Past) -> None:
    [lost] = lose(desk, past, count=1)
    record = desk.box.store.record("ledger", lost)
    assert record is not None
    past.execute(
        "INSERT INTO outbox_receipts (idempotency_key, store_id, seq, operation, payload_hash) VALUES "
        f"('{record.key.hex()}', gen_random_uuid(), 1, 'trade', gen_random_uuid())"
    )
    assert desk.relay.reconcile().put_back == 1
    desk.relay.drain(LONG)
    [dead] = desk.box.dead_letters()  # where a person sees it
    assert "with other arguments" in str(dead.error)


def test_a_damaged_ledger_record_keeps_nothing_else_from_coming_back(desk: Desk, past: Past) -> None:
    lost = lose(desk, past, count=9)
    with desk.box.store._write("damage") as (environment, txn):
        txn.put(seq_key(lost[4]), b"damaged", db=environment.ledger)
    done = desk.relay.reconcile()
    assert (done.put_back, done.gone) == (8, 1)
    assert GONE in desk.box.status().alarms


def test_a_damaged_memory_asks_an_operator(desk: Desk, past: Past) -> None:
    desk.trade(5)
    desk.deliver()
    [mark] = desk.box.store.marks()
    with desk.box.store._write("damage") as (_, txn):
        txn.put(MARK_PREFIX + b"\0", mark.pack()[:-1])
    desk.trade(1)
    desk.relay.stop()
    desk.stop_at_loss()
    assert FORGOTTEN in desk.box.status().alarms
    assert desk.relay.reconcile().put_back == 0
    desk.deliver()
    assert desk.problems() == []


# -- the server changes unseen


def test_a_server_that_changes_behind_a_pooler_is_noticed(desk: Desk, past: Past) -> None:
    with desk.relay:  # which keeps its connection
        for _ in range(2):
            desk.trade(5)
            desk.deliver()
        # What a connection pooler does that goes over to a standby between two transactions.
        past.execute("UPDATE outbox_watermarks SET position = position - 1")
        desk.trade(1)
        desk.stop_at_loss()
        assert rows(past) == 10
        assert FORGOTTEN in desk.box.status().alarms


# -- an operator's order


def test_entries_put_back_come_before_a_batch_that_was_read_ahead(desk: Desk, past: Past) -> None:
    first = desk.trade(10, accounts=1)
    desk.deliver()
    desk.trade(40, accounts=1)
    desk.relay.step(desk.box.clock.monotonic())  # and the next batch is read
    lost = first[2:4]
    past.execute(f"DELETE FROM trades WHERE number IN (SELECT seq FROM outbox_receipts WHERE seq IN {tuple(lost)})")
    past.execute(f"DELETE FROM outbox_receipts WHERE seq IN {tuple(lost)}")
    place_order(desk.box, ReconcileOrder(everything=True))
    desk.relay.step(desk.box.clock.monotonic())
    applied = past.execute("SELECT seq FROM outbox_receipts ORDER BY applied_at, seq")
    order = [seq for (seq,) in applied]
    assert order.index(lost[0]) == 18
    assert order.index(lost[1]) == 19
    # An order is for once.
    assert not ordered(desk.box)
    desk.deliver()


def test_an_order_that_comes_while_the_relay_compares_is_carried_out(
    desk: Desk, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose(desk, past)
    real = Reconciler._automatic

    def order_meanwhile(reconciler: Reconciler, *args: object) -> bool:
        if not placed:
            placed.append(True)
            place_order(desk.box, ReconcileOrder())
        return real(reconciler, *args)  # type: ignore[arg-type]

    placed: list[bool] = []
    monkeypatch.setattr(Reconciler, "_automatic", order_meanwhile)
    desk.trade(1)
    assert desk.relay.drain(LONG)
    assert placed
    [done] = desk.reconciliations()
    assert done["put_back"] == len(lost)
    assert desk.problems() == []


def test_second_order_during_a_reconciliation_is_carried_out_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real, carried_out = Reconciler._run, list[ReconcileOrder]()

    def order_meanwhile(
        reconciler: Reconciler, comparison: Comparison, loss: HistoryRewound | None, order: ReconcileOrder
    ) -> Reconciliation:
        if not carried_out:
            place_order(desk.box, ReconcileOrder(everything=True))
        carried_out.append(order)
        return real(reconciler, comparison, loss, order)

    monkeypatch.setattr(Reconciler, "_run", order_meanwhile)
    desk.trade(3)
    desk.deliver()
    place_order(desk.box, ReconcileOrder(accept="the first"))
    for _ in range(4):
        desk.relay.step(desk.box.clock.monotonic())
    assert not ordered(desk.box)
    assert [(order.accept, order.everything) for order in carried_out] == [("the first", False), (None, True)]


def test_an_order_for_another_loss_is_not_carried_out(desk: Desk, past: Past) -> None:
    desk.trade(3)
    desk.deliver()
    place_order(desk.box, ReconcileOrder(accept="that was then"))
    lose(desk, past)
    place_order(desk.box, ReconcileOrder(accept="that was then"))
    stale = desk.box.store.get_meta("reconcile")
    assert stale is not None
    desk.relay.reconcile()
    desk.deliver()
    copy = past.remember()
    desk.trade(4)
    desk.deliver()
    past.set_back(copy)
    desk.box.store.put_meta("reconcile", stale)
    desk.stop_at_loss()
    assert FORGOTTEN in desk.box.status().alarms
    assert not ordered(desk.box)
    assert [one["accepted"] for one in desk.reconciliations()] == [None]


@pytest.mark.parametrize("option", [None, "some"])
def test_order_of_a_newer_version_is_carried_out_if_understood(
    desk: Desk, past: Past, caplog: pytest.LogCaptureFixture, option: str | None
) -> None:
    lost = lose(desk, past)
    place_order(desk.box, ReconcileOrder())
    given = json.loads(desk.box.store.get_meta(ORDER) or b"")
    desk.box.store.put_meta(ORDER, json.dumps({**given, "tables": option}).encode())
    assert desk.relay.drain(1.0 if option else LONG) is (option is None)
    assert not ordered(desk.box)
    assert [one["put_back"] for one in desk.reconciliations()] == ([] if option else [len(lost)])
    assert ("this version does not know its options: tables" in caplog.text) is (option is not None)


def test_result_of_an_older_version_lacks_newer_fields(desk: Desk, past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(desk, past)
    desk.relay.reconcile()
    known = fields(Reconciliation)
    monkeypatch.setattr(reconcile_orders, "fields", lambda _: [*known, SimpleNamespace(name="tables")])
    [done] = reconciliations(desk.box, after_seq=0)
    assert done.put_back == 25


# -- another database


def test_another_database_is_never_filled_without_a_person(
    past: Past, postgres_server: PostgresServer, outbox_dir: Path
) -> None:
    other = Past(postgres_server)
    try:
        with Desk(outbox_dir, past.url, reconcile="auto") as desk:
            desk.trade(5)
            desk.deliver()
            desk.relay.stop()
            stray = desk.new_relay(other.url)
            desk.trade(1)
            desk.stop_at_loss(stray)
            alarm = desk.box.status().alarms[FORGOTTEN]
            assert "check DATABASE_URL" in alarm
            assert rows(other) == 0
            desk.deliver()  # back at the right one
            assert desk.box.status().alarms == {}
            assert desk.problems() == []
            # Unless it is meant.
            desk.relay.stop()
            assert stray.reconcile().put_back == 6
            assert stray.drain(LONG)
            assert rows(other) == 6
    finally:
        other.close()


def test_a_loss_can_be_accepted_with_a_reason(desk: Desk, past: Past) -> None:
    lose(desk, past)
    with pytest.raises(OutboxError, match="say why"):
        desk.relay.reconcile(accept=" ")
    done = desk.relay.reconcile(accept="the test day is over")
    assert (done.put_back, done.accepted) == (0, "the test day is over")
    desk.trade(2)
    desk.deliver()
    assert rows(past) == 14
    assert desk.box.status().alarms == {}
    assert [one["accepted"] for one in desk.reconciliations()] == ["the test day is over"]


# -- without a person, again and again


def test_automatic_mode_needs_nobody(past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        lose(desk, past)
        desk.trade(1)
        desk.deliver()
        assert desk.problems() == []
        assert [one["put_back"] for one in desk.reconciliations()] == [25]


def test_set_back_again_while_it_delivers_again(past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        desk.trade(5)
        desk.deliver()
        first = past.remember()
        desk.trade(15)
        desk.deliver()
        second = past.remember()
        desk.trade(40)
        desk.deliver()
        past.set_back(second)
        # As far as a part of it, and no further.

        def put_back_at_last() -> bool:
            desk.relay.step(desk.box.clock.monotonic())
            desk.trade(1)
            return desk.box.status().pending > 0

        until(put_back_at_last)
        for _ in range(3):
            desk.relay.step(desk.box.clock.monotonic())
        past.set_back(first)
        desk.deliver()
        assert desk.problems() == []


def test_back_to_a_server_that_had_been_left(past: Past, outbox_dir: Path) -> None:
    """The old primary comes back: it has what the other one lacked, and lacks what the other one got."""
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        desk.trade(5)
        desk.deliver()
        standby = past.remember()
        desk.trade(10)
        desk.deliver()
        primary = past.remember()
        past.set_back(standby)
        desk.trade(10)
        desk.deliver()
        assert desk.problems() == []
        past.set_back(primary)
        desk.trade(1)
        desk.deliver()
        assert desk.problems() == []
        assert len(desk.reconciliations()) == 2


def test_copy_of_a_store_that_reconciles_does_not_hide_the_loss(past: Past, outbox_dir: Path, tmp_path: Path) -> None:
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        lose(desk, past)
        desk.close()
        shutil.copytree(outbox_dir, tmp_path / "copy")
        with Desk(tmp_path / "copy", past.url) as other:
            assert other.relay.reconcile().put_back == 25
        desk.open()
        desk.trade(1)
        desk.deliver()
        assert desk.problems() == []
        assert [one["put_back"] for one in desk.reconciliations()] == [25]


def test_reconciliation_cut_short_is_made_again(past: Past, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL knows already that it was taken as it is, and the store does not: the watermark must prove nothing."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        lose(desk, past)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Store, "rebase", killed)
            desk.deliver()
        desk.close()
        desk.open()
        desk.trade(1)
        desk.deliver()
        assert desk.problems() == []
        assert [one["settled_seq"] for one in desk.reconciliations()] == [12]


def test_listeners_hear_before_anything_is_delivered_again(past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        heard: list[tuple[int, int]] = []
        desk.box.progress.on_rewound(lambda: heard.append((rows(past), desk.box.status().pending)))
        lose(desk, past)
        desk.trade(1)
        desk.deliver()
        assert heard == [(12, 26)]
