"""How programs are put together: two managers, a wiring made twice, engines in forked processes."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError, Outbox, StoreClosed
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .scripted import Engine, Manager, config
from .small import SmallManager, scene
from .test_state import Counting


def begun(engine: Any) -> int:
    session: int = engine.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
    return session


def test_second_manager_of_one_outbox_is_refused(postgres_url: str, outbox_dir: Path) -> None:
    """They would give out the same ids."""
    with Outbox.open(outbox_dir) as box:
        first: Any = DurableDatabaseManager(SmallManager(postgres_url), box)
        with pytest.raises(ConfigError, match="serves a SmallManager already") as refused:
            DurableDatabaseManager(Manager(postgres_url), box)
        assert "a directory of its own" in (refused.value.hint or "")
        first.detach_outbox()
        second: Any = DurableDatabaseManager(SmallManager(postgres_url), box)
        second.detach_outbox()


@pytest.mark.parametrize("make", [Manager, DurableDatabaseManager.of(Manager)])
def test_wired_engine_is_not_wired_again(postgres_url: str, tmp_path: Path, make: Any) -> None:
    """Before, the end of the second wiring left the first one without an outbox."""
    engine: Any = Engine(make(postgres_url))
    with wire(engine, config=config(tmp_path / "a", postgres_url)) as wiring:
        session = begun(engine)
        with pytest.raises(ConfigError, match="has an outbox already, at .*/a") as refused:
            wire(engine, config=config(tmp_path / "b", postgres_url))
        assert "close its wiring" in (refused.value.hint or "")
        assert engine.db_manager.update_balance(Decimal(2), "x", session_id=session) is True
        assert wiring.outbox is not None
        assert wiring.outbox.status().acknowledged == 2
    engine.db_manager.close()


def in_child(action: Callable[[], Any]) -> str:
    """What `action` returned or raised in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            said = str(action())
        except BaseException as exc:  # noqa: BLE001 - it is what the parent asks for
            said = f"{type(exc).__name__}: {exc}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_call_in_a_child_that_was_forked_within_a_call_is_refused(postgres_url: str, outbox_dir: Path) -> None:
    """A thread of the parent holds the locks of the adapter, and there is none in the child that would let go."""
    with scene(postgres_url, outbox_dir, Counting) as here:
        manager = here.manager
        manager.create_trading_session("s", 100)
        manager.log_trade("A", 5)
        adapter = manager._adapter
        held = (adapter.keeper.kept.order, adapter.view.lock, adapter.replayer.carried._lock)
        goes_on, stands = threading.Event(), threading.Event()

        def hold() -> None:
            with ExitStack() as stack:
                for lock in held:
                    stack.enter_context(lock)
                stands.set()
                goes_on.wait(LONG)

        def block() -> Any:
            with manager.atomic_balance_update(5, "fill"):
                pass

        thread = threading.Thread(target=hold)
        thread.start()
        stands.wait(LONG)
        calls: list[Callable[[], Any]] = [
            lambda: manager.log_trade("B"),
            lambda: manager.create_order_journal_entry("C", "exit"),
            manager.get_current_balance,
            manager.count_trades,
            block,
        ]
        try:
            for call in calls:
                assert "cannot be used after a fork" in in_child(call)
            assert in_child(lambda: manager.log_event("in the child")) == "None"
            # To dispose of the parent's connections.
            assert in_child(lambda: manager.engine.name) == "postgresql"
        finally:
            goes_on.set()
            thread.join()


