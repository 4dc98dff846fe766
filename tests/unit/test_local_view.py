"""The local view: what is known without PostgreSQL, what calls do to it once they are learned, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from outbox.integrations.operations import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.plain_data import plain
from outbox.integrations.roles import is_exit_order
from outbox.integrations.upkeep.managers_code import unanswerable
from outbox.integrations.view import checks
from outbox.integrations.view.effects import Effect
from outbox.integrations.view.explanations import Space
from outbox.integrations.view.folds import fold, seen_of
from outbox.integrations.view.local_view import LocalView, UnknownLocally, encoded, exact
from outbox.integrations.view.row_forms import RowForms
from outbox.integrations.view.rows import Tables, resolve, resolved_before
from outbox.integrations.view.seen import Seen

AT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
BY_NAME = {operation.name: operation for operation in TRADING_OPERATIONS}


class Side(Enum):
    LONG = "long"


def tables_of(positions: Any, orders: Any) -> Tables:
    tables, unknown = RowForms().tables_of(positions, orders)
    assert not unknown
    return tables


def did(view: LocalView, name: str, session: int | None = 1, id_: int | None = None, **call: Any) -> bool:
    """A durable call of the trading operation `name`; whether its effect was known."""
    return fold(view, seen_of(view, BY_NAME[name], call, noted(session, id_)))


def noted(session: int | None, id_: int | None) -> dict[str, Any]:
    return {"session": session, "at": AT, "seq": 1} | ({} if id_ is None else {"id": id_})


def taught(view: LocalView, name: str, after: Tables, id_: int | None = None, **call: Any) -> None:
    """PostgreSQL showed what the call does to session 1."""
    seen = deepcopy(seen_of(view, BY_NAME[name], call, noted(1, id_)).tables)
    view.learning.learn(Seen(BY_NAME[name], BY_NAME[name].standard(call), noted(1, id_), seen), after)


@pytest.fixture
def view() -> LocalView:
    """Session 1 as PostgreSQL showed it: a balance of 100, position 5 and order 9."""
    view = LocalView()
    tables = tables_of([{"id": 5, "side": "LONG", "size": 0.5, "orders": []}], [{"id": 9, "client_order_id": "o"}])
    view.observe_session(1, 100.0, tables, active=True)
    view.learning.possible_scales = {8}
    view.learning.compared.agrees = {"get_active_session_id": True, "get_last_session_id": True}
    return view


def learned_balances(view: LocalView) -> None:
    for name, amount in (("update_balance", "new_balance"), ("atomic_balance_update", "balance_change")):
        seen = Seen(BY_NAME[name], {amount: 4}, noted(1, None), {})
        view.learning.learn_balance(seen, 0, 4)


def test_empty_local_view_knows_no_answer() -> None:
    view = LocalView()
    for ask in (
        lambda: view.balance(1),
        lambda: view.balance(None),
        view.active_session_id,
        lambda: view.last_session_id(AT),
        lambda: view.open_positions(None),
        lambda: view.open_positions(1),
        lambda: view.unresolved_orders(None),
    ):
        with pytest.raises(UnknownLocally):
            ask()


def test_an_unknown_session_is_an_error_and_never_nothing(view: LocalView) -> None:
    for ask in (view.balance, view.open_positions, view.unresolved_orders):
        with pytest.raises(UnknownLocally, match="session 2"):
            ask(2)


@pytest.mark.parametrize("ask", ["balance", "open_positions", "unresolved_orders"])
def test_session_that_a_new_fold_does_not_make_is_unknown(view: LocalView, ask: str) -> None:
    def fold_anew() -> bool:
        view.sessions.clear()
        return True

    view.renew = fold_anew
    view.doubt_all(1, "PostgreSQL refused its first call")
    with pytest.raises(UnknownLocally, match="session 1"):
        getattr(view, ask)(1)


def test_observed_answer_is_given_as_it_was_shown(view: LocalView) -> None:
    assert view.shown_balance("get_current_balance", 1) == 100.0
    assert type(view.shown_balance("get_current_balance", 1)) is float
    assert view.open_positions(1) == [{"id": 5, "side": "LONG", "size": 0.5, "orders": []}]
    assert view.unresolved_orders(None) == [{"id": 9, "client_order_id": "o"}]
    with pytest.raises(UnknownLocally, match="recover_last_balance was never asked"):
        view.shown_balance("recover_last_balance", 1)


def test_a_call_that_was_never_seen_puts_in_doubt_what_it_touches(view: LocalView) -> None:
    did(view, "update_position", position_id=5, stop_loss=9)
    with pytest.raises(UnknownLocally, match="update_position was never seen"):
        view.open_positions(1)
    assert view.balance(1) == 100
    assert len(view.unresolved_orders(1)) == 1
    did(view, "atomic_balance_update", balance_change=1)
    with pytest.raises(UnknownLocally, match="atomic_balance_update: it was never seen"):
        view.balance(1)
    did(view, "update_order_journal", client_order_id="o", status="FILLED")
    with pytest.raises(UnknownLocally, match="update_order_journal was never seen"):
        view.unresolved_orders(1)


def test_a_balance_set_by_a_call_that_was_seen_is_known_again(view: LocalView) -> None:
    did(view, "atomic_balance_update", balance_change=1)
    learned_balances(view)
    did(view, "update_balance", new_balance="7.5")
    did(view, "atomic_balance_update", balance_change=Decimal(1) / 3)
    assert view.balance(1) == Decimal("7.83333333")


def test_decimal_places_that_were_never_seen_are_no_guess(view: LocalView) -> None:
    view.learning.possible_scales = {2, 8}
    learned_balances(view)
    view.learning.possible_scales = {2, 8}
    did(view, "update_balance", new_balance=7.25)
    assert view.balance(1) == Decimal("7.25")
    did(view, "update_balance", new_balance=7.123)
    with pytest.raises(UnknownLocally, match="decimal places"):
        view.balance(1)


def test_an_argument_that_was_never_seen_puts_a_row_in_doubt(view: LocalView) -> None:
    after = tables_of([{"id": 5, "side": "LONG", "size": 0.25, "orders": []}], [{"id": 9, "client_order_id": "o"}])
    taught(view, "update_position", after, position_id=5, size=0.25)
    assert did(view, "update_position", position_id=5, size=0.75)
    assert view.open_positions(1)[0]["size"] == 0.75
    assert not did(view, "update_position", position_id=5, size=0.75, stop_loss=9)
    with pytest.raises(UnknownLocally, match="never seen with stop_loss"):
        view.open_positions(1)


def test_a_closed_position_takes_its_doubts_with_it(view: LocalView) -> None:
    taught(view, "close_position", tables_of([], [{"id": 9, "client_order_id": "o"}]), position_id=5)
    did(view, "update_position", position_id=5, stop_loss=9)
    assert did(view, "close_position", position_id=5)
    assert view.open_positions(1) == []


def test_a_status_is_learned_for_each_of_its_values(view: LocalView) -> None:
    position = {"id": 5, "side": "LONG", "size": 0.5, "orders": []}
    taught(view, "update_order_journal", tables_of([position], []), client_order_id="o", status="filled")
    assert not did(view, "update_order_journal", client_order_id="o", status="cancelled")
    assert did(view, "update_order_journal", client_order_id="o", status="filled")
    assert view.unresolved_orders(1) == []


def test_row_changed_by_a_call_that_does_not_name_it_is_unknown(view: LocalView) -> None:
    two = [{"id": 5, "side": "LONG", "size": 9.5, "orders": []}]
    taught(view, "close_position", tables_of(two, [{"id": 9, "client_order_id": "o"}]), position_id=6)
    assert not did(view, "close_position", position_id=6)
    with pytest.raises(UnknownLocally, match="rows that it does not name"):
        view.open_positions(1)


def test_a_new_position_is_shown_as_the_manager_showed_others(view: LocalView) -> None:
    order = [{"id": 9, "client_order_id": "o"}]
    for id_, size, name in ((6, 2.5, "abc"), (7, 3.5, "def")):
        old = view.sessions[1]["tables"]["positions"].values()
        row = {"id": id_, "side": "LONG", "size": size, "name": f"entry-{name}", "mfe": 0.0, "at": AT.isoformat()}
        after = tables_of([*({**one, "orders": []} for one in old), {**row, "orders": []}], order)
        taught(view, "log_position", after, id_, side="long", size=Decimal(size), entry_order_id=name)
    assert did(view, "log_position", 1, 8, side="long", size=Decimal("0.1"), entry_order_id="xyz")
    assert view.open_positions(1)[-1] == {
        "id": 8, "side": "LONG", "size": 0.1, "name": "entry-xyz", "mfe": 0.0, "at": AT.isoformat(), "orders": [],
    }  # fmt: skip


def test_row_whose_id_is_shown_as_text_is_named_by_its_number(view: LocalView) -> None:
    def shown(size: float) -> Tables:
        return tables_of([{"id": "5", "side": "LONG", "size": size, "orders": []}], [])

    view.observe_session(1, 1.0, shown(2.5), active=True)
    taught(view, "update_position", shown(3.5), position_id=5, size=3.5)
    assert did(view, "update_position", position_id=5, size=4.5)
    assert view.open_positions(1)[0]["size"] == 4.5
    assert view.session_of_position(BY_NAME["update_position"], {"position_id": 5}, None) == 1


def test_first_position_of_a_new_database_is_learned_whole(view: LocalView) -> None:
    """There all ids are 1, and so may be an amount: no amount is an id, and no session's id a position's."""

    def rows(id_: int) -> Any:
        nested = [{"id": id_, "position_id": id_, "client_order_id": f"c-{id_}"}]
        return {"id": id_, "side": "LONG", "size": 1.0, "orders": nested}

    view.observe_session(1, 1.0, tables_of([], []), active=True)
    notes = noted(1, 1) | {"side": {"orders.id": [1]}}
    operation, call = BY_NAME["log_position"], {"side": "long", "size": 1.0, "client_order_id": "c-1"}
    view.learning.learn(Seen(operation, call, notes, view.sessions[1]["tables"]), tables_of([rows(1)], []))
    view.observe_session(1, 1.0, tables_of([rows(1)], []), active=True)
    later = noted(1, 2) | {"side": {"orders.id": [2]}}
    assert fold(view, seen_of(view, operation, call | {"client_order_id": "c-2"}, later))
    assert view.open_positions(1) == [rows(1), rows(2)]


def test_session_begun_before_learning_has_no_known_balance() -> None:
    view = LocalView()
    did(view, "create_trading_session", session=4, id_=4, strategy_name="s", symbol="IBM", initial_balance=100)
    with pytest.raises(UnknownLocally, match="create_trading_session was never seen"):
        view.balance(4)
    assert view.open_positions(4) == []


@pytest.mark.parametrize(("shown", "then"), [(1000.0, 500), (0.0, 0)])
def test_the_balance_of_a_new_session_is_as_it_was_shown(shown: float, then: int) -> None:
    view, operation = LocalView(), BY_NAME["create_trading_session"]
    seen = Seen(operation, {"initial_balance": 1000}, noted(3, 3), {})
    view.learning.learn(seen, {})
    view.learning.learn_balance(seen, None, shown)
    did(view, "create_trading_session", session=4, id_=4, initial_balance=500)
    assert view.balance(4) == then


def test_a_balance_without_a_session_belongs_to_none(view: LocalView) -> None:
    assert did(view, "update_balance", session=None, new_balance=7)
    assert set(view.sessions) == {1}


def test_the_last_session_is_looked_for_by_age_strategy_and_symbol() -> None:
    view = LocalView()
    view.learning.compared.agrees = dict.fromkeys(
        ("get_active_session_id", "get_last_session_id", "get_last_session_id(ended)"), True
    )
    did(view, "create_trading_session", session=1, id_=1, strategy_name="s", symbol="IBM")
    did(view, "create_trading_session", session=2, id_=2, strategy_name="other", symbol="X")
    did(view, "end_trading_session", session=2)
    assert view.active_session_id() == 1
    assert view.last_session_id(AT) == 2
    assert view.last_session_id(AT, 24, "s") == 1
    assert view.last_session_id(AT, 24, symbol="X") == 2
    assert view.last_session_id(AT, 24, "s", "X") is None
    assert view.last_session_id(AT + timedelta(hours=24), 24.0) == 2
    assert view.last_session_id(AT + timedelta(hours=24, seconds=1), 24.0) is None


@pytest.mark.parametrize("of", ["get_last_session_id", "get_last_session_id(ended)"])
def test_last_session_is_answered_as_seen_of_active_and_of_ended(of: str) -> None:
    """A manager may answer the last one that has ended, or that has not."""
    view = LocalView()
    view.learning.compared.agrees = {of: True}
    did(view, "create_trading_session", session=1, id_=1)
    if of.endswith(")"):
        with pytest.raises(UnknownLocally, match="never asked"):
            view.last_session_id(AT)
        did(view, "end_trading_session", session=1)
        assert view.last_session_id(AT) == 1
    else:
        assert view.last_session_id(AT) == 1
        did(view, "end_trading_session", session=1)
        with pytest.raises(UnknownLocally, match="never asked"):
            view.last_session_id(AT)


def test_a_session_of_unknown_strategy_is_no_answer(view: LocalView) -> None:
    with pytest.raises(UnknownLocally, match="strategy_name of session 1"):
        view.last_session_id(AT, strategy_name="s")


def test_question_for_own_sessions_leaves_out_other_programs() -> None:
    view = LocalView()
    did(view, "create_trading_session", session=1, id_=1, strategy_name="s", symbol="IBM")
    view.observe_session(2, 100.0, tables_of([], []), active=True, foreign=True)
    view.learning.compared.agrees = {"get_last_session_id": False, "get_last_session_id(strategy_name, symbol)": True}
    assert view.last_session_id(AT, 24, "s", "IBM") == 1
    for asked in ({}, {"strategy_name": "s"}):
        with pytest.raises(UnknownLocally, match="get_last_session_id|of session 2"):
            view.last_session_id(AT, 24, **asked)
    view.learning.compared.agrees = {"get_last_session_id": True}
    with pytest.raises(UnknownLocally, match="of session 2 are not known"):
        view.last_session_id(AT, 24, "s", "IBM")


def test_a_read_that_postgresql_answered_otherwise_is_not_answered(view: LocalView) -> None:
    view.learning.compared.agrees["get_active_session_id"] = False
    with pytest.raises(UnknownLocally, match="get_active_session_id"):
        view.active_session_id()


def test_old_ended_sessions_are_forgotten_and_active_ones_never(view: LocalView) -> None:
    for id_ in range(2, 80):
        did(view, "create_trading_session", session=id_, id_=id_)
        did(view, "end_trading_session", session=id_)
    assert len(view.sessions) == 51
    assert 1 in view.sessions


def test_session_that_is_never_ended_does_not_keep_its_old_orders(view: LocalView) -> None:
    shown = view.unresolved_orders(1)
    resolve(view.sessions[1], 9, {"status": "filled"}, 7)
    view.sessions[1]["tables"]["orders"][10] = {"id": 10}
    before = view.sessions[1]
    for id_ in range(2, 80):
        did(view, "create_trading_session", session=id_, id_=id_)
    assert not resolved_before(view.sessions[1], 8)
    assert view.unresolved_orders(1) == [{"id": 10}] != shown
    assert resolved_before(before, 8)


def test_changed_answer_leaves_the_local_view_unchanged(view: LocalView) -> None:
    view.open_positions(1)[0]["side"] = "changed"
    view.unresolved_orders(1)[0]["id"] = "changed"
    assert view.open_positions(1)[0]["side"] == "LONG"
    assert view.unresolved_orders(1)[0]["id"] == 9


def test_local_view_is_the_same_after_dump_and_load(view: LocalView) -> None:
    did(view, "update_position", position_id=5, stop_loss=9)
    view.seq = 17
    again = LocalView()
    again.load(encoded(view.snapshot()))
    assert (again.seq, again.sessions) == (17, view.sessions)
    again.learning.load(view.learning.dump())
    assert again.learning.dump() == view.learning.dump()


def test_a_snapshot_stays_as_it_was(view: LocalView) -> None:
    """It is encoded when calls go on already."""
    taken = view.snapshot()
    before = encoded(taken)
    did(view, "update_position", position_id=5, stop_loss=9)
    view.doubt(1, "orders", "a call that was never seen")
    assert encoded(taken) == before != encoded(view.snapshot())
    view.take(taken)
    view.doubt(1, "balance", "another such call")
    assert encoded(taken) == before


def test_stored_rows_of_unordered_ids_keep_their_order() -> None:
    view, again, ids = LocalView(), LocalView(), [UUID(int=number) for number in (3, 1, 2)]
    rows = {id_: {"id": id_} for id_ in ids}
    view.observe_session(1, 1.0, {"positions": {}, "orders": rows}, active=True)
    again.load(encoded(view.snapshot()))
    assert [row["id"] for row in again.unresolved_orders(1)] == ids


def test_a_state_of_another_format_is_left_alone(view: LocalView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.integrations.view.local_view._FORMAT", 99)
    newer = encoded(view.snapshot())
    monkeypatch.undo()
    again = LocalView()
    again.load(newer)
    assert (again.seq, again.sessions) == (0, {})


def test_rows_that_cannot_be_told_apart_are_not_answered(view: LocalView) -> None:
    """One table by itself: the other one is answered."""
    tables, unknown = RowForms().tables_of([{"symbol": "ETH-USD"}], [{"client_order_id": "o"}])
    view.observe_session(1, 99.5, tables, active=True, unknown=unknown)
    assert view.balance(1) == Decimal("99.5")
    with pytest.raises(UnknownLocally, match="rows of positions show none of id, position_id"):
        view.open_positions(1)
    assert view.unresolved_orders(1) == [{"client_order_id": "o"}]


def test_a_session_of_which_nothing_is_shown_stays_unknown(view: LocalView) -> None:
    view.observe_session(8, 0.0, tables_of([], []), active=False)
    with pytest.raises(UnknownLocally):
        view.balance(8)
    view.observe_session(8, 1.0, tables_of([], []), active=False)
    assert view.balance(8) == 1


def test_a_float_of_a_read_does_not_blur_the_exact_amount() -> None:
    known = Decimal("0.10000000000000000001")
    assert exact(0.1, known) is known
    assert exact(0.2, known) == Decimal("0.2")
    assert exact(None, known) is None


def test_plain_values_have_no_enums_left() -> None:
    assert plain({Side.LONG: [Side.LONG, (Side.LONG, {"a": Side.LONG})]}) == {
        "Side.LONG": ["long", ["long", {"a": "long"}]]
    }


class Refused(Exception):
    """An error class of the host's own."""


