"""While one call asks a silent PostgreSQL for ids or for a session, other calls become durable all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from outbox import OutboxConfig
from outbox.integrations.ids import id_reserves
from outbox.integrations.ids.id_reserve import IdReserveEmpty
from outbox.integrations.manager.manager_connection import fresh_connection
from outbox.integrations.upkeep.keeper import Keeper

from .small import Scene, SmallManager, scene


class Silent:
    """Stands for what asks PostgreSQL: answers when it is told to."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self.asked, self.answers = threading.Event(), threading.Event()
        self.fails = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        assert self.answers.wait(20)
        if self.fails:
            raise OperationalError("SELECT 1", None, ConnectionError("gone"))
        return self._original(*args, **kwargs)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """The connections of id reserves, of which none is made before the test allows it."""
    made = Silent(fresh_connection)
    made.answers.set()
    monkeypatch.setattr(id_reserves, "fresh_connection", made)
    yield made
    made.answers.set()


@contextmanager
def stuck(made: Scene, silent: Silent, call: Callable[[], Any]) -> Iterator[Any]:
    """Within the block a thread is in `call`, which asks PostgreSQL and gets no answer."""
    silent.asked.clear()
    silent.answers.clear()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call)
        try:
            assert silent.asked.wait(10)
            yield result
            assert not result.done()
        finally:
            silent.answers.set()


def _log_event_elsewhere(made: Scene) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(made.manager.log_event, "meanwhile").result(timeout=10)


def _use_up(made: Scene) -> None:
    reserve = made.manager._adapter._reserves
    while reserve.take_if_any("orders", "id") is not None:
        pass


def _stop_keeper(made: Scene) -> None:
    """It would ask in the background, too."""
    made.manager._adapter.keeper.stop()


@pytest.mark.parametrize("fails", [False, True])
def test_empty_reserve_stops_no_other_call(fails: bool, connection: Silent, postgres_url: str, tmp_path: Path) -> None:
    """The reserve was filled while the order of calls was held."""
    config = OutboxConfig(id_reserve=10, min_free_mb=0)
    with scene(postgres_url, tmp_path / "outbox", config=config) as made:
        _stop_keeper(made)
        _use_up(made)
        connection.fails = fails
        with stuck(made, connection, lambda: made.manager.create_order_journal_entry("o1")) as result:
            _log_event_elsewhere(made)
        if fails:
            with pytest.raises(IdReserveEmpty):
                result.result()
            return
        assert made.drain()
        assert made.rows("SELECT id FROM orders") == [(result.result(),)]


def test_many_threads_share_a_small_reserve(postgres_url: str, tmp_path: Path) -> None:
    config = OutboxConfig(id_reserve=10, min_free_mb=0)
    with scene(postgres_url, tmp_path / "outbox", config=config) as made, ThreadPoolExecutor(8) as pool:
        _stop_keeper(made)
        names = [f"o{number}" for number in range(100)]
        ids = list(pool.map(made.manager.create_order_journal_entry, names))
        assert made.drain()
        found = dict(made.rows("SELECT client_order_id, id FROM orders"))
        assert found == dict(zip(names, ids, strict=True))


def test_emptied_table_stops_no_other_call(connection: Silent, postgres_url: str, tmp_path: Path) -> None:
    """After TRUNCATE the reserves are looked at again, which was done while the order of calls was held."""

    class Emptied(SmallManager):
        def empty(self) -> None:
            with self.engine.begin() as connection:
                connection.exec_driver_sql("TRUNCATE orders RESTART IDENTITY")

    with scene(postgres_url, tmp_path / "outbox", Emptied) as made:
        _stop_keeper(made)
        made.relay.start()
        first = made.manager.create_order_journal_entry("o1")
        made.manager.empty()
        with stuck(made, connection, lambda: made.manager.create_order_journal_entry("o2")) as result:
            _log_event_elsewhere(made)
        assert result.result() == first
        assert made.drain()
        assert made.rows("SELECT id, client_order_id FROM orders") == [(first, "o2")]


def test_unknown_session_stops_no_other_call(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that the view does not know was looked up while the order of calls was held."""
    with scene(postgres_url, tmp_path / "first") as made:
        session = made.manager.create_trading_session("s", 1000)
        assert made.drain()
    with scene(postgres_url, tmp_path / "outbox", write_behind=True) as made:
        _stop_keeper(made)
        made.relay.start()
        made.manager.create_trading_session("another", 1000)
        assert made.drain()
        silent = Silent(made.manager._adapter.keeper._shown)
        monkeypatch.setattr(Keeper, "_shown", silent)

        def call() -> Any:
            return made.manager.update_balance(Decimal(5), "x", session_id=session)

        with stuck(made, silent, call) as result:
            _log_event_elsewhere(made)
        assert result.result() is True
        assert made.drain()
        assert made.manager.get_current_balance(session) == 5
