"""The answer of a method that makes a row and was never seen is the new id unless its code returns another value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import SmallManager, Trade, scene


class Answering(SmallManager):
    def _saved(self, symbol: str):  # type: ignore[no-untyped-def]
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol)
            session.add(trade)
            session.flush()
            return trade.id

    def id_of_a_helper(self, symbol: str):  # type: ignore[no-untyped-def]
        made = self._saved(symbol)
        return made or None

    def id_by_annotation(self, symbol: str) -> int | None:
        made: dict[str, int] = {"one": self._saved(symbol)}
        return made["one"]

    def by_other_code(self, symbol: str):  # type: ignore[no-untyped-def]
        return max([0, self._saved(symbol)])

    def pair(self, symbol: str):  # type: ignore[no-untyped-def]
        return self._saved(symbol), True

    def text(self, symbol: str):  # type: ignore[no-untyped-def]
        return str(self._saved(symbol))

    def by_annotation(self, symbol: str) -> dict[str, Any]:
        return {"id": self._saved(symbol)}

    def argument(self, client_id: str):  # type: ignore[no-untyped-def]
        self._saved(client_id)
        return client_id


IDS, OTHERS = ("id_of_a_helper", "id_by_annotation", "by_other_code"), ("pair", "text", "by_annotation", "argument")
OPERATIONS = (*TRADING_OPERATIONS, *(ManagerOperation(name, creates="trades") for name in (*IDS, *OTHERS)))


def test_first_answer_in_an_outage_is_no_id_against_the_code(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Answering, OPERATIONS) as here:
        manager = here.manager
        here.relay.start()
        manager.create_trading_session("ma", 100)
        manager.log_trade("A")
        assert here.drain()
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        ids = {name: getattr(manager, name)(name) for name in IDS}
        for name in OTHERS:
            answer = getattr(manager, name)(name)
            with pytest.raises(UnknownLocally, match="it was never seen"):
                answer["id"]
        here.box.pauses.end()
        assert here.drain()
        written = dict(here.rows("SELECT symbol, id FROM trades"))
        assert {name: written[name] for name in IDS} == ids
        assert written.keys() >= set(OTHERS)


def test_id_that_was_seen_as_a_text_is_answered_as_one(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Answering, OPERATIONS) as here:
        here.relay.start()
        here.manager.create_trading_session("ma", 100)
        for symbol in ("A", "B"):
            here.manager.text(symbol)
        assert here.drain()
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        told = here.manager.text("C")
        here.box.pauses.end()
        assert here.drain()
        assert [(told,)] == here.rows("SELECT CAST(id AS text) FROM trades WHERE symbol = 'C'")


class Truthful(SmallManager):
    def save(self, symbol: str) -> bool:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))
        return True

    def number(self, symbol: str, number: int) -> bool:
        with self.session_factory.begin() as session:
            change = update(Trade).where(Trade.symbol == symbol).values(number=number)
            return session.execute(change).rowcount > 0  # type: ignore[attr-defined, no-any-return]

    def saved_or_known(self, symbol: str):  # type: ignore[no-untyped-def]
        with self.session_factory.begin() as session:
            if session.scalar(select(Trade.id).where(Trade.symbol == symbol)):
                return "known"
            session.add(Trade(symbol=symbol))
        return "saved"


TRUTHFUL = (
    *TRADING_OPERATIONS, ManagerOperation("save", creates="trades"), ManagerOperation("number"),
    ManagerOperation("saved_or_known"),
)  # fmt: skip


def test_first_answer_is_true_where_false_means_refused(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Truthful, TRUTHFUL) as here:
        manager = here.manager
        assert [manager.save("A"), manager.number("A", 1), manager.saved_or_known("B")] == [True, True, None]
        assert here.drain()
        assert here.rows("SELECT symbol, number FROM trades ORDER BY id") == [("A", 1), ("B", None)]


def test_true_that_was_seen_once_is_answered_again(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Truthful, TRUTHFUL) as here:
        here.relay.start()
        assert (here.manager.save("A"), here.manager.number("A", 1)) == (True, True)
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        assert (here.manager.save("B"), here.manager.number("B", 2)) == (True, True)
        here.box.pauses.end()
        assert here.drain()
        assert here.rows("SELECT symbol, number FROM trades ORDER BY id") == [("A", 1), ("B", 2)]