def limits(view: LocalView, name: str, **call: Any) -> dict[str, str]:
    seen = seen_of(view, BY_NAME[name], call, noted(1, None))
    return checks.exceeded(seen, view.balance(1), view.learning.of_shape(seen))


def test_a_limit_is_kept_only_where_the_manager_was_seen_to_keep_it(view: LocalView) -> None:
    operation = BY_NAME["atomic_balance_update"]
    beyond = limits(view, operation.name, balance_change=-101)
    assert list(beyond) == ["balance below zero"]
    assert limits(view, operation.name, balance_change=-100) == {}
    checks.refuse(view.learning, operation, beyond)
    checks.refused(view.learning, operation, beyond, Refused())
    with pytest.raises(Refused, match="cannot become -1"):
        checks.refuse(view.learning, operation, beyond)
    checks.refuse(view.learning, BY_NAME["update_balance"], beyond)
    # Seen to accept it, it keeps no such limit, whatever it refused before for another reason.
    checks.accepted(view.learning, operation, beyond)
    checks.refused(view.learning, operation, beyond, Refused())
    checks.refuse(view.learning, operation, beyond)


def test_a_partial_exit_of_more_than_is_left_is_a_limit(view: LocalView) -> None:
    order = [{"id": 9, "client_order_id": "o"}]
    after = tables_of([{"id": 5, "side": "LONG", "size": 0.375, "orders": []}], order)
    taught(view, "apply_partial_exit_update", after, position_id=5, executed_size_delta=0.125)
    assert limits(view, "apply_partial_exit_update", position_id=5, executed_size_delta=0.5) == {}
    assert list(limits(view, "apply_partial_exit_update", position_id=5, executed_size_delta=0.51)) == [
        "more than is left"
    ]
    assert list(limits(view, "apply_partial_exit_update", position_id=6, executed_size_delta=1)) == [
        "position not open"
    ]


