"""A wall clock that jumps ahead deletes nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from outbox import Outbox, OutboxConfig
from outbox.store.ledger import Settlement
from tests.unit.fakes.rig import FakeClock

CONFIG = OutboxConfig(min_free_mb=0)
WEEK = timedelta(days=7)


class Jumping(FakeClock):
    """Its wall clock can be set, its steady one cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


def settled(box: Outbox, count: int) -> None:
    with box.transaction() as tx:
        for number in range(count):
            tx.enqueue("log", {"number": number})
    box.store.settle(Settlement(completed=[(record, b"") for record in box.store.peek(0, count).records]))


def test_clock_that_jumps_ahead_prunes_nothing(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Jumping()
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        settled(box, 50)
        clock.ahead = timedelta(days=10)
        assert box.compact() == 0
        assert box.compact() == 0
        assert box.compact(timedelta(days=3)) == 0
        assert [record.message.partition(":")[0] for record in caplog.records if record.name == "outbox.steady"] == [
            "the clock jumped 864000 s ahead"
        ]
        clock.ahead = timedelta(0)
        assert box.compact() == 0
        assert box.status().ledger == 50


def test_clock_that_jumped_before_a_restart_prunes_nothing(outbox_dir: Path) -> None:
    clock = Jumping()
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        settled(box, 50)
        box.compact()
    clock.ahead = timedelta(days=10)
    clock.advance(60)
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        assert box.compact() == 0


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=400)])
def test_clock_that_was_set_back_prunes_what_has_expired(outbox_dir: Path, back: timedelta) -> None:
    clock = Jumping()
    clock.ahead = back
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        clock.ahead = timedelta(0)
        settled(box, 10)
        assert box.compact() == 0
        clock.advance(WEEK.total_seconds() + 1)
        assert box.compact() in {0, 10}  # by stamps that run ahead of the clock nothing has expired
        clock.advance(back.total_seconds())
        box.compact()
        assert box.status().ledger == 0


def test_time_that_really_passed_expires_entries(outbox_dir: Path) -> None:
    clock = Jumping()
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        settled(box, 10)
        clock.advance(WEEK.total_seconds() - 1)
        assert box.compact() == 0
        clock.advance(2)
        assert box.compact() == 10


def test_clock_that_stays_ahead_is_believed_after_a_day(outbox_dir: Path) -> None:
    """It was behind before, or the machine was suspended."""
    clock = Jumping()
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        settled(box, 10)
        clock.ahead = timedelta(days=30)
        assert box.compact() == 0
        clock.advance(timedelta(hours=25).total_seconds())
        assert box.compact() == 10


def test_another_boot_starts_anew(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Jumping()
    with Outbox.open(outbox_dir, CONFIG, clock=clock) as box:
        settled(box, 10)
        box.compact()
    (tmp_path / "boot").write_text("another\n", encoding="ascii")
    monkeypatch.setattr("outbox.store.steady._BOOT_ID", tmp_path / "boot")
    later = Jumping()
    later.ahead = timedelta(days=30)
    with Outbox.open(outbox_dir, CONFIG, clock=later) as box:
        assert box.compact() == 10
