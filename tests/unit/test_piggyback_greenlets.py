"""A program whose threads are greenlets is warned: psycopg2 would block all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import psycopg2.extensions
import pytest

from outbox.postgres.piggyback import warn_of_greenlets


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    warn_of_greenlets.cache_clear()
    yield
    psycopg2.extensions.set_wait_callback(None)
    warn_of_greenlets.cache_clear()


def _patch(monkeypatch: pytest.MonkeyPatch, *patched: str) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=patched.__contains__))


def test_greenlets_that_the_driver_blocks_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _patch(monkeypatch, "threading")
    warn_of_greenlets()
    warn_of_greenlets()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "psycogreen" in caplog.text


@pytest.mark.parametrize("case", ["threads", "not_patched", "wait_callback"])
def test_program_that_goes_on_meanwhile_is_not_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    if case != "threads":
        _patch(monkeypatch, "threading" if case == "wait_callback" else "ssl")
    if case == "wait_callback":
        psycopg2.extensions.set_wait_callback(lambda connection: None)
    warn_of_greenlets()
    assert caplog.records == []
