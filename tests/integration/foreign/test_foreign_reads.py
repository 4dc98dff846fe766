"""The typed manager's reads, declared by their own names: an outage answers them as the manager does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.orm import load_only

from outbox import Outbox, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .declarations import TYPED_OPERATIONS
from .durable import config, drained
from .journal import spelled
from .typed_manager import TypedManager
from .typed_models import OpenPosition, Side, State, Ticket


class Shows(TypedManager):
    """Takes the arguments of one read in another order."""

    def working_tickets(self, symbol: str | None = None, *, desk: int) -> list[dict[str, Any]]:  # type: ignore[override]
        with self.session_factory() as session:
            query = select(Ticket).where(Ticket.desk_id == desk, Ticket.state.in_([State.NEW, State.WORKING]))
            query = query if symbol is None else query.where(Ticket.symbol == symbol)
            return [self.ticket(row) for row in session.scalars(query.order_by(Ticket.placed_at))]

    def ticket(self, row: Ticket) -> Any:
        return {"id": row.ref, "client_order_id": row.ref, "state": row.state, "px": row.px}


class ShowsRefs(Shows):
    """Shows no ids of tickets."""

    def ticket(self, row: Ticket) -> Any:
        return {"ref": row.ref, "state": row.state, "px": row.px}


@dataclass(frozen=True, slots=True)
class Working:
    ref: str
    state: State
    px: Decimal | None


class Held(NamedTuple):
    position: int
    side: Side
    size: Decimal
    tag: str


class ShowsClasses(Shows):
    """Shows tickets as dataclasses and positions as named tuples, whose id is called as in its methods."""

    def ticket(self, row: Ticket) -> Any:
        return Working(row.ref, row.state, row.px)

    def positions_of(self, desk: int) -> list[Any]:
        return [Held(row["id"], row["side"], row["size"], row["entry_order_id"]) for row in super().positions_of(desk)]


class ShowsMapped(Shows):
    """Shows tickets as rows of SQLAlchemy, and positions as objects of the mapped class."""

    def working_tickets(self, symbol: str | None = None, *, desk: int) -> list[Any]:  # type: ignore[override]
        with self.session_factory() as session:
            query = select(Ticket.state, Ticket.ref, Ticket.px).where(Ticket.desk_id == desk)
            query = query.where(Ticket.state.in_([State.NEW, State.WORKING])).order_by(Ticket.placed_at)
            return list(session.execute(query if symbol is None else query.where(Ticket.symbol == symbol)))

    def positions_of(self, desk: int) -> list[Any]:
        columns = (OpenPosition.desk_id, OpenPosition.side, OpenPosition.qty, OpenPosition.px, OpenPosition.mark)
        with self.session_factory() as session:
            query = select(OpenPosition).where(OpenPosition.desk_id == desk, OpenPosition.is_open)
            return list(session.scalars(query.order_by(OpenPosition.id).options(load_only(*columns))))


class ShowsByKey(Shows):
    """Shows dicts by id and by a reference that its rows lack, and amounts as texts, as what comes from JSON."""

    def get_cash(self, desk: int) -> Any:
        return str(super().get_cash(desk))

    def positions_of(self, desk: int) -> Any:
        return {row["id"]: {**row, "size": str(row["size"])} for row in super().positions_of(desk)}

    def working_tickets(self, symbol: str | None = None, *, desk: int) -> Any:  # type: ignore[override]
        tickets = super().working_tickets(symbol, desk=desk)
        return {row["id"]: {"state": row["state"], "px": str(row["px"])} for row in tickets}


class ShowsTuples(Shows):
    """Shows tuples, None where there is no position, and by the text of an id what there is."""

    def positions_of(self, desk: int) -> Any:
        return {str(row["id"]): row for row in super().positions_of(desk)} or None

    def working_tickets(self, symbol: str | None = None, *, desk: int) -> Any:  # type: ignore[override]
        return tuple(super().working_tickets(symbol, desk=desk))


MANAGERS = (Shows, ShowsRefs, ShowsClasses, ShowsMapped, ShowsByKey, ShowsTuples)


@pytest.fixture(scope="module")
def server(no_leftovers: None) -> Iterator[PostgresServer]:
    with PostgresServer(fsync=False) as server:
        yield server


@contextmanager
def running(
    server: PostgresServer, url: str, folder: Path, manager: type[Shows] = Shows
) -> Iterator[tuple[Any, Outbox, Relay]]:
    settings = config(url, folder)
    with Outbox.open(folder, settings) as box:
        durable: Any = DurableDatabaseManager(partial(manager, url), box, TYPED_OPERATIONS, wait_s=LONG)
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


def in_one_block(manager: Any, desk: int) -> None:
    """An order and a position that are named before the block that made them is recorded."""
    with manager.adjust_cash(desk, Decimal("-0.25"), why="fee"):
        manager.place_ticket(desk, "c", "ETH-USD", Side.BUY, Decimal("1.5"), Decimal(100))
        position = manager.book_position(desk, "ETH-USD", Side.BUY, Decimal("1.5"), Decimal(100), "c")
        manager.flatten_position(position, Decimal(102))
        manager.move_ticket("c", State.DONE)


QUESTIONS: dict[str, Callable[[Any, int], Any]] = {
    "get_cash": lambda m, desk: m.get_cash(desk),
    "get_cash, by name": lambda m, desk: m.get_cash(desk=desk),
    "positions_of": lambda m, desk: m.positions_of(desk),
    "working_tickets": lambda m, desk: m.working_tickets(desk=desk),
    "working_tickets, default": lambda m, desk: m.working_tickets(None, desk=desk),
    "open_desk": lambda m, _: m.open_desk(),
}


def answers(manager: Any, desk: int) -> dict[str, Any]:
    return {name: spelled(apart(ask(manager, desk))) for name, ask in QUESTIONS.items()}


def apart(answer: Any) -> Any:
    """An answer with what is in its rows, beside the class of each."""
    if isinstance(answer, dict):
        return ["dict", *answer.items()]
    if not isinstance(answer, list | tuple):
        return answer
    rows = [(type(row).__qualname__, names_of(row) if type(row) is not dict else row) for row in answer]
    return [type(answer).__qualname__, *rows]


def names_of(row: Any) -> dict[str, Any]:
    if isinstance(row, OpenPosition):
        return {"detached": inspect(row).detached, **inspect(row).dict, "_sa_instance_state": None}
    names = row._fields if isinstance(row, tuple) else row.__slots__  # type: ignore[attr-defined]
    return {name: getattr(row, name) for name in names} | {"in order": list(names)}


@pytest.mark.parametrize("manager", MANAGERS, ids=lambda manager: manager.__name__)
def test_local_answers_of_other_names_are_the_managers(
    server: PostgresServer, tmp_path: Path, manager: type[Shows]
) -> None:
    """By value and type, also after a restart in the middle of the outage."""
    url = server.create_database(f"answers_{manager.__name__.lower()}")
    with running(server, url, tmp_path, manager) as (durable, _, _):
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
    with running(server, url, tmp_path, manager) as (durable, box, _):
        assert answers(durable, desk) == local
        # No call has said which session is the current one.
        for number in range(7, 9):
            day(durable, desk, number)
        in_one_block(durable, desk)
        local = answers(durable, desk)
        server.start()
        status = drained(box.status)
        assert (status["pending"], status["dead_letters"], status["alarms"]) == (0, 0, {})
        own = answers(durable._host.manager(), desk)
    assert local == own
    assert (len(own["positions_of"]), len(own["working_tickets"])) == (2 + 9, 2 + 9)


def test_session_of_before_is_found_by_the_declared_read(server: PostgresServer, tmp_path: Path) -> None:
    """A session that was begun before there was an outbox is looked up by the manager's own name of the read."""
    url = server.create_database("adopted")
    plain = Shows(url)
    desk = plain.open_session("alpha", "ETH-USD", Decimal("5000.25"))
    position = plain.book_position(desk, "ETH-USD", Side.BUY, Decimal(1), Decimal(100), "before")
    own = answers(plain, desk)
    plain.engine.dispose()
    with running(server, url, tmp_path) as (durable, _, _):
        server.kill()
        assert answers(durable, desk) == own
        assert own["positions_of"][2][2]["id"] == position
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
        other = Shows(url)
        other.set_cash(desk, Decimal(7), "by hand")
        with Relay(box, PostgresTarget(url, durable.outbox_operations, config=box.config)):
            status = drained(box.status)
        assert f"diverged-balance-{desk}" in status["alarms"]
        assert other.get_cash(desk) == 8
        other.engine.dispose()
