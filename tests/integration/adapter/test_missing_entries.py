"""What the local view knows is not answered where entries since its last checkpoint have left the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import Operation, Outbox
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerRead
from outbox.integrations.upkeep.kept_view import KeptView
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.rig import damage

from .small import Scene, SmallManager, scene

_AWAY = "postgresql://nobody@127.0.0.1:1/none"
_NOTES = Operation("note", table="notes", identity=("key",))


@contextmanager
def traded(url: str, store: Path) -> Iterator[Scene]:
    """A session with a balance of 950, checkpointed, in a program that is to be killed."""
    with scene(url, store, SmallManager, (*TRADING_OPERATIONS, _NOTES), write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.update_balance(Decimal(990), "trade")
        assert made.drain()
        made.manager.update_balance(Decimal(950), "trade")
        assert made.drain()
        keeper = made.manager._durable.adapter.keeper
        assert keeper.observe(1)
        keeper.kept.checkpoint()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeptView, "checkpoint", lambda _: None)
            yield made
            made.manager.detach_outbox()


def prune(box: Outbox) -> None:
    box.store.prune(2**62)


@contextmanager
def restarted(store: Path, operations: Any = (*TRADING_OPERATIONS, _NOTES)) -> Iterator[Any]:
    """The manager after a restart in an outage."""
    with Outbox.open(store) as box:
        manager: Any = DurableDatabaseManager(lambda: SmallManager(_AWAY), box, operations)
        yield manager
        manager.detach_outbox()


def test_balance_is_unknown_after_pruned_calls(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.manager.update_balance(Decimal(100), "trade")
        assert made.drain()
        prune(made.box)
    with restarted(tmp_path / "outbox") as manager, pytest.raises(UnknownLocally):
        manager.get_current_balance(1)


def test_balance_is_unknown_after_pruned_calls_before_others(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.manager.update_balance(Decimal(100), "trade")
        assert made.drain()
        prune(made.box)
        made.manager.log_trade("BTC")
    with restarted(tmp_path / "outbox") as manager, pytest.raises(UnknownLocally):
        manager.get_current_balance(1)


def test_balance_is_learned_again_after_pruned_calls(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.manager.update_balance(Decimal(100), "trade")
        assert made.drain()
        prune(made.box)
    with scene(postgres_url, tmp_path / "outbox", SmallManager, write_behind=True) as made:
        keeper = made.manager._durable.adapter.keeper
        with pytest.raises(UnknownLocally):
            keeper.view.balance(1)
        assert keeper.observe(1)
        assert keeper.view.balance(1) == 100


def test_balance_is_known_after_calls_that_are_not_pruned(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.manager.update_balance(Decimal(100), "trade")
        assert made.drain()
    with restarted(tmp_path / "outbox") as manager:
        assert manager.get_current_balance(1) == 100


def test_balance_is_known_after_pruned_entries_of_other_operations(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.rows("CREATE TABLE notes (key text PRIMARY KEY); SELECT 1")
    with scene(postgres_url, tmp_path / "outbox", SmallManager, (*TRADING_OPERATIONS, _NOTES)) as made:
        for number in range(3):
            made.box.enqueue("note", {"key": f"n{number}"})
        keeper = made.manager._durable.adapter.keeper
        keeper.kept.checkpoint()
        prune(made.box)
    with restarted(tmp_path / "outbox") as manager:
        assert manager.get_current_balance(1) == 950


def test_balance_is_unknown_after_a_damaged_call(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.manager.update_balance(Decimal(100), "trade")
        seq = made.box.store.last_seq()
    damage(tmp_path / "outbox", seq)
    with restarted(tmp_path / "outbox") as manager, pytest.raises(UnknownLocally):
        manager.get_current_balance(1)


def test_view_of_many_rows_is_kept(postgres_url: str, tmp_path: Path) -> None:
    rows = {number: {"symbol": f"S{number}", "price": Decimal(number), "note": "x" * 300} for number in range(9_000)}
    with traded(postgres_url, tmp_path / "outbox"):
        """It has a session."""
    with scene(postgres_url, tmp_path / "outbox", SmallManager, write_behind=True) as made:
        made.manager._durable.adapter.view.sessions[1]["tables"]["positions"] = rows
        made.manager.update_balance(Decimal(100), "trade", session_id=1)
    with restarted(tmp_path / "outbox") as manager:
        view = manager._durable.adapter.view
        assert (view.sessions[1]["tables"]["positions"], view.sessions[1]["balance"]) == (rows, 100)


def test_answer_that_is_kept_is_unknown_after_pruned_calls(postgres_url: str, tmp_path: Path) -> None:
    operations = (*TRADING_OPERATIONS, _NOTES, ManagerRead("count_trades", keep_last=True))
    with scene(postgres_url, tmp_path / "outbox", SmallManager, operations, write_behind=True) as made:
        assert made.manager.count_trades() == 0
        made.manager.log_trade("BTC")
        assert made.drain()
        prune(made.box)
    with restarted(tmp_path / "outbox", operations) as manager, pytest.raises(UnknownLocally, match="count_trades"):
        manager.count_trades()
