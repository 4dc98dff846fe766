"""A caller who waits hears of every refusal, whichever call of a block it was and whenever PostgreSQL refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from outbox import Entry, Hooks
from outbox.integrations.durable import CallFailed
from outbox.integrations.replay.looks import Looks
from outbox.integrations.upkeep.kept_view import KeptView
from outbox.integrations.view.local_view import LocalView
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import until

from .small import Scene, SmallManager, scene


class Refusing(SmallManager):
    """Closes no position."""

    def close_position(self, position_id: int) -> bool:
        with self.session_factory() as session:
            return session.scalar(text("SELECT false")) is None


@pytest.fixture
def wired(postgres_url: str, tmp_path: Path) -> Iterator[Scene]:
    with scene(postgres_url, tmp_path / "outbox", Refusing) as made:
        made.relay.start()
        made.manager.create_trading_session("ma", 100)
        yield made


def _settle(manager: Any, *calls: Any) -> None:
    with manager.atomic_balance_update(5, "fill"):
        manager.log_trade("A")
        for call in calls:
            call()
        manager.log_trade("B")


def _unique(wired: Scene, how: str) -> None:
    with wired.manager.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE trades ADD CONSTRAINT one_symbol UNIQUE (symbol) {how}"))


def test_block_with_a_call_answering_false_raises(wired: Scene) -> None:
    with pytest.raises(CallFailed, match="close_position of the manager answered False"):
        _settle(wired.manager, lambda: wired.manager.close_position(7))

    assert wired.manager.get_current_balance() == 100
    assert wired.rows("SELECT symbol FROM trades") == []
    assert wired.box.status().dead_letters == 0


def test_block_with_a_call_that_raises_raises_the_same(wired: Scene) -> None:
    _unique(wired, "")

    with pytest.raises(IntegrityError, match="one_symbol"):
        _settle(wired.manager, lambda: wired.manager.log_trade("A"))

    assert wired.manager.get_current_balance() == 100
    assert wired.rows("SELECT symbol FROM trades") == []


def test_call_refused_at_the_commit_raises(wired: Scene) -> None:
    _unique(wired, "DEFERRABLE INITIALLY DEFERRED")
    wired.manager.log_trade("A")

    with pytest.raises(CallFailed, match="one_symbol"):
        wired.manager.log_trade("A")

    assert wired.rows("SELECT symbol FROM trades") == [("A",)]


def test_block_refused_at_the_commit_raises(wired: Scene) -> None:
    _unique(wired, "DEFERRABLE INITIALLY DEFERRED")

    with pytest.raises(CallFailed, match="one_symbol"):
        _settle(wired.manager, lambda: wired.manager.log_trade("A"))

    assert wired.manager.get_current_balance() == 100


@pytest.mark.parametrize("in_block", [False, True])
def test_refusal_that_the_caller_gets_calls_no_operator(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture, in_block: bool
) -> None:
    dead: list[Entry] = []
    with scene(postgres_url, outbox_dir, Refusing, hooks=Hooks(on_dead_letter=dead.append)) as wired:
        wired.relay.start()
        wired.manager.create_trading_session("ma", 100)
        _unique(wired, "")
        wired.manager.log_trade("A")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "outbox"), pytest.raises((IntegrityError, CallFailed)):
            if in_block:
                _settle(wired.manager)
            else:
                wired.manager.log_trade("A")
        assert wired.box.status().dead_letters == 0
    assert dead == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "one_symbol" in caplog.text


def test_refusal_after_the_caller_has_left_calls_an_operator(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead: list[Entry] = []
    with scene(postgres_url, outbox_dir, Refusing, hooks=Hooks(on_dead_letter=dead.append), wait_s=0.2) as wired:
        wired.relay.start()
        manager = wired.manager
        manager.create_trading_session("ma", 100)
        manager.log_trade("A")
        _unique(wired, "")
        with manager.engine.connect() as other:
            other.execute(text("LOCK TABLE trades IN ACCESS EXCLUSIVE MODE"))
            # Before PostgreSQL can refuse it.
            manager.log_trade("A")
            other.rollback()
        assert wired.drain()
        until(lambda: [one.operation for one in dead] == ["log_trade"])
        assert wired.box.status().dead_letters == 1
    assert "became dead letters: 1" in caplog.text


def test_lost_call_that_is_refused_later_calls_an_operator(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller waited once, and has gone on long ago."""
    with scene(postgres_url, outbox_dir, Refusing) as wired:
        wired.relay.start()
        wired.manager.create_trading_session("ma", 100)
        wired.manager.log_trade("A")
        wired.relay.stop()
        wired.change("DELETE FROM outbox_receipts WHERE seq = 2; DELETE FROM trades")
        wired.change("ALTER TABLE trades ADD CHECK (symbol <> 'A')")
        wired.relay.reconcile(everything=True)
        assert wired.drain()
        assert wired.box.status().dead_letters > 0
    assert "became dead letters" in caplog.text


def test_call_answering_false_by_itself_answers_false(wired: Scene) -> None:
    assert wired.manager.close_position(7) is False


@pytest.mark.parametrize("is_kept", [False, True])
def test_refused_call_is_in_no_answer_of_an_outage(
    own_postgres: PostgresServer, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    with scene(own_postgres.url(), outbox_dir, Refusing) as wired:
        manager, keeper = wired.manager, wired.manager._adapter.keeper
        wired.relay.start()
        manager.create_trading_session("ma", 100)
        assert manager.update_balance(1, "x") is True
        with manager.atomic_balance_update(2, "fill"):
            manager.log_trade("A")
        until(lambda: keeper.view.is_sure(manager._adapter.sessions.current))
        # As while calls of other sessions are pending.
        monkeypatch.setattr(keeper, "_look_at", lambda *_, **__: False)
        fold, checkpoint = keeper.kept.fold, keeper.kept.checkpoint
        monkeypatch.setattr(keeper.kept, "checkpoint", lambda: None)
        if is_kept:
            monkeypatch.setattr(keeper.kept, "fold", lambda entry: (fold(entry), checkpoint()))
        with pytest.raises(CallFailed):
            _settle(manager, lambda: manager.close_position(7))
        own_postgres.kill()
        assert manager.get_current_balance() == 3
        if is_kept:
            # What a restart in the outage begins with.
            assert keeper.kept.is_due()
            checkpoint()
            after = LocalView()
            KeptView(wired.box, manager._adapter.calls, after, lambda _: None, Looks(after)).restore(None)
            assert after.balance(manager._adapter.sessions.current) == 3


def test_session_seen_after_a_refusal_is_answered(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """The keeper may look before the caller gets the refusal."""
    with scene(own_postgres.url(), outbox_dir, Refusing) as wired:
        manager, keeper = wired.manager, wired.manager._adapter.keeper
        wired.relay.start()
        manager.create_trading_session("ma", 100)
        with pytest.raises(CallFailed):
            _settle(manager, lambda: manager.close_position(7))
        until(lambda: keeper.view.is_sure(manager._adapter.sessions.current))
        refused = next(entry for entry in wired.box.ledger() if entry.operation == "atomic_balance_update")
        own_postgres.kill()
        keeper.refused(refused)
        assert manager.get_current_balance() == 100