def test_an_unknown_session_is_refused_and_none_is_not(view: LocalView) -> None:
    with pytest.raises(UnknownLocally, match="session 2"):
        checks.session_known({"session_id": 2}, view)
    checks.session_known({"session_id": None}, view)
    checks.session_known({"session_id": 1}, view)
    checks.session_known({"session_id": 2}, LocalView())


@pytest.mark.parametrize(
    ("call", "leaves"),
    [
        ({"order_type": "entry"}, False),
        ({"order_type": None}, False),
        ({}, False),
        ({"order_type": "FULL_EXIT"}, True),
        ({"order_type": Side.LONG, "position_id": 5}, True),
        ({"order_type": "take_profit"}, True),
        ({"order_type": "stop_loss"}, True),
        ({"order_type": "STOP LOSS"}, True),
        ({"order_type": "StopLoss"}, True),
        ({"order_type": "stop"}, True),
        ({"order_type": "trailing-stop"}, True),
        ({"order_type": "close_position"}, True),
        ({"order_type": "stop_market", "reduce_only": True}, True),
        ({"order_type": "market", "is_exit": True}, True),
        ({"order_type": "stop_limit", "position_id": 5}, True),
        ({"order_type": "limit_on_close", "position_id": 5}, True),
        # Orders that open or enlarge a position, of which a halted store must not lose the record.
        ({"order_type": "stop_limit"}, False),
        ({"order_type": "STOP_MARKET"}, False),
        ({"order_type": "buy_stop"}, False),
        ({"order_type": "limit_on_close"}, False),
        ({"order_type": "market-on-close"}, False),
        ({"order_type": "stop_entry"}, False),
        ({"order_type": "entry", "position_id": 5}, False),
        ({"order_type": "scale_in", "position_id": 5}, False),
        ({"order_type": "market", "reduce_only": False}, False),
    ],
)
def test_an_order_that_leaves_a_position_is_recognised(call: dict[str, Any], leaves: bool) -> None:
    assert is_exit_order(call) is leaves


