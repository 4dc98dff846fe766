"""A store that is an older copy of itself: restored from a backup, or with a copy beside it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from outbox import Health
from outbox.relay.reconcile import COPY
from outbox.store.ledger import COPIED
from outbox.store.reads import FORGOTTEN
from tests.unit.fakes.failover import Desk, Past


def backup(directory: Path) -> Path:
    """As documented: everything stopped, `cp -a`."""
    copy = directory.with_name("backup")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    return copy


def restore(copy: Path, directory: Path) -> None:
    shutil.rmtree(directory)
    shutil.copytree(copy, directory)


def live(past: Past, directory: Path, *, delivered: int, pending: int = 0) -> None:
    """One process: it delivers some entries and leaves others."""
    with Desk(directory, past.url) as desk:
        if delivered:
            desk.trade(delivered)
            desk.deliver()
        desk.trade(pending)


def seqs(past: Past) -> list[int]:
    return [int(seq) for (seq,) in past.execute("SELECT seq FROM outbox_receipts ORDER BY seq")]


def operator(desk: Desk) -> None:
    """Reads the status, and answers with `atb outbox reconcile`."""
    done = desk.relay.reconcile()
    assert (done.needed, done.put_back, done.gone) == (True, 0, 0)
    desk.deliver()
    status = desk.box.status()
    assert status.needs_operator == []
    assert status.health is Health.HEALTHY


@pytest.mark.parametrize("before", [0, 12])
@pytest.mark.parametrize("since", [1, 2])
@pytest.mark.parametrize("enqueued", [0, 3, 40])
def test_a_restored_store_needs_an_operator_and_rises_above(
    past: Past, outbox_dir: Path, before: int, since: int, enqueued: int
) -> None:
    """Whatever was enqueued while PostgreSQL was away, it is applied once though its numbers were used before."""
    live(past, outbox_dir, delivered=before, pending=1)
    copy = backup(outbox_dir)
    for _ in range(since):
        live(past, outbox_dir, delivered=10, pending=5)
    seen = max(seqs(past))
    restore(copy, outbox_dir)
    with Desk(outbox_dir, past.url) as desk:
        again = desk.trade(enqueued)
        held = len(seqs(past))
        desk.stop_at_loss()
        status = desk.box.status()
        assert status.health is Health.NEEDS_OPERATOR
        assert "was restored from an older copy" in status.alarms[FORGOTTEN]
        assert len(seqs(past)) == held
        (new,) = desk.trade(1)
        assert new > seen
        operator(desk)
        # Those of the first life that have the same numbers are there too.
        assert seqs(past).count(again[0] if again else new) >= 1
        assert len(seqs(past)) == held + enqueued + 1


def test_a_restored_store_goes_on_where_nobody_is_asked_and_says_so(past: Past, outbox_dir: Path) -> None:
    live(past, outbox_dir, delivered=3)
    copy = backup(outbox_dir)
    live(past, outbox_dir, delivered=10)
    restore(copy, outbox_dir)
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        desk.deliver()
        assert desk.trade(1)[0] > 13
        desk.deliver()
        status = desk.box.status()
        assert status.health is Health.NEEDS_OPERATOR
        assert "was restored from an older copy" in status.alarms[COPY]
        desk.box.alarms.acknowledge(COPY)
        assert desk.box.status().health is Health.HEALTHY


def test_emptied_receipts_are_noticed_in_a_restored_store_too(past: Past, outbox_dir: Path) -> None:
    """What the copy has delivered would be applied again."""
    live(past, outbox_dir, delivered=3, pending=2)
    copy = backup(outbox_dir)
    live(past, outbox_dir, delivered=10)
    restore(copy, outbox_dir)
    past.execute("TRUNCATE outbox_receipts")
    with Desk(outbox_dir, past.url, reconcile="auto") as desk:
        assert not desk.relay.drain(0.5)
        said = desk.box.status().needs_operator
        assert any("though this database has taken entries before" in sentence for sentence in said)
    assert past.execute("SELECT count(*) FROM trades") == [(15,)]


def test_a_store_that_was_killed_is_not_taken_for_a_copy(past: Past, outbox_dir: Path) -> None:
    """PostgreSQL has what the process had no time to record."""
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(10)
        desk.deliver()
    for _ in range(3):
        with Desk(outbox_dir, past.url) as desk:
            (seq,) = desk.trade(1)
            desk.relay._target.apply(desk.box.store.identity.store_id, desk.box.store.peek(0, 10).records)
            assert seqs(past)[-1] == seq
            assert desk.box.store.is_pending(seq)
        with Desk(outbox_dir, past.url) as desk:
            desk.trade(1)
            desk.deliver()
            assert desk.box.status().health is Health.HEALTHY
            assert not [entry for entry in desk.box.ledger() if entry.operation == COPIED]


def test_numbers_that_were_never_given_out_do_not_count_as_lost(past: Past, outbox_dir: Path) -> None:
    """After a restored store has risen above its first life, PostgreSQL is set back as well."""
    live(past, outbox_dir, delivered=12)
    copy, then = backup(outbox_dir), past.remember()
    live(past, outbox_dir, delivered=10)
    midway = past.remember()
    live(past, outbox_dir, delivered=10)
    restore(copy, outbox_dir)
    for place in (midway, then):
        with Desk(outbox_dir, past.url) as desk:
            lost = desk.trade(3)
            if place is midway:
                desk.stop_at_loss()
                lost += desk.trade(2)
                operator(desk)
            else:
                desk.deliver()
            past.set_back(place)
            desk.relay._target.close()
            desk.stop_at_loss()
            done = desk.relay.reconcile()
            assert done.gone == 0
            assert done.put_back >= len(lost)
            desk.deliver()
            assert set(lost) <= set(seqs(past))


def test_a_copy_beside_the_original_is_named_and_loses_nothing(
    past: Past, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live(past, outbox_dir, delivered=12, pending=3)
    copy = backup(outbox_dir)
    with Desk(outbox_dir, past.url) as original, Desk(copy, past.url) as other:
        original.deliver()
        original.trade(5)
        original.deliver()
        # The copy cannot know that it is one before it has looked.
        other.trade(4)
        with caplog.at_level(logging.CRITICAL):
            other.stop_at_loss()
        assert any("a copy of it runs beside it" in record.message for record in caplog.records)
        assert "a copy of it runs beside it" in other.box.status().alarms[FORGOTTEN]
        operator(other)
        original.trade(2)
        original.stop_at_loss()
        assert original.box.status().health is Health.NEEDS_OPERATOR
        operator(original)
        assert len(seqs(past)) == 15 + 5 + 4 + 2
        assert past.execute("SELECT count(*) FROM trades")[0][0] == 15 + 5 + 4 + 2
