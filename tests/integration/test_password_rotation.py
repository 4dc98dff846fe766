"""A password that changes under a running relay: a callable gives it anew at each connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import event

from outbox import ConfigError, Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.paper import DatabaseManager, PaperEngine
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = (Operation("trade", table="deals"),)
# A connection that is slow to be made would be asked for twice.
_CONFIG = OutboxConfig(backoff_base=0.01, backoff_cap=0.05, min_free_mb=0, connect_timeout=LONG)
_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lmdb-outbox'"


class Vault:
    """Where the password is kept; `fault` is raised instead."""

    def __init__(self, password: object) -> None:
        self.password = password
        self.fault: Exception | None = None
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return self.password  # type: ignore[return-value]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(password="first", fsync=False) as server:
        query(server.url(), "CREATE TABLE deals (number int)")
        yield server


@pytest.fixture
def vault(server: PostgresServer) -> Iterator[Vault]:
    """Holds the server's password; both are put back."""
    query(server.url(), "TRUNCATE deals")
    vault = Vault("first")
    yield vault
    if vault.password == "second":
        change(server, "second", "first")


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, _CONFIG, OPERATIONS) as box:
        yield box


def address(server: PostgresServer, password: str | None = None, database: str = "postgres") -> str:
    secret = "" if password is None else f":{password}"
    return f"postgresql://postgres{secret}@127.0.0.1:{server.port}/{database}"


def change(server: PostgresServer, before: str, after: str) -> None:
    query(server.url(password=before), f"ALTER ROLE postgres PASSWORD '{after}'")


def rotate(server: PostgresServer, vault: Vault, relay: Relay, box: Outbox) -> None:
    """Deliver 1 before, 2 on the open connection and 3 on a new one."""
    box.enqueue("trade", {"number": 1})
    assert relay.drain(LONG)
    change(server, "first", "second")
    vault.password = "second"
    box.enqueue("trade", {"number": 2})
    assert relay.drain(LONG)
    query(server.url(password="second"), _CUT)
    box.enqueue("trade", {"number": 3})
    assert relay.drain(LONG)
    assert query(server.url(password="second"), "SELECT number FROM deals ORDER BY 1") == [(1,), (2,), (3,)]


def test_password_is_asked_for_at_each_new_connection(server: PostgresServer, vault: Vault, box: Outbox) -> None:
    target = PostgresTarget(address(server), OPERATIONS, password=vault, config=_CONFIG)
    assert vault.asked == 0
    with Relay(box, target) as relay:
        rotate(server, vault, relay, box)
    assert vault.asked == 2


def test_url_is_asked_for_at_each_new_connection(server: PostgresServer, vault: Vault, box: Outbox) -> None:
    target = PostgresTarget(lambda: address(server, vault()), OPERATIONS, config=_CONFIG)
    with Relay(box, target) as relay:
        rotate(server, vault, relay, box)
    assert vault.asked == 2


def test_a_password_that_comes_late_stops_the_line_until_it_is_there(
    server: PostgresServer, vault: Vault, box: Outbox
) -> None:
    change(server, "first", "second")
    with Relay(box, PostgresTarget(address(server), OPERATIONS, password=vault, config=_CONFIG)) as relay:
        box.enqueue("trade", {"number": 1})
        until(lambda: box.status().relay.stopped)
        vault.password = "second"
        assert relay.drain(LONG)
    status = box.status()
    assert (status.pending, status.dead_letters) == (0, 0)


