"""Which modules are the host's, and what is found in them."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from outbox.integrations.paper import DatabaseManager
from outbox.integrations.replay.clock_readers import HostModules, Place, places_of
from outbox.integrations.replay.frozen_clock import frozen, stand_in_for

MODULES = {
    "site-packages/firm_times.py": "import time\ndef now_ms(): return time.time() * 1000\n",
    "site-packages/firm_tables.py": "from time import time\nclass Trades:\n    __table__ = None\n",
    "site-packages/firm_net.py": "import time\nclass Client:\n    def sign(self): return time.time()\n",
    "firm_engine.py": (
        "import firm_net\nfrom firm_net import Client\nfrom firm_tables import Trades\nfrom firm_times import now_ms\n"
        "class Odd:\n    def __getattribute__(self, name): raise RuntimeError(name)\n"
        "odd = Odd()\nclass Manager: pass\n"
    ),
    "firm_other.py": "from datetime import datetime\n",
}


@pytest.fixture
def firm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """An engine with modules of its own beside it and in installed packages."""
    for name, source in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    names = [Path(name).stem for name in MODULES]
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "is_the_hosts"),
    [("firm_engine", True), ("firm_other", True), ("firm_times", True), ("firm_tables", True), ("firm_net", False)],
)
def test_module_of_the_host_is_told_from_others(firm: dict[str, ModuleType], name: str, is_the_hosts: bool) -> None:
    """Another's client signs its requests with the real time."""
    assert HostModules([firm["firm_engine"].Manager]).have(vars(firm[name])) is is_the_hosts


def test_paper_manager_is_a_host_as_others_are() -> None:
    """It reads the clock in modules of this package, and its replays must find the time of the call there."""
    assert HostModules([DatabaseManager]).have(vars(importlib.import_module("outbox.integrations.paper.manager_base")))


@pytest.mark.parametrize("name", ["sqlalchemy", "outbox.clock", "logging", "psycopg2", "_pytest.config"])
def test_library_is_none_of_the_hosts_modules(firm: dict[str, ModuleType], name: str) -> None:
    assert not HostModules([firm["firm_engine"].Manager]).have(vars(importlib.import_module(name)))


def test_place_is_taken_and_given_back(firm: dict[str, ModuleType]) -> None:
    seen: dict[int, Any] = {}
    places = places_of(HostModules([firm["firm_engine"].Manager]), stand_in_for, seen)
    assert [place.put() for place in places] == [True] * len(places)
    taken = [firm["firm_times"].time, firm["firm_tables"].time, firm["firm_other"].datetime]
    for place in places:
        place.put_back()
    assert time not in taken
    assert time.time not in taken
    assert firm["firm_times"].time is firm["firm_net"].time is time
    assert places_of(HostModules([firm["firm_engine"].Manager]), stand_in_for, seen) == []


def test_clock_stands_after_an_interrupted_entry(firm: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a signal handler left every later replay of the process with the real time."""
    manager, at = firm["firm_engine"].Manager(), datetime(2024, 5, 1, tzinfo=UTC)
    put, puts = Place.put, []

    def interrupted(place: Place) -> bool:
        puts.append(place)
        if len(puts) == 1:
            raise KeyboardInterrupt
        return put(place)

    monkeypatch.setattr(Place, "put", interrupted)
    with pytest.raises(KeyboardInterrupt), frozen(at, manager):
        raise AssertionError
    for _ in range(2):
        with frozen(at, manager):
            assert firm["firm_times"].now_ms() == at.timestamp() * 1000
        assert firm["firm_times"].time is time


def test_clock_hardly_moves_for_a_call_that_reads_it_often(firm: dict[str, ModuleType]) -> None:
    """A call that wrote many rows got the real time for the last ones."""
    manager, at = firm["firm_engine"].Manager(), datetime(2024, 5, 1, tzinfo=UTC)
    with frozen(at, manager):
        for _ in range(2000):
            firm["firm_times"].now_ms()
        threading.Event().wait(0.15)  # the clock moves with `sleep`
        assert 0 < firm["firm_times"].now_ms() - at.timestamp() * 1000 < 5


def test_place_that_a_test_has_patched_is_left_alone(firm: dict[str, ModuleType]) -> None:
    places = places_of(HostModules([firm["firm_engine"].Manager]), stand_in_for, {})
    patched: Any = object()
    firm["firm_other"].datetime = patched  # type: ignore[attr-defined]
    for place in places:
        place.put()
    assert firm["firm_other"].datetime is patched
    for place in places:
        place.put_back()
    assert firm["firm_other"].datetime is patched
