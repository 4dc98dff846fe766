"""Declarations of a manager's methods: roles, other names of arguments, tables with schemas, identities."""

from __future__ import annotations

from typing import Any

import pytest

from outbox import ConfigError
from outbox.integrations.operations import NOTES, TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Balance, Order, Position, Session

BY_NAME = {operation.name: operation for operation in TRADING_OPERATIONS}


def test_like_takes_over_what_is_not_given() -> None:
    made = ManagerOperation("save_trade", like="log_trade", creates="trading.history.uid", returns=7)
    assert (made.name, made.position, made.returns) == ("save_trade", Position.CLOSES, 7)
    assert made.alternatives == (("exit_order_id",),)
    assert made.id_column == ("trading", "history", "uid")
    assert not made.optional


def test_nothing_that_is_given_is_not_taken_over() -> None:
    made = ManagerOperation("save_trade", like="log_trade", creates=None, identity=(), returns=None)
    assert (made.creates, made.alternatives, made.identity, made.returns) == (None, (), (), None)
    assert made.position is Position.CLOSES
    assert ManagerOperation("cancel", like="update_order_journal", returns=None).returns is None


@pytest.mark.parametrize(
    ("creates", "found"),
    [
        ("trades", (None, "trades", "id")),
        ("trades.key", (None, "trades", "key")),
        ("bot.trades.key", ("bot", "trades", "key")),
        (None, (None, "", "id")),
    ],
)
def test_the_place_of_a_new_id_may_have_a_schema(creates: str | None, found: tuple[Any, ...]) -> None:
    assert ManagerOperation("m", creates=creates).id_column == found


def test_arguments_are_known_by_their_standard_names() -> None:
    book = ManagerOperation(
        "book", like="atomic_balance_update", args={"delta": "balance_change", "cid": "correlation_id"}
    )
    call = {"delta": 5, "cid": "c1", "reason": "fee"}
    assert (book.balance, book.amount_of(call)) == (Balance.CHANGE, 5)
    assert book.standard(call) == {"balance_change": 5, "correlation_id": "c1", "reason": "fee"}
    plain = BY_NAME["atomic_balance_update"]
    assert book.identity_of(call) == plain.identity_of({"balance_change": 5, "correlation_id": "c1", "reason": "fee"})
    assert book.identity_of({**call, "cid": None}) is None


def test_an_amount_of_its_own_name_replaces_the_standard_one() -> None:
    made = ManagerOperation("deposit", balance=Balance.CHANGE, amount="money")
    assert made.amount_of({"money": 3}) == 3
    assert ManagerOperation("set", like="update_balance", amount="cash").amount_of({"cash": 4}) == 4


def test_names_of_the_reconciliation_are_understood_either_way() -> None:
    for args in ({"pid": "position_db_id"}, {"pid": "position_id"}):
        made = ManagerOperation("reconcile", like="atomic_position_reconciliation", args=args)
        assert made.standard({"pid": 5})["position_id"] == 5
    same = ManagerOperation("reconcile", like="atomic_position_reconciliation")
    assert same.standard({"position_db_id": 5})["position_id"] == 5


def test_an_ordering_key_is_found_by_either_name() -> None:
    made = ManagerOperation("m", args={"account": "session_id"}, order_by="session_id")
    assert made.order_of({"account": 3, NOTES: {}}) == 3
    assert ManagerOperation("m", args={"account": "session_id"}, order_by="account").order_of({"account": 3}) == 3


@pytest.mark.parametrize(
    ("operation", "needed"),
    [
        (BY_NAME["update_balance"], ["new_balance"]),
        (BY_NAME["update_position"], ["position_id"]),
        (BY_NAME["log_trade"], []),
        (ManagerOperation("m", like="update_balance", args={"cash": "new_balance"}), ["new_balance"]),
        (ManagerOperation("m", identity="key", order_by="account"), ["key", "account"]),
    ],
)
def test_the_arguments_that_a_declaration_needs_are_named(operation: ManagerOperation, needed: list[str]) -> None:
    assert operation.needed() == needed


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"like": "save_trade"}, "no trading operation"),
        ({"balance": Balance.SET}, "a balance alone"),
        ({"amount": "x"}, "an amount alone"),
        ({"creates": "a.b.c.d"}, "creates 'a.b.c.d'"),
        ({"creates": "a."}, "creates 'a.'"),
        ({"args": {"a": "x", "b": "x"}}, "one standard name"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ManagerOperation("m", **fields)


def test_only_keys_that_callers_make_identify_a_call() -> None:
    identities = {name for operation in TRADING_OPERATIONS for names in operation.alternatives for name in names}
    assert identities == {"client_order_id", "entry_order_id", "exit_order_id", "correlation_id", "reason"}


def test_trading_operations_declare_their_roles() -> None:
    assert {name for name, one in BY_NAME.items() if one.session} == {"create_trading_session", "end_trading_session"}
    assert BY_NAME["create_trading_session"].session is Session.BEGINS
    assert {name for name, one in BY_NAME.items() if one.order is Order.OPENS} == {"create_order_journal_entry"}
    assert not any(BY_NAME[name].has_role for name in ("log_event", "log_account_snapshot"))
