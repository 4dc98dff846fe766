"""A property that writes when it is set is shown, since no declaration makes that durable."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from outbox.integrations.durable import ManagerOperation
from outbox.integrations.preflight.preflight import Kind, look


class Switched:
    """Has a switch of each kind."""

    def __init__(self) -> None:
        self.session_factory: Any = sessionmaker(create_engine("postgresql+psycopg2://nowhere"))
        self._kept: Any = None

    @contextmanager
    def unit(self) -> Any:
        with self.session_factory.begin() as session:
            yield session

    def set_halt(self, value: bool) -> None:
        with self.session_factory.begin() as session:
            session.add(value)

    def _save(self, value: Any) -> None:
        with self.unit() as session:
            session.merge(value)

    def _get(self) -> Any:
        with self.session_factory() as session:
            return session.get(object, 1)

    def _keep(self, value: Any) -> None:
        self._kept = value

    def _set_directly(self, value: Any) -> None:
        with self.session_factory.begin() as session:
            session.add(value)

    def _set_through(self, value: Any) -> None:
        self._save(value)

    def _set_durably(self, value: Any) -> None:
        self.set_halt(value)

    direct = property(_get, _set_directly)
    through = property(_get, _set_through)
    durable = property(_get, _set_durably)
    kept = property(lambda self: self._kept, _keep)
    read_only = property(_get)


def test_property_that_writes_when_it_is_set_is_shown() -> None:
    fit = look(Switched, (ManagerOperation("set_halt"),))
    shown = {one.name: one for one in fit.methods if one.name in ("direct", "through", "durable", "kept", "read_only")}
    assert shown.keys() == {"direct", "through"}
    assert {one.kind for one in shown.values()} == {Kind.PASSES}
    assert all("write a method for that" in one.warning for one in shown.values())
    assert fit.fits


def test_session_factory_of_the_class_is_no_method() -> None:
    class OfTheClass(Switched):
        session_factory: Any = staticmethod(sessionmaker())

    assert "session_factory" not in {one.name for one in look(OfTheClass, (ManagerOperation("set_halt"),)).methods}
