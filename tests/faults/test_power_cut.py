"""A power cut at each system call: what was written and not flushed is lost, or only some pages of it arrived."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from tests.faults.drill import Drill, Running, Steps
from tests.faults.invariants import Observation, check
from tests.faults.syscalls import Decision, Step, unavailable
from tests.unit.fakes.waiting import LONG

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

_PAGE = 4096
_WORK: Steps = [("open",), ("surrender",), ("enqueue", 0, 3), ("group", 10, 3), ("enqueue", 20, 2, 9000)]


class Disk:
    """What of a data file has certainly reached the disk, as its process goes from call to call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.durable = b""
        self._last: Step | None = None

    def at(self, step: Step | None) -> tuple[bytes, bytes]:
        """`(what is flushed, what the kernel has)` before this call, with the one before it done."""
        written = self._path.read_bytes()
        last, self._last = self._last, step
        if last is None or (last.path.endswith("data.mdb") and last.call in ("fdatasync", "fsync")):
            self.durable = written
        elif last.path.endswith("data.mdb") and last.synchronous:
            # It flushes itself alone: the meta pages are the first two.
            assert last.size < _PAGE
            self.durable = written[: 2 * _PAGE] + self.durable[2 * _PAGE :]
        return self.durable, written


def mixed(durable: bytes, written: bytes, dice: random.Random) -> bytes:
    """Some pages have arrived, in no order."""
    pages = range(0, len(written), _PAGE)
    blank = durable.ljust(len(written), b"\0")
    return b"".join((written if dice.random() < 0.5 else blank)[at : at + _PAGE] for at in pages)


def test_a_power_cut_at_each_system_call_loses_nothing_acknowledged(outbox_dir: Path, tmp_path: Path) -> None:
    dice = random.Random(7)
    images: list[tuple[int, bytes]] = []
    drill = Drill(outbox_dir, "")
    disk: list[Disk] = []
    running: list[Running] = []
    started = threading.Event()

    def cut(step: Step | None) -> None:
        if not disk:
            disk.append(Disk(outbox_dir / "data.mdb"))
        durable, written = disk[0].at(step)
        said = running[0].said_so_far()
        images.extend((said, image) for image in {durable, written, mixed(durable, written, dice)})

    def decide(step: Step) -> Decision:
        assert started.wait(LONG)
        cut(step)
        return None

    running.append(drill.start(_WORK, decide))
    started.set()
    running[0].wait()
    cut(None)
    report = running[0].join()
    assert len(report.of("acknowledged")) == 6
    assert len(report.interceptor.steps) > 18

    lost = 0
    for number, (said, image) in enumerate(images):
        folder = tmp_path / f"image-{number}"
        folder.mkdir(mode=0o700)
        (folder / "outbox.json").write_bytes((outbox_dir / "outbox.json").read_bytes())
        (folder / "data.mdb").write_bytes(image)
        os.chmod(folder / "data.mdb", 0o600)
        after = Drill(folder, "")
        after.note(report.events[:said])
        [(stored, counters, _)] = after.run([("verify_here",), ("open",), ("contents",)]).of("contents")
        seen = Observation(history=after.history, stored=stored, effects=[], receipts=[], counters=counters)
        assert check(seen) == [], f"a power cut after {report.events[:said][-2:]}"
        lost += len(stored) < 8
    # Else there was nothing to lose.
    assert lost > 10
