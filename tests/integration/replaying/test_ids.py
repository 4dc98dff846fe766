"""Each form of insert gets the ids that its caller was told, or the line stops; UUIDs and schemas like sequences."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DataError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox.errors import TargetMisconfigured
from outbox.integrations.durable import ManagerOperation

from .harness import engine_url, replays

TOLD = 7001


class Base(DeclarativeBase):
    pass


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(primary_key=True)
    symbol: Mapped[str]


class Fill(Base):
    """In a schema of its own, with a table of the same name elsewhere."""

    __tablename__ = "trades"
    __table_args__ = ({"schema": "bot"},)
    id: Mapped[int] = mapped_column(primary_key=True)
    symbol: Mapped[str]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    symbol: Mapped[str]


class Manager:
    """Inserts one to three rows in every form that SQLAlchemy has."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(engine_url(url))
        self.session_factory = sessionmaker(bind=self.engine)

    def orm(self) -> Any:
        with self.session_factory.begin() as session:
            session.add(row := Trade(symbol="a"))
            session.flush()
            return row.id

    def orm_several(self) -> Any:
        with self.session_factory.begin() as session:
            session.add_all(rows := [Trade(symbol=symbol) for symbol in "abc"])
            session.flush()
            return rows[0].id

    def values(self) -> Any:
        with self.session_factory.begin() as session:
            return session.execute(insert(Trade).values(symbol="a").returning(Trade.id)).scalar_one()

    def values_of_rows(self) -> Any:
        with self.session_factory.begin() as session:
            statement = insert(Trade).values([{"symbol": symbol} for symbol in "abc"]).returning(Trade.id)
            return session.execute(statement).scalars().first()

    def parameters(self) -> Any:
        with self.session_factory.begin() as session:
            return session.execute(insert(Trade).returning(Trade.id), {"symbol": "a"}).scalar_one()

    def list_of_one(self) -> Any:
        with self.session_factory.begin() as session:
            return session.execute(insert(Trade).returning(Trade.id), [{"symbol": "a"}]).scalar_one()

    def list_of_three(self) -> Any:
        with self.session_factory.begin() as session:
            rows = [{"symbol": symbol} for symbol in "abc"]
            return (
                session.execute(insert(Trade).returning(Trade.id, sort_by_parameter_order=True), rows).scalars().first()
            )

    def list_without_returning(self) -> Any:
        with self.session_factory.begin() as session:
            session.execute(insert(Trade), [{"symbol": symbol} for symbol in "abc"])
            return session.scalar(select(func.min(Trade.id)).where(Trade.id > 5))

    def objects_returned(self) -> Any:
        with self.session_factory.begin() as session:
            return session.scalars(insert(Trade).returning(Trade), [{"symbol": "a"}]).one().id

    def on_the_connection(self) -> Any:
        with self.session_factory.begin() as session:
            table = Base.metadata.tables["trades"]
            return session.connection().execute(insert(table).returning(table.c.id), [{"symbol": "a"}]).scalar_one()

    def bulk_mappings(self) -> Any:
        with self.session_factory.begin() as session:
            session.bulk_insert_mappings(Trade, rows := [{"symbol": symbol} for symbol in "abc"], return_defaults=True)
            return rows[0]["id"]

    def bulk_objects(self) -> Any:
        with self.session_factory.begin() as session:
            session.bulk_save_objects(rows := [Trade(symbol=symbol) for symbol in "abc"], return_defaults=True)
            return rows[0].id

    def upserted(self) -> Any:
        with self.session_factory.begin() as session:
            statement = upsert(Trade).values(symbol="a").on_conflict_do_nothing().returning(Trade.id)
            return session.execute(statement).scalar_one()

    def merged(self) -> Any:
        with self.session_factory.begin() as session:
            row = session.merge(Trade(symbol="a"))
            session.flush()
            return row.id

    def tried_again(self) -> Any:
        """Its first session fails, as at a deadlock."""
        for divisor in (0, 1):
            with suppress(DataError), self.session_factory.begin() as session:
                session.add(row := Trade(symbol="a"))
                session.flush()
                session.execute(select(1 / func.abs(divisor)))
                return row.id
        return None

    def tried_again_within(self) -> Any:
        """With a savepoint for each try."""
        with self.session_factory.begin() as session:
            for divisor in (0, 1):
                with suppress(DataError), session.begin_nested():
                    session.add(row := Trade(symbol="a"))
                    session.flush()
                    session.execute(select(1 / func.abs(divisor)))
                    return row.id
        return None

    def in_schema(self) -> Any:
        with self.session_factory.begin() as session:
            session.execute(insert(Trade).values(symbol="other"))
            session.add(row := Fill(symbol="a"))
            session.flush()
            return row.id

    def with_uuid(self) -> Any:
        with self.session_factory.begin() as session:
            session.add(row := Order(symbol="a"))
            session.flush()
            return row.id

    def with_uuid_in_core(self) -> Any:
        with self.session_factory.begin() as session:
            return session.execute(insert(Order).returning(Order.id), [{"symbol": "a"}]).scalar_one()

    def selected(self) -> Any:
        with self.session_factory.begin() as session:
            session.execute(insert(Trade).from_select(["symbol"], select(text("'a'"))))
        return 1

    def textual(self) -> Any:
        with self.session_factory.begin() as session:
            return session.execute(text("INSERT INTO trades (symbol) VALUES ('a') RETURNING id")).scalar_one()

    def textual_in_full(self) -> Any:
        with self.session_factory.begin() as session:
            statement = """-- by hand (with care)
                INSERT INTO public."trades" ("symbol") VALUES (concat('(a)', ')', :symbol))
                ON CONFLICT (id) DO UPDATE SET symbol = 'x, (y' RETURNING id"""
            return session.execute(text(statement), {"symbol": "'"}).scalar_one()

    def textual_rows(self) -> Any:
        with self.session_factory.begin() as session:
            statement = "INSERT INTO trades (symbol) VALUES ('a'), ('b') RETURNING id"
            return session.execute(text(statement)).scalars().first()

    def textual_list(self) -> Any:
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO trades (symbol) VALUES (:symbol)"), [{"symbol": "a"}, {"symbol": "b"}])
        return 1

    def textual_with_id(self) -> Any:
        with self.session_factory.begin() as session:
            statement = "INSERT INTO trades (id, symbol) VALUES (nextval('trades_id_seq'), 'a') RETURNING id"
            return session.execute(text(statement)).scalar_one()

    def textual_alias(self) -> Any:
        with self.session_factory.begin() as session:
            statement = """INSERT INTO trades AS t (symbol) VALUES ('a')
                ON CONFLICT (id) DO UPDATE SET symbol = t.symbol RETURNING id"""
            return session.execute(text(statement)).scalar_one()

    def textual_expression(self) -> Any:
        with self.session_factory.begin() as session:
            statement = """WITH said AS (SELECT 'INSERT INTO trades (symbol) VALUES (1)' AS it),
                made AS (INSERT INTO trades (symbol) VALUES ('a') RETURNING id)
                SELECT id FROM made, said"""
            return session.execute(text(statement)).scalar_one()

    def expression(self) -> Any:
        with self.session_factory.begin() as session:
            made = insert(Trade).values(symbol="a").returning(Trade.id).cte("made")
            return session.execute(select(made.c.id)).scalar_one()

    def second_statement(self) -> Any:
        with self.session_factory.begin() as session:
            statement = "SET LOCAL lock_timeout = 1000; INSERT INTO trades (symbol) VALUES ('a') RETURNING id"
            return session.execute(text(statement)).scalar_one()

    def selected_expression(self) -> Any:
        with self.session_factory.begin() as session:
            statement = "WITH a AS (SELECT 'a' AS b) INSERT INTO trades (symbol) SELECT b FROM a RETURNING id"
            return session.execute(text(statement)).scalar_one()

    def merged_text(self) -> Any:
        with self.session_factory.begin() as session:
            statement = """MERGE INTO trades USING (SELECT 'a' AS b) AS a ON symbol = b
                WHEN NOT MATCHED THEN INSERT (symbol) VALUES (b)"""
            session.execute(text(statement))
            return session.execute(text("SELECT max(id) FROM trades")).scalar_one()

    def of_tuples(self) -> Any:
        with self.session_factory.begin() as session:
            return session.execute(insert(Trade).values([("a",)]).returning(Trade.id)).scalar_one()


