"""Every local answer is the manager's own answer to the same question: value, type, keys and order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.view.explanations import alike
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .days import Engine, FloatEngine, NastyEngine, PaperEngine
from .floats import FloatManager
from .nastier import NASTIER_OPERATIONS, NastierManager
from .nasty import NastyManager


@dataclass(frozen=True)
class Kind:
    manager: Callable[..., Any]
    engine: type[Engine]
    operations: Any = TRADING_OPERATIONS


KINDS = {
    "paper": Kind(DatabaseManager, PaperEngine),
    "nasty": Kind(NastyManager, NastyEngine),
    "nastier": Kind(NastierManager, NastyEngine, NASTIER_OPERATIONS),
    "floats": Kind(FloatManager, FloatEngine),
}
QUESTIONS: dict[str, Callable[[Any, int], Any]] = {
    "get_current_balance": lambda m, _: m.get_current_balance(),
    "get_current_balance of": lambda m, id_: m.get_current_balance(id_),
    "recover_last_balance": lambda m, id_: m.recover_last_balance(id_),
    "get_active_positions": lambda m, _: m.get_active_positions(),
    "get_active_positions of": lambda m, id_: m.get_active_positions(id_),
    "get_unresolved_orders": lambda m, _: m.get_unresolved_orders(),
    "get_unresolved_orders of": lambda m, id_: m.get_unresolved_orders(id_),
    "get_active_session_id": lambda m, _: m.get_active_session_id(),
    "get_last_session_id": lambda m, _: m.get_last_session_id(),
}


def answers(kind: Kind, manager: Any, session_id: int) -> dict[str, Any]:
    asked = {name: ask for name, ask in QUESTIONS.items() if hasattr(kind.manager, name.partition(" ")[0])}
    return {name: ask(manager, session_id) for name, ask in asked.items()}


def assert_alike(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Field by field, so that a difference is seen at once."""
    assert here.keys() == there.keys()
    for name, value in here.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            assert [row["id"] for row in value] == [row["id"] for row in there[name]], name
            for row, other in zip(value, there[name], strict=True):
                assert row.keys() == other.keys(), name
                for key in row:
                    assert alike(row[key], other[key]), (name, key, row[key], other[key])
        else:
            assert alike(value, there[name]), (name, value, there[name])


def assert_told_alike(here: list[Any], there: list[Any]) -> None:
    """What blocks were told, in containers of the same classes."""
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert type(one) is type(other)
        assert alike(one if isinstance(one, dict) else vars(one), other if isinstance(other, dict) else vars(other))


@contextmanager
def running(kind: Kind, server: PostgresServer, directory: Path, **settings: Any) -> Iterator[Any]:
    factory = functools.partial(kind.manager, server.url())
    with Outbox.open(directory, OutboxConfig(backoff_base=0.05, backoff_cap=0.3)) as box:
        durable: Any = DurableDatabaseManager(factory, box, kind.operations, **settings)
        with Relay(box, PostgresTarget(server.url(), durable.outbox_operations, config=box.config)) as relay:
            try:
                yield durable, box, relay
            finally:
                relay.stop()
                durable.detach_outbox()
                if durable._host.built is not None:
                    durable._host.built.close()


@pytest.mark.parametrize("write_behind", [False, True], ids=["waits", "write_behind"])
@pytest.mark.parametrize("name", KINDS)
def test_local_answers_are_those_of_the_manager(
    own_postgres: PostgresServer, postgres_url: str, outbox_dir: Path, name: str, write_behind: bool
) -> None:
    """The same days on a plain manager, whose PostgreSQL is always there, show what blocks have to be told."""
    kind = KINDS[name]
    twin = kind.manager(postgres_url)
    with running(kind, own_postgres, outbox_dir, write_behind=write_behind) as (durable, box, relay):
        engine, plain = kind.engine(durable), kind.engine(twin)
        for one in (plain, engine):
            one.begin()
            for turn in range(4):
                one.work(turn)
        assert relay.drain(timeout=LONG)
        assert_alike(answers(kind, durable, engine.session_id), answers(kind, durable._host.built, engine.session_id))
        own_postgres.kill()
        for turn in range(4, 7):
            engine.work(turn)
            plain.work(turn)
        assert_told_alike(engine.told, plain.told)
        here = answers(kind, durable, engine.session_id)
    with running(kind, own_postgres, outbox_dir, write_behind=write_behind) as (durable, box, relay):
        engine.manager = durable
        durable._current_session_id = engine.session_id
        assert_alike(answers(kind, durable, engine.session_id), here)
        engine.work(7)
        plain.work(7)
        assert_told_alike(engine.told, plain.told)
        here = answers(kind, durable, engine.session_id)
        own_postgres.start()
        assert relay.drain(timeout=LONG)
        assert_alike(here, answers(kind, durable._host.manager(), engine.session_id))
        status = box.status()
        assert (status.pending, status.dead_letters, dict(status.alarms)) == (0, 0, {})
    twin.close()