def shown_orders(*orders: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"id": id_, "price": price} for id_, price in orders]


def nested_in(view: LocalView, *shown: tuple[int, int]) -> None:
    view.observe_session(1, 1.0, tables_of([{"id": 5, "orders": shown_orders(*shown)}], []), active=True)


def insert_nested(view: LocalView, *orders: tuple[int, int]) -> None:
    for row in shown_orders(*orders):
        view.sessions[1]["tables"]["positions.orders"][row["id"]] = {**row, "": 5}


def nested_ids(view: LocalView) -> list[int]:
    return [row["id"] for row in view.open_positions(1)[0]["orders"]]


def test_nested_rows_are_in_the_order_of_ids(view: LocalView) -> None:
    nested_in(view, (2, 30))
    insert_nested(view, (9, 10), (4, 20))
    assert nested_ids(view) == [2, 4, 9]


def test_rows_without_an_order_are_in_the_order_of_ids(view: LocalView) -> None:
    """A manager that orders by nothing may show them in any order."""
    nested_in(view, (2, 30), (3, 20), (4, 25))
    nested_in(view, (4, 30), (3, 40), (2, 20))
    assert nested_ids(view) == [2, 3, 4]


def test_row_order_of_equal_flags_only_is_of_ids(view: LocalView) -> None:
    """PostgreSQL shows rows without ORDER BY in any order: keys that never differed are no evidence of one."""
    rows = [{"id": id_, "symbol": "X", "flag": False, "size": 1.0 + size} for id_, size in ((7, 1), (5, 2), (6, 0))]
    view.observe_session(1, 1.0, tables_of(rows, []), active=True)
    shown = view.sessions[1]["tables"]["positions"]
    assert [row["id"] for row in view.open_positions(1)] == [5, 6, 7]
    shown[6]["flag"] = True
    assert [row["id"] for row in view.open_positions(1)] == [5, 6, 7]
    shown[6]["symbol"] = "Y"
    with pytest.raises(UnknownLocally, match="ordered by 'flag' or 'symbol'"):
        view.open_positions(1)


