"""From before `wire` to after its block: nothing written in between goes past the outbox or stays behind."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError, Outbox, OutboxError, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .scripted import Engine, Manager, config

Durable = DurableDatabaseManager.of(Manager)
AWAY = "postgresql://nobody@127.0.0.1:1/none"


class Component:
    """Takes the manager in its constructor, as trackers, loggers and executors do."""

    def __init__(self, db: Any) -> None:
        self.db, self.log = db, db.log_event


class Composed(Engine):
    def __init__(self, db_manager: Any) -> None:
        super().__init__(db_manager)
        self.executor = Component(db_manager)
        self.parts = {"tracker": [Component(db_manager)]}
        self.callback = functools.partial(db_manager.update_balance, update_reason="callback")


def test_components_of_the_engine_write_through_the_outbox(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    plain = Manager(url)
    engine: Any = Composed(plain)
    before = dict(vars(engine))
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        session_id = engine.executor.db.create_trading_session("s", "I", "1d", "paper", Decimal(1))
        own_postgres.kill()
        assert engine.parts["tracker"][0].db.update_balance(Decimal(2), "x") is True
        assert engine.callback(Decimal(3)) is True
        assert engine.executor.log("e", "m") is None
        assert engine.db_manager.record_fill(4) is True
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
    assert {name: value for name, value in vars(engine).items() if name in before} == before
    assert engine.executor.db is engine.db_manager is plain
    assert plain.get_current_balance(session_id) == 4.0
    plain.close()


class Separate(Engine):
    """Its component makes a manager of its own."""

    def __init__(self, db_manager: Any, other: Any) -> None:
        super().__init__(db_manager)
        self.executor = Component(other)


@pytest.mark.parametrize("manager_class", [Manager, Durable])
def test_further_manager_of_a_component_is_shown(
    postgres_url: str, outbox_dir: Path, manager_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    managers = [manager_class(postgres_url), manager_class(postgres_url)]
    engine: Any = Separate(*managers)
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        assert wiring.outbox is not None
        shown = wiring.outbox.status().notices["other-managers"].message
        assert shown.startswith("further managers are held at Separate.executor.db, and their writes are not durable")
        assert shown in caplog.text
    engine.executor = Component(engine.db_manager)
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        assert wiring.outbox is not None
        assert "other-managers" not in wiring.outbox.status().notices


def test_holder_that_cannot_be_changed_refuses_the_wiring(postgres_url: str, outbox_dir: Path) -> None:
    plain = Manager(postgres_url)
    engine: Any = Composed(plain)
    engine.frozen = {plain: "a key"}
    before = dict(vars(engine))
    with pytest.raises(ConfigError, match=r"a key of Composed\.frozen"):
        wire(engine, config=config(outbox_dir, postgres_url))
    assert vars(engine) == before
    assert engine.executor.db is plain
    plain.close()


def test_holder_beside_the_engine_is_warned_of(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Manager(postgres_url)
    beside = Component(plain)
    with wire(Engine(plain), config=config(outbox_dir, postgres_url)):
        (warning,) = [record for record in caplog.records if "beside the engine" in record.message]
        assert "Component" in warning.__dict__["problem"]
    assert beside.db is plain
    plain.close()


def test_halt_method_that_is_missing_is_refused_or_shown(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Unstoppable:
        def __init__(self, db_manager: Any) -> None:
            self.db_manager = db_manager

    engine: Any = Unstoppable(Durable(postgres_url))
    with pytest.raises(ConfigError, match="halt_method='enter_close_onyl'"):
        wire(engine, config=config(outbox_dir, postgres_url), halt_method="enter_close_onyl")
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        status = wiring.get_outbox_status()
        assert status is not None
        assert "enter_close_only" in status.notices["halt-method"].message
        assert status.health.name == "HEALTHY"
    assert "enter_close_only" in caplog.text
    engine.enter_close_only = print
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        status = wiring.get_outbox_status()
        assert status is not None
        assert "halt-method" not in status.notices
    engine.db_manager.close()


def test_log_that_the_program_has_disabled_is_shown(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Durable(postgres_url))
    for disabled in (True, False):
        # As `logging.config.dictConfig` does with loggers that it does not name.
        monkeypatch.setattr(logging.getLogger("outbox.integrations"), "disabled", disabled)
        with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
            status = wiring.get_outbox_status()
            assert status is not None
            assert ("log-disabled" in status.notices) is disabled
    engine.db_manager.close()


def test_best_effort_call_before_wire_is_recorded_later(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    Manager(url).close()
    with wire(Engine(Durable(url)), config=config(outbox_dir, url)):
        """The store knows the manager afterwards."""
    own_postgres.kill()
    manager: Any = Durable(url)
    details = {"attempt": 1}
    assert manager.log_event("start", "the engine is being made", details=details) is None
    details.clear()
    with pytest.raises(OutboxError, match="PostgreSQL is away"):
        manager.update_balance(Decimal(1), "x", session_id=1)
    engine: Any = Engine(manager)
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        assert wiring.outbox is not None
        (entry,) = wiring.outbox.pending()
        assert (entry.operation, entry.args["details"]) == ("log_event", {"attempt": 1})
        own_postgres.start()
    manager.close()


def test_best_effort_call_before_wire_is_served_while_it_can_be(postgres_url: str, outbox_dir: Path) -> None:
    manager: Any = Durable(postgres_url)
    manager.log_event("start", "the engine is being made")
    with wire(Engine(manager), config=config(outbox_dir, postgres_url)) as wiring:
        assert wiring.outbox is not None
        assert wiring.outbox.status().acknowledged == 0
    with manager.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT event_type FROM system_events").scalar_one() == "start"
    with pytest.raises(OutboxError, match="detached"):
        manager.update_balance(Decimal(1), "x", session_id=1)
    assert manager.log_event("late", "after the block") is None
    manager.close()


def test_end_of_the_block_delivers_what_is_left(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, drain, apply = threading.Event(), Relay.drain, PostgresTarget.apply

    def draining(relay: Relay, timeout: float) -> bool:
        ending.set()
        return drain(relay, timeout)

    def applied_at_the_end(*args: Any) -> Any:
        assert ending.wait(LONG)
        return apply(*args)

    monkeypatch.setattr(Relay, "drain", draining)
    monkeypatch.setattr(PostgresTarget, "apply", applied_at_the_end)
    manager: Any = Durable(postgres_url)
    with wire(Engine(manager), config=config(outbox_dir, postgres_url), write_behind=True, drain_s=LONG) as wiring:
        session_id = manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
        for number in range(200):
            manager.update_balance(Decimal(number), "x")
        assert wiring.outbox is not None
        assert wiring.outbox.status().pending
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 0
    assert manager._host.built.get_current_balance(session_id) == 199.0
    manager.close()


def test_end_of_the_block_in_an_outage_waits_no_longer_than_drain_s(
    own_postgres: PostgresServer, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    drain = Relay.drain

    def noting(relay: Relay, timeout: float) -> bool:
        waits.append(timeout)
        return drain(relay, timeout)

    monkeypatch.setattr(Relay, "drain", noting)
    url = own_postgres.url()
    manager: Any = Durable(url)
    with wire(Engine(manager), config=config(outbox_dir, url), drain_s=0.5):
        manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
        own_postgres.kill()
        manager.update_balance(Decimal(2), "x")
    assert waits == [0.5]
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending >= 1
    manager.close()


def test_wire_tells_calls_how_long_they_wait(postgres_url: str, outbox_dir: Path) -> None:
    for given, wait_s in ((8.0, 8.0), (None, 3.0)):
        manager: Any = DurableDatabaseManager.of(Manager, wait_s=3.0)(postgres_url)
        with wire(Engine(manager), config=config(outbox_dir, postgres_url), wait_s=given):
            assert manager._adapter.delivery.wait_s == wait_s
        manager.close()


def test_error_in_the_block_comes_out_and_what_is_left_is_delivered(postgres_url: str, outbox_dir: Path) -> None:
    manager: Any = Durable(postgres_url)
    with (
        pytest.raises(SystemExit),
        wire(Engine(manager), config=config(outbox_dir, postgres_url), write_behind=True, drain_s=LONG),
    ):
        manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
        raise SystemExit(0)
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 0
    manager.close()


def test_blocking_start_ends_by_stop_and_everything_is_delivered(postgres_url: str, outbox_dir: Path) -> None:
    class Blocking(Engine):
        def __init__(self, db_manager: Any) -> None:
            super().__init__(db_manager)
            self.running, self.stopping = threading.Event(), threading.Event()

        def start(self) -> None:
            self.session_id = self.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
            self.running.set()
            while not self.stopping.wait(0.001):
                self.db_manager.update_balance(Decimal(2), "loop")
            self.db_manager.end_trading_session(self.session_id, Decimal(2))

        def stop(self) -> None:
            self.stopping.set()

    manager: Any = Durable(postgres_url)
    engine: Any = Blocking(manager)

    def stop_when_running() -> None:
        assert engine.running.wait(LONG)
        engine.stop()

    with wire(engine, config=config(outbox_dir, postgres_url), write_behind=True, drain_s=LONG):
        stopper = threading.Thread(target=stop_when_running)
        stopper.start()
        engine.start()
        stopper.join()
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 0
    assert manager._host.built.get_active_session_id() is None
    manager.close()


def test_write_after_stop_is_delivered_at_the_end_of_the_block(postgres_url: str, outbox_dir: Path) -> None:
    manager: Any = Durable(postgres_url)
    engine: Any = Engine(manager)
    with wire(engine, config=config(outbox_dir, postgres_url), write_behind=True, drain_s=LONG) as wiring:
        manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
        engine.stop()
        assert wiring._winding_down is not None
        wiring._winding_down.join(LONG)
        manager.update_balance(Decimal(2), "after stop")
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 0
    manager.close()


class AsyncEngine:
    def __init__(self, db_manager: Any) -> None:
        self.db_manager = db_manager

    async def start(self) -> str:
        await asyncio.sleep(0)
        return "started"

    async def stop(self) -> str:
        """Closes its positions, which takes its time."""
        await asyncio.sleep(0.3)
        self.db_manager.update_balance(Decimal(2), "closed", session_id=self.session_id)
        return "stopped"

    session_id: int


def test_relay_stays_until_a_coroutine_has_stopped_the_engine(postgres_url: str, outbox_dir: Path) -> None:
    engine: Any = AsyncEngine(Manager(postgres_url))

    async def life() -> None:
        with wire(engine, config=config(outbox_dir, postgres_url), drain_s=LONG) as wiring:
            assert await engine.start() == "started"
            engine.session_id = engine.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
            assert await engine.stop() == "stopped"
            assert wiring._winding_down is not None
            await asyncio.to_thread(wiring._winding_down.join, LONG)
            assert engine.get_outbox_status().pending == 0
            assert not wiring.relay.running  # type: ignore[union-attr]

    asyncio.run(life())


def test_relay_stays_until_a_blocking_start_has_returned(postgres_url: str, outbox_dir: Path) -> None:
    class Last(Engine):
        def start(self) -> None:
            self.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
            self.stop()
            assert wiring.relay is not None
            until(lambda: waiting.is_set() or not wiring.relay.running)  # type: ignore[union-attr]
            assert wiring.relay.running
            self.db_manager.update_balance(Decimal(2), "on the way out")

    waiting = threading.Event()

    class Seen(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.set()
            return super().wait(timeout)

    manager: Any = Durable(postgres_url)
    engine: Any = Last(manager)
    with wire(engine, config=config(outbox_dir, postgres_url), write_behind=True, drain_s=LONG) as wiring:
        wiring._out_of_start = Seen()
        engine.start()
        assert wiring._winding_down is not None
        wiring._winding_down.join(LONG)
        assert wiring.relay is not None
        assert not wiring.relay.running
        assert wiring.outbox is not None
        assert wiring.outbox.status().pending == 0
    manager.close()


PROGRAM = """
import signal, sys, time
from decimal import Decimal
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager as Plain
from outbox.integrations.trading_engine import wire

DatabaseManager = DurableDatabaseManager.of(Plain)


class Engine:
    def __init__(self):
        self.db_manager = DatabaseManager(sys.argv[1])

    def start(self):
        self.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        number = 0
        while True:
            self.db_manager.update_balance(Decimal(number := number + 1), "loop")
            print(number, flush=True)

    def stop(self):
        sys.exit(0)


engine = Engine()
with wire(engine, write_behind=True, drain_s=float(sys.argv[2])):
    engine.start()
"""


def test_stop_from_a_signal_handler_delivers_what_is_left(postgres_url: str, outbox_dir: Path) -> None:
    environment = {**os.environ, "OUTBOX_DIR": str(outbox_dir), "DATABASE_URL": postgres_url}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, postgres_url, str(LONG)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 100:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read().split()
        assert process.wait(LONG) == 0
    last = int(rest[-1]) if rest else 100
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 0
    manager = Manager(postgres_url)
    session_id = manager.get_active_session_id()
    assert session_id is not None
    assert manager.get_current_balance(session_id) >= last
    manager.close()
