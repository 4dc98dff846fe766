"""The base of the paper manager: connection pool, schema and sessions, and what the tables hold of what callers pass.

Engines hand the same argument over as a string, an enum, a float, a Decimal or a numpy scalar, and times aware or
naive.  Every method of the manager converts here first, so that the database sees one form only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from enum import Enum
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session, sessionmaker

from .models import Base

Amount = Decimal | float | str
"""Anything that means a number: Decimal, int, float, numpy scalar or decimal text."""

_STEP = Decimal("0.00000001")
_QUANTIZABLE = Decimal(10) ** 18

E = TypeVar("E", bound=Enum)


def utc_now() -> datetime:
    """The current time in UTC without a zone, as every timestamp column holds it."""
    return datetime.now(UTC).replace(tzinfo=None)


def naive_utc(value: datetime) -> datetime:
    """`value` in UTC without a zone; a naive value is taken to be in UTC already."""
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def money(value: Amount, what: str) -> Decimal:
    """`value` as a Decimal with 8 decimals, rounded half away from zero as PostgreSQL rounds NUMERIC(18,8).

    Raises `ValueError` naming `what` when the value is not a finite number.  A number too large for the column is
    left to the database to refuse.
    """
    # numpy scalars become plain Python numbers: numpy 2 writes them as "np.float64(1.0)" where a driver uses repr.
    plain = value.item() if hasattr(value, "item") else value
    try:
        number = plain if isinstance(plain, Decimal) else Decimal(str(plain))
    except InvalidOperation:
        raise ValueError(f"{what} must be a number, not {value!r}") from None
    if not number.is_finite():
        raise ValueError(f"{what} must be a finite number, not {value!r}")
    return number if abs(number) >= _QUANTIZABLE else number.quantize(_STEP, ROUND_HALF_UP)


def money_or_none(value: Amount | None, what: str) -> Decimal | None:
    """Like `money`; None stays None."""
    return None if value is None else money(value, what)


def text_of(value: str | Enum) -> str:
    """The text that a string or an enum member of whatever class stands for."""
    return str(value.value) if isinstance(value, Enum) else value


def member(cls: type[E], value: str | Enum, what: str) -> E:
    """The member of `cls` with the value of `value`, whatever its case or its own class.

    Raises `ValueError` naming `what` and the allowed values.
    """
    try:
        return cls(text_of(value).lower())
    except ValueError:
        allowed = ", ".join(str(item.value) for item in cls)
        raise ValueError(f"{what} must be one of {allowed}, not {value!r}") from None


def jsonable(value: Any) -> Any:
    """`value` with everything that JSON lacks (Decimal, time, enum, numpy scalar, set) written in plain types."""
    if isinstance(value, Enum):
        return jsonable(value.value)
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "item"):
        return jsonable(value.item())
    return str(value)


_DRIVER = "postgresql+psycopg2"


class ManagerBase:
    """Connects at once and hands out sessions.

    `database_url` may begin with `postgresql://`, `postgres://` or `postgresql+psycopg2://`.  `pool_size` is the
    number of connections kept open, `connect_timeout` the seconds to wait for a new one (whole, at least 2, as libpq
    counts them).

    Raises `ValueError` for a URL of another database and `sqlalchemy.exc.OperationalError` when PostgreSQL is away.
    """

    def __init__(self, database_url: str, *, pool_size: int = 5, connect_timeout: int = 5) -> None:
        self.engine: Engine = create_engine(
            _with_driver(database_url),
            pool_size=pool_size,
            pool_pre_ping=True,
            connect_args={"connect_timeout": connect_timeout},
        )
        self.session_factory: sessionmaker[Session] = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            Base.metadata.create_all(self.engine)
        except BaseException:
            self.engine.dispose()
            raise

    @contextmanager
    def get_session(self) -> Iterator[Session]:
        """A session that is rolled back on an exception and closed at the end; committing is the caller's part."""
        session = self.session_factory()
        try:
            yield session
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    def close(self) -> None:
        """Give every pooled connection back to PostgreSQL.  May be called twice."""
        self.engine.dispose()

    def _session_or_current(self, session_id: int | None) -> int:
        """`session_id`, or else the current session's id.  Raises `ValueError` when there is neither."""
        chosen = self._current_session_id if session_id is None else session_id
        if chosen is None:
            raise ValueError("session_id is missing and no trading session is current")
        return chosen


def _with_driver(database_url: str) -> URL:
    url = make_url(database_url)
    if url.drivername not in ("postgresql", "postgres", _DRIVER):
        raise ValueError(f"database_url must begin with postgresql://, not {url.drivername}://")
    # SQLAlchemy 2.1 takes the bare name for psycopg 3, and 2.0 for psycopg2.
    return url.set(drivername=_DRIVER)
