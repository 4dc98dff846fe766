"""The host's code in the outbox's threads and at the end of the interpreter: nothing is waited for that cannot come."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

from .scripted import Engine, config
from .small import SmallManager

ROOT = Path(__file__).resolve().parents[3]


# A sequence is not rolled back.
FAILS_ONCE = (
    "CREATE SEQUENCE tries",
    """CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN
       IF nextval('tries') = 1 THEN RAISE EXCEPTION 'starting up' USING ERRCODE = '57P03'; END IF;
       RETURN NEW;
    END $$""",
    "CREATE TRIGGER fail_once BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION fail_once()",
)


class IntoTheManager(logging.Handler):
    """Writes records by the engine's manager, as many hosts do; notes in which thread, and whether it waited."""

    def __init__(self, manager: Any) -> None:
        super().__init__()
        self.manager = manager
        self.calls: list[tuple[str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.calls.append((threading.current_thread().name, self.manager._durable.adapter.delivery.prompt()))
        self.manager.log_trade("logged", record.getMessage())


def test_logging_handler_that_writes_does_not_delay_the_relay(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the relay's thread it waited for its own delivery, and all others waited with it."""
    defaults = DurableDatabaseManager.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "wait_s", LONG / 4)
    engine: Any = Engine(DurableDatabaseManager.of(SmallManager)(postgres_url))
    logger = logging.getLogger("outbox.relay")
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        assert wiring.relay is not None
        engine.db_manager.create_trading_session("s", 1000)
        handler = IntoTheManager(engine.db_manager)
        monkeypatch.setattr(logger, "handlers", [handler])
        for statement in FAILS_ONCE:
            query(postgres_url, statement)
        engine.db_manager.log_trade("BTC")
        assert wiring.relay.drain(timeout=LONG)
        monkeypatch.setattr(logger, "handlers", [])
        assert wiring.relay.drain(timeout=LONG)
        assert handler.calls
        assert set(handler.calls) == {("outbox-relay", False)}
        logged = query(postgres_url, "SELECT count(*) FROM trades WHERE symbol = 'logged'")
        assert logged == [(len(handler.calls),)]
        assert engine.db_manager._durable.adapter.delivery.prompt()
    engine.db_manager.engine.dispose()


def test_call_at_the_end_of_the_interpreter_is_refused_by_name(postgres_url: str, outbox_dir: Path) -> None:
    """In `__del__` of a module's object nothing can be imported; it raised ImportError or AttributeError."""
    program = f"""
        import os, sys
        from outbox.integrations.durable import DurableDatabaseManager
        from outbox.integrations.trading_engine import wire
        from tests.integration.adapter.scripted import Engine, config
        from tests.integration.adapter.small import SmallManager

        class Last:
            def __del__(self):
                try:
                    manager.log_trade("BTC")
                except Exception as exc:
                    os.write(1, f"{{type(exc).__name__}}: {{exc}}; ".encode())
                try:
                    with manager.atomic_balance_update(-5, "fee"):
                        os.write(1, b"entered")
                except Exception as exc:
                    os.write(1, type(exc).__name__.encode())
                manager.log_event("best effort")
                os.write(1, b"; ended")

        engine = Engine(DurableDatabaseManager.of(SmallManager)({postgres_url!r}))
        wiring = wire(engine, config=config({str(outbox_dir)!r}, {postgres_url!r}))
        manager = engine.db_manager
        manager.create_trading_session("s", 1000)
        sys.modules["last"] = Last()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, timeout=LONG, cwd=ROOT, text=True)
    assert ended.stdout == (
        "DurabilityError: the interpreter ends and stores nothing more (close the outbox before, or in atexit); "
        "DurabilityError; ended"
    ), ended.stderr
    assert query(postgres_url, "SELECT count(*) FROM trades") == [(0,)]