def test_nested_rows_are_in_the_order_that_was_seen(view: LocalView) -> None:
    nested_in(view, (9, 10), (2, 30))
    nested_in(view, (9, 30), (2, 10))
    insert_nested(view, (4, 20), (12, 20))
    assert nested_ids(view) == [12, 9, 4, 2]
    kept = view.learning.dump()
    view.learning.load(kept)
    assert nested_ids(view) == [12, 9, 4, 2]


def test_rows_of_two_possible_orders_are_not_answered(view: LocalView) -> None:
    nested_in(view, (9, 10), (2, 30))
    assert nested_ids(view) == [9, 2]
    insert_nested(view, (4, 40))
    with pytest.raises(UnknownLocally, match="'id' or 'price'"):
        view.open_positions(1)


def order_was_made(view: LocalView, id_: int, side: str, order_type: str, **more: Any) -> None:
    """The manager shows both texts in capitals, and a price where one was given."""
    call = {"client_order_id": f"c-{id_}", "side": side, "order_type": order_type, **more}
    row = {"id": id_, "client_order_id": f"c-{id_}", "side": side.upper(), "type": order_type.upper()}
    after = deepcopy(view.sessions[1]["tables"])
    after["orders"][id_] = {**row, "price": more.get("price")}
    taught(view, "create_order_journal_entry", after, id_, **call)


