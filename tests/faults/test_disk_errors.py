"""A write of the store fails: the caller is told, and stays told until a verified reopening; nothing is lost."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.faults.drill import Drill, Running, Steps
from tests.faults.syscalls import SHORT, Decision, Step, describe, unavailable
from tests.unit.fakes.waiting import LONG

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

_ERRORS: tuple[Decision, ...] = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EINTR,
    SHORT,
)
# The three writes of an LMDB commit.  Its last one, of the page that makes all others valid, is shorter than a page.
_DATA, _FLUSH, _META = "data", "flush", "meta page"


def part_of_commit(step: Step) -> str | None:
    """Which write of a commit a step is, or None."""
    if not step.path.endswith("data.mdb"):
        return None
    if step.call == "fdatasync":
        return _FLUSH
    if step.call in ("pwrite64", "pwritev", "writev", "write"):
        return _META if step.size < 4096 else _DATA
    return None


def test_acknowledged_entry_was_flushed_before(outbox_dir: Path, postgres_url: str) -> None:
    """Kills cannot show that: what the kernel has got survives them, and no power cut."""
    drill = Drill(outbox_dir, postgres_url).create()
    report = drill.run([("open",), ("surrender",), ("enqueue", 0, 4), ("group", 10, 3), ("drain",)])
    commits: list[str] = []
    for step in report.interceptor.steps:
        part = part_of_commit(step)
        if part == _META:
            assert step.synchronous, "the page that makes the commit valid is not flushed"
        if part is not None and not (part == _DATA and commits[-1:] == [_DATA]):
            commits.append(part)
    # One for each of five acknowledgements, one for the relay's connection, kept before PostgreSQL can show it, two for
    # the relay's two batches, and one for the address at which it has caught up.
    assert commits == [_DATA, _FLUSH, _META] * 9
    drill.finish()


_ONE_FAILS: Steps = [
    ("open",),
    ("enqueue", 0, 3),
    ("surrender",),
    ("enqueue", 10, 1),
    # The disk works again, and nobody may know.
    ("enqueue", 20, 3),
    ("group", 24, 2),
    ("close",),
    ("open",),
    ("enqueue", 30, 2),
]


@pytest.mark.parametrize(
    ("part", "error"),
    # A flush cannot be short.
    [(part, error) for part in (_DATA, _FLUSH, _META) for error in _ERRORS if (part, error) != (_FLUSH, SHORT)],
    ids=describe,
)
def test_enqueue_with_a_failing_commit_halts_and_loses_nothing(
    part: str, error: Decision, outbox_dir: Path, postgres_url: str
) -> None:
    left = [1]

    def decide(step: Step) -> Decision:
        if left[0] and part_of_commit(step) == part:
            left[0] = 0
            return error
        return None

    drill = Drill(outbox_dir, postgres_url).create()
    report = drill.run(_ONE_FAILS, decide)
    assert [decision for _, decision in report.interceptor.struck] == [error]
    failed = [(first, why) for first, _, why in report.of("in doubt")]
    if error == errno.EINTR and part != _FLUSH:
        # Nothing has failed: an interrupted write is to be repeated, and LMDB does.
        assert failed == []
    else:
        assert [first for first, _ in failed] == [10, 20, 21, 22, 24]
        # LMDB does not tell a short write from an I/O error.
        reason = os.strerror(errno.EIO if error == SHORT else int(error or 0))
        assert "the store could not enqueue" in failed[0][1]
        assert all(reason in why for _, why in failed)
        assert all("enqueueing is halted" in why for _, why in failed[1:])
        assert report.of("opened") == [(False,), (True,)]
    assert [first for first, *_ in report.of("acknowledged")][-2:] == [30, 31]
    drill.finish()


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.ENOSPC], ids=describe)
def test_disk_lost_in_the_ledger_commit_halts_and_loses_nothing(
    error: int, outbox_dir: Path, postgres_url: str
) -> None:
    drill = Drill(outbox_dir, postgres_url).create()
    drill.run([("open",), ("enqueue", 0, 9)])

    running: list[Running] = []
    started, strikes = threading.Event(), [0]

    def decide(step: Step) -> Decision:
        if not part_of_commit(step):
            return None
        strikes[0] += 1
        if strikes[0] == 3:
            assert started.wait(LONG)
            running[0].control.send("enough")
        return error

    running.append(drill.start([("open",), ("surrender",), ("drain_in_vain",), ("enqueue", 20, 2)], decide))
    started.set()
    report = running[0].join()
    # PostgreSQL has the first batch, the store cannot know it, and nobody may enqueue.
    assert len(report.interceptor.struck) > 2
    assert {*report.of("drained")} == {(False,)}
    assert len(report.of("in doubt")) == 2
    drill.finish()
