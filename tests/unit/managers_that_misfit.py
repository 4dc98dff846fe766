"""Managers that do not fit, each for one reason, and others that look so and fit."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg2
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import Engine, Integer, String, create_engine, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

URL = "postgresql+psycopg2://nobody@127.0.0.1:1/none"

SharedEngine = create_engine(URL)
SessionLocal = sessionmaker(bind=SharedEngine)


class Base(DeclarativeBase):
    pass


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    symbol: Mapped[str] = mapped_column(String)


class Coded(Base):
    __tablename__ = "coded"
    code: Mapped[str] = mapped_column(String, primary_key=True)


@contextmanager
def session_scope() -> Iterator[Session]:
    with SessionLocal() as session:
        yield session


class Sound:
    """Fits; the others change one thing."""

    def __init__(self, url: str = URL) -> None:
        self.engine = create_engine(url)
        self.session_factory = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        self.cache: dict[str, Any] = {}

    @contextmanager
    def get_session(self) -> Iterator[Session]:
        session = self.session_factory()
        try:
            yield session
            session.commit()
        finally:
            session.close()

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        self.cache[symbol] = position_id
        with self.get_session() as session:
            row = Trade(symbol=symbol)
            session.add(row)
            session.flush()
            return row.id

    def update_balance(self, new_balance: Any, session_id: int | None = None) -> bool:
        with self.get_session() as session:
            session.execute(text("INSERT INTO account_balances (total) VALUES (:total)"), {"total": new_balance})
        return True

    def get_trades(self) -> list[str]:
        with self.get_session() as session:
            return list(session.scalars(select(Trade.symbol)))

    def record_fill(self, symbol: str) -> int:
        return self._fill(symbol)

    def _fill(self, symbol: str) -> int:
        return self.log_trade(symbol)

    def cancel_order(self, order_id: int) -> None:
        with self.get_session() as session:
            session.execute(text("UPDATE orders SET status = 'cancelled' WHERE id = :id"), {"id": order_id})

    def put_aside(self, order_id: int) -> None:
        """Writes, and its name does not say so."""
        with self.get_session() as session:
            session.get_one(Trade, order_id).symbol = "aside"

    def set_logger(self, logger: Any) -> None:
        self.cache["logger"] = logger

    def close(self) -> None:
        self.engine.dispose()


class OtherNames:
    def __init__(self) -> None:
        self.engine = create_engine(URL)
        self.session_factory = sessionmaker(bind=self.engine)

    def save_trade(self, symbol: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))


class OtherArguments(Sound):
    def update_balance(self, session_id: int, amount: Any) -> bool:  # type: ignore[override]
        return super().update_balance(amount, session_id)


class AnyArguments(Sound):
    def update_balance(self, *args: Any, **kwargs: Any) -> bool:
        return super().update_balance(*args, **kwargs)


def hiding(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def showing(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def finishing(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return wrapper


class HiddenSignature(Sound):
    update_balance = hiding(Sound.update_balance)


class ShownSignature(Sound):
    update_balance = showing(Sound.update_balance)


class Generates(Sound):
    def log_trade(self, symbol: str) -> Iterator[int]:  # type: ignore[override]
        yield super().log_trade(symbol)


class GeneratesBelow(Sound):
    @showing
    def log_trade(self, symbol: str) -> Iterator[int]:
        yield super().log_trade(symbol)


class OpensABlock(Sound):
    @contextmanager
    def log_trade(self, symbol: str) -> Iterator[int]:  # type: ignore[override]
        yield super().log_trade(symbol)


class OpensNoBlock(Sound):
    def atomic_balance_update(self, balance_change: Any, reason: str, correlation_id: str | None = None):  # type: ignore[no-untyped-def]
        self.update_balance(balance_change)


class AnswersInsteadOfABlock(Sound):
    def atomic_balance_update(self, balance_change: Any, reason: str, correlation_id: str | None = None) -> Decimal:
        return Decimal(self.update_balance(balance_change))


class HandsOnABlock(Sound):
    def atomic_balance_update(self, balance_change: Any, reason: str, correlation_id: str | None = None) -> Any:
        return self.get_session()


class Awaited(Sound):
    async def log_trade(self, symbol: str) -> int:  # type: ignore[override]
        return super().log_trade(symbol)


class AwaitedBelow(Sound):
    @showing
    async def log_trade(self, symbol: str) -> int:
        return super().log_trade(symbol)


class AwaitedAndFinished(Sound):
    @finishing
    async def log_trade(self, symbol: str) -> int:
        return Sound.log_trade(self, symbol)


class GeneratedAsynchronously(Sound):
    async def log_trade(self, symbol: str) -> AsyncIterator[int]:  # type: ignore[override]
        yield super().log_trade(symbol)


class Static(Sound):
    @staticmethod
    def log_trade(symbol: str) -> int:  # type: ignore[override]
        return len(symbol)


class OfItsClass(Sound):
    @classmethod
    def log_trade(cls, symbol: str) -> int:  # type: ignore[override]
        return len(symbol)


class KeepsASession(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.session = self.session_factory()

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        row = Trade(symbol=symbol)
        self.session.add(row)
        self.session.commit()
        return row.id


class KeepsASessionForReading(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.session = self.session_factory()

    def get_trades(self) -> list[str]:
        return list(self.session.scalars(select(Trade.symbol)))


class KeepsASessionPerThread(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self._local = threading.local()

    def get_session(self) -> Any:
        if not hasattr(self._local, "session"):
            self._local.session = self.session_factory()
        return self._local.session


class KeepsARegistry(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.Session = scoped_session(self.session_factory)

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        self.Session.add(Trade(symbol=symbol))
        self.Session.commit()
        return 1


class Repository:
    def __init__(self, factory: Any) -> None:
        self.factory = factory

    def add(self, symbol: str) -> int:
        with self.factory.begin() as session:
            row = Trade(symbol=symbol)
            session.add(row)
            session.flush()
            return row.id


class Repositories(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.repositories = {"trades": Repository(self.session_factory)}

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        return self.repositories["trades"].add(symbol)


class SlottedRepository:
    __slots__ = ("engine",)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine


class SlottedRepositories(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.trades = SlottedRepository(self.engine)

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with self.trades.engine.begin() as connection:
            connection.execute(text("INSERT INTO trades (symbol) VALUES (:symbol)"), {"symbol": symbol})
        return 1


class ClosesOver(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        engine = self.engine
        self.open: Any = lambda: Session(engine)

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with self.open() as session:
            session.add(Trade(symbol=symbol))
        return 1


class DriverBeside(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        self._audit(symbol)
        return super().log_trade(symbol)

    def _audit(self, what: str) -> None:
        if what:
            with psycopg2.connect(URL) as connection, connection.cursor() as cursor:
                cursor.execute("INSERT INTO audit VALUES (%s)", (what,))


class DriverOnly:
    def __init__(self, url: str = URL) -> None:
        self.pool = ThreadedConnectionPool(0, 5, url)

    def log_trade(self, symbol: str) -> None:
        connection = self.pool.getconn()
        connection.cursor().execute("INSERT INTO trades (symbol) VALUES (%s)", (symbol,))
        self.pool.putconn(connection)


class DriverOnlyWithOtherNames:
    """Nothing is declared, and nothing of it could be."""

    def __init__(self, url: str = URL) -> None:
        self.pool = ThreadedConnectionPool(0, 5, url)

    def save_fill(self, symbol: str) -> None:
        self.pool.getconn().cursor().execute("INSERT INTO trades (symbol) VALUES (%s)", (symbol,))


class TakesAnything:
    """Its attributes are known by no name: the session factory may be among them."""

    def __init__(self, connection: Any = None, **attributes: Any) -> None:
        self.connection = connection
        self.__dict__.update(attributes)

    def log_trade(self, symbol: str) -> None:
        self.connection.cursor().execute("INSERT INTO trades (symbol) VALUES (%s)", (symbol,))


class EngineBeside(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        engine = self.engine
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO trades (symbol) VALUES (:symbol)"), {"symbol": symbol})
        return 1


class SessionOfTheEngine(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with Session(self.engine) as session:
            session.add(Trade(symbol=symbol))
        return 1


class FactoryOfTheModule(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with SessionLocal() as session:
            session.add(Trade(symbol=symbol))
        return 1


class ActiveRecord:
    """Its classes have the session, as freqtrade's have."""

    session = scoped_session(SessionLocal)
    query = session.query_property()


