"""What a constructor sets for certain is known of a manager that could not be built yet."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from outbox.clock import SystemClock
from outbox.integrations.code.begun import begun
from outbox.integrations.manager.host import Host

LIMIT = 5


class Base:
    def __init__(self) -> None:
        self.base = "paper"
        self.shared = 1
        self._current_session_id = None


class Manager(Base):
    def __init__(self, url: str, start: int = 3) -> None:
        super().__init__()
        self.url, self.start = url, start
        self.count: int = 0
        self.pnl = Decimal(0)
        self.loss = -Decimal("50.5")
        self.low = -1.5
        self.open = False
        self.limit = LIMIT
        self.now = Decimal(start)
        self.shared = 2
        self.rows: list[int] = []
        self.loaded = 0
        self._load()
        if start > 2:
            self.branch = 1
        if start > 7:
            return
        self.late = 1

    def _load(self) -> None:
        self.loaded += len(self.url)

    def other(self) -> None:
        self.count += 1


class SetsByName(Manager):
    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def test_constants_that_a_constructor_always_sets_are_known() -> None:
    """Not what depends on arguments, on a branch or on another method, and not what is set twice."""
    assert begun(Manager) == {
        "base": "paper",
        "count": 0,
        "pnl": Decimal(0),
        "loss": Decimal("-50.5"),
        "low": -1.5,
        "open": False,
    }


def test_constructor_that_sets_any_name_gives_no_known_state() -> None:
    assert begun(SetsByName) == {}
    assert begun(object) == {}


def test_attributes_that_were_set_already_stay_until_it_is_built() -> None:
    host = Host(lambda: Manager("x"), SystemClock())
    host.set("count", 7)
    host.begin_with({"count": 0, "pnl": 1})
    host.set("pnl", host.get("pnl") + 4)
    assert host.attributes() == {"count": 7, "pnl": 5}
    built = host.manager()
    assert (built.count, built.pnl) == (7, 5)
    host.begin_with({"count": 0})
    assert host.attributes()["count"] == 7
