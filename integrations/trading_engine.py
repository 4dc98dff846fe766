"""Wiring: puts an outbox between a trading engine and its DatabaseManager, and takes it away again.

By convention, not by type: the engine has an attribute that holds its manager, and may have a method for "no new
entries, exits go on", which is called when the outbox halts.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from .. import Outbox, OutboxConfig, OutboxStatus, PostgresTarget, Relay
from .durable import DurableDatabaseManager, operations

_log = logging.getLogger("outbox.integrations")


class Wiring:
    """A wired engine.  `close` (or the end of a `with` block) undoes it; both may be called twice."""

    def __init__(self, engine: Any, outbox: Outbox | None, relay: Relay | None, manager: Any, attribute: str) -> None:
        """Use `wire` instead."""
        self.outbox, self.relay = outbox, relay
        self._engine, self._manager, self._attribute = engine, manager, attribute

    def get_outbox_status(self) -> OutboxStatus | None:
        """The outbox's status; None where it is disabled."""
        return None if self.outbox is None else self.outbox.status()

    def close(self) -> None:
        """Stop the relay, give the engine its own manager back and close the outbox."""
        if self.outbox is None or self.relay is None:
            return
        self.relay.stop()
        setattr(self._engine, self._attribute, self._manager)
        self.outbox.close()
        self.outbox = self.relay = None

    def __enter__(self) -> Wiring:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def wire(
    engine: Any,
    *,
    config: OutboxConfig | None = None,
    manager_attribute: str = "db_manager",
    halt_method: str = "enter_close_only",
    catch_up_s: float = 30.0,
) -> Wiring:
    """Make the critical writes of `engine` durable; call it before the engine starts.

    Settings come from the environment unless `config` is given; `OUTBOX_ENABLED=false` leaves the engine as it was.
    What an earlier process left in the outbox is delivered first, for at most `catch_up_s` seconds, so that the engine
    starts from its own last writes.  Raises `ConfigError`, `StoreLocked` and what opening an outbox raises, or
    `TimeoutError` when the rest could not be delivered in time.
    """
    settings = config or OutboxConfig.from_env()
    if not settings.enabled:
        return Wiring(engine, None, None, None, manager_attribute)
    manager = getattr(engine, manager_attribute)
    declared = operations(lambda: manager)
    url = settings.database_url or manager.engine.url.render_as_string(hide_password=False)
    outbox = Outbox.open(config=settings, operations=declared)
    relay = Relay(outbox, PostgresTarget(url, declared, config=settings))
    try:
        relay.start()
        if not relay.drain(timeout=catch_up_s):
            raise TimeoutError(f"the outbox at {outbox.path} was not drained within {catch_up_s} s: {outbox.status()}")
        halt = getattr(engine, halt_method, None)
        setattr(engine, manager_attribute, DurableDatabaseManager(manager, outbox, on_halt=halt))
    except BaseException:
        relay.stop()
        outbox.close()
        raise
    _log.info("engine wired", extra={"outbox": str(outbox.path)})
    return Wiring(engine, outbox, relay, manager, manager_attribute)
