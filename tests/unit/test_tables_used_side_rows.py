"""How many rows a call writes on the side, by what was seen of earlier ones."""

from __future__ import annotations

from typing import Any

from outbox.integrations.view.tables_used import SideRows

TRADES = "trades.id"


def seen(*calls: tuple[dict[str, Any], int]) -> SideRows:
    rows = SideRows()
    for call, count in calls:
        rows.learn("import_trades", call, {TRADES: count} if count else {})
    return SideRows(rows.dump())


def test_rows_are_as_many_as_the_argument_has_items() -> None:
    rows = seen(({"fills": [1, 2], "tags": ["a", "b"]}, 2), ({"fills": [1, 2, 3], "tags": ["a"]}, 3))
    assert rows.by_size("import_trades", {"fills": list(range(7)), "tags": []}) == {TRADES: 7}


def test_rows_that_no_argument_explains_are_the_fewest_seen() -> None:
    rows = seen(({"book": 1}, 3), ({"book": 1}, 2), ({"book": 1}, 5))
    assert rows.by_size("import_trades", {"book": 1}) == {}
    assert rows.fewest("import_trades") == {TRADES: 2}


def test_call_without_rows_expects_none() -> None:
    rows = seen(({"book": 1}, 1), ({"book": 1}, 0))
    assert rows.fewest("import_trades") == {TRADES: 0}
    assert rows.fewest("log_trade") == {}


def test_same_observation_is_nothing_new() -> None:
    rows = SideRows()
    assert rows.learn("import_trades", {"book": 1}, {TRADES: 1})
    assert not rows.learn("import_trades", {"book": 1}, {TRADES: 1})
    assert not rows.learn("log_trade", {"book": 1}, {})
