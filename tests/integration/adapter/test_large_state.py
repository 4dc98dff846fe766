"""A history that the manager keeps in an attribute: each call adds to it once, however long it is."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outbox import Outbox

from .small import SmallManager, scene

LONG_TEXT = "x" * 300


class Remembering(SmallManager):
    """Remembers each call before its write and after it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.before: Any = []
        self.after: Any = []

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self.before.append({"symbol": symbol, "text": LONG_TEXT})
        made = super().log_trade(symbol, note, session_id)
        self.after.append({"symbol": symbol, "text": LONG_TEXT})
        return made


def entry_bytes(box: Outbox) -> list[int]:
    return [len(record.args) for record in box.store.records("pending")]


def symbols(items: Any) -> list[str]:
    return [item["symbol"] for item in items if item["symbol"] != "old"]


@pytest.mark.parametrize("length", [10, 4000, 10_001])
def test_history_of_any_length_grows_once_by_each_call(postgres_url: str, outbox_dir: Path, length: int) -> None:
    """One of 4000 items made entries that are too large, and one of 10,001 grew at the rehearsal and at the replay."""
    with scene(postgres_url, outbox_dir, Remembering) as here:
        built = here.manager._durable.host.built
        built.before = [{"symbol": "old", "text": LONG_TEXT} for _ in range(length)]
        built.after = list(built.before)
        for symbol in ("A", "B", "C"):
            here.manager.log_trade(symbol)
        here.manager.update_balance(1, "another method", session_id=1)
        assert max(entry_bytes(here.box)) < 64 << 10
        assert symbols(built.before) == ["A", "B", "C"]
        assert symbols(built.after) == []
        assert here.drain()
        assert here.box.status().dead_letters == 0
        assert symbols(here.manager.before) == ["A", "B", "C"]
        assert symbols(here.manager.after) == ["A", "B", "C"]
        assert (len(built.before), len(built.after)) == (length + 3, length + 3)
        assert here.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("B",), ("C",)]


def test_rolling_history_takes_each_call_once(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Remembering) as here:
        built = here.manager._durable.host.built
        built.before = deque(({"symbol": "old", "text": ""} for _ in range(10_001)), maxlen=10_001)
        for symbol in ("A", "B"):
            here.manager.log_trade(symbol)
        assert here.drain()
        assert symbols(here.manager.before) == ["A", "B"]
        assert len(built.before) == 10_001


class Once(SmallManager):
    """Writes each symbol once, by what it remembers."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seen: Any = set()

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if symbol in self.seen:
            return 0
        if isinstance(self.seen, set):
            self.seen.add(symbol)
        elif isinstance(self.seen, dict):
            self.seen[symbol] = True
        else:
            self.seen.append(symbol)
        return super().log_trade(symbol, note, session_id)


@pytest.mark.parametrize("length", [10, 4000, 10_001])
@pytest.mark.parametrize("kind", [set, dict.fromkeys, list, deque])
def test_replay_finds_a_collection_without_its_own_call(
    postgres_url: str, outbox_dir: Path, kind: Any, length: int
) -> None:
    """Else the replay takes its own call for a repeated one, and writes nothing."""
    with scene(postgres_url, outbox_dir, Once) as here:
        here.manager._durable.host.built.seen = kind(f"old {number}" for number in range(length))
        for symbol in ("A", "B", "C"):
            assert here.manager.log_trade(symbol) > 0
        assert max(entry_bytes(here.box)) < 64 << 10
        assert here.drain()
        assert here.box.status().dead_letters == 0
        assert here.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("B",), ("C",)]
        assert sorted(one for one in here.manager.seen if not one.startswith("old")) == ["A", "B", "C"]
        assert len(here.manager.seen) == length + 3


class Counting(SmallManager):
    """Writes what it takes out of an attribute, or counts in one."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.held: Any = None

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        return super().log_trade(f"{symbol} {getattr(self, symbol)()}", note, session_id)

    def flush(self) -> int:
        taken, self.held = self.held, type(self.held)()
        return len(taken)

    def take_one(self) -> int:
        return int(self.held.pop(0))

    def count(self) -> int:
        self.held.count += 1
        self.held.all.append(1)
        return int(self.held.count)

    def add(self) -> int:
        self.held = (*self.held, 1)
        return len(self.held)


@pytest.mark.parametrize(
    ("method", "held", "written"),
    [
        ("flush", lambda: list(range(2000)), ["flush 2000", "flush 1"]),
        ("flush", lambda: dict.fromkeys(range(2000)), ["flush 2000", "flush 1"]),
        ("flush", lambda: set(range(2000)), ["flush 2000", "flush 1"]),
        ("take_one", lambda: list(range(2000)), ["take_one 0", "take_one 1"]),
        ("count", lambda: SimpleNamespace(count=0, all=[0] * 2000), ["count 1", "count 2"]),
        ("add", lambda: (0,) * 2000, ["add 2001", "add 2002"]),
    ],
)
def test_call_writes_what_a_large_attribute_held_when_it_was_made(
    postgres_url: str, outbox_dir: Path, method: str, held: Any, written: list[str]
) -> None:
    """A replay that found the present value wrote an empty buffer, or a later count."""
    with scene(postgres_url, outbox_dir, Counting) as here:
        here.manager.held = held()
        here.manager.log_trade(method)
        one = {-1: 0} if isinstance(here.manager.held, dict) else (-1,)
        if method == "flush":
            here.manager.held = type(here.manager.held)(one)
        here.manager.log_trade(method)
        if method == "flush":
            here.manager.held = type(here.manager.held)(one)
        assert here.drain()
        assert here.box.status().dead_letters == 0
        assert [symbol for (symbol,) in here.rows("SELECT symbol FROM trades ORDER BY id")] == written


class NewestFirst(SmallManager):
    """Does not write a symbol that is the newest one."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seen: Any = []

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if self.seen[0] == symbol:
            return 0
        self.seen.insert(0, symbol)
        return super().log_trade(symbol, note, session_id)


def test_replay_finds_the_newest_first_without_its_own_call(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, NewestFirst) as here:
        here.manager._durable.host.built.seen = ["A", "B"] * 1000
        assert here.manager.log_trade("C") > 0
        assert max(entry_bytes(here.box)) < 64 << 10
        assert here.drain()
        assert here.rows("SELECT symbol FROM trades") == [("C",)]
