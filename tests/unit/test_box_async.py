"""`enqueue_async` is durable when it returns, encodes at the call, and leaves the event loop free."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError, IdempotencyConflict, InvalidEntry, Outbox
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


def cut_off(box: Outbox, how: Callable[[Any], Any], **given: Any) -> BaseException:
    """What a caller gets whose call was ended while the disk was slow; the entry is stored all the same."""
    released, writer = threading.Event(), box.store.writer
    assert writer is not None
    original = writer._commit

    def slow(*args: Any) -> None:
        assert released.wait(LONG)
        original(*args)

    async def work() -> BaseException:
        try:
            await how(box.enqueue_async("fee", {"n": 1}, **given))
        except BaseException as exc:  # noqa: BLE001 - that is what is asked for
            return exc
        raise AssertionError("it was not cut off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_commit", slow)
        try:
            return asyncio.run(work())
        finally:
            released.set()


async def cancelled(call: Any) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.01)
    task.cancel()
    await task


async def late(call: Any) -> None:
    async with asyncio.timeout(0.01):
        await call


async def not_waited_for(call: Any) -> None:
    await asyncio.wait_for(call, 0.01)


@pytest.mark.parametrize("how", [cancelled, late, not_waited_for])
def test_cancelled_call_names_the_key_to_repeat_it_with(box: Outbox, how: Any) -> None:
    """A fee without an identity was stored twice, or not at all: its fresh key was lost with the call."""
    error = cut_off(box, how)
    cause: Any = error if isinstance(error, asyncio.CancelledError) else error.__cause__
    (key,) = cause.outbox_keys
    first = box.enqueue("fee", {"n": 1}, key=key)
    assert [entry.seq for entry in box.pending()] == [first.seq]


def test_cancelled_call_with_a_key_names_that_key(box: Outbox) -> None:
    error: Any = cut_off(box, cancelled, key="fee-1")
    assert error.outbox_keys == ("fee-1",)


class Interrupted(asyncio.SelectorEventLoop):
    """An event loop that a signal handler interrupts: wherever it is hashed or called, as signals come anywhere."""

    def __init__(self, handler: Callable[[], None]) -> None:
        super().__init__()
        self.handler: Callable[[], None] | None = handler

    def __hash__(self) -> int:
        handler, caller = self.handler, sys._getframe(1)
        while caller is not None and handler is not None:
            if caller.f_code.co_name in ("wake", "_wake") and "enqueueing" in caller.f_code.co_filename:
                self.handler = None
                handler()
                break
            caller = caller.f_back  # type: ignore[assignment]
        return id(self)


def test_signal_handler_may_enqueue_while_coroutines_wake(outbox_dir: Path) -> None:
    """The writer waited for a lock that the interrupted thread held."""
    box = Outbox.open(outbox_dir)
    others: list[threading.Thread] = []

    def handler() -> None:
        others.append(threading.Thread(target=lambda: asyncio.run(box.enqueue_async("log", {"n": 2})), daemon=True))
        others[0].start()
        threading.Event().wait(0.2)
        box.enqueue("log", {"n": 3})

    def run() -> None:
        loop = Interrupted(handler)
        loop.run_until_complete(box.enqueue_async("log", {"n": 1}))
        if loop.handler is not None:  # it is hashed no more
            handler()
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG / 2)
    assert not thread.is_alive(), "the handler waits for the writer, and the writer for the loop that it interrupted"
    others[0].join(LONG / 2)
    assert sorted(entry.args["n"] for entry in box.pending()) == [1, 2, 3]
    box.close()


def test_coroutines_of_many_loops_and_stores_are_all_woken(tmp_path: Path) -> None:
    boxes = [Outbox.open(tmp_path / str(number)) for number in range(2)]
    done: list[int] = []

    async def work() -> None:
        for round_ in range(50):
            calls = [box.enqueue_async("log", {"n": round_}) for box in boxes for _ in range(3)]
            done.append(len(await asyncio.gather(*calls)))

    threads = [threading.Thread(target=lambda: asyncio.run(work()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert done == [6] * 150
    for box in boxes:
        box.close()


def test_enqueue_async_outside_of_asyncio_says_what_to_call(tmp_path: Path) -> None:
    """As in a coroutine of trio."""
    with Outbox.open(tmp_path / "outbox") as box:
        with pytest.raises(ConfigError, match=r"nothing was enqueued.*trio\.to_thread\.run_sync"):
            box.enqueue_async("log", {"n": 1}).send(None)
        assert box.status().pending == 0
