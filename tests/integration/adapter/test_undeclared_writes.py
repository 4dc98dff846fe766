"""What a method without a declaration has changed, an outage does not answer as it was before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerRead
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Balance, Scene, SmallManager, Trade, scene

OPERATIONS = (*TRADING_OPERATIONS, ManagerRead("count_trades", keep_last=True))


class Undeclared(SmallManager):
    def bonus(self, amount: int) -> None:
        with self.session_factory.begin() as session:
            session.execute(update(Balance).values(total=Balance.total + amount))

    def import_trade(self) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="imported"))

    def import_in_steps(self) -> Iterator[str]:
        yield "begun"
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="imported"))
            session.flush()
            yield "sent"
        yield "done"

    @contextmanager
    def importing(self) -> Iterator[None]:
        with self.session_factory.begin() as session:
            yield
            session.add(Trade(symbol="imported"))

    async def import_soon(self) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="imported"))
            session.flush()
            await asyncio.sleep(0)

    async def import_when_left(self) -> AsyncIterator[str]:
        try:
            yield "begun"
        finally:
            with self.session_factory.begin() as session:
                session.add(Trade(symbol="imported"))

    def survey(self) -> int:
        """Reads with a common table expression."""
        totals = select(Balance.total).cte()
        with self.session_factory.begin() as session:
            return len(session.scalars(select(totals.c.total)).all())

    def report(self) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=f"{len(session.scalars(select(Balance)).all())} balances"))


def _enter(manager: Any) -> None:
    with manager.importing():
        pass


async def _leave(manager: Any) -> None:
    steps = manager.import_when_left()
    await anext(steps)
    await steps.aclose()


IMPORTS: dict[str, Callable[[Any], object]] = {
    "generator": lambda manager: list(manager.import_in_steps()),
    "context manager": _enter,
    "coroutine": lambda manager: asyncio.run(manager.import_soon()),
    "asynchronous generator": lambda manager: asyncio.run(_leave(manager)),
}


@pytest.fixture
def paused(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Deliveries stand still, with everything known and delivered."""
    with scene(postgres_url, outbox_dir, Undeclared, OPERATIONS, wait_s=0.3) as found:
        found.relay.start()
        found.manager.create_trading_session("s", 100)
        found.manager.update_balance(110, "set")
        assert found.drain()
        assert (found.manager.get_current_balance(), found.manager.count_trades()) == (110, 0)
        found.box.pauses.begin("an outage", 300)
        until(lambda: found.relay._last.paused)
        yield found
        found.box.pauses.end()


def test_balance_that_an_undeclared_call_has_changed_is_not_guessed(paused: Scene) -> None:
    paused.manager.bonus(5)
    paused.manager.log_trade("A")
    with pytest.raises(UnknownLocally, match="bonus has changed it, which is not declared"):
        paused.manager.get_current_balance()


def test_balance_that_an_undeclared_call_changed_stays_unknown(paused: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL dies before the session is looked at once more, and after another call was learned from."""
    paused.box.pauses.end()
    until(lambda: not paused.relay._last.paused)
    monkeypatch.setattr(paused.manager._adapter.keeper, "_look_at", lambda *_, **__: False)
    paused.manager.bonus(5)
    paused.manager.log_trade("A")
    assert paused.drain()
    paused.box.pauses.begin("an outage", 300)
    until(lambda: paused.relay._last.paused)
    paused.manager.log_trade("B")
    with pytest.raises(UnknownLocally, match="bonus has changed it, which is not declared"):
        paused.manager.get_current_balance()


def test_balance_that_an_undeclared_call_has_only_read_is_answered(paused: Scene) -> None:
    paused.manager.report()
    assert paused.manager.survey() == 2
    paused.manager.log_trade("A")
    assert paused.manager.get_current_balance() == 110


def test_answer_that_an_undeclared_call_has_changed_is_not_kept(paused: Scene) -> None:
    paused.manager.bonus(5)
    paused.manager.update_balance(120, "set")
    assert paused.manager.count_trades() == 0
    paused.box.pauses.end()
    assert paused.drain()
    paused.manager.import_trade()
    paused.box.pauses.begin("an outage", 300)
    until(lambda: paused.relay._last.paused)
    paused.manager.update_balance(130, "set")
    with pytest.raises(UnknownLocally, match="not declared may have changed it"):
        paused.manager.count_trades()


def _is_unknown(made: Scene) -> None:
    made.box.pauses.begin("an outage", 300)
    until(lambda: made.relay._last.paused)
    made.manager.update_balance(130, "set")
    with pytest.raises(UnknownLocally, match="not declared may have changed it"):
        made.manager.count_trades()


@pytest.mark.parametrize("kind", IMPORTS)
def test_write_in_a_later_step_takes_a_kept_answer_back(paused: Scene, kind: str) -> None:
    paused.box.pauses.end()
    assert paused.drain()
    IMPORTS[kind](paused.manager)
    _is_unknown(paused)


def test_answer_before_the_step_that_commits_is_taken_back(paused: Scene) -> None:
    paused.box.pauses.end()
    assert paused.drain()
    steps = paused.manager.import_in_steps()
    assert [next(steps), next(steps)] == ["begun", "sent"]
    # Another session does not see the row yet.
    assert paused.manager.count_trades() == 0
    assert list(steps) == ["done"]
    _is_unknown(paused)
