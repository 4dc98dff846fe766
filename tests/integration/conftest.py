"""Fixtures for integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outbox.testing import PostgresServer
from tests.unit.fakes.failover import Past


@pytest.fixture
def past(postgres_server: PostgresServer) -> Iterator[Past]:
    """A database of the test's own that can be set back to an older state."""
    past = Past(postgres_server)
    yield past
    past.close()
