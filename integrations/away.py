"""Away: how it shows that PostgreSQL cannot answer, also where the manager keeps quiet about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.exc import InterfaceError, OperationalError

# What SQLAlchemy raises where PostgreSQL cannot be reached, was lost, or did not answer in time.
AWAY = (OperationalError, InterfaceError)

_failures: ContextVar[list[BaseException] | None] = ContextVar("outbox_failures", default=None)


@event.listens_for(Engine, "handle_error")
def _note(context: ExceptionContext) -> None:
    failures, error = _failures.get(), context.sqlalchemy_exception
    # A pool tests its connections and replaces those that are lost.
    if failures is not None and not context.is_pre_ping and isinstance(error, AWAY):
        failures.append(error)


@contextmanager
def unswallowed() -> Iterator[None]:
    """While the manager is asked: raises what PostgreSQL failed with, also where the manager has swallowed it.

    Managers answer 0 or an empty list then, or raise an error of their own, which must not be taken for what they make
    of PostgreSQL's data.
    """
    failures = list[BaseException]()
    token = _failures.set(failures)
    try:
        yield
    except Exception as exc:
        if failures and not isinstance(exc, AWAY):
            raise failures[0] from exc
        raise
    finally:
        _failures.reset(token)
    if failures:
        raise failures[0]
