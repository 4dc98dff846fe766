"""An id stands for the row that the manager took, as the delivery that counts has found it."""

from __future__ import annotations

from pathlib import Path

from outbox import Outbox
from outbox.integrations.replay.row_ids import SameRow


def test_id_stands_for_the_row_after_a_restart(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        first, again = SameRow(), SameRow()
        first.keep_in(box.store)
        first.note(2, 1)
        again.keep_in(box.store)
        assert (again.of(2), again.of(3)) == (1, 3)


def test_try_that_was_rolled_back_leaves_no_other_row(outbox_dir: Path) -> None:
    """The open position is closed meanwhile, and the next try makes the row that its caller was told."""
    with Outbox.open(outbox_dir) as box:
        first, again = SameRow(), SameRow()
        first.keep_in(box.store)
        first.note(2, 1)
        first.note(2, 2)
        again.keep_in(box.store)
        assert (first.of(2), again.of(2)) == (2, 2)


def test_row_is_kept_while_the_store_is_halted(outbox_dir: Path) -> None:
    """Draining goes on then, and calls with the id are among what is drained."""
    with Outbox.open(outbox_dir) as box:
        first, again = SameRow(), SameRow()
        first.keep_in(box.store)
        box.store._latch("a test", OSError("the disk is gone"))
        first.note(2, 1)
        again.keep_in(box.store)
        assert again.of(2) == 1
