"""Id reserves: calls that find none wait for one question to PostgreSQL, not for one each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from outbox import Outbox
from outbox.integrations.ids import id_reserves
from outbox.integrations.ids.id_reserves import IdReserves
from tests.unit.fakes.waiting import LONG, until

CALLS = 5


def test_calls_without_ids_ask_a_silent_server_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    waiting, is_over = threading.Semaphore(0), threading.Event()

    @contextmanager
    def silent(_: Any) -> Iterator[Any]:
        asked.append(len(asked))
        assert is_over.wait(LONG)
        raise OperationalError("connect", None, Exception("timeout expired"))
        yield

    def engine() -> Any:
        waiting.release()

    monkeypatch.setattr(id_reserves, "fresh_connection", silent)
    with Outbox.open(tmp_path / "outbox") as box, ThreadPoolExecutor(CALLS) as threads:
        reserves = IdReserves(box, [("trades", "id")])
        calls = [threads.submit(reserves.fill_if_empty, "trades", "id", engine=engine) for _ in range(CALLS)]
        assert all(waiting.acquire(timeout=LONG) for _ in range(CALLS))
        until(lambda: asked == [0])
        # Behind `engine()` comes the lock.
        threading.Event().wait(0.1)
        is_over.set()
        assert [call.result(LONG) for call in calls] == [False] * CALLS
        assert asked == [0]
        # A later call asks anew.
        assert not reserves.fill_if_empty("trades", "id", engine=engine)
        assert asked == [0, 1]