FORMS = [
    "orm", "orm_several", "values", "values_of_rows", "parameters", "list_of_one", "list_of_three",
    "list_without_returning", "objects_returned", "on_the_connection", "bulk_mappings", "bulk_objects", "upserted",
    "merged", "textual", "textual_in_full", "textual_alias", "textual_expression", "expression", "second_statement",
    "tried_again", "tried_again_within",
]  # fmt: skip


@pytest.fixture
def manager(postgres_url: str) -> Iterator[Manager]:
    made = Manager(postgres_url)
    with made.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA bot"))
    Base.metadata.create_all(made.engine)
    yield made
    made.engine.dispose()


def ids(engine: Engine, model: Any = Trade) -> list[Any]:
    with sessionmaker(engine)() as session:
        return list(session.scalars(select(model.id).order_by(model.id)))


@pytest.mark.parametrize("reserved", [True, False], ids=["reserve", "no reserve"])
@pytest.mark.parametrize("form", FORMS)
def test_an_insert_gets_the_id_that_was_told(manager: Manager, postgres_url: str, form: str, reserved: bool) -> None:
    further = count(TOLD + 1)
    take: Callable[..., Any] | None = (lambda *_: next(further)) if reserved else None
    with replays(manager, postgres_url, take_id=take) as run:
        assert run.call(ManagerOperation(form, creates="trades"), {"id": TOLD, "final": True}) == TOLD
    found = ids(manager.engine)
    assert TOLD in found
    assert len(found) in (1, 3)
    if reserved:
        assert found == list(range(TOLD, TOLD + len(found)))