def make_order(view: LocalView, id_: int, side: str, order_type: str, **more: Any) -> dict[str, Any]:
    call = {"client_order_id": f"c-{id_}", "side": side, "order_type": order_type, **more}
    did(view, "create_order_journal_entry", id_=id_, **call)
    row: dict[str, Any] = view.unresolved_orders(1)[-1]
    return row


def test_values_that_were_seen_are_known_in_any_combination(view: LocalView) -> None:
    order_was_made(view, 20, "buy", "entry", price=None)
    order_was_made(view, 21, "SELL", "exit", price=9.5)
    assert make_order(view, 30, "SELL", "entry", price=7.25) == {
        "id": 30, "client_order_id": "c-30", "side": "SELL", "type": "ENTRY", "price": 7.25
    }  # fmt: skip
    view.learning.load(view.learning.dump())
    assert make_order(view, 31, "buy", "exit", price=None)["price"] is None


def test_a_value_that_was_never_seen_is_not_known(view: LocalView) -> None:
    order_was_made(view, 20, "buy", "entry")
    order_was_made(view, 21, "SELL", "exit")
    with pytest.raises(UnknownLocally, match="never seen"):
        make_order(view, 30, "SELL", "stop_loss")


def test_an_argument_that_was_never_given_is_not_known(view: LocalView) -> None:
    order_was_made(view, 20, "buy", "entry")
    order_was_made(view, 21, "SELL", "exit")
    with pytest.raises(UnknownLocally, match="price"):
        make_order(view, 30, "SELL", "entry", price=1.5)


