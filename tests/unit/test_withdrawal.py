"""A pending entry is discarded by an operator, or delivered by a relay, but never both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from outbox import AlreadyRejected, EntryInDelivery, EntryNotFound, EntryStatus, InvalidEntry, Outbox, TargetUnavailable
from outbox.rescue import verify
from outbox.store.envelope import Record
from outbox.store.kept_files import InDelivery
from tests.unit.fakes.rig import Rig, passing


@pytest.mark.slow
def test_pending_entry_is_discarded_and_its_key_goes_on(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second, other = rig.enqueue("a", "a", "b")
        [gone] = rig.box.discard(first, "the order was cancelled")
        assert (gone.seq, gone.status) == (first, EntryStatus.FAILED)
        assert gone.error == "discarded: the order was cancelled; was: pending"
        status = rig.box.status()
        assert (status.pending, status.discarded, status.dead_letters) == (2, 1, 0)
        rig.settle()
        assert rig.target.applied == [second, other]
        *_, audit = [entry for entry in rig.box.ledger() if entry.operation == "outbox.discard"]
        assert audit.args == {"seq": first, "reason": "the order was cancelled"}
    verify.check_all(outbox_dir)


def test_entry_that_waits_for_its_retry_is_discarded(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        bad, behind = rig.enqueue("a", "a")
        rig.target.refuse[bad] = passing("P0001: not now")
        rig.settle()
        [gone] = rig.box.discard(bad, "mended by hand")
        assert gone.error == "discarded: mended by hand; was: P0001: not now"
        rig.settle()
        assert rig.target.applied == [behind]
        assert rig.relay._delivery._scan.waits.next_retry is None


def test_transaction_is_discarded_whole(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        group = rig.group("a", "b", "c")
        behind = rig.enqueue("b")
        assert [entry.seq for entry in rig.box.discard(group[1], "not wanted")] == group
        rig.settle()
        assert rig.target.applied == behind


def test_discard_of_a_pending_entry_needs_a_reason(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        [seq] = rig.enqueue("a")
        with pytest.raises(InvalidEntry, match="reason"):
            rig.box.discard(seq, " ")
        assert rig.pending() == [seq]


def test_settled_entry_cannot_be_discarded(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        [seq] = rig.enqueue("a")
        rig.settle()
        for wrong in (seq, seq + 1000, 0, -1, 1 << 70):
            with pytest.raises(EntryNotFound):
                rig.box.discard(wrong, "why")


def test_discarded_call_is_refused_and_its_key_can_be_freed(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.box.enqueue("write", {"n": 1}, key="k")
        rig.box.discard(1, "wrong price")
        with pytest.raises(AlreadyRejected, match="wrong price"):
            rig.box.enqueue("write", {"n": 1}, key="k")
        again = rig.box.enqueue("write", {"n": 2}, key="other").seq
        rig.box.discard(again, "wrong price", free_key=True)
        assert rig.box.enqueue("write", {"n": 3}, key="other").seq > again


def test_entry_in_delivery_is_not_discarded(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue("a", "b")
        refused: list[str] = []

        def apply(records: Sequence[Record]) -> None:
            for seq in (first, second):
                try:
                    rig.box.discard(seq, "too late")
                except EntryInDelivery as exc:
                    refused.append(str(exc))

        rig.target.before = apply
        rig.settle()
        assert len(refused) == 2
        assert "entry 1 is being delivered right now" in refused[0]
        assert rig.target.applied == [first, second]
        assert rig.box.status().discarded == 0


def test_entry_that_is_applied_and_not_recorded_is_not_discarded(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        first, _ = rig.enqueue("a", "b")
        rig.step()
        assert rig.target.applied == [first]
        assert first in rig.pending()
        with pytest.raises(EntryInDelivery):
            rig.box.discard(first, "too late")
        rig.settle()
        assert rig.pending() == []


def test_entry_discarded_after_it_was_read_is_not_delivered(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue("a", "b")
        scan, late = rig.relay._delivery._scan, [first]
        read = scan.next_batch

        def discarded_behind_its_back(now: float, limit: int):  # type: ignore[no-untyped-def]
            batch = read(now, limit)
            while late:
                rig.box.discard(late.pop(), "in time")
            return batch

        monkeypatch.setattr(scan, "next_batch", discarded_behind_its_back)
        rig.run(1)
        assert rig.target.applied == [second]


def test_batch_waits_while_an_operator_has_one_of_it(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue("a", "b")
        operator = InDelivery(rig.box.path)
        assert operator.claim(second, second)
        assert 0 < rig.step() < 1
        assert rig.target.calls == []
        operator.close()
        rig.settle()
        assert rig.target.applied == [first, second]


def test_entry_can_be_discarded_between_two_tries_of_an_outage(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue("a", "a")
        rig.target.down = TargetUnavailable("connection refused")
        rig.settle()
        rig.box.discard(first, "no longer wanted")
        rig.target.down = None
        rig.run(60)
        assert rig.target.applied == [second]


def test_removed_lock_file_does_not_part_relay_and_operator(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue("a")
        rig.settle()
        [seq] = rig.enqueue("b")
        (rig.box.path / "relay.lock").unlink()
        refused: list[bool] = []

        def apply(records: Sequence[Record]) -> None:
            with pytest.raises(EntryInDelivery):
                rig.box.discard(seq, "too late")
            refused.append(True)

        rig.target.before = apply
        rig.settle()
        assert refused == [True]


_HOLDER = """
import os, sys, time
from pathlib import Path
from outbox.store.kept_files import InDelivery
held = InDelivery(Path(sys.argv[1]))
assert held.claim(1, 1)
if os.fork() == 0:
    print("held", flush=True)
time.sleep(600)
"""


def test_killed_relay_keeps_nobody_from_discarding(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("write", {"n": 1})
        code = [sys.executable, "-c", _HOLDER, str(outbox_dir)]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "held\n"
                with pytest.raises(EntryInDelivery):
                    box.discard(1, "too early")
                holder.kill()
                holder.wait()
                # Its child lives on, as one of a host may.
                assert [entry.seq for entry in box.discard(1, "now")] == [1]
            finally:
                os.killpg(holder.pid, signal.SIGKILL)
