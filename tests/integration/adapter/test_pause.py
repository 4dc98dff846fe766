"""An operator pauses the deliveries beside a wired manager."""

from __future__ import annotations

from pathlib import Path

from tests.unit.fakes.waiting import until

from .small import scene


def test_calls_of_a_manager_return_as_in_an_outage(tmp_path: Path, postgres_url: str) -> None:
    with scene(postgres_url, tmp_path / "outbox") as here, here.relay:
        here.manager.log_trade("before")
        assert here.drain()
        here.box.pauses.begin("vacuum", 3600)
        until(lambda: here.relay._last.paused)
        assert here.manager.log_trade("meanwhile") is not None
        assert here.box.status().pending == 1
        assert here.rows("SELECT symbol FROM trades") == [("before",)]
        here.box.pauses.end()
        assert here.drain()
        assert here.rows("SELECT symbol FROM trades ORDER BY id") == [("before",), ("meanwhile",)]
