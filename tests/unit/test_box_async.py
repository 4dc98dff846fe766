"""`enqueue_async` is durable when it returns, encodes at the call, and leaves the event loop free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import IdempotencyConflict, InvalidEntry, Outbox
from tests.unit.fakes.waiting import LONG


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir) as box:
        yield box


def test_many_calls_at_once_are_all_stored(box: Outbox) -> None:
    async def work() -> list[int]:
        entries = await asyncio.gather(*(box.enqueue_async("log", {"n": n}) for n in range(200)))
        return [entry.args["n"] for entry in entries]

    assert asyncio.run(work()) == list(range(200))
    assert sorted(entry.args["n"] for entry in box.pending()) == list(range(200))


def test_awaited_calls_keep_their_order(box: Outbox) -> None:
    async def work() -> None:
        for n in range(20):
            await box.enqueue_async("log", {"n": n})

    asyncio.run(work())
    assert [entry.args["n"] for entry in box.pending()] == list(range(20))


def test_argument_that_changes_after_the_call_is_stored_as_it_was(box: Outbox) -> None:
    async def work() -> None:
        args: dict[str, Any] = {"fills": [1]}
        call = asyncio.ensure_future(box.enqueue_async("log", args))
        await asyncio.sleep(0)
        args["fills"].append(2)
        await call

    asyncio.run(work())
    assert [entry.args for entry in box.pending()] == [{"fills": [1]}]


def test_event_loop_goes_on_while_the_disk_is_slow(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    released, writer = threading.Event(), box.store.writer
    assert writer is not None
    original = writer._commit

    def slow(*args: Any) -> None:
        assert released.wait(LONG)
        original(*args)

    monkeypatch.setattr(writer, "_commit", slow)

    async def work() -> None:
        call = asyncio.ensure_future(box.enqueue_async("log", {}))
        await asyncio.sleep(0.01)
        assert not call.done()
        released.set()
        await call

    asyncio.run(work())
    assert box.status().pending == 1


def test_errors_are_those_of_enqueue(box: Outbox) -> None:
    async def work() -> None:
        with pytest.raises(InvalidEntry):
            await box.enqueue_async("log", {"x": float("nan")})
        await box.enqueue_async("log", {"x": 1}, key="k")
        with pytest.raises(IdempotencyConflict):
            await box.enqueue_async("log", {"x": 2}, key="k")

    asyncio.run(work())
    assert box.status().pending == 1
