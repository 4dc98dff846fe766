"""Reads that begin after their call see the program's own writes: generators, coroutines, their context managers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from outbox.integrations.durable import NotCaughtUp
from tests.unit.fakes.waiting import until

from .small import Scene, SmallManager, Trade, scene


class Late(SmallManager):
    """Gives out its rows in the ways that Python has for it."""

    def symbols(self) -> Iterator[str]:
        with self.session_factory() as session:
            yield from session.scalars(select(Trade.symbol).order_by(Trade.id))

    @contextmanager
    def trades(self) -> Iterator[int]:
        yield self._count()

    async def counted(self) -> int:
        await asyncio.sleep(0)
        return self._count()

    async def counted_in_a_thread(self) -> int:
        return await asyncio.to_thread(self._count)

    async def stream(self) -> AsyncIterator[str]:
        with self.session_factory() as session:
            for symbol in session.scalars(select(Trade.symbol).order_by(Trade.id)):
                await asyncio.sleep(0)
                yield symbol

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield self._count()

    @property
    def trade_count(self) -> int:
        return self._count()

    def _count(self) -> int:
        with self.session_factory() as session:
            return len(session.scalars(select(Trade.id)).all())

    @property
    def patient_count(self) -> int:
        try:
            return self._count()
        except Exception:  # noqa: BLE001 - that is what it is for
            return 0


def _entered(manager: Any) -> int:
    with manager.trades() as count:
        return int(count)


async def _streamed(manager: Any) -> int:
    return len([symbol async for symbol in manager.stream()])


async def _opened(manager: Any) -> int:
    async with manager.opened() as count:
        return int(count)


async def _in_a_task(manager: Any) -> int:
    return int(await asyncio.create_task(manager.counted()))


async def _together(manager: Any) -> int:
    counts = await asyncio.gather(*(manager.counted() for _ in range(5)))
    assert len(set(counts)) == 1
    return int(counts[0])


async def _in_a_thread(manager: Any) -> int:
    return int(await manager.counted_in_a_thread())


READS: dict[str, Callable[[Any], int]] = {
    "generator": lambda manager: len(list(manager.symbols())),
    "context manager": _entered,
    "asynchronous generator": lambda manager: asyncio.run(_streamed(manager)),
    "asynchronous context manager": lambda manager: asyncio.run(_opened(manager)),
    "task": lambda manager: asyncio.run(_in_a_task(manager)),
    "several coroutines": lambda manager: asyncio.run(_together(manager)),
    "thread of a coroutine": lambda manager: asyncio.run(_in_a_thread(manager)),
    "property": lambda manager: int(manager.trade_count),
    "property that swallows": lambda manager: int(manager.patient_count),
}


@pytest.fixture(params=READS)
def read(request: pytest.FixtureRequest) -> Callable[[Any], int]:
    return READS[request.param]


@pytest.fixture
def wired(postgres_url: str, tmp_path: Path) -> Iterator[Scene]:
    with scene(postgres_url, tmp_path / "outbox", Late, write_behind=True) as made:
        yield made


def test_late_read_sees_what_was_written_before_it(wired: Scene, read: Callable[[Any], int]) -> None:
    wired.relay.start()
    for number in range(1, 6):
        wired.manager.log_trade(f"trade {number}")
        assert read(wired.manager) == number


def test_late_read_before_the_delivery_is_not_caught_up(wired: Scene, read: Callable[[Any], int]) -> None:
    wired.manager.log_trade("trade")
    with pytest.raises(NotCaughtUp):
        read(wired.manager)
    assert wired.drain()
    assert read(wired.manager) == 1


def test_generator_that_is_left_closes_its_session(wired: Scene) -> None:
    wired.manager.log_trade("trade")
    assert wired.drain()
    symbols, pool = wired.manager.symbols(), wired.manager.engine.pool
    assert next(symbols) == "trade"
    # The view is renewed in the background, by the manager's own reads.
    until(lambda: pool.checkedout() == 1)
    symbols.close()
    until(lambda: pool.checkedout() == 0)


def test_exception_in_a_managers_context_manager_is_its_own(wired: Scene) -> None:
    with pytest.raises(KeyError), wired.manager.trades():
        raise KeyError
