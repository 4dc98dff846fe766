"""A repeated call whose earlier one is a dead letter is never lost in silence and never stops an exit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from outbox import AlreadyRejected

from .small import Scene, scene


@pytest.fixture
def wired(postgres_url: str, tmp_path: Path) -> Iterator[Scene]:
    with scene(postgres_url, tmp_path / "outbox") as made:
        with made.manager.engine.begin() as connection:
            connection.execute(
                text("ALTER TABLE orders ADD CONSTRAINT not_bad CHECK (client_order_id NOT LIKE 'bad%')")
            )
        # A constraint that is younger than the last delivery would let the refused call wait.
        made.manager.create_trading_session("ma", 100)
        assert made.drain()
        for order_type in ("entry", "exit"):
            made.manager.create_order_journal_entry(f"bad {order_type}", order_type)
        assert made.drain()
        assert made.box.status().dead_letters == 1
        yield made


def test_repeated_call_of_a_dead_letter_raises(wired: Scene) -> None:
    with pytest.raises(AlreadyRejected, match="not_bad") as caught:
        wired.manager.create_order_journal_entry("bad entry", "entry")
    assert caught.value.entry.operation == "create_order_journal_entry"
    assert f"`atb outbox retry {caught.value.seq}`" in str(caught.value)
    wired.box.discard(caught.value.seq, "entered by hand")
    with pytest.raises(AlreadyRejected) as again:
        wired.manager.create_order_journal_entry("bad entry", "entry")
    assert "retry" not in str(again.value)


def test_repeated_exit_of_a_dead_letter_goes_on(wired: Scene, caplog: pytest.LogCaptureFixture) -> None:
    [first] = wired.box.dead_letters()
    wired.box.discard(first.seq, "the test frees the exit behind it")
    assert wired.drain()
    with caplog.at_level(logging.CRITICAL, "outbox.integrations"):
        assert wired.manager.create_order_journal_entry("bad exit", "exit") is None
    assert "not_bad" in caplog.text
    assert wired.box.status().dead_letters == 1
