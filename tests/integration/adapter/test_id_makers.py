"""Ids that a manager makes itself, of the clock or by counting, are those of plain calls: each once, and in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError

from .small import SmallManager, Trade, scene

CALLS = 60


class Snowflake:
    """As most teams write it: milliseconds and a number, under a lock, and no step back in time."""

    def __init__(self) -> None:
        self.lock, self.last, self.number = threading.Lock(), 0, 0

    def __call__(self) -> str:
        with self.lock:
            now = int(time.time() * 1000)
            if now < self.last:
                raise RuntimeError(f"the clock moved back by {self.last - now} ms")
            self.number = (self.number + 1) % 4 if now == self.last else 0
            while now == self.last and self.number == 0:
                now = int(time.time() * 1000)
            self.last = now
            return f"{now}-{self.number}"


@dataclass(slots=True)
class Tally:
    made: int = 0

    def __call__(self) -> str:
        self.made += 1
        return str(self.made)


class Numbering(SmallManager):
    """Numbers its rows before it writes them."""

    make: Callable[[], Any]

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ids = type(self).make()

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = next(self.ids) if isinstance(self.ids, count) or hasattr(self.ids, "gi_frame") else self.ids()
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=str(made))
            session.add(trade)
            session.flush()
            return trade.id


class Flaking(Numbering):
    make = Snowflake


class Tallying(Numbering):
    make = Tally


class Counting(Numbering):
    make = staticmethod(lambda: count(1))


class Sharing(Flaking):
    """One object for the whole class."""

    ids = Snowflake()

    def __init__(self, url: str) -> None:
        SmallManager.__init__(self, url)


class Generating(Numbering):
    make = staticmethod(lambda: (number for number in range(1, 1000)))


of_the_module = Snowflake()


class Apart(Numbering):
    make = staticmethod(lambda: lambda: of_the_module())


def made_in(url: str, folder: Path, cls: type[Numbering]) -> list[str]:
    """The ids in the order of the calls: of three before an outage, of `CALLS` in it, and of three behind it."""
    with scene(url, folder, cls) as here:
        for number in range(CALLS + 6):
            if number in (0, CALLS + 3):
                here.relay.start()
            here.manager.log_trade(f"t{number:03}")
            if number == 2:
                here.relay.stop()
        assert here.drain()
        assert list(here.box.dead_letters()) == []
        rows = here.rows("SELECT symbol, note FROM trades ORDER BY symbol")
    assert [symbol for symbol, _ in rows] == [f"t{number:03}" for number in range(CALLS + 6)]
    return [note for _, note in rows]


@pytest.mark.parametrize("cls", [Flaking, Sharing, Apart])
def test_ids_of_the_clock_are_unique_and_ascend(postgres_url: str, outbox_dir: Path, cls: type[Numbering]) -> None:
    """Calls of an outage that follow each other within a millisecond get ids apart, though they are made later."""
    made = [tuple(map(int, one.split("-"))) for one in made_in(postgres_url, outbox_dir, cls)]
    assert made == sorted(set(made))


@pytest.mark.parametrize("cls", [Tallying, Counting])
def test_counted_ids_are_those_of_plain_calls(postgres_url: str, outbox_dir: Path, cls: type[Numbering]) -> None:
    assert made_in(postgres_url, outbox_dir, cls) == [str(number) for number in range(1, CALLS + 7)]


def test_counter_of_the_class_counts_for_all_managers(postgres_url: str, outbox_dir: Path) -> None:
    class Together(Counting):
        ids = count(1)

        def __init__(self, url: str) -> None:
            SmallManager.__init__(self, url)

    with scene(postgres_url, outbox_dir, Together) as here:
        plain = Together(postgres_url)
        for manager in (here.manager, plain, here.manager):
            manager.log_trade("t")
        assert here.drain()
        plain.log_trade("t")
        plain.engine.dispose()
        assert here.rows("SELECT note FROM trades ORDER BY note") == [("1",), ("2",), ("3",), ("4",)]


def test_id_of_a_generator_is_refused(postgres_url: str, outbox_dir: Path) -> None:
    """A generator cannot be copied, so the rehearsal would use up every second of its numbers."""
    with scene(postgres_url, outbox_dir, Generating) as here, pytest.raises(ConfigError, match=r"self\.ids"):
        here.manager.log_trade("t")


def test_many_ids_of_one_call_do_not_hang_its_replay(postgres_url: str, outbox_dir: Path) -> None:
    """The generator waits for the next millisecond, and the clock of a replay stands."""

    class Batches(Flaking):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            with self.session_factory.begin() as session:
                session.add_all([Trade(symbol=symbol, note=str(self.ids())) for _ in range(40)])
                session.flush()
                return 1

    with scene(postgres_url, outbox_dir, Batches) as here:
        here.manager.log_trade("t")
        assert here.drain()
        assert here.rows("SELECT count(DISTINCT note) FROM trades") == [(40,)]


def test_id_of_a_replay_is_not_after_that_of_the_rehearsal(postgres_url: str, outbox_dir: Path) -> None:
    """Between the two another call of the same millisecond would get the same id."""

    class Slow(SmallManager):
        last = 0

        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            self.last = int(time.time() * 1000)
            made = f"{self.last}-0"
            time.sleep(0.3)
            with self.session_factory.begin() as session:
                session.add(Trade(symbol=symbol, note=made))
                session.flush()
                return 1

    with scene(postgres_url, outbox_dir, Slow) as here:
        begun = time.time() * 1000
        here.manager.log_trade("t")
        assert here.drain()
        [(made,)] = here.rows("SELECT note FROM trades")
        assert int(made.partition("-")[0]) < begun + 300