def test_a_spelling_that_was_only_passed_on_is_no_conversion(view: LocalView) -> None:
    """BUY that is shown as BUY may be in capitals, or as it was given."""
    order_was_made(view, 20, "BUY", "ENTRY")
    order_was_made(view, 21, "SELL", "EXIT")
    assert make_order(view, 30, "BUY", "EXIT")["side"] == "BUY"
    order_was_made(view, 22, "buy", "ENTRY")
    assert make_order(view, 31, "buy", "EXIT")["side"] == "BUY"


@pytest.mark.parametrize("shown", [{"tag": "short"}, {"tag": "long", "more": 1}, None], ids=["value", "key", "no row"])
def test_a_branch_that_was_seen_is_not_known_in_other_calls(view: LocalView, shown: Any) -> None:
    """A sell order shows something else, one key more, or is not shown at all."""
    for id_, side, order_type, tag in ((20, "buy", "entry", {"tag": "long"}), (21, "sell", "exit", shown)):
        after = deepcopy(view.sessions[1]["tables"])
        after["orders"] |= {} if tag is None else {id_: {"id": id_, **tag}}
        call = {"client_order_id": f"c-{id_}", "side": side, "order_type": order_type}
        taught(view, "create_order_journal_entry", after, id_, **call)
    with pytest.raises(UnknownLocally, match="create_order_journal_entry"):
        make_order(view, 30, "sell", "entry")


def test_a_status_never_seen_is_not_taken_for_another(view: LocalView) -> None:
    after = deepcopy(view.sessions[1]["tables"])
    taught(view, "update_order_journal", after, client_order_id="o", status="SUBMITTED")
    did(view, "update_order_journal", client_order_id="o", status="FILLED")
    with pytest.raises(UnknownLocally, match="never seen"):
        view.unresolved_orders(1)


def test_orders_of_a_position_are_learned_apart(view: LocalView) -> None:
    """An exit order is shown in its position's row as well; an entry order is not."""
    order_was_made(view, 20, "buy", "entry", position_id=None)
    for id_, side in ((21, "sell"), (22, "SELL")):
        after = deepcopy(view.sessions[1]["tables"])
        after["orders"][id_] = {"id": id_, "client_order_id": f"c-{id_}", "side": "SELL", "type": "EXIT", "price": None}
        after["positions.orders"] = {id_: {"id": id_, "": 5}}
        call = {"client_order_id": f"c-{id_}", "side": side, "order_type": "exit", "position_id": 5}
        taught(view, "create_order_journal_entry", after, id_, **call)
    assert make_order(view, 30, "buy", "entry", position_id=None)["side"] == "BUY"
    assert make_order(view, 31, "sell", "exit", position_id=5)["side"] == "SELL"
    assert [row["id"] for row in view.open_positions(1)[0]["orders"]] == [31]


def test_a_nested_order_is_known_by_the_id_of_its_order(view: LocalView) -> None:
    """The row in the position has no client_order_id: its change is learned, and not overlooked before."""
    tables = view.sessions[1]["tables"]
    view.learning.nested |= {"positions.orders"}
    taught(view, "update_order_journal", {**deepcopy(tables), "orders": {}}, client_order_id="o", status="FILLED")
    for id_ in (31, 32):
        tables["orders"][id_] = {"id": id_, "client_order_id": f"c-{id_}"}
        tables.setdefault("positions.orders", {})[id_] = {"id": id_, "status": "NEW", "": 5}
    did(view, "update_order_journal", client_order_id="c-31", status="FILLED")
    with pytest.raises(UnknownLocally, match="update_order_journal was never seen"):
        view.open_positions(1)
    view.sessions[1]["doubts"].clear()
    after = deepcopy(tables)
    del after["orders"][32]
    after["positions.orders"][32]["status"] = "FILLED"
    taught(view, "update_order_journal", after, client_order_id="c-32", status="FILLED")
    did(view, "update_order_journal", client_order_id="c-32", status="FILLED")
    assert view.open_positions(1)[0]["orders"][1] == {"id": 32, "status": "FILLED"}


