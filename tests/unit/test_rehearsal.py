"""A rehearsed call is refused by what PostgreSQL and the manager's engine would refuse, and by nothing else."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import JSON, create_engine
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox.integrations.replay.rehearsal import Rehearsal, rehearse


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[Any] = mapped_column(JSON)


class Manager:
    session_factory: Any = None

    def note(self, data: Any) -> None:
        with self.session_factory() as session:
            session.add(Note(data=data))
            session.commit()


def rehearsed(manager: Manager) -> Rehearsal:
    return rehearse(Rehearsal(), manager, "note", {"data": {"size": Decimal(1)}}, context=False)


@pytest.mark.parametrize(("functions", "refused"), [({}, True), ({"json_serializer": str}, False)])
def test_json_is_refused_as_by_the_engine_of_the_manager(functions: dict[str, Any], refused: bool) -> None:
    manager = Manager()
    manager.session_factory = sessionmaker(create_engine("postgresql+psycopg2://", **functions))
    assert isinstance(rehearsed(manager).error, StatementError) is refused


def test_json_of_a_manager_without_engine_is_not_refused() -> None:
    """As after a start in an outage: the engine to come may have a serializer of its own."""
    found = rehearsed(Manager())
    assert (found.reached, found.error) == (True, None)