@pytest.mark.parametrize("make", [Manager, DurableDatabaseManager.of(Manager)])
def test_forked_child_can_be_wired_anew(postgres_url: str, tmp_path: Path, make: Any) -> None:
    """As a server that forks its workers after loading the program."""
    engine: Any = Engine(make(postgres_url))
    with wire(engine, config=config(tmp_path / "a", postgres_url)) as wiring:
        session = begun(engine)
        engine.db_manager.engine.dispose()

        def rewired() -> Any:
            with pytest.raises(StoreClosed, match="after a fork"):
                engine.db_manager.update_balance(Decimal(2), "child", session_id=session)
            with wire(engine, config=config(tmp_path / "b", postgres_url)) as own:
                engine.start()
                engine.db_manager.update_balance(Decimal(3), "child", session_id=session)
                engine.stop()
                assert own.outbox is not None
                return own.outbox.status().acknowledged, engine.db_manager.get_current_balance(session)

        assert in_child(rewired) == "(1, 3.0)"
        assert engine.db_manager.get_current_balance(session) == 3.0
        assert wiring.outbox is not None
        assert wiring.outbox.status().acknowledged == 1
    engine.db_manager.close()


def test_wiring_that_a_forked_child_closes_goes_on_in_the_parent(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child shares the parent's connection and the locks that its threads held at the fork."""
    engine: Any = Engine(DurableDatabaseManager.of(Manager)(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        session, relay = begun(engine), wiring.relay
        assert relay is not None
        interrupted: list[bool] = []
        monkeypatch.setattr(relay._target, "interrupt", lambda: interrupted.append(True))

        def closed() -> Any:
            wiring.close()
            return "start" not in vars(engine), relay.stop(), interrupted

        assert in_child(closed) == "(True, True, [])"
        with pytest.raises(Exception, match="held by process"):
            Outbox.open(outbox_dir)
        assert engine.db_manager.update_balance(Decimal(2), "x", session_id=session) is True
        assert relay.running
        assert in_child(relay.start).startswith("StoreClosed")
    engine.db_manager.close()


def test_holders_beside_the_engine_are_named_however_they_hold(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Manager(postgres_url)
    names = ("registries", "methods", "cached", "functions")
    modules = {name: types.ModuleType(f"held_in_{name}") for name in names}
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def given() -> Any:
        return plain

    modules["registries"].managers = {"main": [plain]}  # type: ignore[attr-defined]
    modules["methods"].log_trade = plain.log_trade  # type: ignore[attr-defined]
    modules["functions"].get = given  # type: ignore[attr-defined]
    modules["cached"].get = functools.cache(lambda: Engine(plain).db_manager)  # type: ignore[attr-defined]
    modules["cached"].get()
    # The manager's own, and not a way to its writes.
    heartbeat = threading.Timer(60, plain.get_active_session_id)
    with wire(Engine(plain), config=config(outbox_dir, postgres_url)):
        (warning,) = [record for record in caplog.records if "beside the engine" in record.message]
    said = warning.__dict__["problem"]
    assert [name for name in names if f"module held_in_{name}" not in said] == []
    assert heartbeat.name
    assert "Timer" not in said
    plain.close()


def test_wiring_again_warns_of_no_holder(postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is left of the last wiring is the outbox's own."""
    engine = Engine(Manager(postgres_url))
    for _ in range(2):
        with wire(engine, config=config(outbox_dir, postgres_url)):
            """Nothing is called."""
    assert "beside the engine" not in caplog.text
    engine.db_manager.close()


class Slotted:
    __slots__ = ("db_manager", "get_outbox_status")

    def __init__(self, db_manager: Any) -> None:
        self.db_manager = db_manager

    def enter_close_only(self, reason: str) -> None: ...


class Started(Slotted):
    __slots__ = ()

    def start(self) -> None: ...


class ReadOnly:
    def __init__(self, db_manager: Any) -> None:
        self._parts = (db_manager,)

    @property
    def db_manager(self) -> Any:
        return object.__getattribute__(self, "_parts")[0]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_parts" or "_parts" in vars(self):
            raise AttributeError(f"{name} is read-only")
        super().__setattr__(name, value)


def test_engine_without_a_dict_is_wired_and_put_back(postgres_url: str, outbox_dir: Path) -> None:
    plain = Manager(postgres_url)
    engine: Any = Slotted(plain)
    with wire(engine, config=config(outbox_dir, postgres_url)):
        assert engine.db_manager is not plain
        assert engine.get_outbox_status().pending == 0
    assert engine.db_manager is plain
    assert not hasattr(engine, "get_outbox_status")
    plain.close()


@pytest.mark.parametrize("engine_class", [Started, ReadOnly])
def test_engine_that_cannot_be_changed_is_refused(postgres_url: str, outbox_dir: Path, engine_class: Any) -> None:
    plain = DurableDatabaseManager.of(Manager)(postgres_url)
    engine = engine_class(plain)
    with pytest.raises(ConfigError, match="does not let its '(start|get_outbox_status)' be replaced") as refused:
        wire(engine, config=config(outbox_dir, postgres_url))
    assert "SimpleNamespace" in (refused.value.hint or "")
    assert engine.db_manager is plain
    plain.close()


def test_manager_that_is_made_after_the_wiring_is_shown(postgres_url: str, outbox_dir: Path, tmp_path: Path) -> None:
    """Only the log said so, and best-effort calls of an outage were kept for an outbox that never came."""
    durable = DurableDatabaseManager.of(Manager)
    engine: Any = Engine(durable(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        session = begun(engine)
        assert wiring.outbox is not None
        other: Any = durable(postgres_url)
        assert "further-manager" not in wiring.outbox.status().notices
        assert other.update_balance(Decimal(2), "x", session_id=session) is True
        shown = wiring.outbox.status().notices["further-manager"]
        assert shown.message.startswith("another Manager was made and called (update_balance)")
        assert shown.degraded
        second = Engine(other)
        with wire(second, config=config(tmp_path / "second", postgres_url)):
            assert "further-manager" not in wiring.outbox.status().notices
    other.close()
    engine.db_manager.close()


def test_plain_manager_held_beside_the_engine_is_shown(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Manager(postgres_url)
    engine: Any = Engine(plain)
    module: Any = types.ModuleType("held_beside")
    module.manager = plain
    monkeypatch.setitem(sys.modules, "held_beside", module)
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        assert wiring.outbox is not None
        assert "module held_beside" in wiring.outbox.status().notices["held-beside"].message
    del module.manager
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        assert wiring.outbox is not None
        assert "held-beside" not in wiring.outbox.status().notices
    plain.close()


def test_read_without_a_relay_does_not_blame_postgres(postgres_url: str, outbox_dir: Path) -> None:
    engine: Any = Engine(DurableDatabaseManager.of(Manager)(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url), relay_here=False):
        session = begun(engine)
        with pytest.raises(LookupError, match="without PostgreSQL: balance is not known .*; no relay is running"):
            engine.db_manager.get_current_balance(session)
    engine.db_manager.close()


def test_session_of_another_engine_sounds_no_alarm(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """An engine that starts beside another takes that one's session for the active one, and must not answer for it."""
    url = own_postgres.url()
    other = Engine(Manager(url))
    theirs = begun(other)
    engine: Any = Engine(DurableDatabaseManager.of(Manager)(url))
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        assert wiring.outbox is not None
        assert wiring.relay is not None
        outbox = wiring.outbox
        keeper = engine.db_manager._adapter.keeper
        assert keeper.view.sessions[theirs]["balance"] == 1
        ours = begun(engine)
        assert wiring.relay.drain(timeout=LONG)
        own_postgres.kill()
        assert engine.db_manager.update_balance(Decimal(2), "x", session_id=ours) is True
        own_postgres.start()
        assert other.db_manager.update_balance(Decimal(5), "x", session_id=theirs) is True
        assert wiring.relay.drain(timeout=LONG)
        until(lambda: keeper.view.sessions[theirs]["balance"] == 5)
        assert dict(outbox.status().alarms) == {}
        # From now on it is the engine's own.
        assert engine.db_manager.update_balance(Decimal(6), "x", session_id=theirs) is True
        assert other.db_manager.update_balance(Decimal(7), "x", session_id=theirs) is True
        keeper._recovered()
        until(lambda: f"diverged-session-{theirs}" in outbox.status().alarms)
    other.db_manager.close()
    engine.db_manager.close()
