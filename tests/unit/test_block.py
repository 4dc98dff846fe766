"""The current block follows contexts, not threads, and no lock of a session waits without a limit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox import SystemClock
from outbox.integrations.calls.block import Block, BlockMisused, Entering, SessionLocks, current, entered
from outbox.integrations.upkeep.kept_view import OrderLock, SessionBusy
from tests.unit.fakes.waiting import LONG

OWNER = object()
ROOT = Path(__file__).parents[2]


@contextmanager
def block(session: int = 1, owner: object = OWNER) -> Iterator[Block]:
    made = Block(owner, session)
    with entered(made):
        yield made
    made.end()


def test_coroutine_outside_a_block_is_not_in_it() -> None:
    async def inside(entered_it: asyncio.Event, leave: asyncio.Event) -> None:
        with block() as mine:
            entered_it.set()
            await leave.wait()
            assert current(OWNER) is mine

    async def outside(entered_it: asyncio.Event, leave: asyncio.Event) -> None:
        await entered_it.wait()
        assert current(OWNER) is None
        leave.set()

    async def both() -> None:
        events = asyncio.Event(), asyncio.Event()
        await asyncio.gather(inside(*events), outside(*events))

    asyncio.run(both())


def test_overlapping_blocks_of_two_coroutines_end_in_any_order() -> None:
    async def one(name: int, wait: float) -> int:
        with block(name) as mine:
            mine.add(name)
            await asyncio.sleep(wait)
        return len(mine.end())

    async def both() -> list[int]:
        return list(await asyncio.gather(one(1, 0.0), one(2, 0.01)))

    assert asyncio.run(both()) == [1, 1]
    assert current(OWNER) is None


def test_worker_thread_of_a_coroutine_shares_its_block() -> None:
    async def work() -> None:
        with block() as mine:
            assert await asyncio.to_thread(current, OWNER) is mine

    asyncio.run(work())


def test_block_of_another_owner_is_not_seen() -> None:
    other = object()
    with block(owner=other), block() as mine:
        assert current(other) is not None
        assert current(OWNER) is mine
    with block(owner=other):
        assert current(OWNER) is None


def test_call_after_the_end_is_not_taken() -> None:
    with block() as mine:
        assert mine.add("first")
    assert not mine.add("late")
    assert mine.end() == ["first"]


def test_task_that_outlives_its_block_is_in_none() -> None:
    async def late(ended: asyncio.Event) -> None:
        await ended.wait()
        assert current(OWNER) is None

    async def work() -> None:
        ended = asyncio.Event()
        with block():
            task = asyncio.create_task(late(ended))
            await asyncio.sleep(0)
        ended.set()
        await task

    asyncio.run(work())


def test_block_left_by_another_context_raises_and_harms_nobody() -> None:
    made = block()
    contextvars.copy_context().run(made.__enter__)
    with pytest.raises(BlockMisused):
        made.__exit__(None, None, None)
    assert current(OWNER) is None


def test_block_left_before_an_inner_one_raises() -> None:
    outer, inner = block(1), block(2)
    outer.__enter__()
    inside = inner.__enter__()
    with pytest.raises(BlockMisused):
        outer.__exit__(None, None, None)
    assert current(OWNER) is inside
    inner.__exit__(None, None, None)
    assert current(OWNER) is None


def test_error_inside_ends_the_block() -> None:
    with pytest.raises(RuntimeError), block() as mine:
        raise RuntimeError
    assert mine.ended
    assert current(OWNER) is None


def test_waiting_for_a_session_ends_with_the_holder_named() -> None:
    locks, begun, done = SessionLocks(SystemClock(), limit_s=0.05), threading.Event(), threading.Event()

    def hold() -> None:
        with locks.held(7, inside=None):
            begun.set()
            done.wait(LONG)

    holder = threading.Thread(target=hold, name="strategy-a")
    holder.start()
    begun.wait(LONG)
    try:
        with pytest.raises(SessionBusy, match="session 7 .* thread 'strategy-a'"), locks.held(7, inside=None):
            raise AssertionError
        with locks.held(7, inside=Block(OWNER, 8)) as nested:
            assert not nested.alone
        with locks.held(8, inside=None) as other:
            assert other.alone
    finally:
        done.set()
        holder.join()
    with locks.held(7, inside=None) as later:
        assert later.alone


def test_coroutine_does_not_wait_for_one_of_its_own_thread() -> None:
    locks = SessionLocks(SystemClock())
    with locks.held(7, inside=None) as first:
        assert first.alone
        with locks.held(7, inside=None) as second:
            assert not second.alone
    assert not first.alone
    with locks.held(7, inside=None) as third:
        assert third.alone


def test_worker_of_a_block_needs_no_lock() -> None:
    locks = SessionLocks(SystemClock())
    with locks.held(7, inside=None) as turn, block(7) as mine:
        alone: list[bool] = []

        def work() -> None:
            with locks.held(7, inside=mine) as got:
                alone.append(got.alone)

        worker = threading.Thread(target=work)
        worker.start()
        worker.join(LONG)
    assert alone == [True]
    assert turn.alone


def test_waiting_for_the_order_of_calls_ends_with_the_holder_named() -> None:
    order, begun, done = OrderLock(limit_s=0.05), threading.Event(), threading.Event()

    def record() -> None:
        with order, order:
            begun.set()
            done.wait(LONG)

    holder = threading.Thread(target=record, name="strategy-a")
    holder.start()
    begun.wait(LONG)
    with pytest.raises(SessionBusy, match="thread 'strategy-a'"), order:
        raise AssertionError
    done.set()
    holder.join()
    with order:
        pass


@pytest.mark.parametrize("around", [False, True])
def test_interrupted_order_is_left_and_mended_by_the_next(around: bool) -> None:
    """An exception of a signal handler left it locked, and every other thread waited a minute for an error."""
    mended: list[str] = []

    def mend() -> None:
        mended.append(threading.current_thread().name)
        if len(mended) == 1:
            raise KeyboardInterrupt

    order = OrderLock(mend, limit_s=LONG)

    def interrupted() -> None:
        order.interrupted = True
        with pytest.raises(KeyboardInterrupt), order:
            raise AssertionError

    if around:
        with order:
            interrupted()
    else:
        interrupted()

    def take() -> None:
        with order, order:
            mended.append("held")

    taker = threading.Thread(target=take, name="taker", daemon=True)
    taker.start()
    taker.join(LONG)
    assert mended == ["MainThread", "taker", "held"]


def test_interrupted_wait_for_a_session_leaves_it_free(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = SessionLocks(SystemClock(), limit_s=0.05)
    take = locks._take

    def interrupted(*args: object, **kwargs: object) -> None:
        take(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(locks, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt), locks.held(7, inside=None):
        raise AssertionError
    assert not locks._holders


def test_conditions_are_held_by_their_locks() -> None:
    """`Condition.__exit__` is a function of Python: an exception of a signal handler in it leaves the lock held."""
    found = []
    for file in (*ROOT.glob("outbox/**/*.py"), *ROOT.glob("integrations/**/*.py")):
        source = file.read_text()
        for name in re.findall(r"self\.(\w+) = threading\.Condition\(", source):
            found += [f"{file}: with self.{name}"] if f"with self.{name}:" in source else []
    assert not found


def test_block_that_is_never_entered_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A plain method behind a decorator, declared as a context manager, wrote nothing in silence."""

    # What other tests have left is theirs.
    gc.collect()
    caplog.clear()

    def run() -> Generator[None, None, None]:
        yield

    with Entering(run, (), {}, "charge"):
        pass
    as_decorator = Entering(run, (), {}, "charge")(lambda: 1)
    assert as_decorator() == 1
    del as_decorator
    gc.collect()
    assert not caplog.records
    Entering(run, (), {}, "charge")
    gc.collect()
    assert [(one.levelname, one.getMessage().partition(":")[0]) for one in caplog.records] == [
        ("CRITICAL", "charge was called without `with`, and nothing of the call was recorded")
    ]
