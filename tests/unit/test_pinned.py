"""A reader that hangs keeps freed pages from being used again, and the status says so."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from outbox import Outbox
from outbox.monitoring import findings
from tests.unit.fakes.waiting import LONG


def test_reader_that_hangs_is_counted(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_PINNED_COMMITS", 5)
    began, done = threading.Event(), threading.Event()

    def hang() -> None:
        with box.store._read():
            began.set()
            done.wait()

    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
        assert box.status().pinned_commits == 0
        reader = threading.Thread(target=hang)
        reader.start()
        try:
            assert began.wait(LONG)
            for number in range(8):
                box.enqueue("log", {"number": number})
            found = box.status()
        finally:
            done.set()
            reader.join()
        assert found.pinned_commits == 8
        assert [said for said in found.degraded if "a reader that is 8 commits behind" in said]
        assert box.status().pinned_commits == 0
