"""Random sequences of calls, outages, crashes and restarts: in the end PostgreSQL holds what a plain manager would.

Two managers get the same calls: a plain one on a database that is always there, and a wrapped one on a database that
comes and goes, in a program that is killed now and then.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import uuid
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

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.models import Base
from outbox.testing import PostgresServer
from tests.unit.fakes.proxy import Proxy

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
EXAMPLES = int(os.environ.get("OUTBOX_TEST_EXAMPLES", "12"))
amounts = st.integers(-300, 300).map(lambda cents: Decimal(cents) / 100)
prices = st.integers(1, 500).map(Decimal)

# What differs between the two by design: times, and ids that are handed out in blocks.
IDS = {"id", "position_id"}
UNSEEN = {"session_name", "message"}


class Two(RuleBasedStateMachine):
    """`plain` and `wrapped` are called alike; positions are known by their client_order_id."""

    server: PostgresServer

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-property-"))
        self.names = [f"{kind}_{uuid.uuid4().hex}" for kind in ("plain", "wrapped")]
        plain_url, url = (self.server.create_database(name) for name in self.names)
        self.plain = DatabaseManager(plain_url, pool_size=1)
        self.proxy = Proxy(url)
        self.proxy.__enter__()
        self.direct_url = url
        self.up = True
        self.box: Outbox | None = None
        self.made = 0
        # client_order_id -> (plain id, wrapped id)
        self.open: dict[str, tuple[int, int]] = {}
        self.begin_life()

    # -- the program's life

    def begin_life(self) -> None:
        config = OutboxConfig(backoff_base=0.01, backoff_cap=0.05)
        self.box = Outbox.open(self.folder / "outbox", config)
        factory = functools.partial(DatabaseManager, self.proxy.url, pool_size=1, connect_timeout=2)
        self.wrapped: Any = DurableDatabaseManager(factory, self.box, wait_s=10.0)
        self.relay = Relay(self.box, PostgresTarget(self.proxy.url, self.wrapped.outbox_operations, config=config))
        self.relay.start()

    def end_life(self) -> None:
        self.relay.stop()
        self.wrapped.detach_outbox()
        if self.wrapped._host.built is not None:
            self.wrapped.close()
        assert self.box is not None
        self.box.close()

    @initialize()
    def first_session(self) -> None:
        for manager in (self.plain, self.wrapped):
            self.session_id = manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(100))
            assert manager.update_balance(Decimal(100), "start")

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

    @rule()
    def restart(self) -> None:
        self.end_life()
        self.begin_life()
        assert self.wrapped.get_active_session_id() == self.session_id
        self.wrapped.set_current_session(self.session_id)

    @rule()
    def crash(self) -> None:
        """The background work dies unsaved, as with SIGKILL: the view is as old as its last checkpoint."""
        self.wrapped._adapter.keeper.checkpoint = lambda: None
        self.restart()

    # -- calls, made on both

    @rule(amount=amounts)
    def change_balance(self, amount: Decimal) -> None:
        told: list[Any] = []
        for manager in (self.plain, self.wrapped):
            try:
                with manager.atomic_balance_update(amount, "change") as change:
                    told.append((change.old_balance, change.new_balance, change.change))
            except ValueError:
                told.append(ValueError)
        assert told[0] == told[1]

    @rule(amount=st.integers(0, 500).map(Decimal))
    def set_balance(self, amount: Decimal) -> None:
        for manager in (self.plain, self.wrapped):
            assert manager.update_balance(amount, "set") is True

    @rule(side=st.sampled_from(["long", "short"]), price=prices, journalled=st.booleans())
    def enter(self, side: str, price: Decimal, journalled: bool) -> None:
        self.made += 1
        name = f"c{self.made}"
        ids = []
        for manager in (self.plain, self.wrapped):
            if journalled:
                buys = "buy" if side == "long" else "sell"
                manager.create_order_journal_entry(self.session_id, name, "IBM", buys, "entry", Decimal(1), "s")
            ids.append(
                manager.log_position(
                    "IBM", side, price, Decimal("0.5"), "s", f"o-{name}", quantity=Decimal(2), client_order_id=name
                )
            )
        self.open[name] = (ids[0], ids[1])

    @rule()
    def journal(self) -> None:
        self.made += 1
        for manager in (self.plain, self.wrapped):
            manager.create_order_journal_entry(self.session_id, f"j{self.made}", "I", "buy", "x", Decimal(1), "s")

    @precondition(lambda self: self.made)
    @rule(data=st.data(), status=st.sampled_from(["submitted", "filled", "cancelled"]))
    def resolve(self, data: st.DataObject, status: str) -> None:
        names = [row["client_order_id"] for row in self.plain.get_unresolved_orders()]
        if names:
            name = data.draw(st.sampled_from(names))
            for manager in (self.plain, self.wrapped):
                assert manager.update_order_journal(name, status, exchange_order_id=f"e-{name}") is True

    def drawn(self, data: st.DataObject) -> tuple[str, list[tuple[Any, int]]]:
        name = data.draw(st.sampled_from(sorted(self.open)))
        return name, list(zip((self.plain, self.wrapped), self.open[name], strict=True))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), stop=prices)
    def trail(self, data: st.DataObject, stop: Decimal) -> None:
        for manager, position_id in self.drawn(data)[1]:
            assert manager.update_position(position_id, stop_loss=stop) is True

    @precondition(lambda self: self.open)
    @rule(data=st.data(), delta=st.sampled_from(["0.1", "0.2", "0.4"]))
    def take_some_off(self, data: st.DataObject, delta: str) -> None:
        said: list[Any] = []
        for manager, position_id in self.drawn(data)[1]:
            try:
                said.append(manager.apply_partial_exit_update(position_id, Decimal(delta), Decimal(9), 1))
            except ValueError:
                said.append(ValueError)
        assert said[0] == said[1]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def scale_in(self, data: st.DataObject) -> None:
        for manager, position_id in self.drawn(data)[1]:
            manager.apply_scale_in_update(position_id, Decimal("0.25"), Decimal(9), 1)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), pnl=amounts, together=st.booleans())
    def leave(self, data: st.DataObject, pnl: Decimal, together: bool) -> None:
        name, both = self.drawn(data)
        del self.open[name]
        trade = {
            "symbol": "IBM", "side": "long", "entry_price": 1, "exit_price": 2, "size": Decimal("0.5"), "pnl": pnl,
            "entry_time": NOW, "exit_time": NOW + timedelta(hours=1), "exit_reason": "x", "strategy_name": "s",
        }  # fmt: skip
        for manager, position_id in both:
            if together and manager.get_current_balance() + float(pnl) >= 0:
                with manager.atomic_balance_update(pnl, "trade", correlation_id=name):
                    manager.log_trade(**trade, position_id=position_id)
            else:
                manager.log_trade(**trade, position_id=position_id)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name, both = self.drawn(data)
        del self.open[name]
        for manager, position_id in both:
            assert manager.close_position(position_id, Decimal(3), NOW, Decimal(1)) is True

    @rule()
    def event(self) -> None:
        for manager in (self.plain, self.wrapped):
            manager.log_event("e", "m")

    # -- what must hold

    @invariant()
    def reads_agree(self) -> None:
        if not hasattr(self, "session_id"):
            return
        assert self.wrapped.get_current_balance() == self.plain.get_current_balance()
        shown = []
        for manager in (self.plain, self.wrapped):
            rows = manager.get_active_positions()
            fields = ("client_order_id", "current_size", "size", "stop_loss", "side", "partial_exits_taken")
            shown.append(sorted([row[name] for name in fields] for row in rows))
        assert shown[0] == shown[1]
        orders = [{row["client_order_id"] for row in m.get_unresolved_orders()} for m in (self.plain, self.wrapped)]
        assert orders[0] == orders[1]

    def teardown(self) -> None:
        try:
            if not self.up:
                self.proxy.accept()
            assert self.relay.drain(timeout=30)
            assert self.box is not None
            status = self.box.status()
            assert (status.pending, status.dead_letters, status.alarms) == (0, 0, {})
            self.end_life()
            wrapped = DatabaseManager(self.direct_url, pool_size=1)
            try:
                assert tables(wrapped) == tables(self.plain)
            finally:
                wrapped.close()
        finally:
            self.plain.close()
            self.proxy.__exit__(None, None, None)
            for name in self.names:
                self.server.drop_database(name)
            shutil.rmtree(self.folder)


def tables(manager: DatabaseManager) -> dict[str, list[Any]]:
    """All rows in the order in which they were made, without times; positions by their client_order_id."""
    found: dict[str, list[Any]] = {}
    with manager.engine.connect() as connection:
        named = {row.id: row.client_order_id for row in connection.execute(text("SELECT * FROM positions"))}
        for table in Base.metadata.sorted_tables:
            order = "last_updated" if table.name == "account_balances" else "id"
            rows = connection.execute(text(f"SELECT * FROM {table.name} ORDER BY {order}")).mappings()
            found[table.name] = [
                [
                    named.get(value) if name == "position_id" else value
                    for name, value in row.items()
                    if seen(name, value)
                ]
                for row in rows
            ]
    # Ids that a call takes on the side are handed out in another order than those of calls.
    found["orders"].sort(key=str)
    return found


def seen(name: str, value: Any) -> bool:
    return name != "id" and name not in UNSEEN and (not isinstance(value, datetime) or value.year == NOW.year)


def test_random_lives_end_as_if_there_had_been_no_outage(postgres_server: PostgresServer) -> None:
    machine = type("Machine", (Two,), {"server": postgres_server})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            derandomize="OUTBOX_TEST_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            database=None,
        ),
    )
