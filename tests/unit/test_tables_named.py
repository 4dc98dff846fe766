"""The tables that a method names are found along the ways in which programs name them."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import pytest
from sqlalchemy import Column, ForeignKey, Integer, String, Table, func, select, text, update
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, column_property, mapped_column, registry, relationship

from outbox.integrations.code.tables_named import tables_named

mappers = registry()


@mappers.mapped
class Desk:
    __tablename__ = "desks"
    id: Mapped[int] = mapped_column(primary_key=True)
    lots: Mapped[list[Lot]] = relationship()
    sizes = association_proxy("lots", "size")

    @hybrid_property
    def trades(self) -> Any:
        return select(func.count()).select_from(Trade)


@mappers.mapped
class Lot:
    __tablename__ = "lots"
    id: Mapped[int] = mapped_column(primary_key=True)
    desk_id: Mapped[int] = mapped_column(ForeignKey("desks.id"))
    size: Mapped[int]


@mappers.mapped
class Trade:
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(primary_key=True)


@mappers.mapped
class Order:
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    lots = column_property(select(func.count(Lot.id)).scalar_subquery())
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind"}


@mappers.mapped
class StopOrder(Order):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "stop"}


class Halt:
    """Mapped beside its table."""


mappers.map_imperatively(
    Halt, Table("halts", mappers.metadata, Column("id", Integer, primary_key=True), Column("why", String))
)

T = TypeVar("T")


class Repository(Generic[T]):
    model: ClassVar[type]

    def __init__(self, session: Any) -> None:
        self.session = session

    def get(self, id_: int) -> Any:
        return self.session.get(self.model, id_)

    def count(self) -> Any:
        return self.session.scalar(select(func.count()).select_from(Trade))


class Desks(Repository[Desk]):
    model = Desk


class Halts(Repository[Halt]):
    """Names its class as the argument of its base only."""


INSERT = text("INSERT INTO lots (size) VALUES (:size)")
QUERIES = {"trade": "INSERT INTO trades (id) VALUES (:id)", "count": select(func.count()).select_from(Lot)}
RESET = update(Desk).values(id=0)


class Manager:
    SQL = text("DELETE FROM orders")

    def __init__(self) -> None:
        self.desks = Desks(None)

    def by_repository(self) -> Any:
        return Desks(None).get(1)

    def by_generic(self) -> Any:
        return Halts(None).get(1)

    def by_held_repository(self) -> Any:
        return self.desks.get(1)

    def by_other_method(self) -> Any:
        return self.desks.count()

    def by_relationship(self, desk: Any) -> Any:
        return Desk, desk.lots

    def by_proxy(self, desk: Any) -> Any:
        return Desk, desk.sizes

    def by_hybrid(self, desk: Any) -> Any:
        return Desk, desk.trades

    def by_inheritance(self) -> Any:
        return StopOrder

    def by_statement(self, session: Any) -> Any:
        return session.execute(INSERT)

    def by_own_statement(self, session: Any) -> Any:
        return session.execute(self.SQL)

    def by_statements(self, session: Any) -> Any:
        return session.execute(QUERIES["trade"])

    def by_update(self, session: Any) -> Any:
        return session.execute(RESET)


@pytest.mark.parametrize(
    ("method", "tables"),
    [
        ("by_repository", {"desks"}),
        ("by_generic", {"halts"}),
        ("by_held_repository", {"desks"}),
        ("by_other_method", {"desks", "trades"}),
        ("by_relationship", {"desks", "lots"}),
        ("by_proxy", {"desks", "lots"}),
        ("by_hybrid", {"desks", "trades"}),
        ("by_inheritance", {"orders", "lots"}),
        ("by_statement", {"lots"}),
        ("by_own_statement", {"orders"}),
        ("by_statements", {"trades", "lots"}),
        ("by_update", {"desks"}),
    ],
)
def test_tables_are_found_through_classes(method: str, tables: set[str]) -> None:
    assert tables_named(Manager, method) == tables
