"""Upgrades while calls wait: what does not fit is refused when it is wired, and no call is rejected by a deployment."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, Numeric, String, create_engine, text
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox import ConfigError, Entry, Outbox, OutboxConfig, PostgresTarget, Relay, registered
from outbox.integrations.code.signatures import signature_of
from outbox.integrations.durable import DurableDatabaseManager, ManagerOperation
from outbox.integrations.replay import upgrades
from tests.unit.fakes.waiting import LONG, until

CONFIG = OutboxConfig(backoff_base=0.05, backoff_cap=0.2, max_retries=2)


class Base(DeclarativeBase):
    __allow_unmapped__ = True


class Trade(Base):
    __tablename__ = "trades"
    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String, nullable=False)
    price: Any = Column(Numeric)
    note: Any = Column(String)


class Manager:
    """The version that was deployed first."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        Base.metadata.create_all(self.engine)

    def log_trade(self, symbol: Any, price: Any = None) -> int:
        with self.session_factory.begin() as session:
            row = Trade(symbol=getattr(symbol, "name", symbol), price=price)
            session.add(row)
            session.flush()
            trade_id: int = row.id
            return trade_id

    def log_fee(self, symbol: str) -> bool:
        self.log_trade(symbol)
        return True


class Renamed(Manager):
    def log_trade(self, symbol: Any, exit_price: Any) -> int:  # type: ignore[override]
        return super().log_trade(symbol, exit_price)


class Without(Manager):
    def log_trade(self, symbol: Any) -> int:  # type: ignore[override]
        return super().log_trade(symbol)


class WithMore(Manager):
    def log_trade(self, symbol: Any, price: Any, venue: str) -> int:  # type: ignore[override]
        return super().log_trade(symbol, price)


class WithDefault(Manager):
    def log_trade(self, symbol: Any, price: Any = None, venue: str = "X") -> int:
        return super().log_trade(symbol, price)


class TakesAll(Manager):
    def log_trade(self, symbol: Any, **others: Any) -> int:  # type: ignore[override]
        return super().log_trade(symbol, others.get("price"))


LOG_TRADE = ManagerOperation("log_trade", creates="trades")
LOG_FEE = ManagerOperation("log_fee", returns=True)


@dataclass(frozen=True, eq=False)
class Upgraded(ManagerOperation):
    """A declaration that knows former names."""

    renames: Any = None


@dataclass
class Version:
    manager: Any
    box: Outbox
    relay: Relay
    url: str

    def rows(self, sql: str) -> list[Any]:
        engine = create_engine("postgresql+psycopg2://" + self.url.partition("://")[2])
        with engine.begin() as connection:
            found = connection.execute(text(sql))
            rows = [tuple(row) for row in found] if found.returns_rows else []
        engine.dispose()
        return rows


@contextmanager
def deployed(
    cls: Any, url: str, folder: Path, *operations: ManagerOperation, running: bool = True
) -> Iterator[Version]:
    plain = cls(url)
    with Outbox.open(folder, CONFIG) as box:
        try:
            durable: Any = DurableDatabaseManager(plain, box, operations or (LOG_TRADE, LOG_FEE), write_behind=True)
            relay = Relay(box, PostgresTarget(url, durable.outbox_operations, config=CONFIG))
            if running:
                relay.start()
            yield Version(durable, box, relay, url)
            relay.stop()
            durable.detach_outbox()
        finally:
            plain.engine.dispose()


def queue(url: str, folder: Path, *calls: tuple[Any, ...]) -> None:
    """Calls of the first version that are not delivered."""
    with deployed(Manager, url, folder, running=False) as old:
        for call in calls:
            old.manager.log_trade(*call)


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (
            Renamed,
            r"log_trade: 2 calls \(from entry 1 on\), made with 'price', .* needs 'exit_price': declare renames=",
        ),
        (Without, "made with 'price', which the method does not take any more: declare renames="),
        (WithMore, "made without 'venue', which the method needs now: give it a default"),
    ],
)
def test_pending_calls_that_do_not_bind_are_refused_when_wired(
    cls: Any, why: str, postgres_url: str, outbox_dir: Path
) -> None:
    queue(postgres_url, outbox_dir, ("A", 1), ("B", 2))
    with pytest.raises(ConfigError, match=why), deployed(cls, postgres_url, outbox_dir):
        pass
    with deployed(Manager, postgres_url, outbox_dir) as again:
        assert again.relay.drain(timeout=LONG)
        assert again.rows("SELECT symbol FROM trades ORDER BY symbol") == [("A",), ("B",)]


@pytest.mark.parametrize("cls", [WithDefault, TakesAll, Manager])
def test_pending_calls_that_bind_are_delivered(cls: Any, postgres_url: str, outbox_dir: Path) -> None:
    queue(postgres_url, outbox_dir, ("A", 1))
    with deployed(cls, postgres_url, outbox_dir) as new:
        assert new.relay.drain(timeout=LONG)
        assert new.rows("SELECT symbol, price FROM trades") == [("A", Decimal(1))]


def test_a_renamed_argument_is_delivered_by_its_new_name(postgres_url: str, outbox_dir: Path) -> None:
    queue(postgres_url, outbox_dir, ("A", 1))
    operation = Upgraded("log_trade", creates="trades", renames={"price": "exit_price"})
    with deployed(Renamed, postgres_url, outbox_dir, operation, LOG_FEE) as new:
        new.manager.log_trade("B", 2)
        assert new.relay.drain(timeout=LONG)
        assert new.rows("SELECT symbol, price FROM trades ORDER BY id") == [("A", Decimal(1)), ("B", Decimal(2))]
        assert new.box.status().dead_letters == 0