STOPPING = [
    "selected", "textual_rows", "textual_list", "textual_with_id", "selected_expression", "merged_text", "of_tuples",
]  # fmt: skip


@pytest.mark.parametrize("form", STOPPING)
def test_an_insert_that_takes_no_id_stops_the_line(manager: Manager, postgres_url: str, form: str) -> None:
    with replays(manager, postgres_url) as run, pytest.raises(TargetMisconfigured, match="has not the id"):
        run.call(ManagerOperation(form, creates="trades"), {"id": TOLD})
    assert ids(manager.engine) == []


def test_a_declaration_without_schema_means_the_search_path(manager: Manager, postgres_url: str) -> None:
    with replays(manager, postgres_url) as run:
        assert run.call(ManagerOperation("in_schema", creates="trades"), {"id": TOLD}) == 1
    assert (ids(manager.engine), ids(manager.engine, Fill)) == ([TOLD], [1])


def test_the_id_is_for_the_table_of_the_named_schema(manager: Manager, postgres_url: str) -> None:
    with replays(manager, postgres_url) as run:
        assert run.call(ManagerOperation("in_schema", creates="bot.trades.id"), {"id": TOLD}) == TOLD
    assert ids(manager.engine, Fill) == [TOLD]
    assert ids(manager.engine) == [1]


@pytest.mark.parametrize("form", ["with_uuid", "with_uuid_in_core"])
def test_a_uuid_is_the_one_that_was_told(manager: Manager, postgres_url: str, form: str) -> None:
    told = uuid.uuid4()
    with replays(manager, postgres_url) as run:
        run.call(ManagerOperation(form, creates="orders.id"), {"id": told})
    assert ids(manager.engine, Order) == [told]
