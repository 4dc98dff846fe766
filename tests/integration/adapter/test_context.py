"""Balance blocks belong to the code inside them; what is stored is what was called."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import threading
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import OutboxError
from outbox.integrations.calls.block import BlockMisused
from tests.unit.fakes.waiting import LONG

from .small import Scene, SmallManager, scene

TRADES = "SELECT symbol, note FROM trades ORDER BY id"
BALANCES = "SELECT session_id, total FROM account_balances ORDER BY id"


@pytest.fixture(params=["write-through", "write-behind"])
def here(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Any:
    with scene(postgres_url, outbox_dir, write_behind=request.param == "write-behind") as made:
        made.relay.start()
        yield made


def test_call_of_another_coroutine_survives_a_failed_block(here: Scene) -> None:
    manager = here.manager
    manager.create_trading_session("s", Decimal(100))

    async def fails(inside: asyncio.Event, leave: asyncio.Event) -> None:
        with manager.atomic_balance_update(Decimal(5), "fill"):
            inside.set()
            await leave.wait()
            raise RuntimeError("the exchange refused")

    async def trades(inside: asyncio.Event, leave: asyncio.Event) -> None:
        await inside.wait()
        manager.log_trade("its own")
        leave.set()

    async def both() -> list[Any]:
        events = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(fails(*events), trades(*events), return_exceptions=True))

    failed, _ = asyncio.run(both())
    assert isinstance(failed, RuntimeError)
    assert here.drain()
    assert here.rows(TRADES) == [("its own", "null")]
    assert here.rows(BALANCES) == [(1, Decimal(100))]


def test_calls_after_overlapping_blocks_are_durable(here: Scene) -> None:
    manager = here.manager
    sessions = [manager.create_trading_session(f"s{number}", Decimal(1000)) for number in range(2)]

    async def change(session_id: int, entered: asyncio.Event, leave: asyncio.Event) -> None:
        with manager.atomic_balance_update(Decimal(session_id), "fill", session_id=session_id):
            entered.set()
            await leave.wait()

    async def both() -> None:
        one, other = asyncio.Event(), asyncio.Event()
        await asyncio.gather(change(sessions[0], one, other), change(sessions[1], other, one))

    asyncio.run(both())
    for number in range(20):
        manager.log_trade(f"t{number}")
    assert here.drain()
    assert [symbol for symbol, _ in here.rows(TRADES)] == [f"t{number}" for number in range(20)]
    assert sorted(here.rows(BALANCES)) == [
        (1, Decimal(1000)),
        (1, Decimal(1001)),
        (2, Decimal(1000)),
        (2, Decimal(1002)),
    ]


def test_overlapping_blocks_of_one_session_both_count(here: Scene) -> None:
    manager = here.manager
    manager.create_trading_session("s", Decimal(100))

    async def change(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with manager.atomic_balance_update(Decimal(1), "fill"):
            entered.set()
            await leave.wait()

    async def both() -> None:
        one, other = asyncio.Event(), asyncio.Event()
        await asyncio.gather(change(one, other), change(other, one))

    asyncio.run(both())
    assert here.drain()
    assert here.rows(BALANCES) == [(1, Decimal(100)), (1, Decimal(101)), (1, Decimal(102))]
    assert here.box.status().alarms == {}


def test_worker_thread_inside_a_block_joins_it(here: Scene) -> None:
    manager = here.manager
    manager.create_trading_session("s", Decimal(100))

    async def work() -> None:
        with manager.atomic_balance_update(Decimal(1), "fill"):
            await asyncio.to_thread(manager.log_trade, "kept")
            await asyncio.to_thread(manager.update_balance, Decimal(7), "set")

    async def fails() -> None:
        with manager.atomic_balance_update(Decimal(1), "fill"):
            await asyncio.to_thread(manager.log_trade, "lost")
            raise RuntimeError

    asyncio.run(work())
    with pytest.raises(RuntimeError):
        asyncio.run(fails())
    assert here.drain()
    assert here.rows(TRADES) == [("kept", "null")]
    assert here.rows(BALANCES)[-1] == (1, Decimal(7))


def test_transfers_in_opposite_order_do_not_hang(here: Scene) -> None:
    manager = here.manager
    sessions = [manager.create_trading_session(f"s{number}", Decimal(1000)) for number in range(2)]
    barrier = threading.Barrier(2)

    def transfer(source: int, to: int) -> None:
        with manager.atomic_balance_update(Decimal(-1), "out", session_id=source):
            barrier.wait(LONG)
            with manager.atomic_balance_update(Decimal(1), "in", session_id=to):
                pass

    threads = [threading.Thread(target=transfer, args=pair) for pair in (sessions, sessions[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    assert here.drain()
    assert [manager.get_current_balance(session_id) for session_id in sessions] == [1000, 1000]


def test_block_left_by_another_context_records_nothing(here: Scene) -> None:
    manager = here.manager
    manager.create_trading_session("s", Decimal(100))
    block = manager.atomic_balance_update(Decimal(5), "fill")
    contextvars.copy_context().run(block.__enter__)
    with pytest.raises(BlockMisused, match="left out of turn"):
        block.__exit__(None, None, None)
    manager.log_trade("later")
    assert here.drain()
    assert here.rows(BALANCES) == [(1, Decimal(100))]
    assert here.rows(TRADES) == [("later", "null")]


def test_argument_that_changes_after_the_call_is_stored_as_it_was(here: Scene) -> None:
    manager, fills = here.manager, [1]
    manager.create_trading_session("s", Decimal(100))
    with manager.atomic_balance_update(Decimal(5), "fill"):
        manager.log_trade("first", fills)
        fills.append(2)
        manager.log_trade("second", fills)
        fills.clear()
    assert here.drain()
    assert here.rows(TRADES) == [("first", "[1]"), ("second", "[1, 2]")]


def test_argument_that_the_manager_changes_is_stored_as_it_was(postgres_url: str, outbox_dir: Path) -> None:
    class Emptying(SmallManager):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            first = note.pop(0)
            return super().log_trade(symbol, first, session_id)

    given = [7, 8]
    with scene(postgres_url, outbox_dir, Emptying) as here:
        here.manager.log_trade("x", given)
        assert here.drain()
        assert here.rows(TRADES) == [("x", "7")]
    assert given == [7, 8]


def test_defaults_are_those_of_the_software_that_was_called(postgres_url: str, outbox_dir: Path) -> None:
    class Before(SmallManager):
        def log_trade(self, symbol: str, note: Any = 10, session_id: int | None = None) -> int:
            return super().log_trade(symbol, note, session_id)

    class After(SmallManager):
        def log_trade(self, symbol: str, note: Any = 2, session_id: int | None = None) -> int:
            return super().log_trade(symbol, note, session_id)

    with scene(postgres_url, outbox_dir, Before) as here:
        here.manager.log_trade("old")
        here.manager.log_trade("given", note=5)
    with scene(postgres_url, outbox_dir, After) as here:
        here.manager.log_trade("new")
        assert here.drain()
        assert here.rows(TRADES) == [("old", "10"), ("given", "5"), ("new", "2")]


@pytest.mark.parametrize("default", [("a", 1), frozenset({"a"}), time(9, 30), ((), ("b", None))])
def test_default_of_several_values_is_that_of_the_call(default: Any, postgres_url: str, outbox_dir: Path) -> None:
    class Before(SmallManager):
        def log_trade(self, symbol: str, note: Any = default, session_id: int | None = None) -> int:
            return super().log_trade(symbol, repr(note), session_id)

    class After(SmallManager):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            return super().log_trade(symbol, repr(note), session_id)

    with scene(postgres_url, outbox_dir, Before) as here:
        here.manager.log_trade("old")
    with scene(postgres_url, outbox_dir, After) as here:
        assert here.drain()
        assert here.rows(TRADES) == [("old", json.dumps(repr(default)))]


@pytest.mark.parametrize("default", [float("nan"), float("inf"), "\0", (1, float("nan"))])
def test_default_that_cannot_be_stored_refuses_no_call(default: Any, postgres_url: str, outbox_dir: Path) -> None:
    class Manager(SmallManager):
        def log_trade(self, symbol: str, note: Any = default, session_id: int | None = None) -> int:
            return super().log_trade(symbol, repr(note), session_id)

    with scene(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("x")
        assert here.drain()
        assert here.rows(TRADES) == [("x", json.dumps(repr(default)))]


def test_default_that_an_upgrade_removed_is_left_out(postgres_url: str, outbox_dir: Path) -> None:
    class After(SmallManager):
        def log_trade(self, symbol: str) -> int:  # type: ignore[override]
            return super().log_trade(symbol, "as now")

    with scene(postgres_url, outbox_dir) as here:
        here.manager.log_trade("old")
    with scene(postgres_url, outbox_dir, After) as here:
        assert here.drain()
        assert here.rows(TRADES) == [("old", '"as now"')]


def test_block_left_by_an_exit_names_its_calls(here: Scene, caplog: pytest.LogCaptureFixture) -> None:
    manager = here.manager
    manager.create_trading_session("s", Decimal(100))
    with pytest.raises(SystemExit), manager.atomic_balance_update(Decimal(5), "fill"):
        manager.log_trade("told")
        raise SystemExit
    assert here.drain()
    assert here.rows(TRADES) == []
    critical = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(critical) == 1
    assert "SystemExit" in critical[0]
    assert "log_trade (1)" in critical[0]


def test_copy_cannot_have_a_session_of_its_own(here: Scene) -> None:
    """Its calls would go to the account of the original's session, or the original's to that of the copy."""
    manager = here.manager
    sessions = [manager.create_trading_session(f"s{number}", Decimal(1000)) for number in range(2)]
    other = copy.copy(manager)
    with pytest.raises(OutboxError, match="current session of its own"):
        other._current_session_id = sessions[0]
    other.update_balance(Decimal(7), "set", session_id=sessions[0])
    manager.update_balance(Decimal(8), "set")
    assert here.drain()
    assert here.rows(BALANCES)[2:] == [(sessions[0], Decimal(7)), (sessions[1], Decimal(8))]
