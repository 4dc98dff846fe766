"""The typed manager's reads, declared by their own names: an outage answers them as the manager does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from outbox import Outbox, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer

from .declarations import TYPED_OPERATIONS
from .durable import config, drained
from .journal import spelled
from .typed_manager import TypedManager
from .typed_models import Side, State, Ticket


class ShowsIds(TypedManager):
    """Shows the tickets by their references, and takes the arguments of reads in another order."""

    def working_tickets(self, symbol: str | None = None, *, desk: int) -> list[dict[str, Any]]:  # type: ignore[override]
        with self.session_factory() as session:
            query = select(Ticket).where(Ticket.desk_id == desk, Ticket.state.in_([State.NEW, State.WORKING]))
            query = query if symbol is None else query.where(Ticket.symbol == symbol)
            rows = session.scalars(query.order_by(Ticket.placed_at))
            return [{"id": row.ref, "client_order_id": row.ref, "state": row.state, "px": row.px} for row in rows]


@pytest.fixture(scope="module")
def server(no_leftovers: None) -> Iterator[PostgresServer]:
    with PostgresServer(fsync=False) as server:
        yield server


@contextmanager
def running(server: PostgresServer, url: str, folder: Path) -> Iterator[tuple[Any, Outbox, Relay]]:
    settings = config(url, folder)
    with Outbox.open(folder, settings) as box:
        durable: Any = DurableDatabaseManager(partial(ShowsIds, url), box, TYPED_OPERATIONS, wait_s=20.0)
        with Relay(box, PostgresTarget(url, durable.outbox_operations, config=settings)) as relay:
            yield durable, box, relay
        durable.detach_outbox()
        if durable._host.built is not None:
            durable._host.built.engine.dispose()


def day(manager: Any, desk: int, number: int) -> None:
    """A position that is opened, moved and closed, another one that stays, and the orders of both."""
    for name in ("a", "b"):
        tag, price = f"{name}{number}", Decimal("100.5") + number
        manager.place_ticket(desk, tag, "ETH-USD", Side.BUY, Decimal("1.5"), price)
        position = manager.book_position(desk, "ETH-USD", Side.BUY, Decimal("1.5"), price, tag)
        with manager.adjust_cash(desk, Decimal("-0.25") - number, why="fee"):
            pass
        manager.mark_position(position, price + 1)
        if name == "a":
            manager.flatten_position(position, price + 2)
            manager.move_ticket(tag, State.DONE)


QUESTIONS: dict[str, Callable[[Any, int], Any]] = {
    "get_cash": lambda m, desk: m.get_cash(desk),
    "get_cash, by name": lambda m, desk: m.get_cash(desk=desk),
    "positions_of": lambda m, desk: m.positions_of(desk),
    "working_tickets": lambda m, desk: m.working_tickets(desk=desk),
    "working_tickets, default": lambda m, desk: m.working_tickets(None, desk=desk),
    "open_desk": lambda m, _: m.open_desk(),
}


def answers(manager: Any, desk: int) -> dict[str, Any]:
    return {name: spelled(ask(manager, desk)) for name, ask in QUESTIONS.items()}


def test_local_answers_of_other_names_are_the_managers(server: PostgresServer, tmp_path: Path) -> None:
    """By value and type, also after a restart in the middle of the outage."""
    url = server.create_database("answers")
    with running(server, url, tmp_path) as (durable, _, _):
        desk = durable.open_session("alpha", "ETH-USD", Decimal("5000.25"))
        for number in range(5):
            day(durable, desk, number)
        server.kill()
        for number in range(5, 7):
            day(durable, desk, number)
        local = answers(durable, desk)
        with pytest.raises(UnknownLocally, match="working_tickets with symbol='ETH-USD'"):
            durable.working_tickets("ETH-USD", desk=desk)
        with pytest.raises(UnknownLocally, match=str(desk + 1)):
            durable.get_cash(desk + 1)
    with running(server, url, tmp_path) as (durable, box, _):
        assert answers(durable, desk) == local
        server.start()
        status = drained(box.status)
        assert (status["pending"], status["dead_letters"], status["alarms"]) == (0, 0, {})
        own = answers(durable._host.manager(), desk)
    assert local == own
    assert (len(own["positions_of"]), len(own["working_tickets"])) == (1 + 7, 1 + 7)


def test_session_of_before_is_found_by_the_declared_read(server: PostgresServer, tmp_path: Path) -> None:
    """A session that was begun before there was an outbox is looked up by the manager's own name of the read."""
    url = server.create_database("adopted")
    plain = ShowsIds(url)
    desk = plain.open_session("alpha", "ETH-USD", Decimal("5000.25"))
    position = plain.book_position(desk, "ETH-USD", Side.BUY, Decimal(1), Decimal(100), "before")
    own = answers(plain, desk)
    plain.engine.dispose()
    with running(server, url, tmp_path) as (durable, _, _):
        server.kill()
        assert answers(durable, desk) == own
        assert own["positions_of"][1]["id"] == position
        server.start()


def test_balance_of_another_writer_sounds_the_alarm(server: PostgresServer, tmp_path: Path) -> None:
    """At its delivery a change is compared by the manager's own name of the read."""
    url = server.create_database("diverged")
    with running(server, url, tmp_path) as (durable, box, relay):
        desk = durable.open_session("alpha", "ETH-USD", Decimal("5000.25"))
        for number in range(3):
            day(durable, desk, number)
        server.kill()
        with durable.adjust_cash(desk, Decimal(1)):
            pass
        relay.stop()
        server.start()
        other = ShowsIds(url)
        other.set_cash(desk, Decimal(7), "by hand")
        with Relay(box, PostgresTarget(url, durable.outbox_operations, config=box.config)):
            status = drained(box.status)
        assert f"diverged-balance-{desk}" in status["alarms"]
        assert other.get_cash(desk) == 8
        other.engine.dispose()
