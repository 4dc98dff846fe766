"""The base of the paper manager: connection pool, schema and sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session, sessionmaker

from .models import Base

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
