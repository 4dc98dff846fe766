"""Attributes that hold the same objects, refer to them or to the manager, or hold objects that methods make."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.unit.fakes.waiting import LONG

from .small import Trade
from .test_unbuilt_state import Absent, numbers, started


class Counter:
    def __init__(self) -> None:
        self.number = 0

    def up(self) -> int:
        self.number += 1
        return self.number


class Book:
    """Counts in a dict that it is given."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts

    def add(self, symbol: str) -> None:
        self.counts[symbol] = self.counts.get(symbol, 0) + 1


class Early(Absent):
    """Numbers its trades before its first statement."""

    def next(self) -> int:
        raise NotImplementedError

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        number = self.next()
        with self.session_factory.begin() as session:
            session.add(trade := Trade(symbol=symbol, number=number))
            session.flush()
            return trade.id


class Late(Early):
    """Numbers them behind it."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            session.execute(text("SELECT 1"))
            session.add(trade := Trade(symbol=symbol, number=self.next()))
            session.flush()
            return trade.id


class InObject(Early):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.counter = Counter()

    def next(self) -> int:
        return self.counter.up()


class InObjectLate(InObject, Late):
    pass


class Shared(Early):
    """Two attributes hold one dict."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.counts: dict[str, int] = {}
        self.book = Book(self.counts)

    def next(self) -> int:
        self.book.add("all")
        return self.counts["all"]


class SharedLate(Shared, Late):
    pass


class Made(Early):
    """Makes its counter at its first call."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.counters: dict[str, Counter] = {}

    def next(self) -> int:
        return self.counters.setdefault("all", Counter()).up()


class MadeLate(Made, Late):
    pass


class Pickled(Counter):
    """Says itself how it is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {"number": self.number}


class MadePickled(Made):
    def next(self) -> int:
        return self.counters.setdefault("all", Pickled()).up()


class ByReference(InObject):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reference = weakref.ref(self.counter)

    def next(self) -> int:
        found = self.reference()
        assert found is not None
        return found.up()


class ByListeners(InObject):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.listeners = weakref.WeakSet([self.counter])

    def next(self) -> int:
        return next(one.up() for one in self.listeners)


class ByTable(InObject):
    """Finds in a table which of its methods to call."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.table: dict[str, Callable[[], int]] = {"up": self.up, "partly": functools.partial(self.up, 1)}

    def up(self, by: int = 1) -> int:
        return self.counter.up()

    def next(self) -> int:
        return self.table["up"]()


class ByMethodOfObject(InObject):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.call = self.counter.up

    def next(self) -> int:
        return self.call()


EARLY = [InObject, Shared, Made, MadePickled, ByReference, ByListeners, ByTable, ByMethodOfObject]
KINDS = [*EARLY, InObjectLate, SharedLate, MadeLate]


@pytest.mark.parametrize("kind", KINDS)
def test_count_in_linked_attributes_is_that_of_plain_calls(
    kind: type[Absent], postgres_url: str, outbox_dir: Path
) -> None:
    with started(postgres_url, outbox_dir, kind) as here:
        for name in range(2):
            here.manager.log_trade(f"alone {name}")
            assert here.relay.drain(timeout=LONG)
        for name in range(5):
            here.manager.log_trade(f"together {name}")
        assert here.relay.drain(timeout=LONG)
        here.manager.log_trade("last")
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [*range(1, 9)]
        assert here.box.status().dead_letters == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 100])
def test_count_in_linked_attributes_outlives_a_restart(
    kind: type[Absent], batch_size: int, postgres_url: str, outbox_dir: Path
) -> None:
    """Each process of a plain manager begins anew, and counts its own calls."""
    with started(postgres_url, outbox_dir, kind) as here:
        here.manager.log_trade("delivered")
        assert here.relay.drain(timeout=LONG)
        for name in range(3):
            here.manager.log_trade(f"waiting {name}")
    with started(postgres_url, outbox_dir, kind, batch_size=batch_size) as here:
        here.manager.log_trade("first")
        assert here.relay.drain(timeout=LONG)
        here.manager.log_trade("second")
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, 2, 3, 4, 1, 2]
        assert here.box.status().dead_letters == 0


@pytest.mark.parametrize("kind", KINDS)
def test_calls_before_it_is_built_count_from_its_first_values(
    kind: type[Absent], postgres_url: str, outbox_dir: Path
) -> None:
    """They are delivered after later calls of the next process, which count at once."""

    class Manager(kind):  # type: ignore[misc, valid-type]
        pass

    with started(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
    Manager.away = True
    with started(postgres_url, outbox_dir, Manager) as here:
        for name in range(3):
            here.manager.log_trade(f"outage {name}")
    Manager.away = False
    with started(postgres_url, outbox_dir, Manager) as here:
        for name in range(2):
            here.manager.log_trade(f"behind {name}")
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, 1, 2, 3, 1, 2]


class Replacing(Early):
    """Keeps its counters in a history, and has a new one for each trade."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.counter = Counter()
        self.history = {0: self.counter}

    def next(self) -> int:
        number = self.counter.number + 1
        self.counter = Counter()
        self.counter.number = number
        self.history[number] = self.counter
        return sum(one.number for one in self.history.values())


class ReplacingLate(Replacing, Late):
    pass


@pytest.mark.parametrize("kind", [Replacing, ReplacingLate])
def test_object_that_is_replaced_stays_as_it_was_elsewhere(
    kind: type[Absent], postgres_url: str, outbox_dir: Path
) -> None:
    with started(postgres_url, outbox_dir, kind) as here:
        for name in range(3):
            here.manager.log_trade(f"alone {name}")
            assert here.relay.drain(timeout=LONG)
        for name in range(3):
            here.manager.log_trade(f"together {name}")
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, 3, 6, 10, 15, 21]
        built = here.manager._host.built
        assert [one.number for one in built.history.values()] == [*range(7)]
        assert built.counter is built.history[6]
