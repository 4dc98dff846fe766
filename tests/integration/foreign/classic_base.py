"""The classic manager's connection: made and checked in the constructor, sessions by a context manager, retries."""

from __future__ import annotations

import enum
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from .classic_models import Base, PositionSide

logger = logging.getLogger("classic.database")

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=enum.Enum)


def retried(attempts: int = 3, delay: float = 0.02) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Repeat a read that lost its connection, as a manager without an outbox has to."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def attempt(*args: P.args, **kwargs: P.kwargs) -> R:
            for left in reversed(range(attempts)):
                try:
                    return method(*args, **kwargs)
                except OperationalError as error:
                    if not left:
                        raise
                    logger.warning("%s failed, trying again: %s", method.__name__, error)
                    time.sleep(delay)
            raise AssertionError("the last attempt returns or raises")

        return attempt

    return decorate


def as_float(value: Any) -> float:
    """The application counts in float, the tables in NUMERIC."""
    return float(value) if value is not None else 0.0


def maybe_float(value: Any) -> float | None:
    return None if value is None else float(value)


def member(kind: type[E], value: Any) -> E:
    """The ORM's member for a text in any case, for a member of the application's enum, or for one of its own."""
    if isinstance(value, kind):
        return value
    raw = value.value if isinstance(value, enum.Enum) else str(value)
    return kind(raw.upper())


def side_of(value: Any) -> PositionSide:
    return member(PositionSide, value)


class ManagerBase:
    """Owns the engine, the session factory and the current session."""

    def __init__(self, database_url: str | None = None) -> None:
        if not database_url:
            raise ValueError("a PostgreSQL URL is needed")
        self.database_url = database_url
        self.engine: Any = None
        self.session_factory: Any = None
        self._current_session_id: int | None = None
        self._init_database()

    def _init_database(self) -> None:
        url = self.database_url.replace("postgresql://", "postgresql+psycopg2://", 1)
        self.engine = create_engine(url, pool_size=5, max_overflow=5, pool_pre_ping=True)
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        Base.metadata.create_all(self.engine)
        self.session_factory = sessionmaker(bind=self.engine)

    @contextmanager
    def get_session(self) -> Iterator[Session]:
        """A session that is rolled back on an error and always closed; the caller commits."""
        session: Session = self.session_factory()
        try:
            yield session
        except Exception:
            session.rollback()
            raise
        finally:
            session.close()

    def test_connection(self) -> bool:
        try:
            with self.get_session() as session:
                session.execute(text("SELECT 1"))
        except OperationalError:
            return False
        return True

    def close(self) -> None:
        self.engine.dispose()

    def _session_or_current(self, session_id: int | None) -> int | None:
        return session_id if session_id is not None else self._current_session_id
