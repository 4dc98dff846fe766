"""What one store has learned of a manager serves an engine with a new store from its first outage on."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from outbox import Outbox, PostgresTarget, Relay
from outbox.errors import ConfigError
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, bind
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.view.former_learning import carried_over
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer
from tests.atb import run as atb
from tests.unit.fakes.waiting import LONG, until

from .test_outage import begun, open_position, running, taught


@pytest.fixture(scope="module")
def staging(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the store `outbox` of an engine that has traded, and its `learned.json`."""
    folder, name = tmp_path_factory.mktemp("staging"), f"staging_{uuid4().hex}"
    url = postgres_server.create_database(name)
    with running(cast(PostgresServer, SimpleNamespace(url=lambda: url)), folder / "outbox") as run:
        taught(run)
        run.caught_up()
    written = atb("learned", "--dir", str(folder / "outbox"), "--output", str(folder / "learned.json"))
    assert (written.returncode, written.stdout) == (0, "")
    yield folder
    postgres_server.drop_database(name)


def first_outage(server: PostgresServer, directory: Path, **settings: Any) -> list[Any]:
    """Positions as an engine reads them that was restarted in the outage that followed its first session's begin."""
    with running(server, directory, **settings) as run:
        session_id = begun(run)
        run.caught_up()
        server.kill()
        kept, gone = open_position(run, "kept"), open_position(run, "gone")
        run.manager.apply_partial_exit_update(kept, Decimal("0.04"), Decimal(103), 1)
        run.manager.close_position(gone, exit_price=Decimal(101))
    try:
        with running(server, directory, **settings) as run:
            found: list[Any] = run.manager.get_active_positions(session_id)
            balance = run.manager.get_current_balance(session_id)
            server.start()
            run.caught_up()
            shown = DatabaseManager(server.url())
            assert found == shown.get_active_positions(session_id)
            assert balance == shown.get_current_balance(session_id)
            shown.close()
            assert run.box.status().alarms == {}
            return found
    finally:
        server.start()


def test_first_outage_is_answered_by_the_learned_file(
    own_postgres: PostgresServer, staging: Path, tmp_path: Path
) -> None:
    found = first_outage(own_postgres, tmp_path / "live", learned_from=staging / "learned.json")
    assert [(row["client_order_id"], row["current_size"]) for row in found] == [("kept", Decimal("0.06"))]


def test_file_serves_where_the_relay_is_in_another_process(
    own_postgres: PostgresServer, staging: Path, tmp_path: Path
) -> None:
    make = functools.partial(DatabaseManager, own_postgres.url())
    with Outbox.open(tmp_path / "live") as box:
        manager: Any = DurableDatabaseManager(make, box, learned_from=staging / "learned.json")
        with Relay(box, PostgresTarget(own_postgres.url(), bind(TRADING_OPERATIONS, make))) as relay:
            session_id = manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
            assert relay.drain(timeout=LONG)
            until(lambda: session_id in manager._durable.adapter.view.sessions)
            until(lambda: manager._durable.adapter.view.learning.compared.agrees)
            own_postgres.kill()
            assert manager.get_active_session_id() == session_id
            kept = manager.log_position("IBM", "long", Decimal(100), Decimal("0.1"), "s", "o", quantity=Decimal(2))
            found = manager.get_active_positions(session_id)
            own_postgres.start()
            assert relay.drain(timeout=LONG)
            assert found == manager.get_active_positions(session_id)
            assert [row["id"] for row in found] == [kept]
        manager.detach_outbox()


def test_first_outage_without_the_file_is_refused(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with pytest.raises(UnknownLocally, match="never seen"):
        first_outage(own_postgres, tmp_path / "live")


def test_calls_are_still_learned_from_beside_the_file(
    own_postgres: PostgresServer, staging: Path, tmp_path: Path
) -> None:
    learned = Path(shutil.copy(staging / "learned.json", tmp_path))
    with running(own_postgres, tmp_path / "live", learned_from=learned) as run:
        begun(run)
        open_position(run, "first")
        run.caught_up()
    shown = atb("learned", "--dir", str(tmp_path / "live"), "--json").stdout
    assert '{"method":"log_position","decided_by":["side=long"],"seen":2,"unexplained":[]}' in shown
    # Of its own by now: another file changes nothing.
    learned.write_text("{}")
    with running(own_postgres, tmp_path / "live", learned_from=learned):
        pass


def test_table_shows_each_kind_of_call(staging: Path) -> None:
    shown = atb("learned", "--dir", str(staging / "outbox"), COLUMNS="120").stdout
    assert re.search(r"│ log_position +│ a row of orders, side=long, all of quantity +│ +3 │ answers", shown)
    assert (
        atb("learned", "--dir", str(staging / "outbox"), "--output", "-").stdout
        == (staging / "learned.json").read_text()
    )


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "enums": [], "learned": {"a": 1}}']
)
def test_file_that_says_nothing_learned_is_refused(content: str, outbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "learned.json").write_text(content)
    with Outbox.open(outbox_dir) as box, pytest.raises(ConfigError, match="learned_from"):
        carried_over(box, tmp_path / "learned.json")


def test_file_that_is_missing_is_refused_at_wiring(postgres_url: str, outbox_dir: Path, tmp_path: Path) -> None:
    make = functools.partial(DatabaseManager, postgres_url)
    with Outbox.open(outbox_dir) as box, pytest.raises(ConfigError, match="cannot be read: No such file"):
        DurableDatabaseManager(make, box, learned_from=tmp_path / "learned.json")


def test_store_that_learned_nothing_says_so(outbox_dir: Path) -> None:
    Outbox.open(outbox_dir).close()
    done = atb("learned", "--dir", str(outbox_dir))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was learned yet" in done.stderr
