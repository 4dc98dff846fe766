"""A handler whose call is not the work: its entries wait, and none counts as delivered."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (n int)")
    return postgres_url


async def later(*_: Any) -> None:
    """Never awaited."""


def one_by_one(*_: Any) -> Iterator[int]:
    """Never iterated over."""
    yield 1


async def both(*_: Any) -> Any:
    """Never iterated over."""
    yield 1


class Task:
    """As task queues answer."""

    def ready(self) -> bool:
        return False

    def successful(self) -> bool:
        return False


class Foreign:
    """As other event loops answer."""

    def add_done_callback(self, callback: Callable[..., Any]) -> None: ...


RESULTS: list[Callable[[], Any]] = [
    later,
    one_by_one,
    both,
    contextlib.contextmanager(one_by_one),
    contextlib.asynccontextmanager(both),
    concurrent.futures.Future,
    lambda: asyncio.Future(loop=asyncio.new_event_loop()),
    lambda: map(str, [1]),
    lambda: functools.partial(print, 1),
    lambda: one_by_one,
    Task,
    Foreign,
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.__name__)
def test_unfinished_result_of_a_handler_delivers_nothing(
    url: str, outbox_dir: Path, result: Callable[[], Any], request: pytest.FixtureRequest
) -> None:
    value = result()
    if isinstance(value, asyncio.Future):
        request.addfinalizer(value.get_loop().close)
    with Bench(outbox_dir, url, Operation("call", handler=lambda conn, entry: value)) as bench:
        bench.enqueue("call", {"n": 1})
        outcome = bench.apply()
        assert "whose work has not been done" in parked(outcome)
        assert (outcome.completed, outcome.rejected, bench.receipts()) == ([], [], [])


@pytest.mark.parametrize(
    "answer",
    [
        lambda result: result,
        lambda result: result.scalars(),
        lambda result: result.all(),
        lambda result: iter([1]),
        lambda result: ValueError,
        lambda result: None,
    ],
)
def test_finished_result_of_any_kind_is_accepted(url: str, outbox_dir: Path, answer: Callable[[Any], Any]) -> None:
    def handler(connection: Connection, entry: Entry) -> Any:
        return answer(connection.execute(text("INSERT INTO effects VALUES (1) RETURNING n")))

    with Bench(outbox_dir, url, Operation("call", handler=handler)) as bench:
        bench.enqueue("call", {"n": 1})
        assert completed(bench.apply()) == [1]
        assert bench.query("SELECT n FROM effects") == [(1,)]