@pytest.mark.parametrize(
    ("fault", "answer", "stopped", "words"),
    [
        (TimeoutError("vault is away"), "first", False, "the password cannot be had: TimeoutError: vault is away"),
        (KeyError("secret"), "first", True, "the password cannot be had: KeyError: 'secret'"),
        (None, None, True, "the password that was asked for is NoneType"),
        (None, "", True, "the password that was asked for is empty"),
    ],
)
def test_a_password_that_cannot_be_had_loses_nothing(
    server: PostgresServer,
    vault: Vault,
    box: Outbox,
    fault: Exception | None,
    answer: object,
    stopped: bool,
    words: str,
) -> None:
    vault.password, vault.fault = answer, fault
    with Relay(box, PostgresTarget(address(server), OPERATIONS, password=vault, config=_CONFIG)) as relay:
        box.enqueue("trade", {"number": 1})
        until(lambda: words in (box.status().relay.last_error or ""))
        assert box.status().relay.stopped is stopped
        vault.password, vault.fault = "first", None
        assert relay.drain(LONG)
    assert query(server.url(), "SELECT number FROM deals") == [(1,)]


@pytest.mark.parametrize("url", ["mysql://u:s3cret@h/d", "s3cret", "postgresql://h/d?nonsense=s3cret"])
def test_a_url_of_no_use_stops_the_line_without_repeating_it(box: Outbox, url: str) -> None:
    with Relay(box, PostgresTarget(lambda: url, OPERATIONS, config=_CONFIG)):
        box.enqueue("trade", {"number": 1})
        until(lambda: box.status().relay.stopped)
    said = box.status().relay.last_error or ""
    assert said.startswith("the URL of the database is of no use: database_url ")
    assert "s3cret" not in said


def test_two_passwords_are_refused() -> None:
    def password() -> str:
        return "other"

    with pytest.raises(ConfigError, match="the URL has a password, and password= gives another"):
        PostgresTarget("postgresql://u:one@h/d", OPERATIONS, password=password)
    PostgresTarget("postgresql://u@h/d", OPERATIONS, password=password)


def test_lanes_ask_for_a_password_each(server: PostgresServer, vault: Vault, outbox_dir: Path) -> None:
    config = OutboxConfig(lanes=3, min_free_mb=0)
    operations = (Operation("trade", table="deals", order_by="number"),)
    ask: Callable[[], str] = vault
    with Outbox.open(outbox_dir, config, operations) as box:
        target = PostgresTarget(address(server), operations, password=ask, config=config)
        with Relay(box, target) as relay:
            for number in range(50):
                box.enqueue("trade", {"number": number})
            assert relay.drain(LONG)
            with box.transaction() as tx:
                for number in range(50, 100):
                    tx.enqueue("trade", {"number": number})
            assert relay.drain(LONG)
    assert 1 <= vault.asked <= 3
    assert query(server.url(), "SELECT count(DISTINCT number) FROM deals") == [(100,)]


@pytest.mark.parametrize("named", [True, False])
def test_a_wired_engine_asks_for_the_password(
    server: PostgresServer, vault: Vault, outbox_dir: Path, named: bool
) -> None:
    """Also where the URL is the manager's own, with the password of the day on which it was made."""

    def ask(dialect: object, record: object, arguments: object, parameters: dict[str, object]) -> None:
        del dialect, record, arguments
        parameters["password"] = vault()

    paper = f"paper_{named}".lower()
    query(server.url(), f"CREATE DATABASE {paper}")
    manager = DatabaseManager(server.url(paper))
    event.listen(manager.engine, "do_connect", ask)
    engine = PaperEngine(manager)
    config = OutboxConfig(
        dir=str(outbox_dir),
        database_url=address(server, database=paper) if named else None,
        backoff_cap=0.2,
        min_free_mb=0,
    )
    with wire(engine, config=config, password=vault) as wiring:
        assert wiring.relay is not None
        engine.db_manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
        assert wiring.relay.drain(LONG)
        change(server, "first", "second")
        vault.password = "second"
        query(server.url(password="second"), _CUT)
        engine.db_manager.update_balance(Decimal(1000), "start")
        assert wiring.relay.drain(LONG)
    manager.close()
    balances = query(server.url(paper, password="second"), "SELECT DISTINCT total_balance::int FROM account_balances")
    assert balances == [(1000,)]
