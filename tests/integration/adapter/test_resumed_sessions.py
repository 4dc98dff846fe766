"""A manager that goes on with the active session of that name does so in an outage, too: engines restart in one."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from .small import Balance, Scene, Session, SmallManager, scene


class ByName(SmallManager):
    """Its code shows that it may answer with a row that it has found."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        with self.session_factory.begin() as session:
            found = session.scalars(select(Session).where(Session.name == strategy_name)).first()
            if found is not None:
                return found.id
            made = Session(name=strategy_name)
            session.add(made)
            session.flush()
            session.add(Balance(session_id=made.id, total=initial_balance))
            return made.id


class ByHelper(ByName):
    """Its code does not."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        return self._began(strategy_name, initial_balance)

    def _began(self, *args: Any) -> int:
        return super().create_trading_session(*args)


@pytest.fixture(params=[ByName, ByHelper, SmallManager])
def here(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """A session that was begun, and that was resumed where it takes that to be learned."""
    with scene(postgres_url, outbox_dir, request.param) as made:
        made.relay.start()
        session = made.manager.create_trading_session("ma", 1000)
        if request.param is ByHelper:
            assert made.manager.create_trading_session("ma", 1000) == session
        made.manager.update_balance(900, "fee", session)
        assert made.drain()
        made.relay.stop()
        yield made


def test_session_of_the_same_name_goes_on_in_an_outage(here: Scene) -> None:
    resumes = isinstance(here.manager, ByName)
    [(first,)] = here.rows("SELECT id FROM trading_sessions")
    again = here.manager.create_trading_session("ma", 1000)
    assert (again == first) is resumes
    here.manager.update_balance(800, "fee", again)
    other = here.manager.create_trading_session("rsi", 500)
    assert other not in (first, again)
    assert here.drain()
    assert here.box.status().alarms == {}
    assert list(here.box.dead_letters()) == []
    sessions = {first, again, other}
    assert {id_ for (id_,) in here.rows("SELECT id FROM trading_sessions")} == sessions
    assert here.manager.get_current_balance(again) == Decimal(800)
    assert set(here.manager._durable.adapter.view.sessions) == sessions