def test_pending_calls_of_a_method_that_is_gone_are_refused(postgres_url: str, outbox_dir: Path) -> None:
    queue(postgres_url, outbox_dir, ("A", 1))

    class Gone:
        __init__ = Manager.__init__

        def log_fee(self, symbol: str) -> bool:
            with self.session_factory.begin() as session:  # type: ignore[attr-defined]
                session.add(Trade(symbol=symbol))
            return True

    with (
        pytest.raises(
            ConfigError,
            match=r"log_trade: 1 call \(from entry 1 on\), a method that the manager lacks now: .*"
            r"give single calls up \(atb outbox discard SEQ --reason TEXT\)",
        ),
        deployed(Gone, postgres_url, outbox_dir, LOG_FEE),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="not declared any more"),
        deployed(Manager, postgres_url, outbox_dir, LOG_FEE),
    ):
        pass


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


def test_a_member_that_is_gone_is_refused_when_wired(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(postgres_url, outbox_dir, (Side.SELL, 1), ("B", 2))
    now: Any = enum.Enum("Side", {"BUY": "buy", "OFFER": "sell"}, module=__name__)  # type: ignore[misc]
    monkeypatch.setitem(registered.enums, registered.class_name(Side), now)
    with (
        pytest.raises(ConfigError, match=r"log_trade: 1 call .*has no member 'SELL' any more"),
        deployed(Manager, postgres_url, outbox_dir),
    ):
        pass
    members = {"BUY": "buy", "OFFER": "sell", "SELL": "sell"}
    aliased: Any = enum.Enum("Side", members, module=__name__)  # type: ignore[misc]
    monkeypatch.setitem(registered.enums, registered.class_name(Side), aliased)
    with deployed(Manager, postgres_url, outbox_dir) as new:
        assert new.relay.drain(timeout=LONG)
        assert new.rows("SELECT symbol FROM trades ORDER BY id") == [("OFFER",), ("B",)]


def test_a_call_beyond_the_look_waits_instead_of_being_rejected(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(postgres_url, outbox_dir, ("A", 1))
    monkeypatch.setattr(upgrades, "_LOOKED_AT", 0)
    with deployed(Renamed, postgres_url, outbox_dir) as new:
        until(lambda: "declare renames=" in (new.box.status().relay.last_error or ""))
        assert not new.relay.drain(timeout=0.1)
        status = new.box.status()
        assert (status.pending, status.dead_letters) == (1, 0)


@pytest.mark.parametrize(
    "migration",
    ["ALTER TABLE trades ADD COLUMN venue text NOT NULL", "ALTER TABLE trades ALTER COLUMN note SET NOT NULL"],
)
def test_a_column_that_must_not_be_null_now_stops_the_operation(
    migration: str, postgres_url: str, outbox_dir: Path
) -> None:
    queue(postgres_url, outbox_dir, ("A", 1), ("B", 2))
    with deployed(Manager, postgres_url, outbox_dir, running=False) as new:
        new.rows(migration)
        new.relay.start()
        until(lambda: "must not be null" in (new.box.status().relay.last_error or ""))
        assert not new.relay.drain(timeout=0.1)
        status = new.box.status()
        assert (status.pending, status.dead_letters) == (2, 0)
        column = "venue" if "venue" in migration else "note"
        new.rows(f"ALTER TABLE trades ALTER COLUMN {column} DROP NOT NULL")
        assert new.relay.drain(timeout=LONG)
        assert new.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("B",)]


@pytest.mark.parametrize("call", [(None, 1), (None, None)])
def test_a_null_that_the_caller_gave_is_rejected_as_before(
    call: tuple[Any, ...], postgres_url: str, outbox_dir: Path
) -> None:
    queue(postgres_url, outbox_dir, call, ("B", 2))
    with deployed(Manager, postgres_url, outbox_dir) as new:
        assert new.relay.drain(timeout=LONG)
        (dead,) = new.box.dead_letters()
        assert 'null value in column "symbol"' in str(dead.error)


def test_a_null_that_the_software_forbids_is_rejected_as_before(postgres_url: str, outbox_dir: Path) -> None:
    class Careless(Manager):
        def log_fee(self, symbol: str) -> bool:
            with self.session_factory.begin() as session:
                session.add(Trade(price=1))
            return True

    with deployed(Careless, postgres_url, outbox_dir) as new:
        new.manager.log_fee("A")
        assert new.relay.drain(timeout=LONG)
        assert [entry.operation for entry in new.box.dead_letters()] == ["log_fee"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"symbol": "A", "price": 1}, None),
        ({"symbol": "A"}, None),
        ({}, "made without 'symbol'"),
        ({"symbol": "A", "cost": 1}, "made with 'cost', which the method does not take any more"),
        ({"cost": 1}, "made with 'cost', and the method needs 'symbol'"),
    ],
)
def test_a_call_binds_or_not(call: dict[str, Any], expected: str | None) -> None:
    found = upgrades.unbindable(signature_of(Manager, "log_trade"), call, {})
    assert found is None if expected is None else expected in str(found)


def test_an_entry_without_former_names_is_left_as_it_is(postgres_url: str, outbox_dir: Path) -> None:
    queue(postgres_url, outbox_dir, ("A", 1))
    with Outbox.open(outbox_dir, CONFIG) as box:
        entry: Entry = next(iter(box.pending()))
    assert upgrades.upgraded(LOG_TRADE, entry) is entry
    assert upgrades.upgraded(Upgraded("log_trade", renames={"cost": "price"}), entry) is entry
