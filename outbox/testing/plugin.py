"""The pytest plugin: fixtures for a project that tests its own engine against a PostgreSQL that goes away.

pytest loads this file in every project of an environment that has the package, so it imports nothing but pytest: each
fixture imports what it needs.  Under pytest-xdist each worker has a server of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox import Operation, Outbox, OutboxConfig, Relay
    from outbox.testing import PostgresServer

Outage = Callable[[], AbstractContextManager[None]]

# So long a relay may take to stop at the end of a test, in seconds.
_STOP_S = 20.0


@pytest.fixture(scope="session")
def outbox_postgres_server() -> Iterator[PostgresServer]:
    """A private PostgreSQL for the session, started at its first use and removed at the end."""
    from outbox.testing import PostgresServer

    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture
def outbox_postgres(outbox_postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the test's own, dropped at its end."""
    outbox_postgres_server.start()  # a test that stopped it may have left it so
    name = f"outbox_{uuid.uuid4().hex}"
    yield outbox_postgres_server.create_database(name)
    outbox_postgres_server.start()
    outbox_postgres_server.drop_database(name)


@pytest.fixture
def outbox_outage(outbox_postgres_server: PostgresServer) -> Outage:
    """`with outbox_outage():` kills the server with SIGKILL, and starts it again at the end of the block."""

    @contextmanager
    def outage() -> Iterator[None]:
        outbox_postgres_server.kill()
        try:
            yield
        finally:
            outbox_postgres_server.start()

    return outage


@pytest.fixture
def outbox_operations() -> Iterable[Operation]:
    """The operations of `outbox_store` and `outbox_relay`; a project that uses these overrides it."""
    pytest.fail("define a fixture `outbox_operations` that returns the operations of your program", pytrace=False)


@pytest.fixture
def outbox_config() -> OutboxConfig:
    """The settings of `outbox_store`: the defaults, with pauses short enough for a test.  May be overridden."""
    from outbox import OutboxConfig

    return OutboxConfig(backoff_base=0.01, backoff_cap=0.2, connect_timeout=2.0, min_free_mb=0)


@pytest.fixture
def outbox_store(
    tmp_path: Path, outbox_config: OutboxConfig, outbox_operations: Iterable[Operation]
) -> Iterator[Outbox]:
    """An `Outbox` of the test's own, open as an engine opens it."""
    from outbox import Outbox

    with Outbox.open(tmp_path / "outbox", outbox_config, tuple(outbox_operations)) as box:
        yield box


@pytest.fixture
def outbox_relay(
    outbox_store: Outbox, outbox_postgres: str, outbox_config: OutboxConfig, outbox_operations: Iterable[Operation]
) -> Iterator[Relay]:
    """A running relay from `outbox_store` into `outbox_postgres`; `outbox_relay.drain()` waits for it."""
    from outbox import PostgresTarget, Relay

    relay = Relay(outbox_store, PostgresTarget(outbox_postgres, outbox_operations, config=outbox_config))
    relay.start()
    yield relay
    relay.stop(_STOP_S)
