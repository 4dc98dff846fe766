"""The foreign engines behind the outbox, wired in each documented way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.clock import Patience
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from tests.unit.fakes.waiting import LONG, until

from .declarations import OPERATIONS
from .journal import Journal
from .kinds import KINDS
from .process import Order, Parts, serve

ATTRIBUTES = {"classic": "db_manager", "typed": "store"}
HALTS = {"classic": "_enter_close_only_mode", "typed": "no_more_entries"}

# Calls of about three bars.
LAST_BARS = 20

Status = Callable[[], dict[str, Any]]


def config(url: str, folder: Path) -> OutboxConfig:
    return OutboxConfig(dir=str(folder), database_url=url, backoff_base=0.05, backoff_cap=0.3, min_free_mb=16)


@contextlib.contextmanager
def wired(order: Order, journal: Journal, closes: list[float]) -> Iterator[Parts]:
    """An engine in front of which the outbox stands; its status is told when all is delivered."""
    kind, mode, url, folder = order["kind"], order["mode"], order["url"], Path(order["dir"])
    if mode == "default":
        with by_hand(kind, url, folder) as (manager, status):
            yield KINDS[kind].engine(manager, journal, closes), status, partial(learn, manager)
        return
    durable_class: Any = DurableDatabaseManager.of(KINDS[kind].manager, operations=OPERATIONS[kind], wait_s=LONG)
    engine = KINDS[kind].engine(durable_class(url), journal, closes)
    with wire(
        engine,
        config=config(url, folder),
        manager_attribute=ATTRIBUTES[kind],
        halt_method=HALTS[kind],
        operations=OPERATIONS[kind],
        write_behind=mode == "write_behind",
        drain_s=LONG,
    ):
        yield engine, lambda: drained(engine.get_outbox_status), partial(learn, getattr(engine, ATTRIBUTES[kind]))


@contextlib.contextmanager
def by_hand(kind: str, url: str, folder: Path) -> Iterator[tuple[Any, Status]]:
    """The parts without an engine object."""
    with Outbox.open(folder, config(url, folder)) as box:
        manager = DurableDatabaseManager(
            partial(KINDS[kind].manager, url), box, operations=OPERATIONS[kind], wait_s=LONG
        )
        with Relay(box, PostgresTarget(url, manager.outbox_operations)):
            yield manager, lambda: drained(box.status)
        manager.detach_outbox()


def learn(manager: Any) -> None:
    """Wait until the last bars at most are undelivered, and what the relay has learned before is on disk.

    A program that is killed in an outage knows no more than that in its next life, and a busy machine may keep the
    threads waiting that do it.
    """
    adapter = manager._durable.adapter
    outbox, keeper = adapter.outbox, adapter.keeper

    def pending() -> int:
        return int(outbox.status().pending)

    until(lambda: pending() <= LAST_BARS or outbox.progress.delivering is False, pending)
    until(lambda: keeper.view.learning.version == keeper.kept.learned_version)


def drained(status: Callable[[], Any]) -> dict[str, Any]:
    """Wait until nothing is pending and nothing passing is wrong, or until nothing has moved for a while."""
    now = status()
    patience = Patience(LONG, time.monotonic)
    while (now.pending or now.degraded) and not patience.is_lost((now.pending, tuple(now.degraded))):
        time.sleep(0.05)
        now = status()
    return {
        "pending": now.pending,
        "dead_letters": now.dead_letters,
        "alarms": now.alarms,
        "health": now.health.name,
        "why": [*now.needs_operator, *now.degraded],
    }


if __name__ == "__main__":
    serve(wired)
