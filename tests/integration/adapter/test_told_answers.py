"""Answers that an outage makes of a call's arguments, as its declaration says, and rows as the call was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation

from .small import SmallManager, Trade, scene


class Ticketing(SmallManager):
    def annotate(self, symbol: str, details: dict[str, Any], **more: Any) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol, note=json.dumps([details, more])))

    def save_ticket(self, ticket: dict[str, Any], note: str = "none") -> tuple[str, str, bool]:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=ticket["ref"], note=note))
        return ticket["ref"], note, True


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("annotate"),
    ManagerOperation("save_ticket", returns=lambda call: (call["ticket"]["ref"], call["note"], True)),
)


@pytest.mark.parametrize("is_up", [True, False])
def test_answer_is_made_of_the_arguments_where_nobody_waits(is_up: bool, postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Ticketing, OPERATIONS) as here:
        if is_up:
            here.relay.start()
        assert here.manager.save_ticket({"ref": "A-1"}) == ("A-1", "none", True)
        assert here.manager.save_ticket({"ref": "A-2"}, note="late") == ("A-2", "late", True)
        assert here.drain()
        assert here.rows("SELECT symbol, note FROM trades ORDER BY id") == [("A-1", "none"), ("A-2", "late")]


@pytest.mark.parametrize("is_up", [True, False])
def test_text_of_a_dict_has_its_keys_in_order(is_up: bool, postgres_url: str, outbox_dir: Path) -> None:
    details = {"z": 1, "a": [{"n": 1, "b": {"y": 2, "x": 3}}], "m": {}}
    with scene(postgres_url, outbox_dir, Ticketing, OPERATIONS) as here:
        here.manager._host.built.annotate("plain", details, why="w", also="a")
        if is_up:
            here.relay.start()
        here.manager.annotate("durable", details, why="w", also="a")
        assert here.drain()
        assert here.rows("SELECT count(DISTINCT note) FROM trades") == [(1,)]


def test_answer_that_cannot_be_made_stores_nothing(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Ticketing, OPERATIONS) as here:
        with pytest.raises(TypeError, match="indices"):
            here.manager.save_ticket(["no", "ref"])
        assert here.box.status().pending == 0
