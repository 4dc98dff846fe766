"""Fixtures for tests of the adapter."""

from __future__ import annotations

import pytest

from outbox import registered
from outbox.integrations.durable import DurableDatabaseManager
from tests.unit.fakes.waiting import LONG


@pytest.fixture(autouse=True)
def classes_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bind` allows every class that is loaded, and other tests need some that are unknown."""
    monkeypatch.setattr(registered, "enums", dict(registered.enums))
    monkeypatch.setattr(registered, "records", dict(registered.records))


@pytest.fixture(autouse=True)
def patient_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers wait for a delivery as long as a busy machine takes; the default of 2 s makes it look like an outage."""
    defaults = DurableDatabaseManager.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "wait_s", LONG)
