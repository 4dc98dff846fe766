"""Managers whose decorators open the session and give it to the method, and whose components are made when needed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from .small import SmallManager, Trade, scene


def with_session(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.session_factory.begin() as session:
            return method(self, session, *args, **kwargs)

    return wrapper


def in_session(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, session: Session | None = None, **kwargs: Any) -> Any:
        if session is not None:
            return method(self, *args, session=session, **kwargs)
        with self.session_factory.begin() as made:
            return method(self, *args, session=made, **kwargs)

    return wrapper


def spelled(method: Callable[..., Any]) -> Callable[..., Any]:
    """It says itself what its callers give."""
    wrapper = with_session(method)
    whole = inspect.signature(method)
    myself, _, *others = whole.parameters.values()
    wrapper.__signature__ = whole.replace(parameters=[myself, *others])  # type: ignore[attr-defined]
    return wrapper


def timed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Its wrapper gets a copy of the signature of what it wraps."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return wrapper


def stripped(method: Callable[..., Any]) -> Callable[..., Any]:
    """It gives nothing: it passes on what it takes."""

    @functools.wraps(method)
    def wrapper(self: Any, symbol: str, *args: Any, **kwargs: Any) -> Any:
        return method(self, symbol.strip(), *args, **kwargs)

    return wrapper


def stripped_in_session(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, symbol: str, *args: Any, **kwargs: Any) -> Any:
        symbol = symbol.strip()
        with self.session_factory.begin() as session:
            return method(self, session, symbol, *args, **kwargs)

    return wrapper


def made(session: Session, symbol: str, note: str) -> int:
    trade = Trade(symbol=symbol, note=note)
    session.add(trade)
    session.flush()
    return trade.id


class First(SmallManager):
    @with_session
    def log_trade(self, session, symbol, note="n"):  # type: ignore[no-untyped-def]
        return made(session, symbol, note)


class Behind(SmallManager):
    @stripped_in_session
    def log_trade(self, session, symbol, note="n"):  # type: ignore[no-untyped-def]
        return made(session, symbol, note)


class Both(SmallManager):
    @stripped
    @with_session
    def log_trade(self, session, symbol, note="n"):  # type: ignore[no-untyped-def]
        return made(session, symbol, note)


class Spelled(SmallManager):
    @spelled
    def log_trade(self, session, *, symbol, note="n"):  # type: ignore[no-untyped-def]
        return made(session, symbol, note)


class SpelledWithin(SmallManager):
    @timed
    @spelled
    def log_trade(self, session, *, symbol, note="n"):  # type: ignore[no-untyped-def]
        return made(session, symbol, note)


class Passing(SmallManager):
    @stripped
    def log_trade(self, symbol: str, note: str = "n") -> int:
        with self.session_factory.begin() as session:
            return made(session, symbol, note)


class Named(SmallManager):
    @in_session
    def log_trade(self, symbol: str, note: str = "n", session: Session = None) -> int:  # type: ignore[assignment]
        return made(session, symbol, note)


class Required(SmallManager):
    @in_session
    def log_trade(self, symbol: str, note: str = "n", *, session: Session) -> int:
        return made(session, symbol, note)


class Trades:
    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def add(self, symbol: str, note: str) -> int:
        with self.owner.session_factory.begin() as session:
            return made(session, symbol, note)


class WhenNeeded(SmallManager):
    """A copy of the manager must not leave its own component in the manager."""

    @functools.cached_property
    def trades(self) -> Trades:
        return Trades(self)

    def log_trade(self, symbol: str, note: str = "n", session_id: int | None = None) -> int:
        return self.trades.add(symbol, note)


@pytest.mark.parametrize("cls", [First, Behind, Both, Passing, Named, Required, WhenNeeded])
def test_callers_give_what_the_decorator_does_not(cls: Any, postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, cls) as here:
        here.relay.start()
        ids = [here.manager.log_trade("up"), here.manager.log_trade("up", note="m")]
        assert here.drain()
        here.relay.stop()
        ids += [here.manager.log_trade("away"), here.manager.log_trade("away", "m")]
        assert here.drain()
        assert list(here.box.dead_letters()) == []
        rows = here.rows("SELECT id, symbol, note FROM trades ORDER BY id")
    assert rows == list(zip(ids, ["up", "up", "away", "away"], ["n", "m"] * 2, strict=True))


@pytest.mark.parametrize("cls", [Spelled, SpelledWithin])
def test_signature_that_a_decorator_sets_is_that_of_callers(cls: Any, postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, cls) as here:
        first = here.manager.log_trade(symbol="away", note="m")
        assert here.drain()
        assert here.rows("SELECT id, symbol, note FROM trades") == [(first, "away", "m")]
