"""While PostgreSQL is up, the foreign managers behind the outbox answer, refuse and write as without it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outbox.testing import PostgresServer

from .compare import Run, answer_differences, table_differences, told
from .contract import SCRIPTS, perform
from .durable import by_hand
from .journal import Journal, lines
from .kinds import KINDS
from .test_plain import loose_fills

HEALTHY = {"pending": 0, "dead_letters": 0, "alarms": {}, "health": "HEALTHY", "why": []}


@dataclass(frozen=True)
class Contract:
    plain: Run
    durable: Run
    status: dict[str, Any]


_contracts: dict[str, Contract] = {}


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    yield
    _contracts.clear()


@pytest.fixture
def contract(kind: str, postgres_server: PostgresServer, tmp_path: Path) -> Contract:
    """Both managers after all scripts, made once for all tests of a kind."""
    if kind not in _contracts:
        _contracts[kind] = _performed(kind, postgres_server, tmp_path)
    return _contracts[kind]


def _performed(kind: str, server: PostgresServer, folder: Path) -> Contract:
    names = [f"{kind}_{uuid.uuid4().hex}" for _ in range(2)]
    url, other = (server.create_database(name) for name in names)
    try:
        plain = KINDS[kind].manager(url)
        perform(kind, plain, Journal(folder / "plain"))
        plain.engine.dispose()
        with by_hand(kind, other, folder / "outbox") as (manager, status):
            perform(kind, manager, Journal(folder / "durable"))
            final = status()
            manager.engine.dispose()
        shape = KINDS[kind].shape
        return Contract(Run(shape, lines(folder / "plain"), url), Run(shape, lines(folder / "durable"), other), final)
    finally:
        for name in names:
            server.drop_database(name)


@pytest.mark.parametrize(("kind", "script"), [(kind, script) for kind in SCRIPTS for script in SCRIPTS[kind]])
def test_calls_answer_and_refuse_as_on_the_plain_manager(kind: str, script: str, contract: Contract) -> None:
    """By value and type, refusals by class and message."""
    differences = answer_differences(contract.plain, contract.durable, script)
    assert not differences, told(differences)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_rows_equal_those_of_the_plain_manager(kind: str, contract: Contract) -> None:
    differences = table_differences(contract.plain, contract.durable)
    assert not differences, told(differences)
    if kind == "typed":
        assert loose_fills(contract.durable) == []


@pytest.mark.parametrize("kind", SCRIPTS)
def test_refused_calls_leave_the_outbox_healthy(kind: str, contract: Contract) -> None:
    """The caller was told: no dead letter, no alarm."""
    assert contract.status == HEALTHY
