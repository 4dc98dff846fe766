"""Functions, procedures and triggers of PostgreSQL write tables that the manager's code does not name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import SmallManager, Trade, scene

OPERATIONS = (
    *TRADING_OPERATIONS,
    *map(ManagerOperation, ("note", "settle")),
    ManagerOperation("note_known", returns=True),
    ManagerRead("lines", keep_last=True),
    ManagerRead("others", keep_last=True),
)
EVENTS = (*TRADING_OPERATIONS, *map(ManagerOperation, ("event", "event_row")), ManagerRead("halts", keep_last=True))
SERVER = (
    "CREATE TABLE IF NOT EXISTS lines (n serial PRIMARY KEY, said text)",
    "CREATE TABLE IF NOT EXISTS others (said text)",
    """CREATE OR REPLACE FUNCTION keep_line() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO lines (said) VALUES (NEW.note); RETURN NEW; END $$""",
    "DROP TRIGGER IF EXISTS keep_line ON trades",
    "CREATE TRIGGER keep_line AFTER INSERT ON trades FOR EACH ROW EXECUTE FUNCTION keep_line()",
    """CREATE OR REPLACE FUNCTION pay(session int, fee numeric) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO account_balances (session_id, total)
       SELECT session, total - fee FROM account_balances WHERE session_id = session ORDER BY id DESC LIMIT 1 $$""",
    "CREATE TABLE IF NOT EXISTS halts (kind text)",
    """CREATE OR REPLACE FUNCTION keep_event(kind text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN
       IF kind = 'halt' THEN INSERT INTO halts VALUES (kind); ELSE INSERT INTO others VALUES (kind); END IF;
       RETURN kind;
    END $$""",
)


class ServerSide(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            for statement in SERVER:
                connection.execute(text(statement))

    def note(self, said: str) -> None:
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO trades (symbol, note) VALUES ('x', :said)"), {"said": said})

    def note_known(self, said: str) -> bool:
        if self.symbol_of(said):
            return False
        self.note(said)
        return True

    def symbol_of(self, said: str) -> Any:
        with self.session_factory() as session:
            return session.execute(text("SELECT symbol FROM trades WHERE note = :said"), {"said": said}).scalar()

    def settle(self, fee: Any) -> None:
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO others VALUES ('settled')"))
            session.execute(text("SELECT pay(:session, :fee)"), {"session": self._current_session_id, "fee": fee})

    def event(self, kind: str) -> None:
        with self.session_factory.begin() as session:
            session.execute(text("SELECT keep_event(:kind)"), {"kind": kind})

    def event_row(self, kind: str) -> None:
        with self.session_factory.begin() as session:
            session.execute(text("SELECT * FROM keep_event(:kind)"), {"kind": kind})

    def halts(self) -> int:
        with self.session_factory() as session:
            return int(session.execute(text("SELECT count(*) FROM halts")).scalar_one())

    def lines(self) -> list[Any]:
        with self.session_factory() as session:
            return list(session.execute(text("SELECT said FROM lines ORDER BY n")).scalars())

    def others(self) -> int:
        with self.session_factory() as session:
            return int(session.execute(text("SELECT count(*) FROM others")).scalar_one())


def test_what_the_server_writes_is_learned(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", ServerSide, OPERATIONS, write_behind=True, wait_s=0.02) as made:
        manager = made.manager
        session = manager.create_trading_session("s", Decimal(100))
        manager.note("a")
        manager.settle(Decimal(5))
        assert made.drain()
        assert (manager.lines(), manager.others(), manager.get_current_balance()) == (["a"], 1, 95)
        until(lambda: manager._adapter.view.is_sure(session))
        manager.note("b")
        with pytest.raises(UnknownLocally, match="note"):
            manager.lines()
        assert (manager.others(), manager.get_current_balance()) == (1, 95)
        manager.settle(Decimal(7))
        with pytest.raises(UnknownLocally, match="settle"):
            manager.get_current_balance()
        assert made.drain()
        assert (manager.lines(), manager.get_current_balance()) == (["a", "b"], 88)
        assert made.box.status().alarms == {}


@pytest.mark.parametrize("name", ["event", "event_row"])
@pytest.mark.parametrize("earlier", [0, 1])
def test_function_may_write_another_table(postgres_url: str, tmp_path: Path, name: str, earlier: int) -> None:
    """A kill switch that was tripped in an outage read as not tripped, since earlier events wrote another table."""
    with scene(postgres_url, tmp_path / "outbox", ServerSide, EVENTS, write_behind=True, wait_s=0.02) as made:
        for _ in range(earlier):
            getattr(made.manager, name)("tick")
        assert made.drain()
        assert made.manager.halts() == 0
        getattr(made.manager, name)("halt")
        with pytest.raises(UnknownLocally, match=name):
            made.manager.halts()


def test_calls_that_are_not_applied_show_nothing(postgres_url: str, tmp_path: Path) -> None:
    """After three of them it was never looked again at what such calls write."""
    with scene(postgres_url, tmp_path / "outbox", ServerSide, OPERATIONS, write_behind=True, wait_s=0.02) as made:
        manager = made.manager
        manager.create_trading_session("s", Decimal(100))
        manager.note("a")
        assert made.drain()
        for _ in range(3):
            manager.note_known("a")
            made.drain()
            (dead,) = made.box.dead_letters()
            made.box.discard(dead.seq, "known")
        manager.note_known("b")
        assert made.drain()
        assert "lines" in manager._adapter.view.learning.written.of("note_known")


class Numbering(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            connection.execute(
                text("""CREATE OR REPLACE FUNCTION make_trade(name text) RETURNS int LANGUAGE sql AS
                $$ INSERT INTO trades (symbol) VALUES (name) RETURNING id $$""")
            )

    def make(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            return int(session.execute(text("SELECT make_trade(:name)"), {"name": symbol}).scalar_one())

    def keep(self, trade: dict[str, Any]) -> int:
        trade["id"] = self.make(trade["symbol"])
        return int(trade["id"])

    def describe(self, symbol: str) -> dict[str, Any]:
        return {"id": self.make(symbol), "symbol": symbol}

    def annotate(self, trade_id: int, note: str) -> None:
        with self.session_factory.begin() as session:
            session.get_one(Trade, trade_id).note = note

    def mention(self, trade_id: int) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=f"see {trade_id}"))


@pytest.mark.parametrize("has_session", [True, False])
def test_id_that_a_function_gives_is_not_told(has_session: bool, postgres_url: str, outbox_dir: Path) -> None:
    operations = (
        *TRADING_OPERATIONS, ManagerOperation("make", creates="trades"), ManagerOperation("annotate"),
        ManagerOperation("keep", creates="trades", sets_id={"trade": "id"}),
        ManagerOperation("describe", creates="trades"), ManagerOperation("mention", best_effort=True),
    )  # fmt: skip
    with scene(postgres_url, outbox_dir, Numbering, operations) as here:
        here.relay.start()
        if has_session:
            here.manager.create_trading_session("ma", 100)
        first = here.manager.make("A")
        here.manager.annotate(first, "seen")
        here.manager.keep({"symbol": "kept", "id": None})
        for symbol in "CD":
            here.manager.describe(symbol)
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        told = here.manager.make("B")
        assert told
        assert f"made {told}" == "made <the answer of make, not known without PostgreSQL>"
        for use in (
            lambda: here.manager.annotate(told, "lost"), lambda: here.manager.keep({"symbol": "C", "id": [told]}),
            lambda: int(told), lambda: told == first,
        ):  # fmt: skip
            with pytest.raises(UnknownLocally, match="PostgreSQL numbers its rows itself"):
                use()
        # A best-effort call raises nothing.
        here.manager.mention(told)
        trade = {"symbol": "kept", "id": None}
        here.manager.keep(trade)
        assert trade["id"] is None
        described = here.manager.describe("E")
        assert described["symbol"] == "E"
        with pytest.raises(UnknownLocally, match="PostgreSQL numbers its rows itself"):
            described["id"]
        here.box.pauses.end()
        assert here.drain()
        assert here.rows("SELECT symbol, note FROM trades ORDER BY id") == [
            ("A", "seen"), ("kept", None), ("C", None), ("D", None), ("B", None), ("kept", None), ("E", None)
        ]  # fmt: skip
        assert not here.box.status().needs_operator
