"""A read is no longer answered in an outage once the local view would have answered otherwise than the manager."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import until

from .small import Balance, Scene, SmallManager, scene

DIFFERED = re.compile(r"get_current_balance \(\d+ of \d+ answers differed")
TAX = {"rate": Decimal(0)}


class Taxed(SmallManager):
    """Takes something of each balance that no call shows."""

    def update_balance(self, new_balance: Any, update_reason: str, session_id: int | None = None) -> bool:
        with self.session_factory.begin() as session:
            total = new_balance - TAX["rate"]
            session.add(Balance(session_id=session_id or self._current_session_id, total=total))
        return True


@pytest.fixture
def taxed(own_postgres: PostgresServer, tmp_path: Path) -> Iterator[Scene]:
    TAX["rate"] = Decimal(0)
    with scene(own_postgres.url(), tmp_path / "outbox", Taxed) as made:
        made.relay.start()
        made.manager.create_trading_session("s", 1000)
        trade(made, 5)
        yield made
        TAX["rate"] = Decimal(0)


def trade(made: Scene, times: int) -> None:
    for number in range(times):
        made.manager.update_balance(Decimal(900 + number), "trade")
        assert made.manager.get_current_balance() == 900 + number - TAX["rate"]


def differed(made: Scene) -> bool:
    """Trade once more; not every read is compared, since that would take too much of a busy machine's time."""
    trade(made, 1)
    return any(DIFFERED.search(one.message) for one in made.box.status().notices.values())


def trade_until_it_differs(made: Scene) -> None:
    TAX["rate"] = Decimal(5)
    until(lambda: differed(made))


def test_wrong_answer_is_not_given_in_an_outage(taxed: Scene, own_postgres: PostgresServer) -> None:
    trade_until_it_differs(taxed)
    own_postgres.kill()
    with pytest.raises(UnknownLocally, match=r"get_current_balance .* \d+ of \d+ answers differed"):
        taxed.manager.get_current_balance()


def test_status_shows_which_read_is_not_answered(taxed: Scene) -> None:
    trade_until_it_differs(taxed)
    assert taxed.box.status().alarms == {}


def test_session_is_compared_when_postgres_was_set_back(taxed: Scene) -> None:
    """The loss may be noticed without an outage: a part of the tables was restored while the server ran."""
    assert taxed.drain()
    until(lambda: taxed.manager._durable.adapter.keeper.observe(1))
    taxed.change("UPDATE account_balances SET total = 7")
    taxed.box.progress.rewound()
    until(lambda: "diverged-session-1" in taxed.box.status().alarms)


def test_late_first_look_at_a_session_raises_no_alarm(
    own_postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the background work begins when the manager has answered otherwise already."""
    with scene(own_postgres.url(), tmp_path / "outbox", Taxed) as made:
        keeper = made.manager._durable.adapter.keeper
        with monkeypatch.context() as busy:
            busy.setattr(keeper, "_tend", lambda: None)
            made.relay.start()
            made.manager.create_trading_session("s", 1000)
            trade(made, 5)
            until(lambda: keeper.observe(1))
            TAX["rate"] = Decimal(5)
            trade(made, 1)
            TAX["rate"] = Decimal(0)
        keeper._tend()
        assert made.box.status().alarms == {}


def test_equal_answers_are_given_in_an_outage(taxed: Scene, own_postgres: PostgresServer) -> None:
    own_postgres.kill()
    assert taxed.manager.get_current_balance() == 904


def test_wrong_answer_is_remembered_by_a_restart(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with scene(own_postgres.url(), tmp_path / "outbox", Taxed) as made:
        made.relay.start()
        made.manager.create_trading_session("s", 1000)
        trade(made, 5)
        trade_until_it_differs(made)
        TAX["rate"] = Decimal(0)
    with scene(own_postgres.url(), tmp_path / "outbox", Taxed) as made:
        own_postgres.kill()
        with pytest.raises(UnknownLocally, match="differed"):
            made.manager.get_current_balance(1)


def test_read_is_answered_again_after_equal_answers(taxed: Scene, own_postgres: PostgresServer) -> None:
    trade_until_it_differs(taxed)
    TAX["rate"] = Decimal(0)
    until(lambda: not differed(taxed), progress=taxed.box.store.last_seq)
    own_postgres.kill()
    assert taxed.manager.get_current_balance() == 900


def test_change_by_another_program_is_taken_over(taxed: Scene, own_postgres: PostgresServer) -> None:
    taxed.change("UPDATE account_balances SET total = 800 WHERE id = (SELECT max(id) FROM account_balances)")
    view = taxed.manager._durable.adapter.view
    until(lambda: taxed.manager.get_current_balance() == 800 and view.balance(1) == 800)
    assert view.learning.compared.all_distrusted() == {}
    own_postgres.kill()
    assert taxed.manager.get_current_balance() == 800


def test_change_in_an_outage_is_still_reported(
    taxed: Scene, own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = taxed.manager._durable.adapter.keeper
    compare = keeper._compare_active

    def compare_behind_a_read() -> None:
        # As the engine may, between the end of the outage and the comparison.
        taxed.manager.get_current_balance()
        compare()

    monkeypatch.setattr(keeper, "_compare_active", compare_behind_a_read)
    # A session in doubt is taken from PostgreSQL without a comparison.
    until(lambda: not keeper._doubtful)
    own_postgres.kill()
    assert taxed.manager.update_balance(Decimal(950), "in the outage")
    own_postgres.start()
    until(lambda: taxed.box.status().pending == 0)
    taxed.change("UPDATE account_balances SET total = 800 WHERE id = (SELECT max(id) FROM account_balances)")
    keeper._recovered()
    until(lambda: "diverged-session-1" in taxed.box.status().alarms)
    assert taxed.manager._durable.adapter.view.learning.compared.all_distrusted() == {}
