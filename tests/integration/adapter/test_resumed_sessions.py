"""A manager that goes on with the active session of that name does so in an outage, too: engines restart in one."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm import Session as OrmSession

from outbox.integrations.durable import ManagerOperation
from outbox.integrations.roles import Session as Role

from .small import Balance, Base, Scene, Session, SmallManager, scene


def begun(session: OrmSession, name: str, initial_balance: Any) -> int:
    made = Session(name=name)
    session.add(made)
    session.flush()
    session.add(Balance(session_id=made.id, total=initial_balance))
    return made.id


class ByName(SmallManager):
    """Its code shows that it may answer with a row that it has found."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        with self.session_factory.begin() as session:
            found = session.scalars(select(Session).where(Session.name == strategy_name)).first()
            if found is not None:
                return found.id
            return begun(session, strategy_name, initial_balance)


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


class Desk(Base):
    __tablename__ = "desks"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    mode: Mapped[str] = mapped_column(default="")


class ByText(SmallManager):
    """PostgreSQL decides whether the row is there."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        upsert = (
            "INSERT INTO desks (name, mode) VALUES (:name, '') ON CONFLICT (name) DO UPDATE SET mode = '' RETURNING id"
        )
        with self.session_factory.begin() as session:
            return int(session.execute(text(upsert), {"name": strategy_name}).scalar_one())


class ByUpsert(ByText):
    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        made = pg_insert(Desk).values(name=strategy_name, mode="")
        made = made.on_conflict_do_update(index_elements=[Desk.name], set_={"mode": ""})
        with self.session_factory.begin() as session:
            return int(session.scalars(made.returning(Desk.id)).one())


class ByTwo(ByText):
    """The name alone does not tell which row it finds."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any, mode: str = "") -> int:
        made = insert(Desk).values(name=f"{strategy_name}{mode}", mode=mode)
        made = made.on_conflict_do_update(index_elements=["name", "mode"], set_={"mode": mode})
        with self.session_factory.begin() as session:
            return int(session.scalars(made.returning(Desk.id)).one())


@pytest.mark.parametrize("manager", [ByText, ByUpsert, ByTwo])
def test_upsert_gives_the_session_that_is_there(manager: Any, postgres_url: str, outbox_dir: Path) -> None:
    """An engine that restarted in an outage was told a new id, under which PostgreSQL had nothing."""
    begins = ManagerOperation("create_trading_session", creates="desks", session=Role.BEGINS)
    with scene(postgres_url, outbox_dir, manager, (begins,)) as here:
        with here.manager.engine.begin() as connection:
            connection.execute(text("CREATE UNIQUE INDEX ON desks (name, mode)"))
        here.relay.start()
        first = here.manager.create_trading_session("ma", 1000)
        assert here.drain()
        here.relay.stop()
        if manager is ByTwo:
            assert here.manager.create_trading_session("ma", 1000, "b") != first
        else:
            assert here.manager.create_trading_session("ma", 1000) == first
        assert here.drain()
        assert (list(here.box.dead_letters()), here.box.status().alarms) == ([], {})


class TextBeside(SmallManager):
    """It begins a session of its own at each call, for a desk that may be there already."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        upsert = "INSERT INTO desks (name, mode) VALUES (:name, '') ON CONFLICT (name) DO UPDATE SET mode = ''"
        with self.session_factory.begin() as session:
            session.execute(text(upsert), {"name": strategy_name})
            return begun(session, strategy_name, initial_balance)


class UpsertBeside(SmallManager):
    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        upsert = insert(Desk).values(name=strategy_name, mode="").on_conflict_do_nothing(index_elements=["name"])
        with self.session_factory.begin() as session:
            session.execute(upsert)
            return begun(session, strategy_name, initial_balance)


@pytest.mark.parametrize("manager", [TextBeside, UpsertBeside])
def test_upsert_into_another_table_finds_no_session(manager: Any, postgres_url: str, outbox_dir: Path) -> None:
    """The caller was told the id of the session before, and PostgreSQL had the row under a new one."""
    with scene(postgres_url, outbox_dir, manager) as here:
        told = [here.manager.create_trading_session("ma", 1000) for _ in range(2)]
        assert here.drain()
        assert here.rows("SELECT id FROM trading_sessions ORDER BY id") == [(id_,) for id_ in told]
        assert here.box.status().alarms == {}


class ByOtherName(SmallManager):
    """Two of its active sessions may have one strategy."""

    def create_trading_session(self, strategy_name: str, initial_balance: Any, session_name: str = "") -> int:
        with self.session_factory.begin() as session:
            query = select(Session).where(Session.name == session_name)
            found = session.scalars(query).first()
            return found.id if found is not None else begun(session, session_name, initial_balance)


def test_session_of_another_name_is_a_new_one(postgres_url: str, outbox_dir: Path) -> None:
    """It was given the id of the first, which PostgreSQL refused: a dead letter, and both sessions waited."""
    with scene(postgres_url, outbox_dir, ByOtherName) as here:
        told = [here.manager.create_trading_session("ma", 1000, name) for name in ("a", "b")]
        assert here.drain()
        assert list(here.box.dead_letters()) == []
        assert here.rows("SELECT id, name FROM trading_sessions") == [(told[0], "a"), (told[1], "b")]


@pytest.mark.parametrize("waits", [True, False])
def test_session_that_another_writer_has_ended_is_begun_anew(waits: bool, postgres_url: str, outbox_dir: Path) -> None:
    """The new row was given the id of the old one, so that no engine could begin a session any more."""
    with scene(postgres_url, outbox_dir, ByName) as here:
        here.relay.start()
        first = here.manager.create_trading_session("ma", 1000)
        with here.manager.engine.begin() as connection:
            connection.execute(update(Session).values(name="ended"))
        if not waits:
            here.relay.stop()
        told = here.manager.create_trading_session("ma", 500)
        assert here.drain()
        [made] = [id_ for (id_,) in here.rows("SELECT id FROM trading_sessions") if id_ != first]
        assert told == (made if waits else first)
        assert list(here.box.dead_letters()) == []
        # The engine goes on with the session that it was told.
        assert bool(here.box.status().alarms) is not waits
        assert waits is False or here.manager.get_current_balance() == Decimal(500)