def test_what_an_outage_does_not_answer_is_known_before_it(view: LocalView) -> None:
    calls = {name: BY_NAME[name] for name in ("log_position", "update_position", "close_position", "log_event")}
    assert unanswerable(view.learning, calls) == [
        "rows after the first call of close_position, log_position, update_position (never seen)"
    ]
    order = [{"id": 9, "client_order_id": "o"}]
    for price, shown in ((7.0, 9.13), (8.0, 2.79), (3.0, 6.41)):
        rows = tables_of([{"id": 5, "side": "LONG", "size": shown, "price": price, "orders": []}], order)
        taught(view, "update_position", rows, position_id=5, price=price)
        view.observe_session(1, 1.0, rows, active=True)
    taught(view, "close_position", tables_of([], order), position_id=5)
    assert unanswerable(view.learning, calls) == [
        "size of positions after update_position (cannot be explained)",
        "rows after the first call of log_position (never seen)",
    ]


def test_id_of_a_row_that_is_not_declared_names_the_way_out(view: LocalView) -> None:
    calls = {"place": ManagerOperation("place", like="create_order_journal_entry", creates=None)}
    view.learning.effects["place"] = Effect(count=1, made={"orders": {"id": Space()}})
    assert unanswerable(view.learning, calls) == ["id of orders after place (not known without creates=)"]


def test_sessions_beyond_the_last_50_are_forgotten_but_for_open_rows(view: LocalView) -> None:
    """Session 1 has an open position; it has ended, as sessions 2 and 3 have, which have nothing open."""
    did(view, "end_trading_session", session=1)
    for session in range(2, 60):
        did(view, "create_trading_session", session=session, id_=session)
        view.observe_session(session, 1.0, tables_of([], []), active=True)
        did(view, "end_trading_session", session=session)
    assert sorted(view.sessions) == [1, *range(10, 60)]
    assert [row["id"] for row in view.open_positions(None)] == [5]
    with pytest.raises(UnknownLocally, match="session 2"):
        view.balance(2)


def test_sessions_of_a_manager_without_orders_are_forgotten(view: LocalView) -> None:
    """What no read shows is in doubt for ever."""
    for session in range(2, 60):
        did(view, "create_trading_session", session=session, id_=session)
        view.observe_session(session, 1.0, {"positions": {}}, active=True)
        did(view, "end_trading_session", session=session)
    assert sorted(view.sessions) == [1, *range(10, 60)]


def test_session_in_doubt_is_not_forgotten(view: LocalView) -> None:
    did(view, "update_position", position_id=5, stop_loss=9)
    did(view, "close_position", position_id=5)
    did(view, "end_trading_session", session=1)
    for session in range(2, 60):
        did(view, "create_trading_session", session=session, id_=session)
        did(view, "end_trading_session", session=session)
    with pytest.raises(UnknownLocally):
        view.open_positions(None)


def followed(view: LocalView, *seqs: int) -> list[int]:
    """Let a view follow entries; those that were folded in, in order."""
    found: list[int] = []

    def fold_one(entry: Any) -> None:
        with view.lock:
            found.append(entry.seq)
            view.seq = entry.seq

    view.fold = fold_one
    for seq in seqs:
        view.follow(SimpleNamespace(seq=seq))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("look", [lambda view: view.seq, lambda view: view.sessions, lambda view: view.snapshot()])
def test_what_is_durable_is_folded_in_before_a_look(look: Callable[[LocalView], Any]) -> None:
    view = LocalView()
    found = followed(view, 1, 2)
    assert found == []
    look(view)
    assert found == [1, 2]
    assert view.seq == 2


def test_view_does_not_change_while_its_lock_is_held() -> None:
    view = LocalView()
    found = followed(view, 1)
    with view.lock:
        followed(view, 2)
        assert (view.seq, list(view.sessions), found) == (1, [], [1])
    assert view.seq == 2


def test_fold_that_was_interrupted_is_not_forgotten() -> None:
    view = LocalView()
    followed(view, 1)
    fold_one, tries = view.fold, list[int]()

    def interrupted(entry: Any) -> None:
        tries.append(entry.seq)
        if len(tries) == 1:
            raise KeyboardInterrupt
        fold_one(entry)

    view.fold = interrupted
    with pytest.raises(KeyboardInterrupt):
        view.catch_up()
    assert view.seq == 1
    assert tries == [1, 1]
