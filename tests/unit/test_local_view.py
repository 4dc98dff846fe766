"""The local view: what is known without PostgreSQL, what each call does to it, and what it refuses to answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from outbox.integrations import checks, folds
from outbox.integrations.local_view import LocalView, UnknownLocally, exact, number, plain
from outbox.integrations.operations import TRADING_OPERATIONS

AT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
NAIVE = AT.replace(tzinfo=None)
BY_NAME = {operation.name: operation for operation in TRADING_OPERATIONS}


class Side(Enum):
    LONG = "long"


def did(view: LocalView, name: str, session: int | None = 1, id_: int | None = None, **call: Any) -> None:
    """A durable call of the trading operation `name`."""
    notes = {"session": session, "at": AT} | ({} if id_ is None else {"id": id_})
    fold = BY_NAME[name].fold
    assert fold is not None
    fold(view, call, notes)


@pytest.fixture
def view() -> LocalView:
    """Session 1 with a balance of 100, position 5 and order "o" (id 9)."""
    view = LocalView()
    did(view, "create_trading_session", id_=1, strategy_name="s", symbol="IBM", initial_balance=100)
    did(view, "log_position", id_=5, symbol="IBM", side=Side.LONG, entry_price=10.5, size=Decimal("0.5"), magic=7)
    did(view, "create_order_journal_entry", id_=9, client_order_id="o", side="BUY", order_type="entry", quantity=1)
    return view


def test_nothing_is_known_before_anything_was_seen() -> None:
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


def test_a_session_that_only_changed_its_balance_has_none_that_is_known(view: LocalView) -> None:
    did(view, "atomic_balance_update", session=3, balance_change=Decimal(5))
    with pytest.raises(UnknownLocally):
        view.balance(3)
    did(view, "update_balance", session=3, new_balance="7.5")
    did(view, "atomic_balance_update", session=3, balance_change=0.5)
    assert view.balance(3) == Decimal(8)


def test_a_balance_without_a_session_belongs_to_none_and_breaks_nothing(view: LocalView) -> None:
    did(view, "update_balance", session=None, new_balance=7)
    did(view, "atomic_balance_update", session=None, balance_change=1)
    did(view, "create_trading_session", id_=2, initial_balance=None)
    assert view.active_session_id() == 2
    assert view.last_session_id(AT) == 2
    assert set(view.sessions) == {1, 2}
    assert view.balance(1) == 100


def test_the_balance_follows_settings_changes_and_reconciliations(view: LocalView) -> None:
    did(view, "atomic_balance_update", balance_change=Decimal("-0.1"))
    did(view, "atomic_position_reconciliation", realized_pnl=0.2, position_db_id=5)
    assert view.balance(1) == Decimal("100.1")
    assert view.open_positions(1) == []
    did(view, "update_balance", new_balance=42)
    assert view.balance(1) == 42


def test_a_position_is_opened_changed_resized_and_closed(view: LocalView) -> None:
    (row,) = view.open_positions(1)
    assert (row["id"], row["side"], row["size"], row["current_size"], row["entry_time"], row["magic"]) == (
        5, "long", Decimal("0.5"), Decimal("0.5"), NAIVE, 7,
    )  # fmt: skip
    did(view, "update_position", position_id=5, stop_loss=9, take_profit=None, unheard_of=1)
    did(view, "apply_partial_exit_update", position_id=5, executed_size_delta=0.2, price=11, target_level=1)
    did(view, "apply_scale_in_update", position_id=5, added_size_delta=Decimal("0.1"), price=12, threshold_level=1)
    (row,) = view.open_positions(None)
    assert (row["stop_loss"], row["take_profit"], row["current_size"], row["size"]) == (
        9, None, Decimal("0.4"), Decimal("0.6"),
    )  # fmt: skip
    assert (row["partial_exits_taken"], row["scale_ins_taken"], row["last_partial_exit_price"]) == (1, 1, 11)
    assert "unheard_of" not in row
    did(view, "close_position", position_id=5)
    assert view.open_positions(1) == []


def test_floats_stay_floats(view: LocalView) -> None:
    did(view, "log_position", id_=6, size=0.5)
    did(view, "apply_partial_exit_update", position_id=6, executed_size_delta=Decimal("0.1"), price=1)
    assert view.open_positions(1)[1]["current_size"] == 0.4


@pytest.mark.parametrize("position_id", [None, 99])
def test_what_is_not_there_is_left_alone(view: LocalView, position_id: int | None) -> None:
    before = view.dump()
    did(view, "update_position", position_id=position_id, stop_loss=1)
    did(view, "apply_partial_exit_update", position_id=position_id, executed_size_delta=1, price=1)
    did(view, "apply_scale_in_update", position_id=position_id, added_size_delta=1, price=1)
    did(view, "log_trade", id_=1, position_id=position_id)
    did(view, "close_position", position_id=position_id)
    did(view, "update_order_journal", client_order_id="none", status="filled")
    did(view, "update_order_status_new", order_id=99, status="filled")
    did(view, "end_trading_session", session=99)
    assert view.dump() == before


@pytest.mark.parametrize("status", ["filled", "FILLED", "cancelled", "rejected", "expired"])
def test_an_order_is_unresolved_until_it_is_filled_or_dead(view: LocalView, status: str) -> None:
    did(view, "create_order_journal_entry", id_=10, client_order_id=None, side="sell")
    did(view, "update_order_journal", client_order_id="o", status="submitted", exchange_order_id="e")
    did(view, "update_order_status_new", order_id=10, status="submitted")
    assert [(row["id"], row["status"], row["side"]) for row in view.unresolved_orders(1)] == [
        (9, "submitted", "buy"),
        (10, "submitted", "sell"),
    ]
    assert view.unresolved_orders(None)[0]["exchange_order_id"] == "e"
    did(view, "update_order_journal", client_order_id="o", status=status)
    did(view, "update_order_status_new", order_id=10, status=status)
    assert view.unresolved_orders(1) == []


def test_a_position_fills_its_journalled_order(view: LocalView) -> None:
    did(view, "log_position", id_=6, client_order_id="o")
    assert view.unresolved_orders(1) == []


def test_the_last_session_is_looked_for_by_age_strategy_and_symbol(view: LocalView) -> None:
    did(view, "create_trading_session", id_=2, strategy_name="other", symbol="X", initial_balance=1)
    did(view, "end_trading_session", session=2)
    assert view.active_session_id() == 1
    assert view.last_session_id(AT) == 2
    assert view.last_session_id(AT, 24, "s") == 1
    assert view.last_session_id(AT, 24, symbol="X") == 2
    assert view.last_session_id(AT, 24, "s", "X") is None
    assert view.last_session_id(AT + timedelta(hours=24), 24.0) == 2
    assert view.last_session_id(AT + timedelta(hours=24, seconds=1), 24.0) is None


def test_ended_sessions_are_forgotten_in_the_end_and_active_ones_never(view: LocalView) -> None:
    for id_ in range(2, 80):
        did(view, "create_trading_session", id_=id_, initial_balance=1)
        did(view, "end_trading_session", session=id_)
    assert len(view.sessions) == 51
    assert 1 in view.sessions


def test_what_is_read_can_be_changed_without_harm(view: LocalView) -> None:
    view.open_positions(1)[0]["orders"].append("changed")
    view.unresolved_orders(1)[0]["status"] = "changed"
    assert view.open_positions(1)[0]["orders"] == []
    assert view.unresolved_orders(1)[0]["status"] == "pending_submit"


def test_it_is_the_same_after_it_was_stored(view: LocalView) -> None:
    view.seq = 17
    again = LocalView()
    again.load(view.dump())
    assert (again.seq, again.sessions, again.positions, again.orders) == (
        17, view.sessions, view.positions, view.orders,
    )  # fmt: skip
    assert again.balance(1) == 100


def test_a_state_of_another_format_is_left_alone(view: LocalView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.integrations.local_view._FORMAT", 2)
    newer = view.dump()
    monkeypatch.undo()
    again = LocalView()
    again.load(newer)
    assert (again.seq, again.sessions) == (0, {})


def test_what_postgresql_shows_replaces_what_was_known(view: LocalView) -> None:
    did(view, "log_position", session=2, id_=6)
    rows = [{"id": 7, "side": Side.LONG}]
    view.observe_session(1, 99.5, rows, [{"id": 11}, {"id": 12, "client_order_id": "p"}], active=False)
    assert view.balance(1) == Decimal("99.5")
    assert [row["id"] for row in view.open_positions(None)] == [6, 7]
    assert view.open_positions(1)[0]["side"] == "long"
    assert [row["id"] for row in view.unresolved_orders(1)] == [11, 12]
    # It was begun here, so it is active whatever the reader says.
    assert view.active_session_id() == 1


def test_a_session_of_which_nothing_is_shown_stays_unknown(view: LocalView) -> None:
    view.observe_session(8, 0.0, [], [], active=False)
    with pytest.raises(UnknownLocally):
        view.balance(8)
    view.observe_session(8, 1.0, [], [], active=False)
    assert view.balance(8) == 1


@pytest.mark.parametrize("value", ["much", None, float("nan"), Decimal("Infinity"), "1e"])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="number"):
        number(value)


def test_numbers_of_any_type_are_exact() -> None:
    numpy = pytest.importorskip("numpy")
    assert [number(value) for value in (0.1, "0.1", Decimal("0.1"), numpy.float64(0.1))] == [Decimal("0.1")] * 4
    known = Decimal("0.10000000000000000001")
    assert exact(0.1, known) is known
    assert exact(0.2, known) == Decimal("0.2")
    assert exact(None, known) is None


def test_plain_values_have_no_enums_left() -> None:
    assert plain({Side.LONG: [Side.LONG, (Side.LONG, {"a": Side.LONG})]}) == {
        "Side.LONG": ["long", ["long", {"a": "long"}]]
    }


def test_a_call_that_the_view_shows_to_be_impossible_is_refused(view: LocalView) -> None:
    impossible: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (checks.session_known, {"session_id": 2}, UnknownLocally, "session 2"),
        (checks.balance_stays_positive, {"session_id": 1, "balance_change": -101}, ValueError, "100"),
        (checks.balance_stays_positive, {"session_id": 1, "realized_pnl": "-100.01"}, ValueError, "100"),
        (checks.balance_stays_positive, {"session_id": 1, "balance_change": "x"}, ValueError, "not a number"),
        (checks.balance_stays_positive, {"session_id": 2, "balance_change": 1}, UnknownLocally, "session 2"),
        (checks.position_open, {"position_db_id": 6}, ValueError, "6 is not open"),
        (checks.exit_not_more_than_left, {"position_id": 5, "executed_size_delta": 0.51}, ValueError, r"0\.5 left"),
    ]
    for check, call, error, why in impossible:
        with pytest.raises(error, match=why):
            check(call, view)


def test_a_call_that_may_be_possible_passes(view: LocalView) -> None:
    checks.session_known({"session_id": None}, view)
    checks.session_known({"session_id": 1}, view)
    checks.session_known({"session_id": 2}, LocalView())
    checks.balance_stays_positive({"session_id": 1, "balance_change": -100}, view)
    checks.position_open({"position_db_id": 5}, view)
    checks.position_open({"position_db_id": 6}, LocalView())
    checks.exit_not_more_than_left({"position_id": 5, "executed_size_delta": Decimal("0.5")}, view)
    checks.exit_not_more_than_left({"position_id": 6, "executed_size_delta": 9}, view)


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
    ],
)
def test_an_order_that_leaves_a_position_is_recognised(call: dict[str, Any], leaves: bool) -> None:
    assert checks.is_exit_order(call) is leaves


def test_every_fold_belongs_to_an_operation() -> None:
    used = {operation.fold for operation in TRADING_OPERATIONS}
    assert {
        value
        for name, value in vars(folds).items()
        if getattr(value, "__module__", "") == folds.__name__ and (callable(value) and not name.startswith("_"))
    } <= used
