"""An engine's own tests put mocks in place of the manager's database and helpers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy.exc import OperationalError

from outbox.integrations.trading_engine import wire

from .scripted import Engine, Manager, config

AT = datetime(2024, 5, 6, 7, 8, 9)  # noqa: DTZ001 - as engines have them
DOWN = OperationalError("SELECT 1", None, Exception("down"))


@pytest.fixture
def db(postgres_url: str, outbox_dir: Path) -> Iterator[Any]:
    """A wired manager in a session with a balance of 100."""
    manager = Manager(postgres_url)
    engine = Engine(manager)
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        wired: Any = engine.db_manager
        wired.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        wired.update_balance(Decimal(100), "start")
        yield wired
        assert wiring.outbox is not None
        assert wiring.outbox.status().alarms == {}
        assert wiring.outbox.status().dead_letters == 0
    manager.close()


def test_mocked_session_factory_serves_calls_until_it_is_gone(db: Any) -> None:
    session = mock.MagicMock()
    with mock.patch.object(db, "session_factory", return_value=session):
        db.log_event("info", "to the mock")
        db.update_position(7, stop_loss=Decimal(1))
        assert db.get_active_positions() == []
    session.add.assert_called_once()
    assert session.commit.call_count == 2
    assert db.update_balance(Decimal(90), "after") is True
    assert db.get_current_balance() == 90.0


def test_mocked_engine_is_closed_and_calls_stay_durable(db: Any) -> None:
    with mock.patch.object(db, "engine") as engine:
        with db.atomic_balance_update(Decimal(-1), "fee") as told:
            assert told.new_balance == Decimal(99)
        db.close()
    engine.dispose.assert_called_once()
    assert db.get_current_balance() == 99.0


def test_missing_session_factory_is_refused_as_by_the_manager(db: Any) -> None:
    with mock.patch.object(db, "session_factory", None), pytest.raises(TypeError, match="not callable"):
        db.log_trade("I", "long", 1, 2, 1, AT, AT, 1, "exit", "s")


@pytest.mark.parametrize("name", ["session_factory", "get_session"])
def test_outage_of_a_mock_is_raised_to_the_caller(db: Any, name: str) -> None:
    with mock.patch.object(db, name, side_effect=DOWN):
        with pytest.raises(OperationalError):
            db.get_current_balance()
        with pytest.raises(OperationalError):
            db.update_position(7, stop_loss=Decimal(1))
    assert db.get_current_balance() == 100.0


def test_patched_methods_are_called_by_other_methods(db: Any) -> None:
    with mock.patch.object(db, "log_event") as event:
        session = db.create_trading_session("s", "J", "1d", "paper", Decimal(5))
    event.assert_called_once()
    with mock.patch.object(db, "_update_session_metrics") as helper:
        assert db.log_trade("J", "long", 1, 2, 1, AT, AT, 1, "exit", "s")
    helper.assert_called_once_with(session)
