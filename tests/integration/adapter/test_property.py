"""Random sequences of calls, outages, crashes and restarts: in the end PostgreSQL holds what a plain manager would.

Two managers get the same calls: a plain one on a database that is always there, and a wrapped one on a database that
comes and goes, in a process that is killed now and then, also in the middle of a call.

`OUTBOX_TEST_EXAMPLES=1000` makes it a long run with new sequences each time.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import uuid
from bisect import bisect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.models import Base
from outbox.postgres.receipts import TABLE
from outbox.testing import PostgresServer
from tests.unit.fakes.proxy import Proxy
from tests.unit.fakes.waiting import LONG

from .lives import MOMENTS, Killed, Life, Raised

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
TRADE = {
    "symbol": "IBM", "side": "long", "entry_price": 1, "exit_price": 2, "size": Decimal("0.5"), "entry_time": NOW,
    "exit_time": NOW + timedelta(hours=1), "exit_reason": "x", "strategy_name": "s",
}  # fmt: skip
EXAMPLES = int(os.environ.get("OUTBOX_TEST_EXAMPLES", "20"))
amounts = st.integers(-300, 300).map(lambda cents: Decimal(cents) / 100)
prices = st.integers(1, 500).map(Decimal)


class Two(RuleBasedStateMachine):
    """`plain` and `life` are called alike; positions are known by their client_order_id."""

    server: PostgresServer
    databases: tuple[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-property-"))
        plain_url, self.direct_url = (self.server.url(name) for name in self.databases)
        self.plain = DatabaseManager(plain_url, pool_size=1)
        self.proxy = Proxy(self.direct_url)
        self.proxy.__enter__()
        self.up = True
        self.life: Life | None = None
        self.write_behind = False
        self.made = 0
        self.session_ids = (0, 0)
        # client_order_id -> (plain id, wrapped id)
        self.open: dict[str, tuple[int, int]] = {}
        # When each step began: a call's times in both databases must lie in the same step.
        self.steps: list[datetime] = []

    # -- the program's life

    def begin_life(self) -> None:
        factory = functools.partial(DatabaseManager, self.proxy.url, pool_size=1)
        self.life = Life(factory, self.folder / "outbox", self.proxy.url, write_behind=self.write_behind)

    def resume(self) -> None:
        """A new life, which finds its session as an engine does."""
        self.begin_life()
        assert self.wrapped.get_active_session_id() == self.session_ids[1]
        self.wrapped.set_current_session(self.session_ids[1])

    @property
    def wrapped(self) -> Life:
        assert self.life is not None
        return self.life

    @initialize(write_behind=st.booleans())
    def first_life(self, write_behind: bool) -> None:
        # Refusals are seen where callers wait for them.
        self.begin_life()
        self.teach()
        self.wrapped.close()
        self.write_behind = write_behind
        self.begin_life()
        self.begin_session()

    def teach(self) -> None:
        """A day on which PostgreSQL shows what each kind of call does; the plain manager has the same one."""
        self.begin_session()
        self.both(lambda manager, _: block(manager, Decimal(-5000), "too much"))
        for turn in (1, 2):
            self.change(Decimal(turn) / 7)
            for side in ("long", "short"):
                for journalled in (True, False):
                    self.enter(side, Decimal(turn + 100), journalled, None)
                    ids = self.open[f"c{self.made}"]
                    self.teach_position(ids, Decimal(turn))
                self.leave_by_trade(self.open.popitem()[1], Decimal(turn))
                self.leave_by_close(self.open.popitem()[1])
                self.teach_trades_of_every_share(side, turn)
            for status in ("filled", "cancelled"):
                self.journal()
                for name in ("submitted", status):
                    self.resolved(f"j{self.made}", name)
        ids = self.session_ids
        self.both(lambda manager, which: manager.end_trading_session(ids[which], Decimal(100)))
        assert self.wrapped.ask("drain", LONG)

    def change(self, amount: Decimal) -> None:
        self.both(lambda manager, _: block(manager, amount, "change"))

    def leave_by_trade(self, ids: tuple[int, int], pnl: Decimal) -> None:
        trade = {**TRADE, "pnl": pnl, "exit_order_id": f"t-{self.made}-{pnl}"}
        self.both(lambda manager, which: manager.log_trade(**trade, position_id=ids[which]) and None)

    def leave_by_close(self, ids: tuple[int, int], dies: str | None = None) -> None:
        self.both(lambda manager, which: manager.close_position(ids[which], Decimal(3), NOW, Decimal(1)), dies)

    def teach_position(self, ids: tuple[int, int], turn: Decimal) -> None:
        for act in (
            lambda m, which: m.update_position(ids[which], stop_loss=90 + turn),
            # Twice, so that the level is not taken for the count; what takes the rest is learned by itself.  The first
            # one before a scale-in, so that the level is not taken for the count of those either.
            lambda m, which: m.apply_partial_exit_update(ids[which], turn / 20, 60 + turn, 1),
            lambda m, which: m.apply_scale_in_update(ids[which], turn / 20, 70 + turn, 1),
            lambda m, which: m.apply_partial_exit_update(ids[which], turn / 20, 70 + turn, 1),
            lambda m, which: m.apply_partial_exit_update(ids[which], Decimal(9), Decimal(9), 1),
            # The level is 2 in the first turn and 1 in the second, so that it is not taken for the count.
            lambda m, which: m.apply_scale_in_update(ids[which], turn / 20, 50 + turn, 3 - int(turn)),
            lambda m, which: m.apply_partial_exit_update(ids[which], Decimal("0.5"), 40 + turn, 3 - int(turn)),
        ):
            self.both(act)

    def teach_trades_of_every_share(self, side: str, turn: int) -> None:
        """Trades of the whole position, of less and of more than is left: the view tells these apart."""
        for changed in (
            lambda m, id_: None,
            lambda m, id_: m.apply_scale_in_update(id_, Decimal("0.25"), Decimal(9), 1),
            lambda m, id_: m.apply_partial_exit_update(id_, Decimal("0.2"), Decimal(9), 1),
        ):
            self.enter(side, Decimal(turn + 200), True, None)
            ids = self.open.popitem()[1]
            self.both(lambda manager, which: changed(manager, ids[which]))  # noqa: B023 - called at once
            self.leave_by_trade(ids, Decimal(turn) / 3)

    def begin_session(self) -> None:
        self.steps.append(datetime.now(UTC))
        managers: tuple[Any, Any] = (self.plain, self.wrapped)
        made = [manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(100)) for manager in managers]
        self.session_ids = (made[0], made[1])
        self.open.clear()
        for manager in managers:
            assert manager.update_balance(Decimal(100), "start")

    @rule(profit=amounts)
    def next_session(self, profit: Decimal) -> None:
        ids = self.session_ids
        self.both(lambda manager, which: manager.end_trading_session(ids[which], Decimal(100) + profit))
        self.begin_session()

    @precondition(lambda self: self.up)
    @rule()
    def outage(self) -> None:
        self.proxy.refuse()
        self.proxy.disconnect()
        self.up = False

    @precondition(lambda self: not self.up)
    @rule()
    def recovery(self) -> None:
        self.proxy.accept()
        self.up = True

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        self.wrapped.close() if orderly else self.wrapped.kill()
        self.resume()

    def both(self, act: Callable[[Any, int], Any], dies: str | None = None) -> None:
        """`act(manager, 0 or 1)` on both; they must say the same.

        `dies`: the wrapped one's program dies at that moment, if it comes; the next one makes the call again.
        """
        self.steps.append(datetime.now(UTC))
        expected = said(act, self.plain, 0)
        try:
            if dies is not None:
                self.wrapped.ask("die", dies)
            told = said(act, self.wrapped, 1)
            if dies is not None:
                # The moment has not come, as in an outage; it must not come in a later step.
                self.wrapped.ask("live")
        except Killed:
            self.resume()
            told = said(act, self.wrapped, 1)
        assert told == expected

    # -- calls, made on both

    @rule(amount=amounts, dies=st.none() | st.sampled_from(MOMENTS))
    def change_balance(self, amount: Decimal, dies: str | None) -> None:
        self.made += 1
        key = f"b{self.made}" if dies else None
        self.both(lambda manager, _: block(manager, amount, "change", correlation_id=key), dies)

    @rule(amount=st.integers(0, 500).map(Decimal))
    def set_balance(self, amount: Decimal) -> None:
        self.both(lambda manager, _: manager.update_balance(amount, "set"))

    @rule(
        side=st.sampled_from(["long", "short"]),
        price=prices,
        journalled=st.booleans(),
        dies=st.none() | st.sampled_from(MOMENTS),
    )
    def enter(self, side: str, price: Decimal, journalled: bool, dies: str | None) -> None:
        self.made += 1
        name = f"c{self.made}"
        ids: dict[int, int] = {}

        def act(manager: Any, which: int) -> None:
            if journalled:
                buys = "buy" if side == "long" else "sell"
                session_id = self.session_ids[which]
                manager.create_order_journal_entry(session_id, name, "IBM", buys, "entry", Decimal(1), "s")
            ids[which] = manager.log_position(
                "IBM", side, price, Decimal("0.5"), "s", f"o-{name}", quantity=Decimal(2), client_order_id=name
            )

        self.both(act, dies)
        self.open[name] = (ids[0], ids[1])

    @rule()
    def journal(self) -> None:
        self.made += 1
        name = f"j{self.made}"

        def act(manager: Any, which: int) -> None:
            manager.create_order_journal_entry(self.session_ids[which], name, "I", "buy", "x", Decimal(1), "s")

        self.both(act)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), status=st.sampled_from(["submitted", "filled", "cancelled"]))
    def resolve(self, data: st.DataObject, status: str) -> None:
        names = [row["client_order_id"] for row in self.plain.get_unresolved_orders()]
        if names:
            name = data.draw(st.sampled_from(names))
            self.resolved(name, status)

    def resolved(self, name: str, status: str) -> None:
        self.both(lambda manager, _: manager.update_order_journal(name, status, exchange_order_id=f"e-{name}"))

    def drawn(self, data: st.DataObject) -> tuple[str, tuple[int, int]]:
        name = data.draw(st.sampled_from(sorted(self.open)))
        return name, self.open[name]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), stop=prices)
    def trail(self, data: st.DataObject, stop: Decimal) -> None:
        _, ids = self.drawn(data)
        self.both(lambda manager, which: manager.update_position(ids[which], stop_loss=stop))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), delta=st.sampled_from(["0.1", "0.2", "0.4"]))
    def take_some_off(self, data: st.DataObject, delta: str) -> None:
        _, ids = self.drawn(data)
        self.both(lambda manager, which: manager.apply_partial_exit_update(ids[which], Decimal(delta), Decimal(9), 1))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def scale_in(self, data: st.DataObject) -> None:
        _, ids = self.drawn(data)
        self.both(lambda manager, which: manager.apply_scale_in_update(ids[which], Decimal("0.25"), Decimal(9), 1))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), pnl=amounts, dies=st.none() | st.sampled_from(MOMENTS))
    def leave(self, data: st.DataObject, pnl: Decimal, dies: str | None) -> None:
        """With enough balance in one block with the profit, else the trade alone."""
        name, ids = self.drawn(data)
        del self.open[name]
        # A call that is made again after a crash is known by a key of the caller's.
        trade = {**TRADE, "pnl": pnl, "exit_order_id": f"x-{name}"}
        together = self.plain.get_current_balance() + float(pnl) >= 0

        def act(manager: Any, which: int) -> Any:
            if together:
                inside = [("log_trade", (), {**trade, "position_id": ids[which]})]
                return block(manager, pnl, "trade", correlation_id=name, inside=inside)
            manager.log_trade(**trade, position_id=ids[which])
            return None

        self.both(act, dies)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), dies=st.none() | st.sampled_from(MOMENTS))
    def close(self, data: st.DataObject, dies: str | None) -> None:
        name, ids = self.drawn(data)
        del self.open[name]
        self.leave_by_close(ids, dies)

    @rule()
    def event(self) -> None:
        self.both(lambda manager, _: manager.log_event("e", "m") and None)

    # -- what must hold

    @invariant()
    def reads_agree(self) -> None:
        if self.life is None:
            return
        assert self.wrapped.get_current_balance() == self.plain.get_current_balance()
        fields = ("client_order_id", "current_size", "size", "stop_loss", "side", "partial_exits_taken")
        shown = []
        managers: tuple[Any, Any] = (self.plain, self.wrapped)
        for which, manager in enumerate(managers):
            rows = manager.get_active_positions()
            assert {row["client_order_id"]: row["id"] for row in rows} == {
                name: ids[which] for name, ids in self.open.items()
            }
            shown.append(sorted([row[name] for name in fields] for row in rows))
        assert shown[0] == shown[1]
        orders = [[row["client_order_id"] for row in m.get_unresolved_orders()] for m in managers]
        assert orders[0] == orders[1]

    def teardown(self) -> None:
        try:
            if self.life is not None:
                self.end()
        finally:
            if self.life is not None:
                self.life.kill()
            self.plain.close()
            self.proxy.__exit__(None, None, None)
            for name in self.databases:
                emptied = ", ".join(table.name for table in Base.metadata.sorted_tables)
                self.server.execute(f"TRUNCATE {emptied} RESTART IDENTITY", database=name)
                self.server.execute(f"DROP TABLE IF EXISTS {TABLE}, outbox_watermarks", database=name)
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """Everything is delivered, and both databases hold the same."""
        if not self.up:
            self.proxy.accept()
        assert self.wrapped.ask("drain", LONG)
        assert self.wrapped.ask("status") == (0, [], {})
        self.wrapped.close()
        wrapped = DatabaseManager(self.direct_url, pool_size=1)
        try:
            assert self.tables(wrapped) == self.tables(self.plain)
        finally:
            wrapped.close()

    def tables(self, manager: DatabaseManager) -> dict[str, list[Any]]:
        """All rows in the order in which they were made, with the steps for times; positions by client_order_id."""
        found: dict[str, list[Any]] = {}
        with manager.engine.connect() as connection:
            named = {row.id: row.client_order_id for row in connection.execute(text("SELECT * FROM positions"))}
            sessions = connection.execute(text("SELECT id FROM trading_sessions ORDER BY id")).scalars().all()
            seen: dict[str, Callable[[Any], Any]] = {
                # Ids have gaps, and a text may have one or a time in it.
                "message": lambda text_: re.sub("[0-9]+", "N", text_ or ""),
                "id": lambda _: None,
                "session_name": lambda _: None,
                "position_id": lambda id_: named.get(id_),
                "session_id": lambda id_: None if id_ is None else sessions.index(id_),
            }
            for table in Base.metadata.sorted_tables:
                order = "last_updated" if table.name == "account_balances" else "id"
                rows = connection.execute(text(f"SELECT * FROM {table.name} ORDER BY {order}")).mappings()
                found[table.name] = [[seen.get(name, self.timed)(value) for name, value in row.items()] for row in rows]
        # Ids that a call takes on the side are handed out in another order than those of calls.
        found["orders"].sort(key=str)
        return found

    def timed(self, value: Any) -> Any:
        """A time of the clock as the number of its step; anything else as it is."""
        if not isinstance(value, datetime) or value.year == NOW.year:
            return value
        return "step", bisect(self.steps, value.replace(tzinfo=UTC))


def said(act: Callable[[Any, int], Any], manager: Any, which: int) -> Any:
    """What it returned, or that it was a ValueError."""
    try:
        return act(manager, which)
    except ValueError:
        return ValueError
    except Raised as exc:
        if "ValueError" not in exc.names:
            raise
        return ValueError


def block(manager: Any, *args: Any, inside: Any = (), **named: Any) -> dict[str, Any]:
    """`atomic_balance_update` of either manager, with calls inside; what it was told."""
    if isinstance(manager, Life):
        told: dict[str, Any] = manager.block(*args, inside=inside, **named)
        return told
    with manager.atomic_balance_update(*args, **named) as change:
        for name, values, more in inside:
            getattr(manager, name)(*values, **more)
        return {name: getattr(change, name) for name in ("old_balance", "new_balance", "change")}


def test_random_lives_end_as_if_there_had_been_no_outage(postgres_server: PostgresServer) -> None:
    databases = tuple(f"{kind}_{uuid.uuid4().hex}" for kind in ("plain", "wrapped"))
    for name in databases:
        url = postgres_server.create_database(name)
        DatabaseManager(url, pool_size=1).close()
    machine = type("Machine", (Two,), {"server": postgres_server, "databases": databases})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            derandomize="OUTBOX_TEST_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            database=None,
        ),
    )
    for name in databases:
        postgres_server.drop_database(name)
