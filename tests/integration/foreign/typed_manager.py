"""The typed engine's database class: SQLAlchemy 2.0 throughout, with names and arguments of its own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypedDict

from sqlalchemy import CursorResult, create_engine, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, selectinload, sessionmaker

from .typed_models import (
    SCHEMA,
    Base,
    Cash,
    Desk,
    HistoricTrade,
    Leg,
    Limit,
    LimitChange,
    Note,
    OpenPosition,
    Side,
    State,
    Ticket,
    fills,
)

LIVES_FOR = timedelta(minutes=1)


class CashMove(TypedDict):
    old_balance: Decimal
    new_balance: Decimal
    change: Decimal


class OverdrawnError(Exception):
    """A desk's cash would fall below zero."""


class TypedManager:
    """Counts in Decimal; keeps the day's numbers in itself, since a risk limit reads them at each bar."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1), pool_pre_ping=True)
        with self.engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        Base.metadata.create_all(self.engine)
        self.session_factory = sessionmaker(self.engine, expire_on_commit=False)
        self.trades_today = 0
        self.pnl = Decimal(0)
        self._n = 0

    # Desks and their cash

    def open_session(self, name: str, symbol: str, capital: Decimal, settings: dict[str, Any] | None = None) -> int:
        """Open a desk with its capital as the first cash row."""
        with self.session_factory.begin() as session:
            desk = Desk(name=name, symbol=symbol, capital=capital, settings=settings or {})
            session.add(desk)
            session.flush()
            session.add(Cash(desk_id=desk.id, total=capital, delta=capital, why="capital", at=datetime.now(UTC)))
            return desk.id

    def close_session(self, desk: int, closing: Decimal | None = None) -> None:
        with self.session_factory.begin() as session:
            session.execute(
                update(Desk)
                .where(Desk.id == desk)
                .values(is_open=False, closing=closing, closed_at=func.now())
                .execution_options(synchronize_session=False)
            )

    def open_desk(self) -> int | None:
        """The open desk that was opened last, or None."""
        with self.session_factory() as session:
            return session.scalar(select(Desk.id).where(Desk.is_open).order_by(Desk.id.desc()))

    def get_cash(self, desk: int) -> Decimal:
        with self.session_factory() as session:
            return self._cash(session, desk)

    def _cash(self, session: Session, desk: int) -> Decimal:
        latest = select(Cash.total).where(Cash.desk_id == desk).order_by(Cash.at.desc()).limit(1)
        return session.scalar(latest) or Decimal(0)

    def set_cash(self, desk: int, total: Decimal, why: str) -> bool:
        with self.session_factory.begin() as session:
            old = self._cash(session, desk)
            session.add(Cash(desk_id=desk, total=total, delta=total - old, why=why, at=datetime.now(UTC)))
        return True

    @contextmanager
    def adjust_cash(self, desk: int, delta: Decimal, why: str = "fill") -> Iterator[CashMove]:
        """Change a desk's cash when the block ends well."""
        with self.session_factory.begin() as session:
            old = self._cash(session, desk)
            if old + delta < 0:
                raise OverdrawnError(f"desk {desk} has {old}, not {-delta}")
            session.add(Cash(desk_id=desk, total=old + delta, delta=delta, why=why, at=datetime.now(UTC)))
            session.flush()
            yield CashMove(old_balance=old, new_balance=old + delta, change=delta)

    # Positions

    def book_position(
        self,
        desk: int,
        symbol: str,
        side: Side,
        qty: Decimal,
        px: Decimal,
        tag: str,
        *,
        stop: Decimal | None = None,
        targets: Sequence[Decimal] = (),
    ) -> int:
        """Open a position with a leg for each target."""
        with self.session_factory.begin() as session:
            position = OpenPosition(desk_id=desk, symbol=symbol, side=side, qty=qty, px=px, tag=tag, stop=stop)
            position.legs = [Leg(no=number, target=target) for number, target in enumerate(targets, 1)]
            session.add(position)
            session.flush()
            return position.id

    def mark_position(self, position: int, px: Decimal, stop: Decimal | None = None) -> bool:
        with self.session_factory.begin() as session:
            row = session.get(OpenPosition, position)
            if row is None:
                return False
            row.mark = px
            if stop is not None:
                row.stop = stop
            return True

    def reduce_position(self, position: int, by: Decimal, px: Decimal) -> None:
        """Take the first leg's profit: the leg goes, the rest stays open."""
        with self.session_factory.begin() as session:
            row = session.get_one(OpenPosition, position, options=[selectinload(OpenPosition.legs)])
            row.qty -= by
            row.mark = px
            if row.legs:
                row.legs.remove(row.legs[0])

    def save_fills(self, position: int, executed: Sequence[tuple[Decimal, Decimal]]) -> None:
        """Write the fills in one statement and keep their keys in the position."""
        with self.session_factory.begin() as session:
            rows = [{"position_id": position, "px": px, "qty": qty} for px, qty in executed]
            keys = session.scalars(insert(fills).returning(fills.c.id, sort_by_parameter_order=True), rows).all()
            row = session.get_one(OpenPosition, position)
            row.fills = [*row.fills, *keys]

    def flatten_position(self, position: int, px: Decimal) -> bool:
        """Close a position; its legs go with it."""
        with self.session_factory.begin() as session:
            row = session.get(OpenPosition, position)
            if row is None or not row.is_open:
                return False
            row.is_open = False
            row.mark = px
            row.closed_at = datetime.now(UTC)
            row.legs.clear()
            return True

    def positions_of(self, desk: int) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            query = select(OpenPosition).where(OpenPosition.desk_id == desk, OpenPosition.is_open)
            return [
                {
                    "id": row.id,
                    "symbol": row.symbol,
                    "side": row.side,
                    "size": row.qty,
                    "entry_price": row.px,
                    "current_price": row.mark,
                    "stop_loss": row.stop,
                    "entry_order_id": row.tag,
                    "entry_time": row.opened_at,
                }
                for row in session.scalars(query.order_by(OpenPosition.id))
            ]

    # Orders

    def place_ticket(
        self, desk: int, ref: str, symbol: str, side: Side, qty: Decimal, px: Decimal | None, *tags: str
    ) -> uuid.UUID:
        """Write an order down before it is sent; it expires in a minute."""
        with self.session_factory.begin() as session:
            ticket = Ticket(
                ref=ref,
                desk_id=desk,
                symbol=symbol,
                side=side,
                qty=qty,
                px=px,
                tags=list(tags),
                expires_at=datetime.now(UTC) + LIVES_FOR,
            )
            session.add(ticket)
            session.flush()
            return ticket.id

    def move_ticket(self, ref: str, state: State, px: Decimal | None = None) -> bool:
        with self.session_factory.begin() as session:
            moved = session.execute(
                update(Ticket)
                .where(Ticket.ref == ref)
                .values(state=state, px=func.coalesce(px, Ticket.px), moves=Ticket.moves + 1)
                .execution_options(synchronize_session=False)
            )
            assert isinstance(moved, CursorResult)
            return moved.rowcount == 1

    def working_tickets(self, desk: int) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            query = select(Ticket).where(Ticket.desk_id == desk, Ticket.state.in_([State.NEW, State.WORKING]))
            return [
                {
                    "ref": row.ref,
                    "symbol": row.symbol,
                    "side": row.side,
                    "state": row.state,
                    "qty": row.qty,
                    "px": row.px,
                }
                for row in session.scalars(query.order_by(Ticket.placed_at))
            ]

    # Trades

    def save_trade(
        self,
        desk: int,
        qty: Decimal,
        px: Decimal,
        amount: Decimal,
        side: Side = Side.BUY,
        *,
        position: int | None = None,
        ref: str | None = None,
        tags: Sequence[str] = (),
        meta: dict[str, Any] | None = None,
    ) -> int:
        """Write a trade under the next row number, then count it."""
        self._n += 1
        with self.session_factory.begin() as session:
            now = datetime.now(UTC)
            trade = HistoricTrade(
                row_no=self._n,
                desk_id=desk,
                position_id=position,
                side=side,
                qty=qty,
                px=px,
                amount=amount,
                ref=ref,
                tags=list(tags),
                meta=meta or {},
                at_ms=int(time.time() * 1000),
                at_second=now.replace(microsecond=0),
                day=date.today(),  # noqa: DTZ011 - as engines have it
            )
            session.add(trade)
            session.flush()
            key = trade.id
        self.trades_today += 1
        self.pnl += amount
        return key

    def record_fill(self, desk: int, position: int, ref: str, qty: Decimal, px: Decimal, amount: Decimal) -> int:
        """Trade, position and order of one exit, by the methods above."""
        key = self.save_trade(desk, qty, px, amount, Side.SELL, position=position, ref=ref, tags=("exit", "fill"))
        self.flatten_position(position, px)
        self.move_ticket(ref, State.DONE, px)
        return key

    @property
    def loss_limit_reached(self) -> bool:
        """Whether the day's losses forbid new entries."""
        return self.pnl < -50

    # Limits and notes

    def put_limit(self, desk: int, name: str, value: Decimal) -> None:
        """Set a limit, and write down how often it has been set."""
        with self.session_factory.begin() as session:
            statement = upsert(Limit).values(desk_id=desk, name=name, value=value)
            statement = statement.on_conflict_do_update(
                index_elements=[Limit.desk_id, Limit.name],
                set_={"value": statement.excluded.value, "changes": Limit.changes + 1, "changed_at": func.now()},
            )
            number = session.scalar(statement.returning(Limit.changes))
            assert number is not None
            session.add(LimitChange(desk_id=desk, name=name, number=number))

    def limit(self, desk: int, name: str) -> Decimal | None:
        with self.session_factory() as session:
            return session.scalar(select(Limit.value).where(Limit.desk_id == desk, Limit.name == name))

    def add_note(self, body: str, **data: Any) -> None:
        with self.session_factory.begin() as session:
            session.add(Note(body=body, data=data))

    def trade_count(self, desk: int) -> int:
        with self.session_factory() as session:
            query = select(func.count()).select_from(HistoricTrade).where(HistoricTrade.desk_id == desk)
            return session.scalar(query) or 0
