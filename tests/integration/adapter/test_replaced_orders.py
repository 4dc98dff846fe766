"""A call that replaces an order, declared as one that opens an order and names the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Order as Role
from tests.unit.fakes.waiting import until

from .small import Base, SmallManager, scene


class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    client_order_id: Mapped[str]
    status: Mapped[str]
    quantity: Mapped[int]
    replaces_id: Mapped[int | None]


class Replacing(SmallManager):
    def place(self, client_order_id: str, quantity: int) -> int:
        with self.session_factory.begin() as session:
            return self._open(session, client_order_id, quantity, None)

    def replace(self, order_id: int, new_client_order_id: str, quantity: int) -> int:
        with self.session_factory.begin() as session:
            session.get_one(Ticket, order_id).status = "replaced"
            return self._open(session, new_client_order_id, quantity, order_id)

    def _open(self, session: Any, client_order_id: str, quantity: int, replaces_id: int | None) -> int:
        ticket = Ticket(client_order_id=client_order_id, status="open", quantity=quantity, replaces_id=replaces_id)
        session.add(ticket)
        session.flush()
        return ticket.id

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            found = session.scalars(select(Ticket).where(Ticket.status == "open").order_by(Ticket.id))
            return [
                {name: getattr(one, name) for name in ("id", "client_order_id", "status", "quantity", "replaces_id")}
                for one in found
            ]


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("place", creates="tickets", order=Role.OPENS),
    ManagerOperation("replace", creates="tickets", order=Role.OPENS),
)


def test_replaced_order_goes_and_the_new_one_is_answered(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Replacing, OPERATIONS) as here:
        here.relay.start()
        manager = here.manager
        manager.create_trading_session("ma", 100)
        for number in range(3):
            first = manager.place(f"A{number}", 10 + number)
            manager.replace(first, f"B{number}", 5 + number)
        kept = manager.place("C", 4)
        assert here.drain()
        manager.get_unresolved_orders()
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        second = manager.replace(kept, "D", 3)
        manager.replace(second, "E", 2)
        told = manager.get_unresolved_orders()
        assert told[-1] == {
            "id": second + 1, "client_order_id": "E", "status": "open", "quantity": 2, "replaces_id": second,
        }  # fmt: skip
        here.box.pauses.end()
        assert here.drain()
        assert told == manager.get_unresolved_orders()


class Fillable(Base):
    __tablename__ = "fillable"
    id: Mapped[int] = mapped_column(primary_key=True)
    client_order_id: Mapped[str]
    status: Mapped[str]
    quantity: Mapped[int]
    filled: Mapped[int]


class ReplacingTheRest(SmallManager):
    def place(self, client_order_id: str, quantity: int, filled: int) -> int:
        with self.session_factory.begin() as session:
            return self._open(session, client_order_id, quantity, filled)

    def replace(self, order_id: int, new_client_order_id: str) -> int:
        with self.session_factory.begin() as session:
            old = session.get_one(Fillable, order_id)
            old.status = "replaced"
            return self._open(session, new_client_order_id, old.quantity - old.filled, 0)

    def _open(self, session: Any, client_order_id: str, quantity: int, filled: int) -> int:
        row = Fillable(client_order_id=client_order_id, status="open", quantity=quantity, filled=filled)
        session.add(row)
        session.flush()
        return row.id

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            found = session.scalars(select(Fillable).where(Fillable.status == "open").order_by(Fillable.id))
            return [{"id": one.id, "quantity": one.quantity, "filled": one.filled} for one in found]


def test_order_that_replaces_the_rest_is_answered(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, ReplacingTheRest, OPERATIONS, write_behind=True, wait_s=0.02) as here:
        manager = here.manager
        manager.create_trading_session("ma", 100)
        for number, filled in enumerate((1, 3, 6)):
            first = manager.place(f"A{number}", 10 + 2 * number, filled)
            assert here.drain()
            manager.replace(first, f"B{number}")
            assert here.drain()
        kept = manager.place("C", 9, 2)
        assert here.drain()
        second = manager.replace(kept, "D")
        told = manager.get_unresolved_orders()
        assert told[-1] == {"id": second, "quantity": 7, "filled": 0}
        assert here.drain()
        assert told == manager.get_unresolved_orders()