class SessionOfAClass(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        ActiveRecord.session.add(Trade(symbol=symbol))
        ActiveRecord.session.commit()
        return 1


class QueryOfAClass(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        ActiveRecord.query.filter_by(symbol=symbol).update({"symbol": symbol})
        return 1


class ScopeOfTheModule(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with session_scope() as session:
            session.add(Trade(symbol=symbol))
        return 1


class AsksTheEngine(Sound):
    """Looks at its engine, and writes through its sessions; connects only where those failed."""

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        if self.engine.dialect.name != "postgresql":
            raise ValueError(self.engine.url.database)
        try:
            return super().log_trade(symbol)
        except ValueError:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            raise


class Listens(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.seen: list[str] = []
        self.lock = threading.RLock()
        event.listen(self.engine, "before_cursor_execute", self.saw)

    def saw(self, *args: Any) -> None:
        self.seen.append(args[2])

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with self.lock:
            return super().log_trade(symbol)


class NamedSessionLocal:
    def __init__(self, url: str = URL) -> None:
        self.engine = create_engine(url)
        self.SessionLocal = sessionmaker(bind=self.engine)

    def log_trade(self, symbol: str) -> None:
        with self.SessionLocal.begin() as session:
            session.add(Trade(symbol=symbol))


class Asynchronous:
    def __init__(self, url: str = URL) -> None:
        # Needs greenlet, which is not installed everywhere.
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

        self.engine = create_async_engine(url)
        self.session_factory = async_sessionmaker(self.engine)

    async def log_trade(self, symbol: str) -> None:
        async with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))


class Lite(Sound):
    def __init__(self, url: str = "sqlite://") -> None:
        super().__init__(url)


class Buffers(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self._buffer: list[str] = []

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        self._buffer.append(symbol)
        if len(self._buffer) >= 5:
            self.flush()
        return 0

    def flush(self) -> None:
        with self.get_session() as session:
            session.add_all([Trade(symbol=symbol) for symbol in self._buffer])
        self._buffer.clear()


class ReturnsARow(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> Any:
        with self.get_session() as session:
            row = Trade(symbol=symbol)
            session.add(row)
            return row


class PassesARowOn(ReturnsARow):
    def log_trade(self, symbol: str, position_id: int | None = None) -> Any:
        return super().log_trade(symbol, position_id)


class ReturnsTheIdOfARow(ReturnsARow):
    def log_trade(self, symbol: str, position_id: int | None = None) -> Any:
        return super().log_trade(symbol, position_id).id


class AnnotatesARow(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> Trade | None:  # type: ignore[override]
        return None


class CreatesByCode(Sound):
    def log_code(self, code: str) -> str:
        with self.get_session() as session:
            session.add(Coded(code=code))
        return code


class DriverImportedInside(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        import psycopg2 as driver

        driver.connect(URL).cursor().execute("INSERT INTO trades (symbol) VALUES (%s)", (symbol,))
        return 1


class ReadOnlyFactory(Sound):
    def __init__(self, url: str = URL) -> None:
        self.engine = create_engine(url)
        self._factory = sessionmaker(bind=self.engine)

    @property
    def session_factory(self) -> Any:  # type: ignore[override]
        return self._factory


class SettableFactory(Sound):
    def __init__(self, url: str = URL) -> None:
        self.engine = create_engine(url)
        self._factory = sessionmaker(bind=self.engine)
        self.cache = {}

    @property
    def session_factory(self) -> Any:
        return self._factory

    @session_factory.setter
    def session_factory(self, factory: Any) -> None:
        self._factory = factory


class RepositoryOfAManager:
    def __init__(self, manager: Any) -> None:
        self.manager = manager

    def add(self, symbol: str) -> int:
        with self.manager.get_session() as session:
            session.add(Trade(symbol=symbol))
        return 1


class HandsItselfOver(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.trades = RepositoryOfAManager(self)

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        return self.trades.add(symbol)


class RepositoryOfAScope:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    def add(self, symbol: str) -> int:
        with self.scope() as session:
            session.add(Trade(symbol=symbol))
        return 1


class HandsItsScopeOver(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.trades = RepositoryOfAScope(self.get_session)

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        return self.trades.add(symbol)


class Tally:
    def __init__(self, manager: Any) -> None:
        self.manager, self.count = manager, 0

    def add(self, symbol: str) -> None:
        self.count += 1


class HandsItselfToACounter(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.tally = Tally(self)

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        made = super().log_trade(symbol)
        self.tally.add(symbol)
        return made


class Remembers(Sound):
    """Answers what it has seen without the database, and writes the rest."""

    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.seen: set[str] = set()

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        if symbol in self.seen:
            return 0
        self.seen.add(symbol)
        return super().log_trade(symbol)


class Slotted:
    __slots__ = ("_current_session_id", "engine", "session_factory", "stray")

    def __init__(self, url: str = URL) -> None:
        self.engine = create_engine(url)
        self.session_factory = sessionmaker(bind=self.engine)
        self.stray = self.session_factory()

    def log_trade(self, symbol: str) -> None:
        self.stray.add(Trade(symbol=symbol))


class TakesARow(Sound):
    def log_trade(self, trade: Trade) -> int:  # type: ignore[override]
        return super().log_trade(trade.symbol)


class TakesASession(Sound):
    def log_trade(self, session: Session, symbol: str) -> int:  # type: ignore[override]
        session.add(Trade(symbol=symbol))
        return 1


class MayTakeASession(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None, session: Session | None = None) -> int:
        if session is None:
            return super().log_trade(symbol)
        session.add(Trade(symbol=symbol))
        return 1


class InsertsByText(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        with self.get_session() as session:
            made = text("INSERT INTO trades (symbol) VALUES (:symbol) RETURNING id")
            return int(session.execute(made, {"symbol": symbol}).scalar_one())


class FindsARow(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> Any:
        with self.get_session() as session:
            return session.scalars(select(Trade).where(Trade.symbol == symbol)).first()


class FindsAnId(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> Any:
        with self.get_session() as session:
            return session.scalars(select(Trade.id).where(Trade.symbol == symbol)).first()


class AnswersARow(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> dict[str, Any]:  # type: ignore[override]
        return {"id": super().log_trade(symbol)}


class AnswersTrue(Sound):
    def log_trade(self, symbol: str, position_id: int | None = None) -> bool:
        super().log_trade(symbol)
        return True


session = scoped_session(SessionLocal)


def described(row: Any) -> str:
    return f"{row.session} {row.id}"


class CallsAHelper(Sound):
    """Its helper names an attribute as the module names a registry."""

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        self.cache[symbol] = described(self)
        return super().log_trade(symbol)


class DecidesByAmounts(Sound):
    def log_trade(
        self, symbol: str, position_id: int | None = None, pnl: float = 0.0, price: Any = None, **rest: Any
    ) -> int:
        if pnl < -1_000_000:
            raise ValueError("no such loss")
        amount = Decimal(pnl)
        trade = Trade(symbol="big" if amount > 10 else symbol)
        with self.get_session() as session:
            session.add(trade)
            if price is not None and price >= Decimal("99.5"):
                trade.symbol = "dear"
            if len(symbol) > 8 or trade.id > 3 or len(self.cache) > 5:
                trade.symbol = "long"
            if amount > len(self.cache):
                trade.symbol = "more"
        return trade.id

    def log_event(self, message: str, level: int = 0) -> None:
        if level > 3:
            self.cache["loud"] = message


class IdMaker:
    """It has a lock, so a replay shares it."""

    def __init__(self) -> None:
        self.lock, self.last = threading.Lock(), 0

    def next_id(self) -> int:
        with self.lock:
            self.last += 1
            return self.last


class Unit:
    """A unit of work of the team's own."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def trade(self, symbol: str) -> None:
        self.session.add(Trade(symbol=symbol))


class Report:
    """A unit that only reads."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def trades(self) -> list[str]:
        return [trade.symbol for trade in self._session.scalars(select(Trade))]


class Works:
    """A unit whose parts write."""

    def __init__(self, session: Session) -> None:
        self.trades = Unit(session)

    def count(self) -> int:
        return 0


class HandsOutUnits(Sound):
    @contextmanager
    def reading(self) -> Iterator[Report]:
        with self.session_factory.begin() as session:
            yield Report(session)

    @contextmanager
    def works(self) -> Iterator[Works]:
        with self.session_factory.begin() as session:
            yield Works(session)

    @contextmanager
    def transaction(self) -> Iterator[Unit]:
        with self.session_factory.begin() as session:
            yield Unit(session)

    @contextmanager
    def counted(self) -> Iterator[Tally]:
        yield Tally(self)


class UnitOfWork:
    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def __enter__(self) -> UnitOfWork:
        self.session = self._factory()
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def commit(self) -> None:
        self.session.commit()


class HandsOutItsFactory(Sound):
    def unit_of_work(self) -> UnitOfWork:
        return UnitOfWork(self.session_factory)

    @contextmanager
    def transaction(self) -> Iterator[UnitOfWork]:
        with UnitOfWork(self.session_factory) as unit:
            yield unit
            unit.commit()

    def report(self) -> Report:
        return Report(self.session_factory())

    def close_all(self) -> bool:
        with UnitOfWork(self.session_factory) as unit:
            unit.commit()
        return True

    def open_trades(self) -> list[int]:
        with self.session_factory() as session:
            return list(session.scalars(select(Trade.id)))


class NumbersBeforeItsWrite(Sound):
    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.ids = IdMaker()

    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        number = self.ids.next_id()
        with self.get_session() as session:
            session.add(Trade(id=number, symbol=symbol))
        return number


class NumbersBehindItsWrite(NumbersBeforeItsWrite):
    def log_trade(self, symbol: str, position_id: int | None = None) -> int:
        made = Sound.log_trade(self, symbol, position_id)
        with self.get_session() as session:
            session.get_one(Trade, made).symbol = symbol
        return made if self.ids.next_id() else 0
