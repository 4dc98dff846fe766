"""Tables of the typed engine: a schema of their own, UUID and identity keys, times that PostgreSQL makes."""

from __future__ import annotations

import enum
import uuid
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    MetaData,
    Numeric,
    Table,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import Text

SCHEMA = "trading"
Timestamp = DateTime(timezone=True)


class Base(DeclarativeBase):
    metadata = MetaData(schema=SCHEMA)
    type_annotation_map = {  # noqa: RUF012 - as SQLAlchemy's own declaration
        Decimal: Numeric(20, 6),
        datetime: Timestamp,
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        list[int]: ARRAY(BigInteger),
    }


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class State(enum.Enum):
    NEW = "pending_submit"
    WORKING = "submitted"
    DONE = "filled"
    DEAD = "cancelled"


class Desk(Base):
    __tablename__ = "desks"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    symbol: Mapped[str]
    capital: Mapped[Decimal]
    settings: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    is_open: Mapped[bool] = mapped_column(server_default=text("true"))
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]
    closing: Mapped[Decimal | None]
    positions: Mapped[list[OpenPosition]] = relationship(back_populates="desk", cascade="all, delete-orphan")


class OpenPosition(Base):
    """Locked optimistically: each change of a row counts its version."""

    __tablename__ = "open_positions"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    desk_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.desks.id", ondelete="CASCADE"))
    symbol: Mapped[str]
    side: Mapped[Side] = mapped_column(Enum(Side, name="side", schema=SCHEMA))
    qty: Mapped[Decimal]
    px: Mapped[Decimal]
    mark: Mapped[Decimal | None]
    stop: Mapped[Decimal | None]
    tag: Mapped[str]
    is_open: Mapped[bool] = mapped_column(server_default=text("true"))
    fills: Mapped[list[int]] = mapped_column(server_default=text("'{}'"))
    version: Mapped[int] = mapped_column()
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    touched_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    closed_at: Mapped[datetime | None]
    desk: Mapped[Desk] = relationship(back_populates="positions")
    legs: Mapped[list[Leg]] = relationship(cascade="all, delete-orphan", order_by="Leg.no")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy's own declaration


class Leg(Base):
    __tablename__ = "legs"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    position_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.open_positions.id", ondelete="CASCADE"))
    no: Mapped[int]
    target: Mapped[Decimal]


class Ticket(Base):
    """An order; its key is random, its reference is the application's."""

    __tablename__ = "tickets"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    ref: Mapped[str] = mapped_column(unique=True)
    desk_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.desks.id"))
    symbol: Mapped[str]
    side: Mapped[Side] = mapped_column(Enum(Side, name="side", schema=SCHEMA))
    state: Mapped[State] = mapped_column(Enum(State, name="state", schema=SCHEMA), default=State.NEW)
    qty: Mapped[Decimal]
    px: Mapped[Decimal | None]
    tags: Mapped[list[str]] = mapped_column(default=list)
    moves: Mapped[int] = mapped_column(server_default=text("0"))
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    moved_at: Mapped[datetime | None] = mapped_column(onupdate=func.now())


class HistoricTrade(Base):
    __tablename__ = "trade_history"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    row_no: Mapped[int]
    desk_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.desks.id"))
    position_id: Mapped[int | None]
    side: Mapped[Side] = mapped_column(Enum(Side, name="side", schema=SCHEMA))
    qty: Mapped[Decimal]
    px: Mapped[Decimal]
    amount: Mapped[Decimal]
    ref: Mapped[str | None] = mapped_column(unique=True)
    tags: Mapped[list[str]] = mapped_column(default=list)
    meta: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at_ms: Mapped[int] = mapped_column(BigInteger)
    at_second: Mapped[datetime]
    day: Mapped[date]
    written_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Cash(Base):
    __tablename__ = "cash"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    desk_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.desks.id"))
    total: Mapped[Decimal]
    delta: Mapped[Decimal]
    why: Mapped[str]
    at: Mapped[datetime]


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    body: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Limit(Base):
    __tablename__ = "limits"
    __table_args__ = (UniqueConstraint("desk_id", "name"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    desk_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.desks.id"))
    name: Mapped[str]
    value: Mapped[Decimal]
    changes: Mapped[int] = mapped_column(server_default=text("1"))
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LimitChange(Base):
    __tablename__ = "limit_changes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    desk_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.desks.id"))
    name: Mapped[str]
    # How often the limit has been set, as PostgreSQL counted.
    number: Mapped[int]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


# A Core table beside the models: filled by INSERT .. RETURNING with a list of rows.
fills = Table(
    "fills",
    Base.metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("position_id", BigInteger, ForeignKey(f"{SCHEMA}.open_positions.id", ondelete="CASCADE"), nullable=False),
    Column("px", Numeric(20, 6), nullable=False),
    Column("qty", Numeric(20, 6), nullable=False),
    Column("at", Timestamp, server_default=func.now(), nullable=False),
)
