"""A replay finds the context variables and the arithmetic of its call, whichever code of the host reads them."""

from __future__ import annotations

import contextvars
import decimal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Integer, String, TypeDecorator, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .small import Scene, SmallManager, Trade, scene
from .test_context_state import Connected

user: ContextVar[Any] = ContextVar("user", default="nobody")
api_token: ContextVar[str] = ContextVar("api_token", default="none")


class Signed(TypeDecorator[str]):
    """Signs what is written."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return f"{value}{user.get()}"


class Base(DeclarativeBase):
    pass


class Defaulted(Base):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    symbol: Mapped[str] = mapped_column(String(100))
    note: Mapped[str] = mapped_column(String, default=lambda: str(user.get()))


class OtherBase(DeclarativeBase):
    pass


class Decorated(OtherBase):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    symbol: Mapped[str] = mapped_column(String(100))
    note: Mapped[str] = mapped_column(Signed)


@dataclass
class Stamp:
    by: str = field(default_factory=lambda: str(user.get()))

    @classmethod
    def present(cls) -> str:
        return cls().by


class Writing(SmallManager):
    """Writes a row that `row` makes."""

    def row(self, session: Any) -> Any:
        raise NotImplementedError

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        with self.session_factory.begin() as session:
            trade = self.row(session)
            session.add(trade)
            session.flush()
            return trade.id


class ByDefault(Writing):
    def row(self, session: Any) -> Any:
        return Defaulted(symbol="A")


class ByType(Writing):
    def row(self, session: Any) -> Any:
        return Decorated(symbol="A", note="")


class ByFactory(Writing):
    def row(self, session: Any) -> Any:
        return Trade(symbol="A", note=Stamp().by)


class ByClassMethod(Writing):
    def row(self, session: Any) -> Any:
        return Trade(symbol="A", note=Stamp.present())


class ByBegin(Writing):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        event.listen(self.engine, "begin", _set_user)

    def row(self, session: Any) -> Any:
        return Trade(symbol="A", note=session.scalar(text("SELECT current_setting('app.user')")))


class BySession(ByBegin):
    def __init__(self, url: str) -> None:
        SmallManager.__init__(self, url)
        event.listen(self.session_factory, "after_begin", lambda _, __, connection: _set_user(connection))


class ByFlush(Writing):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        event.listen(self.session_factory, "before_flush", _sign)

    def row(self, session: Any) -> Any:
        return Trade(symbol="A")


def _set_user(connection: Any) -> None:
    connection.exec_driver_sql("SELECT set_config('app.user', %s, true)", (user.get(),))


def _sign(session: Any, *_: Any) -> None:
    for row in session.new:
        row.note = user.get()


MANAGERS = [ByDefault, ByType, ByFactory, ByClassMethod, ByBegin, BySession, ByFlush]


@contextmanager
def as_user(name: Any) -> Iterator[None]:
    token = user.set(name)
    try:
        yield
    finally:
        user.reset(token)


def _by(made: Scene) -> list[str]:
    return [note for (note,) in made.rows("SELECT note FROM trades ORDER BY id")]


@pytest.mark.parametrize("manager_class", MANAGERS)
@pytest.mark.parametrize("running", [False, True])
def test_context_variable_read_beside_the_method_is_the_calls(
    manager_class: Any, running: bool, postgres_url: str, tmp_path: Path
) -> None:
    """Only those that the method's own code names were noted: a tenant's rows were written for the default one."""
    with scene(postgres_url, tmp_path / "outbox", manager_class) as made:
        if running:
            made.relay.start()
        for name in ("ann", "ben"):
            with as_user(name):
                made.manager.log_trade("A")
        made.manager.log_trade("A")
        assert made.drain()
        assert _by(made) == ["ann", "ben", "nobody"]


def test_context_variable_read_beside_outlives_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", ByFlush) as made, as_user("ann"):
        made.manager.log_trade("A")
    with scene(postgres_url, tmp_path / "outbox", ByFlush) as made, as_user("another"):
        assert made.drain()
        assert _by(made) == ["ann"]


def test_object_in_a_variable_read_beside_is_the_calls(postgres_url: str, tmp_path: Path) -> None:
    class ByName(ByFlush):
        def __init__(self, url: str) -> None:
            SmallManager.__init__(self, url)
            event.listen(self.session_factory, "before_flush", self._sign_by_name)

        @staticmethod
        def _sign_by_name(session: Any, *_: Any) -> None:
            for row in session.new:
                row.note = getattr(user.get(), "name", "nobody")

    with scene(postgres_url, tmp_path / "outbox", ByName) as made:
        with as_user(Connected("ann")):
            made.manager.log_trade("A")
        assert made.drain()
        assert _by(made) == ["ann"]
        assert not made.box.alarms.sounds("lost-context-log_trade")


def test_context_of_the_relay_reaches_no_call(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", ByFlush) as made:
        made.manager.log_trade("A")
        with as_user("the operator who drains"):
            assert made.drain()
        assert _by(made) == ["nobody"]


def test_variable_set_by_a_method_does_not_reach_the_next(postgres_url: str, tmp_path: Path) -> None:
    class Sets(ByFlush):
        def row(self, session: Any) -> Any:
            if user.get() == "ann":
                user.set("changed")
            return Trade(symbol="A")

    with scene(postgres_url, tmp_path / "outbox", Sets) as made:
        with as_user("ann"):
            contextvars.copy_context().run(made.manager.log_trade, "A")
        made.manager.log_trade("A")
        assert made.drain()
        assert _by(made) == ["changed", "nobody"]


def test_variable_that_is_named_like_a_secret_is_not_stored(postgres_url: str, tmp_path: Path) -> None:
    class Uses(Writing):
        def row(self, session: Any) -> Any:
            return Trade(symbol="A", note=str(len(api_token.get())))

    for manager_class in (Uses, ByFlush):
        with scene(postgres_url, tmp_path / manager_class.__name__, manager_class) as made:
            token = api_token.set("s3cret")
            made.manager.log_trade("A")
            api_token.reset(token)
            files = [one.read_bytes() for one in (tmp_path / manager_class.__name__).rglob("*") if one.is_file()]
            assert not any(b"s3cret" in one for one in files)
            assert made.drain()
            assert _by(made)[0] == "6"


class Rounds(Writing):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        share = (Decimal(1) / 3).quantize(Decimal("0.01"))
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=str(share))
            session.add(trade)
            session.flush()
            return trade.id


def _log_rounded_up(made: Scene) -> None:
    with decimal.localcontext() as context:
        context.rounding = ROUND_UP
        made.manager.log_trade("A")


@pytest.mark.parametrize("running", [False, True])
def test_decimals_are_rounded_as_in_the_callers_thread(running: bool, postgres_url: str, tmp_path: Path) -> None:
    """The relay's thread has a context of decimal of its own, and rounded half to even."""
    with scene(postgres_url, tmp_path / "outbox", Rounds) as made:
        if running:
            made.relay.start()
        _log_rounded_up(made)
        made.manager.log_trade("A")
        with decimal.localcontext(prec=1):
            assert made.drain()
        assert _by(made) == ["0.34", "0.33"]


def test_decimals_of_a_call_are_rounded_alike_after_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Rounds) as made:
        _log_rounded_up(made)
    with scene(postgres_url, tmp_path / "outbox", Rounds) as made:
        assert made.drain()
        assert _by(made) == ["0.34"]


class RoundedBalance(SmallManager):
    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        return super().get_current_balance(session_id).quantize(Decimal("0.01"))


def test_keeper_reads_the_balance_as_the_engine_rounds_it(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", RoundedBalance) as made, decimal.localcontext() as context:
        context.rounding = ROUND_UP
        made.manager.create_trading_session("s", Decimal("10.001"))
        assert made.drain()
        keeper = made.manager._adapter.keeper
        shown: list[Any] = []
        in_background = threading.Thread(target=lambda: shown.append(keeper._shown(1).balance))
        in_background.start()
        in_background.join()
        assert shown == [Decimal("10.01")]
